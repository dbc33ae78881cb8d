"""Averages of models, and what cannot be merged. That a merged adapter predicts the same: test_adapters.py."""

import copy

import pytest
import torch
from conftest import tiny_config
from transformers import AutoModelForSequenceClassification

from ptft_recipes.errors import InputError
from ptft_recipes.merging import average_weights, check_mergeable
from ptft_recipes.modeling import ModelArguments, load_model
from ptft_recipes.tuning import TuningArguments, apply_tuning


def models(count: int):
    """Models of one architecture with different weights."""
    for seed in range(count):
        torch.manual_seed(seed)
        yield AutoModelForSequenceClassification.from_config(tiny_config("bert", 40))


def test_the_average_is_the_mean_of_every_weight():
    average = average_weights(models(3))
    several = [dict(model.named_parameters()) for model in models(3)]
    seen = 0
    for name, parameter in average.named_parameters():
        expected = torch.stack([model[name].detach() for model in several]).double().mean(0).float()
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-7, msg=name)
        seen += not parameter.requires_grad
    assert seen == len(several[0]) > 30


def test_the_average_of_equal_models_is_the_model():
    model = next(models(1))
    before = copy.deepcopy(model.state_dict())
    after = average_weights([model, copy.deepcopy(model), copy.deepcopy(model)]).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_models_of_different_kinds_are_refused():
    config = tiny_config("bert", 40)
    config.num_labels = 5
    with pytest.raises(InputError, match=r"classifier\.weight"):
        average_weights([next(models(1)), AutoModelForSequenceClassification.from_config(config)])
    other = AutoModelForSequenceClassification.from_config(tiny_config("roberta", 40))
    with pytest.raises(InputError, match="not of one kind"):
        average_weights([next(models(1)), other])


@pytest.mark.parametrize("method", ["full", "prompt_tuning", "bottleneck"])
def test_what_is_no_change_of_weights_is_refused(checkpoint, tokenizer, method):
    model, new = load_model(AutoModelForSequenceClassification, ModelArguments(checkpoint), tokenizer)
    model = apply_tuning(model, TuningArguments(method), "SEQ_CLS", new)
    with pytest.raises(InputError, match="merge"):
        check_mergeable(model)
