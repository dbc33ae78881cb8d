"""Texts and what is to be written for them: read from one file, from nested columns, or from two aligned files."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ptft_recipes.data import DatasetArguments, dataset_hub_id, drop_bad_texts, read_splits
from ptft_recipes.errors import InputError
from ptft_recipes.folds import parse_fold
from ptft_recipes.reading import SUFFIXES, check_columns, check_text, read_lines
from ptft_recipes.splits import SPLITS, complete_splits
from ptft_recipes.tokenization import count_tokens, tokenize

logger = logging.getLogger(__name__)


def load_text_pairs(
    data_args: DatasetArguments,
    source_column: str,
    target_column: str,
    more_columns: Sequence[str] = (),
    trains: bool = True,
) -> tuple[DatasetDict, dict[str, Any]]:
    """Load and check pairs of texts: train to fit, validation to choose, test to report.

    Args:
        data_args: Where the data comes from. Of two aligned text files `train.en` and `train.de` each split names the
            first; the other ends in the name of the target column.
        source_column: Of the texts to read. `translation.en` is what the column `translation` holds under `en`.
        target_column: Of the texts to write, which a test split need not have.
        more_columns: That are kept as they are, e.g. to score by.
        trains: There must be a train split.

    Returns:
        The splits with `id`, `source`, `target` and `more_columns`; and what a reader must know of them, as
        `load_splits` returns it.

    Raises:
        InputError: Data that cannot be read or used, with file and line (or split and row), and the remedy; two
            aligned files of different length.
    """
    if source_column == target_column or not source_column or not target_column:
        raise InputError("--source_column, --target_column: name two columns")
    if data_args.fold and parse_fold(data_args.fold).group_column:
        raise InputError(f"--fold {data_args.fold}: pairs have no groups; use {data_args.fold.rpartition('/')[0]}")
    if taken := {"source", "target"} & {*more_columns}:
        raise InputError(f"column {min(taken)!r} is what the texts are called here; name another")
    name, splits = _read(data_args, source_column, target_column, [*more_columns], trains)
    if "test" in splits and not any(splits["test"]["target"]):
        splits["test"] = splits["test"].remove_columns("target")
    report: dict[str, Any] = {"name": name, "hub_id": dataset_hub_id(data_args), "dropped": {}}
    for split, rows in splits.items():
        columns = [name for name in ("source", "target") if name in rows.column_names]
        splits[split], report["dropped"][split] = drop_bad_texts(split, rows, columns, data_args.drop_bad_rows)
    limits = {"max_train_samples": data_args.max_train_samples, "max_eval_samples": data_args.max_eval_samples}
    # By its source alone: another translation of a text that train has is no new text.
    raw, report = complete_splits(
        splits,
        report,
        ["source"],
        stratify=False,
        more_columns=more_columns,
        fold=parse_fold(data_args.fold),
        **limits,
    )
    if trains and (copies := sum(row["source"].strip() == row["target"].strip() for row in raw["train"])):
        logger.info("  %d of the %d training targets are copies of their source", copies, len(raw["train"]))
    return raw, report


def _read(
    data_args: DatasetArguments, source_column: str, target_column: str, more_columns: list[str], trains: bool
) -> tuple[str, dict[str, Dataset]]:
    files = {split: path for split in SPLITS if (path := getattr(data_args, f"{split}_file"))}
    suffix = f".{source_column}"
    if suffix not in SUFFIXES and any(path.endswith(suffix) for path in files.values()):
        if more_columns:
            raise InputError(f"{more_columns[0]}: two aligned text files have no columns beside their lines")
        return _read_aligned(files, suffix, f".{target_column}", trains)
    parents = [column.partition(".")[0] for column in (source_column, target_column)]
    if parents[0] == parents[1]:
        if "." not in source_column or "." not in target_column:
            raise InputError(f"--source_column {source_column}, --target_column {target_column}: one holds the other")
        name, splits = read_splits(data_args, [], parents[0], trains=trains, more_columns=more_columns)
        places = [column.partition(".")[2] for column in (source_column, target_column)]
        pairs = {split: _unpack(split, rows, parents[0], *places) for split, rows in splits.items()}
        return name, _keep_columns(pairs, splits, more_columns)
    name, splits = read_splits(data_args, [source_column], target_column, trains=trains, more_columns=more_columns)
    pairs = {}
    for split, rows in splits.items():
        targets = rows[target_column][:] if target_column in rows.column_names else [None] * len(rows)
        pairs[split] = _to_pairs(rows["id"][:], rows[source_column][:], targets, target_column)
    return name, _keep_columns(pairs, splits, more_columns)


def _keep_columns(pairs: dict[str, Dataset], splits: dict[str, Dataset], columns: list[str]) -> dict[str, Dataset]:
    for split, rows in splits.items():
        for column in columns:
            pairs[split] = pairs[split].add_column(column, rows[column][:])
    return pairs


def _read_aligned(
    files: dict[str, str], source_suffix: str, target_suffix: str, trains: bool
) -> tuple[str, dict[str, Dataset]]:
    if trains and "train" not in files:
        raise InputError("--validation_file and --test_file need a --train_file")
    splits = {}
    for split, path in files.items():
        if not path.endswith(source_suffix):
            raise InputError(f"--{split}_file {path}: another file ends in {source_suffix}, and so must this one")
        other = Path(path.removesuffix(source_suffix) + target_suffix)
        sources, targets = read_lines(path), read_lines(other) if split != "test" or other.exists() else None
        if targets is not None and len(sources) != len(targets):
            raise InputError(
                f"{path} has {len(sources)} lines and {other} {len(targets)}: every line of one must be the "
                "translation of the same line of the other"
            )
        ids = [f"{Path(path).name}:{number}" for number in range(1, len(sources) + 1)]
        splits[split] = _to_pairs(ids, sources, targets or [None] * len(sources), other.name)
    return ", ".join(Path(path).name for path in files.values()), splits


def _unpack(split: str, rows: Dataset, column: str, source: str, target: str) -> Dataset:
    found = rows[column][:]
    for row, place in zip(found, rows["id"], strict=True):
        if not isinstance(row, dict):
            raise InputError(f"{place}: column {column!r} holds {row!r:.60}, not texts by language")
        check_columns(f"{place}, column {column!r}", row, [source] if split == "test" else [source, target])
    texts = [row[source] for row in found], [row.get(target) for row in found]
    return _to_pairs(rows["id"][:], *texts, f"{column}.{target}")


def _to_pairs(ids: list[str], sources: list, targets: list, target_column: str) -> Dataset:
    for place, source, target in zip(ids, sources, targets, strict=True):
        check_text({"id": place, "source": source}, "source")
        check_text({"id": place, target_column: target}, target_column)
    return Dataset.from_dict({"id": ids, "source": sources, "target": targets})


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase,
    sources: list[str],
    targets: list[str] | None,
    *,
    max_source_length: int,
    max_target_length: int,
) -> BatchEncoding:
    """Tokenize a batch of pairs, each side cut at its own length and in its own language.

    Args:
        tokenizer: The model's; of its languages `set_languages` told it.
        sources: What the encoder reads.
        targets: What the decoder is to write; None where nobody knows.
        max_source_length: Tokens, special tokens included.
        max_target_length: Likewise.

    Returns:
        As `tokenize` returns it of the sources, with `labels`, and `truncated_target`; `length` and `unknown` count
        both sides.

    Raises:
        InputError: A length is more than the model's positions, or leaves no room for text.
    """
    batch = tokenize(tokenizer, sources, max_length=max_source_length)
    if targets is None:
        return batch
    if not tokenizer.num_special_tokens_to_add() < max_target_length <= tokenizer.model_max_length:
        raise InputError(
            f"--max_target_length {max_target_length}: this model writes 2 to {tokenizer.model_max_length}"
        )
    whole = tokenizer(text_target=targets, verbose=False)["input_ids"]
    cut = tokenizer(text_target=targets, truncation=True, max_length=max_target_length)["input_ids"]
    batch["labels"] = cut
    batch["truncated_target"] = [len(a) > len(b) for a, b in zip(whole, cut, strict=True)]
    batch["length"] = [n + len(ids) for n, ids in zip(batch["length"], cut, strict=True)]
    unknown = [ids.count(tokenizer.unk_token_id) for ids in cut]
    batch["unknown"] = [a + b for a, b in zip(batch["unknown"], unknown, strict=True)]
    return batch


def count_pairs(dataset: DatasetDict) -> dict[str, dict[str, Any]]:
    """Count tokens of both sides, and rows that are truncated on either, from the columns of `tokenize_pairs`."""
    counts = count_tokens(dataset)
    for split, rows in dataset.items():
        if "truncated_target" in rows.column_names:
            counts[split]["truncated_targets"] = sum(rows["truncated_target"])
    cut = {split: count["truncated_targets"] for split, count in counts.items() if count.get("truncated_targets")}
    if cut:
        logger.info("  targets truncated: %s", ", ".join(f"{n} in {split}" for split, n in cut.items()))
    return counts
