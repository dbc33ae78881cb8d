"""Draw rows, or whole groups of rows, with replacement, swapped, or one left out; and score what was drawn."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import special

Score = Callable[[np.ndarray], dict]
BLOCKS = 1000  # the jackknife leaves out at most so many parts of the data, one at a time


class Rows:
    """Data as its distinct rows, of which samples are drawn as weights `[samples, rows]`.

    Args:
        rows: Number of rows; or `[rows]`, how often each distinct row occurs.
        groups: `[rows]`, the name of each row's group, if whole groups are to be drawn.
    """

    def __init__(self, rows: int | np.ndarray, groups: Sequence | None = None):  # noqa: D107
        self.counts = np.ones(rows, dtype=np.int64) if np.ndim(rows) == 0 else np.asarray(rows)
        names, self.groups = (None, None) if groups is None else np.unique(groups, return_inverse=True)
        self.units = int(self.counts.sum()) if groups is None else len(names)  # that are drawn
        self.kinds = len(self.counts) if groups is None else self.units
        self.kind_of_unit = np.repeat(np.arange(self.kinds), self.counts if groups is None else 1)

    def bootstrap(self, resamples: int, seed: int) -> Iterator[np.ndarray]:
        """Yield batches of samples drawn with replacement, as many units in each as there are."""
        generator = np.random.default_rng(seed)
        few_kinds = 10 * self.kinds < self.units
        for batch in _batches(resamples, len(self.counts) if few_kinds else max(self.units, len(self.counts))):
            if few_kinds:
                weights = generator.multinomial(self.units, self.counts / self.units, size=batch)
            else:
                drawn = self.kind_of_unit[generator.integers(self.units, size=(batch, self.units))]
                drawn += self.kinds * np.arange(batch)[:, None]
                weights = np.bincount(drawn.ravel(), minlength=batch * self.kinds).reshape(batch, self.kinds)
            yield self._by_row(weights)

    def swaps(self, resamples: int, seed: int) -> Iterator[np.ndarray]:
        """Yield batches of how many of each row are swapped, when every unit is with a chance of 1/2."""
        generator = np.random.default_rng(seed)
        times = self.counts if self.groups is None else np.ones(self.kinds, dtype=np.int64)
        for batch in _batches(resamples, len(self.counts)):
            yield self._by_row(generator.binomial(times, 0.5, size=(batch, self.kinds)))

    def jackknife(self, seed: int) -> tuple[Iterator[np.ndarray], np.ndarray]:
        """Return batches of the data with a part left out, and how many such parts there are.

        A part is a unit; of more than `BLOCKS` kinds of units, a random block, which has the same skewness in sum.
        """
        if self.kinds <= BLOCKS:
            parts, times = np.eye(self.kinds, dtype=np.int64), np.bincount(self.kind_of_unit)
        else:
            blocks = np.array_split(np.random.default_rng(seed).permutation(self.units), BLOCKS)
            parts = (np.bincount(self.kind_of_unit[block], minlength=self.kinds) for block in blocks)
            times = np.ones(BLOCKS)
        return (self.counts - self._by_row(part[None]) for part in parts), times

    def _by_row(self, weights: np.ndarray) -> np.ndarray:
        return weights if self.groups is None else weights[:, self.groups] * self.counts


def _batches(samples: int, width: int) -> Iterator[int]:
    size = max(1, 2**20 // width)
    yield from (min(size, samples - done) for done in range(0, samples, size))


def score_once(score: Score, weights: np.ndarray, vectorized: bool) -> dict:
    """Return the scores of one sample `[rows]`."""
    return {name: values[0] for name, values in score(weights[None]).items()} if vectorized else score(weights)


def score_all(score: Score, batches: Iterator[np.ndarray], vectorized: bool) -> dict[str, np.ndarray]:
    """Return the scores of all samples, `[samples]` for each name."""
    found: dict[str, list] = {}
    for batch in batches:
        for scores in [score(batch)] if vectorized else map(score, batch):
            for name, value in scores.items():
                found.setdefault(name, []).append(value)
    join = np.concatenate if vectorized else np.asarray
    return {name: join(values) for name, values in found.items()}


def first_minus_second(score: Score) -> Score:
    """Return the difference of two systems, of a score whose weights are those of both, one after the other."""

    def difference(weights):
        none = np.zeros_like(weights)
        first, second = (score(np.concatenate(pair, axis=-1)) for pair in ((weights, none), (none, weights)))
        return {name: first[name] - second[name] for name in first}

    return difference


def quantiles(values: np.ndarray, levels: Sequence[float]) -> list[float | None]:
    """Return the quantiles of the scores of samples `[samples]`; None if more than 5 % of these are undefined."""
    defined = values[~np.isnan(values)]
    if len(defined) < 0.95 * len(values) or not np.isfinite(levels).all():
        return [None] * len(levels)
    return [float(bound) for bound in np.quantile(defined, levels)]


def bca_levels(
    values: np.ndarray, estimate: float, jackknife: np.ndarray, times: np.ndarray, confidence: float
) -> list[float]:
    """Return at which quantiles of the samples the BCa interval ends.

    Args:
        values: `[samples]` bootstrap scores.
        estimate: The score of the data.
        jackknife: `[parts]` scores with a part left out.
        times: `[parts]` how many such parts there are.
        confidence: Coverage of the interval.

    Source: Efron, Better Bootstrap Confidence Intervals (1987), section 4.
    """
    values = values[~np.isnan(values)]
    if np.isnan(estimate) or not len(values) or np.isnan(jackknife).any():
        return [math.nan, math.nan]
    below = np.mean(values < estimate) / 2 + np.mean(values <= estimate) / 2
    influence = np.average(jackknife, weights=times) - jackknife
    spread = np.sum(times * influence**2) ** 1.5
    acceleration = np.sum(times * influence**3) / (6 * spread) if spread else 0.0
    bias, tail = special.ndtri(below), special.ndtri((1 - confidence) / 2)
    shifts = np.array([bias + tail, bias - tail])
    return special.ndtr(bias + shifts / (1 - acceleration * shifts)).tolist()
