"""The recipe end to end, in process, on tiny models: both heads learn, and are handed over with the pooler."""

import json
import random

import pytest
import torch
from conftest import TOPICS, cut_off, nothing_written
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)

from ptft_recipes.errors import InputError


@pytest.fixture
def sport_first(tmp_path):
    """200 documents of two sentences, the first about sports and the second about markets."""
    generator = random.Random(0)
    documents = [
        "\n".join(" ".join(generator.choices(TOPICS[t], k=9)) for t in ("sports", "markets")) for _ in range(200)
    ]
    (tmp_path / "topics.txt").write_text("\n\n".join(documents))
    return tmp_path / "topics.txt"


@pytest.fixture
def albert(tmp_path, checkpoints, tokenizer):
    """A tiny ALBERT that learns in seconds: with the usual small weights attention stays even for long."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(checkpoints["albert"], initializer_range=0.2)
    AutoModelForPreTraining.from_config(config).save_pretrained(tmp_path / "albert")
    tokenizer.save_pretrained(tmp_path / "albert")
    return tmp_path / "albert"


def test_a_run_teaches_both_heads_and_leaves_everything_behind(run_sentences, tmp_path, albert, sport_first):
    flags = {"model_name_or_path": albert, "train_file": sport_first, "num_train_epochs": 6}
    results = run_sentences(data=False, **flags)
    folder = tmp_path / "sentences"
    scores = {name: score["value"] for name, score in results["metrics"].items()}
    assert scores["sentence_accuracy"] > 0.9 > scores["sentence_accuracy_before"]
    assert scores["perplexity_ratio"] < 0.8
    for name in ("sentence_loss", "perplexity"):
        score = results["metrics"][name]
        assert score["ci95"][0] <= score["value"] <= score["ci95"][1]
    assert json.loads((folder / "results.json").read_text()) == results
    model, info = AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.sop_classifier.classifier.weight.shape == (2, 32)


def test_head_and_pooler_are_handed_over(run_sentences, run_cls, tmp_path, checkpoint):
    run_sentences(max_steps=3)
    folder = tmp_path / "sentences"
    model, info = AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    start = AutoModel.from_pretrained(checkpoint).pooler.dense.weight
    assert not torch.equal(model.bert.pooler.dense.weight, start), "it is trained"
    _, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    _, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
    again = run_cls(model_name_or_path=folder, max_steps=1)
    assert [stage["recipe"] for stage in again["run"]["lineage"]] == ["pretrain_sentences", "finetune_cls"]


def test_a_run_resumed_in_the_middle_of_an_epoch_ends_in_the_same_weights(run_sentences, tmp_path):
    common = {"lr_scheduler_type": "constant", "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 5,
              "eval_steps": 5, "num_train_epochs": 2, "save_total_limit": 9, "dataloader_num_workers": 1}  # fmt: skip
    whole = run_sentences(**common, output_dir=tmp_path / "whole")
    last = whole["run"]["steps"]
    middle = 5 * (last // 10 + 1)
    assert last / 2 < middle < last
    cut_off(tmp_path / "whole", middle, tmp_path / "sentences")
    resumed = run_sentences(**common)
    assert resumed["run"]["resumed"]["from"] == f"checkpoint-{middle}"
    name = f"checkpoint-{5 * (last // 5)}/model.safetensors"
    assert (tmp_path / "sentences" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert resumed["metrics"] == whole["metrics"]


def test_a_model_without_a_sentence_head_is_refused_before_compute(run_sentences, checkpoints, tmp_path):
    with pytest.raises(InputError, match="RobertaForMaskedLM has no head for pairs of sentences"):
        run_sentences(model_name_or_path=checkpoints["roberta"])
    assert nothing_written(tmp_path / "sentences")


def test_stock_scores_the_same(run_sentences, tmp_path):
    fast = run_sentences(max_steps=1, learning_rate=0)
    stock = run_sentences("--stock", max_steps=1, learning_rate=0, output_dir=tmp_path / "stock")
    assert stock["run"]["stock"]
    for name, score in fast["metrics"].items():
        assert stock["metrics"][name]["value"] == pytest.approx(score["value"], rel=1e-4), name
