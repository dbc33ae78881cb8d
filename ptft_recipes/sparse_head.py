"""The vocabulary head of a masked language model, computed where something is masked and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def model_body(model: nn.Module) -> nn.Module:
    """Return the encoder below the head, also of a model that PEFT has wrapped."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(model, model.base_model_prefix)


@contextmanager
def only_at(model: nn.Module, positions: torch.Tensor, sparse: bool = True) -> Iterator[None]:
    """Within the block, let a masked language model compute its head at some positions only.

    `logits` are then `[positions, vocabulary]`, in the order of `positions.nonzero()`. The head of every
    `XxxForMaskedLM` reads `last_hidden_state`, position by position: to select there is exact for all of them, in
    values and gradients, and leaves nothing behind in the model. ModernBERT's own `sparse_prediction` needs the labels
    in `forward`, which a loss that is summed over accumulated batches and processes does not give it.

    Args:
        model: An `XxxForMaskedLM`, or one that PEFT has wrapped; not inside DistributedDataParallel.
        positions: `[batch, length]` bool.
        sparse: False computes the head at all positions, as the model does, and selects afterwards.

    Raises:
        ValueError: The body's output is of another shape, as with methods that put virtual tokens before the text.
    """

    def select(module, inputs, outputs):
        hidden = outputs[0]
        if hidden.shape[:2] != positions.shape:
            raise ValueError(f"hidden states {tuple(hidden.shape)} for positions {tuple(positions.shape)}")
        if isinstance(outputs, tuple):
            return (hidden[positions], *outputs[1:])
        outputs["last_hidden_state"] = hidden[positions]
        return outputs

    def select_logits(module, inputs, outputs):
        for name, values in outputs.items():
            if values.shape[:2] == positions.shape:
                outputs[name] = values[positions]
        return outputs

    handle = model_body(model).register_forward_hook(select) if sparse else model.register_forward_hook(select_logits)
    try:
        yield
    finally:
        handle.remove()
