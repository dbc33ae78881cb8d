"""SIGTERM and Ctrl-C: the step is finished, a checkpoint saved, a code returned, and nothing left behind."""

import os
import re
import signal
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from reliability.killing import signal_at_step

STOPPED = 75
EPOCH_ENDS = 12  # "full": the step at which the first epoch ends


@pytest.mark.parametrize(
    ("kind", "number", "step"),
    [
        ("full", signal.SIGTERM, 7),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("full", signal.SIGINT, 1),
                ("full", signal.SIGTERM, EPOCH_ENDS),
                ("full", signal.SIGTERM, 24),
                ("epochs", signal.SIGTERM, EPOCH_ENDS),
                ("max_steps", signal.SIGTERM, 20),
                ("epochs", signal.SIGINT, 20),
                ("gradient accumulation", signal.SIGTERM, 9),
                ("loader workers", signal.SIGINT, 9),
                ("lora", signal.SIGTERM, 3),
                ("mlm", signal.SIGTERM, 3),
                ("mlm, streamed", signal.SIGTERM, 14),
                ("replaced tokens", signal.SIGTERM, 4),
            ]
        ),
    ],
)
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(subjects, kind, number, step):
    subject = subjects(kind)
    name = f"{number.name} {step}"
    assert subject.run(name, prepare=partial(signal_at_step, step, number)) == STOPPED, subject.log(name)
    assert f"checkpoint-{step}, the same command goes on from there" in subject.log(name)
    assert "Traceback" not in subject.log(name)
    assert subject.run(name) == 0
    assert f"checkpoint-{step}\n" in subject.log(name)
    assert subject.end(name) == subject.whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_loader_workers_outlive_a_signal_to_every_process(subjects, number):
    subject = subjects("loader workers")
    name = f"everyone {number.name}"
    told = partial(signal_at_step, 9, number, children=True)
    assert subject.run(name, prepare=told) == STOPPED, subject.log(name)
    assert "checkpoint-9, the same command goes on from there" in subject.log(name)
    assert subject.run(name) == 0
    assert subject.end(name) == subject.whole


def test_a_signal_after_the_last_step_stops_before_the_scores(subjects):
    subject = subjects("full")
    assert subject.run("late", prepare=_signal_at_the_end) == STOPPED, subject.log("late")
    assert "SIGTERM after the last step; the same command goes on with the scores" in subject.log("late")
    assert subject.run("late") == 0
    assert subject.end("late") == subject.whole


def _signal_at_the_end():
    from ptft_recipes.sealed_trainer import SealedTrainer

    finalize = SealedTrainer._finalize_training

    def signal_and_finalize(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return finalize(self, *args)

    SealedTrainer._finalize_training = signal_and_finalize


def test_a_second_ctrl_c_leaves_at_once(subjects):
    subject = subjects("full")
    assert subject.run("twice", prepare=partial(signal_at_step, 7, signal.SIGINT, times=2)) == 130
    assert not (subject.output_dir("twice") / "checkpoint-7").exists()
    assert "Traceback" not in subject.log("twice")
    assert subject.run("twice") == 0
    assert subject.end("twice") == subject.whole


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 3.5])
def test_a_launcher_that_dies_while_the_recipe_is_importing_leaves_nothing_behind(subjects, seconds):
    subject = subjects("full")
    name = f"imports {seconds}"
    launcher = subject.launch(name, 1, "--num_train_epochs", "400")
    wait_until(lambda: psutil.Process(launcher.pid).children())
    family = psutil.Process(launcher.pid).children(recursive=True)
    time.sleep(seconds)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "no orphan"


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_other_within_a_minute(subjects):
    subject = subjects("full")
    launcher = subject.launch("dies", 2, "--num_train_epochs", "400", "--logging_steps", "1")
    wait_until(lambda: "step 3/" in subject.log("dies"))
    ranks = [child for child in psutil.Process(launcher.pid).children(recursive=True)
             if child.environ().get("RANK") == "1"]  # fmt: skip
    assert len(ranks) >= 1
    ranks[0].kill()
    assert launcher.wait(timeout=60) == 1
    assert "finetune_cls.py, rank 0: lost: another process of this run is gone" in subject.log("dies")
    assert re.search(r"rank +: 1 .*\n +exitcode +: -9", subject.log("dies")), "torchrun names who died"
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive


FAILS = """
import os, runpy, sys
from ptft_recipes.training import RecipeTrainer
train = RecipeTrainer.training_step
def fail(self, *args, **kwargs):
    if self.state.global_step == 3 and os.environ["RANK"] == "1":
        raise ValueError("the labels of this shard are broken")
    return train(self, *args, **kwargs)
RecipeTrainer.training_step = fail
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_an_error_of_one_rank_ends_both_within_a_minute_and_is_told(subjects, tmp_path):
    subject = subjects("full")
    script = tmp_path / "fails.py"
    script.write_text(FAILS)
    launcher = subject.launch("fails", 2, "--num_train_epochs", "400", "--logging_steps", "1", before=[str(script)])
    wait_until(lambda: "the labels of this shard are broken" in subject.log("fails"))
    assert launcher.wait(timeout=60) == 1
    log = subject.log("fails")
    assert "ValueError: the labels of this shard are broken" in log
    assert "finetune_cls.py, rank 0: lost: another process of this run is gone" in log
    assert re.search(r"rank +: 1 .*\n +exitcode +: 1", log), "torchrun names who failed"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("how", ["SIGTERM to the launcher", "SIGTERM to all", "Ctrl-C", "SIGKILL to the launcher"])
def test_under_accelerate_launch_nothing_is_left_behind(subjects, how, processes):
    subject = subjects("full")
    name = f"{how} {processes}"
    launcher = subject.launch(name, processes, "--num_train_epochs", "400", "--logging_steps", "1")
    wait_until(lambda: "step 3/" in subject.log(name))
    family = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
    assert len(family) >= 1 + processes
    if "launcher" in how:
        launcher.send_signal(signal.SIGTERM if "SIGTERM" in how else signal.SIGKILL)
    else:
        os.killpg(launcher.pid, signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM)
    code = launcher.wait(timeout=60)
    number = -signal.SIGKILL if "SIGKILL" in how else -signal.SIGINT if how == "Ctrl-C" else -signal.SIGTERM
    assert code == (1 if processes == 2 and "SIGKILL" not in how else number), "as README has it"
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "no orphan"
    step = re.findall(r"step (\d+)/", subject.log(name))[-1]
    assert f"checkpoint-{step}, the same command goes on from there" in subject.log(name)
    assert Path(subject.output_dir(name), f"checkpoint-{step}", "manifest.json").exists()
