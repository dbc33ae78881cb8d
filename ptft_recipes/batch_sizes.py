"""The rows of an optimizer step: how they are split over processes, and over passes that fit into memory."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from transformers import TrainingArguments

from ptft_recipes.errors import InputError

logger = logging.getLogger(__name__)

OPTION = "global_batch_size"
ACCUMULATION = "gradient_accumulation_steps"


def split_rows(rows: int, processes: int, per_device: int) -> tuple[int, int]:
    """Split the rows of an optimizer step evenly.

    Args:
        rows: Of the whole step.
        processes: That train together.
        per_device: Rows that one process may take at once.

    Returns:
        The rows that each process takes at once, the most that divide its share; and how often it does.

    Raises:
        InputError: The processes cannot have equally many.

    >>> split_rows(32, 2, 8)
    (8, 2)
    >>> split_rows(24, 2, 8)
    (6, 2)
    """
    if rows < 1 or rows % processes:
        near = sorted({max(rows // processes, 1) * processes, (rows // processes + 1) * processes})
        raise InputError(
            f"--{OPTION} {rows}: {processes} processes cannot have equally many rows of it; give "
            f"{' or '.join(map(str, near))}, or start another number of processes"
        )
    share = rows // processes
    size = next(size for size in range(min(per_device, share), 0, -1) if share % size == 0)
    return size, share // size


def keep_global_batch(values: dict[str, Any], from_file: Sequence[str], argv: Sequence[str]) -> None:
    """Let the batch size of a process and the accumulation follow from `--global_batch_size`, if it was given.

    Args:
        values: The parsed arguments by name; changed in place.
        from_file: The flags that `--config` stands for.
        argv: The command line. An accumulation in the file gives way to a global batch size here: the last word wins.

    Raises:
        InputError: The rows cannot be divided, or an accumulation was given that makes another number of them.
    """
    rows, given, size = values[OPTION], values[ACCUMULATION], values["per_device_train_batch_size"]
    if rows is None:
        return
    processes = int(os.environ.get("WORLD_SIZE", 1))
    size, accumulation = split_rows(rows, processes, size)
    words = argv if _names(OPTION, argv) else [*from_file, *argv]
    if _names(ACCUMULATION, words) and given != accumulation:
        raise InputError(
            f"--{OPTION} {rows} is {processes} x {size} x {accumulation} (processes, --per_device_train_batch_size, "
            f"accumulated), and --{ACCUMULATION} {given} says otherwise; leave it out"
        )
    values |= {"per_device_train_batch_size": size, ACCUMULATION: accumulation}


def _names(option: str, words: Sequence[str]) -> bool:
    flags = (f"--{option}", f"--{option.replace('_', '-')}")
    return any(word.partition("=")[0] in flags for word in words)


def describe_batch(training_args: TrainingArguments) -> dict[str, int]:
    """Return how the rows of an optimizer step are split, for `results.json` and the checkpoints.

    Args:
        training_args: As parsed.
    """
    size, steps = training_args.per_device_train_batch_size, training_args.gradient_accumulation_steps
    processes = training_args.world_size
    return {"rows": processes * size * steps, "processes": processes, "per_device": size, "accumulated": steps}


def format_batch(batch: dict[str, int]) -> str:
    """Return what `describe_batch` found in words.

    >>> format_batch({"rows": 32, "processes": 2, "per_device": 8, "accumulated": 2})
    '32 rows = 2 processes x 8 rows x 2 accumulated'
    >>> format_batch({"rows": 8, "processes": 1, "per_device": 8, "accumulated": 1})
    '8 rows = 1 process x 8 rows x 1 accumulated'
    """
    words = "{rows} rows = {processes} process{plural} x {per_device} rows x {accumulated} accumulated"
    return words.format_map(batch | {"plural": "es" * (batch["processes"] > 1)})
