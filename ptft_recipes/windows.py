"""Words with labels as overlapping windows of tokens, and the predictions of windows as one label per word.

Every word is in exactly one window's own part: the one in which it has most context. Only there has it a label, and
only there is it predicted, so that no word counts twice in a loss or a score.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from ptft_recipes.errors import InputError

logger = logging.getLogger(__name__)

NO_TOKEN = -1  # the position of a word of which the tokenizer leaves nothing
IGNORED = -100


def prepare_for_words(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Let windows, and the padding of their batches, run from left to right, as positions of words are counted.

    Args:
        tokenizer: The model's; changed in place.

    Raises:
        InputError: It has no fast version, which alone says which token is of which word.
    """
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path} has no fast version, which knows tokens of words")
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def space_between_words(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what a word of a list must begin with to be read as it is in a text: a space, or nothing.

    Byte-level vocabularies (RoBERTa, ModernBERT) mark a word by the space before it; transformers reads a list of
    words without one as words run together, and says nothing. (To set `add_prefix_space` on a loaded tokenizer does
    not help: the classes of transformers 5 lose it when they are saved and loaded.)
    """

    def read(words: str | list[str]) -> list[int]:
        return tokenizer(words, is_split_into_words=isinstance(words, list))["input_ids"]

    text = read("a a")
    return " " if read(["a", "a"]) != text == read(["a", " a"]) else ""


def tokenize_words(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[str]],
    row_numbers: Sequence[int],
    labels: Sequence[Sequence[int]] | None = None,
    *,
    max_length: int,
    stride: int,
    continuations: Sequence[int] | None = None,
) -> dict[str, list]:
    """Tokenize rows of words into windows of at most `max_length` tokens, each overlapping the one before.

    Tokens are aligned with words by `word_ids`, so that a word whose characters the tokenizer drops shifts no label.

    Args:
        tokenizer: As `prepare_for_words` returned it.
        rows: The words of each row.
        row_numbers: `[rows]`, their numbers in the data set.
        labels: A number per word; None for rows without labels.
        max_length: Tokens per window, special tokens included.
        stride: Tokens that a window shares with the one before it.
        continuations: `[labels]`, per label the one that the further tokens of such a word get in training; None to
            leave them out of the loss (-100).

    Returns:
        A row per window: what the model reads; `labels` `[length]`, -100 outside the window's own words; `length`,
        `unknown` (tokens that the vocabulary does not have); `row`, and `window`, its number in that; and of its own
        words, in order, the `positions` of their first tokens, `NO_TOKEN` for a word that has none.

    Raises:
        InputError: `max_length` is more than the model's positions or leaves no room for words, or `stride` does.
    """
    room = max_length - tokenizer.num_special_tokens_to_add()
    if max_length > tokenizer.model_max_length:
        raise InputError(f"--max_length {max_length}: this model reads at most {tokenizer.model_max_length} tokens")
    if not 0 <= stride < room:  # tokenizers would panic
        raise InputError(f"--stride {stride}: must be at least 0, and below the {max(room, 0)} tokens of a window")
    space = space_between_words(tokenizer)
    batch = tokenizer(
        [[*words[:1], *(space + word for word in words[1:])] for words in rows],
        is_split_into_words=True,
        truncation=True,
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
    )
    sources = batch.pop("overflow_to_sample_mapping")
    windows: dict[str, list] = {name: list(values) for name, values in batch.items()}
    windows |= {"length": [len(ids) for ids in batch["input_ids"]], "row": [row_numbers[source] for source in sources]}
    windows["unknown"] = [ids.count(tokenizer.unk_token_id) for ids in batch["input_ids"]]
    windows["window"], windows["positions"], window_labels = [], [], []
    for source, words in enumerate(rows):
        found = [batch.word_ids(i) for i in np.flatnonzero(np.asarray(sources) == source)]
        for number, (first, positions) in enumerate(own_words(found, len(words), stride)):
            windows["window"].append(number)
            windows["positions"].append(positions)
            if labels is not None:
                own = labels[source][first : first + len(positions)]
                window_labels.append(_align(found[number], first, positions, own, continuations))
    return windows | ({} if labels is None else {"labels": window_labels})


def own_words(windows: Sequence[Sequence[int | None]], words: int, stride: int) -> list[tuple[int, list[int]]]:
    """Divide the words of a row among its windows: each goes to the one where its first token has most context.

    Context is the distance to the nearer end of the window; where the window ends with the row, it ends in nothing. A
    word without tokens goes where the word before it goes. The own words of a window are always neighbours.

    Args:
        windows: `word_ids` of each window, None for special tokens.
        words: Number of words in the row.
        stride: Tokens that a window shares with the one before it.

    Returns:
        Per window the number of its first own word, and the positions of the first tokens of its own words, `NO_TOKEN`
        for one that has none.

    >>> own_words([[None, 0, 1, 2, 3, None], [None, 2, 3, 4, 6, None]], 7, stride=2)
    [(0, [1, 2, 3]), (3, [2, 3, -1, 4])]
    """
    best: dict[int, tuple[float, int, int]] = {}  # word -> context, window, position
    previous, last = None, len(windows) - 1
    for number, word_ids in enumerate(windows):
        inside = [i for i, word in enumerate(word_ids) if word is not None]
        for i in inside:
            word = word_ids[i]
            if word == (word_ids[i - 1] if i > inside[0] else previous):
                continue
            left = i - inside[0] if number else float("inf")
            right = inside[-1] - i if number < last else float("inf")
            if word not in best or min(left, right) > best[word][0]:
                best[word] = min(left, right), number, i
        if number < last:  # the word before the next window's first token, which may be a further one of the same word
            previous = word_ids[inside[-stride - 1]]
    owner, own = 0, [[] for _ in windows]
    first = [0] * len(windows)
    for word in range(words):
        _, owner, position = best.get(word, (0, owner, NO_TOKEN))
        if not own[owner]:
            first[owner] = word
        own[owner].append(position)
    return list(zip(first, own, strict=True))


def _align(
    word_ids: Sequence[int | None],
    first: int,
    positions: Sequence[int],
    labels: Sequence[int],
    continuations: Sequence[int] | None,
) -> list[int]:
    """Return a label per token of a window: that of each own word at its first token, and as asked for at the rest."""
    aligned = [IGNORED] * len(word_ids)
    for word, (position, label) in enumerate(zip(positions, labels, strict=True), start=first):
        if position == NO_TOKEN:
            continue
        aligned[position] = label
        further = position + 1
        while continuations is not None and further < len(word_ids) and word_ids[further] == word:
            aligned[further] = continuations[label]
            further += 1
    return aligned


def continuation_labels(label_names: Sequence[str]) -> list[int]:
    """Return per label the one of a word's further tokens: `I-PER` for `B-PER`, else the same.

    >>> continuation_labels(["O", "B-PER", "I-PER", "U-LOC"])
    [0, 2, 2, 3]
    """
    number = {name: i for i, name in enumerate(label_names)}
    inside = ("I" + name[1:] if name[:1] == "B" and name[1:2] in ("", "-") else name for name in label_names)
    return [number.get(name, i) for i, name in enumerate(inside)]


def merge_windows(predicted: np.ndarray, windows: Dataset, default: int) -> dict[int, list[int]]:
    """Put the predictions of windows together, one per word.

    Args:
        predicted: `[windows, length]` label numbers per token.
        windows: As `tokenize_words` made them, in the same order; those of one row may lie anywhere.
        default: The label of a word that has no token.

    Returns:
        Per row number the labels of its words.
    """
    merged: dict[int, list[tuple[int, list[int]]]] = {}
    columns = (windows[name] for name in ("row", "window", "positions"))
    for tokens, row, window, positions in zip(predicted, *columns, strict=True):
        labels = [default if position == NO_TOKEN else int(tokens[position]) for position in positions]
        merged.setdefault(row, []).append((window, labels))
    return {row: [label for _, labels in sorted(parts) for label in labels] for row, parts in merged.items()}


def count_windows(dataset: DatasetDict) -> dict[str, dict[str, Any]]:
    """Count tokens, windows, rows of several windows, words without a token, and unknown tokens per split."""
    counts = {}
    for split, windows in dataset.items():
        rows = np.unique(windows["row"][:], return_counts=True)[1]
        counts[split] = {
            "tokens": sum(windows["length"]),
            "windows": len(windows),
            "rows_of_several_windows": int((rows > 1).sum()),
            "words_without_token": sum(positions.count(NO_TOKEN) for positions in windows["positions"]),
            "unknown_tokens": sum(windows["unknown"]),
        }
        logger.info(
            "  %-10s %9d tokens in %d windows; %d rows have several; %d words without a token, %d unknown tokens",
            split,
            *counts[split].values(),
        )
    return counts
