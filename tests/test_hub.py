"""The card says what was measured."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from ptft_recipes import hub
from ptft_recipes.card import write_model_card


def results(**run):
    data = {
        "name": "demo/aclsum_roles",
        "rows": {"train": 300, "validation": 30, "test": 40},
        "dropped": {"train": 1, "validation": 0, "test": 0},
        "cut": {"validation": 30},
        "overlap_with_train": {"validation": {"exact": 1, "normalised": 2}, "test": {"exact": 0, "normalised": 0}},
        "fingerprint": {"train": "aa", "validation": "bb", "test": "cc"},
        "tokens": {split: {"truncated_rows": 3} for split in ("train", "validation", "test")},
    }
    return {
        "split": "test",
        "metrics": {
            "accuracy": {"value": 0.7213, "ci95": [0.7071, 0.7355], "n": 40},
            "roc_auc": {"value": None, "ci95": [None, None], "n": 40},
            "f1/none": {"value": 0.5, "ci95": [0.4, 0.6], "n": 40},
        },
        "run": {
            "recipe": "finetune_cls", "base_model": "org/base", "config": {"output_dir": "out/x", "tuning": "full"},
            "versions": {"ptft-recipes": "0.1.0", "torch": "2.13.0"}, "commit": "0123456789abcdef", "dirty": False,
            "seed": 42, "hardware": "a CPU", "processes": 1, "precision": "bf16", "steps": 10, "epochs": 2.0,
            "best_step": 5, "validation": {"macro_f1": 0.6}, "trainable_parameters": 10, "total_parameters": 20,
            "seconds": {"train": 3.0, "test": 1.0, "total": 9.0}, "data": data, "saved_mib": 1.5,
            "milliseconds_per_step": 250.0, "peak_memory_gib": {"resident": 1.25},
            "lineage": [
                {"recipe": "pretrain_mlm", "from": "org/base", "from_scratch": False, "data": "notes.txt",
                 "fingerprint": "dd", "steps": 7},
                {"recipe": "finetune_cls", "from": "runs/pretrain_mlm", "from_scratch": False,
                 "data": "demo/aclsum_roles", "fingerprint": "aa", "steps": 10},
            ],
        } | run,
    }  # fmt: skip


def card(tmp_path, **run) -> ModelCard:
    write_model_card(tmp_path, results(**run), "text-classification", "me/x")
    return ModelCard.load(tmp_path / "README.md")


def test_the_card_holds_every_score_with_its_interval(tmp_path):
    text = card(tmp_path).text
    assert "| accuracy | 0.721 [0.707, 0.736] |" in text
    assert "| roc_auc | undefined |" in text
    assert "| none | 0.500 [0.400, 0.600] |" in text
    assert "| validation (cut from train) | 30 | 0 | 3 | 2 | `bb` |" in text
    assert "10 of 20 weights trained (50.0%)" in text
    assert "out/x" not in text


def test_the_card_says_what_the_run_cost(tmp_path):
    text = card(tmp_path).text
    assert "| weights | 10 of 20 trained; 1.5 MiB saved |" in text
    assert "| peak memory | 1.25 GiB (resident) |" in text
    assert "| step | 250.0 ms (median) |" in text


def test_the_card_tells_the_lineage_from_the_first_weights_on(tmp_path):
    expected = "`org/base` → `notes.txt` (pretrain_mlm, 7 steps, data `dd`) → `demo/aclsum_roles` (finetune_cls, 10 "
    assert f"Lineage: {expected}steps, data `aa`)." in card(tmp_path).text


def test_the_card_of_a_masked_language_model_counts_blocks_and_fills_a_mask(tmp_path):
    found = results()
    found["run"]["data"]["tokens"] = {
        split: {"tokens": 5000, "blocks": 20} for split in ("train", "validation", "test")
    }
    write_model_card(tmp_path, found, "fill-mask", "me/x")
    text = (tmp_path / "README.md").read_text()
    assert "pre-training continued from `org/base`" in text
    assert "| train | 300 | 1 | 5,000 | 20 |  | `aa` |" in text
    assert 'fill = pipeline("fill-mask", "me/x")' in text


def test_the_metadata_is_the_hubs(tmp_path):
    data = card(tmp_path).data.to_dict()
    assert data["base_model"] == "org/base"
    assert data["pipeline_tag"] == "text-classification"
    scores = data["model-index"][0]["results"][0]["metrics"]
    assert [(score["type"], score["value"]) for score in scores] == [("accuracy", 0.7213)]


@pytest.mark.parametrize("base", ["/models/mine", "runs/pretrain mlm", "a/b/c"])
def test_a_path_is_no_base_model(tmp_path, base):
    assert "base_model" not in card(tmp_path, base_model=base).data.to_dict()


def test_a_folder_that_exists_here_is_no_base_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mlm").mkdir(parents=True)
    assert "base_model" not in card(tmp_path, base_model="runs/mlm").data.to_dict()


def test_a_run_without_test_labels_says_so(tmp_path):
    write_model_card(tmp_path, results() | {"metrics": {}}, "text-classification", "me/x")
    text = ModelCard.load(tmp_path / "README.md").text
    assert "The test split has no labels; nothing was scored." in text


def test_plots_are_shown(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "learning_curves.png").write_bytes(b"png")
    assert "![learning curves](plots/learning_curves.png)" in card(tmp_path).text


def test_an_adapter_names_its_base_as_others_know_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/site-packages/x", "r": 4, "peft_type": "LORA"})
    )
    hub.publish(fake_trainer(tmp_path), results(), "text-classification")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": "org/base", "r": 4, "peft_type": "LORA"}
    assert "PeftModel.from_pretrained(base" in (tmp_path / "README.md").read_text()


def fake_trainer(folder: Path):
    return SimpleNamespace(
        args=SimpleNamespace(output_dir=str(folder)), push_at_end=False, is_world_process_zero=lambda: True
    )
