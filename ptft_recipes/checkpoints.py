"""Sealed checkpoints: a manifest, written last, proves that every file of a checkpoint is there and whole."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
DELETING = ".deleting-"
LOADED = {".bin", ".pt", ".pth", ".safetensors"}  # what Trainer would read if it were there


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """Return the folders `checkpoint-<step>` of a run, oldest step first, whole or not."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def seal_checkpoint(folder: str | Path, run: dict[str, Any]) -> None:
    """Write the manifest of a checkpoint: size and sha256 of every file, after each has reached the disk.

    A process that is killed before the last line leaves a folder without a manifest, or an older one, which
    `find_damage` reports.

    Args:
        folder: The checkpoint, to which nothing is written any more.
        run: What identifies the run; see `ptft_recipes.resuming.identify`.

    Raises:
        OSError: A file cannot be read or synced.
    """
    folder = Path(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(MANIFEST)]
    with ThreadPoolExecutor() as pool:  # hashing and syncing wait for memory and disk, not for Python
        entries = list(pool.map(_measure_durably, paths))
    names = [path.relative_to(folder).as_posix() for path in paths]
    sealed = {"files": dict(zip(names, entries, strict=True)), "run": run}
    part = folder / f"{MANIFEST}.part"
    with part.open("w", encoding="utf-8") as file:
        json.dump({"sha256": _digest(sealed), "sealed": sealed}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / MANIFEST)
    for directory in {folder, folder.parent, *(path.parent for path in paths)}:
        _sync(directory)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return what was sealed, `{"files": {name: {"size", "sha256"}}, "run": ...}`.

    Raises:
        ValueError: There is no manifest, or it is damaged itself.
    """
    path = Path(folder) / MANIFEST
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError
        manifest = json.loads(path.read_bytes())
        sealed = manifest["sealed"]
        if manifest["sha256"] != _digest(sealed):
            raise ValueError
    except FileNotFoundError:
        if not path.parent.exists():
            raise ValueError("it does not exist") from None
        raise ValueError(f"it has no {MANIFEST}: the save was cut off, or another program made it") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is damaged") from error
    return sealed


def find_damage(folder: str | Path) -> str:
    """Compare a checkpoint with its manifest, and return what is wrong with it; an empty string when all is right."""
    folder = Path(folder)
    try:
        files = read_manifest(folder)["files"]
    except ValueError as error:
        return str(error)
    for name, entry in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{MANIFEST} names a file outside of it, {name}"
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (size := (folder / name).stat().st_size) != entry["size"]:
            return f"{name} has {size:,} bytes instead of {entry['size']:,}"
    extra = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.suffix in LOADED)
    if unknown := [name for name in extra if name not in files]:
        return f"{unknown[0]} was not saved with it"
    paths = [folder / name for name in files]
    try:
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(_sha256, paths))
    except OSError as error:
        return f"it cannot be read: {error}"
    changed = [name for name, digest in zip(files, digests, strict=True) if digest != files[name]["sha256"]]
    return f"{changed[0]} has changed since it was saved (sha256)" if changed else ""


def rotate_checkpoints(newest: str | Path, limit: int | None, best: str | None, run_id: str) -> None:
    """Delete the oldest sealed checkpoints of a run, and never the newest or the best.

    What is not sealed, was sealed by another run, or is of a later step (damaged, else it would not have been gone
    back behind) is not touched.

    Args:
        newest: The checkpoint that was sealed just now.
        limit: How many to keep, `save_total_limit`; all of them when None.
        best: Folder name of the best one so far, if there is one.
        run_id: `id` of what was sealed as `run`.
    """
    if not limit:
        return
    newest, own = Path(newest), []
    for path in checkpoints_in(newest.parent):
        with contextlib.suppress(ValueError):
            if read_manifest(path)["run"]["id"] == run_id:
                own.append(path)
        if path == newest:
            break
    kept = [path for path in own if path == newest or path.name == best]
    rest = [path for path in own[::-1] if path not in kept]
    for path in rest[max(0, limit - len(kept)) :]:
        delete_checkpoint(path)


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint; what a kill leaves of it is no checkpoint any more, and `sweep` finds it."""
    shutil.rmtree(folder.rename(folder.with_name(f"{DELETING}{folder.name}")), ignore_errors=True)


def sweep(output_dir: str | Path) -> None:
    """Delete what is left of checkpoints that were being deleted when their run was killed."""
    for path in Path(output_dir).glob(f"{DELETING}*"):
        shutil.rmtree(path, ignore_errors=True)


def _digest(sealed: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _measure_durably(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(directory: Path) -> None:
    """Let the names in a folder reach the disk; systems that cannot open a folder do it on their own."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
