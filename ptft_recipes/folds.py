"""Cross-validation: which rows are tested on in which fold, with equal shares of labels and whole groups."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptft_recipes.errors import InputError

FOLD_SEED = 0  # one division for every seed and every arm


@dataclass(frozen=True)
class Fold:
    """One fold of several, and the column whose rows of one value stay together."""

    number: int
    count: int
    group_column: str | None


def parse_fold(text: str | None) -> Fold | None:
    """Read `number/count` or `number/count/column`, with numbers from 0 on.

    >>> parse_fold("0/5/paper")
    Fold(number=0, count=5, group_column='paper')

    Raises:
        InputError: It is of another form.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})(?:/(.+))?", text)
    if not match or not int(match[1]) < int(match[2]) or int(match[2]) < 2:
        raise InputError(f"--fold {text}: expected <number>/<count>, e.g. 0/5 to 4/5, or 0/5/<column of groups>")
    return Fold(int(match[1]), int(match[2]), match[3])


def assign_folds(labels: Sequence | None, groups: Sequence | None, count: int, rows: int) -> np.ndarray:
    """Return the fold of every row, `[rows]`, always by the same seed.

    Args:
        labels: `[rows]`, of which every fold gets its share: class numbers, numbers, or 0 and 1 per label; or None.
        groups: `[rows]`: those of one group are in one fold; the shares are then as equal as whole groups allow.
        count: Number of folds.
        rows: How many there are.

    Raises:
        InputError: There are fewer rows, or groups, than folds.
    """
    names, group = np.unique(np.arange(rows) if groups is None else [str(g) for g in groups], return_inverse=True)
    if len(names) < count:
        raise InputError(
            f"--fold: {len(names)} {'rows' if groups is None else 'groups'} are too few for {count} folds"
        )
    generator = np.random.default_rng(FOLD_SEED)
    if groups is None:
        order = generator.permutation(rows).tolist()
        if labels is not None:
            order.sort(key=lambda row: labels[row])
        folds = np.empty(rows, dtype=int)
        folds[order] = np.arange(rows) % count
        return folds
    # As scikit-learn's StratifiedGroupKFold: the most uneven groups first, each where it evens out the labels best.
    numbers = labels is None or isinstance(labels[0], float)
    kinds = np.zeros(rows, int) if numbers else np.unique(np.array(labels), axis=0, return_inverse=True)[1].ravel()
    counts = np.zeros((len(names), kinds.max() + 1))
    np.add.at(counts, (group, kinds), 1)
    shares, filled, fold_of = (
        counts / counts.sum(axis=0),
        np.zeros((count, counts.shape[1])),
        np.empty(len(names), int),
    )
    shuffled = generator.permutation(len(names))
    for i in shuffled[np.lexsort((-counts[shuffled].sum(axis=1), -counts[shuffled].std(axis=1)))]:
        spread = [np.std(filled + np.eye(count)[k][:, None] * shares[i], axis=0).mean() for k in range(count)]
        fold_of[i] = min(range(count), key=lambda k: (round(spread[k], 12), filled[k].sum()))
        filled[fold_of[i]] += shares[i]
    return fold_of[group]
