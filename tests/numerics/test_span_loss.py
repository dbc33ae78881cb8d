"""The loss of spans: torch's own over the tokens there are to choose from, whatever a row is batched with.

As a script for torchrun, `test_span_loss.py <checkpoint> <folder>`: one optimizer step of two processes.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainingArguments,
)

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from numerics.optimizer_step import NO_DROPOUT, KeepGradients

from ptft_recipes.objectives import span_loss
from ptft_recipes.question_answering import QuestionTrainer

LABELS = torch.tensor([[3, 5, 3, 9], [0, 0, 2, 4], [4, 4, 4, 5], [0, 0, 0, 0]])


def logits(length=9):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, length, generator=generator) for _ in range(2)]


def loss_of(start, end, labels=LABELS, **kwargs):
    return span_loss(SimpleNamespace(start_logits=start, end_logits=end), labels, **kwargs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_torchs_loss_over_the_context_and_the_first_token(smoothing):
    expected = []
    for row, (first, last, begin, end) in enumerate(LABELS.tolist()):
        places = [0, *(place for place in range(begin, end) if place)]
        for part, gold in zip(logits(), (first, last), strict=True):
            target = torch.tensor([places.index(gold)])
            expected.append(F.cross_entropy(part[row : row + 1, places], target, label_smoothing=smoothing))
    assert loss_of(*logits(), label_smoothing=smoothing) == pytest.approx(torch.stack(expected).mean().item())


def test_padding_and_question_change_nothing_and_get_no_gradient():
    start, end = (part.requires_grad_() for part in logits())
    loss = loss_of(start, end)
    loss.backward()
    assert start.grad[1, 4:].eq(0).all()
    assert start.grad[1, 1].eq(0).all()
    assert start.grad[1, [0, 2, 3]].ne(0).all()
    padded = [F.pad(part.detach(), (0, 3), value=7.0) for part in (start, end)]
    assert loss_of(*padded) == pytest.approx(loss.item())


def test_micro_batches_add_up():
    start, end = logits()
    parts = [loss_of(start[i : i + 1], end[i : i + 1], LABELS[i : i + 1], num_items_in_batch=16) for i in range(4)]
    assert sum(parts).item() == pytest.approx(loss_of(start, end).item())
    assert loss_of(start[:0], end[:0], LABELS[:0], num_items_in_batch=1) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_labelled_minus_100_do_not_count(smoothing):
    start, end = (part.requires_grad_() for part in logits())
    labels = LABELS.clone()
    labels[1] = -100
    loss = loss_of(start, end, labels, label_smoothing=smoothing)
    loss.backward()
    kept = [0, 2, 3]
    assert loss.item() == pytest.approx(
        loss_of(start[kept], end[kept], LABELS[kept], label_smoothing=smoothing).item()
    )
    assert start.grad[1].eq(0).all()
    assert start.grad[0].ne(0).any()
    assert loss_of(start[1:2], end[1:2], labels[1:2]) == 0


def rows(count: int) -> Dataset:
    """Rows of 6 to 13 tokens: a loss over padding would depend on what is batched together."""
    generator = torch.Generator().manual_seed(3)
    found = {"input_ids": [], "attention_mask": [], "labels": []}
    for i in range(count):
        length = 6 + i % 8
        found["input_ids"].append(torch.randint(5, 30, (length,), generator=generator).tolist())
        found["attention_mask"].append([1] * length)
        found["labels"].append([0, 0, 3, length - 1] if i % 3 == 0 else [3, 3 + i % 2, 3, length - 1])
    return Dataset.from_dict(found)


def one_step(path: str, output_dir: str, batch_size: int, accumulation: int) -> dict:
    """Train for one step; return the logged loss, the validation loss before it, and the gradients."""
    config = AutoConfig.from_pretrained(path, **NO_DROPOUT)
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_pretrained(path, config=config)
    arguments = TrainingArguments(
        output_dir, max_steps=1, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=batch_size, train_sampling_strategy="sequential", max_grad_norm=0, use_cpu=True,
        logging_steps=1, save_strategy="no", disable_tqdm=True, eval_do_concat_batches=True,
    )  # fmt: skip
    keep = KeepGradients()
    trainer = QuestionTrainer(
        model, arguments, DataCollatorWithPadding(AutoTokenizer.from_pretrained(path)), rows(8), rows(12),
        eval_rows=None, compute_loss_func=span_loss, callbacks=[keep],
        task={"columns": [], "n_best": 1, "max_answer_length": 3, "has_no_answers": True},
    )  # fmt: skip
    trainer.compute_metrics = None
    validation = trainer.evaluate()["eval_loss"]
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return {"loss": loss, "eval_loss": validation, "gradients": keep.gradients}


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """One batch of 8."""
    return one_step(checkpoint, str(tmp_path_factory.mktemp("whole")), 8, 1)


def assert_same_step(found: dict, expected: dict) -> None:
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert len(found["gradients"]) == len(expected["gradients"]) > 10
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(found["gradients"][name.removeprefix("module.")], gradient, rtol=1e-4, atol=1e-6)


def test_eight_accumulated_batches_are_one_batch(whole, checkpoint, tmp_path):
    assert_same_step(one_step(checkpoint, str(tmp_path), 1, 8), whole)


@pytest.mark.slow
def test_two_processes_are_one_batch(whole, checkpoint, tmp_path):
    """Of the 12 rows to evaluate, the second process has 4 and then none."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, checkpoint, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_step(torch.load(tmp_path / "two_processes.pt"), whole)


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = one_step(sys.argv[1], f"{sys.argv[2]}/out", 4, 1)
    if torch.distributed.get_rank() == 0:
        torch.save(found, f"{sys.argv[2]}/two_processes.pt")
