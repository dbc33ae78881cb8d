"""Memory and disk: checked before training, and told in one line with what helps where they run out all the same."""

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from peft import PeftModel
from safetensors import SafetensorError
from transformers import TrainingArguments

from ptft_recipes.errors import InputError, ResourceError, one_line

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
# As torch (PytorchStreamWriter) and safetensors report a failed write, without an errno.
DISK_MESSAGES = (
    "inline_container",
    "PytorchStreamWriter",
    "os error 28",
    "os error 30",
    "os error 122",
    "os error 5)",
)
MEMORY_MESSAGES = ("is killed by signal: Killed", "std::bad_alloc", "Cannot allocate memory")


def check_free_space(model: torch.nn.Module, training_args: TrainingArguments) -> None:
    """Compare the free space of the output folder with what the run is going to need at least.

    That is the model, or adapter, that it ends with, and one checkpoint: as much again, and two numbers of float32 for
    each weight that moves, as Adam keeps them.

    Raises:
        InputError: There is less.
    """
    moving = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    weights = 4 * moving if isinstance(model, PeftModel) else whole
    saves, resumes = training_args.save_strategy != "no", not training_args.save_only_model
    needed = weights + saves * (weights + resumes * 8 * moving)
    free = shutil.disk_usage(training_args.output_dir).free
    if free < needed:
        raise InputError(
            f"{training_args.output_dir}: {free / 2**20:,.1f} MiB free, and the run needs {needed / 2**20:,.1f} MiB "
            "(the weights and one checkpoint); free some, choose another --output_dir, or save less: "
            "--save_only_model true, --tuning lora"
        )


@contextlib.contextmanager
def explain_full_disk(output_dir: str | Path, last: Callable[[], Path | None]) -> Iterator[None]:
    """Turn a failed write into a ResourceError that names what is safe.

    Args:
        output_dir: That is written to.
        last: Returns the newest sealed checkpoint.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_disk_error(error):
            raise
        try:
            free = f"{shutil.disk_usage(output_dir).free / 2**20:,.1f} MiB free"
        except OSError:
            free = "not readable"
        reason = one_line(error, 200)
        safe = f"{checkpoint} is intact" if (checkpoint := last()) else "no checkpoint was saved before"
        raise ResourceError(
            f"writing to {output_dir} failed, which has {free} ({reason}). {safe}; make room, and the same command "
            "goes on"
        ) from error


def _is_disk_error(error: BaseException) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in DISK_ERRORS or any(text in str(error) for text in DISK_MESSAGES):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocation has failed, of a GPU, of the host, or of a process that works for this one.

    Args:
        error: That was raised.
    """
    if not isinstance(error, (RuntimeError, MemoryError, OSError)):
        return False
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or getattr(error, "errno", None) == errno.ENOMEM  # a loader worker that cannot be started
        or should_reduce_batch_size(error)
        or any(text in str(error) for text in MEMORY_MESSAGES)
    )


@contextlib.contextmanager
def explain_out_of_memory(model: torch.nn.Module, training_args: TrainingArguments) -> Iterator[None]:
    """Turn a failed allocation, of the GPU or of the host, into a ResourceError that names what helps.

    Args:
        model: In training mode or not: that tells which batch was too large.
        training_args: With the batch sizes.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        told = str(error)
        size, steps = training_args.per_device_train_batch_size, training_args.gradient_accumulation_steps
        if model.training:
            smaller = f"--per_device_train_batch_size {size // 2} --gradient_accumulation_steps {steps * 2}"
            if size == 1:
                smaller = "--tuning lora"
            what = f"in training, with --per_device_train_batch_size {size}"
        else:
            size = training_args.per_device_eval_batch_size
            smaller = f"--per_device_eval_batch_size {max(size // 2, 1)}"
            what = f"in evaluation, with --per_device_eval_batch_size {size}"
        raise ResourceError(
            f"out of memory {what} ({one_line(told, 150) or type(error).__name__}). What helps: {smaller}; "
            "--gradient_checkpointing true; a lower --max_length"
        ) from error
