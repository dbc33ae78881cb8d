"""Rows that are read twice, to fill up the last batch of several processes: no loss counts them."""

from collections.abc import Iterator
from typing import ClassVar

import torch


class LeavesOutRepeatedRows:
    """Of a Trainer whose losses are sums over labels, divided by their number in the whole optimizer step.

    Accelerate hands every process a batch of the same size, and where the last one of an epoch is too short or missing
    it goes back to the first rows. Trainer trains on those twice: of 9 rows, two processes with batches of 4 train on
    16. Here their labels are taken away, so that any number of processes takes the step that one would take; a process
    that has none but repeated rows takes part in it with gradients of zero.
    """

    no_label: ClassVar = {"labels": -100}  # by name in a batch, what says that a row has none

    def rows_per_epoch(self) -> int | None:
        """Return the rows that an epoch of training reads; None where it never ends."""
        return len(self.train_dataset)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """Return the batches of an optimizer step, and the number of their labels in all processes."""
        # Without a loss of ours the model takes the mean over its batch, and that of no label is nan.
        if self.args.world_size > 1 and self.compute_loss_func is not None and not self.args.dataloader_drop_last:
            epoch_iterator = map(self._without_repeated_labels, epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _without_repeated_labels(self, batch):
        if self.accelerator.gradient_state.end_of_dataloader and (rows := self.rows_per_epoch()) is not None:
            size = len(batch["labels"])
            # Not accelerate's own remainder: it counts the rows of the data set, of which an epoch may read others.
            first = self._rows_of_last_batch(size, rows % (size * self.args.world_size))
            for name, value in self.no_label.items():
                batch[name][first:] = value
        return batch

    def _rows_not_repeated(self, rows: int) -> int:
        """Return how many rows of this process's batch are no repeats; of the loader that is being read."""
        state = self.accelerator.gradient_state
        return self._rows_of_last_batch(rows, state.remainder) if state.end_of_dataloader else rows

    def _rows_of_last_batch(self, rows: int, remainder: int) -> int:
        if remainder <= 0:  # the last batch is full
            return rows
        return min(max(remainder - self.args.process_index * rows, 0), rows)
