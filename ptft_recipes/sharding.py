"""FSDP and DeepSpeed, which cut a model over the processes: what Trainer leaves undone with such a model."""

import contextlib
from collections.abc import Iterator

import torch
from transformers import Trainer

from ptft_recipes.optimization import LAYER


def layer_classes(model: torch.nn.Module) -> list[str]:
    """Return the names of the classes that a model stacks, e.g. `BertLayer`; none of a model that shares its layers."""
    names = {
        type(module).__name__
        for name, module in model.named_modules()
        if (found := LAYER.search(f"{name}.")) and found.end() == len(name) + 1  # T5 has layers in its layers
    }
    return sorted(names)


def cut_by_layers(trainer: Trainer) -> None:
    """Have FSDP gather the model layer by layer, unless the configuration names the classes to cut at.

    accelerate takes `_no_split_modules` for them: many encoders have none, and those that have name their embeddings
    too, which FSDP2 cuts once more and fails (1.15.0).

    Args:
        trainer: Before it trains.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(trainer.model)


@contextlib.contextmanager
def whole_until_trained(trainer: Trainer) -> Iterator[None]:
    """Let a model that is not cut up yet be evaluated as it is, whole in every process.

    Trainer would hand it to the engine without an optimizer, which FSDP2 and ZeRO below stage 3 refuse.

    Args:
        trainer: That evaluates or predicts.
    """
    engines = trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled
    if trainer.optimizer is None:
        trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False
    try:
        yield
    finally:
        trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled = engines
