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


def recipe_files() -> dict[str, Path]:
    """Return the recipes of the installed version by their names."""
    return {path.stem: path for path in sorted((FOLDER / "recipes").glob("*.py"))}


def config_files() -> dict[str, Path]:
    """Return the configurations of the installed version by their names, e.g. `finetune_cls/sst2`."""
    files = [*(FOLDER / "recipes" / "configs").rglob("*.yaml"), *(FOLDER / "accelerate_configs").glob("*.*")]
    return dict(sorted((f"{path.parent.name}/{path.stem}", path) for path in files))


def find_recipe(name: str, folder: str | Path) -> Path:
    """Return the file of a recipe: the one in a folder, or else the one that travels with the library.

    Args:
        name: Of the recipe, without `.py`.
        folder: That comes first: who copies one recipe may change what another one starts.
    """
    beside = Path(folder) / f"{name}.py"
    shipped = recipe_files().get(name)
    return beside if beside.is_file() or shipped is None else Path(os.path.relpath(shipped))


def find_config(name: str) -> str:
    """Return the full name of a configuration.

    Args:
        name: The full one, or the part after the slash where that is unique; `.yaml` may follow.

    Raises:
        InputError: There is none, or several have this name.
    """
    known = config_files()
    name = name.removesuffix(".yaml")
    found = [full for full in known if name in (full, full.partition("/")[2])]
    if not found:
        hint = nearest(name, [*known, *(full.partition("/")[2] for full in known)])
        raise InputError(f"no configuration {name!r:.60}{hint or '; `ptft ls --config` lists them'}")
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


def copy_shipped(name: str, destination: str | Path | None = None, is_config: bool = False) -> tuple[Path, list[str]]:
    """Write a recipe or configuration of the installed version, as it is, to a file of one's own.

    Args:
        name: Of the recipe, or as for `find_config`.
        destination: File, or folder that exists; by default a file of the same name in the working folder.
        is_config: It is a configuration.

    Returns:
        The file, and the commands that run it.

    Raises:
        InputError: There is nothing of this name, or the file cannot be written there, or would be in the way.
    """
    if is_config:
        source = config_files()[find_config(name)]
    elif (source := recipe_files().get(name.removesuffix(".py"))) is None:
        hint = nearest(name, recipe_files()) or "; `ptft ls` lists them"
        raise InputError(f"no recipe {name!r:.60}{hint}")
    path = Path(destination or source.name)
    path = path / source.name if path.is_dir() else path
    if path.suffix != source.suffix:
        raise InputError(f"{path}: the name must end in {source.suffix}")
    if not is_config and not os.path.lexists(path) and _is_module(path.stem):
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
            is_recipe = other.suffix == ".py"
            name = [other.stem] if is_recipe else ["--config", f"{other.parent.name}/{other.stem}"]
            first += [] if Path(other.name).exists() else [["ptft", "cp", *name]]
    return [shlex.join(command) for command in [*first, words]]


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
