"""Killed anywhere, the same command goes on, and ends in bit-identical weights."""

import os
import random
import signal
import time
from functools import partial

import pytest
from reliability.killing import die_in_save
from reliability.subjects import SUBJECTS

QUICK = ("full", "mlm")  # the others are slow


def some(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def finish_and_compare(subject, name):
    assert subject.run(name) == 0, subject.log(name)
    assert subject.end(name) == subject.whole


@pytest.mark.parametrize(
    "share", [0.4, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.12, 0.25, 0.55, 0.8, 1))]
)
@pytest.mark.parametrize("kind", some(SUBJECTS))
def test_killed_at_a_write(subjects, kind, share):
    subject = subjects(kind)
    assert subject.writes > 50
    name = f"write {share}"
    assert subject.run(name, die_at=int(share * subject.writes)) == -9
    finish_and_compare(subject, name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora", "epochs"])
def test_killed_at_every_write_of_a_save(subjects, kind):
    subject = subjects(kind)
    begin, end = subject.saves[1:3]  # the second checkpoint: its files, its seal, the rotation of the first
    assert end - begin >= 10
    print(f"{kind}: killed at {end - begin} writes")
    for write in range(begin, end):
        name = f"save {write}"
        assert subject.run(name, die_at=write) == -9
        finish_and_compare(subject, name)


@pytest.mark.parametrize("moment", range(6))
@pytest.mark.parametrize("kind", [pytest.param(name, marks=pytest.mark.slow) for name in SUBJECTS])
def test_killed_at_a_random_moment_of_a_save(subjects, kind, moment):
    subject, generator = subjects(kind), random.Random(f"{kind} {moment}")
    name = f"moment {moment}"
    number, seconds = generator.randint(1, min(3, len(subject.saves))), generator.uniform(0, 0.06)
    assert subject.run(name, prepare=partial(die_in_save, number, seconds)) == -9
    finish_and_compare(subject, name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUICK)
def test_killed_again_and_again(subjects, kind):
    subject, generator = subjects(kind), random.Random(kind)
    killed = 0
    for _ in range(12):
        code = subject.run("again", die_at=generator.randint(5, subject.writes // 2))
        assert code in (-9, 0), subject.log("again")
        if code == 0:
            break
        killed += 1
    else:
        assert subject.run("again") == 0
    assert killed >= 3
    assert subject.end("again") == subject.whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora", "mlm", "replaced tokens", "augmentation"])
def test_two_processes_killed_at_random_moments(subjects, kind):
    subject, generator = subjects(kind), random.Random(f"two {kind}")
    assert subject.launch("two", 2).wait(timeout=300) == 0, subject.log("two")
    whole = subject.end("two")
    assert whole["steps"] < subject.whole["steps"]
    killed, card = 0, subject.output_dir("two, killed") / "README.md"  # the last file of a run
    for _ in range(8):
        launcher = subject.launch("two, killed", 2)
        end = time.monotonic() + 120
        while "step " not in subject.log("two, killed") and launcher.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(generator.uniform(0, 2))
        if card.exists():
            break
        os.killpg(launcher.pid, signal.SIGKILL)
        killed += launcher.wait() == -9
        (subject.folder / "two, killed.log").write_text("")
        if card.exists():
            break
    else:
        launcher = subject.launch("two, killed", 2)
    launcher.wait(timeout=300)
    assert card.exists(), subject.log("two, killed")
    assert killed >= 1
    assert subject.end("two, killed") == whole
