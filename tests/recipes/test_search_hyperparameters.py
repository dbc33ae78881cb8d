"""Hyper-parameters are searched by validation scores; test is scored once, for the winner."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import optuna
import pytest
import yaml
from conftest import ROOT, load_recipe
from optuna.trial import TrialState

from ptft_recipes.training import RecipeTrainer

RATES = {"learning_rate": {"low": 1e-3, "high": 3e-2, "log": True}}


@pytest.fixture
def write(checkpoint, topics, tmp_path):
    """Write a search over the tiny model; keys given replace those of the file."""

    def write(arguments=(), files=topics, **keys):
        common = {"model_name_or_path": checkpoint, "max_length": 32, "num_train_epochs": 2, "bf16": False}
        common |= {"use_cpu": True, "per_device_train_batch_size": 16}
        common |= {f"{split}_file": path for split, path in files.items()}
        keys = {"recipe": "finetune_cls", "space": RATES, "trials": 3, "arguments": common | dict(arguments)} | keys
        keys = {name: value for name, value in keys.items() if value is not None}
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump(keys, sort_keys=False))
        return ["--search", str(path), "--output_dir", str(tmp_path / "search")]

    return write


@pytest.fixture
def predicted(monkeypatch):
    """The rows of every data set that a trainer predicts, by the folder that its run writes to."""
    seen = []
    predict = RecipeTrainer.predict

    def spy(self, dataset, *args, **kwargs):
        seen.append((os.path.basename(os.path.dirname(self.args.output_dir)), len(dataset)))
        return predict(self, dataset, *args, **kwargs)

    monkeypatch.setattr(RecipeTrainer, "predict", spy)
    return seen


def study_of(folder):
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")


def test_the_winner_is_chosen_on_validation_and_only_it_meets_the_test_split(
    write, predicted, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("ptft_recipes.hyperparameter_search"), "handlers", [caplog.handler])
    space = RATES | {"tuning_kwargs": {"choices": [["r=2"], ["r=4", "lora_alpha=8"]]}}
    results = load_recipe("search_hyperparameters").main(write({"tuning": "lora"}, space=space, seeds=[42, 43]))
    study, folder = study_of(tmp_path / "search"), tmp_path / "search"
    winner = f"winner-{study.best_trial.number}"
    assert predicted == [(winner, 64), (winner, 64)], "by no trial; once by each run of the winner"
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    for trial in study.trials:
        alone = json.loads((folder / "trials" / str(trial.number) / "results.json").read_text())
        assert alone["metrics"] == {}, "no score of test"
        assert alone["run"]["validation"]["macro_f1"] == trial.value == max(trial.intermediate_values.values())
        assert [*trial.intermediate_values] == [100, 200]
        assert not list((folder / "trials" / str(trial.number)).glob("*.safetensors"))
    assert list(results) == [42, 43]
    assert results[42]["run"]["validation"]["macro_f1"] == study.best_value, "the winner's trial, once more"
    assert results[42]["metrics"]["macro_f1"]["n"] == 64
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["learning_rate"] == study.best_params["learning_rate"]
    assert best["tuning_kwargs"] == study.best_params["tuning_kwargs"].split()
    assert (folder / "plots" / "history.png").exists()
    lines = {line for line in caplog.messages if line.startswith("trial ")}
    assert len(lines) == 3
    assert "best.yaml: the arguments of trial" in caplog.text

    load_recipe("search_hyperparameters").main(write({"tuning": "lora"}, space=space, seeds=[42, 43]))
    assert len(predicted) == 2, "repeated, there is nothing to do"


def test_tags_are_searched_too(write, tagged, predicted, tmp_path):
    space = {"stride": {"choices": [2, 4]}}
    arguments = {"max_length": 16, "num_train_epochs": 1}
    load_recipe("search_hyperparameters").main(
        [*write(arguments, tagged, recipe="finetune_token_cls", sampler="grid", space=space, trials=None)]
    )
    assert [params["stride"] for params in (trial.params for trial in study_of(tmp_path / "search").trials)] == [
        "2",
        "4",
    ]
    assert len(predicted) == 1


@pytest.mark.slow
def test_killed_in_a_trial_the_same_command_ends_as_if_nothing_had_happened(write, tmp_path):
    command = [sys.executable, str(ROOT / "recipes" / "search_hyperparameters.py"), *write({"num_train_epochs": 6})]
    whole = [*command[:-1], str(tmp_path / "whole")]
    subprocess.run(whole, check=True, capture_output=True, timeout=300)
    for number, sign in ((0, signal.SIGKILL), (1, signal.SIGTERM), (2, signal.SIGKILL)):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not list((tmp_path / "search" / "trials" / str(number)).glob("checkpoint-*/manifest.json")):
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(sign)
        assert process.returncode == (75 if sign == signal.SIGTERM else -sign)
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    trials = [study_of(tmp_path / folder).trials for folder in ("whole", "search")]
    for one, other in zip(*trials, strict=True):
        assert (one.params, one.intermediate_values, one.value) == (
            other.params,
            other.intermediate_values,
            other.value,
        )
    for name in ("predictions/test.jsonl", "model.safetensors"):
        winner = f"winner-{study_of(tmp_path / 'whole').best_trial.number}/seed-42/{name}"
        assert (tmp_path / "whole" / winner).read_bytes() == (tmp_path / "search" / winner).read_bytes()
