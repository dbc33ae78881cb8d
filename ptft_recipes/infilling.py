"""Fill-in-the-middle: a piece of a block is moved to its end, so that a decoder learns to write what is missing."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptft_recipes.causal_blocks import first_tokens
from ptft_recipes.embeddings import new_token_indices
from ptft_recipes.errors import InputError
from ptft_recipes.tuning import PLAIN_METHODS, TuningArguments

logger = logging.getLogger(__name__)

# In front of the prefix, the suffix and the middle, as published models have them; the first are ours where none are.
SENTINELS = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
MORE_PIECES = 6  # tokens that a block may have more once it is cut within two words; of English and code it is 2
# Tokens that a block grows by: three sentinels, an end of the middle where the document goes on, and those.
ROOM = 4 + MORE_PIECES


def add_sentinels(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tuning_args: TuningArguments
) -> list[int]:
    """Return the ids of the sentinels; a tokenizer and a model that have none get new ones.

    Their embeddings are drawn about the mean of the others (transformers' `mean_resizing`), and the config keeps which
    tokens are new, so that they move beside an adapter too.

    Args:
        tokenizer: Changed in place.
        model: Changed in place; before a tuning method is applied.
        tuning_args: That method.

    Raises:
        InputError: The model needs new rows, and an adapter is saved without them.
    """
    vocabulary = tokenizer.get_vocab()
    for names in SENTINELS:
        if all(name in vocabulary for name in names):
            logger.info("fill in the middle: by the tokenizer's %s", " ".join(names))
            return [vocabulary[name] for name in names]
    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in SENTINELS[0]])
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        if tuning_args.tuning not in PLAIN_METHODS and not tuning_args.merge_adapter:
            raise InputError(
                f"--tuning {tuning_args.tuning} with --fim_rate: this model gets three new tokens, for which its base "
                "has no rows when the adapter is loaded; add --merge_adapter true, which saves a whole model"
            )
        model.resize_token_embeddings(len(tokenizer))
    ids = [*range(first, first + len(SENTINELS[0]))]
    model.config.new_tokens = {"first": min([*new_token_indices(model.config), first])}
    model.config.new_tokens["count"] = len(tokenizer) - model.config.new_tokens["first"]
    logger.info("fill in the middle: new tokens %s", " ".join(SENTINELS[0]))
    return ids


class FillInTheMiddle:
    """Rearranges some blocks into prefix, suffix and middle, of which a decoder writes the last.

    A block is cut at two places between characters, drawn uniformly, and each piece gets tokens of its own: so a model
    may also be asked to go on within a word. Behind one another are then, with a sentinel before each, prefix, suffix
    and middle (PSM); or suffix, and prefix and middle in one (SPM). The end-of-text token ends the middle. What
    becomes of a block depends on the seed, the epoch, its row and its place in it alone.

    The cuts are between tokens where pieces could not be joined to the same text (tokenizers that put a space in front
    of every text, such as Llama 2's, and blocks that begin or end within a character) or have too many tokens. A block
    that holds a sentinel already is left as it is.

    Args:
        tokenizer: The model's.
        sentinels: Ids of the tokens before prefix, suffix and middle.
        rate: Share of the blocks that are rearranged.
        spm_rate: Share of these that are SPM.
        seed: Of the choice.

    Raises:
        InputError: A rate that is not between 0 and 1.

    Source: Bavarian et al., Efficient Training of Language Models to Fill in the Middle (2022), section 3, by context
    and not by document; section 4.5 for cuts between characters; SPM as its second variant, which shares the
    sentinels' order with PSM.
    """

    def __init__(  # noqa: D107
        self,
        tokenizer: PreTrainedTokenizerBase,
        sentinels: Sequence[int],
        rate: float,
        spm_rate: float = 0.5,
        seed: int = 0,
    ):
        if not (0 <= rate <= 1 and 0 <= spm_rate <= 1):
            raise InputError(f"--fim_rate {rate}, --fim_spm_rate {spm_rate}: must be between 0 and 1")
        self.sentinels, self.first, self.end = sentinels, first_tokens(tokenizer), tokenizer.eos_token_id
        self.rate, self.spm_rate, self.seed = rate, spm_rate, seed
        self.tokenizer = tokenizer
        self.joins = self._text([*self._tokens("a"), *self._tokens("b")]) == "ab"

    def rearrange(self, block: Sequence[int], generator: np.random.Generator) -> list[int]:
        """Return a block as prefix, suffix and middle, in one of the two orders."""
        first, body = self.split_off_ends(block)
        prefix, middle, suffix = self.cut(body, generator)
        before_prefix, before_suffix, before_middle = self.sentinels
        if generator.random() < self.spm_rate:
            pieces = [before_prefix, before_suffix, *suffix, before_middle, *prefix, *middle]
        else:
            pieces = [before_prefix, *prefix, before_suffix, *suffix, before_middle, *middle]
        return [*first, *pieces, self.end]

    def cut(self, body: list[int], generator: np.random.Generator) -> list[list[int]]:
        """Return the tokens of three pieces of a text: cut between characters, or else between its tokens."""
        text = self._text(body) if self.joins else "\ufffd"
        if "\ufffd" not in text:  # which stands for a piece of a character
            pieces = [self._tokens(piece) for piece in _in_three(text, generator)]
            if sum(map(len, pieces)) <= len(body) + MORE_PIECES:
                return pieces
        return _in_three(body, generator)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def rejoin(self, block: Sequence[int]) -> list[int]:
        """Return the tokens of a rearranged block in their order, without what stands at its ends.

        What stands before the suffix, what stands behind the third sentinel, then the suffix: for both orders.
        """
        _, body = self.split_off_ends(block)
        suffix, middle = body.index(self.sentinels[1]), body.index(self.sentinels[2])
        return [*body[1:suffix], *body[middle + 1 :], *body[suffix + 1 : middle]]

    def split_off_ends(self, block: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the beginning-of-text token of a block, if it has one, and what is between it and the end of text."""
        block = [*block]
        first = self.first if self.first and block[:1] == self.first else []
        return first, block[len(first) : -1 if block[-1:] == [self.end] else None]

    def __call__(self, input_ids: Sequence[int], lengths: Sequence[int], row: int, epoch: int) -> list[list[int]]:
        """Return the blocks of a row, some of them rearranged.

        Args:
            input_ids: `[length]`.
            lengths: Of its blocks.
            row: Its number in the data set.
            epoch: How often it has been read before.
        """
        ends = np.cumsum(lengths).tolist()
        blocks = []
        for number, (end, length) in enumerate(zip(ends, lengths, strict=True)):
            block = list(input_ids[end - length : end])
            generator = np.random.default_rng([self.seed, epoch, row, number])
            is_chosen = generator.random() < self.rate and not {*self.sentinels} & {*block}
            blocks.append(self.rearrange(block, generator) if is_chosen else block)
        return blocks


def _in_three(whole: Any, generator: np.random.Generator) -> list[Any]:
    start, stop = sorted(generator.integers(0, len(whole) + 1, size=2).tolist())
    return [whole[:start], whole[start:stop], whole[stop:]]
