"""Language codes of multilingual tokenizers: which there are, where they stand, and what a wrong one is told."""

import pytest
from transformers import MBartTokenizer, NllbTokenizer

from ptft_recipes.errors import InputError
from ptft_recipes.languages import language_codes, set_languages
from ptft_recipes.text_pairs import tokenize_pairs

WORDS = ["▁", "c", "a", "t", "K", "z", "e"]


@pytest.fixture(scope="module")
def nllb():
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    return NllbTokenizer(vocab=vocabulary, merges=[], model_max_length=64)


@pytest.fixture(scope="module")
def mbart():
    return MBartTokenizer(model_max_length=64)


def test_nllb_marks_each_side_with_its_language(nllb):
    first = set_languages(nllb, "eng_Latn", "deu_Latn")
    assert first == nllb.convert_tokens_to_ids("deu_Latn") != nllb.unk_token_id
    pairs = tokenize_pairs(nllb, ["cat"] * 2, ["Katze"] * 2, max_source_length=32, max_target_length=32)
    english, german = (nllb.convert_ids_to_tokens(pairs[side][1]) for side in ("input_ids", "labels"))
    assert english == ["eng_Latn", "▁", "c", "a", "t", "</s>"]
    assert german == ["deu_Latn", "▁", "K", "a", "t", "z", "e", "</s>"]
    again = tokenize_pairs(nllb, ["cat"], None, max_source_length=32, max_target_length=32)
    assert again["input_ids"] == pairs["input_ids"][:1], "targets leave no language behind in the tokenizer"


def test_mbart_marks_them_at_the_end(mbart):
    assert set_languages(mbart, "en_XX", "de_DE") == mbart.lang_code_to_id["de_DE"]
    pairs = tokenize_pairs(mbart, ["cat"], ["cat"], max_source_length=32, max_target_length=32)
    assert mbart.convert_ids_to_tokens(pairs["input_ids"][0])[-2:] == ["</s>", "en_XX"]
    assert mbart.convert_ids_to_tokens(pairs["labels"][0])[-2:] == ["</s>", "de_DE"]


def test_a_tokenizer_of_one_pair_has_no_languages(seq2seq_tokenizer):
    assert set_languages(seq2seq_tokenizer, "en", "de") is None


def test_a_wrong_code_is_told_the_nearest(nllb, mbart):
    assert len(language_codes(nllb)) > 200
    assert len(language_codes(mbart)) == 25
    with pytest.raises(InputError, match=r"--target_lang deu_latn: .*2\d\d languages; did you mean 'deu_Latn'\?"):
        set_languages(nllb, "eng_Latn", "deu_latn")
    with pytest.raises(InputError, match=r"--source_lang en: the tokenizer has 25 languages, e\.g\. en_XX"):
        set_languages(mbart, "en", "de_DE")
    with pytest.raises(InputError, match="--source_lang is not given: "):
        set_languages(mbart, None, "de_DE")
