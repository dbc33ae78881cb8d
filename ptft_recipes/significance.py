"""Intervals and tests by resampling; numpy only."""

from collections.abc import Callable

import numpy as np

Scores = dict[str, float]


def bootstrap_intervals(
    score: Callable[[np.ndarray], Scores], rows: int, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, list[float | None]]:
    """Percentile bootstrap intervals of any set of scores, resampling examples.

    Args:
        score: From `weights` `[rows]`, how often each example stands in the sample, to named scores.
        rows: Number of examples.
        resamples: Number of bootstrap samples.
        confidence: Coverage of the intervals.
        seed: Of the resampling; the same data gives the same intervals.

    Returns:
        `{name: [low, high]}`; `[None, None]` for a score that is undefined (nan) in more than 5 % of the resamples.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    generator = np.random.default_rng(seed)
    samples: dict[str, list[float]] = {}
    for _ in range(resamples):
        weights = np.bincount(generator.integers(rows, size=rows), minlength=rows)
        for name, value in score(weights).items():
            samples.setdefault(name, []).append(value)
    tail = (1 - confidence) / 2
    intervals: dict[str, list[float | None]] = {}
    for name, values in samples.items():
        defined = np.asarray(values)[~np.isnan(values)]
        if len(defined) < 0.95 * resamples:
            intervals[name] = [None, None]
        else:
            intervals[name] = [float(bound) for bound in np.quantile(defined, [tail, 1 - tail])]
    return intervals
