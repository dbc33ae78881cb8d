"""What `--augment` does to a batch, anew at every step of training: hidden spans, and mixed hidden states.

Both are hooks of the model that do nothing in evaluation, and draw from PyTorch's generator as dropout does, so that a
resumed run draws what it would have drawn.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ptft_recipes.augmentation import parse_augment
from ptft_recipes.errors import InputError
from ptft_recipes.tuning import TuningArguments

LAYER = re.compile(r"(.*\.(?:layer|layers|h|block)\.)\d+")


def augment_batches(
    model: torch.nn.Module,
    augment: Sequence[str],
    tuning_args: TuningArguments,
    loss: Callable,
    columns: Sequence[str],
) -> Callable:
    """Let a model hide and mix what it reads in training, as `--augment` says, and return the loss for that.

    Args:
        model: For sequence classification; span cut-off is for any. It gets hooks.
        augment: As parsed.
        tuning_args: With R-Drop, the first of its two passes reads the whole rows.
        loss: The plain loss, `(outputs, labels, num_items_in_batch) -> scalar`.
        columns: Of the training rows.

    Raises:
        InputError: The model, the task, or another option does not go with it.
    """
    chosen = parse_augment(augment)
    for name in ("span_cutoff", "mixup"):
        if getattr(chosen, name) and "input_ids" not in columns:
            raise InputError(f"--augment {name}: no weight of the body moves, so no tokens are read")
        if getattr(chosen, name) and tuning_args.fgm:
            raise InputError(f"--augment {name}: --fgm reads a batch twice, and it would be another one")
    if chosen.span_cutoff:
        hook = partial(_cut_off, share=chosen.span_cutoff, is_second_half=bool(tuning_args.r_drop))
        model.register_forward_pre_hook(hook, with_kwargs=True)
    if not chosen.mixup:
        return loss
    if tuning_args.r_drop:
        raise InputError("--augment mixup: --r_drop compares two passes over the same row, and these are mixed")
    if not getattr(model.config, "problem_type", None):
        raise InputError("--augment mixup: it mixes labels of whole rows, and this task has none")
    return partial(mixup_loss, loss=loss, mixup=Mixup(model, chosen.mixup))


def _cut_off(model, args, kwargs: dict, *, share: float, is_second_half: bool):
    if not model.training:
        return None
    if kwargs.get("attention_mask") is None:
        raise InputError("--augment span_cutoff: this model reads no attention mask, by which a span could be hidden")
    mask = hide_spans(kwargs["attention_mask"], share)
    if is_second_half:
        half = len(mask) // 2
        mask[:half] = kwargs["attention_mask"][:half]
    return args, kwargs | {"attention_mask": mask}


def hide_spans(attention_mask: torch.Tensor, share: float) -> torch.Tensor:
    """Return a mask that hides one span of neighbouring tokens of each row from all others.

    A hidden token has no part in any other: to those it is as if its embedding and its place in the mask were 0, as in
    the paper. The first and the last token of a row, which the heads read, are never hidden.

    Args:
        attention_mask: `[batch, length]`, 1 for tokens and 0 for padding, on whichever side.
        share: Of the tokens between the first and the last; at least one is hidden where there is one.

    Source: Shen et al., A Simple but Tough-to-Beat Data Augmentation Approach for Natural Language Understanding and
    Generation (2020), section 3.2, span cutoff. Their consistency loss is what `--r_drop` adds: the divergence between
    the whole row and the one with a span hidden.
    """
    place = attention_mask.cumsum(1) - 1
    inner = (attention_mask.sum(1, keepdim=True) - 2).clamp_min(0)
    span = (share * inner).round().long().clamp_min(1)
    drawn = torch.rand(len(inner), 1, device=inner.device)
    first = 1 + (drawn * (inner - span + 1)).long()
    hidden = (place >= first) & (place < first + span) & (place <= inner)
    return attention_mask * ~hidden


class Mixup:
    """Mix the hidden states of each row with those of another row of its batch, behind a layer of the upper half.

    At every step the layer and the row's share are drawn. The share is the larger one, at least a half, so that the
    row keeps its own attention mask; for the same reason rows of similar length (`group_by_length`) lose least.

    Args:
        model: Whose layers are numbered modules; it gets hooks.
        alpha: Of the Beta distribution of the shares; below 1 most are near 1, above 1 near a half.

    Raises:
        InputError: It has no layers of its own to mix behind.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization (2018); Guo, Mao and Zhang, Augmenting Data with
    Mixup for Sentence Classification (2019); Verma et al., Manifold Mixup (2019), for a layer that is drawn; Chen,
    Yang and Yang, MixText (2020), section 3.1 (TMix), for the upper layers and the larger share.
    """

    def __init__(self, model: torch.nn.Module, alpha: float):  # noqa: D107
        numbered = [(match[1], module) for name, module in model.named_modules() if (match := LAYER.fullmatch(name))]
        layers = [module for stack, module in numbered if stack == numbered[0][0]]  # and not what they have within
        if len(layers) < 2 or getattr(model.config, "is_encoder_decoder", False):
            raise InputError("--augment mixup: the layers of this model share their weights or are not of one encoder")
        upper = layers[len(layers) // 2 :]
        self.beta, self.layers = torch.distributions.Beta(alpha, alpha), len(upper)
        self.share, self.partners, self.layer = 1.0, torch.tensor([]), 0
        model.register_forward_pre_hook(self._draw, with_kwargs=True)
        for number, layer in enumerate(upper):
            layer.register_forward_hook(partial(self._mix, number))

    def _draw(self, model, args, kwargs: dict) -> None:
        if model.training:
            share = self.beta.sample().item()
            self.share, self.layer = max(share, 1 - share), int(torch.randint(self.layers, ()))
            self.partners = torch.randperm(len(kwargs["input_ids"])).to(kwargs["input_ids"].device)

    def _mix(self, number: int, layer, args, output):
        if not layer.training or number != self.layer:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        if len(hidden) != len(self.partners):
            raise InputError("--augment mixup: this model packs its rows into one; pass --attn_implementation sdpa")
        mixed = self.share * hidden + (1 - self.share) * hidden[self.partners]
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


def mixup_loss(
    outputs,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    loss: Callable,
    mixup: Mixup,
) -> torch.Tensor:
    """Return the loss of mixed rows: that of each label, weighted by the row's share.

    For cross entropy, of one label or of several, this is the loss of the mixed label; for squared error it has the
    gradient of it, and another value.

    Args:
        outputs: Of the mixed rows.
        labels: Of the rows before.
        num_items_in_batch: As for the plain loss.
        loss: The plain loss.
        mixup: What the rows were mixed by.
    """
    parts = (loss(outputs, of, num_items_in_batch=num_items_in_batch) for of in (labels, labels[mixup.partners]))
    return mixup.share * next(parts) + (1 - mixup.share) * next(parts)
