"""Which weights of an encoder-decoder move: T5 has no body that a head stands above, as encoders and BART have."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, load_model
from ptft_recipes.tuning import TuningArguments, apply_tuning, count_parameters


def tuned(path, tokenizer, method, *kwargs, **options):
    model, new = load_model(AutoModelForSeq2SeqLM, ModelArguments(model_name_or_path=path, **options), tokenizer)
    return apply_tuning(model, TuningArguments(method, list(kwargs)), "SEQ_2_SEQ_LM", new), new


@pytest.mark.parametrize("family", ["t5", "bart", "marian", "m2m_100"])
def test_a_checkpoint_brings_everything_and_its_tied_weights_stay_tied(family, seq2seq_checkpoints, seq2seq_tokenizer):
    model, new = tuned(seq2seq_checkpoints[family], seq2seq_tokenizer, "full")
    assert new == []
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert count_parameters(model)[0] == count_parameters(model)[1]
    other, new = tuned(seq2seq_checkpoints[family], seq2seq_tokenizer, "full", from_scratch=True)
    assert other.get_output_embeddings().weight is other.get_input_embeddings().weight
    assert new
    pair = (m.get_input_embeddings().weight for m in (model, other))
    assert not torch.equal(*pair)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_linear_probe_is_refused_because_the_head_is_the_embeddings(family, seq2seq_checkpoints, seq2seq_tokenizer):
    with pytest.raises(InputError, match="an encoder-decoder has no head of its own"):
        tuned(seq2seq_checkpoints[family], seq2seq_tokenizer, "linear_probe")


def test_bitfit_moves_the_biases_of_bart_and_nothing_of_t5(seq2seq_checkpoints, seq2seq_tokenizer):
    model, _ = tuned(seq2seq_checkpoints["bart"], seq2seq_tokenizer, "bitfit")
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moving
    assert all(name.endswith("bias") for name in moving)
    with pytest.raises(InputError, match="a t5 body has no biases"):
        tuned(seq2seq_checkpoints["t5"], seq2seq_tokenizer, "bitfit")


@pytest.mark.parametrize("family", ["t5", "m2m_100"])
def test_all_linear_is_of_the_layers_and_not_of_the_head(family, seq2seq_checkpoints, seq2seq_tokenizer):
    model, _ = tuned(seq2seq_checkpoints[family], seq2seq_tokenizer, "lora", "target_modules=all-linear")
    moving = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert not [name for name in moving if "lm_head" in name]
    assert len(moving) == 2 * (2 * 6 + 2 * 10), "two matrices beside each linear map, of 2 + 2 layers"
