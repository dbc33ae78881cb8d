"""Rows in a file that is named by their content, so that what is computed of them is there at the next start."""

import hashlib
import logging
import os
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset

logger = logging.getLogger(__name__)

SMALLEST = 2**20  # bytes of rows; of fewer everything is computed in a second
GROWTH = 32  # times the size of the rows that must be free for what is computed of them


def keep_on_disk(dataset: Dataset) -> Dataset:
    """Return the same rows, read from a file in the cache of `datasets`, which keeps what `map` makes of them there.

    What `datasets` has in memory it computes again at every start. Rows that cannot be kept (a small or full disk, a
    folder that must not be written to) are returned as they are.

    Args:
        dataset: In memory.
    """
    table = dataset.with_format("arrow")[:] if dataset.data.nbytes >= SMALLEST else dataset.data.table[:0]
    if table.nbytes < SMALLEST:
        return dataset
    digest = hashlib.sha256(repr(dataset.features).encode())
    for batch in table.combine_chunks().to_batches():
        digest.update(batch.serialize())
    folder = Path(datasets.config.HF_DATASETS_CACHE, "ptft-recipes", digest.hexdigest()[:32])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            if shutil.disk_usage(folder.parent).free < GROWTH * table.nbytes:
                return dataset
            partial = folder.with_name(f"{folder.name}.{os.getpid()}")
            try:
                dataset.save_to_disk(partial)
                if not folder.is_dir():  # another process may have been first
                    partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return Dataset.load_from_disk(folder)
    except (OSError, ValueError, pa.ArrowException) as error:
        logger.warning("tokens are not kept for the next start: %s: %s", folder, error)
        return dataset
