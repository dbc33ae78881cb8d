"""What a checkpoint lacks is known, made anew, trained and saved; what is no such checkpoint is refused."""

import pytest
import torch
from conftest import FAMILIES, tiny_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, base_model_name, load_model, load_tokenizer

HEADS = {
    "bert": ["classifier"],
    "roberta": ["classifier.dense", "classifier.out_proj"],
    "distilbert": ["classifier", "pre_classifier"],
    "modernbert": ["classifier", "head.dense", "head.norm"],
}


def load(path, tokenizer, **kwargs):
    arguments = ModelArguments(model_name_or_path=str(path), **kwargs)
    return load_model(AutoModelForSequenceClassification, arguments, tokenizer, label_names=["a", "b", "c"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_new_head_is_named(checkpoints, tokenizer, family):
    model, new_modules = load(checkpoints[family], tokenizer)
    assert new_modules == HEADS[family]
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert model.dtype == torch.float32


def test_a_pooler_that_masked_language_modelling_dropped_is_named(tmp_path, tokenizer):
    AutoModelForMaskedLM.from_config(tiny_config("bert", len(tokenizer))).save_pretrained(tmp_path)
    assert load(tmp_path, tokenizer)[1] == ["bert.pooler.dense", "classifier"]


def test_the_head_of_another_task_is_made_anew(tmp_path, checkpoint, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=7)
    model.save_pretrained(tmp_path)
    loaded, new_modules = load(tmp_path, tokenizer)
    assert new_modules == ["classifier"]
    assert loaded.classifier.out_features == 3


def test_a_fitting_head_is_kept(tmp_path, checkpoint, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
    model.save_pretrained(tmp_path)
    loaded, new_modules = load(tmp_path, tokenizer)
    assert new_modules == []
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_from_scratch_has_new_weights_everywhere(checkpoint, tokenizer):
    model, new_modules = load(checkpoint, tokenizer, from_scratch=True)
    assert {name.rpartition(".")[0] for name, _ in model.named_parameters()} == set(new_modules)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, checkpoints, tokenizer):
    weights = {f"other.{name}": value for name, value in load_file(f"{checkpoints['bert']}/model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tiny_config("bert", len(tokenizer)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lacks \d+ of the \d+ weights of a bert body .*is it a checkpoint"):
        load(tmp_path, tokenizer)


def test_pickled_weights_are_not_read(tmp_path, checkpoint, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"cannot load .* from .*safetensors"):
        load(tmp_path, tokenizer)


@pytest.mark.parametrize("auto_class", [AutoModelForSequenceClassification, AutoModelForQuestionAnswering])
def test_an_encoder_decoder_is_refused_where_an_encoder_is_needed(auto_class, checkpoints, tokenizer):
    with pytest.raises(InputError, match=r"is an encoder-decoder \(bart\).*finetune_seq2seq\.py trains"):
        load_model(auto_class, ModelArguments(model_name_or_path=checkpoints["bart"]), tokenizer)


def test_damaged_weights_are_refused(tmp_path, checkpoint, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="cannot load AutoModelForSequenceClassification"):
        load(tmp_path, tokenizer)


def test_the_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path, tokenizer):
    AutoModelForSequenceClassification.from_config(tiny_config("bert", 12)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="they are not of one model"):
        load(tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("name", "message"),
    [(None, "pass --model_name_or_path"), ("demo/minilmm", "did you mean 'demo/minilm'"), ("no/such", "cannot load")],
)
def test_a_missing_model_is_one_clear_line(name, message):
    with pytest.raises(InputError, match=message):
        load_tokenizer(ModelArguments(model_name_or_path=name))


def test_a_demo_model_is_named_by_its_publisher():
    assert base_model_name(ModelArguments("demo/minilm")) == "sentence-transformers/all-MiniLM-L6-v2"
    assert base_model_name(ModelArguments("runs/mine")) == "runs/mine"
