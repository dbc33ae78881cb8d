"""Whether a run may use its output folder, and from which checkpoint it goes on."""

import json
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import broadcast_object_list, gather_object
from filelock import FileLock, Timeout
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ptft_recipes.batch_sizes import format_batch
from ptft_recipes.checkpoints import MANIFEST, checkpoints_in, find_damage, read_manifest, sweep
from ptft_recipes.errors import InputError, one_line
from ptft_recipes.reporting import WRITTEN_BY_A_RUN, write_yaml

logger = logging.getLogger(__name__)

# What a run writes; a folder that has one of these already is somebody's.
OWN_FILES = ("README.md", "config.json", "model.safetensors", "adapter_config.json", "tokenizer.json")
# What a resumed run may change without being asked: it leaves the weights as they would have been. Of files with data
# the content is compared instead of the name; more epochs are the point of going on.
MAY_CHANGE = {
    "output_dir", "run_name", "project", "report_to", "trackio_space_id", "disable_tqdm", "do_predict",
    "save_strategy", "save_steps", "save_total_limit",
    "per_device_eval_batch_size", "eval_accumulation_steps", "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "activation_checkpointing", "activation_checkpointing_kwargs",
    "torch_empty_cache_steps", "skip_memory_metrics", "push_to_hub", "train_file", "validation_file", "test_file",
}  # fmt: skip
MAY_CHANGE_PREFIXES = (
    "logging_",
    "log_",
    "hub_",
    "dataloader_num",
    "dataloader_pin",
    "dataloader_pre",
    "dataloader_per",
)
MAY_GROW = ("num_train_epochs", "max_steps")
# Of `run`, besides its configuration: what the weights depend on, and what only their last bits do.
COMPARED = ("recipe", "processes", "engine", "precision", "device")
NOTED = ("hardware", "versions")
# How the rows of an optimizer step are split. Whole copies of a model make the same step of the same rows.
SPLIT = {
    "global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size",
    "processes", "engine",
}  # fmt: skip
WHOLE_COPIES = {"none", "ddp"}

# The loader workers of a run that was killed hold its lock until they notice, which takes them 5 s.
LOCK_SECONDS = 7

_lock: list[FileLock] = []  # of this process, which holds it until it ends or starts another run


def claim_output_dir(training_args: TrainingArguments, run: dict[str, Any], allow_changes: Sequence[str]) -> None:
    """Lock the output folder for this run, and decide whether it starts or goes on.

    The newest intact checkpoint of the same run is gone on from, also without being asked: the same command repeated
    after a crash finishes the run. Afterwards `training_args.resume_from_checkpoint` is that checkpoint or None, and
    `run` has its `id`, which a run that goes on keeps, and `resumed`, where it goes on and with what changes.

    Args:
        training_args: As parsed.
        run: As far as it is known before the data is read; changed in place.
        allow_changes: Names that may differ from the run that is gone on with.

    Raises:
        InputError: The folder cannot be written to, another process uses it, it holds a finished run or another one,
            there is no intact checkpoint, the run differs from the one that it would go on with, or the processes do
            not compute in the same precision.
    """
    decided: list[Any] = [None]
    if training_args.process_index == 0:
        try:
            decided = [_decide(training_args, run, allow_changes)]
            if decided[0]["checkpoint"] is None:
                write_yaml(Path(training_args.output_dir) / "config.yaml", run["config"])
        except InputError as error:
            decided = [error]
        except OSError as error:
            decided = [InputError(f"--output_dir {training_args.output_dir} cannot be used: {one_line(error)}")]
    if isinstance(decision := broadcast_object_list(decided)[0], InputError):
        raise decision  # in every process: none is left waiting for the others
    checkpoint = decision["checkpoint"]
    if not all(gather_object([checkpoint is None or Path(checkpoint).is_dir()])):
        raise InputError(
            f"{checkpoint} is not on every machine of this run; --output_dir must be on a file system that all of "
            "them share, or be copied to each"
        )
    if len(precisions := sorted(set(gather_object([run["precision"]])))) > 1:
        raise InputError(
            f"the processes found different precisions faster, {' and '.join(precisions)}: --bf16 true or false makes "
            "them compute in the same one"
        )
    training_args.resume_from_checkpoint = decision.pop("checkpoint")
    run |= decision


def _decide(training_args: TrainingArguments, run: dict[str, Any], allow_changes: Sequence[str]) -> dict[str, Any]:
    output_dir = Path(training_args.output_dir)
    _hold_lock(output_dir)
    sweep(output_dir)
    again = training_args.push_to_hub and checkpoints_in(output_dir)  # the push may have been what was cut off
    if is_finished(output_dir) and not again:
        raise InputError(
            f"{output_dir} holds a finished run; choose another --output_dir, or delete it (to train it further: "
            "another --output_dir, --resume_from_checkpoint with its last checkpoint, and more --num_train_epochs)"
        )
    checkpoint = _choose_checkpoint(training_args, output_dir)
    started = {"id": uuid.uuid4().hex, "checkpoint": None}
    same_folder = checkpoint is not None and checkpoint.parent.resolve() == output_dir.resolve()
    if not same_folder:
        _check_nothing_is_lost(output_dir, run)
    if checkpoint is None:
        return started
    changed = check_same_run(checkpoint, run, allow_changes)
    if not list(checkpoint.glob("rng_state*.pth")):
        raise InputError(
            f"{checkpoint} has the model and not the state of its training (--save_only_model), so nothing can go on "
            f"from there. To begin anew with its weights: --model_name_or_path {checkpoint} and another --output_dir"
        )
    if training_args.load_best_model_at_end:
        _check_best(checkpoint)
    sealed = read_manifest(checkpoint)["run"]
    for name in NOTED:
        if sealed[name] != run[name]:
            logger.warning(
                "%s: %s then, now %s; the last bits of the weights may differ", name, sealed[name], run[name]
            )
    if _same_rows(sealed, run) and sealed["batch"] != run["batch"]:
        logger.warning("batch: %s then; dropout will draw other masks from here on", format_batch(sealed["batch"]))
    logger.info("going on from %s", checkpoint)
    resumed = {"resumed": {"from": checkpoint.name, "changed": changed, "allowed": list(allow_changes)}}
    return started | ({"id": sealed["id"]} if same_folder else {}) | {"checkpoint": str(checkpoint)} | resumed


def is_finished(output_dir: str | Path) -> bool:
    """Tell whether a folder holds a run that got to its end: its results, and of one that trained its card too."""
    output_dir = Path(output_dir)
    carded = (output_dir / "README.md").exists()  # written last, by what trains
    return (output_dir / "results.json").exists() and (carded or not checkpoints_in(output_dir))


def _hold_lock(output_dir: Path) -> None:
    nearest_folder = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    what = f"--output_dir {output_dir}: {nearest_folder} is no folder that can be written to"
    if not nearest_folder.is_dir() or not os.access(nearest_folder, os.W_OK):
        raise InputError(what)
    _lock.clear()  # a lock that nobody holds any more is released
    lock = FileLock(output_dir / ".lock", timeout=LOCK_SECONDS, is_singleton=True)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another process is running in {output_dir}; wait for it, stop it, or choose another --output_dir"
        ) from None
    except OSError as error:
        raise InputError(f"{what} ({error})") from error
    _lock.append(lock)


def _choose_checkpoint(training_args: TrainingArguments, output_dir: Path) -> Path | None:
    """Return the checkpoint that was asked for, or else the newest intact one; say what is wrong with those newer."""
    wanted = training_args.resume_from_checkpoint
    named = Path(wanted) if wanted and wanted != "last" else None
    own = checkpoints_in(output_dir)
    elsewhere = named is not None and named.resolve().parent != output_dir.resolve()
    # A command that names a checkpoint elsewhere has some of its own once it was cut off: they are further.
    if named is None or elsewhere:
        for path in reversed(own):
            if not (damage := find_damage(path)):
                return path
            logger.warning("%s is not used: %s", path, damage)
    if named is not None and (damage := find_damage(named)):
        raise InputError(
            f"--resume_from_checkpoint {named}: {damage}. `last` takes the newest intact one of --output_dir; to "
            f"begin anew from the weights alone: --model_name_or_path {named}"
        )
    if named is not None and not elsewhere and own and named.name != own[-1].name:
        raise InputError(
            f"{output_dir} has {own[-1].name}, newer than {named.name}, which the run would overwrite; choose another "
            "--output_dir, or delete the newer ones"
        )
    if wanted == "last":
        raise InputError(f"--resume_from_checkpoint last: {output_dir} has no intact checkpoint")
    return named


def _check_nothing_is_lost(output_dir: Path, run: dict[str, Any]) -> None:
    """Raise an InputError if the folder has something that this run would overwrite and did not begin itself."""
    there = [path.name for path in checkpoints_in(output_dir)]
    there += sorted(path.name for path in output_dir.glob("*") if path.name in OWN_FILES)
    config = output_dir / "config.yaml"
    try:
        text = config.read_text(encoding="utf-8") if config.is_file() else ""
        began = yaml.safe_load(text) if text.startswith(WRITTEN_BY_A_RUN) else None
    except (OSError, ValueError, yaml.YAMLError):
        text, began = "", None
    if text and began is None:
        there.append(config.name)  # of a person
    if not there:
        return
    if not isinstance(began, dict) or differences({"config": began}, run):
        raise InputError(
            f"{output_dir} has {', '.join(there)}, which the run would overwrite; choose another --output_dir"
        )
    if sealed := [path for path in checkpoints_in(output_dir) if (path / MANIFEST).exists()]:
        raise InputError(
            f"no checkpoint in {output_dir} is intact, though {sealed[-1].name} was once ({find_damage(sealed[-1])}); "
            "mend it, or delete the folder to train anew"
        )
    logger.info("%s: the same run was cut off before its first checkpoint was sealed; it begins again", output_dir)


def _check_best(checkpoint: Path) -> None:
    """Raise an InputError if the best checkpoint so far, to end with, is not as it was saved."""
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
    best = best_checkpoint(checkpoint, state["best_model_checkpoint"])
    if best not in (None, checkpoint) and (damage := find_damage(best)):
        raise InputError(
            f"{best}, the best checkpoint so far, cannot be used: {damage}. Delete {checkpoint.parent} to train anew, "
            "or end with the last weights: --load_best_model_at_end false --allow_changes load_best_model_at_end"
        )


def best_checkpoint(checkpoint: str | Path, recorded: str | None) -> Path | None:
    """Return where the best checkpoint of a run is now, beside the one that is resumed, wherever that was moved to.

    Args:
        checkpoint: That is resumed.
        recorded: The path that its state has.
    """
    if not recorded:
        return None
    beside = Path(checkpoint).parent / Path(recorded).name
    return beside if beside.exists() or not Path(recorded).exists() else Path(recorded)


def check_same_run(
    checkpoint: str | Path, run: dict[str, Any], allow_changes: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    """Compare a run with the one that sealed a checkpoint.

    Args:
        checkpoint: Intact.
        run: As far as it is known; once it has `data`, the fingerprints of its splits are compared too.
        allow_changes: Names that may differ.

    Returns:
        What differs and may: `{name: (then, now)}`.

    Raises:
        InputError: Something differs that would make another run of it.
    """
    changed = differences(read_manifest(checkpoint)["run"], run)
    if refused := {name: change for name, change in changed.items() if name not in allow_changes}:
        listed = "; ".join(
            f"{name}: {'the default' if then is None else then} then, now {'the default' if now is None else now}"
            for name, (then, now) in refused.items()
        )
        raise InputError(
            f"{checkpoint} is of a run that differs ({listed}). Choose another --output_dir, or go on with "
            f"--allow_changes {' '.join([*allow_changes, *refused])}"
        )
    return changed


def differences(then: dict[str, Any], now: dict[str, Any], may_grow: bool = True) -> dict[str, tuple[Any, Any]]:
    """Compare what two runs know of what their weights depend on.

    Args:
        then: With its `config`, as `results.json` has it under `run`, or a manifest.
        now: Likewise.
        may_grow: More epochs or steps are no difference.

    Returns:
        `{name: (then, now)}`.
    """
    before, after = then["config"], json.loads(json.dumps(now["config"]))
    changed = {}
    for name in sorted(before.keys() | after.keys()):
        pair = before.get(name), after.get(name)
        grown = may_grow and name in MAY_GROW and None not in pair and pair[1] > pair[0]
        if pair[0] != pair[1] and not grown and name not in MAY_CHANGE and not name.startswith(MAY_CHANGE_PREFIXES):
            changed[name] = pair
    changed |= {name: (then[name], now[name]) for name in COMPARED if name in then and then[name] != now.get(name)}
    if "data" in then and "data" in now:
        data = now["data"]["fingerprint"]
        if splits := [split for split in data if data[split] != then["data"].get(split)]:
            changed["data"] = tuple(
                " ".join(f"{split} {of.get(split)}" for split in splits) for of in (then["data"], data)
            )
    if _same_rows(then, now):
        changed = {name: pair for name, pair in changed.items() if name not in SPLIT}
    if then.get("initial_weights") != now.get("initial_weights", then.get("initial_weights")):
        changed["initial_weights"] = then.get("initial_weights"), now["initial_weights"]
    return changed


def _same_rows(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Tell whether the optimizer steps of two runs are over the same rows, however these are split."""
    batches = [run.get("batch") for run in (then, now)]
    return (
        None not in batches
        and batches[0]["rows"] == batches[1]["rows"]
        and ({then.get("engine"), now.get("engine")} <= WHOLE_COPIES)
    )


def identify(run: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest keeps of a run, for `check_same_run`."""
    kept = {name: run.get(name) for name in ("id", "config", "batch", "initial_weights", *COMPARED, *NOTED)}
    return kept | {"data": run["data"]["fingerprint"]}
