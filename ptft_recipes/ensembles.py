"""Finished runs of one task as one system: their outputs averaged, their votes counted, their weights averaged."""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EvalPrediction

from ptft_recipes.data import DatasetArguments
from ptft_recipes.errors import InputError
from ptft_recipes.evaluation import format_score, prediction_lines, write_lines
from ptft_recipes.finished_runs import (
    PREDICTIONS,
    FinishedRun,
    check_metric,
    classifier_scores,
    how_tests_differ,
    read_run,
)
from ptft_recipes.labels import MULTI, REGRESSION
from ptft_recipes.metrics import LOWER_IS_BETTER
from ptft_recipes.reporting import write_text
from ptft_recipes.significance import bootstrap_intervals

logger = logging.getLogger(__name__)

# Of config.json, what may differ between models of one architecture.
NOT_ARCHITECTURE = {
    "_name_or_path", "architectures", "averaged_runs", "dtype", "id2label", "label2id", "lineage", "problem_type",
    "transformers_version",
}  # fmt: skip
# Probabilities are written with six digits: a 0 among them is less than this.
SMALLEST = 5e-7


def read_members(folders: Sequence[str], metric: str | None = None) -> list[FinishedRun]:
    """Read finished runs of a sequence classifier that can be put together.

    Args:
        folders: Of two runs or more.
        metric: To score them by; that by which the first one chose its epoch when None.

    Raises:
        InputError: A run is not finished or damaged, or has no such score on test or validation; or their test data,
            labels or architectures differ, and how.
    """
    if len({Path(folder).resolve() for folder in folders}) < max(len(folders), 2):
        raise InputError("--runs: give the folders of two different finished runs, or more")
    members = [read_run(folder) for folder in folders]
    for member in members:
        if "problem_type" not in member.run["data"]:
            raise InputError(f"{member.folder}: a run of {member.run['recipe']}, not of a sequence classifier")
        if difference := how_tests_differ(member, members[0]) or _how_architectures_differ(member, members[0]):
            raise InputError(f"{member.folder} does not go with {members[0].folder}: {difference}")
        check_metric(member, metric := metric or members[0].main_metric)
        if None in _validation(member) or _validation(member)[0] != _validation(members[0])[0]:
            raise InputError(f"{member.folder}: {_validation(member)} is no validation score to rank the runs by")
    return [dataclasses.replace(member, main_metric=metric) for member in members]


def _how_architectures_differ(one: FinishedRun, other: FinishedRun) -> str:
    configs = [json.loads((run.folder / "config.json").read_text(encoding="utf-8")) for run in (one, other)]
    here, there = ({k: v for k, v in config.items() if k not in NOT_ARCHITECTURE} for config in configs)
    name = next((name for name in here | there if here.get(name) != there.get(name)), None)
    return f"another architecture: {name} {here.get(name)}, there {there.get(name)}" if name else ""


def with_arguments_of(member: FinishedRun, arguments: DatasetArguments) -> DatasetArguments:
    """Return the arguments of the data with the values that a run was given: its files, columns, lengths.

    Args:
        member: The run.
        arguments: As parsed.
    """
    names = [field.name for field in dataclasses.fields(arguments)]
    return dataclasses.replace(arguments, **{k: v for k, v in member.run["config"].items() if k in names})


def read_outputs(member: FinishedRun) -> np.ndarray:
    """Return what a run predicted of the test split: probabilities `[rows, labels]`, or numbers `[rows, 1]`."""
    with (member.folder / PREDICTIONS).open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    if member.run["data"]["problem_type"] == REGRESSION:
        return np.array([[line["predicted"]] for line in lines], dtype=float)
    return np.array([[line["probabilities"][name] for name in member.labels] for line in lines], dtype=float)


def to_logits(outputs: np.ndarray, problem_type: str) -> np.ndarray:
    """Return logits with these probabilities; numbers of a regression as they are.

    Args:
        outputs: `[..., rows, labels]`.
        problem_type: As in `PreTrainedConfig.problem_type`.
    """
    if problem_type == REGRESSION:
        return outputs
    chances = np.clip(outputs, SMALLEST, 1 - SMALLEST)
    return np.log(chances) - np.log1p(-chances) if problem_type == MULTI else np.log(chances)


def average_logits(outputs: np.ndarray, problem_type: str) -> np.ndarray:
    """Average logits: of one label per row, that is the geometric mean of the probabilities, normalised.

    Args:
        outputs: Probabilities, or numbers, `[members, rows, labels]`.
        problem_type: As in `PreTrainedConfig.problem_type`.

    Returns:
        Logits `[rows, labels]`.

    Source: Hinton, Training Products of Experts (2002), section 1.
    """
    return to_logits(outputs, problem_type).mean(axis=0)


def average_probabilities(outputs: np.ndarray, problem_type: str) -> np.ndarray:
    """Average probabilities.

    Args:
        outputs: As for `average_logits`.
        problem_type: Likewise.

    Returns:
        Logits `[rows, labels]`.

    Source: Lakshminarayanan et al., Deep Ensembles (2017), section 2.4.
    """
    return to_logits(outputs.mean(axis=0), problem_type)


def majority_vote(outputs: np.ndarray, problem_type: str) -> np.ndarray:
    """Let each member vote for its label, or for and against each label; the mean probability decides between equals.

    Args:
        outputs: Probabilities `[members, rows, labels]`.
        problem_type: Not of a regression.

    Returns:
        Logits `[rows, labels]` whose probabilities are, but for a thousandth, the shares of the votes.
    """
    votes = outputs >= 0.5 if problem_type == MULTI else np.eye(outputs.shape[-1])[outputs.argmax(axis=-1)]
    shares = 0.999 * votes.mean(axis=0) + 0.001 * outputs.mean(axis=0)
    return to_logits(shares, problem_type)


def combine_outputs(members: list[FinishedRun]) -> dict[str, np.ndarray]:
    """Return the logits `[rows, labels]` of every way to combine what the members predicted of the test split."""
    outputs, problem_type = np.stack([read_outputs(member) for member in members]), _problem_type(members)
    if problem_type == REGRESSION:
        return {"mean": average_logits(outputs, problem_type)}
    ways = {"mean of logits": average_logits, "mean of probabilities": average_probabilities, "vote": majority_vote}
    return {name: combine(outputs, problem_type) for name, combine in ways.items()}


def _problem_type(members: list[FinishedRun]) -> str:
    return members[0].run["data"]["problem_type"]


def is_better(metric: str) -> Callable[[float, float], bool]:
    """Return whether a first score is better than a second."""
    return float.__lt__ if metric in LOWER_IS_BETTER or metric.endswith("loss") else float.__gt__


def by_validation(members: list[FinishedRun]) -> list[FinishedRun]:
    """Return the members, best validation score first: that by which they chose their epoch."""
    best_is_low = is_better(_validation(members[0])[0])(0.0, 1.0)
    return sorted(members, key=lambda member: _validation(member)[1], reverse=not best_is_low)


def _validation(member: FinishedRun) -> tuple[str | None, float | None]:
    return next(iter(member.run.get("validation", {}).items()), (None, None))


def score_systems(systems: dict[str, np.ndarray], members: list[FinishedRun], output_dir: Path) -> dict[str, Any]:
    """Score combined systems on the test split, beside their members, and write what a reader needs.

    The intervals are bootstrap intervals over the test rows, of these members: the same samples for a system, its
    members, and their difference, which is therefore a paired one. They say nothing about other seeds. Writes
    `predictions/<system>.jsonl`, `ensembles.json` and `ensembles.md`.

    Args:
        systems: Logits `[rows, labels]` by name.
        members: What they were made of.
        output_dir: Folder for the files.

    Returns:
        `{"metric", "rows", "best", "systems": {name: {"value", "ci95", "minus_mean", "minus_best", ...}}}`, members
        by their folders among the systems; `best` is the best member on validation.
    """
    first, metric = members[0], members[0].main_metric
    problem_type, truth = _problem_type(members), first.truth
    scored = {str(member.folder): member for member in members}
    best = str(by_validation(members)[0].folder)
    for name, logits in systems.items():
        lines = list(prediction_lines(first.ids, EvalPrediction(logits, None), problem_type, first.labels))
        lines = [line | {"gold": gold} for line, gold in zip(lines, truth, strict=True)]
        write_lines(output_dir / "predictions" / f"{name.replace(' ', '_')}.jsonl", lines)
        score, count_scores = classifier_scores(lines, problem_type, first.labels)
        scored[name] = dataclasses.replace(first, score=score, count_scores=count_scores)

    def compare(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = {name: system.scores(weights, metric) for name, system in scored.items()}
        mean = np.mean([values[str(member.folder)] for member in members], axis=0)
        found = {(str(member.folder), "score"): values[str(member.folder)] for member in members}
        found["members", "score"] = mean
        for name in systems:
            found |= {
                (name, "score"): values[name],
                (name, "minus_mean"): values[name] - mean,
                (name, "minus_best"): values[name] - values[best],
            }
        return found

    logger.info("scoring %d systems on %d rows, with 1,000 bootstrap samples", len(scored), len(first.ids))
    values = compare(np.ones((1, len(first.ids))))
    intervals = bootstrap_intervals(compare, len(first.ids), vectorized=True)
    report: dict[str, Any] = {"metric": metric, "rows": len(first.ids), "best": best, "systems": {}}
    for name, kind in values:
        score = {"value": float(values[name, kind][0]), "ci95": intervals[name, kind], "n": len(first.ids)}
        report["systems"].setdefault(name, {})[kind] = score
    write_text(output_dir / "ensembles.json", json.dumps(report, indent=2) + "\n")
    write_text(output_dir / "ensembles.md", format_systems(report) + "\n")
    return report


def log_systems(report: dict[str, Any]) -> None:
    """Log the report of `score_systems`, a line per system."""
    logger.info("test %s of %d rows, with 95 %% bootstrap intervals over them:", report["metric"], report["rows"])
    for line in format_systems(report).splitlines():
        logger.info(line)


def format_systems(report: dict[str, Any]) -> str:
    """Return the report of `score_systems` as a Markdown table."""
    lines = [f"| system | test {report['metric']} | minus the mean of the runs | minus the best run on validation |"]
    lines.append("|---" * 4 + "|")
    for name, scores in report["systems"].items():
        shown = "mean of the runs" if name == "members" else name + ", best on validation" * (name == report["best"])
        gains = [scores.get(kind) for kind in ("minus_mean", "minus_best")]
        signed = ["+" * (gain["value"] >= 0) + format_score(gain) if gain else "" for gain in gains]
        lines.append(f"| {shown} | {format_score(scores['score'])} | {' | '.join(signed)} |")
    return "\n".join(lines)
