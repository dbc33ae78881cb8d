"""Words put in by a masked language model where they are asked for; translations there and back."""

import numpy as np
import pytest
import torch
from conftest import FILLERS, TOPICS, tiny_config, topic_rows
from transformers import AutoModelForMaskedLM, BartConfig, BartForConditionalGeneration

from ptft_recipes.errors import InputError
from ptft_recipes.rewriting import BackTranslation, ContextualReplacement, _whole_words

SENTENCES = [row["text"].split() for row in topic_rows(40, seed=0)]
WORDS = {*FILLERS, *(word for topic in TOPICS.values() for word in topic)}


def generators(seed=0, count=40):
    return [np.random.default_rng([seed, i]) for i in range(count)]


def outside(sentences):
    return [[0] * len(words) for words in sentences]


def words_of(edits):
    return [[word for word, _ in edit] for edit in edits]


@pytest.fixture(scope="module")
def masked_lm(tokenizer, tmp_path_factory):
    """A folder with a masked language model that has learned nothing, but much prefers `coach` to `bank`, and these
    to all others."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(tiny_config("bert", len(tokenizer)))
    bias = model.cls.predictions.bias.data
    bias[tokenizer.convert_tokens_to_ids("coach")] = 40
    bias[tokenizer.convert_tokens_to_ids("bank")] = 20
    bias[tokenizer.convert_tokens_to_ids("[SEP]")] = 60  # is no word
    folder = tmp_path_factory.mktemp("masked_lm")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_words_are_replaced_by_what_the_model_expects(masked_lm):
    edits = ContextualReplacement(masked_lm, 0.3)(SENTENCES, outside(SENTENCES), generators())
    replaced = 0
    for words, edit in zip(SENTENCES, edits, strict=True):
        assert [source for _, source in edit] == list(range(len(words)))
        changed = [i for i, (word, _) in enumerate(edit) if word != words[i]]
        assert len(changed) == max(1, int(0.3 * len(words)))
        # Not the word that stood there: in its place the next one.
        assert all(edit[i][0] == ("bank" if words[i] == "coach" else "coach") for i in changed)
        replaced += len(changed)
    assert replaced > 60


def test_punctuation_and_capitals_stay_and_entities_are_left_alone(masked_lm):
    sentences, entities = [["(New", "York,", "is", "big.", "--"]], [[1, 1, 0, 0, 0]]
    replace, seen = ContextualReplacement(masked_lm, 0.9), set()
    for seed in range(5):
        seen.add(tuple(words_of(replace(sentences, entities, generators(seed, 1)))[0]))
    assert seen == {("(New", "York,", "coach", "coach.", "--")}
    assert words_of(replace([["Big", "--"]], [[0, 0]], generators(count=1))) == [["Coach", "--"]]


def test_only_words_are_drawn_and_the_same_for_the_same_seed(checkpoint, tokenizer, tmp_path):
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(tiny_config("bert", len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    replace = ContextualReplacement(str(tmp_path), 0.5)
    state = torch.get_rng_state()
    found = words_of(replace(SENTENCES, outside(SENTENCES), generators()))
    assert torch.equal(torch.get_rng_state(), state)
    drawn = {word for old, new in zip(SENTENCES, found, strict=True) for word in new if word not in old}
    assert drawn <= WORDS
    assert len(drawn) > 5
    assert words_of(replace(SENTENCES, outside(SENTENCES), generators())) == found
    assert words_of(replace(SENTENCES, outside(SENTENCES), generators(1))) != found


def test_what_is_longer_than_the_model_reads_stays_as_it_is(masked_lm):
    words = FILLERS * 10  # 100 of them, for 64 positions
    edit = ContextualReplacement(masked_lm, 0.9)([words], [[0] * 100], generators(count=1))[0]
    changed = [i for i, (word, _) in enumerate(edit) if word != words[i]]
    assert len(changed) > 40
    assert max(changed) < 62


def test_a_sentence_that_holds_a_mask_stays_as_it_is(masked_lm):
    sentences = [["the", "[MASK]", "team"], ["the", "old", "team"]]
    edits = ContextualReplacement(masked_lm, 0.9)(sentences, outside(sentences), generators(count=2))
    assert [words == old for words, old in zip(words_of(edits), sentences, strict=True)] == [True, False]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["[CLS]", "cell", "##s", "!", "New"], ["", "cell", "", "", "New"]),
        (["<s>", "Ġcell", "s", "Ġ!", "ĠNew"], ["", "cell", "", "", "New"]),
        (["<s>", "▁cell", "s", "▁", "▁New"], ["", "cell", "", "", "New"]),
    ],
    ids=["WordPiece", "byte-level", "SentencePiece"],
)
def test_which_tokens_are_words(tokens, words):
    class Vocabulary:
        def convert_ids_to_tokens(self, ids):
            return [tokens[i] for i in ids]

        def convert_tokens_to_string(self, tokens):
            return "".join(tokens).replace("Ġ", " ").replace("▁", " ")

    assert _whole_words(Vocabulary(), len(tokens)) == words


@pytest.fixture(scope="module")
def translators(tokenizer, tmp_path_factory):
    """Two tiny sequence-to-sequence models from seeds."""
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        config = BartConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
            pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=2, forced_eos_token_id=None,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp("translator")
        BartForConditionalGeneration(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(str(folder))
    return folders


def test_sentences_go_there_and_back_in_their_order(translators, monkeypatch):
    translate = BackTranslation(*translators)
    read = []

    def generate(model, input_ids, **kwargs):
        """Return the sentence with its words in reverse order, which twice is the sentence."""
        read.append(id(model))
        return torch.stack([row[torch.argsort((row > 4).long() * torch.arange(len(row), 0, -1))] for row in input_ids])

    monkeypatch.setattr(BartForConditionalGeneration, "generate", generate)
    back = words_of(translate(SENTENCES, outside(SENTENCES), generators()))
    assert back == SENTENCES
    assert len({*read}) == 2
    assert read == sorted(read, key=read.index)  # all there, then all back
    one_way = BackTranslation(*translators)
    one_way.ways = one_way.ways[:1]
    assert words_of(one_way(SENTENCES, outside(SENTENCES), generators())) == [words[::-1] for words in SENTENCES]


def test_translations_are_drawn_by_the_seed_and_never_empty(translators):
    translate = BackTranslation(*translators)
    state = torch.get_rng_state()
    few = SENTENCES[:6]
    found = words_of(translate(few, outside(few), generators()))
    assert torch.equal(torch.get_rng_state(), state)
    assert words_of(translate(few, outside(few), generators())) == found
    assert words_of(translate(few, outside(few), generators(1))) != found
    assert all(found)
    assert {word for words in found for word in words} <= WORDS
    assert translate.digest != BackTranslation(translators[0], translators[0]).digest


def test_a_text_longer_than_the_translator_reads_stays_as_it_is(translators):
    long = FILLERS * 10  # 100 words, for 64 positions
    found = words_of(BackTranslation(*translators)([long, ["new", "lab"]], [[0] * 100, [0, 0]], generators(count=2)))
    assert found[0] == long
    assert found[1] != ["new", "lab"]


def test_a_model_of_many_languages_is_told_which(translators, monkeypatch):
    seen = []
    original = BartForConditionalGeneration.generate

    def generate(model, **kwargs):
        seen.append(kwargs["forced_bos_token_id"])
        return original(model, **kwargs)

    monkeypatch.setattr(BartForConditionalGeneration, "generate", generate)
    translate = BackTranslation(*translators, languages=["goal", "team"])  # tokens that this vocabulary has
    translate([["new", "lab"]], [[0, 0]], generators(count=1))
    tokenizers = [way[0] for way in translate.ways]
    assert seen == tokenizers[0].convert_tokens_to_ids(["team", "goal"])
    assert [tokenizer.src_lang for tokenizer in tokenizers] == ["goal", "team"]
    with pytest.raises(InputError, match="has no language 'deu_Latn'"):
        BackTranslation(*translators, languages=["goal", "deu_Latn"])


def test_a_model_that_is_none_of_the_kind(checkpoint, tmp_path):
    with pytest.raises(InputError, match="cannot load"):
        ContextualReplacement(str(tmp_path / "nowhere"), 0.1)
    with pytest.raises(InputError, match=r"brings no weights for cls\.predictions"):
        ContextualReplacement(checkpoint, 0.1)  # an encoder without the head of a language model
    with pytest.raises(InputError, match="cannot load AutoModelForSeq2SeqLM"):
        BackTranslation(checkpoint, checkpoint)
