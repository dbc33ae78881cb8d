"""The runs of a study: planned, checked by their recipes, and how long they take."""

import contextlib
import hashlib
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ptft_recipes.errors import InputError, one_line
from ptft_recipes.evaluation import format_score
from ptft_recipes.reporting import write_text
from ptft_recipes.resuming import differences, is_finished
from ptft_recipes.study_files import PREVIOUS, STUDY_FILE, Study

FINISHED, FAILED, NOT_RUN = "finished", "failed", "not run"
_locks: list[FileLock] = []  # of this process, held until it ends


@dataclass(eq=False)
class Cell:
    """One run of a study.

    Args:
        name: Of the cell, for people and for its log.
        arm: Of the study; None of a stage that others start from.
        seed: Of the run.
        recipe: Its file.
        arguments: Flags, without `--output_dir`.
        output_dir: Of the run.
        needs: The run that this one starts from.
        where: File and line of the study, for errors.
        config: The configuration as its recipe resolves it.
    """

    name: str
    arm: str | None
    seed: int
    recipe: Path
    arguments: list[str]
    output_dir: Path
    needs: "Cell | None"
    where: str
    config: dict[str, Any] = field(default_factory=dict)

    def is_finished(self) -> bool:
        """Tell whether its folder holds a run that got to its end."""
        return is_finished(self.output_dir)


def plan_cells(study: Study) -> list[Cell]:
    """Return the runs of a study in the order in which to start them: all arms with the first seed, and so on.

    A stage that others start from is one cell for all arms and seeds with the same recipe and arguments.

    Args:
        study: As read.

    Raises:
        InputError: Two arms are the same.
    """
    cells: dict[tuple, Cell] = {}
    for seed in study.seeds:
        for arm, stages in study.arms.items():
            previous = None
            for number, stage in enumerate(stages, 1):
                arguments, last = {"seed": str(seed)} | stage.arguments, number == len(stages)
                same = [stage.recipe.stem, sorted(arguments.items()), previous and previous.name]
                key = (last, json.dumps(same))
                if last and key in cells:
                    raise InputError(f"{stage.where}: the arms {cells[key].arm!r} and {arm!r} are the same")
                if last:
                    name, folder = f"{arm}-seed{seed}", study.folder(arm, seed)
                else:
                    name = f"{stage.recipe.stem}-{hashlib.sha256(key[1].encode()).hexdigest()[:8]}"
                    folder = study.output_dir / "stages" / name
                if key not in cells:
                    own_seed = int(arguments["seed"])
                    flags = _flags(arguments, previous)
                    cells[key] = Cell(
                        name, arm if last else None, own_seed, stage.recipe, flags, folder, previous, stage.where
                    )
                previous = cells[key]
    return list(cells.values())


def check_cells(cells: list[Cell]) -> None:
    """Let the recipe of every cell check its arguments, and compare finished cells with what they were run with.

    Args:
        cells: Of a study; gets their `config`.

    Raises:
        InputError: A recipe refuses the arguments of a cell, or a finished one was run with others.
    """
    modules = {recipe: load_main(recipe) for recipe in dict.fromkeys(cell.recipe for cell in cells)}
    for cell in cells:
        cell.config = _resolve(modules[cell.recipe], cell)
        if not cell.is_finished():
            continue
        try:
            ran = _results(cell)["run"]
            changed = differences({"config": ran["config"]}, {"config": cell.config}, may_grow=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{cell.output_dir}/results.json cannot be read: {one_line(repr(error))}") from None
        if changed:
            listed = "; ".join(f"{name}: {then} then, now {now}" for name, (then, now) in changed.items())
            raise InputError(
                f"{cell.output_dir} was run with other arguments ({listed}). Choose another --output_dir for the "
                "study, or delete the folder to run the cell anew"
            )


def open_study(study: Study) -> None:
    """Keep other processes out of the folder of a study until this one ends, and write down there what is run.

    Raises:
        InputError: Another process runs there, or the folder cannot be written to.
    """
    try:
        study.output_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(study.output_dir / ".lock", timeout=0, is_singleton=True)
        lock.acquire()
        _locks.append(lock)
        write_text(study.output_dir / STUDY_FILE, study.text)
    except Timeout:
        raise InputError(f"another process runs the study in {study.output_dir}; wait for it, or stop it") from None
    except OSError as error:
        raise InputError(f"--output_dir {study.output_dir} cannot be used: {one_line(error)}") from error


def estimate_seconds(cells: list[Cell]) -> dict[Cell, float | None]:
    """Return for each unfinished cell the mean time of the finished ones of its arm; None where there is none yet.

    Args:
        cells: Of a study.
    """
    measured: dict[str, list[float]] = {}
    for cell in cells:
        if cell.arm is not None and cell.is_finished():
            measured.setdefault(cell.arm, []).append(_results(cell)["run"]["seconds"]["total"])
    means = {arm: sum(seconds) / len(seconds) for arm, seconds in measured.items()}
    return {cell: means.get(cell.arm) for cell in cells if not cell.is_finished()}


def describe_left(cells: list[Cell], slots: int) -> str:
    """Say how long the unfinished cells of a study will take, as far as that is known.

    Args:
        cells: Of a study.
        slots: How many run side by side.
    """
    estimates = estimate_seconds(cells)
    known = [seconds for seconds in estimates.values() if seconds is not None]
    if not estimates:
        return "nothing left"
    unknown = len(estimates) - len(known)
    cells_of = f"{unknown} cell{'s' * (unknown != 1)}"
    if not known:
        return f"unknown time left, {cells_of}"
    return f"about {format_seconds(sum(known) / slots)} left" + f", and {cells_of} of unknown time" * bool(unknown)


def format_seconds(seconds: float) -> str:
    """Return a time as people say it.

    >>> format_seconds(95), format_seconds(400), format_seconds(9000)
    ('95 s', '7 min', '2 h 30 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Says in one line what became of a cell: its state, score and seconds, and when the rest will be done.

    Args:
        cells: Of the study.
        slots: How many run side by side.
    """

    def __init__(self, cells: list[Cell], slots: int):  # noqa: D107
        self.cells, self.slots = cells, slots
        self.ended = sum(cell.is_finished() for cell in cells)

    def __call__(self, cell: Cell, state: str, seconds: float, reason: str) -> None:  # noqa: D102
        self.ended += 1
        parts = [
            state,
            f"{seconds:.0f} s",
            reason or main_score(_results(cell)),
            describe_left(self.cells, self.slots),
        ]
        width = len(str(len(self.cells)))
        print(f"[{self.ended:{width}}/{len(self.cells)}] {cell.name}: {' | '.join(filter(None, parts))}", flush=True)


def main_score(results: dict[str, Any]) -> str:
    """Return the score by which a run chose its epoch, with its interval."""
    name = next(iter(results["run"].get("validation", {})), None)
    scores = results["metrics"]
    name = name if name in scores else next(iter(scores), None)
    return f"{name} {format_score(scores[name])}" if name else ""


def _results(cell: Cell) -> dict[str, Any]:
    return json.loads((cell.output_dir / "results.json").read_text(encoding="utf-8"))


def _flags(arguments: dict[str, str | list[str]], previous: Cell | None) -> list[str]:
    def fill(value: str) -> str:
        return value.replace(PREVIOUS, str(previous.output_dir)) if previous else value

    flags: list[str] = []
    for name, value in arguments.items():
        flags += [f"--{name}", *map(fill, value)] if isinstance(value, list) else [f"--{name}={fill(value)}"]
    return flags


def load_main(recipe: Path) -> Callable[..., Any]:
    """Return the `main` of a recipe's file.

    Raises:
        InputError: It cannot be imported, or has none.
    """
    name = f"recipe_{recipe.stem}"  # a copy may be called like a package
    spec = importlib.util.spec_from_file_location(name, recipe)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        return module.main
    except Exception as error:  # of a copy, whatever it holds
        raise InputError(f"{recipe} cannot be imported: {type(error).__name__}: {one_line(error)}") from error


def _resolve(main, cell: Cell) -> dict[str, Any]:
    """Return the configuration that a recipe makes of a cell's arguments."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([*cell.arguments, f"--output_dir={cell.output_dir}", "--print_config"])
    except SystemExit as stop:
        if stop.code:
            message = err.getvalue().strip().partition(": error: ")[2] or err.getvalue().strip()
            raise InputError(f"{cell.where}: {cell.recipe.stem}: {message}") from None
    return yaml.safe_load(out.getvalue())
