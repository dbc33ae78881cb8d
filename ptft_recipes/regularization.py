"""What keeps fine-tuning close to the pre-trained weights, or makes its predictions smooth."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from ptft_recipes.errors import InputError
from ptft_recipes.labels import MULTI, REGRESSION


class PretrainedDecayCallback(TrainerCallback):
    """Pull the weights of the body towards their pre-trained values instead of towards zero (L2-SP).

    Decoupled from the gradient, as AdamW decouples weight decay: before each step w <- w - lr * strength * (w - w0).
    With plain SGD this is the paper's penalty strength / 2 * ||w - w0||^2. New weights, such as the head, are left
    alone; `--weight_decay` acts on them, and on the others too unless it is 0.

    Args:
        model: With its pre-trained weights, which are copied.
        strength: The paper's alpha; 0.01 to 1.
        new_modules: As `load_model` returned them.

    Raises:
        InputError: No pre-trained weight moves.

    Source: Li, Grandvalet and Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional Networks
    (2018), section 3; Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019).
    """

    def __init__(self, model: torch.nn.Module, strength: float, new_modules: Sequence[str]):  # noqa: D107
        self.strength = strength
        body = f"{model.base_model_prefix}."
        self.start = {
            parameter: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.startswith(body) and name.rpartition(".")[0] not in new_modules
        }
        if not self.start:
            raise InputError("--l2_sp: no pre-trained weight moves that it could hold; use it with --tuning full")

    @torch.no_grad()
    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):  # noqa: D102
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self.start and parameter.grad is not None:
                    parameter.lerp_(self.start[parameter], group["lr"] * self.strength)


def apply_mixout(model: torch.nn.Module, probability: float, new_modules: Sequence[str]) -> None:
    """In every training pass, let a random share of each weight matrix be the pre-trained one (mixout), in place.

    Of a matrix W with the pre-trained values U, each entry is U's with the given probability and W's otherwise, and
    the result (mixed - p * U) / (1 - p) has the expectation W. Evaluation uses W. Nothing of it is saved.

    Args:
        model: With its pre-trained weights, which are copied. Only linear layers of the body that move are mixed.
        probability: From 0 to below 1; 0.7 to 0.9 in the paper.
        new_modules: As `load_model` returned them.

    Raises:
        InputError: No pre-trained matrix moves.

    Source: Lee, Cho and Kang, Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models
    (2020), section 3.
    """
    body, mixed = f"{model.base_model_prefix}.", 0
    for name, module in model.named_modules():
        is_linear = isinstance(module, torch.nn.Linear) and name.startswith(body) and name not in new_modules
        if is_linear and module.weight.requires_grad:
            module.forward = partial(_mixout_forward, module, module.weight.detach().clone(), probability)
            mixed += 1
    if not mixed:
        raise InputError("--mixout: no pre-trained matrix moves that it could mix; use it with --tuning full")


def _mixout_forward(module, start: torch.Tensor, probability: float, hidden_states: torch.Tensor) -> torch.Tensor:
    if not module.training:
        return F.linear(hidden_states, module.weight, module.bias)
    chosen = torch.rand_like(start) < probability
    weight = (torch.where(chosen, start, module.weight) - probability * start) / (1 - probability)
    return F.linear(hidden_states, weight, module.bias)


def r_drop_loss(
    outputs,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    loss: Callable,
    strength: float,
    problem_type: str | None = None,
) -> torch.Tensor:
    """Mean loss of two passes with different dropout, plus the divergence of their predictions (R-Drop).

    Half of the paper's equation 4, so that strength 0 is the plain loss:
    (loss_1 + loss_2) / 2 + strength / 4 * (KL(p1 || p2) + KL(p2 || p1)).

    Args:
        outputs: Of a batch that holds every row twice, the second copy after the first; `logits` `[2 * batch, ...]`,
            or `[2 * items, labels]` where they were computed at the labels other than -100 only.
        labels: `[2 * batch, ...]`, doubled likewise; -100 for an item to leave out.
        num_items_in_batch: Items of the whole optimizer step, every row counted once.
        loss: The plain loss, `(outputs, labels, num_items_in_batch) -> scalar`.
        strength: The paper's alpha; 0.5 to 5.
        problem_type: `multi_label_classification` for one Bernoulli distribution per label; else one over all labels.

    Returns:
        A scalar.

    Raises:
        InputError: A regression, which has no distribution to compare.

    Source: Liang et al., R-Drop: Regularized Dropout for Neural Networks (2021), section 2.
    """
    if problem_type == REGRESSION:
        raise InputError("--r_drop: a regression predicts no distribution whose divergence could be taken")
    counted = labels.chunk(2)[0] != -100
    items = counted.sum() if num_items_in_batch is None else num_items_in_batch
    first, second = outputs.logits.float().chunk(2)
    # KL(p || q) + KL(q || p) is the sum of (p - q) * (log p - log q), which for a Bernoulli variable is the difference
    # of the probabilities times that of the logits.
    if problem_type == MULTI:
        divergence = (first.sigmoid() - second.sigmoid()) * (first - second)
    else:
        log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
        divergence = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
    if divergence.shape == counted.shape:
        divergence = divergence[counted]
    return loss(outputs, labels, num_items_in_batch=2 * items) + strength / 4 * divergence.sum() / items


@contextmanager
def watched_embeddings(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the word embeddings of the forward passes inside, which keep their gradient after a backward pass."""
    seen: list[torch.Tensor] = []

    def keep(module, args, output):
        if not output.requires_grad:  # frozen embeddings: the gradient is needed all the same
            output.requires_grad_()
        output.retain_grad()
        seen.append(output)

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def perturbed_embeddings(model: torch.nn.Module, gradient: torch.Tensor, length: float) -> Iterator[None]:
    """Shift the word embeddings of the forward passes inside by a step of the given length up the gradient.

    Args:
        model: Any with `get_input_embeddings`.
        gradient: Of the loss, `[batch, tokens, hidden]`.
        length: Euclidean length of the step of one row.

    Source: Miyato, Dai and Goodfellow, Adversarial Training Methods for Semi-Supervised Text Classification (2017),
    section 3, without their normalisation of the embeddings.
    """
    norm = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
    step = length * gradient / norm[:, None, None]
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: output + step)
    try:
        yield
    finally:
        handle.remove()
