"""Questions with long contexts as overlapping windows of tokens, and answers as tokens of the whole context.

A token of a context has one number, whichever windows it is in; its characters are asked for once, of the whole text.
Some byte-level tokenizers count the space before a word to its token and others do not, so spaces are cut off.
"""

import logging
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from ptft_recipes.errors import InputError

logger = logging.getLogger(__name__)

NO_ANSWER = 0  # the position that stands for it: the first token, [CLS] or <s>


def token_spans(tokenizer, context: str) -> np.ndarray:
    """Return the characters of every token of a context, without white space around them, with the marks behind them.

    Args:
        tokenizer: A fast one.
        context: A text.

    Returns:
        `[tokens, 2]`, begin and end; they are the same for a token of white space alone.
    """
    # verbose: else it warns that the context is longer than the model reads, which is why there are windows
    encoding = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = []
    for start, end in encoding["offset_mapping"]:
        while start < end and context[start].isspace():
            start += 1
        while start < end and context[end - 1].isspace():
            end -= 1
        # An uncased tokenizer takes combining marks out, and the character before them would lose its accent.
        while start < end < len(context) and unicodedata.category(context[end]).startswith("M"):
            end += 1
        spans.append((start, end))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def tokens_of_answer(spans: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """Return the first and the last token of the characters of an answer; None if it has none.

    Args:
        spans: `[tokens, 2]`, as `token_spans` returns them.
        start: The first character.
        end: The one behind the last.
    """
    inside = np.flatnonzero((spans[:, 0] < end) & (spans[:, 1] > start) & (spans[:, 0] < spans[:, 1]))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def tokenize_questions(
    tokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    row_numbers: Sequence[int],
    answers: Sequence[dict[str, list]] | None = None,
    *,
    max_length: int,
    stride: int,
) -> dict[str, list]:
    """Tokenize questions with their contexts into windows: the whole question, and a part of the context.

    Args:
        tokenizer: As `prepare_for_words` returned it.
        questions: `[rows]`.
        contexts: `[rows]`.
        row_numbers: `[rows]`, their numbers in the data set.
        answers: Per row `text` and `answer_start`, verified; None for rows without answers.
        max_length: Tokens per window, question and special tokens included.
        stride: Tokens of the context that a window shares with the one before it.

    Returns:
        A row per window: what the model reads; `labels`, four positions in the window: the first and last token of the
        first gold answer, `NO_ANSWER` twice if it is not in the window as a whole, and the context's first token and
        the one behind its last; `length`, `unknown` (tokens that the vocabulary does not have); `row`; `first`, the
        number of the window's first token in the context, `begin`, where that stands in the window, and `tokens`, how
        many of them there are; and `answer_length`, the tokens of the gold answer in this window, or 0.

    Raises:
        InputError: `max_length` is more than the model's positions, or a question leaves no room beside it.

    Source: Devlin et al., BERT (2019), sections 4.2 and 4.3; windows as in its run_squad.py.
    """
    if max_length > tokenizer.model_max_length:
        raise InputError(f"--max_length {max_length}: this model reads at most {tokenizer.model_max_length} tokens")
    _check_room(tokenizer, questions, row_numbers, max_length, stride)
    batch = tokenizer(
        list(questions),
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
    )
    sources = batch.pop("overflow_to_sample_mapping")
    windows: dict[str, list] = {name: list(values) for name, values in batch.items()}
    windows |= {"length": [len(ids) for ids in batch["input_ids"]], "row": [row_numbers[source] for source in sources]}
    windows["unknown"] = [ids.count(tokenizer.unk_token_id) for ids in batch["input_ids"]]
    windows |= {name: [] for name in ("first", "begin", "tokens", "labels", "answer_length")}
    for source, context in enumerate(contexts):
        spans = token_spans(tokenizer, context)
        gold = _gold_tokens(spans, answers[source]) if answers is not None else None
        first = 0
        for i in np.flatnonzero(np.asarray(sources) == source):
            places = [place for place, part in enumerate(batch.sequence_ids(i)) if part == 1]
            begin, count = (places[0], len(places)) if places else (NO_ANSWER, 0)
            labels = [NO_ANSWER, NO_ANSWER, begin, begin + count]
            if gold and first <= gold[0] and gold[1] < first + count:
                labels[:2] = [begin + position - first for position in gold]
            windows["first"].append(first)
            windows["begin"].append(begin)
            windows["tokens"].append(count)
            windows["labels"].append(labels)
            windows["answer_length"].append(labels[1] - labels[0] + 1 if labels[0] else 0)
            last, first = first + count, first + count - stride
        if last != len(spans):
            raise InputError(f"this tokenizer reads a context of {len(spans)} tokens as {last} behind a question")
    if answers is None:
        del windows["labels"], windows["answer_length"]
    return windows


def _check_room(tokenizer, questions, row_numbers, max_length: int, stride: int) -> None:
    """Raise an InputError unless every question leaves room for more than the stride: tokenizers would panic."""
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    lengths = tokenizer(list(questions), add_special_tokens=False, return_length=True, verbose=False)["length"]
    longest = int(np.argmax(lengths))
    if not 0 <= stride < room - lengths[longest]:
        raise InputError(
            f"--max_length {max_length}, --stride {stride}: the question of row {row_numbers[longest] + 1}, "
            f"{questions[longest]!r:.60}, has {lengths[longest]} tokens and leaves {max(room - lengths[longest], 0)} "
            "for its context, which must be more than the stride; raise --max_length, lower --stride, or mend the row"
        )


def _gold_tokens(spans: np.ndarray, answers: dict[str, list]) -> tuple[int, int] | None:
    if not answers["text"]:
        return None
    start = answers["answer_start"][0]
    return tokens_of_answer(spans, start, start + len(answers["text"][0]))


def count_answer_windows(dataset, raw) -> dict[str, dict[str, Any]]:
    """Count tokens, windows, rows of several windows, unknown tokens, and answers that are in no window, per split.

    Args:
        dataset: Windows by split.
        raw: The questions by split.
    """
    counts = {}
    for split, windows in dataset.items():
        rows = np.unique(windows["row"][:], return_counts=True)[1]
        counts[split] = {
            "tokens": sum(windows["length"]),
            "windows": len(windows),
            "rows_of_several_windows": int((rows > 1).sum()),
            "unknown_tokens": sum(windows["unknown"]),
        }
        if "answer_length" in windows.column_names:
            found = {row for row, n in zip(windows["row"], windows["answer_length"], strict=True) if n}
            answered = {row for row, answers in enumerate(raw[split]["answers"]) if answers["text"]}
            counts[split] |= {
                "answers_in_no_window": len(answered - found),
                "longest_answer": max(windows["answer_length"]),
            }
        logger.info(
            "  %-10s %9d tokens in %d windows; %d rows have several; %d unknown tokens%s",
            split,
            *list(counts[split].values())[:4],
            f"; {lost} answers in no window" if (lost := counts[split].get("answers_in_no_window")) else "",
        )
    return counts
