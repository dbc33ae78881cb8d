"""Dropout and attention for CPUs: what PyTorch computes, several times as fast.

PyTorch draws a dropout mask one number at a time, multiplies by it with a change of type, and leaves attention with
dropout to a composition of such steps. Here one draw of 64 bits decides for four elements, and a mask is applied by a
bitwise and. Without dropout PyTorch's fused attention is the faster one in float32 and on long rows only.
"""

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdpa_cpu"  # the name under which transformers finds it
LONGEST = 512  # tokens per row up to which bfloat16 without dropout is faster here than fused
_INTEGERS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def draw_keep_bits(shape: torch.Size, p: float) -> torch.Tensor:
    """Draw which elements dropout keeps, from PyTorch's generator.

    Args:
        shape: Of what is dropped from.
        p: Probability to drop an element; rounded to a multiple of 2**-16.

    Returns:
        `shape` int16, all bits set where an element is kept and none where it is dropped.
    """
    elements = shape.numel()
    lanes = torch.empty((elements + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:elements]
    keep = torch.ge(lanes, round(p * 2**16) - 2**15, out=torch.empty_like(lanes))
    return keep.neg_().view(shape)


def apply_keep_bits(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Return `x` with zeros where `keep`, of the same shape, has no bits."""
    integers = _INTEGERS[x.dtype]
    return torch.bitwise_and(x.contiguous().view(integers), keep.to(integers)).view(x.dtype)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        keep = draw_keep_bits(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.p = p
        return apply_keep_bits(x, keep).div_(1 - p)

    @staticmethod
    def backward(ctx, gradient):
        (keep,) = ctx.saved_tensors
        return apply_keep_bits(gradient, keep).div_(1 - ctx.p), None


class CpuDropout(nn.Dropout):
    """nn.Dropout on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` in evaluation; in training with elements dropped and the others scaled up."""
        if not self.training or self.p in (0.0, 1.0) or x.device.type != "cpu" or x.dtype not in _INTEGERS:
            return super().forward(x)
        return _Dropout.apply(x, self.p)


class _Attention(torch.autograd.Function):
    """Softmax(Q K^T * scaling + mask), dropped from, times V; all `[batch * heads, length, head]`."""

    @staticmethod
    def forward(ctx, query, key, value, mask, p, scaling):
        batch, heads, length, _ = query.shape
        query, key, value = (x.flatten(0, 1) for x in (query, key, value))
        # Autocast would take the scores to float32 and back; softmax sums in float32 of itself.
        with torch.autocast("cpu", enabled=False):
            scores = torch.bmm(query * scaling, key.transpose(1, 2))
            if mask is not None:
                scores.view(batch, heads, length, -1).add_(mask)
            weights = torch.softmax(scores, -1, out=scores)
            keep = draw_keep_bits(weights.shape, p) if p else None
            output = torch.bmm(apply_keep_bits(weights, keep) if p else weights, value).div_(1 - p)
        ctx.save_for_backward(query, key, value, weights, keep)
        ctx.p, ctx.scaling, ctx.heads = p, scaling, heads
        return output.unflatten(0, (batch, heads))

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, weights, keep = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            gradient = gradient.flatten(0, 1) / (1 - ctx.p)
            kept = apply_keep_bits(weights, keep) if ctx.p else weights
            value_gradient = torch.bmm(kept.transpose(1, 2), gradient)
            weights_gradient = torch.bmm(gradient, value.transpose(1, 2))
            if ctx.p:
                weights_gradient = apply_keep_bits(weights_gradient, keep)
            scores_gradient = torch._softmax_backward_data(weights_gradient, weights, -1, weights.dtype)
            query_gradient = torch.bmm(scores_gradient, key).mul_(ctx.scaling)
            key_gradient = torch.bmm(scores_gradient.transpose(1, 2), query).mul_(ctx.scaling)
        per_head = (x.unflatten(0, (-1, ctx.heads)) for x in (query_gradient, key_gradient, value_gradient))
        return (*per_head, None, None, None)


def cpu_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """Attend as transformers' `sdpa` does; by the code above where that is faster.

    Args:
        module: The attention layer.
        query: `[batch, heads, length, head]`, as are `key` and `value`.
        key: See `query`.
        value: See `query`.
        attention_mask: `[batch or 1, heads or 1, length, length]`, bool or additive; None to attend to everything.
        dropout: Probability that an attention weight is dropped.
        scaling: Of the scores; `head ** -0.5` when None.
        kwargs: What else the model passes on.

    Returns:
        `[batch, length, heads, head]`, and None for the attention weights.
    """
    # As transformers decides it: only a model that passes no mask leaves it to the attention function.
    causal = kwargs.get("is_causal")
    causal = attention_mask is None and (getattr(module, "is_causal", True) if causal is None else causal)
    one_kind = query.shape[:2] == key.shape[:2] and query.device.type == "cpu" and query.dtype in _INTEGERS
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    faster = dropout or (dtype != torch.float32 and query.shape[2] <= LONGEST)
    if not faster or causal or not one_kind or kwargs.get("position_bias") is not None or kwargs.get("cache"):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    query, key, value = (x.to(dtype) for x in (query, key, value))
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        # Not -inf: of a row that may attend to nothing the softmax would be nan.
        lowest = torch.finfo(query.dtype).min
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill_(~attention_mask, lowest)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _Attention.apply(query, key, value, attention_mask, dropout, scaling).transpose(1, 2).contiguous(), None


def use_cpu_kernels(model: nn.Module) -> None:
    """Let a model compute dropout and attention by the code above, on a CPU.

    Its weights, its class and its config stay as they are.

    Args:
        model: Changed in place; layers and attention of other kinds than `nn.Dropout` and `sdpa` are left alone.
    """
    AttentionInterface.register(ATTENTION, cpu_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = CpuDropout
        elif isinstance(module, PreTrainedModel) and module.config._attn_implementation == "sdpa":
            module.set_attn_implementation(ATTENTION)
