"""Scores of parts of a test split: by the values of a column, or by length."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MOST_VALUES = 20  # of a column; the rarer ones are put together


def slice_by_quartile(numbers: Sequence[float], name: str) -> dict[str, np.ndarray]:
    """Return the rows of each quarter of the numbers, the lowest first; equal numbers stay together.

    >>> slice_by_quartile([7, 1, 1, 9], "length")
    {'length 1': array([1, 2]), 'length 7': array([0]), 'length 9': array([3])}

    Args:
        numbers: `[rows]`, e.g. tokens per row.
        name: Of what they are.
    """
    numbers = np.asarray(numbers)
    place = np.searchsorted(np.unique(np.quantile(numbers, [0.25, 0.5, 0.75], method="lower")), numbers)
    slices = {}
    for rows in (np.flatnonzero(place == k) for k in np.unique(place)):
        low, high = numbers[rows].min(), numbers[rows].max()
        slices[f"{name} {low:g}" + (f" to {high:g}" if high > low else "")] = rows
    return slices


def slice_by_value(values: Sequence, name: str) -> dict[str, np.ndarray]:
    """Return the rows of each value of a column, the most frequent first, and all beyond 20 values as `other`.

    Args:
        values: `[rows]`; more than 20 different numbers are cut into quarters.
        name: Of the column.
    """
    texts = np.array([str(value) for value in values], dtype=object)
    counts = Counter(texts)
    if len(counts) > MOST_VALUES:
        try:
            return slice_by_quartile([float(value) for value in values], name)
        except (TypeError, ValueError):
            pass
    frequent = [value for value, _ in counts.most_common(MOST_VALUES - (len(counts) > MOST_VALUES))]
    slices = {f"{name}={value}": np.flatnonzero(texts == value) for value in frequent}
    rest = np.flatnonzero(~np.isin(texts, frequent))
    return slices | ({f"{name}: other": rest} if len(rest) else {})


def score_slices(
    score: Callable[[Any, Sequence | None], dict[str, dict]],
    prediction,
    slices: dict[str, np.ndarray],
    groups: Sequence | None,
) -> dict[str, dict[str, dict]]:
    """Score every slice by itself.

    Args:
        score: `score(prediction, groups)`, to `{name: {"value", "ci95", "n"}}`.
        prediction: An EvalPrediction of all rows.
        slices: The rows of each.
        groups: `[rows]` or None, as for `score`.

    Returns:
        Per slice its overall scores.
    """
    found = {}
    for name, rows in slices.items():
        part = type(prediction)(prediction.predictions[rows], prediction.label_ids[rows])
        scores = score(part, None if groups is None else np.asarray(groups)[rows])
        found[name] = {metric: value for metric, value in scores.items() if "/" not in metric}
    return found
