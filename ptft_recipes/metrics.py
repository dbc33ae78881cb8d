"""Scores as functions of Trainer's EvalPrediction; `ptft_recipes.evaluate_modules` has them as `evaluate` modules.

Each score takes `weights`, how often each example counts: the bootstrap resamples by weights, and all ones give the
score itself. The definitions are scikit-learn's and scipy's; the tests compare with them.
"""

from collections.abc import Callable

import numpy as np

from ptft_recipes.labels import MULTI, REGRESSION

LOWER_IS_BETTER = ("mse", "mae", "perplexity")
# What an evaluation reports beside its scores; nothing is the better for more or less of it.
NO_SCORES = ("no_answer_threshold", "model_preparation_time", "jit_compilation_time")


def classification_metrics(prediction, *, problem_type: str, label_names: list[str], weights=None) -> dict[str, float]:
    """Score the predictions of a sequence classifier.

    Args:
        prediction: An EvalPrediction: `predictions` logits `[examples, labels]`; `label_ids` class numbers
            `[examples]`, 0 and 1 `[examples, labels]`, or floats `[examples]`.
        problem_type: As in `PreTrainedConfig.problem_type`.
        label_names: Names of the labels, for the scores per class.
        weights: `[examples]`, how often each example counts; once each when None.

    Returns:
        Single label: accuracy, macro_f1 (over the classes in gold or prediction), matthews_correlation, roc_auc (one
        against the rest, averaged; for two labels that of the second), and precision, recall and f1 per class.
        Multi-label: the same without Matthews, with micro_f1, accuracy counting rows that are right in every label,
        macro_f1 over all labels. Regression: pearson, spearman, mse, mae, r2. Where scikit-learn has a convention for
        an empty denominator, the score is 0 as there; a score that is undefined, e.g. roc_auc when a class does not
        occur, or a correlation with a constant, is nan.

    Raises:
        FloatingPointError: A logit is not finite; a score of it would look like any other.
    """
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    if not (finite := np.isfinite(logits)).all():
        broken = np.count_nonzero(~finite.reshape(len(logits), -1).all(axis=1))
        raise FloatingPointError(f"the logits of {broken} of {len(logits)} examples are nan or infinite")
    if problem_type == REGRESSION:
        return regression_scores(logits.reshape(labels.shape), labels, weights)
    score = multi_label_scores if problem_type == MULTI else single_label_scores
    return score(probabilities(logits, problem_type), labels, weights, label_names)


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Return the probabilities `[examples, labels]` behind logits: softmax, or a sigmoid per label."""
    logits = np.asarray(logits, dtype=np.float64)
    if problem_type == MULTI:
        return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def single_label_scores(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None, label_names: list[str] | None = None
) -> dict[str, float]:
    """Score one label per example.

    Args:
        scores: `[examples, labels]`, the highest is the prediction.
        labels: `[examples]` class numbers.
        weights: `[examples]`.
        label_names: `[labels]`.
    """
    scores, labels, weights = _sample(scores, labels, weights)
    size = scores.shape[1]
    names = label_names or [str(i) for i in range(size)]
    confusion = confusion_matrix(scores.argmax(axis=1), labels, size, weights)
    counts = np.concatenate([confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)])
    by_count = {name: float(score) for name, score in scores_of_counts(counts, names).items()}
    overall = {name: by_count.pop(name) for name in ("accuracy", "macro_f1", "matthews_correlation")}
    rest = range(1, 2) if size == 2 else range(size)
    overall["roc_auc"] = float(np.mean([roc_auc(scores[:, k], labels == k, weights) for k in rest]))
    return overall | by_count


def scores_of_counts(counts: np.ndarray, label_names: list[str]) -> dict[str, np.ndarray]:
    """Score one label per example from counts alone, for many samples at once.

    Args:
        counts: `[..., 3 * labels]`: how many examples of each label are right, how many have it predicted, how many
            have it in truth.
        label_names: `[labels]`.

    Returns:
        `[...]` for each score of `single_label_scores` but roc_auc.
    """
    right, predicted, gold = np.moveaxis(counts.reshape(*counts.shape[:-1], 3, len(label_names)), -2, 0)
    per_class = _precision_recall_f1(right, predicted, gold)
    occurs = (gold + predicted) > 0  # as scikit-learn: a class in neither gold nor prediction does not count
    all_right, total = right.sum(axis=-1), gold.sum(axis=-1)
    spread = np.sqrt((total**2 - (predicted**2).sum(axis=-1)) * (total**2 - (gold**2).sum(axis=-1)))
    covariance = all_right * total - (gold * predicted).sum(axis=-1)
    scores = {
        "accuracy": all_right / total,
        "macro_f1": (per_class["f1"] * occurs).sum(axis=-1) / occurs.sum(axis=-1),
        "matthews_correlation": np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0),
    }
    return scores | {
        f"{kind}/{name}": per_class[kind][..., k] for k, name in enumerate(label_names) for kind in per_class
    }


def vectorized_label_scores(
    labels: np.ndarray, *predicted: np.ndarray, label_names: list[str]
) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], np.ndarray]:
    """Prepare single-label predictions for `ptft_recipes.significance`, where 10,000 resamples then take a second.

    Args:
        labels: `[examples]` class numbers.
        predicted: `[examples]` class numbers, of one system; or of two that are to be compared.
        label_names: `[labels]`.

    Returns:
        The score, `vectorized`, from weights `[samples, systems * rows]`; and `[rows]`, how often each distinct row of
        gold and predicted labels occurs.
    """
    cells, counts = np.unique(np.stack([labels, *predicted], axis=1), axis=0, return_counts=True)
    one_hot = np.eye(len(label_names))
    gold, found = np.tile(cells[:, 0], len(predicted)), cells[:, 1:].T.ravel()
    statistics = np.hstack([one_hot[gold] * (gold == found)[:, None], one_hot[found], one_hot[gold]])
    return lambda weights: scores_of_counts(weights @ statistics, label_names), counts


def multi_label_scores(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None, label_names: list[str] | None = None
) -> dict[str, float]:
    """Score any number of labels per example.

    Args:
        scores: `[examples, labels]` probabilities; a label is predicted from 0.5 on.
        labels: `[examples, labels]` of 0 and 1.
        weights: `[examples]`.
        label_names: `[labels]`.
    """
    scores, labels, weights = _sample(scores, labels, weights)
    names = label_names or [str(i) for i in range(scores.shape[1])]
    predicted, gold = scores >= 0.5, labels.astype(bool)
    counts = [(weights[:, None] * true).sum(axis=0) for true in (predicted & gold, predicted, gold)]
    per_class = _precision_recall_f1(*counts)
    return {
        "accuracy": float(np.average((predicted == gold).all(axis=1), weights=weights)),
        "micro_f1": float(_precision_recall_f1(*(count.sum() for count in counts))["f1"]),
        "macro_f1": float(per_class["f1"].mean()),
        "roc_auc": float(np.mean([roc_auc(scores[:, k], gold[:, k], weights) for k in range(scores.shape[1])])),
    } | _by_name(per_class, names)


def regression_scores(
    predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Score numbers against numbers, both `[examples]`."""
    predictions, labels, weights = _sample(predictions.astype(np.float64), labels.astype(np.float64), weights)
    error, deviation = predictions - labels, labels - np.average(labels, weights=weights)
    mse, variance = np.average([error**2, deviation**2], weights=weights, axis=1)
    return {
        "pearson": _pearson(predictions, labels, weights),
        "spearman": _pearson(_ranks(predictions, weights), _ranks(labels, weights), weights),
        "mse": float(mse),
        "mae": float(np.average(np.abs(error), weights=weights)),
        "r2": float("nan") if _is_constant(labels) else float(1 - mse / variance),
    }


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, size: int, weights=None) -> np.ndarray:
    """Count examples by gold label (rows) and predicted label (columns), `[size, size]`."""
    cells = np.bincount(labels * size + predicted, weights=weights, minlength=size * size)
    return cells.reshape(size, size)


def roc_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """Return the chance that a positive example scores higher than a negative one, ties counting half.

    Args:
        scores: `[examples]`.
        positive: `[examples]` bool.
        weights: `[examples]`.

    Returns:
        nan when either class is empty.
    """
    order = np.argsort(scores)
    weights, positive, scores = weights[order], positive[order], scores[order]
    starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    up = np.add.reduceat(weights * positive, starts)
    down = np.add.reduceat(weights * ~positive, starts)
    pairs = up.sum() * down.sum()
    # No `@` over the examples: BLAS starts threads for it, which on busy cores costs more than all the rest.
    return float((up * (down.cumsum() - down / 2)).sum() / pairs) if pairs else float("nan")


def _sample(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray | None):
    """Return the examples that stand in the sample at all, and how often each does, as floats."""
    if weights is None:
        return predictions, labels, np.ones(len(labels))
    drawn = np.flatnonzero(weights)  # 63 % of the examples in a bootstrap sample
    return predictions[drawn], labels[drawn], weights[drawn].astype(np.float64)


def _precision_recall_f1(right, predicted, gold) -> dict[str, np.ndarray]:
    """Return the three scores per class; 0 where the denominator is 0, as scikit-learn has it."""

    def ratio(numerator, denominator):
        return np.divide(numerator, denominator, out=np.zeros(np.shape(right)), where=denominator > 0)

    return {
        "precision": ratio(right, predicted),
        "recall": ratio(right, gold),
        "f1": ratio(2.0 * right, predicted + gold),
    }


def _by_name(per_class: dict[str, np.ndarray], names: list[str]) -> dict[str, float]:
    return {f"{score}/{name}": float(per_class[score][k]) for k, name in enumerate(names) for score in per_class}


def _pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    if _is_constant(x) or _is_constant(y):
        return float("nan")
    x, y = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
    covariance, *variances = np.average([x * y, x**2, y**2], weights=weights, axis=1)
    return float(np.clip(covariance / np.sqrt(np.prod(variances)), -1, 1))


def _is_constant(values: np.ndarray) -> bool:
    # Not by their variance: the mean of equal floats is off by rounding, and the variance then not quite 0.
    return bool((values == values[0]).all())


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return average ranks in the sample in which each example stands `weights` times."""
    distinct, group = np.unique(values, return_inverse=True)
    count = np.bincount(group, weights=weights, minlength=len(distinct))
    return (count.cumsum() - (count - 1) / 2)[group]
