"""What is hidden: the shares, by exact binomial bounds; whole words; by seed, epoch and row and nothing else."""

import numpy as np
import pytest
import torch
from conftest import tiny_config
from datasets import Dataset
from scipy.stats import binomtest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from ptft_recipes.blocks import split_into_blocks
from ptft_recipes.collators import PACKABLE, MaskingCollator, check_packable, mask_held_out, packed_attention
from ptft_recipes.errors import InputError

LETTERS = "abcdefghij"


@pytest.fixture(scope="module")
def pieces():
    """A WordPiece tokenizer that knows single letters: a word has as many tokens as letters."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


@pytest.fixture(scope="module")
def blocks(pieces):
    """1,000 blocks of 62 tokens of text, in words of one to four letters; some words are unknown."""
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list(LETTERS), generator.integers(1, 5))) for _ in range(30_000)]
    words[::50] = ["?"] * len(words[::50])
    found = split_into_blocks(pieces, [" ".join(words)], ["all"], max_length=64)
    return {name: values[:1000] for name, values in found.items()}


def masked(collator, blocks, **kwargs):
    """Return all ids, what the model reads, labels and word numbers, [rows, length] each."""
    rows = [
        collator.mask(ids, words, row, **kwargs)
        for row, (ids, words) in enumerate(zip(blocks["input_ids"], blocks["word_ids"], strict=True))
    ]
    inputs, labels = map(np.array, zip(*rows, strict=True))
    return np.array(blocks["input_ids"]), inputs, labels, np.array(blocks["word_ids"])


def is_share(count: int, total: int, share: float) -> bool:
    """Say whether a count is one that a binomial draw gives in all but one of a million tests."""
    return binomtest(int(count), int(total), share).pvalue > 1e-6


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_each_token_is_chosen_with_the_share(pieces, blocks, rate):
    ids, inputs, labels, _ = masked(MaskingCollator(pieces, "token", rate), blocks)
    plain = ids > 4
    assert plain.sum() > 50_000
    assert is_share((labels >= 0).sum(), plain.sum(), rate)
    np.testing.assert_array_equal(labels[labels >= 0], ids[labels >= 0])
    np.testing.assert_array_equal(inputs[labels < 0], ids[labels < 0])


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_special_and_unknown_tokens_are_never_chosen_nor_put_in(pieces, blocks, unit):
    ids, inputs, labels, _ = masked(MaskingCollator(pieces, unit, 0.5), blocks)
    assert (ids == pieces.unk_token_id).sum() > 100
    assert (labels[ids <= 4] == -100).all()
    replaced = inputs[(inputs != ids) & (inputs != pieces.mask_token_id)]
    assert len(replaced) > 1000
    assert replaced.min() > 4


@pytest.mark.parametrize("unit", ["token", "word"])
def test_of_the_chosen_80_percent_are_hidden_10_random_and_10_stay(pieces, blocks, unit):
    ids, inputs, labels, _ = masked(MaskingCollator(pieces, unit, 0.3), blocks)
    chosen = labels >= 0
    total, vocabulary = chosen.sum(), len(pieces) - 5
    hidden, same = (chosen & (inputs == pieces.mask_token_id)).sum(), (chosen & (inputs == ids)).sum()
    assert is_share(hidden, total, 0.8)
    assert is_share(same, total, 0.1 + 0.1 / vocabulary), "a random token may be the same one"
    assert is_share(total - hidden - same, total, 0.1 * (1 - 1 / vocabulary))
    random = ids[chosen] * 0 + inputs[chosen]
    counts = np.bincount(random[(random > 4) & (random != ids[chosen])], minlength=len(pieces))[5:]
    assert counts.min() > 0.7 * counts.mean(), "every plain token is put in about as often"


@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_are_chosen_whole(pieces, blocks, unit):
    _, _, labels, words = masked(MaskingCollator(pieces, unit, 0.3), blocks)
    chosen, several = labels >= 0, 0
    for row in range(len(labels)):
        for word in set(words[row].tolist()) - {-1}:
            assert len(set(chosen[row, words[row] == word].tolist())) == 1
            several += (words[row] == word).sum() > 1
    assert several > 10_000


def test_each_word_is_chosen_with_the_share(pieces, blocks):
    ids, _, labels, words = masked(MaskingCollator(pieces, "word", 0.2), blocks)
    first = (words >= 0) & (ids > 4) & (np.diff(words, axis=1, prepend=-2) != 0)
    assert is_share((labels[first] >= 0).sum(), first.sum(), 0.2)


def test_spans_are_replaced_in_one_way_and_hide_the_share_of_the_tokens(pieces, blocks):
    ids, inputs, labels, _ = masked(MaskingCollator(pieces, "span", 0.15), blocks)
    chosen = (labels >= 0).sum(axis=1)
    expected = 0.15 * (ids > 4).sum(axis=1)
    # The share is exact in expectation; a row misses it by less than a word.
    assert np.abs(chosen - expected).max() < 4
    deviation = (chosen - expected).std() / np.sqrt(len(chosen))
    assert abs((chosen - expected).mean()) < 5 * deviation
    hidden = ((inputs == pieces.mask_token_id) & (labels >= 0)).sum()
    assert 0.75 < hidden / chosen.sum() < 0.85
    borders = np.diff((labels >= 0).astype(int), axis=1, prepend=0)
    mean_run = chosen.sum() / (borders == 1).sum()
    single = masked(MaskingCollator(pieces, "word", 0.15), blocks)[2] >= 0
    assert mean_run > 1.5 * single.sum() / (np.diff(single.astype(int), axis=1, prepend=0) == 1).sum()
    # Within a run of neighbours that were chosen, most pairs are replaced alike: one draw per span, not per token.
    both = (labels[:, 1:] >= 0) & (labels[:, :-1] >= 0)
    hides = inputs == pieces.mask_token_id
    alike = (hides[:, 1:] == hides[:, :-1])[both].mean()
    assert alike > 0.9 > 0.8**2 + 0.2**2


def test_the_lengths_of_spans_are_geometric_up_to_ten_words(pieces):
    text = " ".join("abcdefghij"[i % 10] for i in range(60))
    block = split_into_blocks(pieces, [text], ["x"], max_length=64)
    collator = MaskingCollator(pieces, "span", 0.02)  # one word on average: the first span is cut after it
    long = MaskingCollator(pieces, "span", 0.99)
    lengths = [(collator.mask(block["input_ids"][0], block["word_ids"][0], row)[1] >= 0).sum() for row in range(500)]
    assert set(lengths) <= {1, 2}
    assert (long.mask(block["input_ids"][0], block["word_ids"][0], 0)[1] >= 0).mean() > 0.9, "it ends, and hides most"


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_masks_depend_on_seed_epoch_and_row_alone(pieces, blocks, unit):
    collator = MaskingCollator(pieces, unit, seed=7)
    examples = [
        {"input_ids": blocks["input_ids"][i][: 64 - i], "word_ids": blocks["word_ids"][i][: 64 - i], "row": i}
        for i in range(8)
    ]
    together = collator(examples)
    np.random.seed(1)
    backwards = collator(examples[::-1])
    for i, example in enumerate(examples):
        alone = collator([example])
        for batch, place in ((together, i), (backwards, 7 - i)):
            for name in ("input_ids", "labels"):
                assert torch.equal(batch[name][place, : 64 - i], alone[name][0])
    assert (together["attention_mask"].sum(dim=1) == torch.arange(64, 56, -1)).all()
    for change in ({"epoch": 1}, {"row": 99}):
        others = collator([example | change for example in examples])
        assert not torch.equal(others["labels"], together["labels"])
    assert not torch.equal(MaskingCollator(pieces, unit, seed=8)(examples)["labels"], together["labels"])


@pytest.mark.parametrize(("progress", "rate"), [(0.0, 0.4), (0.5, 0.25), (1.0, 0.1)])
def test_the_share_moves_linearly_over_training(pieces, blocks, progress, rate):
    collator = MaskingCollator(pieces, "token", 0.4, 0.1)
    ids, _, labels, _ = masked(collator, blocks, progress=progress)
    assert is_share((labels >= 0).sum(), (ids > 4).sum(), rate)


def test_held_out_rows_are_hidden_once_and_for_all_runs(pieces, blocks):
    dataset = Dataset.from_dict(blocks)
    once = mask_held_out(dataset, pieces)
    assert once.column_names == ["input_ids", "length", "document", "labels", "row"]
    assert once["labels"][:] == mask_held_out(dataset, pieces)["labels"][:]
    batches = [MaskingCollator(pieces, unit, 0.5, seed=3)([once[i] for i in range(5)]) for unit in ("token", "span")]
    assert torch.equal(batches[0]["labels"], torch.tensor(once["labels"][:5]))
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "sentence"}, "--masking_unit sentence: choose one of token, word, span"),
        ({"mlm_probability": 1.5}, "must be between 0 and 1"),
        ({"mlm_probability_end": 0.0}, "must be between 0 and 1"),
    ],
)
def test_wrong_settings_are_refused(pieces, arguments, message):
    with pytest.raises(InputError, match=message):
        MaskingCollator(pieces, **arguments)


def test_a_tokenizer_that_does_not_mark_words_can_hide_tokens_only(pieces):
    backend = Tokenizer(models.Unigram([("[UNK]", 0.0), ("a", -1.0), (" ", -1.0), ("one", -2.0), ("two", -2.0)], 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]", pad_token="[PAD]"
    )
    with pytest.raises(InputError, match="does not mark words; use --masking_unit token"):
        MaskingCollator(tokenizer, "word")
    MaskingCollator(tokenizer, "token")


def packable_config(family: str):
    if family in ("bert", "roberta", "distilbert", "modernbert"):
        config = tiny_config(family, 40)
    else:
        config = AutoConfig.for_model(
            family, vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            embedding_size=16, max_position_embeddings=66, pad_token_id=1, bos_token_id=2, eos_token_id=3,
        )  # fmt: skip
    if family == "modernbert":
        config.local_attention = 8  # of 40 tokens, a token sees 4 on either side
    return config


@pytest.mark.parametrize("family", PACKABLE)
def test_packed_blocks_are_to_the_model_what_they_are_alone(family):
    torch.manual_seed(0)
    model = AutoModel.from_config(packable_config(family)).eval()
    check_packable(model.config)
    generator = torch.Generator().manual_seed(1)
    segments = [[17, 3, 20], [5, 12]]
    blocks = [[torch.randint(5, 40, (n,), generator=generator) for n in lengths] for lengths in segments]
    ids = torch.full((2, 40), model.config.pad_token_id)
    for i, row in enumerate(blocks):
        ids[i, : sum(segments[i])] = torch.cat(row)
    with torch.no_grad():
        packed = model(input_ids=ids, **packed_attention(segments, 40, model.config)).last_hidden_state
        assert torch.isfinite(packed).all()
        for i, row in enumerate(blocks):
            alone = torch.cat([model(input_ids=block[None]).last_hidden_state[0] for block in row])
            torch.testing.assert_close(packed[i, : len(alone)], alone, atol=2e-6, rtol=1e-4)
        # The trap: the 2-D mask lets the blocks of a row attend to each other.
        plain = model(input_ids=ids, attention_mask=(ids != model.config.pad_token_id).long()).last_hidden_state
        assert not torch.allclose(plain[0], packed[0], atol=1e-3)


def test_packed_rows_are_masked_and_kept_apart_by_the_collator(pieces, blocks):
    config = tiny_config("bert", len(pieces))
    example = {"input_ids": blocks["input_ids"][0], "word_ids": blocks["word_ids"][0], "row": 0, "segments": [40, 24]}
    batch = MaskingCollator(pieces, "word", config=config)([example])
    assert batch["attention_mask"].shape == (1, 1, 64, 64)
    assert batch["attention_mask"].sum() == 40**2 + 24**2
    assert batch["position_ids"][0].tolist() == [*range(40), *range(24)]
    assert (batch["labels"] >= 0).any()


def test_models_that_cannot_keep_packed_blocks_apart_are_refused():
    config = AutoConfig.for_model("mpnet")
    with pytest.raises(InputError, match="--packing: not for mpnet models"):
        check_packable(config)
    config = tiny_config("bert", 40)
    config._attn_implementation = "eager"
    with pytest.raises(InputError, match="needs --attn_implementation sdpa, not eager"):
        check_packable(config)
