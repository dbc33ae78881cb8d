"""Fill-in-the-middle: the pieces rejoin to the document, in the shares asked for, and new tokens are trained."""

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as token_decoders
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ptft_recipes.causal import CausalCollator
from ptft_recipes.causal_blocks import split_for_next_token
from ptft_recipes.errors import InputError
from ptft_recipes.infilling import ROOM, FillInTheMiddle, add_sentinels
from ptft_recipes.infilling import SENTINELS as FIM
from ptft_recipes.tuning import TuningArguments, apply_tuning

SENTINELS = [100, 101, 102]


@pytest.mark.parametrize("spm_rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("begins", [False, True])
def test_the_pieces_of_every_row_rejoin_to_its_text(decoder_tokenizer, spm_rate, begins):
    infill = FillInTheMiddle(decoder_tokenizer, SENTINELS, rate=0.7, spm_rate=spm_rate, seed=3)
    infill.first = [1] * begins
    generator, changed = np.random.default_rng(0), 0
    for row in range(300):
        end = [0] * int(generator.integers(2))
        blocks = [[*infill.first, *generator.integers(4, 90, size=n).tolist(), *end] for n in (0, 1, 2, 7, 40)]
        found = infill([token for block in blocks for token in block], [*map(len, blocks)], row, epoch=0)
        for before, after in zip(blocks, found, strict=True):
            if after == before:
                continue
            changed += 1
            body = before[len(infill.first) : len(before) - len(end)]
            assert infill.rejoin(after) == body
            assert sorted(after) == sorted([*infill.first, *body, *SENTINELS, 0])
            assert after[: len(infill.first)] == infill.first
            assert after[-1] == 0, "the middle ends"
            assert len(after) <= len(before) + ROOM
            place = [after.index(token) for token in SENTINELS]
            assert place == sorted(place)
            if spm_rate == 1:
                assert place[1] == place[0] + 1
    # 1,500 blocks: five standard deviations of a binomial are 89.
    assert abs(changed - 0.7 * 1500) < 89


TEXT = "Für Kinder, die internationalization 1234 lesen: def naïve(x):\n    return [x] * 2  # 你好 🙂🙂\n\n" * 3


@pytest.fixture(scope="module")
def byte_level():
    """A tokenizer as GPT-2's and SmolLM2's are, of some hundred tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.add_tokens([AddedToken(name, special=True, normalized=False) for name in FIM[0]])
    return fast


def test_cuts_are_between_characters_and_the_pieces_rejoin_to_the_text(byte_level):
    sentinels = byte_level.convert_tokens_to_ids([*FIM[0]])
    infill = FillInTheMiddle(byte_level, sentinels, rate=1.0, seed=1)
    size, documents, within = 48, [TEXT, TEXT[7:99], "a", "e\u0301"], []
    blocks = split_for_next_token(byte_level, documents, [*"abcd"], size)["input_ids"]
    for row, before in enumerate(blocks * 40):
        (after,) = infill(before, [len(before)], row, epoch=0)
        _, body = infill.split_off_ends(before)
        found = byte_level.decode(infill.rejoin(after))
        assert found == byte_level.decode(body)
        assert len(after) <= len(before) + ROOM
        within.append(infill.rejoin(after) != body)
    assert len(within) > 150
    assert np.mean(within) > 0.3, "tokens of a word that was cut are others"


def test_a_block_of_pieces_of_characters_is_cut_between_tokens(byte_level):
    infill = FillInTheMiddle(byte_level, byte_level.convert_tokens_to_ids([*FIM[0]]), rate=1.0)
    body = byte_level("ж x")["input_ids"][1:]
    assert "\ufffd" in byte_level.decode(body)
    assert all(infill.rejoin(infill(body, [len(body)], row, 0)[0]) == body for row in range(30))


def test_a_block_that_holds_a_sentinel_is_left_alone(byte_level):
    infill = FillInTheMiddle(byte_level, byte_level.convert_tokens_to_ids([*FIM[0]]), rate=1.0)
    ids = byte_level("x <fim_suffix> y")["input_ids"]
    assert infill(ids, [len(ids)], 0, 0) == [ids]


def test_both_orders_are_those_of_the_paper(decoder_tokenizer):
    class Cuts:
        def __init__(self, draw):
            self.draw = draw

        def integers(self, low, high, size):
            return np.array([5, 2])

        def random(self):
            return self.draw

    infill = FillInTheMiddle(decoder_tokenizer, SENTINELS, rate=1.0)
    block = [*range(10, 18), 0]
    assert infill.rearrange(block, Cuts(0.9)) == [100, 10, 11, 101, 15, 16, 17, 102, 12, 13, 14, 0]
    assert infill.rearrange(block, Cuts(0.1)) == [100, 101, 15, 16, 17, 102, 10, 11, 12, 13, 14, 0]


def test_a_row_depends_on_seed_epoch_and_number_alone(decoder_tokenizer):
    def made(seed=0, row=0, epoch=0):
        return FillInTheMiddle(decoder_tokenizer, SENTINELS, 1.0, seed=seed)([*range(10, 60)], [20, 30], row, epoch)

    assert made() == made()
    others = [made(seed=1), made(row=1), made(epoch=1)]
    assert all(other != made() for other in others)
    assert made()[0] != made()[1]


def test_the_collator_rearranges_training_rows_only_and_keeps_blocks_apart(decoder_tokenizer):
    blocks = split_for_next_token(decoder_tokenizer, ["the old team " * 9], ["a"], max_length=32)
    collator = CausalCollator(decoder_tokenizer, FillInTheMiddle(decoder_tokenizer, [37, 38, 39], 1.0))
    row = {"input_ids": blocks["input_ids"][0] * 2, "segments": blocks["length"] * 2}
    held_out = collator([row])
    assert held_out["input_ids"].tolist() == [row["input_ids"]]
    trained = collator([row | {"row": 0, "epoch": 0, "progress": 0.0}])
    assert trained["input_ids"].shape[1] <= 2 * (32 + ROOM)
    starts = (trained["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    assert [trained["input_ids"][0, start].item() for start in starts] == [37, 37]
    assert trained["labels"][0, starts[1] - 1] == -100


def test_sentinels_are_those_of_the_tokenizer_or_new_ones_with_rows_that_move(decoder_tokenizer, decoders):
    model = AutoModelForCausalLM.from_pretrained(decoders["llama"])
    old = len(decoder_tokenizer)
    with pytest.raises(InputError, match="add --merge_adapter true"):
        add_sentinels(AutoTokenizer.from_pretrained(decoders["llama"]), model, TuningArguments(tuning="lora"))
    tuning_args = TuningArguments(tuning="lora", merge_adapter=True)
    ids = add_sentinels(decoder_tokenizer, model, tuning_args)
    assert ids == [old, old + 1, old + 2]
    assert decoder_tokenizer.convert_ids_to_tokens(ids) == ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    assert model.get_input_embeddings().num_embeddings == old + 3
    assert add_sentinels(decoder_tokenizer, model, tuning_args) == ids, "now it has them"
    assert decoder_tokenizer("the <fim_suffix> team")["input_ids"][1] == ids[1]
    model = apply_tuning(model, tuning_args, "CAUSAL_LM", [])
    moving = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert any("token_adapter" in name for name in moving)


def test_rates_beyond_0_and_1_are_refused(decoder_tokenizer):
    with pytest.raises(InputError, match=r"--fim_rate 1\.5, --fim_spm_rate 0\.5: must be between 0 and 1"):
        FillInTheMiddle(decoder_tokenizer, SENTINELS, 1.5)
