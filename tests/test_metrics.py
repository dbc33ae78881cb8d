"""Every score equals the direct call of scikit-learn or scipy, on random, tied and degenerate data."""

import json
import math
import warnings
from functools import partial

import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sklearn
from transformers import EvalPrediction

from ptft_recipes.labels import MULTI, REGRESSION, SINGLE
from ptft_recipes.metrics import (
    classification_metrics,
    confusion_matrix,
    multi_label_scores,
    probabilities,
    regression_scores,
    roc_auc,
    single_label_scores,
)

pytestmark = pytest.mark.filterwarnings("error")
same = partial(pytest.approx, rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.fixture(autouse=True)
def _numpy_raises():
    """An undefined score is nan by decision, never by a division that happened to give it."""
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        yield


def quietly(function, *args, **kwargs):
    """Call scikit-learn, which warns of what is undefined."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


# --- one label per example ---


def random_classes(seed=0, rows=60, size=4, noise=1.0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(size, size=rows)
    return (generator.normal(scale=noise, size=(rows, size)) + np.eye(size)[labels]).astype(np.float32), labels


def in_few_steps(logits, labels):
    return np.round(logits), labels


def only_gold(label, logits, labels):
    return logits, np.full_like(labels, label)


def only_predicted(label, logits, labels):
    return logits + 100 * np.eye(logits.shape[1], dtype=np.float32)[label], labels


def without(label, logits, labels):
    """Neither gold nor predicted."""
    return logits - 100 * np.eye(logits.shape[1], dtype=np.float32)[label], np.where(labels == label, 0, labels)


SINGLE_CASES = {
    **{f"{size} labels, seed {seed}": random_classes(seed, size=size) for size in (2, 3, 7) for seed in (0, 1)},
    "500 rows": random_classes(rows=500),
    "rounded": in_few_steps(*random_classes(rows=200)),
    "two labels, rounded": in_few_steps(*random_classes(rows=200, size=2)),
    "all scores tied": (np.zeros((40, 3), np.float32), random_classes(rows=40, size=3)[1]),
    "perfect": random_classes(noise=1e-3),
    "all wrong": (lambda logits, labels: (-logits, labels))(*random_classes(size=2, noise=1e-3)),
    "one gold class": only_gold(2, *random_classes()),
    "one gold class of two": only_gold(1, *random_classes(size=2)),
    "one predicted class": only_predicted(1, *random_classes()),
    "one gold and predicted class": only_predicted(2, *only_gold(2, *random_classes())),
    "one gold, another predicted class": only_predicted(1, *only_gold(2, *random_classes())),
    "last class in neither": without(3, *random_classes()),
    "first class in neither": without(1, *random_classes()),
    "more classes than rows": random_classes(rows=5, size=20),
    "one row, right": (np.array([[0.0, 3.0]]), np.array([1])),
    "one row, wrong": (np.array([[0.0, 3.0]]), np.array([0])),
}


def single_label_reference(logits, labels):
    scores, size = special.softmax(logits.astype(np.float64), axis=1), logits.shape[1]
    predicted = scores.argmax(axis=1)
    auc = math.nan
    if size == 2 and len(set(labels)) == 2:
        auc = sklearn.roc_auc_score(labels, scores[:, 1])
    elif len(set(labels)) == size:
        auc = sklearn.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    per_class = quietly(sklearn.precision_recall_fscore_support, labels, predicted, labels=range(size))
    return {
        "accuracy": sklearn.accuracy_score(labels, predicted),
        "macro_f1": quietly(sklearn.f1_score, labels, predicted, average="macro"),
        "matthews_correlation": quietly(sklearn.matthews_corrcoef, labels, predicted),
        "roc_auc": auc,
    } | {
        f"{name}/class {k}": per_class[i][k]
        for k in range(size)
        for i, name in enumerate(("precision", "recall", "f1"))
    }


@pytest.mark.parametrize("case", SINGLE_CASES)
def test_single_label_scores_equal_scikit_learn(case):
    logits, labels = SINGLE_CASES[case]
    names = [f"class {k}" for k in range(logits.shape[1])]
    prediction = EvalPrediction(predictions=logits, label_ids=labels)
    scores = classification_metrics(prediction, problem_type=SINGLE, label_names=names)
    assert scores == same(single_label_reference(logits, labels))
    assert list(scores) == list(single_label_reference(logits, labels))


def test_macro_f1_leaves_out_a_class_in_neither_gold_nor_prediction():
    logits, labels = SINGLE_CASES["last class in neither"]
    scores = single_label_scores(logits, labels)
    assert scores["f1/3"] == 0
    assert scores["macro_f1"] == pytest.approx(np.mean([scores[f"f1/{k}"] for k in range(3)]))


def test_confusion_matrix_equals_scikit_learn_and_has_gold_in_rows():
    logits, labels = random_classes(rows=200)
    predicted = logits.argmax(axis=1)
    ours = confusion_matrix(predicted, labels, 5)
    assert np.array_equal(ours, sklearn.confusion_matrix(labels, predicted, labels=range(5)))
    assert np.array_equal(ours.sum(axis=1), np.bincount(labels, minlength=5))


# --- any number of labels per example ---


def random_sets(seed=0, rows=60, size=4, share=0.3):
    generator = np.random.default_rng(seed)
    labels = (generator.random((rows, size)) < share).astype(np.float32)
    return (generator.normal(size=(rows, size)) + 2 * labels - 1).astype(np.float32), labels


def with_column(column, value, logits, labels):
    labels = labels.copy()
    labels[:, column] = value
    return logits, labels


MULTI_CASES = {
    **{f"{size} labels, seed {seed}": random_sets(seed, size=size) for size in (1, 2, 6) for seed in (0, 1)},
    "500 rows": random_sets(rows=500),
    "rounded": in_few_steps(*random_sets(rows=200)),  # logit 0, probability 0.5, is among them
    "all scores tied": (np.zeros((40, 3), np.float32), random_sets(rows=40, size=3)[1]),
    "a label in no row": with_column(2, 0, *random_sets()),
    "a label in every row": with_column(2, 1, *random_sets()),
    "no label in gold": random_sets(share=0.0),
    "no label in gold or prediction": (np.full((20, 3), -5.0), np.zeros((20, 3))),
    "nothing predicted": (np.full((60, 4), -5.0), random_sets()[1]),
    "everything predicted": (np.full((60, 4), 5.0), random_sets()[1]),
    "one row": random_sets(rows=1),
}


def multi_label_reference(logits, labels):
    scores, size = special.expit(logits.astype(np.float64)), logits.shape[1]
    predicted = (scores >= 0.5).astype(int)
    auc = math.nan
    if all(0 < column.sum() < len(column) for column in labels.T):
        auc = sklearn.roc_auc_score(labels, scores, average="macro")
    per_class = [
        quietly(function, labels[:, k], predicted[:, k], zero_division=0)
        for k in range(size)
        for function in (sklearn.precision_score, sklearn.recall_score, sklearn.f1_score)
    ]
    names = [f"{name}/class {k}" for k in range(size) for name in ("precision", "recall", "f1")]
    if size == 1:  # scikit-learn takes a single column for single labels; its f1 is then that of the column
        micro = macro = per_class[2]
    else:
        micro, macro = (
            quietly(sklearn.f1_score, labels, predicted, average=how, zero_division=0) for how in ("micro", "macro")
        )
    return {
        "accuracy": sklearn.accuracy_score(labels, predicted),
        "micro_f1": micro,
        "macro_f1": macro,
        "roc_auc": auc,
    } | dict(zip(names, per_class, strict=True))


@pytest.mark.parametrize("case", MULTI_CASES)
def test_multi_label_scores_equal_scikit_learn(case):
    logits, labels = MULTI_CASES[case]
    names = [f"class {k}" for k in range(logits.shape[1])]
    prediction = EvalPrediction(predictions=logits, label_ids=labels)
    scores = classification_metrics(prediction, problem_type=MULTI, label_names=names)
    assert scores == same(multi_label_reference(logits, labels))
    assert list(scores) == list(multi_label_reference(logits, labels))


# --- numbers ---


def random_numbers(seed=0, rows=60, noise=1.0, scale=1.0, shift=0.0):
    generator = np.random.default_rng(seed)
    labels = generator.normal(size=rows) * scale + shift
    return (labels + generator.normal(scale=noise * scale, size=rows)).astype(np.float32), labels.astype(np.float32)


REGRESSION_CASES = {
    **{f"seed {seed}": random_numbers(seed) for seed in range(3)},
    "500 rows": random_numbers(rows=500),
    "rounded": in_few_steps(*(np.round(values) for values in random_numbers(rows=200))),
    "three values": tuple(np.clip(np.round(values), -1, 1) for values in random_numbers(rows=50)),
    "far from zero": random_numbers(shift=1e4),
    "large": random_numbers(scale=1e15),
    "small": random_numbers(scale=1e-15),
    "perfect": (random_numbers()[1], random_numbers()[1]),
    "reversed": (-random_numbers()[1], random_numbers()[1]),
    "two rows": random_numbers(rows=2),
}


def regression_reference(predictions, labels):
    predictions, labels = predictions.astype(np.float64), labels.astype(np.float64)
    return {
        "pearson": stats.pearsonr(predictions, labels).statistic,
        "spearman": stats.spearmanr(predictions, labels).statistic,
        "mse": sklearn.mean_squared_error(labels, predictions),
        "mae": sklearn.mean_absolute_error(labels, predictions),
        "r2": sklearn.r2_score(labels, predictions),
    }


@pytest.mark.parametrize("case", REGRESSION_CASES)
def test_regression_scores_equal_scipy_and_scikit_learn(case):
    predictions, labels = REGRESSION_CASES[case]
    prediction = EvalPrediction(predictions=predictions[:, None], label_ids=labels)
    scores = classification_metrics(prediction, problem_type=REGRESSION, label_names=["score"])
    expected = regression_reference(predictions, labels)
    assert scores == {name: pytest.approx(value, rel=1e-8) for name, value in expected.items()}


def test_rounding_lifts_no_correlation_above_1():
    labels = [np.random.default_rng(seed).normal(size=7) for seed in range(100)]
    scores = [regression_scores(3.3 * values, values) for values in labels]
    assert [score["pearson"] for score in scores] == pytest.approx([1] * 100)
    assert max(score["pearson"] for score in scores) == 1


# The mean of 49 times 0.1 is not 0.1 in floating point, so neither is their variance 0.
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e9 + 0.1])
@pytest.mark.parametrize("rows", [1, 2, 49])
@pytest.mark.parametrize(
    ("constant", "undefined"),
    [("labels", {"pearson", "spearman", "r2"}), ("predictions", {"pearson", "spearman"})],
)
def test_correlations_with_a_constant_and_its_r2_are_nan(value, rows, constant, undefined):
    fixed, other = np.full(rows, value), np.arange(rows) + value
    predictions, labels = (other, fixed) if constant == "labels" else (fixed, other)
    if rows == 1:
        undefined = {"pearson", "spearman", "r2"}
    for weights in (None, np.full(rows, 3)):
        scores = regression_scores(predictions, labels, weights)
        assert {name for name, score in scores.items() if math.isnan(score)} == undefined


def test_a_sample_that_draws_one_value_only_is_constant():
    scores = regression_scores(np.array([0.3, 0.7, 0.9]), np.array([0.1, 0.1, 0.5]), np.array([2, 1, 0]))
    assert {name for name, score in scores.items() if math.isnan(score)} == {"pearson", "spearman", "r2"}


# --- all of them ---

CASES = {
    **{f"single: {name}": (SINGLE, case) for name, case in SINGLE_CASES.items()},
    **{f"multi: {name}": (MULTI, case) for name, case in MULTI_CASES.items()},
    **{f"regression: {name}": (REGRESSION, case) for name, case in REGRESSION_CASES.items()},
}
KINDS_OF_WEIGHTS = {
    "bootstrap": lambda generator, rows: np.bincount(generator.integers(rows, size=rows), minlength=rows),
    "ones": lambda generator, rows: np.ones(rows, dtype=int),
    "one row only": lambda generator, rows: np.eye(rows, dtype=int)[generator.integers(rows)],
    "up to a thousand": lambda generator, rows: generator.integers(1, 1000, size=rows),
}


def score(problem_type, logits, labels, weights=None):
    names = [str(k) for k in range(logits.shape[-1])]
    prediction = EvalPrediction(predictions=logits, label_ids=labels)
    return classification_metrics(prediction, problem_type=problem_type, label_names=names, weights=weights)


@pytest.mark.parametrize("kind", KINDS_OF_WEIGHTS)
@pytest.mark.parametrize("case", CASES)
def test_weights_count_an_example_as_often_as_repeating_it(case, kind):
    problem_type, (logits, labels) = CASES[case]
    for seed in range(3):
        weights = KINDS_OF_WEIGHTS[kind](np.random.default_rng(seed), len(labels))
        weighted = score(problem_type, logits, labels, weights)
        repeated = score(problem_type, np.repeat(logits, weights, axis=0), np.repeat(labels, weights, axis=0))
        assert weighted == pytest.approx(repeated, rel=1e-8, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("case", CASES)
def test_scores_do_not_depend_on_the_order_of_the_rows(case):
    problem_type, (logits, labels) = CASES[case]
    order = np.random.default_rng(0).permutation(len(labels))
    assert score(problem_type, logits[order], labels[order]) == same(score(problem_type, logits, labels))


@pytest.mark.parametrize("case", CASES)
def test_scores_are_plain_floats_that_json_takes(case):
    problem_type, (logits, labels) = CASES[case]
    scores = score(problem_type, logits, labels)
    assert {type(value) for value in scores.values()} == {float}
    assert json.dumps(scores)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_half_precision_is_scored_in_double_precision(problem_type, dtype):
    logits, labels = {SINGLE: random_classes, MULTI: random_sets, REGRESSION: random_numbers}[problem_type](rows=3000)
    logits = logits.astype(np.float16)
    assert score(problem_type, logits.astype(dtype), labels) == same(score(problem_type, logits, labels))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_logits_that_are_not_finite_are_an_error_and_not_a_prediction(problem_type, value):
    logits, labels = {SINGLE: random_classes, MULTI: random_sets, REGRESSION: random_numbers}[problem_type](rows=20)
    logits[3:5] = value
    with pytest.raises(FloatingPointError, match="logits of 2 of 20 examples"):
        score(problem_type, logits, labels)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_probabilities_equal_scipy_at_any_size_of_the_logits(scale):
    logits = (np.random.default_rng(0).normal(size=(50, 5)) * scale).astype(np.float32)
    exact = logits.astype(np.float64)
    softmax, sigmoid = probabilities(logits, SINGLE), probabilities(logits, MULTI)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(softmax, special.softmax(exact, axis=1), rtol=1e-9, atol=1e-200)
        np.testing.assert_allclose(sigmoid, special.expit(exact), rtol=1e-9, atol=1e-200)
    np.testing.assert_allclose(softmax.sum(axis=1), 1)


@pytest.mark.parametrize("values", [2, 3, 10, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_roc_auc_counts_ties_half(values, seed):
    generator = np.random.default_rng(seed)
    scores, positive = generator.integers(values, size=80) / 7, generator.random(80) < 0.4
    weights = generator.integers(0, 4, size=80)
    pairs = np.multiply.outer(weights * positive, weights * ~positive)
    difference = np.subtract.outer(scores, scores)
    by_counting = (pairs * ((difference > 0) + (difference == 0) / 2)).sum() / pairs.sum()
    assert roc_auc(scores, positive, weights) == pytest.approx(by_counting)
    assert roc_auc(scores, positive, weights) == same(sklearn.roc_auc_score(positive, scores, sample_weight=weights))


@pytest.mark.parametrize("positive", [True, False])
def test_roc_auc_of_one_class_is_nan(positive):
    assert math.isnan(roc_auc(np.arange(5.0), np.full(5, positive), np.ones(5)))


def test_label_names_default_to_numbers():
    logits, labels = random_classes(size=3)
    assert {"f1/0", "f1/1", "f1/2"} < set(single_label_scores(logits, labels))
    assert {"f1/0", "f1/1"} < set(multi_label_scores(*random_sets(size=2)))
