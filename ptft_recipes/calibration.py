"""Whether probabilities mean what they say: scores of calibration, and temperature and thresholds from validation."""

import numpy as np
from scipy import optimize, special

from ptft_recipes.labels import MULTI, SINGLE
from ptft_recipes.metrics import probabilities

BINS = 15  # Guo et al. (2017), section 5
TINY = 1e-12


def calibration_metrics(
    prediction, *, problem_type: str, weights: np.ndarray | None = None, bins: int = BINS
) -> dict[str, float]:
    """Score the probabilities of a classifier.

    Args:
        prediction: An EvalPrediction, as for `classification_metrics`.
        problem_type: Single or multi-label, as in `PreTrainedConfig.problem_type`.
        weights: `[examples]`, how often each example counts; once each when None.
        bins: Of equal width, for the calibration error.

    Returns:
        `ece`, the expected calibration error: the mean distance between confidence and accuracy over bins of
        confidence, which chance makes larger in a sample than it is; `brier`, the mean squared error of the
        probabilities, summed over labels (of two labels that of the second, as scikit-learn has it; of several labels
        per example the mean over labels); `nll`, the mean negative log-likelihood in nats. Confidence is the
        probability of the predicted label; of several labels per example that of each label, predicted or not.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), section 2; Brier, Verification of Forecasts
    Expressed in Terms of Probability (1950).
    """
    scores = probabilities(prediction.predictions, problem_type)
    labels = np.asarray(prediction.label_ids)
    gold = labels.astype(float) if problem_type == MULTI else np.eye(scores.shape[1])[labels]
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=float)
    squared = (scores - gold) ** 2
    if problem_type == MULTI:
        likelihood = np.where(gold > 0, scores, 1 - scores)
        brier, surprise = squared.mean(axis=1), -np.log(np.maximum(likelihood, TINY)).mean(axis=1)
    else:
        brier = squared[:, 1] if scores.shape[1] == 2 else squared.sum(axis=1)
        surprise = -np.log(np.maximum((scores * gold).sum(axis=1), TINY))
    confidence, right = confidence_and_truth(scores, labels, problem_type)
    per_item = np.repeat(weights, confidence.size // len(weights))
    curve = reliability_curve(confidence, right, per_item, bins)
    return {
        "ece": float(np.sum(curve[:, 2] * np.abs(curve[:, 0] - curve[:, 1])) / curve[:, 2].sum()),
        "brier": float(np.average(brier, weights=weights)),
        "nll": float(np.average(surprise, weights=weights)),
    }


def confidence_and_truth(scores: np.ndarray, labels: np.ndarray, problem_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what was claimed, and whether it was so.

    Args:
        scores: `[examples, labels]` probabilities.
        labels: Class numbers `[examples]`, or 0 and 1 `[examples, labels]`.
        problem_type: Single or multi-label.

    Returns:
        The probability of the predicted label and whether it is right, `[examples]`; or the probability of each label
        and whether it is there, `[examples * labels]`.
    """
    if problem_type == MULTI:
        return scores.ravel(), labels.ravel().astype(bool)
    return scores.max(axis=1), scores.argmax(axis=1) == labels


def reliability_curve(
    confidence: np.ndarray, right: np.ndarray, weights: np.ndarray | None = None, bins: int = BINS
) -> np.ndarray:
    """Return per bin that is not empty its mean confidence, the share that is right, and its size, `[bins, 3]`.

    Args:
        confidence: `[items]` between 0 and 1.
        right: `[items]` bool.
        weights: `[items]`.
        bins: Of equal width, each without its lower end, as scikit-learn's `calibration_curve` has them.
    """
    weights = np.ones(len(confidence)) if weights is None else weights
    # scikit-learn's own border: what is equal to it belongs to the bin below.
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    sums = [np.bincount(place, weights * values, minlength=bins) for values in (confidence, right, 1.0)]
    used = sums[2] > 0
    return np.stack([sums[0][used] / sums[2][used], sums[1][used] / sums[2][used], sums[2][used]], axis=1)


def fit_temperature(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """Return by which number logits are best divided, so that the likelihood of the labels is highest.

    Predictions stay as they are; only confidence changes. For the validation split: on the one that is reported it
    would flatter.

    Args:
        logits: `[examples, labels]`.
        labels: Class numbers `[examples]`, or 0 and 1 `[examples, labels]`.
        problem_type: Single or multi-label.

    Source: Guo et al. (2017), section 4.2.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)

    def loss(log_temperature):
        scaled = logits / np.exp(log_temperature)
        if problem_type == MULTI:
            return np.mean(np.logaddexp(0, scaled) - labels * scaled)
        return np.mean(special.logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels])

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


def fit_thresholds(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> np.ndarray:
    """Return from which probability on each label is best predicted: the highest F1 of that label.

    Args:
        logits: `[examples, labels]`; of a single-label classifier two labels, of which the second is decided upon.
        labels: Class numbers `[examples]`, or 0 and 1 `[examples, labels]`.
        problem_type: Single or multi-label.

    Returns:
        `[labels]`, or `[1]`; half way between the two scores that it divides, and of several that are as good the one
        nearest to 0.5. Of a label without positive examples 0.5.

    Source: Lipton, Elkan and Naryanaswamy, Optimal Thresholding of Classifiers to Maximize F1 Measure (2014).
    """
    scores, labels = probabilities(logits, problem_type), np.asarray(labels)
    if problem_type == SINGLE:
        scores, labels = scores[:, 1:], labels[:, None]
    return np.array([_best_threshold(column, gold > 0) for column, gold in zip(scores.T, labels.T, strict=True)])


def _best_threshold(scores: np.ndarray, positive: np.ndarray) -> float:
    if not positive.any():
        return 0.5
    order = np.argsort(-scores)
    scores, positive = scores[order], positive[order]
    last = np.flatnonzero(np.r_[scores[1:] < scores[:-1], True])  # of each run of equal scores
    f1 = 2 * positive.cumsum()[last] / (last + 1 + positive.sum())
    cuts = (scores[last] + np.r_[scores[last[:-1] + 1], 0]) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - 0.5))]])


def apply_thresholds(logits: np.ndarray, thresholds: np.ndarray, problem_type: str) -> np.ndarray:
    """Return logits shifted so that a label is predicted from its threshold on, in the place of 0.5.

    Args:
        logits: `[examples, labels]`.
        thresholds: As `fit_thresholds` returned them.
        problem_type: Single or multi-label.
    """
    shift = np.asarray(special.logit(np.clip(thresholds, TINY, 1 - TINY)))
    return np.asarray(logits, dtype=np.float64) - (shift if problem_type == MULTI else np.r_[0, shift])
