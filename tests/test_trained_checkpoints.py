"""What a folder says of itself: its task, its labels, the options of its run."""

import json
from dataclasses import dataclass

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

from ptft_recipes import demo
from ptft_recipes.errors import InputError
from ptft_recipes.labels import REGRESSION, SINGLE
from ptft_recipes.modeling import ModelArguments
from ptft_recipes.trained_checkpoints import read_checkpoint, recorded_options


@dataclass
class Options:
    text_column: str = "text"
    max_length: int = 128
    train_file: str | None = None


@pytest.fixture
def folder(tmp_path, checkpoint):
    """A folder of a model for a task, with its config changed by keywords."""

    def make(auto_class, name="model", **changes):
        config = AutoConfig.from_pretrained(checkpoint, num_labels=changes.pop("num_labels", 3))
        model = auto_class.from_config(config)
        model.save_pretrained(tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return str(tmp_path / name)

    return make


def test_task_and_labels_are_read_from_the_config(folder):
    labels = {"0": "b", "1": "a", "2": "c"}
    found = read_checkpoint(ModelArguments(folder(AutoModelForSequenceClassification, id2label=labels)))
    assert (found.task, found.problem_type, found.adapter) == ("text-classification", SINGLE, None)
    assert found.label_names == ["b", "a", "c"]  # in the order of the head, not of the alphabet
    found = read_checkpoint(ModelArguments(folder(AutoModelForTokenClassification, "tags")))
    assert (found.task, found.problem_type) == ("token-classification", None)
    assert found.label_names == ["LABEL_0", "LABEL_1", "LABEL_2"]
    number = folder(AutoModelForSequenceClassification, "number", num_labels=1)
    assert read_checkpoint(ModelArguments(number)).problem_type == REGRESSION


def test_labels_beyond_nine_are_in_numerical_order(folder):
    labels = {str(i): f"label {i}" for i in range(12)}
    found = read_checkpoint(ModelArguments(folder(AutoModelForSequenceClassification, num_labels=12, id2label=labels)))
    assert found.label_names == [f"label {i}" for i in range(12)]


def test_a_task_without_recipe_is_refused(folder):
    path = folder(AutoModelForSequenceClassification, architectures=["BertForMultipleChoice"])
    with pytest.raises(InputError, match="is a checkpoint for BertForMultipleChoice; what can be evaluated here"):
        read_checkpoint(ModelArguments(path))


def test_an_adapter_without_the_labels_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS"}))
    with pytest.raises(InputError, match=r"beside the adapter there is no config\.json, which would name its labels"):
        read_checkpoint(ModelArguments(str(tmp_path)))


def test_the_options_of_a_run_are_those_of_the_dataclass_as_text(tmp_path):
    (tmp_path / "config.yaml").write_text("max_length: 32\ntrain_file: 007.csv\nlearning_rate: 1e-3\noutput_dir: x\n")
    expected = {"max_length": "32", "train_file": "007.csv"}
    assert recorded_options(["--model_name_or_path", str(tmp_path)], "default", Options) == expected
    assert recorded_options([f"--model_name_or_path={tmp_path}", "--seed", "1"], "default", Options) == expected
    assert recorded_options([], str(tmp_path), Options) == expected
    assert recorded_options([], "no/such/folder", Options) == {}


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\x00"])
def test_an_unreadable_config_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml: cannot be read"):
        recorded_options([], str(tmp_path), Options)


def test_a_config_that_asks_for_objects_gets_text(tmp_path):
    (tmp_path / "config.yaml").write_text("text_column: !!python/object/apply:os.system [echo]\n")
    found = recorded_options([], str(tmp_path), Options)
    assert found == {"text_column": ["echo"]}


def test_the_demo_model_stands_in_for_its_hub_id(monkeypatch):
    assert demo.installed_name("sentence-transformers/all-MiniLM-L6-v2") == "demo/minilm"
    assert demo.installed_name("bert-base-uncased") == "bert-base-uncased"
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert demo.installed_name("sentence-transformers/all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
