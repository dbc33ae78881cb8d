"""What finished runs left behind, read strictly, and scored again from what they predicted of each test example."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ptft_recipes.answer_metrics import answer_metrics, answer_statistics
from ptft_recipes.errors import InputError, nearest, one_line
from ptft_recipes.evaluation import split_by_class
from ptft_recipes.labels import MULTI, REGRESSION
from ptft_recipes.metrics import multi_label_scores, regression_scores, scores_of_counts, single_label_scores
from ptft_recipes.perplexity import STATISTICS, masked_lm_metrics, sum_by_document
from ptft_recipes.resuming import is_finished
from ptft_recipes.tag_metrics import tag_metrics, tag_statistics
from ptft_recipes.text_metrics import text_metrics, text_statistics

PREDICTIONS = "predictions/test.jsonl"
# A score that is made again may differ by this much, because probabilities are written with six digits.
TOLERANCE = 0.005
DIGITS = 1e-6

Scores = Callable[[np.ndarray], dict[str, float]]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run and its scores as functions of how often each test example counts.

    Args:
        folder: Of the run.
        run: As `results.json` has it.
        main_metric: By which it chose its epoch.
        metrics: The scores over all of the test split, as `results.json` has them.
        ids: `[rows]`, of the test examples, or of documents.
        truth: `[rows]`, what is to be predicted of each: it must be the same in all runs that are compared.
        labels: The label names, if there are any.
        score: From weights `[rows]` to named scores.
        count_scores: From weights `[samples, rows]` to `[samples]` for each name, of the scores that counts make.
    """

    folder: Path
    run: dict[str, Any]
    main_metric: str
    metrics: dict[str, dict[str, Any]]
    ids: list[str]
    truth: list[Any]
    labels: list[str]
    score: Scores
    count_scores: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.run["seed"]

    def scores(self, weights: np.ndarray, metric: str) -> np.ndarray:
        """Return a score `[samples]` for weights `[samples, rows]`."""
        if self.count_scores is not None and metric in (found := self.count_scores(weights)):
            return found[metric]
        return np.array([self.score(sample)[metric] for sample in weights])


def read_run(folder: str | Path) -> FinishedRun:
    """Read a finished run, and check that its predictions are those that its scores were made of.

    Args:
        folder: The output folder of a recipe.

    Raises:
        InputError: It is no finished run, or a file of it is damaged, or of another run; the message says which.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder")
    if not is_finished(folder):
        there = [name for name in ("config.yaml", "results.json") if (folder / name).exists()]
        if not there and not list(folder.glob("checkpoint-*")):
            raise InputError(f"{folder}: not the output folder of a run, which has results.json")
        raise InputError(f"{folder}: the run in it is not finished; its own command goes on")
    results = read_results(folder / "results.json")
    run, metrics = results["run"], split_by_class(results["metrics"])[0]
    if not metrics:
        raise InputError(f"{folder}: its test split has no labels, so there are no scores")
    lines = read_lines(folder / PREDICTIONS)
    try:
        ids, truth, score, count_scores = scores_of_lines(lines, run["data"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{folder}: {error}") from None
        raise InputError(f"{folder}/{PREDICTIONS}: not as a recipe writes it: {one_line(repr(error))}") from None
    again = score(np.ones(len(ids)))
    for name, was in metrics.items():
        if name not in again or was["value"] is None:
            continue
        if len(ids) != was["n"] or not abs(again[name] - was["value"]) <= TOLERANCE * max(1, abs(was["value"])):
            raise InputError(
                f"{folder}: results.json has {name} {was['value']:.4f} of {was['n']} rows, {PREDICTIONS} makes it "
                f"{again[name]:.4f} of {len(ids)}; they are not of the same run"
            )
    chosen_by = next(iter(run.get("validation", {})), None)
    main_metric = chosen_by if chosen_by in again else next(name for name in again if name in metrics)
    labels = run["data"].get("label_names") or []
    return FinishedRun(folder, run, main_metric, metrics, ids, truth, labels, score, count_scores)


def check_metric(run: FinishedRun, metric: str) -> None:
    """Raise an InputError unless a run has a score of that name."""
    known = run.score(np.ones(len(run.ids)))
    if metric not in known:
        overall = ", ".join(split_by_class(known)[0])
        raise InputError(f"{run.folder}: no metric {metric!r:.60}{nearest(metric, known)} ({overall})")


def how_tests_differ(one: FinishedRun, other: FinishedRun) -> str:
    """Say how the test data of two runs differ; an empty string if they do not.

    Args:
        one: A run.
        other: Another, of which the message speaks as `there`.
    """
    if one.labels != other.labels:
        here, there = ([label for label in a.labels if label not in b.labels] for a, b in ((one, other), (other, one)))
        if here or there:
            return f"other labels: only here {_some(here)}; only there {_some(there)}"
        return f"the same labels in another order: {_some(one.labels)}, there {_some(other.labels)}"
    if one.ids != other.ids:
        here, there = set(one.ids) - set(other.ids), set(other.ids) - set(one.ids)
        if here or there:
            return (
                f"{len(one.ids)} test rows, there {len(other.ids)}; {len(here)} only here ({_some(sorted(here))}), "
                f"{len(there)} only there ({_some(sorted(there))})"
            )
        return "the same test rows in another order"
    differ = [i for i, (a, b) in enumerate(zip(one.truth, other.truth, strict=True)) if a != b]
    if differ:
        i = differ[0]
        return (
            f"the truth of {len(differ)} of {len(one.ids)} test rows differs, first of {one.ids[i]!r:.60}: "
            f"{one.truth[i]!r:.60}, there {other.truth[i]!r:.60}"
        )
    prints = [of.run["data"]["fingerprint"].get("test") for of in (one, other)]
    return "" if prints[0] == prints[1] else f"the texts differ: test fingerprint {prints[0]}, there {prints[1]}"


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(map(str, names[:limit])) + ", …" * (len(names) > limit) if names else "none"


def read_results(path: Path) -> dict[str, Any]:
    """Read what a finished run wrote of itself.

    Args:
        path: Of its `results.json`.

    Raises:
        InputError: It is not there, damaged, or not of a recipe.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        run = results["run"]
        shape = [
            (results["metrics"], dict), (run["config"], dict), (run["seed"], int), (run["recipe"], str),
            (run["data"]["fingerprint"], dict), (run["seconds"]["total"], int | float), (run["versions"], dict),
            *((score["n"], int) for score in results["metrics"].values()),
            *((score["value"], int | float | None) for score in results["metrics"].values()),
        ]  # fmt: skip
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not as a recipe writes it: {one_line(repr(error))}") from None
    if wrong := next((kind for value, kind in shape if not isinstance(value, kind)), None):
        raise InputError(
            f"{path}: not as a recipe writes it: no {getattr(wrong, '__name__', wrong)} where one belongs"
        )
    return results


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of predictions.

    Raises:
        InputError: It is not there, or a line is no object of JSON.
    """
    lines: list[dict[str, Any]] = []
    try:
        # Not splitlines: a line separator of Unicode may stand in a text.
        for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
            lines.append(json.loads(line))
            if not isinstance(lines[-1], dict):
                raise ValueError("expected an object")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; without predictions nothing can be compared") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: line {len(lines) + 1} cannot be read: {one_line(error)}") from None
    return lines


def scores_of_lines(lines: list[dict[str, Any]], data: dict[str, Any]) -> tuple[list[str], list[Any], Scores, Any]:
    """Return ids, truth, and the scores as functions of weights, of the predictions of any task."""
    if "document" in lines[0]:
        return _masked_language_model(lines)
    ids, truth = [str(line["id"]) for line in lines], [line["gold"] for line in lines]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"{PREDICTIONS}: the id {twice!r:.60} stands twice")
    if any(value is None for value in truth):
        raise InputError(f"{PREDICTIONS}: rows without a gold label")
    if "scheme" in data:
        predicted, names = [line["predicted"] for line in lines], {"label_names": data["label_names"]}
        statistics = tag_statistics(truth, predicted, **names, scheme=data["scheme"])
        rows = SimpleNamespace(predictions=statistics)
        return ids, truth, lambda weights: tag_metrics(rows, weights=weights, **names, scheme=data["scheme"]), None
    if "text_metrics" in data:
        predicted, options = [line["predicted"] for line in lines], {"metrics": data["text_metrics"]}
        options["language"] = data["language"]
        texts = SimpleNamespace(predictions=text_statistics(predicted, truth, **options))
        of_texts = partial(text_metrics, texts, **options)
        if not {*STATISTICS} <= {*lines[0]}:
            return ids, truth, lambda weights: of_texts(weights=weights), None
        # Of a decoder also how probable it found the references, by which it chose its epoch.
        sums = SimpleNamespace(predictions=np.array([[line[name] for name in STATISTICS] for line in lines], float))

        def score(weights):
            of_tokens = masked_lm_metrics(sums, weights)
            names = {"perplexity": of_tokens["perplexity"], "token_accuracy": of_tokens["accuracy"]}
            return of_texts(weights=weights) | names

        return ids, truth, score, None
    if "has_no_answers" in data:
        statistics = answer_statistics(truth, [line["predicted"] for line in lines], data["has_no_answers"])
        rows = SimpleNamespace(predictions=statistics)
        score = partial(answer_metrics, rows, has_no_answers=data["has_no_answers"])
        return ids, truth, lambda weights: score(weights=weights), None
    return ids, truth, *classifier_scores(lines, data["problem_type"], data["label_names"])


def classifier_scores(lines: list[dict[str, Any]], problem_type: str, names: list[str]):
    """Return the scores of a sequence classifier as functions of weights, as `FinishedRun` has them.

    Args:
        lines: Of `predictions/test.jsonl`, with a gold label each.
        problem_type: As in `PreTrainedConfig.problem_type`.
        names: `[labels]`.
    """
    gold, predicted = [line["gold"] for line in lines], [line["predicted"] for line in lines]
    if problem_type == REGRESSION:
        numbers = np.array(predicted, dtype=np.float64), np.array(gold, dtype=np.float64)
        return lambda weights: regression_scores(*numbers, weights), None
    number = {name: i for i, name in enumerate(names)}
    chances = np.array([[line["probabilities"][name] for name in names] for line in lines], dtype=np.float64)
    if problem_type == MULTI:
        labels, chosen = (
            np.array([[name in row for name in names] for row in some], dtype=np.int64) for some in (gold, predicted)
        )
        # They are written with six digits: what was a bit below one half must stay there.
        kept = np.where(chosen > 0, np.maximum(chances, 0.5), np.minimum(chances, np.nextafter(0.5, 0)))
        _check_predicted(np.abs(kept - chances).max(axis=1), lines)
        chances = kept
        return lambda weights: multi_label_scores(chances, labels, weights, names), None
    labels, chosen = (np.array([number[label] for label in some]) for some in (gold, predicted))
    rows = np.arange(len(lines))
    _check_predicted(chances.max(axis=1) - chances[rows, chosen], lines)
    chances[rows, chosen] += DIGITS  # likewise the highest must stay the highest
    one_hot = np.eye(len(names))
    statistics = np.hstack([one_hot[labels] * (labels == chosen)[:, None], one_hot[chosen], one_hot[labels]])
    return (
        lambda weights: single_label_scores(chances, labels, weights, names),
        lambda weights: scores_of_counts(weights @ statistics, names),
    )


def _check_predicted(off: np.ndarray, lines: list[dict[str, Any]]) -> None:
    """Raise an InputError if a predicted label is not what its probabilities say, by more than their digits."""
    if (off > 2 * DIGITS).any():
        line = lines[int(off.argmax())]
        raise InputError(f"{PREDICTIONS}: {line['predicted']!r:.60} is not what the probabilities of {line['id']} say")


def _masked_language_model(lines: list[dict[str, Any]]):
    """Return documents, how many tokens of each are hidden, and the scores of the sums per document."""
    columns = [name for name in lines[0] if name != "document" and not name.endswith("_before")]
    if columns != list(STATISTICS):
        raise InputError(f"{PREDICTIONS}: the columns {', '.join(columns)} are of no task that is compared here")
    documents = [str(line["document"]) for line in lines]
    sums = sum_by_document(np.array([[line[name] for name in columns] for line in lines], float), documents)
    rows = SimpleNamespace(predictions=sums)
    names = sorted(set(documents))
    ids = names if len(names) == len(sums) else [f"{names[0]}, block {i}" for i in range(len(sums))]
    return ids, sums[:, 1].tolist(), lambda weights: masked_lm_metrics(rows, weights), None
