"""A stranger who has nothing but the id loads what was pushed, and gets the same numbers."""

import json
import re
import shutil

import pytest
import torch
from conftest import load_recipe
from hub.conftest import train
from peft import PeftModel
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

import ptft_recipes.bottleneck  # noqa: F401 - PEFT knows the method from then on
from ptft_recipes.hub import push_run

pytestmark = pytest.mark.usefixtures("login")
TEXTS = ["the old match", "a new theory of the atom and one gene", "stock"]
ADAPTERS = {"lora": ["r=4", "init_lora_weights=false"], "bottleneck": ["reduction_factor=4"]}


def logits(model, source) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(source)
    with torch.no_grad():
        return model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def pushed(run, tmp_path, name="mine") -> str:
    """Push a run, and take it away from this machine."""
    push_run(run, name)
    shutil.move(run, tmp_path / "away")
    return f"me/{name}"


@pytest.mark.parametrize("protocol", ["lfs", "xet"])
def test_a_model(hub, run, tmp_path):
    before = logits(AutoModelForSequenceClassification.from_pretrained(run), run)
    source = pushed(run, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(source)
    assert torch.equal(logits(model, source), before)
    assert sorted(model.config.label2id) == ["markets", "science", "sports"]


@pytest.mark.parametrize("method", ["lora", pytest.param("bottleneck", marks=pytest.mark.slow)])
def test_an_adapter(hub, method, checkpoint, topics, tmp_path):
    flags = ["--tuning", method, "--tuning_kwargs", *ADAPTERS[method], "--learning_rate", "0.01"]
    run = train("finetune_cls", checkpoint, topics, tmp_path / "mine", *flags)

    def load(source):
        base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
        return PeftModel.from_pretrained(base, source)

    before = logits(load(run), run)
    source = pushed(run, tmp_path)
    assert torch.equal(logits(load(source), source), before)
    files = hub.repository("me/mine").head().files
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {*files}
    assert "model.safetensors" not in files
    assert re.search(rb'"base_model_name_or_path": "<local>/bert\d*"', hub.content(source, "adapter_config.json"))


@pytest.mark.slow
def test_a_soup(hub, run, checkpoint, topics, tmp_path):
    other = train("finetune_cls", checkpoint, topics, tmp_path / "other", "--seed", "43")
    # Only runs that have chosen an epoch on validation are put together.
    for folder in (run, other):
        results = json.loads((folder / "results.json").read_text())
        results["run"]["validation"] = {"macro_f1": 0.5}
        (folder / "results.json").write_text(json.dumps(results))
    argv = ["--runs", str(run), str(other), "--output_dir", str(tmp_path / "all"), "--bf16", "false"]
    load_recipe("ensemble_runs").main([*argv, "--use_cpu", "true", "--disable_tqdm", "true"])
    soup = tmp_path / "all" / "uniform_soup"
    before = logits(AutoModelForSequenceClassification.from_pretrained(soup), soup)
    source = pushed(soup, tmp_path, "soup")
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(source), source), before)
    files = hub.repository(source).head().files
    assert {"README.md", "results.json", "tokenizer.json"} <= {*files}
    assert "predictions/test.jsonl" not in files
    for name in ("README.md", "results.json"):
        assert str(tmp_path.parent).encode() not in hub.content(source, name)


def test_a_masked_language_model(hub, checkpoint, corpus, tmp_path):
    run = train("pretrain_mlm", checkpoint, corpus, tmp_path / "mine")
    before = logits(AutoModelForMaskedLM.from_pretrained(run), run)
    source = pushed(run, tmp_path)
    assert torch.equal(logits(AutoModelForMaskedLM.from_pretrained(source), source), before)


def test_a_tokenizer(hub, checkpoint, corpus, tmp_path):
    run = tmp_path / "mine"
    argv = ["--model_name_or_path", checkpoint, "--output_dir", str(run), "--algorithm", "wordpiece"]
    argv += [token for split, path in corpus.items() for token in (f"--{split}_file", path)]
    load_recipe("train_tokenizer").main([*argv, "--vocab_size", "60", "--push_to_hub", "true"])
    before = AutoTokenizer.from_pretrained(run)(TEXTS)["input_ids"]
    shutil.move(run, tmp_path / "away")
    assert AutoTokenizer.from_pretrained("me/mine")(TEXTS)["input_ids"] == before
    repository = hub.repository("me/mine")
    assert repository.private
    assert {"config.json", "results.json", "tokenizer.json", "tokenizer_config.json"} <= {*repository.head().files}
    assert not {"model.safetensors", "words.txt"} & {*repository.head().files}
