"""Corpora that do not fit into memory: documents read one by one, from files that several processes share out."""

import glob
import hashlib
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset
from datasets.distributed import split_dataset_by_node
from torch.utils import data
from transformers import TrainingArguments

from ptft_recipes.data import DatasetArguments, dataset_hub_id
from ptft_recipes.errors import InputError, one_line
from ptft_recipes.reading import can_be_streamed, check_columns, check_text, read_rows, stream_documents
from ptft_recipes.safe_files import COMPRESSIONS, check_file, readable

logger = logging.getLogger(__name__)

HELD_OUT_DOCUMENTS = 100  # taken from the start of a stream for each split that is not given

DIGESTED = 2**24  # bytes at each end of a file
HELD_OUT_NAMES = ("validation", "valid", "dev", "test")  # of files in a folder that is all trained on


def corpus_name(source: str) -> str:
    """Return a short name for a corpus: of a file, folder or Hub id its last part, of a pattern that of its folder.

    >>> corpus_name("general/wiki.2021.jsonl.gz"), corpus_name("general/*.jsonl"), corpus_name("lab/papers")
    ('wiki.2021', 'general', 'papers')
    """
    path = Path(next(part for part in reversed(Path(source).absolute().parts) if not glob.has_magic(part)))
    return (Path(path.stem) if path.suffix.lower() in COMPRESSIONS else path).stem


def open_stream(data_args: DatasetArguments, text_column: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Open a corpus to be read document by document; what is held out is read into memory.

    Documents that are held out because a split is not given are the first that are not blank, of the first files.
    Wherever the same text stands again, it is left out of training.

    Args:
        data_args: `train_file` or `dataset_name`: a file, a folder whose files are read with those of its subfolders,
            a pattern (`papers/*.jsonl.gz`), or a Hub id.
        text_column: Of the documents.

    Returns:
        `train`, a stream with a shard per file, `validation` and `test`; and the report, as `load_splits` has it.

    Raises:
        InputError: No such files, none that can be streamed, one that begins with a fault, too few documents.
    """
    source = data_args.train_file or data_args.dataset_name
    if source is None or source.startswith("demo/"):
        raise InputError("--streaming needs a --train_file, or a --dataset_name of files or on the Hub")
    is_local = data_args.train_file or os.path.lexists(source) or glob.has_magic(source)
    if is_local:
        paths = _find_files(source)
        if empty := [path for path in paths if next(stream_documents(path, text_column), None) is None]:
            logger.warning("%s: %d of %d files hold no document, e.g. %s", source, len(empty), len(paths), empty[0])
        kwargs = {"paths": paths, "text_column": text_column}
        stream, fingerprint = IterableDataset.from_generator(_documents, gen_kwargs=kwargs), _digest(paths)
    else:
        stream, fingerprint = _hub_stream(data_args, text_column), f"{data_args.dataset_revision or 'main'}, streamed"
    name = Path(source).name if is_local else source
    raw, report = {"train": stream}, {"name": name, "hub_id": dataset_hub_id(data_args), "cut": {}}
    limit = data_args.max_eval_samples or HELD_OUT_DOCUMENTS
    for split in ("test", "validation"):
        if path := getattr(data_args, f"{split}_file"):
            rows = read_rows(path, [text_column], documents=True)[: data_args.max_eval_samples]
            for row in rows:
                check_text(row, text_column)
        else:
            rows = list(raw["train"].take(limit))
            # Not `skip`, which each share of a stream would do for itself, and train on what is held out.
            held_out = {_text_digest(row[text_column]) for row in rows}
            raw["train"] = raw["train"].filter(
                lambda row, held_out=held_out: _text_digest(row[text_column]) not in held_out
            )
            report["cut"][split] = limit
        if not rows or next(iter(raw["train"]), None) is None:
            raise InputError(
                f"{source}: no documents are left after {limit} were held out as {split}; what stands there again is "
                "not trained on either"
            )
        raw[split] = Dataset.from_list(rows)
    report["rows"] = {"train": None, "validation": len(raw["validation"]), "test": len(raw["test"])}
    report["fingerprint"] = {"train": fingerprint, "validation": "", "test": ""}
    report["dropped"], report["overlap_with_train"] = dict.fromkeys(report["rows"], 0), {}
    files = f" from {stream.num_shards} files" if stream.num_shards > 1 else ""
    held_out = report["rows"]["validation"], report["rows"]["test"]
    logger.info("data: %s, streamed%s; held out: %d validation and %d test documents", name, files, *held_out)
    return raw, report


def _find_files(source: str) -> list[str]:
    """Return the files of a corpus, sorted."""
    if os.path.isfile(source) or not (os.path.isdir(source) or glob.has_magic(source)):
        check_file(source)
        return [source]
    pattern = f"{glob.escape(source)}/**" if os.path.isdir(source) else source
    found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    paths = [path for path in found if can_be_streamed(path)]
    if not paths:
        there = ", ".join(Path(path).name for path in found[:5]) or "none"
        raise InputError(
            f"{source}: no files that can be streamed (.txt, .jsonl, .parquet, ...); files there: {there}"
        )
    if os.path.isdir(source) and (
        held_out := [path for path in paths if Path(path).name.split(".")[0] in HELD_OUT_NAMES]
    ):
        raise InputError(
            f"{held_out[0]}: by its name not to be trained on; give it as --validation_file or --test_file, and the "
            "others by a pattern"
        )
    if left_out := [Path(path).name for path in found if path not in paths]:
        logger.warning("%s: left out, as no text to stream: %s", source, ", ".join(left_out[:5]))
    return paths


def _documents(paths: Sequence[str], text_column: str) -> Iterator[dict[str, str]]:
    for path in paths:
        yield from stream_documents(path, text_column)


def _digest(paths: Sequence[str]) -> str:
    """Return a digest of the size, the beginning and the end of each file: all of it would be read at every start."""
    digest = hashlib.sha256()
    for path in paths:
        with readable(Path(path)), open(path, "rb") as file:
            size = os.path.getsize(path)
            digest.update(b"%d" % size + file.read(DIGESTED))
            file.seek(max(size - DIGESTED, file.tell()))
            digest.update(file.read(DIGESTED))
    return digest.hexdigest()[:16]


def _text_digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _hub_stream(data_args: DatasetArguments, text_column: str) -> IterableDataset:
    name = data_args.dataset_name
    try:
        stream = load_dataset(
            name, data_args.dataset_config, revision=data_args.dataset_revision, split="train", streaming=True
        )
        columns = stream.column_names or list(next(iter(stream)))
    except Exception as error:  # the client raises many kinds
        raise InputError(f"{name}: cannot be streamed: {one_line(error.__cause__ or error)}") from error
    check_columns(name, columns, [text_column])
    stream = stream.select_columns(text_column).filter(lambda row: bool(row[text_column] and row[text_column].strip()))
    return stream.map(lambda row, i: row | {"id": f"train[{i}]"}, with_indices=True)


def stream_rows(
    parts: Sequence[IterableDataset], report: dict[str, Any], training_args: TrainingArguments, buffer_size: int
) -> "StreamedRows":
    """Put the streams of the training blocks of all corpora into one.

    Over `max_steps`, and with a file for each process at least, a process reads its own files and no others. Else each
    reads everything and takes its part of every batch: the same batches for any number of processes.

    Args:
        parts: Of blocks; the domain's first.
        report: Of `open_stream`, with the counts of `count_blocks` in `tokens`; that files are shared out is noted in
            its fingerprint, because a run can only go on with as many processes then.
        training_args: For the seed, the processes, and how much is read in all.
        buffer_size: As for `StreamedRows`.

    Raises:
        InputError: Several workers are to read a stream.
    """
    if training_args.dataloader_num_workers > 1:
        raise InputError("--streaming reads its files once: use --dataloader_num_workers 0 or 1")
    # Else the first process reads for all, and accelerate cannot join batches that are padded to different lengths.
    training_args.accelerator_config.dispatch_batches = False
    blocks = report["tokens"]["train"]["blocks"]
    world, rank, batch_size = training_args.world_size, training_args.process_index, training_args.train_batch_size
    if blocks is None:
        total = training_args.max_steps * batch_size * training_args.gradient_accumulation_steps * world
    else:
        total = training_args.num_train_epochs * blocks
    files, share = parts[0].num_shards, (0, 1)
    if blocks is None and 1 < world <= files:
        # `shard` gives whole files; for fewer files than processes, `split_dataset_by_node` every world-th row.
        parts = [
            part.shard(world, rank, contiguous=False)
            if part.num_shards >= world
            else split_dataset_by_node(part, rank, world)
            for part in parts
        ]
        if any(next(iter(part), None) is None for part in parts):
            raise InputError(
                f"the files that process {rank} of {world} would read hold no text; put as much into each file, or "
                "start fewer processes"
            )
        share = (rank, world)
        report["fingerprint"]["train"] += f", in {world} shares"
        logger.info("  train: %d files, shared out to %d processes", files, world)
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    weights = [weight for weight in report["mix"].values() if weight]
    return StreamedRows(parts, weights, seed, buffer_size, blocks, total, share, batch_size)


class StreamedRows(data.IterableDataset):
    """Training rows from streams, shuffled in a buffer, as examples that hold `row`, `epoch` and `progress`.

    With the number of blocks in an epoch known, an iteration is one epoch; else it never ends, and each corpus begins
    its next epoch when it is through. The order depends on the seed and the epochs alone.

    Args:
        streams: Of blocks; the domain's first.
        shares: Of the other streams.
        seed: Of the order.
        buffer_size: Blocks among which the next is drawn.
        length: Blocks in an epoch of a single stream.
        total: Rows that the whole training will read.
        share: Number of this process and of all, where the streams are of this process alone. In place of the others'
            batches there is None then: accelerate deals out the rows of an iterable data set as if every process read
            all of them, and cannot be told that they do not.
        batch_size: Rows that a process takes at once.
    """

    def __init__(  # noqa: D107
        self,
        streams: Sequence[IterableDataset],
        shares: Sequence[float],
        seed: int,
        buffer_size: int,
        length: int | None = None,
        total: float = float("inf"),
        share: tuple[int, int] = (0, 1),
        batch_size: int = 1,
    ):
        self.streams = [stream.shuffle(seed=seed, buffer_size=buffer_size) for stream in streams]
        self.shares = [1 - sum(shares), *shares]
        self.seed, self.length, self.total, self.epoch = seed, length, total, 0
        self.share, self.batch_size = share, batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:  # noqa: D105
        if self.length is None:
            raise TypeError("a stream has no length")
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any] | None]:  # noqa: D105
        start = self.epoch * (self.length or 0)
        rows = _epoch(self.streams[0], self.epoch) if self.length is not None else self._endless()
        rank, world = self.share
        examples = (
            {"epoch": self.epoch} | example | {"row": row, "progress": min((start + row) / self.total, 1.0)}
            for row, example in zip(itertools.count(rank, world), rows, strict=False)
        )
        if world == 1:
            return examples
        return (next(examples) if i // self.batch_size % world == rank else None for i in itertools.count())

    def _endless(self) -> Iterator[dict[str, Any]]:
        generator = np.random.default_rng(self.seed)
        endless = [
            itertools.chain.from_iterable(map(partial(_epoch, stream), itertools.count())) for stream in self.streams
        ]
        while True:
            yield next(endless[generator.choice(len(endless), p=self.shares)])


def _epoch(stream: IterableDataset, epoch: int) -> Iterator[dict[str, Any]]:
    stream.set_epoch(epoch)
    return iter(stream)
