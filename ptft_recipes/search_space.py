"""A hyper-parameter search as a YAML file, checked before any compute by the recipe that it is about."""

import dataclasses
import importlib.util
import inspect
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from transformers import TrainingArguments

from ptft_recipes.cli import build_parser, parse_args
from ptft_recipes.data import DatasetArguments
from ptft_recipes.errors import InputError, nearest, one_line
from ptft_recipes.metrics import LOWER_IS_BETTER
from ptft_recipes.shipped import find_recipe, shipped_files
from ptft_recipes.yaml_files import mapping, place, read_yaml, scalar, scalars

KEYS = (
    "recipe",
    "arguments",
    "space",
    "sampler",
    "trials",
    "startup_trials",
    "pruner",
    "prune_from_epoch",
    "seed",
    "seeds",
)
SAMPLERS, PRUNERS = ("tpe", "random", "grid"), ("median", "none")
# The search decides it, or nobody may for who runs the file of another.
NOT_GIVEN = {
    "output_dir": "every trial has its own folder in that of the search",
    "do_predict": "the test split stays closed until the winner is fixed",
    "push_to_hub": "push the run of the winner, by the best.yaml of the search",
    "report_to": "every trial is in the study; the run of the winner can be repeated with it",
    "resume_from_checkpoint": "a trial that was cut off goes on by itself",
    "trust_remote_code": "it runs the code of others, and is read from the command line of a recipe only",
    "hub_token": "a token is never read from a file; use `hf auth login`, or set HF_TOKEN",
}
LUCK = "a seed is luck: its best value will not do better on other data"
MEASURE = "it decides what is measured, and is the same in all trials"
NOT_SEARCHED = {
    **NOT_GIVEN,
    **dict.fromkeys(("seed", "data_seed", "full_determinism"), LUCK),
    **{field.name: MEASURE for field in dataclasses.fields(DatasetArguments)},
    **dict.fromkeys(
        ("metric_for_best_model", "greater_is_better", "load_best_model_at_end", "eval_strategy"), MEASURE
    ),
}


@dataclasses.dataclass
class Search:
    """What is searched, for which recipe, and how."""

    recipe: ModuleType
    types: list[type]
    argv: list[str]
    config: dict[str, Any]
    space: dict[str, BaseDistribution]
    lists: dict[str, dict[str, list[str]]]
    metric: str
    maximize: bool
    sampler: str = "tpe"
    trials: int = 20
    startup_trials: int = 5
    pruner: str = "median"
    prune_from_epoch: int = 1
    seed: int = 42
    seeds: tuple[int, ...] = (42,)

    def flags(self, params: dict[str, Any]) -> list[str]:
        """Return the flags of a point of the space, exactly: repr of a float reads back as the same float."""
        flags = []
        for name in self.space:
            words = self.lists.get(name, {}).get(params[name])
            flags += [f"--{name}={params[name]}"] if words is None else [f"--{name}", *words]
        return flags

    def summary(self) -> str:
        """Return what is searched, how, and in which ranges, in lines."""
        by = f"by validation {self.metric}, {self.sampler}, {self.trials} trials, pruner {self.pruner}"
        return "\n".join([f"{self.recipe.__name__} {by}", *(_describe(*item) for item in self.space.items())])

    def resolve(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the configuration of the recipe at a point of the space, for a file to give as `--config`."""
        config = parse_args(self.types, self.recipe.DEFAULTS, [*self.argv, *self.flags(params)])[-1]
        return {name: value for name, value in config.items() if name not in NOT_GIVEN}

    def grid(self) -> list[dict[str, Any]]:
        """Return every point of a space without ranges of numbers that are not whole."""
        values = [
            distribution.choices
            if isinstance(distribution, CategoricalDistribution)
            else range(distribution.low, distribution.high + 1)
            for distribution in self.space.values()
        ]
        return [dict(zip(self.space, point, strict=True)) for point in itertools.product(*values)]

    def described(self) -> dict[str, Any]:
        """Return what makes it this search and no other, by names for an error; more trials and seeds do not."""
        return {
            "recipe": self.recipe.__name__,
            **{f"arguments.{name}": value for name, value in self.config.items()},
            **{f"space.{name}": distribution_to_json(value) for name, value in self.space.items()},
            **{
                name: getattr(self, name)
                for name in ("sampler", "startup_trials", "pruner", "prune_from_epoch", "seed")
            },
        }


def _describe(name: str, distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"  {name}: {', '.join(distribution.choices)}"
    return f"  {name}: {distribution.low:g} to {distribution.high:g}{', log scale' * distribution.log}"


def read_search(path: str | Path, recipes: str | Path, trials: int | None = None) -> Search:
    """Read a search; every name and value is checked by the parser of the recipe.

    Args:
        path: Of the YAML file: `recipe`, `arguments`, `space`, `sampler` (tpe, random, grid), `trials`,
            `startup_trials` (at random and never pruned), `pruner` (median, none), `prune_from_epoch`, `seed` (of the
            sampler), `seeds` (of the runs of the winner).
        recipes: The folder in which the recipe is looked for first, by its name, before those that travel with the
            library. A file that comes from others names no path of code.
        trials: Instead of those in the file.

    Raises:
        InputError: What is wrong, where, and the nearest right name.
        SystemExit: The recipe's arguments do not go together.
    """
    nodes = mapping(path, read_yaml(path), KEYS)
    if missing := [key for key in ("recipe", "space") if key not in nodes]:
        raise InputError(f"{path}: the key {missing[0]!r} is missing")
    recipe = _load_recipe(scalar(path, nodes["recipe"], "recipe"), Path(recipes), place(path, nodes["recipe"]))
    types = [
        vars(recipe)[name] for name in ("ModelArguments", "DataArguments", "TuningArguments", "TrainingArguments")
    ]
    check = _Checker(path, recipe, types)
    argv = check.arguments(nodes["arguments"]) if "arguments" in nodes else []
    *arguments, config = parse_args(types, recipe.DEFAULTS, argv)
    options = {
        name: _one_of(path, nodes[name], name, allowed)
        for name, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS))
        if name in nodes
    }
    for name, lowest in (("trials", 1), ("startup_trials", 0), ("prune_from_epoch", 0), ("seed", 0)):
        if name in nodes:
            options[name] = _whole_number(path, nodes[name], name, lowest)
    if "seeds" in nodes:
        scalars(path, nodes["seeds"], "seeds")
        options["seeds"] = tuple(dict.fromkeys(_whole_number(path, item, "seeds", 0) for item in nodes["seeds"].value))
    dimensions = mapping(path, nodes["space"])
    space = {name: check.dimension(name, node) for name, node in dimensions.items()}
    if not space:
        raise InputError(f"{place(path, nodes['space'])}: the space is empty")
    search = Search(recipe, types, argv, config, space, check.lists, *_objective(arguments), **options)
    if search.sampler == "grid":
        if "trials" in nodes or trials is not None:
            line = place(path, nodes.get("trials", nodes["sampler"]))
            raise InputError(f"{line}: a grid has as many trials as points; leave `trials` out")
        for name, distribution in space.items():
            if isinstance(distribution, FloatDistribution):
                raise InputError(f"{place(path, dimensions[name])}: {name}: a grid needs `choices`, not a range")
        search.trials = len(search.grid())
    elif trials is not None:
        search.trials = trials
    return search


def _load_recipe(name: str, folder: Path, place: str) -> ModuleType:
    shipped = {path for path in shipped_files() if path.startswith("finetune_")}
    known = sorted({path.stem for path in folder.glob("finetune_*.py")} | shipped)
    file = find_recipe(name, folder)
    if not name.isidentifier() or not file.is_file():
        raise InputError(f"{place}: no recipe {name!r:.60} in {folder}{nearest(name, known) or f' ({known})'}")
    spec = importlib.util.spec_from_file_location(name, file)
    recipe = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(recipe)
    if "callbacks" not in inspect.signature(recipe.main).parameters:
        raise InputError(f"{place}: {name} has no validation scores to search by; there are {', '.join(known)}")
    return recipe


def _objective(arguments: list[Any]) -> tuple[str, bool]:
    """Return the name of the validation score that trials are judged by, and whether more of it is better."""
    training_args = next(instance for instance in arguments if isinstance(instance, TrainingArguments))
    if training_args.eval_strategy == "no" or not training_args.load_best_model_at_end:
        raise InputError(
            "arguments: a trial is judged by the validation score of the model that it keeps; it needs an "
            "eval_strategy, and load_best_model_at_end"
        )
    metric = training_args.metric_for_best_model.removeprefix("eval_")
    return metric, training_args.greater_is_better and metric not in LOWER_IS_BETTER


def _one_of(path, node: yaml.Node, key: str, allowed: tuple[str, ...]) -> str:
    value = scalar(path, node, key)
    if value not in allowed:
        hint = nearest(value, allowed) or f"; there are {', '.join(allowed)}"
        raise InputError(f"{place(path, node)}: {value!r:.60} is unknown{hint}")
    return value


def _whole_number(path, node: yaml.Node, key: str, lowest: int) -> int:
    text = scalar(path, node, key)
    if not text.isascii() or not text.isdigit() or not lowest <= int(text[:12]) < 2**32:
        raise InputError(f"{place(path, node)}: {text!r:.60} is no whole number of at least {lowest}")
    return int(text)


class _Checker:
    """Asks the parser of a recipe about every name and value of a search."""

    def __init__(self, path, recipe: ModuleType, types: list[type]):
        self.path, self.recipe, self.lists = path, recipe, {}
        self.parser = build_parser(types, recipe.DEFAULTS)
        self.names = list(self.parser.plain_defaults)
        self.parser.error = self._refuse

    def _refuse(self, message: str) -> NoReturn:
        raise InputError(f"{self.parser.where}{one_line(message)}")

    def _check_name(self, name: str, node: yaml.Node, refused: dict[str, str]) -> None:
        self.parser.where = f"{place(self.path, node)}: "
        if name in refused:
            self._refuse(f"{name!r} does not belong here: {refused[name]}")
        if name not in self.names:
            self._refuse(f"{self.recipe.__name__} has no option {name!r:.60}{nearest(name, self.names)}")

    def _value(self, name: str, words: list[str]) -> Any:
        return getattr(self.parser.parse(words), name)

    def arguments(self, node: yaml.Node) -> list[str]:
        """Return the flags of every trial; `config` names a YAML file of the recipe."""
        argv = []
        for name, value in mapping(self.path, node).items():
            if name == "config":
                argv.append(f"--config={scalar(self.path, value, name)}")
                continue
            self._check_name(name, value, NOT_GIVEN)
            words = self._words(name, value)
            self.parser.parse(words)
            argv += words
        return argv

    def _words(self, name: str, node: yaml.Node) -> list[str]:
        if isinstance(node, yaml.SequenceNode):
            return [f"--{name}", *scalars(self.path, node, name)]
        return [f"--{name}={scalar(self.path, node, name)}"]

    def dimension(self, name: str, node: yaml.Node) -> BaseDistribution:
        """Return what an option may be."""
        self._check_name(name, node, NOT_SEARCHED)
        keys = mapping(self.path, node, ("choices", "low", "high", "log"))
        if "choices" in keys:
            if len(keys) > 1:
                self._refuse(f"{name}: give either choices, or low and high")
            return self._choices(name, keys["choices"])
        kind = self.parser._option_string_actions[f"--{name}"].type
        if kind not in (int, float):
            self._refuse(f"{name} is no number; give choices")
        if missing := [key for key in ("low", "high") if key not in keys]:
            self._refuse(f"{name}: {missing[0]} is missing")
        low, high = (self._value(name, self._words(name, keys[key])) for key in ("low", "high"))
        log = "log" in keys and _one_of(self.path, keys["log"], "log", ("true", "false")) == "true"
        if low >= high:
            self._refuse(f"{name}: low, {low}, must be below high, {high}")
        if log and low <= 0:
            self._refuse(f"{name}: on a log scale low must be above 0")
        return (IntDistribution if kind is int else FloatDistribution)(low, high, log=log)

    def _choices(self, name: str, node: yaml.Node) -> CategoricalDistribution:
        if not isinstance(node, yaml.SequenceNode) or len(node.value) < 2:
            self._refuse(f"{name}: choices must be a list of two or more")
        values: dict[str, Any] = {}
        for item in node.value:
            self.parser.where = f"{place(self.path, item)}: "
            words = self._words(name, item)
            label = " ".join(words[1:]) or scalar(self.path, item, name)
            value = self._value(name, words)
            if value in values.values():
                self._refuse(f"{name}: {label} stands here a second time")
            values[label] = value
            if isinstance(item, yaml.SequenceNode):
                self.lists.setdefault(name, {})[label] = words[1:]
        return CategoricalDistribution([*values])
