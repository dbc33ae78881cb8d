"""Bootstrap intervals: the right numbers, the right coverage, and no surprise in degenerate samples."""

import math
from functools import partial

import numpy as np
import pytest
from scipy import stats
from transformers import EvalPrediction

from ptft_recipes.labels import MULTI, REGRESSION, SINGLE
from ptft_recipes.metrics import classification_metrics, roc_auc
from ptft_recipes.significance import bootstrap_intervals

pytestmark = pytest.mark.filterwarnings("error")


def mean_of(values):
    return lambda weights: {"mean": float(np.average(values, weights=weights))}


def values(rows=100, seed=0):
    return np.random.default_rng(seed).normal(size=rows)


def test_the_seed_decides_and_the_global_state_does_not():
    score = mean_of(values())
    first = bootstrap_intervals(score, 100, resamples=200)
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    assert bootstrap_intervals(score, 100, resamples=200) == first
    assert np.array_equal(np.random.get_state()[1], state)
    assert bootstrap_intervals(score, 100, resamples=200, seed=1) != first


def test_every_resample_draws_as_many_rows_as_there_are():
    seen = []

    def score(weights):
        seen.append(weights)
        return {"score": 0.0}

    assert bootstrap_intervals(score, 50, resamples=300) == {"score": [0.0, 0.0]}
    seen = np.array(seen)
    assert seen.shape == (300, 50)
    assert (seen.sum(axis=1) == 50).all()
    # A row's count is binomial(50, 1/50): 36.4 % of them are 0, and its variance is 1 - 1/50.
    assert np.mean(seen == 0) == pytest.approx(0.98**50, abs=0.01)
    assert seen.var() == pytest.approx(0.98, abs=0.05)


STATISTICS = {
    "mean": lambda x, y: x.mean(),
    "root mean square": lambda x, y: np.sqrt((x**2).mean()),  # skewed: mirrored bounds would show
    "correlation": lambda x, y: np.corrcoef(x, y)[0, 1],
}


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize("name", STATISTICS)
def test_intervals_agree_with_scipy(name, confidence):
    rows, resamples, statistic = 120, 4000, STATISTICS[name]
    x = values(rows) ** 3
    y = x + values(rows, seed=1)

    def score(weights):
        return {name: statistic(np.repeat(x, weights), np.repeat(y, weights))}

    low, high = bootstrap_intervals(score, rows, resamples=resamples, confidence=confidence)[name]
    theirs = stats.bootstrap(
        (x, y), statistic, paired=True, vectorized=False, method="percentile",
        n_resamples=resamples, confidence_level=confidence, rng=np.random.default_rng(1),
    )  # fmt: skip
    # Of two independent 2.5 % quantiles of 4000 normal draws: 0.06 standard deviations; four times that, and skewness.
    tolerance = 0.35 * theirs.standard_error
    assert low == pytest.approx(theirs.confidence_interval.low, abs=tolerance)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=tolerance)


@pytest.mark.parametrize("accuracy", [0.5, 0.8])
def test_intervals_of_an_accuracy_cover_it_in_95_of_100_samples(accuracy):
    rows, samples = 1000, 1000
    right = (np.random.default_rng(0).random((samples, rows)) < accuracy).astype(np.float32)

    def score(weights):  # all samples as one set of scores, on the same draws
        return dict(enumerate(np.einsum("sr,r->s", right, weights / np.float32(rows)).tolist()))

    intervals = bootstrap_intervals(score, rows, resamples=500)
    assert len(intervals) == samples
    covered = np.mean([low <= accuracy <= high for low, high in intervals.values()])
    assert 0.93 <= covered <= 0.97


def test_an_interval_is_narrower_at_less_confidence_and_with_more_rows():
    def width(rows, confidence):
        low, high = bootstrap_intervals(mean_of(values(rows)), rows, resamples=500, confidence=confidence)["mean"]
        return high - low

    assert width(100, 0.5) < width(100, 0.9) < width(100, 0.99)
    assert width(1600, 0.95) == pytest.approx(width(100, 0.95) / 4, rel=0.25)


def undefined_at(which, rows):
    calls = iter(range(10_000))
    return lambda weights: {
        "sometimes": math.nan if next(calls) % 100 in which else float(weights[0]),
        "always": float(weights[1]),
        "never": math.nan,
    }


@pytest.mark.parametrize(("share", "kept"), [(0, True), (1, True), (5, True), (6, False), (50, False), (100, False)])
def test_a_score_undefined_in_more_than_5_of_100_resamples_has_no_interval(share, kept):
    intervals = bootstrap_intervals(undefined_at(range(share), 20), 20, resamples=200)
    assert list(intervals) == ["sometimes", "always", "never"]
    assert (intervals["sometimes"] != [None, None]) == kept
    assert all(math.isfinite(bound) for bound in intervals["always"])
    assert intervals["never"] == [None, None]


def test_undefined_resamples_are_left_out_of_the_quantiles():
    seen = []

    def score(weights):
        seen.append(math.nan if len(seen) % 25 == 0 else float(weights[0] + weights[1] / 100))
        return {"score": seen[-1]}

    bounds = bootstrap_intervals(score, 30, resamples=500)["score"]
    assert bounds == pytest.approx(np.nanquantile(seen, [0.025, 0.975]))
    assert np.isnan(seen).sum() == 20


def test_a_class_of_one_row_leaves_its_auc_without_an_interval_and_the_other_scores_with_theirs():
    scores, positive = np.linspace(0, 1, 50), np.arange(50) == 30
    right = scores > 0.2

    def score(weights):
        return {"auc": roc_auc(scores, positive, weights), "accuracy": float(np.average(right, weights=weights))}

    intervals = bootstrap_intervals(score, 50, resamples=300)
    assert intervals["auc"] == [None, None]  # the row is missing from 36 % of the resamples
    low, high = intervals["accuracy"]
    assert low < right.mean() < high


@pytest.mark.parametrize(
    ("problem_type", "logits", "labels", "undefined"),
    [
        (SINGLE, [[0.0, 1.0, 2.0]], [2], {"roc_auc"}),
        (MULTI, [[0.0, 1.0, -2.0]], [[1, 1, 0]], {"roc_auc"}),
        (REGRESSION, [[1.5]], [2.0], {"pearson", "spearman", "r2"}),
    ],
)
def test_one_row_gives_intervals_without_width(problem_type, logits, labels, undefined):
    prediction = EvalPrediction(predictions=np.array(logits), label_ids=np.array(labels))
    names = [str(k) for k in range(len(logits[0]))]
    metrics = partial(classification_metrics, prediction, problem_type=problem_type, label_names=names)
    intervals = bootstrap_intervals(lambda weights: metrics(weights=weights), 1, resamples=50)
    assert {name for name, bounds in intervals.items() if bounds == [None, None]} == undefined
    scores = metrics()
    assert all(bounds == [scores[name]] * 2 for name, bounds in intervals.items() if name not in undefined)
    assert len(intervals) == len(scores) > len(undefined)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_intervals_of_real_scores_enclose_them(problem_type):
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(300, 3))
    logits = (signal + generator.normal(size=signal.shape)).astype(np.float32)
    labels = {SINGLE: signal.argmax(axis=1), MULTI: (signal > 0).astype(np.float32), REGRESSION: signal[:, 0]}
    if problem_type == REGRESSION:
        logits = logits[:, :1]
    prediction = EvalPrediction(predictions=logits, label_ids=labels[problem_type])
    metrics = partial(classification_metrics, prediction, problem_type=problem_type, label_names=["a", "b", "c"])
    intervals, scores = bootstrap_intervals(lambda weights: metrics(weights=weights), 300, resamples=200), metrics()
    assert list(intervals) == list(scores)
    assert all(low < scores[name] < high for name, (low, high) in intervals.items())
