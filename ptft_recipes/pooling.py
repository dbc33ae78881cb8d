"""The folds of a cross-validation as one run: every row predicted once, by a model that had not seen it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EvalPrediction

from ptft_recipes.errors import InputError
from ptft_recipes.evaluation import format_score, split_by_class, with_intervals, write_lines
from ptft_recipes.finished_runs import PREDICTIONS, FinishedRun, read_lines, read_run, scores_of_lines
from ptft_recipes.reporting import write_text

MAY_DIFFER = {"fold", "output_dir"}


def pool_folds(folders: Sequence[str | Path]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score the predictions of all folds together, as of one run.

    The interval is over the rows, for the models as they are. That models of other folds share most of their training
    rows is not in it; no estimate of that is unbiased.

    Args:
        folders: The runs of all folds, in any order.

    Returns:
        As a run's own results, `n` being the number of rows of all folds, and in `run` the `folds` with their own
        scores; and the lines of its predictions.

    Raises:
        InputError: A fold is missing or stands twice, or the runs differ in more than the fold.

    Source: Bengio and Grandvalet, No Unbiased Estimator of the Variance of K-Fold Cross-Validation (2004).
    """
    runs = sorted((read_run(folder) for folder in folders), key=lambda run: _fold(run)["number"])
    _check_complete(runs)
    lines = [line for run in runs for line in read_lines(run.folder / PREDICTIONS)]
    first = runs[0].run
    ids, _, score, _ = scores_of_lines(lines, first["data"])
    once = np.ones(len(ids))
    rows = EvalPrediction(ids, ids)  # `score` knows what is scored
    metrics = with_intervals(lambda _, weights=None: score(once if weights is None else weights), rows)
    prints = "".join(run.run["data"]["fingerprint"]["test"] for run in runs)
    data = {name: value for name, value in first["data"].items() if name != "fold"}
    data |= {"rows": {"test": len(ids)}, "fingerprint": {"test": hashlib.sha256(prints.encode()).hexdigest()[:16]}}
    pooled = first | {
        "config": {name: value for name, value in first["config"].items() if name not in MAY_DIFFER},
        "data": data,
        "seconds": {name: round(sum(run.run["seconds"][name] for run in runs), 1) for name in first["seconds"]},
        "folds": [{"folder": str(run.folder), "metrics": split_by_class(run.metrics)[0]} for run in runs],
    }
    return {"split": "test", "metrics": metrics, "run": pooled}, lines


def write_pooled(output_dir: str | Path, results: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """Write what `pool_folds` returned as the folder of a finished run.

    Raises:
        InputError: The folder has results already.
    """
    output_dir = Path(output_dir)
    if (output_dir / "results.json").exists():
        raise InputError(f"{output_dir} holds results; choose another --output_dir")
    write_lines(output_dir / PREDICTIONS, lines)
    write_text(output_dir / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")


def table_of_folds(results: dict[str, Any]) -> str:
    """Return the scores of all rows with their intervals, and those of each fold, as Markdown."""
    folds = results["run"]["folds"]
    rows = [["metric", "all rows", *(f"fold {i}" for i in range(len(folds)))], ["---"] * (len(folds) + 2)]
    for name, value in split_by_class(results["metrics"])[0].items():
        each = (fold["metrics"][name]["value"] for fold in folds)
        rows.append([name, format_score(value), *("-" if v is None else f"{v:.3f}" for v in each)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _fold(run: FinishedRun) -> dict[str, Any]:
    fold = run.run["data"].get("fold")
    if not isinstance(fold, dict):
        raise InputError(f"{run.folder}: not a run with --fold")
    return fold


def _check_complete(runs: list[FinishedRun]) -> None:
    first, count = runs[0], _fold(runs[0])["count"]
    for run in runs[1:]:
        pairs = {**run.run["config"], "seed": run.seed}, {**first.run["config"], "seed": first.seed}
        differ = sorted(name for name in pairs[0].keys() | pairs[1].keys() if pairs[0].get(name) != pairs[1].get(name))
        differ = [name for name in differ if name not in MAY_DIFFER]
        if _fold(run)["count"] != count or _fold(run)["group_column"] != _fold(first)["group_column"]:
            differ.append("fold")
        if run.labels != first.labels:
            differ.append("the labels")
        if differ:
            raise InputError(f"{run.folder} and {first.folder} differ in {', '.join(differ)}; pool folds of one run")
    numbers = [_fold(run)["number"] for run in runs]
    if missing := sorted(set(range(count)) - set(numbers)):
        raise InputError(f"fold {', '.join(map(str, missing))} of {count} is missing: give the runs of all folds")
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise InputError(f"fold {twice[0]} of {count} stands twice")
