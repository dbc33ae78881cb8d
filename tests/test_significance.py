"""Bootstrap intervals: the right numbers, the right coverage, and no surprise in degenerate samples."""

import math
import time
from functools import partial

import numpy as np
import pytest
from scipy import stats
from transformers import EvalPrediction

from ptft_recipes.labels import MULTI, REGRESSION, SINGLE
from ptft_recipes.metrics import classification_metrics, roc_auc, single_label_scores, vectorized_label_scores
from ptft_recipes.resampling import Rows, score_all
from ptft_recipes.significance import bootstrap_intervals, paired_bootstrap, paired_permutation

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


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize("name", STATISTICS)
def test_intervals_agree_with_scipy(name, confidence, method):
    rows, resamples, statistic = 120, 4000, STATISTICS[name]
    x = values(rows) ** 3
    y = x + values(rows, seed=1)

    def score(weights):
        return {name: statistic(np.repeat(x, weights), np.repeat(y, weights))}

    low, high = bootstrap_intervals(score, rows, resamples=resamples, confidence=confidence, method=method)[name]
    theirs = stats.bootstrap(
        (x, y), statistic, paired=True, vectorized=False, method=method,
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


class TestDistinctRows:
    """Rows that are alike as one row with a count: the same statistics, drawn at once."""

    labels = np.random.default_rng(0).integers(3, size=1500)
    predicted = np.where(np.random.default_rng(1).random(1500) < 0.7, labels, (labels + 1) % 3)
    names = ("a", "b", "c")

    def by_example(self, weights):
        scores = single_label_scores(np.eye(3)[self.predicted], self.labels, weights, list(self.names))
        return {name: scores[name] for name in ("accuracy", "macro_f1", "matthews_correlation", "f1/b")}

    def test_scores_are_those_of_the_examples(self):
        score, counts = vectorized_label_scores(self.labels, self.predicted, label_names=self.names)
        assert counts.sum() == 1500
        assert len(counts) == 6
        once = {name: values[0] for name, values in score(counts[None]).items()}
        for name, value in self.by_example(np.ones(1500)).items():
            assert once[name] == pytest.approx(value, abs=1e-12)

    @pytest.mark.parametrize("method", ["percentile", "bca"])
    def test_intervals_are_those_of_the_examples(self, method):
        score, counts = vectorized_label_scores(self.labels, self.predicted, label_names=self.names)
        fast = bootstrap_intervals(score, counts, 20_000, method=method, vectorized=True)
        slow = bootstrap_intervals(self.by_example, 1500, 2000, method=method, seed=1)
        for name, (low, high) in slow.items():
            tolerance = 0.25 * (high - low) / 4
            assert fast[name] == [pytest.approx(low, abs=tolerance), pytest.approx(high, abs=tolerance)]

    def test_the_jackknife_is_that_of_the_examples(self):
        score, counts = vectorized_label_scores(self.labels[:90], self.predicted[:90], label_names=self.names)
        batches, times = Rows(counts).jackknife(0)
        left_out = np.repeat(score_all(score, batches, vectorized=True)["macro_f1"], times)
        everything = [single_label_scores(np.eye(3)[self.predicted[:90]], self.labels[:90], 1 - row)["macro_f1"]
                      for row in np.eye(90)]  # fmt: skip
        assert np.sort(left_out) == pytest.approx(np.sort(everything), abs=1e-12)

    def test_of_many_rows_the_jackknife_leaves_out_blocks_with_the_same_acceleration(self):
        x = np.random.default_rng(0).exponential(size=20_000)
        data = Rows(20_000)
        left_out, times = data.jackknife(0)
        means = np.concatenate([weights @ x / weights.sum() for weights in left_out])
        influence = means.mean() - means
        found = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
        # Of a mean it is the skewness by 6 sqrt(n): 2 / 849.
        assert len(times) == 1000
        assert found == pytest.approx(stats.skew(x) / (6 * math.sqrt(20_000)), abs=0.0015)

    def test_10000_resamples_of_100000_examples_take_seconds(self):
        generator = np.random.default_rng(0)
        labels = generator.integers(5, size=100_000)
        a, b = (np.where(generator.random(100_000) < 0.8, labels, (labels + 1) % 5) for _ in "ab")
        start = time.perf_counter()
        names = list("abcde")
        score, counts = vectorized_label_scores(labels, a, label_names=names)
        low, high = bootstrap_intervals(score, counts, 10_000, method="bca", vectorized=True)["macro_f1"]
        score, counts = vectorized_label_scores(labels, a, b, label_names=names)
        compared = paired_bootstrap(score, counts, vectorized=True)["macro_f1"]
        p_value = paired_permutation(score, counts, vectorized=True)["macro_f1"]
        assert time.perf_counter() - start < 10  # 1 s on a quiet core
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.8 * 0.2 / 1e5), rel=0.05)
        assert p_value == pytest.approx(compared.p_value, abs=0.02)


class TestGroups:
    def test_to_draw_groups_is_to_draw_their_sums(self):
        x, groups = values(60), np.repeat(np.arange(12), 5)[np.random.default_rng(0).permutation(60)]
        sums = np.bincount(groups, weights=x)
        whole = bootstrap_intervals(mean_of(x), 60, groups=[f"document {g}" for g in groups])
        names = np.argsort(np.argsort([f"document {g}" for g in range(12)]))
        in_order = np.empty(12)
        in_order[names] = sums
        by_sum = bootstrap_intervals(lambda w: {"mean": float(w @ in_order / 60)}, 12)
        assert whole["mean"] == pytest.approx(by_sum["mean"])

    def test_intervals_of_groups_cover_where_those_of_examples_do_not(self):
        generator, samples, groups = np.random.default_rng(0), 1000, np.repeat(np.arange(80), 10)
        x = generator.normal(size=(80, samples)).repeat(10, axis=0) + generator.normal(size=(800, samples))

        def score(weights):
            return dict(enumerate((weights @ x / weights.sum(axis=1, keepdims=True)).T))

        def coverage(groups):
            found = bootstrap_intervals(score, 800, 600, groups=groups, vectorized=True)
            return np.mean([low <= 0 <= high for low, high in found.values()])

        assert 0.93 <= coverage(groups) <= 0.97
        assert coverage(None) < 0.7


def misses(x, mean, method):
    """Return how often the mean of each column is above its interval, and how often below."""

    def score(weights):
        return dict(enumerate((weights @ x / weights.sum(axis=1, keepdims=True)).T))

    found = bootstrap_intervals(score, len(x), 1000, method=method, vectorized=True)
    low, high = np.array(list(found.values())).T
    return np.mean(high < mean), np.mean(low > mean)


def test_bca_covers_a_skewed_mean_from_both_sides_where_percentiles_are_too_low():
    generator = np.random.default_rng(0)
    assert 0.03 <= sum(misses(generator.exponential(size=(200, 2000)), 1, "bca")) <= 0.07
    x = generator.lognormal(size=(100, 2000))
    above, below = misses(x, math.exp(0.5), "percentile")
    assert above > 4 * below
    better, worse = misses(x, math.exp(0.5), "bca")
    assert better < 2 * worse


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_a_constant_score_has_an_interval_without_width(method):
    score = lambda weights: {"accuracy": float(weights.sum() / weights.sum())}  # noqa: E731
    assert bootstrap_intervals(score, 30, 100, method=method) == {"accuracy": [1.0, 1.0]}


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="choose percentile or bca"):
        bootstrap_intervals(mean_of(values()), 100, method="studentized")
