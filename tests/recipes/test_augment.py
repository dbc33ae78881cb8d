"""`--augment` in the recipes: what is scored stays untouched, a resumed run ends in the same weights."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, cut_off
from safetensors.torch import load_file

from ptft_recipes.errors import InputError
from ptft_recipes.tag_schemes import IOB2, count_illegal

AUGMENT = ["random_deletion=0.2", "random_swap=0.2", "typos=0.5", "copies=3", "span_cutoff=0.2", "mixup=0.4"]
STEPS = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 4, "eval_steps": 4, "save_total_limit": 9,
         "lr_scheduler_type": "constant", "num_train_epochs": 1, "max_train_samples": 16}  # fmt: skip


@pytest.fixture
def seen(finetune_cls, finetune_token_cls, monkeypatch):
    """What the recipes train on, choose by and score, of each run in turn."""
    runs = []
    trainers = {finetune_cls: "RecipeTrainer", finetune_token_cls: "TaggingTrainer"}
    scores = {finetune_cls: "score_test_split", finetune_token_cls: "score_tags"}

    def watch(recipe):
        trainer, score = getattr(recipe, trainers[recipe]), getattr(recipe, scores[recipe])

        def make(**kwargs):
            runs.append({name: kwargs[f"{name}_dataset"].to_list() for name in ("train", "eval")})
            return trainer(**kwargs)

        def score_and_keep(trainer, rows, *args, **kwargs):
            runs[-1]["test"] = rows.to_list()
            return score(trainer, rows, *args, **kwargs)

        monkeypatch.setattr(recipe, trainers[recipe], make)
        monkeypatch.setattr(recipe, scores[recipe], score_and_keep)

    watch(finetune_cls)
    watch(finetune_token_cls)
    return runs


def test_only_training_rows_are_touched_and_a_resumed_run_ends_in_the_same_weights(run_cls, seen, tmp_path):
    plain = run_cls(**STEPS, output_dir=tmp_path / "plain")
    whole = run_cls("--augment", *AUGMENT, **STEPS, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", 4, tmp_path / "run")
    resumed = run_cls("--augment", *AUGMENT, **STEPS)

    without, augmented, _ = seen
    for split, size in (("eval", 64), ("test", 64)):
        assert len(without[split]) == size
        assert json.dumps(augmented[split]) == json.dumps(without[split])
    assert json.dumps(augmented["train"][:16]) == json.dumps(without["train"])
    assert len(augmented["train"]) == 64
    assert [row["labels"] for row in augmented["train"]] == [row["labels"] for row in without["train"]] * 4
    changed = sum(a["text"] != b["text"] for a, b in zip(augmented["train"][16:], without["train"] * 3, strict=True))
    data = whole["run"]["data"]
    assert data["augmentation"] == {"rows": 64, "unchanged_copies": 48 - changed}
    assert changed > 30
    assert data["rows"] == plain["run"]["data"]["rows"] == {"train": 16, "validation": 64, "test": 64}
    assert data["tokens"]["train"]["tokens"] == sum(row["length"] for row in augmented["train"])
    assert data["tokens"]["test"] == plain["run"]["data"]["tokens"]["test"]
    assert "augmentation" not in plain["run"]["data"]
    card = (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    assert "48 augmented copies of training rows on top" in card

    assert resumed["run"]["resumed"]["from"] == "checkpoint-4"
    assert whole["run"]["steps"] == resumed["run"]["steps"] == 8
    last = "checkpoint-8/model.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    assert resumed["metrics"] == whole["metrics"]


def test_tags_of_copies_are_legal_and_only_training_rows_are_touched(run_token_cls, seen, tmp_path):
    common = {"max_train_samples": 16, "num_train_epochs": 1}
    plain = run_token_cls(**common, output_dir=tmp_path / "plain")
    results = run_token_cls("--augment", "random_deletion=0.2", "random_swap=0.3", "copies=2", **common)
    without, augmented = seen
    for split in ("eval", "test"):
        assert len(without[split]) >= 48
        assert json.dumps(augmented[split]) == json.dumps(without[split])
    assert json.dumps(augmented["train"][: len(without["train"])]) == json.dumps(without["train"])
    assert results["run"]["data"]["augmentation"]["rows"] == 48
    names, rows = plain["run"]["data"]["label_names"], {}
    for window in augmented["train"]:
        labels = [names[window["labels"][place]] for place in window["positions"]]
        rows.setdefault(window["row"], []).extend(labels)
    assert len(rows) == 48
    assert sum(count_illegal(tags, IOB2) for tags in rows.values()) == 0
    with pytest.raises(InputError, match="--augment mixup: it mixes labels of whole rows"):
        run_token_cls("--augment", "mixup=0.2", **common, output_dir=tmp_path / "mixup")


def test_a_frozen_body_reads_every_copy_once_and_has_no_batches_to_change(run_cls, seen, tmp_path):
    common = {"max_train_samples": 16, "num_train_epochs": 1, "tuning": "linear_probe"}
    results = run_cls("--augment", "random_deletion=0.3", **common)
    assert [len(row["inputs_embeds"]) for row in seen[0]["train"]] == [1] * 32
    assert results["run"]["data"]["augmentation"]["rows"] == 32
    with pytest.raises(InputError, match="--augment span_cutoff: no weight of the body moves"):
        run_cls("--augment", "span_cutoff=0.1", **common, output_dir=tmp_path / "cutoff")


def test_a_wrong_name_ends_the_run_before_it_begins(run_cls, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_cls("--augment", "random_deletions=0.1")
    assert "random_deletion" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_on_the_copies_that_one_trains_on(run_cls, checkpoint, topics, tmp_path):
    """Of a model without dropout, which each process would draw for itself; the same rows in each global batch."""
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    augment = ["--augment", *AUGMENT[:4]]
    one = run_cls(*augment, model_name_or_path=model, max_train_samples=16, num_train_epochs=2)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / "multi_cpu.yaml"), str(ROOT / "recipes" / "finetune_cls.py")]
    command += [*augment, "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "two")]
    command += ["--max_length", "32", "--learning_rate", "5e-3", "--per_device_train_batch_size", "4"]
    command += ["--max_train_samples", "16", "--num_train_epochs", "2", "--bf16", "false", "--use_cpu", "true"]
    command += [token for split, path in topics.items() for token in (f"--{split}_file", path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["run"]["processes"] == 2
    assert two["run"]["data"] == one["run"]["data"], (
        "rows, unchanged copies, tokens, and the fingerprint of the copies"
    )
    assert two["run"]["data"]["augmentation"]["rows"] == 64
    assert two["run"]["steps"] == one["run"]["steps"] == 16
    weights = [load_file(tmp_path / name / "checkpoint-16" / "model.safetensors") for name in ("run", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=1e-3, msg=name)
