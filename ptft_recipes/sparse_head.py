"""The vocabulary head of a language model, computed where something is to be predicted and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def model_body(model: nn.Module) -> nn.Module:
    """Return the encoder below the head, also of a model that PEFT has wrapped."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(model, model.base_model_prefix)


@contextmanager
def only_at(model: nn.Module, positions: torch.Tensor, sparse: bool = True, as_row: bool = False) -> Iterator[None]:
    """Within the block, let a masked language model compute its head at some positions only.

    `logits` are then `[positions, vocabulary]`, in the order of `positions.nonzero()`. The head of every
    `XxxForMaskedLM` reads `last_hidden_state`, position by position: to select there is exact for all of them, in
    values and gradients, and leaves nothing behind in the model. ModernBERT's own `sparse_prediction` needs the labels
    in `forward`, which a loss that is summed over accumulated batches and processes does not give it.

    Args:
        model: An `XxxForMaskedLM`, or one that PEFT has wrapped; not inside DistributedDataParallel.
        positions: `[batch, length]` bool.
        sparse: False computes the head at all positions, as the model does, and selects afterwards.
        as_row: Give the head the positions as one row, `[1, positions, width]`: an `XxxForCausalLM` slices its hidden
            states by place.

    Raises:
        ValueError: The body's output is of another shape, as with methods that put virtual tokens before the text.
    """

    def select(module, inputs, outputs):
        hidden = outputs[0]
        if hidden.shape[:2] != positions.shape:
            raise ValueError(f"hidden states {tuple(hidden.shape)} for positions {tuple(positions.shape)}")
        chosen = hidden[positions].unsqueeze(0) if as_row else hidden[positions]
        if isinstance(outputs, tuple):
            return (chosen, *outputs[1:])
        outputs["last_hidden_state"] = chosen
        return outputs

    def drop_row(module, inputs, outputs):
        outputs["logits"] = outputs["logits"].squeeze(0)
        return outputs

    def select_logits(module, inputs, outputs):
        for name, values in outputs.items():
            if values.shape[:2] == positions.shape:
                outputs[name] = values[positions]
        return outputs

    handles = [
        model_body(model).register_forward_hook(select) if sparse else model.register_forward_hook(select_logits)
    ]
    if sparse and as_row:
        handles.append(model.register_forward_hook(drop_row))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
