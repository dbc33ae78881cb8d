"""One label map, made from train and applied everywhere."""

import math
from collections.abc import Sequence

from datasets import ClassLabel, Dataset, List, Value

from ptft_recipes.errors import InputError, one_line

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
SINGLE, MULTI, REGRESSION = PROBLEM_TYPES


def encode_labels(
    splits: dict[str, Dataset],
    column: str,
    problem_type: str | None = None,
    separator: str | None = None,
    drop_bad_rows: bool = False,
    label_names: Sequence[str] | None = None,
) -> tuple[dict[str, Dataset], dict[str, int], str, list[str]]:
    """Number the labels of every split by one map made from train.

    Args:
        splits: Data sets with `id` and `column`; `train` is among them, unless `label_names` and `problem_type` are
            given.
        column: The label column.
        problem_type: One of `PROBLEM_TYPES`; None to infer it: lists, or a `separator`, are multi-label; numbers of
            type float, or of text with a point, regression; everything else a single label. Such numbers mixed with
            a few other values are refused.
        separator: Splits a multi-label cell of text.
        drop_bad_rows: Leave out rows without a label, or with one that train does not have, instead of stopping.
        label_names: Of a trained checkpoint: they, and not train, number the labels.

    Returns:
        The data sets with the column `labels` in place of `column`: a class number, 0.0 and 1.0 per label, or a float;
        the rows dropped per split; the problem type; the label names (for regression the column's name). `test` has no
        `labels` when none of its rows has one.

    Raises:
        InputError: Missing or unseen labels, labels that are no numbers in a regression, fewer than two labels, a
            split without a row left.
    """
    first = next(iter(splits))  # train, if it is there
    feature = splits[first].features.get(column, Value("string"))
    if isinstance(feature, dict):
        raise InputError(
            f"{first}: column {column!r} holds objects with {', '.join(feature)}; name a column of labels"
        )
    inner = feature.feature if isinstance(feature, List) else feature
    if not isinstance(inner, ClassLabel | Value) or "binary" in getattr(inner, "dtype", ""):
        raise InputError(f"{first}: column {column!r} holds {one_line(feature, 80)}; name a column of labels")
    known = feature.names if isinstance(feature, ClassLabel) else None
    values = {split: _plain(dataset, column) for split, dataset in splits.items()}
    if problem_type is None:
        problem_type = MULTI if separator else _infer(values["train"], known)
    if problem_type not in PROBLEM_TYPES:
        raise InputError(f"--problem_type {problem_type}: choose one of {', '.join(PROBLEM_TYPES)}")
    if separator and problem_type != MULTI:
        raise InputError(f"--label_separator {separator!r} is for {MULTI}, not for {problem_type}")
    if problem_type == MULTI:
        values = {s: [_as_list(v, separator) for v in column_values] for s, column_values in values.items()}
    if "test" in values and not any(value not in (None, []) for value in values["test"]):
        test = splits["test"]
        splits = splits | {"test": test.select_columns([name for name in test.column_names if name != column])}
        del values["test"]
    names = [column] if problem_type == REGRESSION else known
    names = [*label_names] if label_names else names or _names(values["train"])
    index = {name: i for i, name in enumerate(names)}
    encoded, dropped = {}, dict.fromkeys(splits, 0)
    for split, dataset in splits.items():
        if split not in values:
            encoded[split] = dataset
            continue
        labels, faults = [], []
        for i, value in enumerate(values[split]):
            label, fault = _encode(value, index, problem_type, "the checkpoint" if label_names else "train")
            labels.append(label)
            if fault:
                faults.append((i, fault))
        if faults and not drop_bad_rows:
            first = "; ".join(f"{dataset[i]['id']}: {fault}" for i, fault in faults[:5])
            raise InputError(
                f"{split}: {len(faults)} rows whose {column!r} cannot be used: {first}"
                f"{'; ...' * (len(faults) > 5)}. Mend them, or pass --drop_bad_rows to leave them out"
            )
        bad = {i for i, _ in faults}
        keep = [i for i in range(len(dataset)) if i not in bad]
        if not keep:
            raise InputError(f"{split}: no row has a usable {column!r}: {faults[0][1]}")
        target = {SINGLE: ClassLabel(names=names), MULTI: List(Value("float32")), REGRESSION: Value("float32")}
        encoded[split] = (
            dataset.remove_columns(column)
            .select(keep)
            .add_column("labels", [labels[i] for i in keep], feature=target[problem_type])
        )
        dropped[split] = len(bad)
    if not label_names:
        _check_enough(encoded["train"], names, problem_type)
    return encoded, dropped, problem_type, names


def _plain(dataset: Dataset, column: str) -> list:
    """Return the labels as given; the numbers of a ClassLabel as their names, and its -1 as None."""
    if column not in dataset.column_names:
        return [None] * len(dataset)
    values = list(dataset[column])
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):  # each split by its own names: they may be in another order than in train
        return [None if value is None or value < 0 else feature.names[value] for value in values]
    if isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
        return [None if value is None else [feature.feature.names[v] for v in value] for value in values]
    return [None if str(value).strip() == "" or not is_finite(value) else value for value in values]


def is_finite(value) -> bool:
    """Tell whether a label can be one: text and whole numbers can, NaN and the infinities cannot."""
    return not isinstance(value, float) or math.isfinite(value)


def _infer(values: list, known: Sequence[str] | None) -> str:
    values = [value for value in values if value is not None]
    if known:
        return SINGLE
    if any(isinstance(value, list) for value in values):
        return MULTI
    numbers = [_number(value) for value in values]
    if values and all(n is not None for n in numbers) and any(isinstance(v, float) or "." in str(v) for v in values):
        return REGRESSION
    fractions = sum(n is not None and "." in str(v) for n, v in zip(numbers, values, strict=True))
    if 2 * fractions > len(values):  # else a stray `N/A` makes a class of every number
        odd = next(v for n, v in zip(numbers, values, strict=True) if n is None)
        raise InputError(
            f"the label column holds {fractions} numbers with a point and values such as {odd!r:.60}; pass "
            f"--problem_type regression (with --drop_bad_rows to leave these out) or {SINGLE}"
        )
    distinct = len(set(values))
    if distinct > 100 and distinct > len(values) / 2:
        raise InputError(
            f"the label column holds {distinct} different values in {len(values)} rows; if they are numbers to "
            "predict, pass --problem_type regression, else name the right --label_column"
        )
    return SINGLE


def _number(value) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 3.4e38 else None  # what float32 holds; nan and inf are not below it either


def _as_list(value, separator: str | None) -> list[str] | None:
    if value is None or isinstance(value, list):
        fit = value is not None and None not in value and all(map(is_finite, value))
        return [str(item) for item in value] if fit else None
    return [part.strip() for part in str(value).split(separator) if part.strip()] if separator else [str(value)]


def _names(values: list) -> list[str]:
    """Return the label names in train, sorted; whole numbers by their value."""
    names = {
        str(item) for value in values if value is not None for item in (value if isinstance(value, list) else [value])
    }
    # No number of thousands of digits: Python does not convert it.
    numeric = all(name.removeprefix("-").isdecimal() and len(name) < 1000 for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numeric else None)


def _encode(value, index: dict[str, int], problem_type: str, source: str) -> tuple:
    """Return (encoded label, None), or (None, what is wrong)."""
    if value is None:
        return None, "no label (empty, null, or a number that is not finite)"
    if isinstance(value, list) and problem_type != MULTI:
        return None, f"{value!r:.60} is not one label"
    if problem_type == REGRESSION:
        number = _number(value)
        if number is None:
            return None, f"{value!r:.60} is no finite number"
        # Trainer counts the labels that are not -100 to scale the loss.
        return (
            (number, None) if number != -100 else (None, "-100 means 'no label' in this ecosystem; shift the values")
        )
    unseen = [v for v in (value if isinstance(value, list) else [value]) if str(v) not in index]
    if unseen:
        some = ", ".join(f"{name:.60}" for name in list(index)[:10]) + ", ..." * (len(index) > 10)
        return None, f"label {unseen[0]!r:.60} does not occur in {source} ({some})"
    if problem_type == MULTI:
        if len(set(value)) < len(value) and set(value) <= {"0", "1", "0.0", "1.0", "False", "True"}:
            return None, f"[{', '.join(value):.60}] looks like a digit per label; list the names of the row's labels"
        return [float(name in value) for name in index], None
    return index[str(value)], None


def _check_enough(train: Dataset, names: list[str], problem_type: str) -> None:
    if problem_type != MULTI and len(used := set(train["labels"])) < 2:
        only = names[used.pop()] if problem_type == SINGLE else used.pop()
        raise InputError(f"train has the one label {only!r:.60} only; nothing can be learned from that")
    if problem_type == MULTI and not any(any(row) for row in train["labels"]):
        raise InputError("train: no row has a label")
