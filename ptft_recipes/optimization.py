"""How far each layer moves."""

import re

import torch

from ptft_recipes.errors import InputError

LAYER = re.compile(r"\.(?:layer|layers|h|block)\.(\d+)\.")
EMBEDDINGS = re.compile(r"\b(?:embeddings?|wte|wpe|embed_tokens|shared)\b")


def apply_layer_wise_decay(optimizer: torch.optim.Optimizer, model: torch.nn.Module, decay: float) -> None:
    """Lower the learning rate by a factor per layer from the head down, in place, before a scheduler is made.

    The head (and whatever belongs to no layer) keeps the learning rate; the last layer gets it times `decay`, the one
    below times `decay` squared, and the embeddings, below the first layer, the least.

    Args:
        optimizer: With the model's parameters in any groups; other settings of a group stay.
        model: Whose parameters are named by layer: `...layer.3...`, `...layers.3...`, `...h.3...`.
        decay: 1 changes nothing; 0.8 to 0.95 are usual.

    Raises:
        InputError: The model's parameters are not named by layer.

    Source: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification (2018), section 3.2
    (discriminative fine-tuning); Clark et al., ELECTRA (2020), appendix B.
    """
    depths = layer_depths(model)
    if 1 not in depths.values():
        raise InputError(
            f"--layer_wise_decay {decay}: the layers of this model share their weights or have no numbers"
        )
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        by_depth: dict[int, list] = {}
        for parameter in group["params"]:
            by_depth.setdefault(depths[parameter], []).append(parameter)
        for depth, parameters in sorted(by_depth.items()):
            optimizer.add_param_group(group | {"params": parameters, "lr": group["lr"] * decay**depth})


def layer_depths(model: torch.nn.Module) -> dict[torch.nn.Parameter, int]:
    """Return how many layers lie between each parameter and the head: 0 for the head, 1 for the last layer."""
    numbers = {name: int(match[1]) for name, _ in model.named_parameters() if (match := LAYER.search(name))}
    layers = max(numbers.values(), default=-1) + 1
    return {
        parameter: layers - numbers[name] if name in numbers else (layers + 1) * bool(EMBEDDINGS.search(name))
        for name, parameter in model.named_parameters()
    }
