"""An experiment as a YAML file, read strictly: arms of one or more stages, and seeds."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from ptft_recipes.errors import InputError, nearest
from ptft_recipes.shipped import find_recipe, shipped_files
from ptft_recipes.yaml_files import mapping, place, read_yaml, scalar, scalars

KEYS = ("output_dir", "seeds", "baseline", "common", "arms")
PREVIOUS = "<previous>"
STUDY_FILE = "study.yaml"
# What the study decides itself, or what nobody may decide for who runs the file of another.
NOT_IN_A_STUDY = {
    "config": "write its lines into the study",
    "output_dir": "every cell has its own folder in that of the study",
    "resume_from_checkpoint": "a cell that was cut off goes on by itself",
    "trust_remote_code": "it runs the code of others; start such a run by itself, from the command line",
    "hub_token": "a token is never read from a file; use `hf auth login`, or set HF_TOKEN",
}


@dataclass(frozen=True)
class Stage:
    """One run of an arm, whatever its seed.

    Args:
        recipe: Its file.
        arguments: As they are written in the study; a list for an option that takes several values.
        where: File and line, for errors.
    """

    recipe: Path
    arguments: dict[str, str | list[str]]
    where: str


@dataclass(frozen=True)
class Study:
    """An experiment as it is written down."""

    text: str
    output_dir: Path
    seeds: list[int]
    baseline: str
    arms: dict[str, list[Stage]]

    def folder(self, arm: str, seed: int) -> Path:
        """Return the output folder of the last stage of an arm."""
        return self.output_dir / "arms" / arm / f"seed-{seed}"

    def shared_stages(self) -> list[str]:
        """Say which arms have a stage with a seed of its own, whose chance no interval over the seeds contains."""
        arms: dict[str, list[str]] = {}
        for arm, stages in self.arms.items():
            for stage in stages[:-1]:
                if "seed" in stage.arguments:
                    arms.setdefault(f"{stage.recipe.stem} (seed {stage.arguments['seed']})", []).append(arm)
        return [
            f"{', '.join(names)}: all seeds start from one run of {stage}; the intervals do not hold the chance of it."
            for stage, names in arms.items()
        ]


def read_study(path: str | Path, recipes: str | Path | None, output_dir: str | Path | None = None) -> Study:
    """Read a study, strictly.

    Args:
        path: Of the YAML file.
        recipes: Folder in which a recipe that is given by its name is looked for first, before those that travel with
            the library; one of your own is given by its path. None to read a study that is not to be run: the recipes
            need not be there.
        output_dir: Instead of the one that the study names, or else of `runs/<name of the file>`.

    Raises:
        InputError: What is wrong, and on which line.
    """
    top = mapping(path, read_yaml(path), KEYS)
    for key in ("seeds", "arms"):
        if key not in top:
            raise InputError(f"{path}: the key {key!r} is missing; a study has {', '.join(KEYS)}")
    common = {}
    for name, node in mapping(path, top["common"]).items() if "common" in top else ():
        file = _recipe_file(name, recipes, place(path, node))
        common[file] = _arguments(mapping(path, node), path)
    arms: dict[str, list[Stage]] = {}
    for name, node in mapping(path, top["arms"]).items():
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise InputError(f"{place(path, node)}: the arm {name!r:.60} names a folder; use letters, digits, . + - _")
        stages = node.value if isinstance(node, yaml.SequenceNode) else [node]
        arms[name] = [_stage(stage, path, recipes, common, first=i == 0) for i, stage in enumerate(stages)]
        if not stages:
            raise InputError(f"{place(path, node)}: the arm {name!r} has no stages")
        if "seed" in arms[name][-1].arguments:
            raise InputError(f"{arms[name][-1].where}: the seeds of an arm's last stage are those under `seeds`")
    if unused := [
        file.stem for file in common if file not in {stage.recipe for arm in arms.values() for stage in arm}
    ]:
        raise InputError(f"{place(path, top['common'])}: no arm has the recipe {unused[0]!r}")
    baseline = scalar(path, top["baseline"], "baseline") if "baseline" in top else next(iter(arms), "")
    if baseline not in arms:
        raise InputError(f"{place(path, top['arms'])}: no arm {baseline!r}, the baseline{nearest(baseline, arms)}")
    named = scalar(path, top["output_dir"], "output_dir") if "output_dir" in top else f"runs/{Path(path).stem}"
    return Study(
        Path(path).read_text(encoding="utf-8"), Path(output_dir or named), _seeds(top["seeds"], path), baseline, arms
    )


def _seeds(node: yaml.Node, path: str | Path) -> list[int]:
    texts = [scalar(path, item, "seeds") for item in node.value] if isinstance(node, yaml.SequenceNode) else []
    if not texts or not all(re.fullmatch(r"0|[1-9]\d{0,8}", text) for text in texts) or len(set(texts)) < len(texts):
        raise InputError(f"{place(path, node)}: seeds must be a list of different whole numbers, e.g. [42, 43, 44]")
    return [int(text) for text in texts]


def _recipe_file(name: str, recipes: str | Path | None, where: str) -> Path:
    if not name.endswith(".py") and not re.fullmatch(r"\w+", name):
        raise InputError(
            f"{where}: the recipe {name!r:.60} is no name; one of your own is given by its path, with .py"
        )
    file = Path(name if name.endswith(".py") else f"{name}.py")
    if not name.endswith(".py") and recipes is not None:
        file = find_recipe(name, recipes)
    if recipes is not None and not file.is_file():
        known = {path.stem for path in Path(recipes).glob("*.py")} | shipped_files().keys()
        raise InputError(f"{where}: no recipe {name!r:.60}{nearest(name, known)} ({file} is no file)")
    return file


def _arguments(nodes: dict[str, yaml.Node], path: str | Path) -> dict[str, str | list[str]]:
    arguments: dict[str, str | list[str]] = {}
    for key, node in nodes.items():
        if key in NOT_IN_A_STUDY:
            raise InputError(f"{place(path, node)}: {key!r} does not belong into a study: {NOT_IN_A_STUDY[key]}")
        arguments[key] = (scalars if isinstance(node, yaml.SequenceNode) else scalar)(path, node, key)
    return arguments


def _stage(
    node: yaml.Node, path: str | Path, recipes: str | Path | None, common: dict[Path, dict], first: bool
) -> Stage:
    nodes, where = mapping(path, node), place(path, node)
    if "recipe" not in nodes:
        raise InputError(f"{where}: a stage needs a `recipe`{nearest('recipe', nodes)}")
    recipe = _recipe_file(scalar(path, nodes.pop("recipe"), "recipe"), recipes, where)
    arguments = common.get(recipe, {}) | _arguments(nodes, path)
    values = [value for given in arguments.values() for value in (given if isinstance(given, list) else [given])]
    if not re.fullmatch(r"\d{1,9}", str(arguments.get("seed", 0))):
        raise InputError(f"{where}: seed: {arguments['seed']!r:.60} is no whole number")
    refers = any(PREVIOUS in value for value in values)
    if first and refers:
        raise InputError(f"{where}: {PREVIOUS} in the first stage of an arm, which has none before it")
    if not first and not refers:
        raise InputError(
            f"{where}: this stage does not use the one before it; say `model_name_or_path: {PREVIOUS}`, which stands "
            "for its output folder"
        )
    return Stage(recipe, arguments, where)
