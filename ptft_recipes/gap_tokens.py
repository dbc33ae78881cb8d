"""The tokens that stand for gaps: found, or added; and text that must not be taken for them."""

import logging
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ptft_recipes.blocks import split_into_blocks
from ptft_recipes.modeling import ModelArguments, load_tokenizer

logger = logging.getLogger(__name__)

SENTINELS = 100  # that a tokenizer without any gets: as many as T5's
SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")
MASK = "<mask>"


def sentinel_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens `<extra_id_0>`, `<extra_id_1>`, ... in this order; none where there are none."""
    found = {int(match[1]): i for token, i in tokenizer.get_vocab().items() if (match := SENTINEL.fullmatch(token))}
    return [found[number] for number in sorted(found)]


def add_gap_tokens(tokenizer: PreTrainedTokenizerBase, objective: str) -> int:
    """Add what an objective needs and a tokenizer lacks, in place: 100 sentinels, or a mask token.

    Ids of sentinels descend, as T5's do: `<extra_id_0>` is the last.

    Returns:
        How many tokens are new.
    """
    if objective == "span_corruption":
        names = [f"<extra_id_{number}>" for number in reversed(range(SENTINELS))]
        return 0 if sentinel_ids(tokenizer) else tokenizer.add_tokens(names, special_tokens=True)
    return 0 if tokenizer.mask_token_id is not None else tokenizer.add_special_tokens({"mask_token": MASK})


def load_gap_tokenizer(model_args: ModelArguments, objective: str) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; sentinels or a mask token that the objective needs and it lacks are added.

    It gives no `token_type_ids`, which an encoder-decoder does not take and `generate` refuses.
    """
    tokenizer = load_tokenizer(model_args)
    if added := add_gap_tokens(tokenizer, objective):
        logger.info("tokenizer: %d new token(s) for gaps, which it lacked", added)
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return tokenizer


def split_literally(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    documents: Sequence[str],
    max_length: int,
    line_by_line: bool = False,
) -> dict[str, list]:
    """Split documents as `split_into_blocks` does, and read a text that holds `</s>` or `<extra_id_0>` as plain text.

    A sentinel that the text itself brings would stand for no gap, and an end within it would end the target.
    """
    before, tokenizer.split_special_tokens = tokenizer.split_special_tokens, True
    try:
        return split_into_blocks(tokenizer, texts, documents, max_length, line_by_line)
    finally:
        tokenizer.split_special_tokens = before
