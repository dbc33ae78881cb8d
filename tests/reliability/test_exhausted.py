"""A disk that is full, memory that runs out, weights that are not finite: one line, an exit code, nothing lost."""

import os
import shutil
import subprocess
from functools import partial

import pytest
from reliability.killing import poison_at_step

from ptft_recipes.checkpoints import checkpoints_in, find_damage


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, which needs the right to mount."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip("no right to mount a file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def one_line(log: str) -> str:
    assert "Traceback" not in log
    return log.splitlines()[-2]


def test_a_disk_without_room_for_a_checkpoint_is_refused_before_training(subjects, small_disk):
    subject = subjects("full")
    (small_disk / "filler").write_bytes(bytes(850_000))
    assert subject.run("small", "--output_dir", str(small_disk / "run")) == 2
    line = one_line(subject.log("small"))
    assert " MiB free, and the run needs 0.3 MiB (the weights and one checkpoint)" in line
    assert "step 1/" not in subject.log("small")


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_intact(subjects, small_disk):
    subject = subjects("full")
    room = small_disk / "run"
    flags = ["--output_dir", str(room), "--save_total_limit", "9"]
    assert subject.run("full disk", *flags) == 4, subject.log("full disk")
    line = one_line(subject.log("full disk"))
    saved = checkpoints_in(room)
    assert 1 <= len(saved) <= 3
    assert find_damage(saved[-1]) == ""
    assert f"{saved[-1]} is intact; make room, and the same command goes on" in line
    assert f"error: writing to {room}" in line
    (small_disk.parent / "larger").mkdir()
    shutil.move(str(room), small_disk.parent / "larger" / "run")
    subject.output_dir("after").symlink_to(small_disk.parent / "larger" / "run")
    assert subject.run("after", "--save_total_limit", "9") == 0, subject.log("after")
    assert "going on from" in subject.log("after")
    assert subject.end("after") == subject.whole


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_out_of_memory_names_the_batch_size_and_what_helps(subjects, where):
    subject = subjects("full")
    assert subject.run(where, prepare=partial(_run_out_of_memory, where)) == 4, subject.log(where)
    line = one_line(subject.log(where))
    if where == "training":
        assert "out of memory in training, with --per_device_train_batch_size 8" in line
        assert "--per_device_train_batch_size 4 --gradient_accumulation_steps 2; --gradient_checkpointing true" in line
    else:
        assert "out of memory in evaluation, with --per_device_eval_batch_size 64" in line
        assert "--per_device_eval_batch_size 32; --gradient_checkpointing true; a lower --max_length" in line


def _run_out_of_memory(where):
    """Ask for more memory than the machine has, where the real thing happens: in a forward pass."""
    import torch

    from ptft_recipes.training import RecipeTrainer

    compute = RecipeTrainer.compute_loss

    def compute_in_vain(self, model, *args, **kwargs):
        if self.is_in_train and model.training == (where == "training") and self.state.global_step >= 5:
            torch.empty(2**50)
        return compute(self, model, *args, **kwargs)

    RecipeTrainer.compute_loss = compute_in_vain


def test_a_weight_that_is_not_finite_is_not_saved(subjects):
    subject = subjects("full")
    assert subject.run("poisoned", prepare=partial(poison_at_step, 8)) == 3, subject.log("poisoned")
    line = one_line(subject.log("poisoned"))
    assert "diverged: bert.embeddings.word_embeddings.weight is not finite after step 10, and was not saved" in line
    assert f"last checkpoint: {subject.output_dir('poisoned')}/checkpoint-5" in line
    assert [path.name for path in checkpoints_in(subject.output_dir("poisoned"))] == ["checkpoint-5"]
    assert subject.run("poisoned") == 0
    assert subject.end("poisoned") == subject.whole


def test_a_pretrained_weight_that_is_not_finite_is_refused(subjects, checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][1, 3] = float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    subject = subjects("full")
    assert subject.run("broken", "--model_name_or_path", str(tmp_path / "broken")) == 2
    assert "embeddings.word_embeddings.weight holds values that are not finite" in one_line(subject.log("broken"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
def test_a_read_only_folder_is_refused_before_anything(subjects, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    subject = subjects("full")
    assert subject.run("read-only", "--output_dir", str(small_disk / "run")) == 2
    assert "is no folder that can be written to" in one_line(subject.log("read-only"))
