"""Which row is read when: draws that know their epoch, so that what is done to a row depends on nothing else."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from torch.utils import data

from ptft_recipes.acceleration import LengthGroupedSampler


class Draw(NamedTuple):
    """A row, how often it has been drawn before, and the share of training that is over."""

    row: int
    epoch: int
    progress: float


class MixingSampler(data.Sampler[int]):
    """Every row of the first corpus once per epoch, and of each other one as many as make up its share.

    The other corpora go round: none of their rows is drawn again before all were drawn.

    Args:
        lengths: `[rows]` tokens per row, for groups of similar length; all the same for random ones.
        corpus: `[rows]` number of the corpus that the row is from.
        shares: Of the corpora from the second on, in all rows that are drawn.
        group_size: As for `LengthGroupedSampler`.
        seed: Of the choice and of the order.
    """

    def __init__(  # noqa: D107
        self, lengths: Sequence[int], corpus: Sequence[int], shares: Sequence[float], group_size: int, seed: int
    ):
        self.lengths, corpus = np.asarray(lengths), np.asarray(corpus)
        self.rows = [np.flatnonzero(corpus == k) for k in range(1 + len(shares))]
        rest = 1 - sum(shares)
        self.counts = [len(self.rows[0]), *(round(len(self.rows[0]) * share / rest) for share in shares)]
        self.group_size, self.seed, self.epoch = group_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the rows and their order; Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:  # noqa: D105
        return sum(self.counts)

    def chosen(self) -> np.ndarray:
        """Return the rows of the epoch, in the order of the corpora."""
        parts = []
        for k, (rows, count) in enumerate(zip(self.rows, self.counts, strict=True)):
            place = self.epoch * count + np.arange(count)
            rounds = range(place[0] // len(rows), place[-1] // len(rows) + 1) if count else range(0)
            order = [np.random.default_rng([self.seed, k, n]).permutation(rows) for n in rounds]
            first = place[0] % len(rows) if count else 0
            parts += [np.concatenate(order)[first : first + count]] if count else []
        return np.concatenate(parts)

    def __iter__(self) -> Iterator[int]:  # noqa: D105
        chosen = self.chosen()
        order = LengthGroupedSampler(self.lengths[chosen], self.group_size, self.seed)
        order.set_epoch(self.epoch)
        return iter(chosen[list(order)].tolist())


class DrawSampler(data.Sampler[Draw]):
    """Turns the row numbers of a sampler into draws.

    The epoch travels with the row number through the loader: a `set_epoch` on a data set or collator does not reach
    workers that live on, and accelerate does not call it on resume.

    Args:
        sampler: Of row numbers, with `set_epoch`.
        epochs: Of the whole training, not a whole number when it stops within one.
    """

    def __init__(self, sampler, epochs: float):  # noqa: D107
        self.sampler, self.total = sampler, epochs * len(sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; Trainer calls this."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:  # noqa: D105
        return len(self.sampler)

    def __iter__(self) -> Iterator[Draw]:  # noqa: D105
        epoch = self.sampler.epoch
        for place, row in enumerate(self.sampler, start=epoch * len(self)):
            yield Draw(row, epoch, min(place / self.total, 1.0))


class DrawnRows(data.Dataset):
    """The rows of a data set as examples that hold their draw: `row`, `epoch` and `progress`."""

    def __init__(self, dataset: Dataset):  # noqa: D107
        self.dataset = dataset

    def __len__(self) -> int:  # noqa: D105
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:  # noqa: D105
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[dict[str, Any]]:  # noqa: D105
        columns = self.dataset[[draw.row for draw in draws]]
        return [{name: values[i] for name, values in columns.items()} | draw._asdict() for i, draw in enumerate(draws)]
