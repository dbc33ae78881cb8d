"""The recipe end to end, in process, on tiny models: entities and plain tags, short sentences and long documents."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOPICS, cut_off, run_card, tagged_rows, write_conll
from peft import PeftModel
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer, EvalPrediction, pipeline

import ptft_recipes.bottleneck  # noqa: F401  PEFT then knows the method
from ptft_recipes.errors import InputError
from ptft_recipes.tag_metrics import tag_metrics, tag_statistics


def read_predictions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]


def predict(model, folder: Path, sentences: list[list[str]]) -> list[list[str]]:
    """Tag sentences of one window each, as anybody would with what was saved."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for words in sentences:
        batch = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            best = model.eval()(**batch).logits[0].argmax(-1).tolist()
        first = {word: i for i, word in reversed([*enumerate(batch.word_ids(0))]) if word is not None}
        found.append([model.config.id2label[best[first[i]]] for i in range(len(words))])
    return found


def documents(tmp_path, sizes=(24, 6, 6), sentences=6):
    """Write documents of several sentences: of 40 words or so, where a window has 14."""
    paths = {}
    for seed, (split, size) in enumerate(zip(("train", "validation", "test"), sizes, strict=True)):
        rows = tagged_rows(size * sentences, seed)
        merged = [
            {name: list(itertools.chain(*(row[name] for row in part))) for name in ("tokens", "tags")}
            for part in (rows[i : i + sentences] for i in range(0, len(rows), sentences))
        ]
        paths[f"{split}_file"] = write_conll(tmp_path / f"{split}_documents.conll", merged)
    return paths


def test_a_run_learns_and_leaves_everything_that_the_readme_promises(run_token_cls, tmp_path):
    results = run_token_cls(num_train_epochs=5)
    folder, metrics = tmp_path / "run", results["metrics"]
    assert metrics["f1"]["value"] > 0.9, "0 is what tagging every word O gives"
    assert {"precision", "recall", "partial_f1", "conlleval_f1", "accuracy", "f1/sports", "partial_f1/science"} <= {
        *metrics
    }
    low, high = metrics["f1"]["ci95"]
    assert low <= metrics["f1"]["value"] <= high
    assert metrics["f1"]["n"] == 48, "sentences are resampled"
    assert json.loads((folder / "results.json").read_text()) == results
    for name in ("README.md", "config.yaml", "plots/learning_curves.png"):
        assert (folder / name).stat().st_size > 0, name
    assert not (folder / "plots" / "confusion_matrix.png").exists(), "of entities there is none"
    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values())[:3] == ["O", "B-markets", "I-markets"]
    lines = read_predictions(folder)
    assert lines[0]["id"] == "test.conll:1"
    assert [{"tokens": line["words"], "tags": line["gold"]} for line in lines] == tagged_rows(48, 2)
    statistics = tag_statistics(
        [line["gold"] for line in lines], [line["predicted"] for line in lines], [*config["label2id"]], "IOB2"
    )
    again = tag_metrics(EvalPrediction(statistics, statistics), label_names=[*config["label2id"]], scheme="IOB2")
    assert again == {name: score["value"] for name, score in metrics.items()}
    assert results["run"]["validation"]["f1"] > 0.9
    assert results["run"]["data"]["scheme"] == "IOB2"
    card = (folder / "README.md").read_text()
    assert 'tag = pipeline("token-classification"' in card
    assert "| label | precision | recall | f1 | partial_f1 | test examples |" in card
    tag = pipeline("token-classification", str(folder))
    assert [(found["word"], found["entity"]) for found in tag("the goal of a bank")] == [
        ("goal", "B-sports"), ("bank", "B-markets"),
    ]  # fmt: skip


@pytest.mark.parametrize("tuning", ["full", "linear_probe", "lora", "bottleneck"])
def test_the_saved_model_predicts_what_the_run_reported(run_token_cls, tmp_path, tuning, checkpoint):
    flags = ["--tuning_kwargs", "reduction_factor=4"] if tuning == "bottleneck" else []
    results = run_token_cls(*flags, tuning=tuning, num_train_epochs=1, max_length=40, stride=8)
    folder = tmp_path / "run"
    if tuning in ("lora", "bottleneck"):
        config = AutoConfig.from_pretrained(folder)
        base = AutoModelForTokenClassification.from_pretrained(checkpoint, config=config)
        model = PeftModel.from_pretrained(base, folder)
    else:
        model = AutoModelForTokenClassification.from_pretrained(folder)
    body = AutoModelForTokenClassification.from_pretrained(checkpoint).bert.embeddings.word_embeddings.weight
    weight = next(weight for name, weight in model.named_parameters() if name.endswith("word_embeddings.weight"))
    assert torch.equal(weight, body) == (tuning != "full")
    lines = read_predictions(folder)
    assert results["run"]["data"]["tokens"]["test"]["rows_of_several_windows"] == 0
    assert predict(model, folder, [line["words"] for line in lines]) == [line["predicted"] for line in lines]
    assert (results["run"]["trainable_parameters"] < results["run"]["total_parameters"] / 2) == (tuning != "full")
    found = run_card(folder, checkpoint)["tag"]("the goal of a bank")
    assert all(entity["entity_group"] in TOPICS for entity in found), "whole entities"


def test_long_documents_are_read_in_windows_and_merged(run_token_cls, tmp_path):
    results = run_token_cls(**documents(tmp_path), num_train_epochs=8)
    tokens = results["run"]["data"]["tokens"]
    assert tokens["test"]["rows_of_several_windows"] == 6
    assert tokens["test"]["windows"] > 12
    assert results["metrics"]["f1"]["value"] > 0.9
    lines = read_predictions(tmp_path / "run")
    assert all(len(line["words"]) == len(line["gold"]) == len(line["predicted"]) > 14 for line in lines)


def test_the_loss_of_a_document_in_windows_counts_every_word_once(
    run_token_cls, finetune_token_cls, tmp_path, monkeypatch
):
    items = []
    original = finetune_token_cls.classification_loss

    def counting(outputs, labels, num_items_in_batch=None, **kwargs):
        if outputs.logits.requires_grad:
            items.append((int((labels != -100).sum()), int(num_items_in_batch)))
        return original(outputs, labels, num_items_in_batch, **kwargs)

    monkeypatch.setattr(finetune_token_cls, "classification_loss", counting)
    paths = documents(tmp_path)
    run_token_cls(**paths, num_train_epochs=1, gradient_accumulation_steps=2)
    words = sum(line.strip() != "" for line in open(paths["train_file"]))  # noqa: SIM115
    assert sum(count for count, _ in items) == words
    steps = [sum(count for count, _ in items[i : i + 2]) for i in range(0, len(items), 2)]
    assert steps == [divisor for _, divisor in items[::2]], "the divisor is that of the whole step"


def test_plain_tags_of_conllu(run_token_cls, tmp_path):
    files = {}
    for seed, split in enumerate(("train", "validation", "test")):
        text = ""
        for row in tagged_rows(96 if split == "train" else 24, seed):
            tags = ["NOUN" if tag != "O" else "DET" for tag in row["tags"]]
            cells = enumerate(zip(row["tokens"], tags, strict=True), start=1)
            text += "".join(f"{i}\t{word}\t_\t{tag}{6 * chr(9) + '_'}\n" for i, (word, tag) in cells) + "\n"
        (tmp_path / f"{split}.conllu").write_text(text)
        files[f"{split}_file"] = tmp_path / f"{split}.conllu"
    results = run_token_cls(**files, num_train_epochs=2)
    assert results["run"]["data"]["scheme"] == "plain"
    assert list(results["run"]["validation"]) == ["macro_f1"]
    assert results["metrics"]["accuracy"]["value"] > 0.95
    assert set(results["metrics"]) >= {"macro_f1", "f1/NOUN", "f1/DET"}
    assert (tmp_path / "run" / "plots" / "confusion_matrix.png").stat().st_size > 0


def test_words_that_the_tokenizer_drops_are_predicted_and_counted(run_token_cls, tmp_path):
    """The tiny tokenizer splits at white space: of a word of a space alone it leaves nothing."""
    rows = [
        {"tokens": ["\u2003", *row["tokens"], "\u00a0"], "tags": ["O", *row["tags"], "O"]}
        for row in tagged_rows(48, 2)
    ]
    path = write_conll(tmp_path / "test.conll", rows)
    plain = run_token_cls(max_steps=20, max_length=64, output_dir=tmp_path / "plain")
    results = run_token_cls(max_steps=20, max_length=64, test_file=path)
    assert results["run"]["data"]["tokens"]["test"]["words_without_token"] == 96
    for line, without in zip(read_predictions(tmp_path / "run"), read_predictions(tmp_path / "plain"), strict=True):
        assert line["predicted"] == ["O", *without["predicted"], "O"]
    assert results["metrics"]["f1"] == plain["metrics"]["f1"]


def test_a_test_split_without_tags_is_predicted_and_not_scored(run_token_cls, tmp_path):
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps({"tokens": row["tokens"]}) + "\n" for row in tagged_rows(9, 5)))
    results = run_token_cls(max_steps=2, test_file=path)
    assert results["metrics"] == {}
    lines = read_predictions(tmp_path / "run")
    assert [len(line["predicted"]) for line in lines] == [len(row["tokens"]) for row in tagged_rows(9, 5)]
    assert all(line["gold"] is None for line in lines)


def test_labelling_all_tokens_adds_their_loss(run_token_cls, finetune_token_cls, tmp_path, monkeypatch):
    counts, original = [], finetune_token_cls.classification_loss

    def counting(outputs, labels, *args, **kwargs):
        counts.append(int((labels != -100).sum())) if outputs.logits.requires_grad else None
        return original(outputs, labels, *args, **kwargs)

    monkeypatch.setattr(finetune_token_cls, "classification_loss", counting)
    rows = [{"tokens": ["new-old", "goal"], "tags": ["O", "B-X"]}] * 16  # three tokens, and one
    path = write_conll(tmp_path / "train.conll", rows)
    files = {"data": False, "train_file": path, "validation_file": path, "num_train_epochs": 1}
    for i, flags in enumerate([[], ["--label_all_tokens"]]):
        run_token_cls(*flags, **files, output_dir=tmp_path / str(i))
    assert sum(counts[: len(counts) // 2]) * 2 == sum(counts[len(counts) // 2 :])


def test_no_entity_anywhere_is_undefined_and_not_zero(run_token_cls, tmp_path):
    path = write_conll(tmp_path / "none.conll", [{"tokens": ["the", "old"], "tags": ["O", "O"]}] * 8)
    results = run_token_cls(num_train_epochs=3, test_file=path)
    assert results["metrics"]["f1"] == {"value": None, "ci95": [None, None], "n": 8}
    assert results["metrics"]["accuracy"]["value"] == 1
    assert "undefined" not in json.loads((tmp_path / "run" / "results.json").read_text())


def test_early_stopping_ends_a_run_that_no_longer_improves(run_token_cls):
    results = run_token_cls(num_train_epochs=20, early_stopping_patience=1, max_train_samples=96)
    assert results["run"]["epochs"] < 15


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_in_the_same_weights(run_token_cls, tmp_path, tuning):
    common = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 10, "num_train_epochs": 2,
              "save_total_limit": 9, "max_train_samples": 96, "per_device_train_batch_size": 6,
              "load_best_model_at_end": "false"}  # fmt: skip
    flags = ["--tuning", "lora", "--tuning_kwargs", "lora_dropout=0.1"] if tuning == "lora" else []
    whole = run_token_cls(*flags, **common, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", 30, tmp_path / "run")
    resumed = run_token_cls(*flags, **common)
    assert resumed["run"]["resumed"]["from"] == "checkpoint-30"
    assert resumed["run"]["steps"] == whole["run"]["steps"] > 30
    last = "model.safetensors" if tuning == "full" else "adapter_model.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    assert resumed["metrics"] == whole["metrics"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tags_column", "ner"], "no column 'ner'; its columns are 'tokens', 'tags'"),
        (["--max_length", "100"], "this model reads at most 64 tokens"),
        (["--stride", "14"], "--stride 14: must be at least 0, and below the 14 tokens"),
        (["--metric_for_best_model", "f_1"], "no such metric; did you mean 'f1'"),
        (["--tuning", "lora", "--from_scratch"], "only --tuning full can train them"),
    ],
)
def test_mistakes_end_in_one_clear_line(run_token_cls, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        run_token_cls(*flags)
    assert "\n" not in str(caught.value)


def test_logits_that_are_not_finite_stop_the_run(run_token_cls, finetune_token_cls, monkeypatch):
    original = finetune_token_cls.load_model

    def broken(*args, **kwargs):
        model, new_modules = original(*args, **kwargs)
        model.classifier.bias.data[0] = np.nan
        return model, new_modules

    monkeypatch.setattr(finetune_token_cls, "load_model", broken)
    with pytest.raises(FloatingPointError, match="logits of some tokens are nan or infinite"):
        run_token_cls(max_steps=2)
