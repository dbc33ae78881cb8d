"""Two segments per row: does the second follow the first? Next-sentence and sentence-order prediction."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ptft_recipes.blocks import NO_WORD
from ptft_recipes.collators import HELD_OUT_RATE, HELD_OUT_SEED, MaskingCollator
from ptft_recipes.errors import InputError

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
CANDIDATES = 16  # random second segments, of which the one of the most similar length is taken
ARRANGING = 2  # sets the choice for a row apart from the draws of its mask


def split_into_pairs(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], documents: Sequence[str], max_length: int
) -> dict[str, list]:
    """Split documents into rows of whole sentences, and each row in two at the sentence border next to its middle.

    Sentences end at `.`, `!`, `?` followed by a space, and at line breaks; one that is longer than half a row becomes
    several. Every token of the text is in exactly one row. A row of one sentence has no second segment.

    Args:
        tokenizer: The model's, a fast one.
        texts: Of the documents.
        documents: Their names.
        max_length: Tokens per row, special tokens included.

    Returns:
        A row per pair: `input_ids`, [CLS] first [SEP] second [SEP]; `word_ids`, `NO_WORD` for special tokens; `cut`,
        the place of the second segment's first token, or the length where there is none; `length`; and `document`.

    Raises:
        InputError: No room for two tokens.
    """
    if max_length < 5:
        raise InputError(f"--max_length {max_length}: 3 special tokens leave no room for a pair")
    rows: dict[str, list] = {name: [] for name in ("input_ids", "word_ids", "cut", "length", "document")}
    for text, document in zip(texts, documents, strict=True):
        for sentences in _fill_rows(_sentences(tokenizer, text, max_length), max_length - 3):
            ends = np.cumsum([len(ids) for ids, _ in sentences])
            half = int(np.abs(ends[:-1] - ends[-1] / 2).argmin()) + 1 if len(sentences) > 1 else 1
            segments = sentences[:half], sentences[half:]
            parts = [
                tuple([x for part in segment for x in part[k]] for k in (0, 1)) for segment in segments if segment
            ]
            input_ids, word_ids = join_segments(tokenizer, *parts)
            rows["input_ids"].append(input_ids)
            rows["word_ids"].append(word_ids)
            rows["cut"].append(len(parts[0][0]) + 2)
            rows["length"].append(len(input_ids))
            rows["document"].append(document)
    return rows


def _sentences(tokenizer, text: str, max_length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield ids and word numbers of the sentences; no word number stands in two of them."""
    sentences = [sentence for sentence in SENTENCE_END.split(text) if sentence.strip()]
    if not sentences:
        return
    batch, words, longest = tokenizer(sentences, add_special_tokens=False), 0, (max_length - 3) // 2
    for ids, encoding in zip(batch["input_ids"], batch.encodings, strict=True):
        numbers = [words + word for word in encoding.word_ids]
        words = max(numbers, default=words - 1) + 1
        for start in range(0, len(ids), longest):
            yield ids[start : start + longest], numbers[start : start + longest]


def _fill_rows(sentences, room: int) -> Iterator[list[tuple[list[int], list[int]]]]:
    row, used = [], 0
    for ids, words in sentences:
        if row and used + len(ids) > room:
            yield row
            row, used = [], 0
        row.append((ids, words))
        used += len(ids)
    if row:
        yield row


def join_segments(tokenizer: PreTrainedTokenizerBase, *segments) -> tuple[list[int], list[int]]:
    """Join ids and word numbers of one or two segments by special tokens."""
    input_ids, word_ids = [tokenizer.cls_token_id], [NO_WORD]
    for ids, words in segments:
        input_ids += [*ids, tokenizer.sep_token_id]
        word_ids += [*words, NO_WORD]
    return input_ids, word_ids


class SentencePairCollator(MaskingCollator):
    """MaskingCollator of pairs: half of them stay as they are (label 0), in the others something is wrong (label 1).

    `next`: the second segment is that of another document (Devlin et al., BERT, 2019, section 3.1). Of some random
    ones it is the one of the most similar length, so that lengths do not give it away. `order`: the segments are
    swapped (Lan et al., ALBERT, 2020, section 3.1). Which, depends on the seed, the epoch and the row alone.

    Args:
        tokenizer: The model's.
        objective: `next` or `order`.
        pairs: Rows of `split_into_pairs`, from which `next` takes other segments.
        max_length: Tokens per row, special tokens included.
        args: Of MaskingCollator, from `unit` on.

    Raises:
        InputError: `next`, and all pairs are of one document.
    """

    def __init__(  # noqa: D107
        self, tokenizer: PreTrainedTokenizerBase, objective: str, pairs: Dataset, max_length: int, *args
    ):
        super().__init__(tokenizer, *args)
        self.tokenizer, self.objective, self.pairs, self.max_length = tokenizer, objective, pairs, max_length
        _, self.document = np.unique(pairs["document"][:], return_inverse=True)
        cut, length = (np.asarray(pairs[name][:]) for name in ("cut", "length"))
        self.second = np.maximum(length - cut - 1, 0)  # tokens of the second segment
        if objective == "next" and len(np.unique(self.document[self.second > 0])) < 2:
            raise InputError("next-sentence prediction takes segments of other documents, and the text has only one")

    def arrange(self, example: dict[str, Any], generator: np.random.Generator) -> tuple[list, list, list, int]:
        """Return ids, word numbers, segment numbers and label of a row, with its segments in their final order."""
        ids, words, cut = example["input_ids"], example["word_ids"], example["cut"]
        if cut >= len(ids):
            return ids, words, [0] * len(ids), -100
        first, second = (ids[1 : cut - 1], words[1 : cut - 1]), (ids[cut:-1], words[cut:-1])
        label = int(generator.random() < 0.5)
        if label and self.objective == "order":
            first, second = second, first
        elif label:
            second = self._of_another_document(example, len(second[0]), generator)
            room = self.max_length - 3 - len(first[0])
            second = second[0][:room], second[1][:room]
        joined = join_segments(self.tokenizer, first, second)
        types = [0] * (len(first[0]) + 2) + [1] * (len(second[0]) + 1)
        return *joined, types, label

    def _of_another_document(self, example, length: int, generator) -> tuple[list[int], list[int]]:
        own = self.document[example["row"]]
        found = generator.integers(len(self.second), size=CANDIDATES)
        found = found[(self.document[found] != own) & (self.second[found] > 0)]
        if not len(found):
            found = generator.permutation(np.flatnonzero((self.document != own) & (self.second > 0)))[:CANDIDATES]
        other = self.pairs[int(found[np.abs(self.second[found] - length).argmin()])]
        return other["input_ids"][other["cut"] : -1], other["word_ids"][other["cut"] : -1]

    def finish(self, example: dict[str, Any]) -> dict[str, Any]:
        """Return a row as the model reads it: `input_ids`, `token_type_ids`, `labels` and `sentence_label`."""
        row, epoch = example["row"], example.get("epoch", 0)
        generator = np.random.default_rng([self.seed, epoch, row, ARRANGING])
        ids, words, types, label = self.arrange(example, generator)
        ids, labels = self.mask(ids, words, row, epoch, example.get("progress", 0.0))
        return {"input_ids": ids, "labels": labels, "token_type_ids": types, "sentence_label": label}

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            examples: Rows of `split_into_pairs` with `row`, or finished ones.

        Returns:
            As MaskingCollator; and `token_type_ids` `[batch, length]`; `sentence_labels` `[batch]`, -100 for a row
            without a second segment.
        """
        rows = [example if "labels" in example else self.finish(example) for example in examples]
        batch = super().__call__(rows)
        types = torch.zeros_like(batch["input_ids"])
        for i, row in enumerate(rows):
            types[i, : len(row["token_type_ids"])] = torch.as_tensor(row["token_type_ids"])
        labels = torch.tensor([row["sentence_label"] for row in rows])
        return batch | {"token_type_ids": types, "sentence_labels": labels}


def finish_held_out(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, objective: str, max_length: int) -> Dataset:
    """Arrange and mask rows once and for all, the same for every run; the mask is by `mask_held_out`'s rule.

    Args:
        dataset: Rows of `split_into_pairs`.
        tokenizer: The model's.
        objective: As for SentencePairCollator.
        max_length: As for SentencePairCollator.

    Returns:
        The rows with `input_ids`, `token_type_ids`, `labels`, `sentence_label`, `length` and `document`.
    """
    masking = "token", HELD_OUT_RATE, None, HELD_OUT_SEED
    collator = SentencePairCollator(tokenizer, objective, dataset, max_length, *masking)

    def finish(example: dict[str, Any], row: int) -> dict[str, Any]:
        finished = collator.finish(example | {"row": row})
        return finished | {"length": len(finished["input_ids"])}

    return dataset.map(finish, with_indices=True, remove_columns=["word_ids", "cut"])
