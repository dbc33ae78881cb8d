"""Lower layers move less, later or not at all, and nothing else about the optimizer changes."""

import logging
import re

import pytest
import torch
from conftest import ALL_FAMILIES, FAMILIES, tiny_config
from numerics.optimizer_step import build_trainer
from transformers import AutoModelForSequenceClassification, TrainerCallback, TrainingArguments

from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, load_model
from ptft_recipes.optimization import freeze_layers, layer_depths, set_learning_rates
from ptft_recipes.tuning import TuningArguments, apply_tuning

BELOW = "embeddings|relative_attention_bias"


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


def test_the_head_has_its_own_learning_rate(checkpoint, tmp_path):
    options = TuningArguments(layer_wise_decay=0.5, head_learning_rate=0.03)
    trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 8, 1, tuning_args=options)
    trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    rates = {names[p]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert rates["classifier.weight"] == rates["bert.pooler.dense.bias"] == 0.03
    assert rates["bert.encoder.layer.1.output.dense.weight"] == trainer.args.learning_rate * 0.5
    assert rates["bert.embeddings.word_embeddings.weight"] == trainer.args.learning_rate * 0.125


def test_the_head_alone_can_have_its_own_learning_rate_in_any_architecture(checkpoints, tmp_path):
    options = TuningArguments(head_learning_rate=0.03)
    trainer, _ = build_trainer(checkpoints["albert"], "sequence", str(tmp_path), 8, 1, tuning_args=options)
    trainer.create_optimizer()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.03, trainer.args.learning_rate}


@pytest.mark.parametrize(("layers", "frozen"), [(0, BELOW), (1, rf"{BELOW}|\.0\."), (2, rf"{BELOW}|\.[01]\.")])
@pytest.mark.parametrize("family", [family for family in ALL_FAMILIES if family != "albert"])
def test_freezing_starts_at_the_bottom(family, layers, frozen):
    model = AutoModelForSequenceClassification.from_config(tiny_config(family, 40))
    freeze_layers(model, layers)
    names = [name for name, _ in model.named_parameters()]
    assert len(names) > 10
    for name, parameter in model.named_parameters():
        body = name.removeprefix(f"{model.base_model_prefix}.")
        assert parameter.requires_grad == (re.search(frozen, body) is None), name


def test_freezing_reaches_into_an_adapter(checkpoint, tokenizer):
    arguments = ModelArguments(checkpoint)
    model, new = load_model(AutoModelForSequenceClassification, arguments, tokenizer)
    model = apply_tuning(model, TuningArguments("lora", freeze_layers=1), "SEQ_CLS", new)
    moving = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any(".layer.1." in name for name in moving)
    assert not any(".layer.0." in name for name in moving)


@pytest.mark.parametrize("option", ["freeze_layers", "gradual_unfreezing", "layer_wise_decay"])
def test_layers_that_share_their_weights_have_no_order(checkpoints, tokenizer, tmp_path, option):
    model, new = load_model(AutoModelForSequenceClassification, ModelArguments(checkpoints["albert"]), tokenizer)
    options = TuningArguments(**{option: 1 if option == "freeze_layers" else 0.5})

    def use():
        apply_tuning(model, options, "SEQ_CLS", new)
        trainer, _ = build_trainer(checkpoints["albert"], "sequence", str(tmp_path), 8, 1, tuning_args=options)
        trainer.create_optimizer()

    with pytest.raises(InputError, match=f"--{option}.* share their weights"):
        use()


def test_more_layers_than_there_are_cannot_be_frozen():
    model = AutoModelForSequenceClassification.from_config(tiny_config("bert", 40))
    with pytest.raises(InputError, match="--freeze_layers 3: the model has 2 layers"):
        freeze_layers(model, 3)


@pytest.mark.parametrize(
    "option", [{"layer_wise_decay": 1.5}, {"layer_wise_decay": 0}, {"freeze_layers": -1}, {"l2_sp": -0.1}, {"fgm": -1}]
)
def test_values_outside_their_range_are_refused(option):
    with pytest.raises(InputError, match=f"--{next(iter(option))}"):
        TuningArguments(**option)


class Watch(TrainerCallback):
    """Copies the weights after every step, and remembers what moved."""

    def __init__(self, model):
        self.weights = [{name: p.detach().clone() for name, p in model.named_parameters()}]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def moved(self, step: int) -> set[str]:
        """Return what differs between two steps."""
        return {
            name for name, value in self.weights[step].items() if not torch.equal(value, self.weights[step + 1][name])
        }


def gradual(checkpoint, folder, epochs=2, **kwargs):
    """Build a trainer with four steps per epoch that unfreezes a layer every half epoch."""
    trainer, _ = build_trainer(
        checkpoint, "sequence", str(folder), 2, 1, tuning_args=TuningArguments(gradual_unfreezing=0.5), **kwargs
    )
    trainer.args.max_steps, trainer.args.num_train_epochs = -1, epochs
    trainer.args.lr_scheduler_type, trainer.args.learning_rate = "constant", 1e-3
    return trainer


@pytest.mark.parametrize("family", FAMILIES)
def test_one_more_layer_moves_every_half_epoch(checkpoints, tmp_path, family):
    trainer = gradual(checkpoints[family], tmp_path)
    depths = layer_depths(trainer.model)
    names = {name: depths[p] for name, p in trainer.model.named_parameters()}
    watch = Watch(trainer.model)
    trainer.add_callback(watch)
    trainer.train()
    assert len(watch.weights) == 1 + 8
    for step in range(8):
        reached = {names[name] for name in watch.moved(step)}
        assert reached == set(range(min(step // 2, 3) + 1)), f"step {step}"
    assert all(p.requires_grad for p in trainer.model.parameters()), "the model is left as it was given"


def test_gradual_unfreezing_goes_on_exactly_after_a_resume(checkpoint, tmp_path):
    whole = gradual(checkpoint, tmp_path / "whole")
    whole.train()
    first = gradual(checkpoint, tmp_path / "parts")
    first.args.max_steps, first.args.save_strategy, first.args.save_steps = 3, "steps", 3
    first.train()
    second = gradual(checkpoint, tmp_path / "parts")
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    other = second.model.state_dict()
    assert all(torch.equal(other[name], value) for name, value in whole.model.state_dict().items())


def test_weights_that_will_not_move_are_counted(checkpoint, tmp_path, caplog):
    trainer = gradual(checkpoint, tmp_path, epochs=1)
    logging.getLogger("ptft_recipes").propagate = True
    with caplog.at_level("INFO", logger="ptft_recipes"):
        trainer.train()
    assert "weights do not move within 1 epochs" in caplog.text


def test_gradual_unfreezing_is_refused_on_several_processes(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(InputError, match="use one process"):
        gradual(checkpoint, tmp_path)
