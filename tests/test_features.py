"""Linear probing on vectors computed once is linear probing, only faster."""

import numpy as np
import pytest
import torch
from conftest import ALL_FAMILIES, tiny_config, topic_rows
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertModel,
    TrainingArguments,
)

from ptft_recipes.features import COLUMN, cache_features
from ptft_recipes.modeling import ModelArguments, load_model
from ptft_recipes.objectives import classification_loss
from ptft_recipes.tokenization import tokenize
from ptft_recipes.training import RecipeTrainer
from ptft_recipes.tuning import TuningArguments, apply_tuning


def rows(tokenizer, count=40):
    """Tokenized topic rows of different lengths with number labels."""
    texts = topic_rows(count, seed=0)
    names = sorted({row["label"] for row in texts})
    columns = dict(tokenize(tokenizer, [row["text"] for row in texts], max_length=32))
    return Dataset.from_dict({**columns, "labels": [names.index(row["label"]) for row in texts]})


def probe(path, tokenizer, tmp_path, cached, tuning="linear_probe", **options):
    """Train a head of the checkpoint for some epochs, on features or on tokens with the body held in eval mode."""
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=3, per_device_train_batch_size=8, learning_rate=0.05, use_cpu=True,
        per_device_eval_batch_size=8, save_strategy="no", disable_tqdm=True, train_sampling_strategy="group_by_length",
        **options,
    )  # fmt: skip
    torch.manual_seed(0)
    model, new = load_model(
        AutoModelForSequenceClassification, ModelArguments(str(path)), tokenizer, label_names=["a", "b", "c"]
    )
    tuning_args = TuningArguments(tuning)
    model = apply_tuning(model, tuning_args, "SEQ_CLS", new)
    dataset = DatasetDict(train=rows(tokenizer))
    if cached:
        dataset = cache_features(model, dataset, tokenizer, arguments)
        assert COLUMN in dataset["train"].column_names
    else:
        train = model.base_model.train
        model.base_model.train = lambda mode=True: train(False)
    trainer = RecipeTrainer(
        model, arguments, train_dataset=dataset["train"], processing_class=tokenizer, tuning_args=tuning_args,
        new_modules=new, compute_loss_func=classification_loss,
    )  # fmt: skip
    trainer.train()
    return model.eval(), trainer


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_head_becomes_the_same(checkpoints, tokenizer, tmp_path, family):
    slow, _ = probe(checkpoints[family], tokenizer, tmp_path, cached=False)
    fast, _ = probe(checkpoints[family], tokenizer, tmp_path, cached=True)
    start, _ = load_model(AutoModelForSequenceClassification, ModelArguments(checkpoints[family]), tokenizer)
    before = start.state_dict()
    moved = []
    for name, value in slow.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
        if name in before and not torch.equal(before[name], value):
            moved.append(name)
    assert moved
    assert not [name for name in moved if name.startswith(slow.base_model_prefix)]
    batch = tokenizer(["the match goal"], return_tensors="pt").to("cpu")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(fast(**inputs).logits, slow(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_a_pooler_that_the_checkpoint_lacks_is_trained_on_cached_tokens(tokenizer, tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "mlm"
    AutoModelForMaskedLM.from_config(tiny_config("bert", len(tokenizer))).save_pretrained(folder)
    slow, _ = probe(folder, tokenizer, tmp_path / "slow", cached=False)
    fast, _ = probe(folder, tokenizer, tmp_path / "fast", cached=True)
    torch.testing.assert_close(fast.bert.pooler.dense.weight, slow.bert.pooler.dense.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.classifier.weight, slow.classifier.weight, rtol=1e-4, atol=1e-5)


def test_mean_pooling(tokenizer, tmp_path):
    config = tiny_config("modernbert", len(tokenizer))
    config.classifier_pooling = "mean"
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "mean")
    slow, _ = probe(tmp_path / "mean", tokenizer, tmp_path / "slow", cached=False)
    fast, _ = probe(tmp_path / "mean", tokenizer, tmp_path / "fast", cached=True)
    torch.testing.assert_close(fast.head.dense.weight, slow.head.dense.weight, rtol=1e-4, atol=1e-5)


def test_predictions_from_features_come_in_the_order_of_the_rows(checkpoint, tokenizer, tmp_path):
    model, trainer = probe(checkpoint, tokenizer, tmp_path, cached=True)
    dataset = rows(tokenizer)
    features = cache_features(model, DatasetDict(train=dataset), tokenizer, trainer.args)["train"]
    prediction = trainer.predict(features)
    alone = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0].detach().numpy() for row in dataset]
    np.testing.assert_allclose(prediction.predictions, alone, atol=1e-5)
    assert prediction.label_ids.tolist() == dataset["labels"]


@pytest.mark.parametrize("tuning", ["full", "bitfit", "lora", "prompt_tuning"])
def test_a_body_that_moves_is_left_alone(checkpoint, tokenizer, tmp_path, tuning):
    model, new = load_model(AutoModelForSequenceClassification, ModelArguments(checkpoint), tokenizer)
    model = apply_tuning(model, TuningArguments(tuning), "SEQ_CLS", new)
    dataset = DatasetDict(train=rows(tokenizer))
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    assert cache_features(model, dataset, tokenizer, arguments) is dataset


def test_a_head_that_reads_every_token_is_noticed(checkpoints, tokenizer, tmp_path):
    arguments = ModelArguments(checkpoints["roberta"])
    model, new = load_model(AutoModelForSequenceClassification, arguments, tokenizer)
    model = apply_tuning(model, TuningArguments("linear_probe"), "SEQ_CLS", new)
    head = model.classifier.forward
    model.classifier.forward = lambda hidden_states: head(hidden_states.sum(1, keepdim=True))
    dataset = DatasetDict(train=rows(tokenizer))
    assert cache_features(model, dataset, tokenizer, TrainingArguments(str(tmp_path), use_cpu=True)) is dataset
    model(input_ids=torch.tensor([dataset["train"]["input_ids"][0]]))


def test_the_body_runs_once_over_every_row(checkpoint, tokenizer, tmp_path, monkeypatch):
    calls = []
    original = BertModel.forward
    monkeypatch.setattr(BertModel, "forward", lambda self, *a, **k: calls.append(1) or original(self, *a, **k))
    probe(checkpoint, tokenizer, tmp_path, cached=True)
    once = len(calls)
    probe(checkpoint, tokenizer, tmp_path, cached=False)
    assert once == 5 + 2, "40 rows in batches of 8, and twice for the check"
    assert len(calls) - once == 3 * 5, "three epochs"
