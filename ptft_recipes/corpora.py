"""Several corpora at once, and corpora that do not fit into memory."""

import hashlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets, load_dataset
from torch.utils import data
from transformers import TrainingArguments

from ptft_recipes.blocks import pack_blocks
from ptft_recipes.data import DatasetArguments, dataset_hub_id, load_splits
from ptft_recipes.errors import InputError, one_line
from ptft_recipes.reading import check_columns, check_text, read_rows, stream_documents
from ptft_recipes.safe_files import check_file

logger = logging.getLogger(__name__)

HELD_OUT_DOCUMENTS = 100  # taken from the start of a stream for each split that is not given


def load_corpora(
    data_args: DatasetArguments, text_column: str, mix: Sequence[str] = (), streaming: bool = False
) -> tuple[dict[str, Dataset | IterableDataset], dict[str, Any]]:
    """Load the domain's corpus, and those that are mixed into it, with their held-out documents.

    Args:
        data_args: Where the domain's corpus comes from.
        text_column: Of all corpora.
        mix: `name=share`: a Hub id, folder or file, and its share of the rows that are trained on. Each is scored on
            held-out documents of its own; one with share 0 only that. General text replayed in this way is a remedy
            against forgetting (Ibrahim et al., Simple and Scalable Strategies to Continually Pre-train, 2024).
        streaming: Read the training documents one by one, again in every epoch.

    Returns:
        `train`, `validation` and `test` of the domain, then `train/<name>` and `test/<name>` of every other corpus;
        and the report of `load_splits` on the domain, with `mix`: name to share.

    Raises:
        InputError: As `load_splits`; shares that are no numbers from 0 on or leave nothing of the domain; two corpora
            of one name.
    """
    shares = _parse_mix(mix)
    if streaming and data_args.fold:
        raise InputError("--fold: a stream has no folds")
    if streaming:
        raw, report = _open_stream(data_args, text_column)
    else:
        splits, report = load_splits(data_args, [text_column])
        raw = dict(splits)
    report["mix"] = {}
    for source, share in shares.items():
        name = Path(source).stem
        if name in report["mix"]:
            raise InputError(f"--mix: two corpora are called {name}; rename a file")
        report["mix"][name] = share
        other = DatasetArguments(dataset_name=source, max_eval_samples=data_args.max_eval_samples)
        splits = _open_stream(other, text_column)[0] if streaming else load_splits(other, [text_column])[0]
        raw |= {f"train/{name}": splits["train"]} if share else {}
        raw[f"test/{name}"] = splits["test"]
    return raw, report


def _parse_mix(mix: Sequence[str]) -> dict[str, float]:
    shares = {}
    for pair in mix:
        source, equals, text = pair.rpartition("=")
        try:
            shares[source] = float(text)
        except ValueError:
            equals = ""
        if not equals or not 0 <= shares[source] < 1:
            raise InputError(f"--mix {pair}: expected <corpus>=<share of the training rows>, e.g. general.txt=0.2")
    if sum(shares.values()) >= 1:
        raise InputError(f"--mix: shares of {sum(shares.values()):g} in all leave nothing of the domain's corpus")
    return shares


def training_rows(
    dataset: Mapping[str, Dataset | IterableDataset],
    report: dict[str, Any],
    training_args: TrainingArguments,
    pack_to: int | None = None,
    buffer_size: int = 10_000,
) -> "Dataset | StreamedRows":
    """Put the training blocks of all corpora into one data set.

    Args:
        dataset: With `train` and `train/<name>`.
        report: Of `load_corpora`, with the counts of `count_blocks` in `tokens`.
        training_args: For the seed, and for how much is read in all.
        pack_to: Put blocks side by side into rows of so many tokens.
        buffer_size: As for `StreamedRows`.

    Returns:
        The rows, with the number of each row's corpus in `corpus`; or a stream.

    Raises:
        InputError: Streams are to be mixed or packed over epochs, or read by several workers.
    """
    parts = [rows for name, rows in dataset.items() if name.split("/")[0] == "train"]
    if pack_to:
        kwargs = {"fn_kwargs": {"max_length": pack_to}, "remove_columns": ["document"]}
        parts = [rows.map(pack_blocks, batched=True, **kwargs) for rows in parts]
    if isinstance(parts[0], Dataset):
        return concatenate_datasets([rows.add_column("corpus", [i] * len(rows)) for i, rows in enumerate(parts)])
    if training_args.dataloader_num_workers > 1:
        raise InputError("--streaming reads its file once: use --dataloader_num_workers 0 or 1")
    # Else the first process reads for all, and accelerate cannot join batches that are padded to different lengths.
    training_args.accelerator_config.dispatch_batches = False
    blocks = report["tokens"]["train"]["blocks"]
    if blocks is None:
        group_size = training_args.train_batch_size * training_args.gradient_accumulation_steps
        total = training_args.max_steps * group_size * training_args.world_size
    elif len(parts) > 1 or pack_to:
        raise InputError("--mix or --packing with --streaming needs --max_steps: nobody knows how long an epoch is")
    else:
        total = training_args.num_train_epochs * blocks
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    shares = [share for share in report["mix"].values() if share]
    return StreamedRows(parts, shares, seed, buffer_size, blocks, total)


def _open_stream(data_args: DatasetArguments, text_column: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Open a corpus to be read document by document; what is held out is read into memory."""
    source = data_args.train_file or data_args.dataset_name
    if source is None or source.startswith("demo/"):
        raise InputError("--streaming needs a --train_file, or a --dataset_name that is a file or on the Hub")
    if os.path.isfile(source) or data_args.train_file:
        check_file(source)
        kwargs = {"path": source, "text_column": text_column}
        stream = IterableDataset.from_generator(stream_documents, gen_kwargs=kwargs)
        try:
            with Path(source).open("rb") as file:
                fingerprint = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        except OSError as error:
            raise InputError(f"{source}: cannot be read: {error.strerror}") from None
    elif os.path.isdir(source):  # else datasets would read it by rules of its own: a line of text is a row there
        raise InputError(
            f"{source}: --streaming reads a file or the Hub, not a folder; name its files with --train_file"
        )
    else:
        stream, fingerprint = _hub_stream(data_args, text_column), f"{data_args.dataset_revision or 'main'}, streamed"
    limit = data_args.max_eval_samples or HELD_OUT_DOCUMENTS
    name = Path(source).name if os.path.isfile(source) else source
    raw, report = {"train": stream}, {"name": name, "hub_id": dataset_hub_id(data_args), "cut": {}}
    for split in ("test", "validation"):
        if path := getattr(data_args, f"{split}_file"):
            rows = read_rows(path, [text_column], documents=True)[: data_args.max_eval_samples]
            for row in rows:
                check_text(row, text_column)
        else:
            rows = list(raw["train"].take(limit))
            raw["train"] = raw["train"].skip(limit)
            report["cut"][split] = limit
        if not rows or next(iter(raw["train"]), None) is None:
            raise InputError(f"{source}: no documents are left after {limit} were held out as {split}")
        raw[split] = Dataset.from_list(rows)
    report["rows"] = {"train": None, "validation": len(raw["validation"]), "test": len(raw["test"])}
    report["fingerprint"] = {"train": fingerprint, "validation": "", "test": ""}
    report["dropped"], report["overlap_with_train"] = dict.fromkeys(report["rows"], 0), {}
    held_out = report["rows"]["validation"], report["rows"]["test"]
    logger.info("data: %s, streamed; held out: %d validation and %d test documents", report["name"], *held_out)
    return raw, report


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
    """

    def __init__(  # noqa: D107
        self,
        streams: Sequence[IterableDataset],
        shares: Sequence[float],
        seed: int,
        buffer_size: int,
        length: int | None = None,
        total: float = float("inf"),
    ):
        self.streams = [stream.shuffle(seed=seed, buffer_size=buffer_size) for stream in streams]
        self.shares = [1 - sum(shares), *shares]
        self.seed, self.length, self.total, self.epoch = seed, length, total, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:  # noqa: D105
        if self.length is None:
            raise TypeError("a stream has no length")
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:  # noqa: D105
        start = self.epoch * (self.length or 0)
        rows = _epoch(self.streams[0], self.epoch) if self.length is not None else self._endless()
        for place, example in enumerate(rows):
            progress = min((start + place) / self.total, 1.0)
            yield {"epoch": self.epoch} | example | {"row": place, "progress": progress}

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
