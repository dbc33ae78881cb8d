"""Recipes and configurations that travel with the library: found by name, copied, and the command that runs a copy."""

import ast
import contextlib
import importlib.machinery
import os
import re
import shlex
import sys
from pathlib import Path

from ptft_recipes.errors import InputError, nearest

# Inside the package where a wheel is installed, beside it in a clone.
_PACKAGE = Path(__file__).parent
FOLDER = _PACKAGE if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent


# What is handed out, in words; all but recipes by a flag of this name.
KINDS = {"recipe": "recipe", "config": "configuration", "accelerate": "Accelerate configuration"}


def shipped_files(kind: str = "recipe") -> dict[str, Path]:
    """Return files of the installed version by their names.

    Args:
        kind: `recipe`; `config`, of a recipe, with names such as `finetune_cls/sst2`; `accelerate`, for
            `accelerate launch --config_file`, and the script for SLURM.
    """
    if kind == "config":
        files = (FOLDER / "recipes" / "configs").rglob("*.yaml")
        return dict(sorted((f"{path.parent.name}/{path.stem}", path) for path in files))
    files = FOLDER.glob("accelerate_configs/*.*" if kind == "accelerate" else "recipes/*.py")
    return {path.stem: path for path in sorted(files)}


def find_recipe(name: str, folder: str | Path) -> Path:
    """Return the file of a recipe: the one in a folder, or else the one that travels with the library.

    Args:
        name: Of the recipe, without `.py`.
        folder: That comes first: who copies one recipe may change what another one starts.
    """
    beside = Path(folder) / f"{name}.py"
    shipped = shipped_files().get(name)
    return beside if beside.is_file() or shipped is None else Path(os.path.relpath(shipped))


def find_shipped(name: str, kind: str = "recipe") -> str:
    """Return the full name of what travels with the library.

    Args:
        name: The full one, or the part after the slash where that is unique; the suffix of the file may follow.
        kind: As for `shipped_files`.

    Raises:
        InputError: There is none, or several have this name.
    """
    known = shipped_files(kind)
    short = {full: full.rpartition("/")[2] for full in known}
    found = [full for full, path in known.items() if name.removesuffix(path.suffix) in (full, short[full])]
    if not found:
        flag = "" if kind == "recipe" else f" --{kind}"
        hint = nearest(name, [*known, *short.values()]) or f"; `ptft ls{flag}` lists them"
        raise InputError(f"no {KINDS[kind]} {name!r:.60}{hint}")
    if len(found) > 1:
        raise InputError(f"{name!r} is the name of several configurations; give one of {', '.join(found)}")
    return found[0]


def summary(path: Path) -> str:
    """Return what a recipe or configuration is for, in the words of its own first line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)).splitlines()[0].partition(":")[0].rstrip(".")
    comment = " ".join(
        line.lstrip("# ") for line in text.removeprefix("#!/bin/bash\n").partition("\n#\n")[0].splitlines()
    )
    return re.split(r"(?<=\?) |\. ", comment)[0].rstrip(".")


def copy_shipped(name: str, destination: str | Path | None = None, kind: str = "recipe") -> tuple[Path, list[str]]:
    """Write a recipe or configuration of the installed version, as it is, to a file of one's own.

    Args:
        name: As for `find_shipped`.
        destination: File, or folder that exists; by default a file of the same name in the working folder.
        kind: As for `shipped_files`.

    Returns:
        The file, and the commands that run it.

    Raises:
        InputError: There is nothing of this name, or the file cannot be written there, or would be in the way.
    """
    source = shipped_files(kind)[find_shipped(name, kind)]
    path = Path(destination or source.name)
    path = path / source.name if path.is_dir() else path
    if path.suffix != source.suffix:
        raise InputError(f"{path}: the name must end in {source.suffix}")
    if kind == "recipe" and not os.path.lexists(path) and _is_module(path.stem):
        # `python evaluate.py` finds itself where a library imports the package `evaluate`.
        raise InputError(f"{path}: there is a module {path.stem!r}, which this file would hide; choose another name")
    try:
        with path.open("x", encoding="utf-8") as file:  # fails where there is anything, a dangling link too
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise InputError(f"{path} exists and is left as it is; choose another name, or remove it") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()  # the half of it that a full disk took: the next try would find it
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return path, _commands(source, path)


def _is_module(name: str) -> bool:
    return name in sys.stdlib_module_names or importlib.machinery.PathFinder.find_spec(name) is not None


def _commands(source: Path, copy: Path) -> list[str]:
    """Return the commands that run a copy: the one that its own header names, after what else has to be copied."""
    text = source.read_text(encoding="utf-8")
    own = source.relative_to(FOLDER).as_posix()
    line = re.search(rf"^(?:    |#   )((?:accelerate|python|sbatch) .*{re.escape(own)}.*?)(?:  .*)?$", text, re.M)
    words = shlex.split(line[1])
    if source.suffix == ".py":
        words = _with_default_files(words, text)
    first = []
    for i, word in enumerate(words):
        if word == own:
            words[i] = str(copy)
        elif (other := FOLDER / word).is_file():
            words[i] = other.name
            first += [] if Path(other.name).exists() else [["ptft", "cp", *_name(other)]]
    return [shlex.join(command) for command in [*first, words]]


def _name(path: Path) -> list[str]:
    """Return the words behind `ptft cp` that copy a file."""
    kind, name = next((kind, name) for kind in KINDS for name, file in shipped_files(kind).items() if file == path)
    return [name] if kind == "recipe" else [f"--{kind}", name]


def _with_default_files(words: list[str], text: str) -> list[str]:
    """Name on the command line the files that a recipe reads by default, which do not lie beside a copy of it."""
    assigned = next(
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "DEFAULTS"
    )
    for name, value in ast.literal_eval(assigned).items():
        if str(value).startswith("recipes/configs/") and f"--{name}" not in words:
            words = [*words, f"--{name}", value]
    return words
