"""Is it real? Intervals and paired tests: by resampling, and by Student's t where seeds are too few to resample.

A score is a function of weights, how often each row of the data counts: one function for every way to resample. Rows
that are alike (the same gold and predicted labels) can be one row with a count: a bootstrap sample is then a
multinomial draw over the distinct rows, exact and nearly free. A `vectorized` score takes many samples at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from ptft_recipes.resampling import Rows, Score, bca_levels, first_minus_second, quantiles, score_all, score_once


@dataclass(frozen=True)
class Comparison:
    """A difference, or a mean, with what is known of its chance error; None where it is undefined."""

    value: float | None
    interval: list[float | None]
    p_value: float | None  # two-sided, of the hypothesis that the true value is 0
    standard_error: float | None


def bootstrap_intervals(
    score: Score,
    rows: int | np.ndarray,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    *,
    method: str = "percentile",
    groups: Sequence | None = None,
    vectorized: bool = False,
) -> dict[str, list[float | None]]:
    """Bootstrap intervals of any set of scores, resampling examples, or whole groups of them.

    Percentile intervals of a mean or an accuracy cover what they promise from about 50 examples (or groups) on; below,
    and near the end of a score's range, they are too narrow. BCa corrects bias and skewness, not small numbers.

    Args:
        score: From `weights` `[rows]`, how often each example stands in the sample, to named scores.
        rows: Number of examples; or `[rows]`, how often each distinct row occurs in the data.
        resamples: Number of bootstrap samples.
        confidence: Coverage of the intervals.
        seed: Of the resampling; the same data gives the same intervals.
        method: `percentile`, or `bca`, which calls `score` up to 1,000 times more for its jackknife.
        groups: `[rows]`, the document or speaker of each row: whole groups are drawn, as their rows are alike.
        vectorized: `score` takes `[samples, rows]` and returns `[samples]` for each name.

    Returns:
        `{name: [low, high]}`; `[None, None]` for a score that is undefined (nan) in more than 5 % of the resamples.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 14.
    """
    data = Rows(rows, groups)
    samples = score_all(score, data.bootstrap(resamples, seed), vectorized)
    if method == "percentile":
        tail = (1 - confidence) / 2
        return {name: quantiles(values, [tail, 1 - tail]) for name, values in samples.items()}
    if method != "bca":
        raise ValueError(f"method {method!r}: choose percentile or bca")
    estimate = score_once(score, data.counts, vectorized)
    left_out, times = data.jackknife(seed)
    jackknife = score_all(score, left_out, vectorized)
    return {
        name: quantiles(values, bca_levels(values, estimate[name], jackknife[name], times, confidence))
        for name, values in samples.items()
    }


def paired_bootstrap(
    score: Score,
    rows: int | np.ndarray,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    *,
    groups: Sequence | None = None,
    vectorized: bool = False,
) -> dict[str, Comparison]:
    """Compare the scores of system A and system B on the same examples: A minus B, drawing the same examples for both.

    Args:
        score: From `weights` `[2 * rows]` to named scores: those of the rows as predicted by A, then those of the same
            rows as predicted by B. Any metric does this on the predictions of both, one after the other.
        rows: As for `bootstrap_intervals`.
        resamples: Number of bootstrap samples.
        confidence: Coverage of the interval.
        seed: Of the resampling.
        groups: `[rows]`.
        vectorized: `score` takes `[samples, 2 * rows]`.

    Returns:
        Per name the difference with its percentile interval; at the p-value as its level, this interval ends at 0.

    Source: Koehn, Statistical Significance Tests for Machine Translation Evaluation (2004), section 3; Efron and
    Tibshirani (1993), section 15.4.
    """
    data, tail = Rows(rows, groups), (1 - confidence) / 2
    difference = first_minus_second(score)
    estimate = score_once(difference, data.counts, vectorized)
    found = {}
    for name, values in score_all(difference, data.bootstrap(resamples, seed), vectorized).items():
        interval, p_value, error = quantiles(values, [tail, 1 - tail]), None, None
        if interval[0] is not None:
            values = values[~np.isnan(values)]
            fewer = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
            p_value, error = min(1.0, float(2 * (1 + fewer) / (1 + len(values)))), float(values.std(ddof=1))
        found[name] = Comparison(_or_none(estimate[name]), interval, p_value, error)
    return found


def paired_permutation(
    score: Score,
    rows: int | np.ndarray,
    resamples: int = 10_000,
    seed: int = 0,
    *,
    groups: Sequence | None = None,
    vectorized: bool = False,
) -> dict[str, float | None]:
    """Test whether two systems differ, by swapping their predictions at random, per example or per group.

    Args:
        score: As for `paired_bootstrap`.
        rows: As for `bootstrap_intervals`, like the rest; the predictions of a group are swapped together.
        resamples: Number of random swaps.
        seed: Of the swaps.
        groups: `[rows]`.
        vectorized: `score` takes `[samples, 2 * rows]`.

    Returns:
        Per name the two-sided p-value, (1 + swaps that differ at least as much) / (1 + swaps), which is never 0; None
        where the difference itself is undefined.

    Source: Fisher, The Design of Experiments (1935), section 21; Noreen, Computer-Intensive Methods for Testing
    Hypotheses (1989), section 2.9; Phipson and Smyth (2010) for the 1.
    """
    data = Rows(rows, groups)
    observed = score_once(first_minus_second(score), data.counts, vectorized)

    def difference(swapped):
        kept = data.counts - swapped
        first, second = (score(np.concatenate(pair, axis=-1)) for pair in ((kept, swapped), (swapped, kept)))
        return {name: first[name] - second[name] for name in first}

    p_values = {}
    for name, values in score_all(difference, data.swaps(resamples, seed), vectorized).items():
        # Sums in another order differ in their last digits. An undefined swap speaks for no difference.
        smaller = np.abs(values) < abs(observed[name]) * (1 - 1e-9)
        share = (1 + resamples - np.count_nonzero(smaller)) / (1 + resamples)
        p_values[name] = None if np.isnan(observed[name]) else share
    return p_values


def mcnemar(only_a: int, only_b: int, method: str = "exact") -> float:
    """Test whether two classifiers are right equally often, from the examples on which one of them is wrong.

    Args:
        only_a: Examples that only A has right.
        only_b: Examples that only B has right.
        method: `exact`, the binomial test, whose false positives stay below its level; `mid-p`, closer to it; or
            `chi2`, without continuity correction, for 25 such examples or more.

    Returns:
        The two-sided p-value.

    Source: McNemar (1947); Fagerland, Lydersen and Laake, The McNemar Test for Binary Matched-Pairs Data (2013).
    """
    total, fewer = only_a + only_b, min(only_a, only_b)
    if total == 0:
        return 1.0
    if method == "chi2":
        return float(special.chdtrc(1, (only_a - only_b) ** 2 / total))
    if method not in ("exact", "mid-p"):
        raise ValueError(f"method {method!r}: choose exact, mid-p or chi2")
    both_tails = 2 * special.bdtr(fewer, total, 0.5)
    here = special.bdtr(fewer, total, 0.5) - (special.bdtr(fewer - 1, total, 0.5) if fewer else 0.0)
    return float(min(1.0, both_tails - (here if method == "mid-p" else 0.0)))


def mean_over_seeds(values: Sequence[float], confidence: float = 0.95) -> Comparison:
    """Return the mean over seeds with its t interval; over paired differences, the paired t test.

    It speaks of further seeds on this test set; of further examples too speaks `seeds_and_examples`.

    Args:
        values: `[seeds]` scores of an arm; or the difference of two arms for each seed.
        confidence: Coverage of the interval.

    Returns:
        With interval, p-value and standard error None for a single seed.

    Source: Student, The Probable Error of a Mean (1908).
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Comparison(_or_none(values.mean()), [None, None], None, None)
    return _by_t(values.mean(), values.var(ddof=1) / len(values), len(values) - 1, confidence)


def seeds_and_examples(
    score: Score,
    rows: int | np.ndarray,
    baseline: Score | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    *,
    paired_seeds: bool = True,
    groups: Sequence | None = None,
    vectorized: bool = False,
) -> dict[str, Comparison]:
    """Return an arm's mean over seeds, minus that of a baseline, with the error of both: other seeds, other examples.

    The variance over seeds is the sample variance divided by their number; that over examples is the bootstrap's, with
    the same examples for every seed and both arms; what both contain, chance by seed and example, is taken off once.
    The sum has a t interval, with Satterthwaite's degrees of freedom. To resample the seeds too would be too sure of
    itself: of three seeds, one bootstrap sample in nine is three times the same.

    Args:
        score: From `weights` `[rows]` to `[seeds]` for each name: of an arm's runs on the same test set.
        rows: As for `bootstrap_intervals`.
        baseline: Likewise, of the arm to compare with; None for the score of one arm.
        resamples: Number of bootstrap samples.
        confidence: Coverage of the interval.
        seed: Of the resampling.
        paired_seeds: The runs of the two arms are pairs, in this order; else they may differ in number (Welch).
        groups: `[rows]`.
        vectorized: The scores take `[samples, rows]` and return `[samples, seeds]` for each name.

    Returns:
        Per name a `Comparison`, with interval, p-value and standard error None where an arm has one seed.

    Source: Satterthwaite, An Approximate Distribution of Estimates of Variance Components (1946); Owen, The Pigeonhole
    Bootstrap (2007), for the crossed variances.
    """
    data = Rows(rows, groups)
    scores = [score] if baseline is None else [score, baseline]
    arms = [score_once(arm, data.counts, vectorized) for arm in scores]  # [seeds] for each name
    samples = [score_all(arm, data.bootstrap(resamples, seed), vectorized) for arm in scores]  # [resamples, seeds]
    if paired_seeds and baseline is not None:
        arms, samples = ([{name: first[name] - second[name] for name in first}] for first, second in (arms, samples))
    found = {}
    for name in arms[0]:
        values, drawn = [arm[name] for arm in arms], [arm[name] for arm in samples]
        value = values[0].mean() - (values[1].mean() if len(values) > 1 else 0)
        mean = drawn[0].mean(axis=1) - (drawn[1].mean(axis=1) if len(drawn) > 1 else 0)
        if min(map(len, values)) < 2 or data.units < 2 or np.isnan(mean).mean() > 0.05:
            found[name] = Comparison(_or_none(value), [None, None], None, None)
            continue
        bias = data.units / (data.units - 1)  # by which the bootstrap's variance is short
        of_examples = bias * np.nanvar(mean)
        of_seeds = [arm.var(ddof=1) / len(arm) for arm in values]
        in_both = [bias * np.nanvar(arm - arm.mean(axis=1, keepdims=True), axis=0) for arm in drawn]
        in_both = [arm.sum() / (len(arm) * (len(arm) - 1)) for arm in in_both]
        variance = max(sum(of_seeds) + of_examples - sum(in_both), sum(of_seeds), of_examples)
        parts = [(of_examples, data.units - 1), *((v, len(arm) - 1) for v, arm in zip(of_seeds, values, strict=True))]
        degrees = variance**2 / sum(part**2 / freedom for part, freedom in parts) if variance else 1
        found[name] = _by_t(value, variance, degrees, confidence)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several comparisons, so that one false positive among them all is as rare as promised.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).
    """
    order, corrected = np.argsort(p_values), np.empty(len(p_values))
    factors = np.arange(len(p_values), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values, dtype=float)[order]), 1)
    return corrected.tolist()


def detectable_difference(standard_error: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest true difference that a two-sided test finds with the given power, from its standard error.

    Source: Card et al., With Little Power Comes Great Responsibility (EMNLP 2020), for why to report it.
    """
    return float((special.ndtri(1 - alpha / 2) + special.ndtri(power)) * standard_error)


def minimal_detectable_difference(
    rows: int, discordance: float, power: float = 0.8, alpha: float = 0.05
) -> float | None:
    """Return the smallest true difference of two accuracies that a test set finds with the given power.

    Args:
        rows: Test examples.
        discordance: Share of the examples on which exactly one of the two systems is right.
        power: Chance to find the difference.
        alpha: Level of the two-sided McNemar test.

    Returns:
        None where even a system that wins all discordant examples would not be found that often.

    Source: Connor, Sample Size for Testing Differences in Proportions for the Paired-Sample Design (1987), solved.
    """
    a, b = special.ndtri(1 - alpha / 2), special.ndtri(power)
    root = np.sqrt(max(a**2 * rows - (rows + b**2) * (a**2 - b**2), 0))
    difference = float(np.sqrt(discordance) * (a * np.sqrt(rows) + root) / (rows + b**2))
    return difference if difference <= discordance else None


def _by_t(value: float, variance: float, degrees: float, confidence: float) -> Comparison:
    error = math.sqrt(variance)
    half = special.stdtrit(degrees, (1 + confidence) / 2) * error
    p_value = 2 * special.stdtr(degrees, -abs(value) / error) if error else float(value == 0)
    return Comparison(float(value), [float(value - half), float(value + half)], float(p_value), error)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
