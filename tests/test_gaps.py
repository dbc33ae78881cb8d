"""Gaps: proved by putting the text together again, for every objective, over many lengths and seeds."""

import re

import numpy as np
import pytest
from conftest import FILLERS, TOPICS, encoder_decoder_tokenizer

from ptft_recipes.blocks import NO_WORD
from ptft_recipes.errors import InputError
from ptft_recipes.gap_tokens import add_gap_tokens, sentinel_ids, split_literally
from ptft_recipes.gaps import OBJECTIVES, Gaps, count_noise, draw_infilling, full_length, hide_spans

LENGTHS = [*range(9), 17, 40, 62]
RATES = [(None, 3.0), (0.5, 1.0), (0.05, 10.0), (0.9, 2.5)]


@pytest.fixture(scope="module")
def t5():
    tokenizer = encoder_decoder_tokenizer("t5")
    tokenizer.add_tokens([f"<extra_id_{number}>" for number in range(12, 100)], special_tokens=True)
    return tokenizer


@pytest.fixture(scope="module")
def bart():
    return encoder_decoder_tokenizer("bart")


def row_of(tokenizer, length: int, seed: int):
    """A block of random words of 1 to 3 tokens, a tenth of them full stops, in the special tokens of the tokenizer."""
    generator = np.random.default_rng([99, seed, length])
    plain = tokenizer.convert_tokens_to_ids([*FILLERS, *TOPICS["sports"]])
    ids = generator.choice(plain, length)
    stop = tokenizer.convert_tokens_to_ids(".")
    ids[generator.random(length) < 0.1] = stop
    words = np.repeat(np.arange(length), generator.integers(1, 4, length))[:length]
    special = tokenizer("")["input_ids"]
    block = [*special[:-1], *ids.tolist(), special[-1]]
    return block, [NO_WORD] * (len(special) - 1) + words.tolist() + [NO_WORD]


def put_back(input_ids, labels, sentinels, end_id) -> list[int]:
    """Read the target as a person would: each sentinel of the input is replaced by what follows it in the target."""
    spans, current = {}, None
    assert labels[-1] == end_id
    for token in labels[:-1]:
        if token in sentinels:
            current = token
            assert token not in spans, "each stands for one gap"
            spans[token] = []
        else:
            spans[current].append(token)
    assert [token for token in input_ids if token in sentinels] == [*spans] == sentinels[: len(spans)]
    return [token for each in input_ids for token in spans.get(each, [each])]


@pytest.mark.parametrize("rates", RATES)
def test_span_corruption_with_its_target_gives_back_the_text(t5, rates):
    gaps = Gaps(t5, "span_corruption", *rates, seed=5)
    for length in LENGTHS:
        for row in range(25):
            block, words = row_of(t5, length, row)
            found = gaps.corrupt(block, words, row)
            labels = found.labels.tolist()
            assert put_back(found.input_ids.tolist(), labels, gaps.sentinels, t5.eos_token_id) == block
            noise, spans = count_noise(length, *gaps.rates)
            assert found.hidden.sum() == noise
            assert len(labels) == noise + spans + 1
            assert len(found.input_ids) == len(block) - noise + spans
            assert not np.isin(found.labels[found.hidden], t5.all_special_ids).any()
            assert abs(noise - np.clip(gaps.rates[0] * length, min(length, 2) // 2, max(length - 1, 0))) <= 0.5


@pytest.mark.parametrize("objective", ["infilling", "denoising"])
@pytest.mark.parametrize("rates", RATES)
def test_infilling_keeps_what_it_does_not_hide_and_its_target_is_the_text(bart, objective, rates):
    gaps, lost = Gaps(bart, objective, *rates, seed=5), 0
    for length in LENGTHS:
        for row in range(25):
            block, words = row_of(bart, length, row)
            found = gaps.corrupt(block, words, row)
            assert found.labels.tolist() == block
            ids = found.input_ids
            kept = ids[ids != bart.mask_token_id].tolist()
            stays = np.array(block)[~found.hidden].tolist()
            assert (kept == stays) if objective == "infilling" else (sorted(kept) == sorted(stays))
            assert (ids[0], ids[-1]) == (bart.bos_token_id, bart.eos_token_id)
            assert not found.hidden[[0, -1]].any(), "special tokens stay"
            assert len(ids) <= len(block), "no longer than the model reads"
            hidden_words = {words[place] for place in np.flatnonzero(found.hidden)}
            assert len(hidden_words) == np.ceil(len(set(words) - {NO_WORD}) * gaps.rates[0])
            assert all(found.hidden[place] for place, word in enumerate(words) if word in hidden_words), "whole words"
            masks = int((ids == bart.mask_token_id).sum())
            assert bool(masks) == bool(hidden_words)
            lost += masks < len(hidden_words)
    assert lost or rates[1] == 1, "a mask token stands for several words"


def test_denoising_puts_whole_sentences_into_another_order(bart):
    text = "the goal . a new cell . one old stock price . team"
    encoded = bart(text)
    words = [NO_WORD if word is None else word for word in encoded.word_ids()]
    gaps, orders = Gaps(bart, "denoising", 0.01), set()
    for row in range(60):
        found = gaps.corrupt(encoded["input_ids"], words, row)
        orders.add(re.sub(r" ?<mask> ?", " ", bart.decode(found.input_ids[1:-1])).strip())
    sentences = {"the goal .", "a new cell .", "one old stock price .", "team"}
    kept_whole = [sum(sentence in order for sentence in sentences) for order in orders]
    assert set(kept_whole) == {3}, "a word is hidden in one of them"
    assert len({order.split()[-1] for order in orders}) > 2


def test_lengths_are_those_of_the_published_code():
    assert full_length(511, 0.15, 3.0) == 568, "with the end of the text an input of 512"
    assert sum(count_noise(568, 0.15, 3.0)) + 1 == 114
    assert full_length(127, 0.15, 3.0) == 141


def test_no_remainder_of_a_document_becomes_longer_than_a_whole_block():
    for density, span in ((0.15, 3.0), (0.5, 1.0), (0.3, 2.0), (0.9, 10.0)):
        longest = full_length(60, density, span)
        for tokens in range(longest + 1):
            noise, spans = count_noise(tokens, density, span)
            assert tokens - noise + spans <= 60
            assert noise == 0 or 1 <= spans <= min(noise, tokens - noise)


def test_spans_are_drawn_evenly():
    generator, starts = np.random.default_rng(0), np.zeros(12)
    for _ in range(4000):
        spans = hide_spans(12, 0.25, 1.5, generator)  # 3 tokens in 2 spans, 9 that stay in 2
        assert spans[-1][1] == 12
        assert spans[0][0] > 0
        starts[spans[0][0]] += 1
    assert (starts > 0).tolist() == [False] + [True] * 8 + [False] * 3
    assert starts[1:9] == pytest.approx(500, abs=4 * 500**0.5)


def test_lengths_of_infilled_spans_are_poisson():
    generator, lengths = np.random.default_rng(0), []
    for _ in range(300):
        drawn = draw_infilling(400, 0.3, 3.0, generator)
        assert sum(length for length in drawn if length > 0) == 120
        lengths += [length for length in drawn if length >= 0]
    assert np.mean(lengths) == pytest.approx(3, abs=0.1)
    assert np.mean(np.array(lengths) == 0) == pytest.approx(np.exp(-3), abs=0.01), "spans of no word insert a mask"


def test_what_is_hidden_depends_on_seed_epoch_and_row_alone(t5):
    block, words = row_of(t5, 60, 0)
    for objective in OBJECTIVES:
        tokenizer = t5 if objective == "span_corruption" else encoder_decoder_tokenizer("bart")
        gaps = [Gaps(tokenizer, objective, seed=seed) for seed in (1, 1, 2)]
        gaps[0].corrupt(block, words, 9, 9)
        same = [each.corrupt(block, words, 3, 1).input_ids.tolist() for each in gaps]
        assert same[0] == same[1] != same[2]
        others = [gaps[0].corrupt(block, words, *place).input_ids.tolist() for place in ((4, 1), (3, 2))]
        assert same[0] not in others


class TestTokens:
    def test_ids_of_new_sentinels_descend_and_a_mask_token_is_added_where_there_is_none(self, bart):
        tokenizer = encoder_decoder_tokenizer("bart")
        before = len(tokenizer)
        assert add_gap_tokens(tokenizer, "span_corruption") == 100
        assert sentinel_ids(tokenizer) == [*range(before + 99, before - 1, -1)]
        assert add_gap_tokens(tokenizer, "span_corruption") == 0
        assert add_gap_tokens(tokenizer, "infilling") == 0, "it has one"
        without = encoder_decoder_tokenizer("t5")
        assert add_gap_tokens(without, "infilling") == 1
        assert Gaps(without, "infilling").token == "<mask>"
        assert Gaps(tokenizer).token == "<extra_id_0>"

    def test_text_that_looks_like_a_special_token_is_text(self, t5):
        text = "the goal <extra_id_0> team </s> coach"
        assert sentinel_ids(t5)[0] in t5(text)["input_ids"], "so it would be read"
        blocks = split_literally(t5, [text], ["one"], 64)
        assert not {*sentinel_ids(t5), t5.eos_token_id} & {*blocks["input_ids"][0][:-1]}
        assert blocks["input_ids"][0][-1] == t5.eos_token_id
        assert sentinel_ids(t5)[0] in t5(text)["input_ids"], "the tokenizer is as it was"

    @pytest.mark.parametrize(("arguments", "message"), [
        (("masking",), "--objective masking: choose one of span_corruption, infilling, denoising"),
        (("span_corruption", 1.0), "--noise_density 1.0: must be between 0 and 1"),
        (("span_corruption", 0.15, 0.5), "--mean_span_length 0.5: must be at least 1"),
    ])  # fmt: skip
    def test_numbers_out_of_range_are_refused(self, t5, arguments, message):
        with pytest.raises(InputError, match=re.escape(message)):
            Gaps(t5, *arguments)

    def test_more_gaps_than_sentinels_and_targets_longer_than_inputs_are_refused(self):
        tokenizer = encoder_decoder_tokenizer("t5")
        with pytest.raises(
            InputError, match="--max_length 64: 19 gaps in a block, and the tokenizer has 12 sentinels"
        ):
            Gaps(tokenizer, "span_corruption", 0.3, 1.0).block_length(64)
        with pytest.raises(InputError, match=r"--noise_density 0.9: targets of \d+ tokens, longer than --max_length"):
            Gaps(tokenizer, "span_corruption", 0.9, 20.0).block_length(32)
        with pytest.raises(InputError, match="--max_length 65: this model reads at most 64"):
            Gaps(tokenizer).block_length(65)
        with pytest.raises(InputError, match="--max_length 1: 1 special tokens leave no room"):
            Gaps(tokenizer).block_length(1)

    def test_a_tokenizer_that_ends_no_text_is_refused(self):
        tokenizer = encoder_decoder_tokenizer("t5")
        tokenizer.backend_tokenizer.post_processor = None
        with pytest.raises(InputError, match="puts no token behind a text"):
            Gaps(tokenizer)
