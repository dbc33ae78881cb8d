"""The two models of ELECTRA: how tokens are sampled, what is shared, what is loaded and refused."""

import pytest
import torch
from conftest import tiny_config
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, BertConfig, BertForMaskedLM

from ptft_recipes.electra import load_generator_and_discriminator, sample_tokens, share_embeddings, smaller_config
from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments


class TestSampling:
    def test_tokens_come_as_often_as_their_probability(self):
        probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
        draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
        found = sample_tokens(probabilities.log().expand(len(draws), -1), draws)
        shares = torch.bincount(found, minlength=5) / len(draws)
        assert shares[1] == shares[4] == 0, "what is impossible is never sampled"
        torch.testing.assert_close(shares, probabilities, atol=0.01, rtol=0)

    def test_a_draw_decides_alone(self):
        logits = torch.tensor([[0.25, 0.25, 0.5]]).log()
        found = [int(sample_tokens(logits, torch.tensor([draw]))) for draw in (0.0, 0.24, 0.26, 0.49, 0.51, 0.9999999)]
        assert found == [0, 0, 1, 1, 2, 2]
        large = torch.randn(64, 30522, generator=torch.Generator().manual_seed(0))
        highest = torch.full((64,), 1 - 2**-24)
        assert sample_tokens(large, highest).max() < 30522

    def test_it_passes_no_gradient(self):
        assert not sample_tokens(torch.zeros(1, 3, requires_grad=True), torch.tensor([0.5])).requires_grad


def test_a_new_generator_is_as_deep_and_narrower(checkpoints, tokenizer):
    model = load_generator_and_discriminator(ModelArguments(checkpoints["electra"]), tokenizer, size=0.5)
    ours, theirs = model.discriminator.config, model.generator.config
    assert (theirs.num_hidden_layers, theirs.embedding_size) == (ours.num_hidden_layers, ours.embedding_size)
    assert (ours.hidden_size, ours.num_attention_heads, ours.intermediate_size) == (32, 2, 64)
    assert (theirs.hidden_size, theirs.num_attention_heads, theirs.intermediate_size) == (16, 1, 32)
    ours.num_attention_heads, ours.hidden_size, ours.lineage = 12, 768, ["a stage"]
    third = smaller_config(ours, 1 / 3)
    assert (third.num_attention_heads, third.hidden_size, third.lineage) == (4, 256, [])


def test_word_and_position_embeddings_are_one_and_those_of_the_checkpoint(checkpoints, tokenizer):
    model = load_generator_and_discriminator(ModelArguments(checkpoints["electra"]), tokenizer, size=0.5)
    ours, theirs = (part.electra.embeddings for part in (model.discriminator, model.generator))
    assert ours.word_embeddings.weight is theirs.word_embeddings.weight is model.generator.generator_lm_head.weight
    assert ours.position_embeddings.weight is theirs.position_embeddings.weight
    assert ours.token_type_embeddings.weight is not theirs.token_type_embeddings.weight
    stored = AutoModelForPreTraining.from_pretrained(checkpoints["electra"])
    assert torch.equal(ours.word_embeddings.weight, stored.get_input_embeddings().weight)


@pytest.fixture
def generator(tmp_path, tokenizer):
    """A folder with a trained generator, whose embeddings are not those of the discriminator."""
    torch.manual_seed(7)
    AutoModelForMaskedLM.from_config(tiny_config("electra", len(tokenizer))).save_pretrained(tmp_path / "generator")
    tokenizer.save_pretrained(tmp_path / "generator")
    return str(tmp_path / "generator")


def test_a_generator_that_has_other_embeddings_keeps_them(checkpoints, tokenizer, generator):
    arguments = ModelArguments(checkpoints["electra"])
    model = load_generator_and_discriminator(arguments, tokenizer, generator)
    stored = AutoModelForMaskedLM.from_pretrained(generator).state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in model.generator.state_dict().items())
    new = load_generator_and_discriminator(
        ModelArguments(checkpoints["electra"], from_scratch=True), tokenizer, generator
    )
    assert new.generator.get_input_embeddings().weight is new.discriminator.get_input_embeddings().weight
    with torch.no_grad():  # as the two checkpoints of one training have them
        model.generator.get_input_embeddings().weight.copy_(model.discriminator.get_input_embeddings().weight)
    assert share_embeddings(model.generator, model.discriminator, keep_different=True) == ["word_embeddings"]


def test_a_generator_of_another_family_works_without_what_does_not_fit(checkpoints, tokenizer):
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=24, num_attention_heads=2, num_hidden_layers=1,
                        intermediate_size=16, max_position_embeddings=64)  # fmt: skip
    discriminator = AutoModelForPreTraining.from_pretrained(checkpoints["electra"])
    assert share_embeddings(BertForMaskedLM(config), discriminator, keep_different=False) == []


@pytest.mark.parametrize("size", [0, 1.5])
def test_a_size_that_is_none_is_refused(checkpoints, tokenizer, size):
    with pytest.raises(InputError, match=f"--generator_size {size}: must be above 0 and at most 1"):
        load_generator_and_discriminator(ModelArguments(checkpoints["electra"]), tokenizer, size=size)


def test_a_model_that_is_not_electra_is_refused(checkpoint, tokenizer):
    with pytest.raises(InputError, match="is of type bert; replaced-token detection needs an ELECTRA discriminator"):
        load_generator_and_discriminator(ModelArguments(checkpoint), tokenizer)


def test_quantised_weights_are_refused(checkpoints, tokenizer):
    with pytest.raises(InputError, match="quantised"):
        load_generator_and_discriminator(ModelArguments(checkpoints["electra"], load_in_8bit=True), tokenizer)


def test_a_generator_with_other_tokens_is_refused(checkpoints, tokenizer, generator, tmp_path):
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(generator)
    other.add_tokens(["galaxy"])
    other.save_pretrained(generator)
    with pytest.raises(InputError, match="its tokens are not those of"):
        load_generator_and_discriminator(ModelArguments(checkpoints["electra"]), tokenizer, generator)
    tokenizer.save_pretrained(generator)
    AutoModelForMaskedLM.from_config(tiny_config("electra", len(tokenizer) + 8)).save_pretrained(generator)
    with pytest.raises(InputError, match=rf"it predicts {len(tokenizer) + 8} tokens and .* reads {len(tokenizer)}"):
        load_generator_and_discriminator(ModelArguments(checkpoints["electra"]), tokenizer, generator)


def test_gathered_shards_are_refused(checkpoints, tokenizer, tmp_path):
    model = load_generator_and_discriminator(ModelArguments(checkpoints["electra"]), tokenizer, size=0.5)
    with pytest.raises(ValueError, match="sharded training"):
        model.save_pretrained(tmp_path, state_dict={})
