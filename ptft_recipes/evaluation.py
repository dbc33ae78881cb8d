"""Predict once, keep what was predicted, and report every score with its interval."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction

from ptft_recipes.energy import estimate_energy
from ptft_recipes.labels import MULTI, REGRESSION, SINGLE
from ptft_recipes.metrics import confusion_matrix, probabilities
from ptft_recipes.perplexity import before_and_after, sum_by_document
from ptft_recipes.provenance import describe_stage, peak_memory, saved_mib, seconds_since_start
from ptft_recipes.reporting import plot_confusion_matrix, plot_learning_curves, write_text
from ptft_recipes.significance import bootstrap_intervals

logger = logging.getLogger(__name__)

Metrics = Callable[..., dict[str, float]]
SCORING = "scoring %d rows, with 1,000 bootstrap samples"


def score_test_split(
    trainer, dataset, metrics: Metrics, *, problem_type: str, label_names: list[str], run: dict[str, Any]
) -> dict[str, Any]:
    """Predict the test split once, score it with 95 % bootstrap intervals, and write what a reader needs.

    Writes into `output_dir`: `results.json`, `predictions/test.jsonl`, and under `plots/` the learning
    curves and, for a single label, the confusion matrix. A test split without `labels` is predicted and not scored;
    with `--do_predict false` it is not predicted either.

    Args:
        trainer: A trained `RecipeTrainer`; all processes call this together.
        dataset: The tokenized test split, with `id`.
        metrics: `metrics(prediction, weights=None)`, from an EvalPrediction to named scores.
        problem_type: As in `PreTrainedConfig.problem_type`.
        label_names: `[labels]`.
        run: What `start_run` returned, and what the recipe added.

    Returns:
        `{"split": "test", "metrics": {name: {"value", "ci95", "n"}}, "run": {...}}`.
    """
    if not predicts_test_split(run):
        return report_test_split(trainer, None, metrics, [], run)
    prediction = trainer.predict(dataset)
    if problem_type == SINGLE and prediction.label_ids is not None and trainer.is_world_process_zero():
        predicted = np.argmax(prediction.predictions, axis=1)
        counts = confusion_matrix(predicted, prediction.label_ids, len(label_names))
        path = Path(trainer.args.output_dir) / "plots" / "confusion_matrix.png"
        plot_confusion_matrix(counts, label_names, path)
    lines = prediction_lines(dataset["id"], prediction, problem_type, label_names)
    return report_test_split(trainer, prediction, metrics, lines, run)


def report_test_split(
    trainer,
    prediction,
    metrics: Metrics,
    lines: Iterable[dict[str, Any]],
    run: dict[str, Any],
    groups: Sequence | None = None,
) -> dict[str, Any]:
    """Score what was predicted of the test split, and write what `score_test_split` writes but for its plot.

    Args:
        trainer: A trained `RecipeTrainer`; all processes call this together.
        prediction: What its `predict` returned; or with, in the place of its predictions and labels, statistics per
            example, which `metrics` makes the scores of. Without `label_ids` nothing is scored. None: nothing was
            predicted, and the results are those of training.
        metrics: `metrics(prediction, weights=None)`.
        lines: Of `predictions/test.jsonl`, one per example.
        run: What `start_run` returned, and what the recipe added.
        groups: Per example; whole groups are resampled.

    Returns:
        As `score_test_split`.
    """
    timing = {} if prediction is None else prediction.metrics
    results = {"split": "test", "metrics": {}, "run": _describe_training(trainer, timing, run)}
    if not trainer.is_world_process_zero():
        return results
    if prediction is not None:
        if prediction.label_ids is not None:
            logger.info(SCORING, len(prediction.label_ids))
            results["metrics"] = with_intervals(metrics, prediction, groups)
        write_lines(Path(trainer.args.output_dir) / "predictions" / "test.jsonl", lines)
    _finish(trainer, results)
    return results


def predicts_test_split(run: dict[str, Any]) -> bool:
    """Tell whether a run looks at the test split: not with `--do_predict false`, while settings are being chosen."""
    return run["config"].get("do_predict", True)


def score_split(trainer, dataset, metrics: Metrics, name: str) -> dict[str, dict[str, Any]]:
    """Predict a split with labels once, and log and return its scores with 95 % bootstrap intervals.

    Args:
        trainer: Whose model predicts.
        dataset: Tokenized.
        metrics: `metrics(prediction, weights=None)`.
        name: Of the model, for the log.

    Returns:
        `{metric: {"value", "ci95", "n"}}`.
    """
    logger.info(SCORING, len(dataset))
    scores = with_intervals(metrics, trainer.predict(dataset))
    overall = (f"{metric} {format_score(score)}" for metric, score in split_by_class(scores)[0].items())
    logger.info("%s: %s", name, "  ".join(overall))
    return scores


def score_held_out_text(
    trainer, held_out: dict[str, Dataset], before: dict[str, np.ndarray], run: dict[str, Any]
) -> dict[str, Any]:
    """Score held-out texts after training, beside what they scored before it, and write what a reader needs.

    The intervals are over documents, because the blocks of one document are not independent (of a single document
    they are over its blocks, and too narrow); before and after are
    resampled together, so that the interval of their ratio is a paired one. Writes into `output_dir`: `results.json`,
    `predictions/test.jsonl` with the sums per block, and the learning curves.

    Args:
        trainer: A trained `BlockTrainer`, whose `predict` returns `statistics` per block and whose `compute_metrics`
            scores their sums; all processes call this together.
        held_out: `test`, the domain's text, and `test/<name>` further ones; masked blocks with `document`.
        before: Per text what `trainer.predict` returned as predictions before training, `[blocks, statistics]`.
        run: What `start_run` returned, and what the recipe added.

    Returns:
        As `score_test_split`: the scores of `test`, e.g. `perplexity`, each also as `perplexity_before`, the ratio of
        perplexities, and the same as `perplexity/<name>` of further texts; `n` is the number of documents
        (of blocks, where there is a single document).
    """
    after = {name: trainer.predict(dataset) for name, dataset in held_out.items()}
    results = {"split": "test", "metrics": {}, "run": _describe_training(trainer, after["test"].metrics, run)}
    if not trainer.is_world_process_zero():
        return results
    for name, dataset in held_out.items():
        statistics = np.hstack([before[name], after[name].predictions])
        sums = sum_by_document(statistics, dataset["document"])
        logger.info(SCORING, len(sums))
        scores = with_intervals(partial(before_and_after, trainer.compute_metrics), EvalPrediction(sums, sums))
        suffix = name.removeprefix("test")
        results["metrics"] |= {f"{score}{suffix}": value for score, value in scores.items()}
        columns = [*(f"{column}_before" for column in trainer.statistics), *trainer.statistics]
        blocks = (
            {"document": document} | dict(zip(columns, row, strict=True))
            for document, row in zip(dataset["document"], statistics.tolist(), strict=True)
        )
        write_lines(Path(trainer.args.output_dir) / "predictions" / f"{name.replace('/', '_')}.jsonl", blocks)
    _finish(trainer, results)
    return results


def _finish(trainer, results: dict[str, Any]) -> None:
    """Write what every run leaves behind, `results.json` last: a folder that has it is a finished run."""
    output_dir, run = Path(trainer.args.output_dir), results["run"]
    if trainer.state.log_history:
        plot_learning_curves(trainer.state.log_history, output_dir / "plots" / "learning_curves.png")
    # In the model's own config, which every copy of it keeps and the next stage reads.
    trainer.model.config.lineage = run["lineage"]
    trainer.model.config.save_pretrained(output_dir)
    write_text(output_dir / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    log_results(results, output_dir)


def with_intervals(metrics: Metrics, prediction, groups: Sequence | None = None) -> dict[str, dict[str, Any]]:
    """Score rows with 95 % bootstrap intervals.

    Args:
        metrics: `metrics(prediction, weights=None)`.
        prediction: With `predictions` and `label_ids`, `[rows, ...]`.
        groups: `[rows]`: resample whole groups.

    Returns:
        `{metric: {"value", "ci95", "n"}}`.
    """
    rows = len(prediction.label_ids)
    prediction = EvalPrediction(predictions=prediction.predictions, label_ids=prediction.label_ids)
    values = metrics(prediction)
    intervals = bootstrap_intervals(lambda weights: metrics(prediction, weights=weights), rows, groups=groups)
    return {
        # JSON has no nan: an undefined score is null.
        name: {"value": None if np.isnan(value) else value, "ci95": intervals[name], "n": rows}
        for name, value in values.items()
    }


def _describe_training(trainer, test_metrics: dict[str, float], run: dict[str, Any]) -> dict[str, Any]:
    """Return `run` with what is known after training, its lineage included: every stage since the first weights."""
    state = trainer.state
    train_log = next((entry for entry in reversed(state.log_history) if "train_runtime" in entry), {})
    trainable, total = trainer.parameter_counts
    train_seconds = train_log.get("train_runtime", 0.0)
    # Of this session only: a resumed run has steps that it did not train.
    share = (state.global_step - trainer._initial_global_step) / max(state.global_step, 1)
    step = trainer.step_times.median()
    tokens = (trainer.tokens_per_epoch() or 0) * train_log.get("epoch", 0.0) * share
    stage = describe_stage(run, state.global_step)
    total_seconds = seconds_since_start()
    units = run["processes"] * (torch.get_num_threads() if run["device"] == "cpu" else 1)
    earlier = [] if stage["from_scratch"] else getattr(trainer.model.config, "lineage", [])
    return run | {
        "lineage": [*earlier, stage],
        "steps": state.global_step,
        "epochs": train_log.get("epoch"),
        "best_step": state.best_global_step,
        "validation": {trainer.args.metric_for_best_model: _finite(state.best_metric)},
        "trainable_parameters": trainable,
        "total_parameters": total,
        "seconds": {
            "train": round(train_seconds, 1),
            "test": round(test_metrics.get("test_runtime", 0.0), 1),
            "total": round(total_seconds, 1),
        },
        "energy": estimate_energy(run["hardware"], run["device"], units, total_seconds),
        "milliseconds_per_step": None if step is None else round(1000 * step, 1),
        "tokens_per_second": round(tokens / train_seconds) if tokens and train_seconds else None,
        "peak_memory_gib": peak_memory(trainer.args.device.type),
        "saved_mib": round(saved_mib(Path(trainer.args.output_dir)), 2),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def prediction_lines(ids, prediction, problem_type: str, label_names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield per example of a sequence classifier: id, gold, predicted, probabilities."""
    logits, gold = prediction.predictions, prediction.label_ids

    def named(row):
        if problem_type == REGRESSION:
            return float(np.reshape(row, -1)[0])
        if problem_type == MULTI:
            return [name for name, present in zip(label_names, row, strict=True) if present]
        return label_names[int(row)]

    scores = None if problem_type == REGRESSION else probabilities(logits, problem_type)
    for i, example in enumerate(ids):
        choice = logits[i] if scores is None else scores[i] >= 0.5 if problem_type == MULTI else scores[i].argmax()
        line = {"id": example, "gold": None if gold is None else named(gold[i]), "predicted": named(choice)}
        if scores is not None:
            values = [round(float(value), 6) for value in scores[i]]
            line["probabilities"] = dict(zip(label_names, values, strict=True))
        yield line


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, in a folder that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def split_by_class(metrics: dict[str, dict]) -> tuple[dict[str, dict], dict[str, dict[str, dict]]]:
    """Split scores into the overall ones and, per label, those named `score/label`."""
    by_class: dict[str, dict[str, dict]] = {}
    for name, score in metrics.items():
        kind, slash, label = name.partition("/")
        if slash:
            by_class.setdefault(label, {})[kind] = score
    return {name: score for name, score in metrics.items() if "/" not in name}, by_class


def format_score(score: dict[str, Any], number: Callable[[float], str] = "{:.3f}".format) -> str:
    """Return a score with its interval.

    >>> format_score({"value": 0.7213, "ci95": [0.7071, 0.7355], "n": 3740})
    '0.721 [0.707, 0.736]'
    """
    if score["value"] is None:
        return "undefined"
    low, high = score["ci95"]
    return number(score["value"]) + (f" [{number(low)}, {number(high)}]" if low is not None else "")


def log_results(results: dict[str, Any], output_dir: Path) -> None:
    """Log the scores as a table: per class in a row each, the rest in a line each."""
    if not results["metrics"]:
        unlabelled = f"no labels, so predicted and not scored: {output_dir / 'predictions' / 'test.jsonl'}"
        logger.info("test: %s", unlabelled if predicts_test_split(results["run"]) else "not predicted")
        return
    logger.info("test, with 95 % bootstrap intervals:")
    overall, by_class = split_by_class(results["metrics"])
    for name, score in overall.items():
        logger.info("  %-24s %s", name, format_score(score))
    for label, scores in by_class.items():
        row = "  ".join(f"{name} {format_score(score)}" for name, score in scores.items())
        logger.info("  %-24s %s", label, row)
    run = results["run"]
    seconds = run["seconds"]
    logger.info(
        "%s: model, results.json, plots, card; %.0f s in all, %.0f s of it training",
        output_dir,
        seconds["total"],
        seconds["train"],
    )
    logger.info(
        "%s of %s weights trained; %.2f MiB saved; %speak memory %s",
        f"{run['trainable_parameters']:,}",
        f"{run['total_parameters']:,}",
        run["saved_mib"],
        "" if run["milliseconds_per_step"] is None else f"{run['milliseconds_per_step']} ms per step; ",
        ", ".join(f"{gib:.2f} GiB ({kind})" for kind, gib in run["peak_memory_gib"].items()),
    )
