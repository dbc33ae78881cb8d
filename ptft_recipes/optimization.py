"""How far each layer moves, and from when on."""

import logging
import re

import torch
from transformers import TrainerCallback

from ptft_recipes.errors import InputError

logger = logging.getLogger(__name__)

LAYER = re.compile(r"\.(?:layer|layers|h|block)\.(\d+)\.")
# What lies below the first layer, ELECTRA's embeddings_project, DeBERTa's rel_embeddings and MPNet's bias among it.
EMBEDDINGS = re.compile(r"embedding|embed_tokens|relative_attention_bias|\b(?:wte|wpe|shared)\b")


def layer_depths(model: torch.nn.Module) -> dict[torch.nn.Parameter, int]:
    """Return how many layers lie between each parameter and the head: 0 for the head, 1 for the last layer."""
    numbers = {name: int(match[1]) for name, _ in model.named_parameters() if (match := LAYER.search(name))}
    layers = max(numbers.values(), default=-1) + 1
    return {
        parameter: layers - numbers[name] if name in numbers else (layers + 1) * bool(EMBEDDINGS.search(name))
        for name, parameter in model.named_parameters()
    }


def _numbered_depths(model: torch.nn.Module, option: str) -> dict[torch.nn.Parameter, int]:
    """Return `layer_depths`, or raise an InputError when the layers share their weights or have no numbers."""
    depths = layer_depths(model)
    if max(depths.values()) < 2:  # the embeddings lie below one layer at least
        raise InputError(f"--{option}: the layers of this model share their weights or have no numbers")
    return depths


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    layer_wise_decay: float = 1.0,
    head_learning_rate: float | None = None,
) -> None:
    """Give every layer its learning rate, in place, before a scheduler is made.

    The head (and whatever belongs to no layer) gets `head_learning_rate`; the last layer the optimizer's learning rate
    times `layer_wise_decay`, the one below times its square, and the embeddings, below the first layer, the least.

    Args:
        optimizer: With the model's parameters in any groups; other settings of a group stay.
        model: Whose parameters are named by layer: `...layer.3...`, `...layers.3...`, `...h.3...`.
        layer_wise_decay: 1 changes nothing; 0.8 to 0.95 are usual.
        head_learning_rate: The optimizer's own when None.

    Raises:
        InputError: The model's parameters are not named by layer.

    Source: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification (2018), section 3.2
    (discriminative fine-tuning); Clark et al., ELECTRA (2020), appendix B.
    """
    depths = layer_depths(model) if layer_wise_decay == 1 else _numbered_depths(model, "layer_wise_decay")
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        by_depth: dict[int, list] = {}
        for parameter in group["params"]:
            by_depth.setdefault(depths[parameter], []).append(parameter)
        for depth, parameters in sorted(by_depth.items()):
            rate = group["lr"] * layer_wise_decay**depth
            if depth == 0 and head_learning_rate is not None:
                rate = head_learning_rate
            optimizer.add_param_group(group | {"params": parameters, "lr": rate})


def freeze_layers(model: torch.nn.Module, layers: int) -> None:
    """Freeze the embeddings and the first layers, in place.

    Args:
        model: With or without an adapter, which is frozen in these layers too.
        layers: How many; 0 freezes the embeddings only.

    Raises:
        InputError: The model has fewer layers, or they have no numbers.
    """
    depths = _numbered_depths(model, f"freeze_layers {layers}")
    embeddings = max(depths.values())
    if layers >= embeddings:
        raise InputError(f"--freeze_layers {layers}: the model has {embeddings - 1} layers")
    for parameter, depth in depths.items():
        if depth >= embeddings - layers:
            parameter.requires_grad = False


class GradualUnfreezingCallback(TrainerCallback):
    """Train the head first, and one more layer every so many epochs, from the top down; the embeddings come last.

    What has not started to move has no gradient, costs no backward pass, and keeps its values and its optimizer state.

    Args:
        model: Whose trainable weights are to start one layer after the other.
        epochs_per_layer: 1 in the paper; with few epochs a fraction.

    Raises:
        InputError: The model's parameters are not named by layer.

    Source: Howard and Ruder (2018), section 3.3.
    """

    def __init__(self, model: torch.nn.Module, epochs_per_layer: float):  # noqa: D107
        depths = _numbered_depths(model, "gradual_unfreezing")
        self.depths = {p: depth for p, depth in depths.items() if p.requires_grad}
        self.epochs_per_layer = epochs_per_layer

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: D102
        late = [p for p, depth in self.depths.items() if depth * self.epochs_per_layer >= state.num_train_epochs]
        if late:
            logger.info(
                "--gradual_unfreezing %g: %s weights do not move within %g epochs",
                self.epochs_per_layer,
                f"{sum(p.numel() for p in late):,}",
                state.num_train_epochs,
            )

    def on_step_begin(self, args, state, control, **kwargs):  # noqa: D102
        reached = int((state.epoch or 0) / self.epochs_per_layer + 1e-6)
        for parameter, depth in self.depths.items():
            parameter.requires_grad = depth <= reached

    def on_train_end(self, args, state, control, **kwargs):  # noqa: D102
        for parameter in self.depths:
            parameter.requires_grad = True
