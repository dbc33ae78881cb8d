"""Documents become blocks without a token lost, and blocks become packs without a block cut."""

import logging

import pytest
from conftest import topic_rows
from datasets import Dataset, DatasetDict

from ptft_recipes.blocks import NO_WORD, check_tokenizer, count_blocks, pack_blocks, split_into_blocks
from ptft_recipes.errors import InputError


@pytest.fixture(scope="module")
def documents():
    return [" ".join(row["text"] for row in topic_rows(count, seed=count)) for count in (1, 5, 30, 2)]


@pytest.fixture(scope="module")
def blocks(tokenizer, documents):
    return split_into_blocks(tokenizer, documents, list("abcd"), max_length=16)


def test_the_blocks_of_a_document_hold_each_of_its_tokens_once(tokenizer, documents, blocks):
    for name, text in zip("abcd", documents, strict=True):
        mine = [ids for ids, document in zip(blocks["input_ids"], blocks["document"], strict=True) if document == name]
        assert all((ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) for ids in mine)
        joined = [token for ids in mine for token in ids[1:-1]]
        assert joined == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert [len(ids) for ids in mine[:-1]] == [16] * (len(mine) - 1), "only the last block may be short"
    assert blocks["length"] == [len(ids) for ids in blocks["input_ids"]]
    assert len(blocks["input_ids"]) > 20


def test_words_are_numbered_and_special_tokens_are_of_none(blocks):
    for ids, words in zip(blocks["input_ids"], blocks["word_ids"], strict=True):
        assert len(words) == len(ids)
        assert [i for i, word in enumerate(words) if word == NO_WORD] == [0, len(ids) - 1]


def test_line_by_line_makes_every_line_a_text(tokenizer):
    found = split_into_blocks(
        tokenizer, ["the team\n\na goal\n", "a cell"], ["x", "y"], max_length=8, line_by_line=True
    )
    assert [tokenizer.decode(ids[1:-1]) for ids in found["input_ids"]] == ["the team", "a goal", "a cell"]
    assert found["document"] == ["x", "x", "y"]
    assert split_into_blocks(tokenizer, ["\n"], ["x"], max_length=8, line_by_line=True)["input_ids"] == []


def test_packing_keeps_every_block_whole_and_wastes_little(blocks):
    packs = pack_blocks(blocks, max_length=32)
    found = []
    for ids, words, length, segments in zip(*packs.values(), strict=True):
        assert len(ids) == len(words) == length == sum(segments) <= 32
        place = 0
        for segment in segments:
            found.append((tuple(ids[place : place + segment]), tuple(words[place : place + segment])))
            place += segment
    given = zip(map(tuple, blocks["input_ids"]), map(tuple, blocks["word_ids"]), strict=True)
    assert sorted(found) == sorted(given)
    assert len(packs["length"]) <= sum(blocks["length"]) / 32 * 1.1 + 1


def test_counts_are_told_and_kept(tokenizer, blocks, caplog):
    logging.getLogger("ptft_recipes").propagate = True
    with caplog.at_level(logging.INFO, logger="ptft_recipes"):
        counts = count_blocks(DatasetDict(train=Dataset.from_dict(blocks)), tokenizer, 16)["train"]
    short = [length for length in blocks["length"] if length < 16]
    assert counts == {
        "documents": 4,
        "tokens": sum(blocks["length"]),
        "blocks": len(blocks["length"]),
        "short_blocks": len(short),
        "tokens_in_short_blocks": sum(short),
        "unknown_tokens": 0,
    }
    assert f"{len(short)} of them shorter than the rest and kept" in caplog.text


def test_a_corpus_shorter_than_a_block_is_refused(tokenizer):
    blocks = Dataset.from_dict(split_into_blocks(tokenizer, ["the team"], ["x"], max_length=64))
    with pytest.raises(InputError, match="train has 4 tokens, fewer than one block of --max_length 64"):
        count_blocks(DatasetDict(train=blocks), tokenizer, 64)
    with pytest.raises(InputError, match="validation: no text is left"):
        count_blocks(DatasetDict(validation=blocks.select([])), tokenizer, 64)


@pytest.mark.parametrize(
    ("change", "max_length", "message"),
    [
        ({"mask_token": None}, 32, "has no mask token"),
        ({"pad_token": None}, 32, "has no padding token"),
        ({}, 65, "--max_length 65: this model reads at most 64"),
        ({}, 2, "2 special tokens leave no room"),
    ],
)
def test_a_tokenizer_that_cannot_do_it_is_refused(checkpoint, change, max_length, message):
    from transformers import AutoTokenizer

    with pytest.raises(InputError, match=message):
        check_tokenizer(AutoTokenizer.from_pretrained(checkpoint, **change), max_length)
