"""A checkpoint that was damaged in any of its files is never loaded, and what was skipped is named."""

import shutil
from functools import partial

import pytest
from reliability.killing import die_in_save

QUICK = {("optimizer.pt", "flip"), ("model.safetensors", "truncate"), ("manifest.json", "delete")}
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json",
         "tokenizer.json", "manifest.json")  # fmt: skip
DAMAGES = {
    "delete": lambda data: None,
    "truncate": lambda data: data[: len(data) // 2],
    "flip": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
}
CASES = [
    pytest.param(name, damage, marks=() if (name, damage) in QUICK else pytest.mark.slow)
    for name in FILES
    for damage in DAMAGES
]


@pytest.fixture(scope="module")
def stopped(subjects):
    """A run that was killed after its checkpoints of steps 15 and 20 had been sealed."""
    subject = subjects("full")
    assert subject.run("stopped", "--save_total_limit", "9", prepare=partial(die_in_save, 5, 0)) == -9
    found = {path.name for path in subject.output_dir("stopped").glob("checkpoint-*")}
    assert {"checkpoint-15", "checkpoint-20"} <= found
    return subject


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_the_newest_intact_checkpoint_is_taken_instead(stopped, name, damage):
    case = f"{name} {damage}"
    shutil.copytree(stopped.output_dir("stopped"), stopped.output_dir(case))
    path = stopped.output_dir(case) / "checkpoint-20" / name
    data = DAMAGES[damage](path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    assert stopped.run(case) == 0, stopped.log(case)
    log = stopped.log(case)
    assert f"checkpoint-20 is not used: {'it has no ' * (damage == 'delete' and name == 'manifest.json')}{name}" in log
    assert "going on from" in log
    assert "checkpoint-15\n" in log
    assert stopped.end(case) == stopped.whole


def test_a_checkpoint_that_is_asked_for_and_damaged_is_refused_in_one_line(stopped):
    shutil.copytree(stopped.output_dir("stopped"), stopped.output_dir("asked"))
    path = stopped.output_dir("asked") / "checkpoint-20"
    (path / "scheduler.pt").unlink()
    assert stopped.run("asked", "--resume_from_checkpoint", str(path)) == 2
    last = stopped.log("asked").splitlines()[-2]
    assert "checkpoint-20: scheduler.pt is missing" in last
    assert "Traceback" not in stopped.log("asked")


def test_a_best_checkpoint_that_was_damaged_after_the_start_is_not_loaded_at_the_end(subjects):
    subject = subjects("epochs")
    assert subject.run("best", prepare=_damage_the_best) == 2, subject.log("best")
    line = subject.log("best").splitlines()[-2]
    assert "the best checkpoint, cannot be loaded: model.safetensors has changed" in line
    assert not (subject.output_dir("best") / "model.safetensors").exists()


def _damage_the_best():
    from ptft_recipes.sealed_trainer import SealedTrainer

    finalize = SealedTrainer._finalize_training

    def damage_and_finalize(self, *args):
        self._wait_for_seal()
        path = f"{self.state.best_model_checkpoint}/model.safetensors"
        with open(path, "r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x55")
        return finalize(self, *args)

    SealedTrainer._finalize_training = damage_and_finalize
