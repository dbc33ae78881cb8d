"""Blocks for next-token prediction lose nothing, and predict every token once."""

import itertools

import pytest

from ptft_recipes.blocks import pack_blocks
from ptft_recipes.causal_blocks import block_size, first_tokens, split_for_next_token
from ptft_recipes.errors import InputError

TEXTS = ["the old team " * n for n in (1, 2, 3, 5, 6, 30)]


@pytest.mark.parametrize("begins", [False, True])
def test_every_token_but_the_first_of_a_document_is_predicted_once(decoder_tokenizer, begins):
    if begins:
        from tokenizers.processors import TemplateProcessing

        decoder_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", decoder_tokenizer.bos_token_id)]
        )
    assert first_tokens(decoder_tokenizer) == [decoder_tokenizer.bos_token_id] * begins
    blocks = split_for_next_token(decoder_tokenizer, TEXTS, [*"abcdef"], max_length=8)
    assert max(blocks["length"]) == 8
    assert min(blocks["length"]) >= 2
    for name, text in zip("abcdef", TEXTS, strict=True):
        ids = [*first_tokens(decoder_tokenizer), *decoder_tokenizer(text, add_special_tokens=False)["input_ids"], 0]
        mine = [b for b, d in zip(blocks["input_ids"], blocks["document"], strict=True) if d == name]
        assert [mine[0][0], *(token for block in mine for token in block[1:])] == ids
        assert all(one[-1] == other[0] for one, other in itertools.pairwise(mine))


def test_blocks_without_words_are_packed(decoder_tokenizer):
    blocks = split_for_next_token(decoder_tokenizer, TEXTS, [*"abcdef"], max_length=12)
    assert max(blocks["length"]) == 12
    rows = pack_blocks(blocks, max_length=16)
    assert set(rows) == {"input_ids", "length", "segments"}
    assert sum(rows["length"]) == sum(blocks["length"])
    assert len(rows["length"]) < len(blocks["length"])


def test_a_tokenizer_that_cannot_end_a_document_and_a_length_that_does_not_fit_are_refused(decoder_tokenizer):
    with pytest.raises(
        InputError, match="--max_length 65: must be at least 8, and this model reads at most 64 tokens"
    ):
        block_size(decoder_tokenizer, 65)
    decoder_tokenizer.eos_token = None
    with pytest.raises(InputError, match="has no end-of-text token to end a document by"):
        block_size(decoder_tokenizer, 32)
