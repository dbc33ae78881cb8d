"""Scores of parts of a test split: by the values of a column, or by length."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MOST_VALUES = 20  # of a column; the rarer ones are put together


def slice_by_quartile(numbers: Sequence[float], name: str) -> list[str]:
    """Return for each row in which quarter of the numbers it is.

    >>> slice_by_quartile([1, 2, 3, 4], "length")
    ['length 1', 'length 2', 'length 3', 'length 4']

    Args:
        numbers: `[rows]`, e.g. tokens per row.
        name: Of what they are.
    """
    numbers = np.asarray(numbers)
    place = np.searchsorted(np.unique(np.quantile(numbers, [0.25, 0.5, 0.75], method="lower")), numbers)
    ends = {k: (numbers[place == k].min(), numbers[place == k].max()) for k in np.unique(place)}
    names = {k: f"{name} {low:g}" + (f" to {high:g}" if high > low else "") for k, (low, high) in ends.items()}
    return [names[k] for k in place]


def slice_by_value(values: Sequence, name: str) -> list[str]:
    """Return for each row the value of a column; `other` for those beyond the 20 most frequent.

    Args:
        values: `[rows]`; more than 20 different numbers are cut into quarters.
        name: Of the column.
    """
    counts = Counter(map(str, values))
    if len(counts) <= MOST_VALUES:
        return [f"{name}={value}" for value in values]
    try:
        return slice_by_quartile([float(value) for value in values], name)
    except (TypeError, ValueError):
        frequent = {value for value, _ in counts.most_common(MOST_VALUES - 1)}
        return [f"{name}={value}" if str(value) in frequent else f"{name}: other" for value in values]


def score_slices(
    score: Callable[[Any, Sequence | None], dict[str, dict]],
    prediction,
    slices: Sequence[str],
    groups: Sequence | None,
) -> dict[str, dict[str, dict]]:
    """Score every slice by itself.

    Args:
        score: `score(prediction, groups)`, to `{name: {"value", "ci95", "n"}}`.
        prediction: An EvalPrediction of all rows.
        slices: `[rows]`, the name of each row's slice.
        groups: `[rows]` or None, as for `score`.

    Returns:
        Per slice, the largest first, its overall scores.
    """
    slices, found = np.asarray(slices), {}
    groups = None if groups is None else np.asarray(groups)
    for name, _ in Counter(slices.tolist()).most_common():
        rows = np.flatnonzero(slices == name)
        part = type(prediction)(prediction.predictions[rows], prediction.label_ids[rows])
        scores = score(part, None if groups is None else groups[rows])
        found[name] = {metric: value for metric, value in scores.items() if "/" not in metric}
    return found
