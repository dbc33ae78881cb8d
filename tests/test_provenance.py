"""What a reader needs to repeat a run is recorded as it is."""

import subprocess
import time

from conftest import ROOT
from transformers import TrainingArguments

from ptft_recipes.provenance import (
    PACKAGES,
    StepTimeCallback,
    _git_state,
    describe_environment,
    peak_memory,
    saved_mib,
    seconds_since_start,
)


def git(folder, *arguments):
    subprocess.run(
        ["git", "-C", folder, "-c", "user.name=x", "-c", "user.email=x@y", *arguments], check=True, capture_output=True
    )


def test_commit_and_changes(tmp_path):
    assert _git_state(tmp_path) == (None, None)
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "first")
    commit, dirty = _git_state(tmp_path)
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "a").write_text("2")
    assert _git_state(tmp_path) == (commit, True)


def test_the_environment_is_described(tmp_path):
    arguments = TrainingArguments(str(tmp_path), seed=5, bf16=True, use_cpu=True)
    found = describe_environment(str(ROOT / "recipes" / "finetune_cls.py"), arguments)
    assert found["recipe"] == "finetune_cls"
    assert found["versions"].keys() == {"ptft-recipes", "python", *PACKAGES}
    assert (found["seed"], found["device"], found["processes"], found["precision"]) == (5, "cpu", 1, "bf16")
    assert "cores" in found["hardware"]


def test_time_and_memory_are_of_this_process():
    assert seconds_since_start() >= 0
    assert 0.05 < peak_memory("cpu")["resident"] < 100


def test_steps_are_timed_without_what_lies_between_them():
    timer = StepTimeCallback()
    assert timer.median() is None
    for seconds in (0.01, 0.02, 0.03):
        timer.on_step_begin(None, None, None)
        time.sleep(seconds)
        timer.on_step_end(None, None, None)
        time.sleep(0.05)
    assert 0.02 <= timer.median() < 0.05


def test_the_saved_size_is_that_of_the_weights(tmp_path):
    for name, size in {"model.safetensors": 2**20, "adapter_model.safetensors": 2**19, "tokenizer.json": 99}.items():
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(bytes(2**20))
    assert saved_mib(tmp_path) == 1.5
