"""Lower layers move less, and nothing else about the optimizer changes."""

import pytest
import torch
from conftest import FAMILIES, tiny_config
from numerics.optimizer_step import build_trainer
from transformers import AutoModelForSequenceClassification

from ptft_recipes.optimization import layer_depths, set_learning_rates
from ptft_recipes.tuning import TuningArguments


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_counts_from_the_head_down(family):
    model = AutoModelForSequenceClassification.from_config(tiny_config(family, 40))
    depths = layer_depths(model)
    by_name = {name: depths[parameter] for name, parameter in model.named_parameters()}
    assert len(by_name) > 10
    for name, depth in by_name.items():
        if ".0." in name:
            assert depth == 2, name
        elif ".1." in name:
            assert depth == 1, name
        else:
            assert depth == (3 if "embeddings" in name else 0), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_learning_rate_falls_by_the_factor_per_layer(checkpoints, tmp_path, family):
    trainer, _ = build_trainer(
        checkpoints[family], "sequence", str(tmp_path), 8, 1, tuning_args=TuningArguments(layer_wise_decay=0.5)
    )
    trainer.args.weight_decay = 0.1
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    depths = layer_depths(trainer.model)
    seen = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(seen) == len(set(seen)) == len(names)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == trainer.args.learning_rate * 0.5 ** depths[parameter], names[parameter]
    decayed = {names[p] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == set(trainer.get_decay_parameter_names(trainer.model))
    assert optimizer.param_groups[0]["lr"] == trainer.args.learning_rate, "the log shows the head's"


def test_a_factor_of_1_is_the_stock_optimizer(checkpoint, tmp_path):
    stock, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 8, 1)
    assert len(stock.create_optimizer().param_groups) == 2
    model = stock.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    set_learning_rates(optimizer, model, 1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}


def test_the_scheduler_scales_every_group(checkpoint, tmp_path):
    trainer, _ = build_trainer(
        checkpoint, "sequence", str(tmp_path), 8, 1, tuning_args=TuningArguments(layer_wise_decay=0.5)
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    before = [group["lr"] for group in trainer.optimizer.param_groups]
    for _ in range(5):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    after = [group["lr"] for group in trainer.optimizer.param_groups]
    assert after == pytest.approx([lr / 2 for lr in before])
