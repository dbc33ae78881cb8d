"""One batch of 8 = 8 accumulated batches of 1 = two processes with 4: loss, gradient and validation loss.

The stock Trainer multiplies the loss of these models by the accumulation steps and by the number of processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES
from numerics.optimizer_step import CLASSES, build_trainer, one_step, rows

SCRIPT = Path(__file__).with_name("optimizer_step.py")


@pytest.fixture(scope="module")
def reference(checkpoints, tmp_path_factory):
    """One batch of 8, by family and task."""
    folder = str(tmp_path_factory.mktemp("reference"))
    return {(f, task): one_step(checkpoints[f], task, folder, 8, 1) for f in FAMILIES for task in CLASSES}


@pytest.fixture(scope="module")
def two_processes(checkpoints, tmp_path_factory):
    """The same with two processes of 4, over gloo."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "checkpoints").mkdir()
    for family in FAMILIES:
        (folder / "checkpoints" / family).symlink_to(checkpoints[family])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "two_processes.pt")


def assert_same_step(found: dict, expected: dict) -> None:
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert len(found["gradients"]) == len(expected["gradients"]) > 10
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(found["gradients"][name.removeprefix("module.")], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_eight_accumulated_batches_are_one_batch(checkpoints, tmp_path, reference, family, task):
    found = one_step(checkpoints[family], task, str(tmp_path), 1, 8)
    assert_same_step(found, reference[family, task])


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_are_one_batch(two_processes, reference, family, task):
    assert_same_step(two_processes[family, task], reference[family, task])


@pytest.mark.parametrize("task", CLASSES)
def test_the_validation_loss_is_the_mean_over_all_items(checkpoint, tmp_path, reference, task):
    trainer, _ = build_trainer(checkpoint, task, str(tmp_path), 8, 1)
    batch = {name: torch.tensor(values) for name, values in rows(task, 13).to_dict().items()}
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits
    direct = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
    assert reference["bert", task]["eval_loss"] == pytest.approx(direct.item(), rel=1e-5)


def test_without_a_loss_function_the_models_own_mean_is_not_scaled_up(checkpoint, tmp_path, reference):
    found = one_step(checkpoint, "sequence", str(tmp_path), 2, 4, compute_loss_func=None)
    expected = reference["bert", "sequence"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
