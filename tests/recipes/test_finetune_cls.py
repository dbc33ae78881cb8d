"""The recipe end to end, in process, on tiny models: what a run leaves behind, for each kind of task and tuning."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TOPICS, cut_off, run_card, topic_rows, write_csv
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from ptft_recipes.errors import InputError
from ptft_recipes.training import RecipeTrainer


def read_predictions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]


def predict(model, tokenizer, texts) -> np.ndarray:
    model.eval()
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    inputs.pop("token_type_ids", None) if "token_type_ids" not in model.forward.__code__.co_varnames else None
    with torch.no_grad():
        return model(**inputs).logits.softmax(-1).numpy()


def test_a_run_learns_and_leaves_everything_that_the_readme_promises(run_cls, tmp_path, topics):
    results = run_cls(num_train_epochs=6)
    folder = tmp_path / "run"
    assert results["metrics"]["accuracy"]["value"] > 0.95
    low, high = results["metrics"]["macro_f1"]["ci95"]
    assert low <= results["metrics"]["macro_f1"]["value"] <= high
    assert json.loads((folder / "results.json").read_text()) == results
    for name in ("README.md", "config.yaml", "plots/confusion_matrix.png", "plots/learning_curves.png"):
        assert (folder / name).stat().st_size > 0, name
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "markets", "1": "science", "2": "sports"}
    assert config["problem_type"] == "single_label_classification"
    lines = read_predictions(folder)
    assert len(lines) == 64
    assert lines[0]["id"] == "test.csv:2"
    assert set(lines[0]["probabilities"]) == set(TOPICS)
    run = results["run"]
    assert run["data"]["rows"] == {"train": 256, "validation": 64, "test": 64}
    assert run["validation"]["macro_f1"] > 0.95
    assert run["seconds"]["train"] > 0
    assert run["tokens_per_second"] > 0
    assert run["trainable_parameters"] == run["total_parameters"] > 10_000
    assert run["versions"]["torch"] == torch.__version__


def test_the_saved_model_predicts_what_the_run_reported(run_cls, tmp_path, topics):
    run_cls(num_train_epochs=1)
    folder = tmp_path / "run"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    lines = read_predictions(folder)
    texts = [row["text"] for row in topic_rows(64, seed=2)]
    probabilities = predict(model, AutoTokenizer.from_pretrained(folder), texts)
    reported = np.array([list(line["probabilities"].values()) for line in lines])
    np.testing.assert_allclose(probabilities, reported, atol=2e-6)


@pytest.mark.parametrize("tuning", ["linear_probe", "bitfit", "lora"])
def test_frozen_weights_do_not_move_and_a_reload_predicts_the_same(run_cls, tmp_path, tuning, checkpoint):
    run_cls(tuning=tuning, num_train_epochs=1)
    folder = tmp_path / "run"
    base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
    before = {name: weight.clone() for name, weight in base.named_parameters() if "embeddings.word" in name}
    model = PeftModel.from_pretrained(base, folder) if tuning == "lora" else base.from_pretrained(folder)
    for name, weight in before.items():
        moved = dict(model.named_parameters())[f"base_model.model.{name}" if tuning == "lora" else name]
        assert torch.equal(moved, weight)
    probabilities = predict(model, AutoTokenizer.from_pretrained(folder), [r["text"] for r in topic_rows(64, seed=2)])
    reported = np.array([list(line["probabilities"].values()) for line in read_predictions(folder)])
    np.testing.assert_allclose(probabilities, reported, atol=2e-6)
    run = json.loads((folder / "results.json").read_text())["run"]
    assert run["trainable_parameters"] < run["total_parameters"] / 2


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_code_on_the_card_runs_and_answers_with_label_names(run_cls, tmp_path, tuning, checkpoint, capsys):
    run_cls(tuning=tuning, max_steps=2)
    capsys.readouterr()
    run_card(tmp_path / "run", checkpoint)
    printed = capsys.readouterr().out
    assert any(f"'label': '{topic}'" in printed for topic in TOPICS)


def test_training_goes_on_from_a_saved_adapter(run_cls, tmp_path):
    run_cls(tuning="lora", num_train_epochs=3)
    results = run_cls(tuning=str(tmp_path / "run"), max_steps=1, learning_rate=1e-6, output_dir=tmp_path / "more")
    first = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["accuracy"]["value"] == pytest.approx(first["metrics"]["accuracy"]["value"], abs=0.05)
    adapter = json.loads((tmp_path / "more" / "adapter_config.json").read_text())
    assert adapter["peft_type"] == "LORA"


def test_from_scratch_ignores_the_pretrained_weights(run_cls, tmp_path, checkpoint):
    run_cls("--from_scratch", max_steps=1, learning_rate=0)
    scratch = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").base_model.state_dict()
    body = AutoModelForSequenceClassification.from_pretrained(checkpoint).base_model.state_dict()
    name = "embeddings.word_embeddings.weight"
    assert not torch.allclose(scratch[name], body[name])


def test_multi_label(run_cls, tmp_path):
    for seed, split in enumerate(("train", "validation", "test")):
        rows = topic_rows(192 if split == "train" else 48, seed)
        others = topic_rows(len(rows), seed + 10)
        both = [
            {"text": f"{a['text']} {b['text']}", "label": "|".join(sorted({a["label"], b["label"]}))}
            for a, b in zip(rows, others, strict=True)
        ]
        write_csv(tmp_path / f"{split}.csv", both)
    results = run_cls(
        data=False, dataset_name=tmp_path, label_separator="|", problem_type="multi_label_classification",
        num_train_epochs=24, save_strategy="best", learning_rate=3e-3, seed=1,
    )  # fmt: skip
    assert results["metrics"]["micro_f1"]["value"] > 0.85, "0.79 is what predicting every label gives"
    assert results["run"]["data"]["label_names"] == ["markets", "science", "sports"]
    line = read_predictions(tmp_path / "run")[0]
    assert set(line["gold"]) <= set(TOPICS)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_regression_chooses_by_pearson_and_reports_numbers(run_cls, tmp_path):
    for seed, split in enumerate(("train", "validation", "test")):
        rows = [
            {"text": row["text"], "label": sum(word in TOPICS["sports"] for word in row["text"].split()) + 0.5}
            for row in topic_rows(192 if split == "train" else 48, seed)
        ]
        write_csv(tmp_path / f"{split}.csv", rows)
    results = run_cls(data=False, dataset_name=tmp_path, num_train_epochs=4)
    assert results["run"]["data"]["problem_type"] == "regression"
    assert list(results["run"]["validation"]) == ["pearson"]
    assert results["metrics"]["pearson"]["value"] > 0.8
    assert isinstance(read_predictions(tmp_path / "run")[0]["predicted"], float)


def test_pairs_are_read_as_pairs(run_cls, tmp_path):
    rows = [
        {"first": a["text"], "second": b["text"], "same": str(a["label"] == b["label"])}
        for a, b in zip(topic_rows(300, 0), topic_rows(300, 1), strict=True)
    ]
    path = write_csv(tmp_path / "pairs.csv", rows)
    results = run_cls(
        data=False, dataset_name=path, text_column="first", text_pair_column="second", label_column="same", max_steps=2
    )
    assert results["run"]["data"]["rows"] == {"train": 243, "validation": 27, "test": 30}
    assert results["run"]["data"]["label_names"] == ["False", "True"]
    assert results["run"]["data"]["tokens"]["train"]["longest"] > 16


def test_a_test_split_without_labels_is_predicted_and_not_scored(run_cls, tmp_path, topics):
    path = write_csv(tmp_path / "new.csv", [{"text": row["text"]} for row in topic_rows(9, 5)])
    results = run_cls(max_steps=2, test_file=path)
    assert results["metrics"] == {}
    lines = read_predictions(tmp_path / "run")
    assert len(lines) == 9
    assert all(line["gold"] is None and line["predicted"] in TOPICS for line in lines)
    assert not (tmp_path / "run" / "plots" / "confusion_matrix.png").exists()


def test_class_weights_and_label_smoothing_change_the_loss(run_cls, tmp_path):
    losses = []
    for i, flags in enumerate([[], ["--class_weights", "1"], ["--label_smoothing_factor", "0.2"]]):
        run_cls(*flags, max_steps=3, logging_steps=1, output_dir=tmp_path / str(i))
        state = json.loads(next((tmp_path / str(i)).glob("checkpoint-*/trainer_state.json")).read_text())
        losses.append([entry["loss"] for entry in state["log_history"] if "loss" in entry])
    assert losses[0] != losses[1] != losses[2] != losses[0]


def test_early_stopping_ends_a_run_that_no_longer_improves(run_cls):
    results = run_cls(num_train_epochs=20, early_stopping_patience=1)
    assert results["run"]["epochs"] < 15


def test_the_written_config_repeats_the_run(run_cls, finetune_cls, tmp_path):
    first = run_cls(max_steps=5, seed=7)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["seed"] == 7
    again = finetune_cls.main(
        ["--config", str(tmp_path / "run" / "config.yaml"), "--output_dir", str(tmp_path / "again")]
    )
    assert again["metrics"] == first["metrics"]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "again" / "model.safetensors"
    ).read_bytes()


def test_another_seed_gives_other_weights(run_cls, tmp_path):
    run_cls(max_steps=2, seed=1, output_dir=tmp_path / "1")
    run_cls(max_steps=2, seed=2, output_dir=tmp_path / "2")
    assert (tmp_path / "1" / "model.safetensors").read_bytes() != (tmp_path / "2" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("metric", ["mse", "mae"])
def test_the_best_epoch_by_an_error_is_the_lowest(run_cls, tmp_path, metric):
    rows = [{"text": row["text"], "label": len(row["text"]) / 10 + 0.5} for row in topic_rows(120, 0)]
    results = run_cls(
        data=False, dataset_name=write_csv(tmp_path / "x.csv", rows), num_train_epochs=3, metric_for_best_model=metric
    )
    state = json.loads(max((tmp_path / "run").glob("checkpoint-*/trainer_state.json")).read_text())
    values = [entry[f"eval_{metric}"] for entry in state["log_history"] if f"eval_{metric}" in entry]
    assert results["run"]["validation"][metric] == pytest.approx(min(values))


def test_somebody_elses_files_are_not_overwritten(run_cls, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"has README.md, which the run would overwrite"):
        run_cls(max_steps=1)
    assert (tmp_path / "run" / "README.md").read_text() == "mine"


def test_the_layers_of_a_run_move_less_from_the_head_down(run_cls, tmp_path, checkpoint):
    run_cls(max_steps=3, layer_wise_decay=0.1, warmup_steps=0)
    before = AutoModelForSequenceClassification.from_pretrained(checkpoint).base_model.state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").base_model.state_dict()
    moved = [
        (after[name] - before[name]).abs().mean().item()
        for name in (f"encoder.layer.{i}.attention.self.value.weight" for i in (0, 1))
    ]
    assert 0 < moved[0] < moved[1] / 5


def test_a_finished_run_is_not_overwritten(run_cls):
    run_cls(max_steps=1)
    with pytest.raises(InputError, match="holds a finished run; choose another --output_dir"):
        run_cls(max_steps=1)


def test_an_unknown_metric_is_refused_before_the_first_step(run_cls, tmp_path):
    with pytest.raises(InputError, match=r"no such metric; did you mean 'macro_f1'\? .*accuracy"):
        run_cls(metric_for_best_model="macro_f")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_nan_stops_the_run_with_its_step_and_leaves_no_result(run_cls, tmp_path, finetune_cls, monkeypatch):
    original = finetune_cls.classification_loss
    calls = []

    def poisoned(outputs, labels, num_items_in_batch=None, **kwargs):
        calls.append(outputs.logits.requires_grad)
        loss = original(outputs, labels, num_items_in_batch, **kwargs)
        return loss * float("nan") if sum(calls) == 3 else loss

    monkeypatch.setattr(finetune_cls, "classification_loss", poisoned)
    with pytest.raises(FloatingPointError, match=r"loss nan.* at step 3; stopped before the weights were changed"):
        run_cls()
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--report_to", "wandb"], "--report_to: .*wandb"),
        (["--report_to", "nonsense"], "--report_to: nonsense is not supported"),
        (["--hub_token", "hf_secret"], "use `hf auth login`"),
        (["--resume_from_checkpoint", "last"], "has no intact checkpoint"),
        (["--label_column", "topic"], "no column 'topic'; its columns are 'text', 'label'"),
        (["--max_length", "100"], "this model reads at most 64 tokens"),
        (["--tuning", "loro"], "did you mean 'lora'"),
        (["--tuning", "linear_probe", "--fgm", "1"], "--fgm: no weight of the body moves"),
        (["--tuning", "lora", "--from_scratch"], "only --tuning full can train them"),
        (["--model_name_or_path", "no/such-model"], "cannot load AutoTokenizer from no/such-model"),
        (["--optim_args", "x"], "--optim adamw_torch.* --optim_args x: not enough values"),
        (["--lr_scheduler_kwargs", '{"x": 1}'], "--lr_scheduler_kwargs {'x': 1}: .*unexpected keyword argument 'x'"),
        (["--class_weights", "1", "--problem_type", "regression"], "is no finite number"),
    ],
)
def test_mistakes_end_in_one_clear_line(run_cls, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        run_cls(*flags)
    assert "hf_secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


TUNINGS = {
    "full": [],
    "lora": ["--tuning", "lora", "--tuning_kwargs", "lora_dropout=0.1"],
    "bottleneck": ["--tuning", "bottleneck", "--tuning_kwargs", "reduction_factor=4", "dropout=0.1"],
}


@pytest.mark.parametrize(
    ("steps", "tuning"), [(32, "full"), (40, "full"), (40, "lora"), (40, "bottleneck")],
    ids=["at the end of an epoch", "in the middle of an epoch", "under LoRA", "under bottleneck"],
)  # fmt: skip
def test_a_resumed_run_ends_in_the_same_weights(run_cls, tmp_path, steps, tuning):
    common = {"lr_scheduler_type": "constant", "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 8,
              "eval_steps": 8, "num_train_epochs": 2, "save_total_limit": 9}  # fmt: skip
    flags = TUNINGS[tuning]
    whole = run_cls(*flags, **common, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", steps, tmp_path / "run")
    resumed = run_cls(*flags, **common)
    assert resumed["run"]["resumed"]["from"] == f"checkpoint-{steps}"
    assert resumed["run"]["steps"] == whole["run"]["steps"] == 64
    last = f"checkpoint-64/{'model' if tuning == 'full' else 'adapter_model'}.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    assert resumed["metrics"] == whole["metrics"]


def test_a_merged_adapter_is_a_plain_checkpoint(run_cls, tmp_path, topics):
    merged = run_cls("--tuning", "lora", "--merge_adapter", "true", "--tuning_kwargs", "r=4")
    apart = run_cls("--tuning", "lora", "--tuning_kwargs", "r=4", output_dir=tmp_path / "apart")
    assert not (tmp_path / "run" / "adapter_config.json").exists()
    assert merged["run"]["trainable_parameters"] == apart["run"]["trainable_parameters"] < 10_000
    assert merged["run"]["saved_mib"] > apart["run"]["saved_mib"] > 0
    for name, score in apart["metrics"].items():
        assert merged["metrics"][name]["value"] == pytest.approx(score["value"], abs=0.02), name
    classify = pipeline("text-classification", str(tmp_path / "run"))
    with open(topics["test"], encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    predicted = [json.loads(line)["predicted"] for line in (tmp_path / "run/predictions/test.jsonl").open()]
    assert [answer["label"] for answer in classify(texts)] == predicted


def test_merging_what_cannot_be_merged_is_refused_before_training(run_cls):
    with pytest.raises(InputError, match="bottleneck adapter cannot be merged"):
        run_cls("--tuning", "bottleneck", "--tuning_kwargs", "reduction_factor=4", "--merge_adapter", "true")
    with pytest.raises(InputError, match="no adapter to merge"):
        run_cls("--merge_adapter", "true")


def test_a_copy_runs_from_an_empty_folder_with_exit_codes(tmp_path, checkpoint, topics):
    shutil.copy(ROOT / "recipes" / "finetune_cls.py", tmp_path / "my_cls.py")

    def launch(*flags):
        return subprocess.run(
            [sys.executable, "my_cls.py", "--model_name_or_path", checkpoint, "--train_file", topics["train"], *flags],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    done = launch("--max_steps", "2", "--max_length", "32", "--output_dir", "out")
    assert done.returncode == 0, done.stderr
    assert "macro_f1" in done.stdout
    assert "cut from train by seed 0" in done.stdout
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_cls.py", "out"]
    mistake = launch("--label_column", "topic")
    assert mistake.returncode == 2
    assert mistake.stderr.strip().startswith("my_cls.py: error: ")
    assert mistake.stderr.count("\n") == 1


def test_the_test_split_can_stay_closed(run_cls, tmp_path, monkeypatch):
    monkeypatch.setattr(RecipeTrainer, "predict", None)  # whoever calls it fails
    results = run_cls("--do_predict", "false", num_train_epochs=1)
    assert results["metrics"] == {}
    assert results["run"]["validation"]["macro_f1"] > 0
    assert not (tmp_path / "run" / "predictions").exists()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["metrics"] == {}
    assert "The test split was not predicted." in (tmp_path / "run" / "README.md").read_text()
