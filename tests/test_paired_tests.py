"""Paired tests, seeds and corrections of ptft_recipes.significance: figures of scipy, and the promised error rates."""

import math

import numpy as np
import pytest
from scipy import stats

from ptft_recipes.significance import (
    Comparison,
    bootstrap_intervals,
    detectable_difference,
    holm,
    mcnemar,
    mean_over_seeds,
    minimal_detectable_difference,
    paired_bootstrap,
    paired_permutation,
    seeds_and_examples,
)

pytestmark = pytest.mark.filterwarnings("error")


def mean_of_both(a, b):
    """Return the score of two systems, from the values of each per row `[rows]` or, for many studies, `[rows, n]`."""
    both = np.concatenate([a, b])

    def score(weights):
        means = weights @ both / weights.sum(axis=-1, keepdims=weights.ndim > 1 and both.ndim > 1)
        return {"mean": means} if both.ndim == 1 else dict(enumerate(np.moveaxis(means, -1, 0)))

    return score


def two_systems(rows=200, shift=0.15, seed=0):
    generator = np.random.default_rng(seed)
    common = generator.normal(size=rows)
    return common + 0.5 * generator.normal(size=rows) + shift, common + 0.5 * generator.normal(size=rows)


class TestPairedBootstrap:
    def test_it_agrees_with_scipy(self):
        a, b = two_systems()
        found = paired_bootstrap(mean_of_both(a, b), 200, 10_000, vectorized=True)["mean"]
        theirs = stats.bootstrap(((a - b),), np.mean, method="percentile", n_resamples=10_000, rng=1)
        assert found.value == pytest.approx((a - b).mean())
        assert found.standard_error == pytest.approx(theirs.standard_error, rel=0.03)
        interval = theirs.confidence_interval
        assert found.interval == pytest.approx([interval.low, interval.high], abs=0.1 * theirs.standard_error)
        # Normal in the limit.
        assert found.p_value == pytest.approx(2 * stats.norm.sf(found.value / found.standard_error), abs=0.005)

    @pytest.mark.parametrize("shift", [0.0, 0.05, 0.07, 0.1, -0.1])
    def test_interval_and_p_value_agree(self, shift):
        found = paired_bootstrap(mean_of_both(*two_systems(shift=shift)), 200, 4000, vectorized=True)["mean"]
        low, high = found.interval
        assert (found.p_value < 0.05) == (not low <= 0 <= high)

    def test_a_system_does_not_differ_from_itself(self):
        a = np.arange(50.0)
        assert paired_bootstrap(mean_of_both(a, a), 50, 500)["mean"] == Comparison(0.0, [0.0, 0.0], 1.0, 0.0)
        assert paired_permutation(mean_of_both(a, a), 50, 500)["mean"] == 1.0

    def test_one_sample_or_many_at_once_is_the_same(self):
        score = mean_of_both(*two_systems(60))
        one, many = (paired_bootstrap(score, 60, 300, vectorized=v)["mean"] for v in (False, True))
        assert one.interval == pytest.approx(many.interval)
        assert one.p_value == many.p_value
        groups = np.arange(60) // 4
        p_values = [paired_permutation(score, 60, 300, groups=groups, vectorized=v)["mean"] for v in (False, True)]
        assert p_values[0] == p_values[1] < 1

    def test_an_undefined_score_is_none(self):
        score = lambda weights: {"never": math.nan, "mean": float(weights[0])}  # noqa: E731
        assert paired_bootstrap(score, 10, 100)["never"] == Comparison(None, [None, None], None, None)
        assert paired_permutation(score, 10, 100)["never"] is None


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1, 0.2])
def test_the_permutation_test_agrees_with_scipy(shift):
    a, b = two_systems(40, shift, seed=3)
    ours = paired_permutation(mean_of_both(a, b), 40, 20_000, vectorized=True)["mean"]
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), permutation_type="samples", n_resamples=20_000, rng=1
    )
    assert ours == pytest.approx(theirs.pvalue, abs=0.012)


def test_the_permutation_test_of_groups_is_that_of_their_sums():
    a, b = two_systems(60, 0.3)
    groups = np.repeat(np.arange(12), 5)
    ours = paired_permutation(mean_of_both(a, b), 60, 20_000, groups=groups, vectorized=True)["mean"]
    exact = stats.permutation_test(
        (a.reshape(12, 5).sum(1), b.reshape(12, 5).sum(1)),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        permutation_type="samples",
    )
    assert ours == pytest.approx(exact.pvalue, abs=0.01)


class TestMcNemar:
    @pytest.mark.parametrize(("only_a", "only_b"), [(10, 3), (3, 10), (0, 7), (5, 5), (60, 40), (1, 0)])
    def test_it_agrees_with_scipy(self, only_a, only_b):
        total, fewer = only_a + only_b, min(only_a, only_b)
        exact = stats.binomtest(only_a, total, 0.5).pvalue
        assert mcnemar(only_a, only_b) == pytest.approx(exact)
        half = stats.binom.pmf(fewer, total, 0.5) * (2 if only_a == only_b else 1)
        assert mcnemar(only_a, only_b, "mid-p") == pytest.approx(min(1, exact - half) if only_a != only_b else 1)
        chi2 = stats.chisquare([only_a, only_b]).pvalue
        assert mcnemar(only_a, only_b, "chi2") == pytest.approx(chi2)

    def test_the_example_of_fagerland_and_others(self):
        # Table 1 of the paper: 1 and 7 discordant pairs of 21: chi2 0.034, exact 0.070, mid-p 0.039.
        found = [mcnemar(1, 7, method) for method in ("chi2", "exact", "mid-p")]
        assert found == [pytest.approx(p, abs=5e-4) for p in (0.0339, 0.0703, 0.0391)]

    def test_no_discordant_example_is_no_evidence(self):
        assert [mcnemar(0, 0, method) for method in ("exact", "mid-p", "chi2")] == [1.0, 1.0, 1.0]

    def test_an_unknown_method_is_refused(self):
        with pytest.raises(ValueError, match="choose exact, mid-p or chi2"):
            mcnemar(1, 2, "yates")


class TestErrorRates:
    """Many studies at once: each is a score of its own on the same draws."""

    studies = 2000

    def correct(self, rows, accuracy_a=0.7, accuracy_b=0.7, seed=0):
        generator = np.random.default_rng(seed)
        hardness = generator.random((rows, self.studies))  # what is hard is hard for both
        draws = [0.6 * hardness + 0.4 * generator.random(hardness.shape) for _ in "ab"]
        cuts = [np.quantile(draw, accuracy) for draw, accuracy in zip(draws, (accuracy_a, accuracy_b), strict=True)]
        return [(draw < cut).astype(float) for draw, cut in zip(draws, cuts, strict=True)]

    def test_without_a_difference_5_of_100_tests_find_one(self):
        a, b = self.correct(300)
        score = mean_of_both(a, b)
        bootstrap = paired_bootstrap(score, 300, 999, vectorized=True).values()
        assert 0.035 <= np.mean([found.p_value < 0.05 for found in bootstrap]) <= 0.065
        assert 0.93 <= np.mean([found.interval[0] <= 0 <= found.interval[1] for found in bootstrap]) <= 0.97
        permutation = paired_permutation(score, 300, 999, vectorized=True).values()
        assert 0.03 <= np.mean(np.array(list(permutation)) < 0.05) <= 0.065

    def test_mcnemar_keeps_its_level(self):
        a, b = self.correct(300)
        pairs = np.stack([((a > b).sum(axis=0)), (b > a).sum(axis=0)], axis=1).tolist()
        rates = {m: np.mean([mcnemar(*pair, m) < 0.05 for pair in pairs]) for m in ("exact", "mid-p", "chi2")}
        assert 0.035 <= rates["mid-p"] <= 0.06
        assert 0.035 <= rates["chi2"] <= 0.065
        assert rates["exact"] < rates["mid-p"]

    def test_groups_that_are_alike_deceive_a_test_of_examples_and_not_one_of_groups(self):
        generator = np.random.default_rng(0)
        a, b = (generator.normal(size=(40, self.studies)).repeat(8, axis=0) for _ in "ab")
        groups, score = np.arange(40).repeat(8), mean_of_both(a, b)
        by_group = list(paired_permutation(score, 320, 499, groups=groups, vectorized=True).values())
        by_example = list(paired_permutation(score, 320, 499, vectorized=True).values())
        assert 0.035 <= np.mean(np.array(by_group) < 0.05) <= 0.065
        assert np.mean(np.array(by_example) < 0.05) > 0.4
        intervals = [
            found.interval for found in paired_bootstrap(score, 320, 499, groups=groups, vectorized=True).values()
        ]
        assert 0.92 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.97

    def test_holm_keeps_the_rate_of_a_whole_table(self):
        p_values = np.random.default_rng(0).random((5000, 6))
        assert np.mean(p_values.min(axis=1) < 0.05) > 0.25
        assert 0.04 <= np.mean([min(holm(row)) < 0.05 for row in p_values]) <= 0.06

    @pytest.mark.parametrize("rows", [200, 1000])
    def test_the_detectable_difference_is_found_in_80_of_100_studies(self, rows):
        discordance = 0.2
        difference = minimal_detectable_difference(rows, discordance)
        generator = np.random.default_rng(0)
        only_a = (discordance + difference) / 2
        counts = generator.multinomial(rows, [only_a, discordance - only_a, 1 - discordance], size=self.studies)
        assert np.mean([mcnemar(*pair, "chi2") < 0.05 for pair in counts[:, :2].tolist()]) == pytest.approx(
            0.8, abs=0.03
        )
        # Its standard error under the alternative says nearly the same.
        error = math.sqrt((discordance - difference**2) / rows)
        assert detectable_difference(error) == pytest.approx(difference, rel=0.02)


class TestSeeds:
    x = np.array([0.71, 0.74, 0.70, 0.75, 0.73])
    y = np.array([0.70, 0.71, 0.70, 0.72, 0.73])

    def test_intervals_and_tests_are_students(self):
        found, theirs = mean_over_seeds(self.x), stats.ttest_1samp(self.x, 0)
        assert found.interval == pytest.approx(list(theirs.confidence_interval()))
        found, theirs = mean_over_seeds(self.x - self.y), stats.ttest_rel(self.x, self.y)
        assert found.p_value == pytest.approx(theirs.pvalue)
        assert found.interval == pytest.approx(list(theirs.confidence_interval()))
        assert found.value == pytest.approx((self.x - self.y).mean())

    def test_one_seed_has_no_interval(self):
        assert mean_over_seeds([0.7]) == Comparison(0.7, [None, None], None, None)
        score = lambda weights: {"accuracy": np.array([0.7])}  # noqa: E731
        assert seeds_and_examples(score, 50)["accuracy"] == Comparison(0.7, [None, None], None, None)

    def test_equal_seeds_do_not_differ(self):
        assert mean_over_seeds([0.0, 0.0]).p_value == 1.0

    @pytest.mark.parametrize("paired", [True, False])
    def test_without_chance_in_the_examples_it_is_the_t_test_over_seeds(self, paired):
        x, y = self.x, self.y if paired else self.y[:4]
        found = seeds_and_examples(
            lambda weights: {"score": x}, 100, lambda weights: {"score": y}, 50, paired_seeds=paired
        )["score"]
        theirs = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
        assert found.p_value == pytest.approx(theirs.pvalue)
        assert found.interval == pytest.approx(list(theirs.confidence_interval()))

    def test_without_chance_in_the_seeds_it_is_the_t_test_over_examples(self):
        a, b = two_systems(80)

        def mean(values):
            return lambda weights: {"mean": (weights @ values / weights.sum(axis=-1))[:, None].repeat(4, axis=1)}

        found = seeds_and_examples(mean(a), 80, mean(b), 20_000, vectorized=True)["mean"]
        theirs = stats.ttest_rel(a, b)
        assert found.p_value == pytest.approx(theirs.pvalue, rel=0.1)
        assert found.interval == pytest.approx(list(theirs.confidence_interval()), abs=0.005)

    @pytest.mark.parametrize("seeds", [3, 5])
    def test_intervals_over_seeds_and_examples_cover_where_resampling_both_does_not(self, seeds):
        studies, rows, resamples = 600, 200, 200
        generator = np.random.default_rng(seeds)
        both, covered = generator.integers(seeds, size=(resamples, seeds)), []
        seed_counts = np.stack([np.bincount(row, minlength=seeds) for row in both]) / seeds
        for _ in range(studies):  # difference = 0 + seed + example + their interaction
            x = generator.normal(size=seeds) * 0.1 + generator.normal(size=(rows, 1)) * 0.3
            x += generator.normal(size=(rows, seeds)) * 0.3
            drawn = []

            def score(weights, x=x, drawn=drawn):
                scores = weights @ x / rows
                drawn.append(scores)
                return {"mean": scores}

            low, high = seeds_and_examples(score, rows, resamples=resamples, vectorized=True)["mean"].interval
            naive = np.quantile((np.concatenate(drawn)[-resamples:] * seed_counts).sum(axis=1), [0.025, 0.975])
            covered.append((low <= 0 <= high, naive[0] <= 0 <= naive[1]))
        ours, naive = np.mean(covered, axis=0)
        assert 0.93 <= ours <= 0.97
        assert naive < 0.92

    def test_of_groups_the_degrees_of_freedom_are_those_of_the_groups(self):
        x = np.random.default_rng(0).normal(size=6).repeat(50)
        score = lambda weights: {"mean": (weights @ x / 300)[:, None].repeat(3, axis=1)}  # noqa: E731
        found = seeds_and_examples(score, 300, resamples=20_000, groups=np.arange(6).repeat(50), vectorized=True)
        assert found["mean"].interval == pytest.approx(
            list(stats.ttest_1samp(x[::50], 0).confidence_interval()), abs=0.02
        )


class TestHolm:
    def test_a_worked_example(self):
        # Of Aickin and Gensler (1996), as R's p.adjust has it.
        assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
        assert holm([0.9, 0.001]) == pytest.approx([0.9, 0.002])
        assert holm([]) == []

    def test_it_is_the_closed_bonferroni_test(self):
        p_values = np.random.default_rng(1).random(5) ** 3
        subsets = [[i for i in range(5) if mask >> i & 1] for mask in range(1, 32)]
        closed = [
            max(min(1, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s) for i in range(5)
        ]  # a hypothesis falls when every intersection with it does
        assert holm(p_values) == pytest.approx(closed)


def test_what_no_system_can_show_is_none():
    assert minimal_detectable_difference(20, 0.05) is None
    assert minimal_detectable_difference(100, 0.1) < minimal_detectable_difference(100, 0.2)
    assert minimal_detectable_difference(400, 0.1) == pytest.approx(
        minimal_detectable_difference(100, 0.1) / 2, rel=0.1
    )


def test_small_samples_are_where_percentile_intervals_do_not_cover():
    x = np.random.default_rng(0).normal(size=(8, 2000))
    found = bootstrap_intervals(lambda w: dict(enumerate((w @ x / 8).T)), 8, 1000, vectorized=True)
    assert np.mean([low <= 0 <= high for low, high in found.values()]) < 0.92
