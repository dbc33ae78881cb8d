"""From documents to blocks that a model can read, losing nothing and counting what comes out."""

import logging
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ptft_recipes.errors import InputError

logger = logging.getLogger(__name__)

NO_WORD = -1  # the word number of a special token


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raise an InputError unless the tokenizer can mask, marks words, and blocks of this length fit the model."""
    name = tokenizer.name_or_path
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {name} has no fast version, which is needed to tell words and blocks apart"
        )
    if tokenizer.mask_token_id is None:
        raise InputError(f"the tokenizer of {name} has no mask token; masked language modelling needs an encoder's")
    if tokenizer.pad_token_id is None:
        raise InputError(f"the tokenizer of {name} has no padding token, which batches need")
    if max_length > tokenizer.model_max_length:
        raise InputError(f"--max_length {max_length}: this model reads at most {tokenizer.model_max_length} tokens")
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise InputError(f"--max_length {max_length}: {special} special tokens leave no room for text")


def split_into_blocks(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    documents: Sequence[str],
    max_length: int,
    line_by_line: bool = False,
) -> dict[str, list]:
    """Split documents into blocks of at most `max_length` tokens, each with the special tokens of a text of its own.

    A block never holds text of two documents. The last block of a document is as short as what remains of it: every
    token of the text is in exactly one block.

    Args:
        tokenizer: The model's, a fast one.
        texts: Of the documents.
        documents: Their names.
        max_length: Tokens per block, special tokens included.
        line_by_line: Every line that is not blank is a text of its own; one that is too long becomes several blocks.

    Returns:
        A row per block: `input_ids`; `word_ids`, the number of each token's word in its text and `NO_WORD` for special
        tokens; `length`; and `document`.
    """
    if line_by_line:
        lines = [
            (line, document)
            for text, document in zip(texts, documents, strict=True)
            for line in text.splitlines()
            if line.strip()
        ]
        texts, documents = ([line for line, _ in lines], [document for _, document in lines])
    if not texts:
        return {"input_ids": [], "word_ids": [], "length": [], "document": []}
    batch = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return {
        "input_ids": batch["input_ids"],
        "word_ids": [[NO_WORD if w is None else w for w in encoding.word_ids] for encoding in batch.encodings],
        "length": [len(ids) for ids in batch["input_ids"]],
        "document": [documents[i] for i in batch["overflow_to_sample_mapping"]],
    }


def pack_blocks(blocks: Mapping[str, list], *, max_length: int) -> dict[str, list]:
    """Put short blocks side by side into rows of at most `max_length` tokens: best fit, longest first.

    Each block keeps its special tokens. `MaskingCollator` keeps its attention and its positions to itself, so that the
    model computes what it would compute for the block alone.

    Args:
        blocks: As `split_into_blocks` returned them; `word_ids` they need not have.
        max_length: Tokens per row.

    Returns:
        A row per pack: `input_ids`, `word_ids`, `length`, and `segments`, the lengths of the blocks in it.

    Source: Krell et al., Efficient Sequence Packing without Cross-contamination (2021), section 3.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for i in sorted(range(len(blocks["length"])), key=lambda i: -blocks["length"][i]):
        length = blocks["length"][i]
        place = bisect_left(free, (length, 0))
        if place < len(free):
            left, row = free.pop(place)
            rows[row].append(i)
        else:
            left, row = max_length, len(rows)
            rows.append([i])
        entry = (left - length, row)
        free.insert(bisect_left(free, entry), entry)
    return {
        name: [[value for i in row for value in blocks[name][i]] for row in rows]
        for name in ("input_ids", "word_ids")
        if name in blocks
    } | {
        "length": [sum(blocks["length"][i] for i in row) for row in rows],
        "segments": [[blocks["length"][i] for i in row] for row in rows],
    }


def count_blocks(
    dataset: Mapping[str, Dataset | IterableDataset],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    read_streams: bool = True,
) -> dict[str, dict[str, Any]]:
    """Count documents, tokens, blocks, short remainders and unknown tokens per split, and log them.

    Args:
        dataset: Of blocks, by split.
        tokenizer: That made them.
        max_length: Tokens of a full block.
        read_streams: Read streams to their end; else their counts are None.

    Raises:
        InputError: A split has no block, or train has fewer tokens than one block holds.
    """
    names = ("documents", "tokens", "blocks", "short_blocks", "tokens_in_short_blocks", "unknown_tokens")
    counts = {}
    for split, blocks in dataset.items():
        if isinstance(blocks, IterableDataset) and not read_streams:
            counts[split] = dict.fromkeys(names)
            continue
        count, last = dict.fromkeys(names, 0), None
        for batch in blocks.select_columns(["input_ids", "document"]).iter(1000):
            for ids, document in zip(batch["input_ids"], batch["document"], strict=True):
                is_short = len(ids) < max_length
                count["documents"] += document != last
                count["tokens"] += len(ids)
                count["blocks"] += 1
                count["short_blocks"] += is_short
                count["tokens_in_short_blocks"] += is_short * len(ids)
                count["unknown_tokens"] += ids.count(tokenizer.unk_token_id)
                last = document
        if not count["blocks"]:
            raise InputError(f"{split}: no text is left after tokenization")
        if split == "train" and count["tokens"] < max_length:
            raise InputError(
                f"train has {count['tokens']} tokens, fewer than one block of --max_length {max_length}; give more "
                "text or lower --max_length"
            )
        logger.info(
            "  %-10s %d documents, %d tokens in %d blocks, %d of them shorter than the rest and kept (%d tokens); "
            "%d unknown tokens",
            split,
            *count.values(),
        )
        counts[split] = count
    return counts
