"""Prompts with their completions, and chats: read, checked, and written in one form."""

import json
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, DatasetDict

from ptft_recipes.data import DatasetArguments, dataset_hub_id, load_splits, read_splits
from ptft_recipes.errors import InputError, one_line
from ptft_recipes.folds import parse_fold
from ptft_recipes.reading import check_text
from ptft_recipes.splits import complete_splits

ASSISTANT = "assistant"


def load_conversations(
    data_args: DatasetArguments,
    prompt_column: str,
    completion_column: str,
    messages_column: str | None = None,
    more_columns: Sequence[str] = (),
    trains: bool = True,
) -> tuple[DatasetDict, dict[str, Any]]:
    """Load and check what a decoder is to learn to answer: train to fit, validation to choose, test to report.

    Args:
        data_args: Where the data comes from.
        prompt_column: A text to go on from.
        completion_column: How it goes on.
        messages_column: In the place of both, a chat in each row: a list of objects with `role` and `content`, the
            last of them the assistant's. In CSV files it is JSON in a cell.
        more_columns: That are kept as they are, e.g. to score by.
        trains: There must be a train split.

    Returns:
        The splits, each with `id`, `messages`, a chat as JSON (a prompt and its completion are a chat of two
        messages), and `more_columns`; and the report, as `load_splits` returns it.

    Raises:
        InputError: Data that cannot be read or used, with file and line (or split and row), and the remedy.
    """
    if "messages" in more_columns:
        raise InputError("column 'messages' is what the chats are called here; name another")
    if not messages_column:
        columns = [prompt_column, completion_column]
        raw, report = load_splits(data_args, columns, label_names=None if trains else (), more_columns=more_columns)

        def join(examples):
            pairs = zip(examples[prompt_column], examples[completion_column], strict=True)
            return {"messages": [write_messages(as_chat(*pair)) for pair in pairs]}

        return raw.map(join, batched=True, remove_columns=columns), report
    if messages_column == "id":
        raise InputError("--messages_column: `id` is written by the recipe; name another")
    fold = parse_fold(data_args.fold)
    of_fold = [fold.group_column] if fold and fold.group_column and fold.group_column not in more_columns else []
    kept = [*of_fold, *more_columns]
    name, splits = read_splits(data_args, [], None, trains=trains, more_columns=[messages_column, *kept])
    report: dict[str, Any] = {"name": name, "hub_id": dataset_hub_id(data_args), "dropped": {}}
    for split, rows in splits.items():
        splits[split], report["dropped"][split] = _check(split, rows, messages_column, kept, data_args.drop_bad_rows)
    limits = {"max_train_samples": data_args.max_train_samples, "max_eval_samples": data_args.max_eval_samples}
    return complete_splits(
        splits, report, ["messages"], stratify=False, more_columns=more_columns, fold=fold, **limits
    )


def as_chat(prompt: str, completion: str) -> list[dict[str, str]]:
    """Return a prompt and its completion as a chat of two messages."""
    return [{"role": "user", "content": prompt}, {"role": ASSISTANT, "content": completion}]


def write_messages(messages: Sequence[dict[str, Any]]) -> str:
    """Return a chat as JSON: a column of objects would give each one the keys of all, as None."""
    return json.dumps(messages, ensure_ascii=False)


def read_messages(text: str) -> list[dict[str, Any]]:
    """Return the chat that `write_messages` wrote."""
    return json.loads(text)


def _check(split: str, rows: Dataset, column: str, columns: list[str], drop: bool) -> tuple[Dataset, int]:
    kept, chats, faults = [], [], []
    for i, (name, value) in enumerate(zip(rows["id"], rows[column], strict=True)):
        chat, fault = _parse(value)
        if fault:
            faults.append(f"{name}: {fault}")
        else:
            kept.append(i)
            chats.append(write_messages(chat))
    if faults and not drop:
        raise InputError(
            f"{split}: {len(faults)} rows are no chats to learn from: {'; '.join(faults[:3])}. Mend them, or leave "
            "them out with --drop_bad_rows"
        )
    if not kept:
        raise InputError(f"{split}: no usable rows; the first: {faults[0] if faults else 'there is none'}")
    return rows.select(kept).select_columns(["id", *columns]).add_column("messages", chats), len(faults)


def _parse(value: Any) -> tuple[list[dict[str, Any]], str | None]:
    """Return the chat of a cell, and what is wrong with it, if something is."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            return [], f"not a list of messages, and not one as JSON: {one_line(error)}"
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        return [], f"{type(value).__name__} {value!r:.40} is not a list of messages"
    chat = [{key: each for key, each in message.items() if each is not None} for message in value]
    for number, message in enumerate(chat, start=1):
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            return [], f"message {number} of {len(chat)} lacks a `role` or a `content` that is text"
        try:
            check_text({"id": f"message {number}", "content": message["content"]}, "content")
        except InputError as error:
            return [], str(error)
    if len(chat) < 2 or chat[0]["role"] == ASSISTANT or chat[-1]["role"] != ASSISTANT:
        return (
            [],
            f"of roles {', '.join(m['role'] for m in chat)}: the assistant's must be the last, and not the first",
        )
    for number, message in enumerate(chat, start=1):
        if message["role"] == ASSISTANT and not (message["content"].strip() or message.get("tool_calls")):
            return [], f"message {number} of {len(chat)} is the assistant's and empty: the model would learn silence"
    return chat, None
