"""Which checkpoint a run goes on from, and whether its output folder is free."""

import os
import re
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ptft_recipes.errors import InputError

# What a run writes; a folder that has one of these already is somebody's.
OWN_FILES = ("README.md", "config.json", "config.yaml", "model.safetensors", "adapter_config.json", "tokenizer.json")


def saved_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first.

    Trainer writes `trainer_state.json` last: a folder without it was cut off in mid-save and does not count.
    """
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and (path / TRAINER_STATE_NAME).is_file():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def find_checkpoint(training_args: TrainingArguments) -> str | None:
    """Return the checkpoint that `--resume_from_checkpoint` asks for: a path, or `last` for the newest complete one.

    Raises:
        InputError: There is none.
    """
    wanted = training_args.resume_from_checkpoint
    if not wanted:
        return None
    if wanted == "last":
        saved = saved_checkpoints(training_args.output_dir)
        if not saved:
            raise InputError(f"--resume_from_checkpoint last: {training_args.output_dir} has no complete checkpoint")
        return str(saved[-1])
    if not (Path(wanted) / TRAINER_STATE_NAME).is_file():
        raise InputError(f"--resume_from_checkpoint {wanted}: no complete checkpoint (or `last` for the newest one)")
    return wanted


def check_output_dir(training_args: TrainingArguments) -> None:
    """Raise an InputError if the output folder holds a run that this one would overwrite."""
    output_dir = Path(training_args.output_dir)
    if (output_dir / "results.json").exists():
        raise InputError(f"{output_dir} holds a finished run; choose another --output_dir, or delete it")
    nearest_folder = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    if not nearest_folder.is_dir() or not os.access(nearest_folder, os.W_OK):
        raise InputError(f"--output_dir {output_dir}: {nearest_folder} is no folder that can be written to")
    if training_args.resume_from_checkpoint:
        find_checkpoint(training_args)
    elif saved_checkpoints(output_dir):
        raise InputError(
            f"{output_dir} holds checkpoints of an unfinished run; go on with --resume_from_checkpoint last, choose "
            "another --output_dir, or delete it"
        )
    elif there := sorted(path.name for path in output_dir.glob("*") if path.name in OWN_FILES):
        raise InputError(
            f"{output_dir} has {', '.join(there)}, which the run would overwrite; choose another --output_dir"
        )
