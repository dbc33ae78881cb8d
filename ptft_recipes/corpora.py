"""Several corpora at once, mixed by weight, in memory or streamed."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import TrainingArguments

from ptft_recipes.blocks import pack_blocks
from ptft_recipes.data import DatasetArguments, load_splits
from ptft_recipes.errors import InputError
from ptft_recipes.streaming import StreamedRows, corpus_name, open_stream, stream_rows


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
        raw, report = open_stream(data_args, text_column)
    else:
        splits, report = load_splits(data_args, [text_column])
        raw = dict(splits)
    report["mix"] = {}
    for source, share in shares.items():
        name = corpus_name(source)
        if name in report["mix"]:
            raise InputError(f"--mix: two corpora are called {name}; rename a file")
        report["mix"][name] = share
        other = DatasetArguments(dataset_name=source, max_eval_samples=data_args.max_eval_samples)
        splits = open_stream(other, text_column)[0] if streaming else load_splits(other, [text_column])[0]
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
    if (len(parts) > 1 or pack_to) and report["tokens"]["train"]["blocks"] is not None:
        raise InputError("--mix or --packing with --streaming needs --max_steps: nobody knows how long an epoch is")
    return stream_rows(parts, report, training_args, buffer_size)
