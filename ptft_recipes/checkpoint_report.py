"""What is worth knowing of a trained checkpoint beyond its scores, and the files that say it."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import EvalPrediction

from ptft_recipes.calibration import (
    apply_thresholds,
    calibration_metrics,
    confidence_and_truth,
    fit_temperature,
    fit_thresholds,
    reliability_curve,
)
from ptft_recipes.checkpoint_tasks import MaskedLMTask
from ptft_recipes.errors import InputError
from ptft_recipes.evaluation import format_score, with_intervals, write_lines
from ptft_recipes.labels import MULTI, REGRESSION, SINGLE
from ptft_recipes.metrics import confusion_matrix, probabilities
from ptft_recipes.perplexity import masked_lm_metrics, pseudo_log_likelihood, sum_by_document
from ptft_recipes.perturbations import PERTURBATIONS, perturb
from ptft_recipes.provenance import peak_memory, seconds_since_start
from ptft_recipes.reporting import plot_confusion_matrix, plot_reliability, write_text
from ptft_recipes.significance import paired_bootstrap
from ptft_recipes.slices import score_slices, slice_by_quartile, slice_by_value
from ptft_recipes.splits import SPLITS
from ptft_recipes.trained_checkpoints import Predicted
from ptft_recipes.tuning import count_parameters

logger = logging.getLogger(__name__)

RESAMPLES = 1000


@dataclass
class EvaluationArguments:
    """What is looked at."""

    _argument_group_name = "evaluation"

    split: str = field(default="test", metadata={"help": f"{', '.join(SPLITS)}"})
    slice_columns: list[str] = field(default_factory=list, metadata={"help": "score their values apart"})
    group_column: str | None = field(
        default=None, metadata={"help": "documents, speakers: intervals over them, not over rows"}
    )
    fit_on_validation: bool = field(default=False, metadata={"help": "a temperature, and decision thresholds"})
    perturbations: list[str] = field(
        default_factory=list, metadata={"help": f"score the text so changed, too: {' '.join(PERTURBATIONS)}"}
    )
    pseudo_perplexity_blocks: int = field(
        default=0, metadata={"help": "of masked language models: how many blocks to score token by token"}
    )

    def __post_init__(self):  # noqa: D105
        if self.split not in SPLITS:
            raise InputError(f"--split {self.split}: choose one of {', '.join(SPLITS)}")
        if unknown := [name for name in self.perturbations if name not in PERTURBATIONS]:
            raise InputError(f"--perturbations {unknown[0]}: choose from {', '.join(PERTURBATIONS)}")

    def columns(self) -> list[str]:
        """Return the columns that are needed beyond text and labels."""
        return list(dict.fromkeys([*self.slice_columns, *([self.group_column] if self.group_column else [])]))


def check_evaluation(arguments: EvaluationArguments, task, raw: DatasetDict) -> None:
    """Raise an InputError for what the splits, or the task, do not allow; before a model is loaded."""
    if arguments.split not in raw:
        raise InputError(f"--split {arguments.split}: there is none; the splits are {', '.join(raw)}")
    rows = raw[arguments.split]
    unlabelled = task.truth and task.truth not in rows.column_names
    if unlabelled and (arguments.slice_columns or arguments.perturbations):
        raise InputError(f"--split {arguments.split}: its rows have no labels, so nothing can be scored")
    problem_type = getattr(task, "labels", {}).get("problem_type")
    if arguments.fit_on_validation and (problem_type in (None, REGRESSION)):
        raise InputError("--fit_on_validation: only classifiers of sequences have temperatures and thresholds")
    if arguments.fit_on_validation and ("validation" not in raw or arguments.split == "validation"):
        what = "it is what is scored" if arguments.split == "validation" else "there is none"
        raise InputError(f"--fit_on_validation needs a validation split to fit on, apart from the scored one: {what}")
    if refused := [name for name in arguments.perturbations if name not in task.perturbations]:
        allowed = ", ".join(task.perturbations) or "none is"
        raise InputError(f"--perturbations {refused[0]}: not for this task ({allowed})")
    if arguments.pseudo_perplexity_blocks and not isinstance(task, MaskedLMTask):
        raise InputError("--pseudo_perplexity_blocks is for masked language models")


def evaluate_slices(predicted: Predicted, rows: Dataset, columns: Sequence[str], groups) -> dict[str, dict]:
    """Score the rows by quarters of their length, and by the values of columns."""
    score = partial(with_intervals, predicted.metrics)
    slices = slice_by_quartile(predicted.lengths, "length")
    for column in columns:
        slices |= slice_by_value(rows[column][:], column)
    found = score_slices(score, predicted.prediction, slices, groups)
    for name, scores in found.items():
        line = "  ".join(f"{metric} {format_score(score)}" for metric, score in list(scores.items())[:3])
        logger.info("  %-32s %6d rows  %s", name[:32], next(iter(scores.values()))["n"], line)
    return found


def evaluate_probabilities(predicted: Predicted, labels: dict[str, Any], groups) -> dict[str, dict]:
    """Score the calibration of a classifier."""
    metrics = partial(calibration_metrics, problem_type=labels["problem_type"])
    found = with_intervals(metrics, predicted.prediction, groups)
    _log("calibration", found)
    return found


def draw_probabilities(
    predicted: Predicted, labels: dict[str, Any], fitted: dict[str, Any] | None, output_dir: Path
) -> None:
    """Draw the reliability diagram of a classifier, also with its temperature, and the confusion matrix."""
    (problem_type, names), prediction = labels.values(), predicted.prediction
    scores, curves = probabilities(prediction.predictions, problem_type), {}
    for temperature in (1.0, *([fitted["temperature"]] if fitted else [])):
        scaled = probabilities(prediction.predictions / temperature, problem_type)
        claims = confidence_and_truth(scaled, prediction.label_ids, problem_type)
        curves[f"temperature {temperature:.2f}"] = reliability_curve(*claims)
    plot_reliability(curves, output_dir / "plots" / "reliability.png")
    if problem_type == SINGLE:
        counts = confusion_matrix(scores.argmax(axis=1), prediction.label_ids, len(names))
        plot_confusion_matrix(counts, names, output_dir / "plots" / "confusion_matrix.png")


def fit_on_validation(validation: Predicted, predicted: Predicted, labels: dict[str, Any], groups) -> dict[str, Any]:
    """Fit a temperature and, where a decision is one of two, thresholds on validation; score them on the split.

    Returns:
        `temperature`, and `calibration` with it; `thresholds` per label, and for the `metrics` with them
        `{"value", "ci95", "n", "difference": {"value", "ci95", "p_value"}}`, the difference to the scores at 0.5.
    """
    problem_type, names = labels.values()
    logits, gold = validation.prediction.predictions, validation.prediction.label_ids
    theirs, rows = predicted.prediction.predictions, predicted.prediction.label_ids
    temperature = fit_temperature(logits, gold, problem_type)
    scaled = EvalPrediction(theirs / temperature, rows)
    calibrated = with_intervals(partial(calibration_metrics, problem_type=problem_type), scaled, groups)
    found: dict[str, Any] = {"temperature": temperature, "calibration": calibrated}
    logger.info("temperature %.3f, from %d validation rows", temperature, len(gold))
    _log("calibration with it", calibrated)
    if problem_type == MULTI or len(names) == 2:
        thresholds = fit_thresholds(logits, gold, problem_type)
        decided = names if problem_type == MULTI else names[1:]
        found["thresholds"] = dict(zip(decided, thresholds.tolist(), strict=True))
        changed = EvalPrediction(apply_thresholds(theirs, thresholds, problem_type), rows)
        found["metrics"] = _compare(predicted, changed, groups)
        logger.info("thresholds: %s", ", ".join(f"{n} {t:.3f}" for n, t in found["thresholds"].items()))
        _log("with them, and the difference", found["metrics"])
    return found


def evaluate_robustness(
    task, trainer, rows: Dataset, predicted: Predicted, names: Sequence[str], seed: int, groups
) -> dict[str, dict]:
    """Score the rows perturbed, and compare with the rows as they are, pair by pair.

    Returns:
        Per perturbation and metric `{"value", "ci95", "n", "difference": {"value", "ci95", "p_value"}}`.
    """
    found = {}
    for name in names:
        changed = task.predict(trainer, perturb(rows, task.text_columns, name, seed))
        found[name] = _compare(predicted, changed.prediction, groups)
        _log(f"{name}, and the difference", found[name])
    return found


def evaluate_pseudo_perplexity(task: MaskedLMTask, trainer, rows: Dataset, count: int, seed: int) -> dict[str, Any]:
    """Score random blocks with each token masked alone; the interval is over their documents."""
    blocks = task.blocks(rows)
    chosen = blocks.select(np.random.default_rng(seed).permutation(len(blocks))[:count])
    statistics = np.array(
        [(*pseudo_log_likelihood(trainer.model, task.tokenizer, ids), 0) for ids in chosen["input_ids"]]
    )
    sums = sum_by_document(statistics, chosen["document"])
    score = with_intervals(masked_lm_metrics, EvalPrediction(sums, sums))["perplexity"] | {"blocks": len(chosen)}
    _log("token by token", {"pseudo_perplexity": score})
    return score


def _compare(predicted: Predicted, changed: EvalPrediction, groups) -> dict[str, dict]:
    """Score other predictions of the same rows, and take the paired difference."""
    both = EvalPrediction(
        np.concatenate([changed.predictions, predicted.prediction.predictions]),
        np.concatenate([changed.label_ids, predicted.prediction.label_ids]),
    )

    def overall(weights):
        return {name: v for name, v in predicted.metrics(both, weights=weights).items() if "/" not in name}

    scores = with_intervals(predicted.metrics, changed, groups)
    compared = paired_bootstrap(overall, len(changed.label_ids), RESAMPLES, groups=groups)
    return {
        name: scores[name] | {"difference": {"value": d.value, "ci95": d.interval, "p_value": d.p_value}}
        for name, d in compared.items()
    }


def _log(what: str, scores: dict[str, dict]) -> None:
    logger.info("%s:", what)
    for name, score in scores.items():
        difference = f"  {_signed(score['difference'])}" if "difference" in score else ""
        logger.info("  %-24s %s%s", name, format_score(score), difference)


def _signed(difference: dict[str, Any]) -> str:
    if None in (difference["value"], difference["ci95"][0]):
        return ""
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(difference["value"], *difference["ci95"])


def write_evaluation(
    trainer, split: str, predicted: Predicted, run: dict[str, Any], found: dict[str, Any]
) -> dict[str, Any]:
    """Write the predictions in the order of the data, and `results.json`, last.

    Args:
        trainer: That predicted.
        split: Name of what was predicted.
        predicted: Its predictions.
        run: What `start_run` returned, and what the recipe added.
        found: What the other functions returned, by name; `metrics` is among them.

    Returns:
        `{"split", "metrics": {name: {"value", "ci95", "n"}}, "run", ...}`, with all that was found.
    """
    output_dir = Path(trainer.args.output_dir)
    write_lines(output_dir / "predictions" / f"{split}.jsonl", predicted.lines)
    run = run | {
        "lineage": getattr(trainer.model.config, "lineage", []),
        "total_parameters": count_parameters(trainer.model)[1],
        "seconds": {"predict": round(predicted.seconds, 1), "total": round(seconds_since_start(), 1)},
        "peak_memory_gib": peak_memory(trainer.args.device.type),
    }
    results = {"split": split, "metrics": found["metrics"], "run": run} | found
    write_text(output_dir / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    logger.info("%s: results.json, predictions, plots; %.0f s", output_dir, run["seconds"]["total"])
    return results


def score_split_and_log(predicted: Predicted, split: str, groups) -> dict[str, dict]:
    """Return all scores of a split with intervals; none where it has no labels."""
    if predicted.prediction.label_ids is None:
        logger.info("%s: no labels, so predicted and not scored", split)
        return {}
    scores = with_intervals(predicted.metrics, predicted.prediction, groups)
    _log(f"{split}, with 95 % bootstrap intervals", scores)
    return scores
