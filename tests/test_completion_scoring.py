"""What a decoder writes does not depend on its neighbours in a batch; settings are data, and checked."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ptft_recipes.completion_scoring import SCORED, completion_metrics, generate_texts, generation_settings
from ptft_recipes.errors import InputError
from ptft_recipes.text_metrics import text_statistics


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("beams", [1, 3])
def test_batches_padded_on_the_left_write_what_each_prompt_gives_alone(decoders, decoder_tokenizer, family, beams):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(decoders[family])
    for weight in model.parameters():  # else every next token is as probable as any other
        weight.data += 0.3 * torch.randn_like(weight)
    config = generation_settings([f"num_beams={beams}"], decoder_tokenizer, [2], max_new_tokens=6)
    prompts = [[5, 6], [7], [8, 9, 10, 11, 12, 13, 14], [4] * 5, [20, 21, 22]]
    together = generate_texts(model.train(), decoder_tokenizer, prompts, config, batch_size=3)
    assert model.training
    for prompt, text in zip(prompts, together, strict=True):
        alone = model.eval().generate(input_ids=torch.tensor([prompt]), generation_config=config)
        assert decoder_tokenizer.decode(alone[0, len(prompt) :], skip_special_tokens=True).strip() == text
    assert len(set(together)) > 2


def test_generation_is_greedy_unless_told_and_ends_where_answers_end(decoder_tokenizer):
    config = generation_settings([], decoder_tokenizer, [2], 7)
    assert (config.do_sample, config.num_beams, config.max_new_tokens, config.eos_token_id) == (False, 1, 7, [2])
    assert config.pad_token_id == 2, "this tokenizer has no padding token"
    settings = ["num_beams=4", "length_penalty=0.8", "early_stopping=true"]
    config = generation_settings(settings, decoder_tokenizer, [2], 7)
    assert (config.num_beams, config.length_penalty, config.early_stopping) == (4, 0.8, True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("num_beam=4", "no such setting.*num_beams"),
        ("num_beams", "no such setting"),
        ("do_sample=true", "scores of samples depend on chance"),
        ("num_beams=many", "num_beams=many: must be a whole number of at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(decoder_tokenizer, setting, message):
    with pytest.raises(InputError, match=message):
        generation_settings([setting], decoder_tokenizer, [2], 7)


def test_scores_before_and_after_are_of_the_same_rows():
    gold = ["the team won", "the atom"]
    halves = [
        np.hstack([text_statistics(texts, gold, SCORED), np.array(tokens, float)])
        for texts, tokens in ((["no", "the"], [[4.0, 2, 0], [2, 1, 0]]), (gold, [[2.0, 2, 1], [1, 1, 1]]))
    ]
    prediction = SimpleNamespace(predictions=np.hstack(halves), label_ids=np.zeros(2))
    scores = completion_metrics(prediction)
    assert scores["rougeL"] == scores["exact_match"] == 1
    assert scores["rougeL_before"] == pytest.approx(1 / 3)  # 0, and F1 of 1 of 1 and 1 of 2 words
    assert scores["rougeL_gain"] == pytest.approx(2 / 3)
    assert scores["perplexity"] == pytest.approx(np.e)
    assert scores["perplexity_before"] == pytest.approx(np.e**2)
    assert completion_metrics(prediction, np.array([2.0, 0]))["rougeL_before"] == 0
