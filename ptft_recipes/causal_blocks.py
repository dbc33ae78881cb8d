"""From documents to blocks for next-token prediction: every token but a document's first is predicted once."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ptft_recipes.errors import InputError

FEWEST = 8  # tokens of a block


def block_size(tokenizer: PreTrainedTokenizerBase, max_length: int, room: int = 0) -> int:
    """Return of how many tokens a block may be.

    Args:
        tokenizer: The model's.
        max_length: Tokens that the model is to read at once.
        room: By how many of them a block may grow afterwards.

    Raises:
        InputError: The tokenizer cannot end a document, the model reads less, or too little is left of a block.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path} has no end-of-text token to end a document by")
    if not FEWEST + room <= max_length <= tokenizer.model_max_length:
        raise InputError(
            f"--max_length {max_length}: must be at least {FEWEST + room}, and this model reads at most "
            f"{tokenizer.model_max_length} tokens"
        )
    return max_length - room


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer puts in front of a text: the beginning-of-text token, or nothing."""
    start = tokenizer("a")["input_ids"][:1]
    return start if start and start[0] == tokenizer.bos_token_id else []


def split_for_next_token(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], documents: Sequence[str], max_length: int
) -> dict[str, list]:
    """Split documents into blocks of at most `max_length` tokens.

    A document is the beginning-of-text token, where the tokenizer puts one in front of a text; its tokens; and the
    end-of-text token. A block begins with the last token of the block before it, which is only read there: so all
    tokens but the first of a document are predicted, each once.

    Args:
        tokenizer: The model's.
        texts: Of the documents.
        documents: Their names.
        max_length: Tokens per block.

    Returns:
        A row per block: `input_ids`, `length` and `document`.
    """
    rows: dict[str, list] = {"input_ids": [], "length": [], "document": []}
    first = first_tokens(tokenizer)
    batch = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    for ids, document in zip(batch["input_ids"], documents, strict=True):
        ids = [*first, *ids, tokenizer.eos_token_id]
        for start in range(0, max(len(ids) - 1, 1), max_length - 1):
            block = ids[start : start + max_length]
            rows["input_ids"].append(block)
            rows["length"].append(len(block))
            rows["document"].append(document)
    return rows
