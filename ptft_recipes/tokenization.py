"""From text to token ids, counting what is lost on the way."""

import logging
from typing import Any

from datasets import DatasetDict
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ptft_recipes.errors import InputError

logger = logging.getLogger(__name__)


def tokenize(tokenizer: PreTrainedTokenizerBase, *texts: list[str], max_length: int) -> BatchEncoding:
    """Tokenize a batch of texts, or of pairs, cut at `max_length`.

    Args:
        tokenizer: The model's.
        texts: One list of texts, or two for pairs; of a pair the longer text is cut.
        max_length: Tokens per example, special tokens included.

    Returns:
        What the model reads, unpadded and without a mask (padding adds it), and per example `length` (tokens),
        `truncated` (bool) and `unknown` (tokens that the vocabulary does not have).

    Raises:
        InputError: `max_length` is more than the model's positions, or leaves no room for text.
    """
    if max_length > tokenizer.model_max_length:
        raise InputError(f"--max_length {max_length}: this model reads at most {tokenizer.model_max_length} tokens")
    special = tokenizer.num_special_tokens_to_add(pair=len(texts) > 1)
    if max_length <= special:  # the tokenizer would silently not truncate at all
        raise InputError(f"--max_length {max_length}: {special} special tokens leave no room for text")
    settings = {"truncation": True, "max_length": max_length}
    if tokenizer.is_fast:
        first = tokenizer(*(column[:1] for column in texts), **settings)  # it sets up the backend
        rows = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(rows)
        # Alone, the backend is faster: it finds no offsets, and no masks of ones are copied from it.
        batch = BatchEncoding({"input_ids": [encoding.ids for encoding in encodings]})
        if any(encodings[0].type_ids) and "token_type_ids" in first:  # where all are 0, models take 0 anyway
            batch["token_type_ids"] = [encoding.type_ids for encoding in encodings]
        if encodings[0].ids != first["input_ids"][0]:  # a tokenizer that does more, such as LUKE's
            batch = tokenizer(*texts, **settings)
        batch["truncated"] = [bool(encoding.overflowing) for encoding in encodings]
    else:
        batch = tokenizer(*texts, **settings)
        batch["truncated"] = [len(ids) > max_length for ids in tokenizer(*texts, verbose=False)["input_ids"]]
    batch["length"] = [len(ids) for ids in batch["input_ids"]]
    batch["unknown"] = [ids.count(tokenizer.unk_token_id) for ids in batch["input_ids"]]
    return batch


def count_tokens(dataset: DatasetDict) -> dict[str, dict[str, Any]]:
    """Count tokens, truncated rows and rows with unknown tokens per split, from the columns that `tokenize` adds."""
    counts = {}
    for split, rows in dataset.items():
        counts[split] = {
            "tokens": sum(rows["length"]),
            "longest": max(rows["length"]),
            "truncated_rows": sum(rows["truncated"]),
            "rows_with_unknown_tokens": sum(n > 0 for n in rows["unknown"]),
        }
        logger.info(
            "  %-10s %9d tokens, at most %d in a row; %d rows truncated, %d with unknown tokens",
            split,
            *counts[split].values(),
        )
    return counts
