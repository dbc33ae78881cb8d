"""Which row is read when: draws that know their epoch, so that what is done to a row depends on nothing else."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from datasets import Dataset
from torch.utils import data


class Draw(NamedTuple):
    """A row, how often it has been drawn before, and the share of training that is over."""

    row: int
    epoch: int
    progress: float


class DrawSampler(data.Sampler[Draw]):
    """Turns the row numbers of a sampler into draws.

    The epoch travels with the row number through the loader: a `set_epoch` on a data set or collator does not reach
    workers that live on, and accelerate does not call it on resume.

    Args:
        sampler: Of row numbers, with `set_epoch`.
        total: Rows that the whole training will draw.
    """

    def __init__(self, sampler, total: float):  # noqa: D107
        self.sampler, self.total = sampler, total

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
