"""From wherever the data is to checked train, validation and test splits."""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset, load_from_disk

from ptft_recipes.demo import dataset_rows
from ptft_recipes.errors import InputError, one_line
from ptft_recipes.folds import parse_fold
from ptft_recipes.labels import encode_labels, is_finite
from ptft_recipes.reading import SUFFIXES, check_columns, check_text, check_words, read_rows
from ptft_recipes.safe_files import check_saved_names
from ptft_recipes.splits import SPLITS, complete_splits

SAVED_TO_DISK = ("dataset_dict.json", "state.json")  # of a DatasetDict, of a Dataset
FILE_NAMES = {"train": "train", "validation": "validation|valid|val|dev", "test": "test|eval"}


@dataclass
class DatasetArguments:
    """Where the data comes from. Columns are the recipe's business."""

    _argument_group_name = "data"

    dataset_name: str | None = dataclasses.field(
        default=None, metadata={"help": "Hub id, folder, file, or demo/aclsum_roles"}
    )
    dataset_config: str | None = dataclasses.field(default=None, metadata={"help": "configuration of a Hub data set"})
    dataset_revision: str | None = dataclasses.field(default=None, metadata={"help": "branch, tag or commit"})
    train_file: str | None = dataclasses.field(
        default=None, metadata={"help": f"takes the place of a demo data set; {', '.join(SUFFIXES)}"}
    )
    validation_file: str | None = dataclasses.field(default=None, metadata={"help": "cut from train when not given"})
    test_file: str | None = dataclasses.field(default=None, metadata={"help": "cut from train when not given"})
    validation_split: str = dataclasses.field(
        default="validation", metadata={"help": "name of that split in the data set, e.g. validation_matched"}
    )
    test_split: str = dataclasses.field(default="test", metadata={"help": "name of that split in the data set"})
    max_train_samples: int | None = dataclasses.field(default=None, metadata={"help": "a random sample of train"})
    max_eval_samples: int | None = dataclasses.field(
        default=None, metadata={"help": "a random sample of validation, and one of test"}
    )
    fold: str | None = dataclasses.field(
        default=None,
        metadata={"help": "test on one of several parts of train: 0/5, ..., 4/5; 0/5/paper keeps papers whole"},
    )
    drop_bad_rows: bool = dataclasses.field(
        default=False, metadata={"help": "leave out rows without text or label instead of stopping at them"}
    )


def load_splits(
    data_args: DatasetArguments,
    text_columns: Sequence[str],
    label_column: str | None = None,
    problem_type: str | None = None,
    label_separator: str | None = None,
    label_names: Sequence[str] | None = None,
    more_columns: Sequence[str] = (),
) -> tuple[DatasetDict, dict[str, Any]]:
    """Load, check and encode the data: train to fit, validation to choose, test to report.

    Labels are numbered by one map made from train, in the column `labels`. Missing validation and test splits are cut
    from train, with the same shares of every label, always by the same seed. A test split whose labels are all missing
    stays without `labels`.

    Args:
        data_args: Where the data comes from.
        text_columns: One column, or two for pairs.
        label_column: None for raw text, of which a `.txt` file has a document from each blank line to the next.
        problem_type: As in `PreTrainedConfig.problem_type`; None to infer it from the labels.
        label_separator: Splits the labels of a multi-label cell of text, e.g. `sports|politics`.
        label_names: Of a trained checkpoint, which number the labels in the place of train; any split may be missing.
        more_columns: That are kept as they are, e.g. to score by.

    Returns:
        The splits, each with the columns asked for and `id`; and what a reader must know of them: counts, dropped
        rows, cuts, overlap of the evaluation splits with train, a fingerprint.

    Raises:
        InputError: Data that cannot be read or used, with file and line (or split and row), and the remedy.
    """
    if clash := {"id", "labels", label_column} & {*text_columns} or {"id"} & {label_column}:
        raise InputError(f"column {min(clash)!r} is written by the recipe, or is text and label at once; name another")
    if not all(text_columns) or not text_columns or label_column == "":
        raise InputError("the name of a column must not be empty; see the --..._column options")
    fold, more_columns = parse_fold(data_args.fold), [*more_columns]
    of_fold = [fold.group_column] if fold and fold.group_column and fold.group_column not in more_columns else []
    name, splits = read_splits(
        data_args, text_columns, label_column, trains=label_names is None, more_columns=more_columns + of_fold
    )
    dropped = {}
    for split, dataset in splits.items():
        splits[split], dropped[split] = drop_bad_texts(split, dataset, text_columns, data_args.drop_bad_rows)
    report: dict[str, Any] = {"name": name, "hub_id": dataset_hub_id(data_args)}
    if label_column:
        splits, lost, report["problem_type"], report["label_names"] = encode_labels(
            splits, label_column, problem_type, label_separator, data_args.drop_bad_rows, label_names
        )
        dropped = {split: dropped[split] + lost[split] for split in splits}
    return complete_splits(
        splits,
        report | {"dropped": dropped},
        text_columns,
        stratify=label_column is not None,
        max_train_samples=data_args.max_train_samples,
        max_eval_samples=data_args.max_eval_samples,
        more_columns=more_columns,
        fold=fold,
    )


def dataset_hub_id(data_args: DatasetArguments) -> str | None:
    """Return the id of a data set that comes from the Hub; None for files, folders and the demo."""
    name = data_args.dataset_name
    has_files = any(getattr(data_args, f"{split}_file") for split in SPLITS)
    return None if not name or has_files or name.startswith("demo/") or os.path.exists(name) else name


def read_splits(
    data_args: DatasetArguments,
    text_columns: Sequence[str],
    label_column: str | None,
    words: bool = False,
    trains: bool = True,
    more_columns: Sequence[str] = (),
) -> tuple[str, dict[str, Dataset]]:
    """Read the splits that exist, as they are.

    Args:
        data_args: Where the data comes from.
        text_columns: Columns that every row has.
        label_column: A column that test need not have.
        words: The text columns hold lists of words, and the label column a list of tags.
        trains: There must be a train split.
        more_columns: Further ones that every row has, of any type.

    Returns:
        The data's name; and the data sets with `id`, the text columns, the label column where there is one, and the
        further ones.

    Raises:
        InputError: Data that cannot be read, with file and line (or split and row), and the remedy.
    """
    if taken := {*more_columns} & {*text_columns, label_column, "id", "labels"}:
        raise InputError(f"column {min(taken)!r} is text, label or id, and can be no column of groups or slices too")
    files = {split: getattr(data_args, f"{split}_file") for split in SPLITS}
    if data_args.fold and files["test"]:
        raise InputError(f"--fold {data_args.fold} tests on a part of train; leave --test_file out")
    name = data_args.dataset_name
    if any(files.values()):
        if not files["train"] and trains:
            raise InputError("--validation_file and --test_file need a --train_file")
        if name and not name.startswith("demo/"):
            raise InputError(f"--train_file and --dataset_name {name}: give one of them")
        if files["validation"] and files["validation"] == files["test"]:
            raise InputError("--validation_file and --test_file are the same; leave one out, and it is cut from train")
    elif not name:
        raise InputError("no data: pass --dataset_name (Hub id, folder or file) or --train_file")
    elif name.startswith("demo/"):
        rows = dataset_rows(name)
        for split in rows:
            required = [*_required(split, text_columns, label_column), *more_columns]
            check_columns(f"{name}, split {split}", rows[split][0], required)
        return name, {
            split: _to_dataset(rows[split], text_columns, label_column, words, more_columns) for split in rows
        }
    elif os.path.isfile(name):  # Path.is_file raises where a name is too long
        files["train"] = name
    elif os.path.isdir(name) and not any((Path(name) / file).exists() for file in SAVED_TO_DISK):
        files = _files_of(Path(name), trains)
    else:
        return name, _load_dataset(name, data_args, text_columns, label_column, words, trains, more_columns)
    splits = {}
    for split, path in files.items():
        if path:
            required = _required(split, text_columns, label_column)
            optional = [label_column] if label_column and label_column not in required else []
            rows = read_rows(path, [*required, *more_columns], optional, documents=label_column is None, words=words)
            splits[split] = _to_dataset(rows, text_columns, label_column, words, more_columns)
    return ", ".join(Path(path).name for path in files.values() if path), splits


def rows_without_faults(split: str, dataset: Dataset, faults: dict[int, str], drop: bool) -> list[int]:
    """Return the numbers of the rows that can be used.

    Args:
        split: For the error.
        dataset: With `id`.
        faults: What is wrong, by number of the row.
        drop: Leave these rows out.

    Raises:
        InputError: There are some, and they are not to be left out; or none is left.
    """
    if faults and not drop:
        first = "; ".join(f"{dataset[i]['id']}: {fault}" for i, fault in list(faults.items())[:5])
        raise InputError(
            f"{split}: {len(faults)} rows cannot be used: {first}{'; ...' * (len(faults) > 5)}. "
            "Mend them, or pass --drop_bad_rows to leave them out"
        )
    if len(faults) == len(dataset):
        raise InputError(f"{split}: no rows are left")
    return [i for i in range(len(dataset)) if i not in faults]


def _required(split: str, text_columns, label_column) -> list[str]:
    return [*text_columns, *([label_column] if label_column and split != "test" else [])]


def _files_of(folder: Path, trains: bool) -> dict[str, Path | None]:
    files: dict[str, Path | None] = dict.fromkeys(SPLITS)
    data_files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    for split, pattern in FILE_NAMES.items():
        found = [path for path in data_files if re.search(rf"(^|[^a-z])({pattern})([^a-z]|$)", path.stem.lower())]
        if len(found) > 1:
            raise InputError(f"{folder}: {', '.join(p.name for p in found)} could all be {split}; use --{split}_file")
        files[split] = found[0] if found else None
    if files["train"] is None and (trains or not any(files.values())):
        there = ", ".join(path.name for path in data_files) or "no data file"
        raise InputError(f"{folder}: no train file (train.csv, train.jsonl, ...); it has {there}; use --train_file")
    chosen = [path for path in files.values() if path]
    if len(set(chosen)) < len(chosen):
        raise InputError(f"{folder}: {chosen[0].name} could be more than one split; use --train_file, --test_file")
    return files


def _load_dataset(
    name, data_args: DatasetArguments, text_columns, label_column, words: bool, trains: bool, more_columns
) -> dict[str, Dataset]:
    try:
        if os.path.isdir(name):
            check_saved_names(name)
            loaded = load_from_disk(name, keep_in_memory=True)  # else caches are written into the user's folder
        else:
            loaded = load_dataset(name, data_args.dataset_config, revision=data_args.dataset_revision)
    except Exception as error:  # the client raises many kinds; the reader needs one line, the trace keeps the rest
        reason = one_line(error.__cause__ or error)
        what = "cannot be loaded" if os.path.isdir(name) else "is no file or folder here, and the Hub did not give it"
        raise InputError(f"{name} {what}: {reason}") from error
    if isinstance(loaded, Dataset):
        loaded = DatasetDict(train=loaded)
    names = {"train": "train", "validation": data_args.validation_split, "test": data_args.test_split}
    if names["validation"] == names["test"]:
        del names["validation"]  # what is tested on must not choose: validation is cut from train
    if trains and "train" not in loaded:
        raise InputError(f"{name} has no split 'train'; its splits are {', '.join(loaded)}")
    splits = {}
    for split, source in names.items():
        if source not in loaded:
            if source != split or (not trains and not {*names.values()} & {*loaded}):
                raise InputError(f"{name} has no split {source!r}; its splits are {', '.join(loaded)}")
            continue
        dataset = loaded[source]
        required = [*_required(split, text_columns, label_column), *more_columns]
        check_columns(f"{name}, split {source}", dataset.column_names, required)
        for column in text_columns:
            feature = dataset.features[column]
            kind = getattr(feature.feature if words and isinstance(feature, List) else feature, "dtype", feature)
            if kind not in ("string", "large_string", "string_view") or isinstance(feature, List) != words:
                wanted = "lists of words" if words else "text"
                raise InputError(f"{name}, split {source}: column {column!r} holds {kind}, not {wanted}")
        keep = [column for column in (*text_columns, label_column, *more_columns) if column in dataset.column_names]
        splits[split] = dataset.select_columns(keep).add_column("id", [f"{source}[{i}]" for i in range(len(dataset))])
    return splits


def _to_dataset(rows: list[dict], text_columns, label_column, words: bool = False, more_columns=()) -> Dataset:
    for column in text_columns:
        for row in rows:
            check_words(row, column) if words else check_text(row, column)
    kind = List(Value("string")) if words else Value("string")
    dataset = Dataset.from_dict(
        {column: [row[column] for row in rows] for column in ("id", *text_columns)},
        features=Features({"id": Value("string")} | dict.fromkeys(text_columns, kind)),
    )
    for column in more_columns:
        dataset = dataset.add_column(column, [_as_text(row[column]) for row in rows])
    if label_column is None:
        return dataset
    # NaN is no label, and no reason to read whole numbers as fractions.
    values = [value if is_finite(value) else None for value in (row.get(label_column) for row in rows)]
    kinds = {type(value).__name__: row["id"] for value, row in reversed([*zip(values, rows, strict=True)])}
    try:
        return dataset.add_column(label_column, values)
    except Exception as error:  # pyarrow raises many kinds: types that do not mix, whole numbers beyond 64 bits
        found = ", ".join(f"{kind} ({place})" for kind, place in kinds.items() if kind != "NoneType")
        raise InputError(f"column {label_column!r} cannot be read as one type: {found}: {one_line(error)}") from None


def _as_text(value: Any) -> str | None:
    """Return a value of any type as text: a list or an object as JSON, which can be read again."""
    return None if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)


def drop_bad_texts(split: str, dataset: Dataset, text_columns: Sequence[str], drop: bool) -> tuple[Dataset, int]:
    """Return the rows with text in all columns, and how many had none.

    Raises:
        InputError: There are rows without, and they are not to be dropped; or no others.
    """
    bad = {i for column in text_columns for i, text in enumerate(dataset[column]) if not (text and text.strip())}
    if bad and not drop:
        places = ", ".join(dataset[i]["id"] for i in sorted(bad)[:5])
        places += ", ..." * (len(bad) > 5)
        raise InputError(
            f"{split}: {len(bad)} rows with an empty {' or '.join(text_columns)} ({places}); "
            "mend them, or pass --drop_bad_rows to leave them out"
        )
    if len(bad) == len(dataset):
        raise InputError(f"{split}: no rows are left")
    return (dataset.select([i for i in range(len(dataset)) if i not in bad]) if bad else dataset), len(bad)
