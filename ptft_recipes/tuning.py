"""Which weights move: all, the head, the biases, or what a PEFT method adds."""

import logging
import os
from dataclasses import dataclass, field

from peft import PeftModel, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from ptft_recipes.adapters import method_names, parse_kwargs, wrap_with_peft
from ptft_recipes.errors import InputError, nearest
from ptft_recipes.merging import check_mergeable
from ptft_recipes.optimization import freeze_layers
from ptft_recipes.saved_adapters import load_adapter

logger = logging.getLogger(__name__)

PLAIN_METHODS = ("full", "linear_probe", "bitfit")


@dataclass
class TuningArguments:
    """Which weights move."""

    _argument_group_name = "tuning"

    tuning: str = field(
        default="full",
        metadata={"help": "full, linear_probe, bitfit, a PEFT method (lora, ia3, ...), or a folder with an adapter"},
    )
    tuning_kwargs: list[str] = field(
        default_factory=list, metadata={"help": "fields of the PEFT method's config: r=16 lora_alpha=32 ..."}
    )
    merge_adapter: bool = field(
        default=False, metadata={"help": "save the adapter folded into the model: a plain checkpoint"}
    )
    freeze_layers: int | None = field(
        default=None, metadata={"help": "0 freezes the embeddings; n the embeddings and the first n layers"}
    )
    gradual_unfreezing: float = field(
        default=0.0, metadata={"help": "epochs after which one more layer moves, from the top (ULMFiT), e.g. 0.5"}
    )
    layer_wise_decay: float = field(
        default=1.0,
        metadata={"help": "factor per layer by which the learning rate falls from the head down, e.g. 0.8"},
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "of what is above the body; learning_rate when not given"}
    )
    l2_sp: float = field(
        default=0.0, metadata={"help": "weight decay towards the pre-trained weights (L2-SP), e.g. 0.1"}
    )
    mixout: float = field(
        default=0.0,
        metadata={"help": "share of each matrix that training takes from the checkpoint (mixout), e.g. 0.7"},
    )
    r_drop: float = field(
        default=0.0, metadata={"help": "weight of the divergence of two dropout passes (R-Drop), e.g. 1"}
    )
    fgm: float = field(
        default=0.0, metadata={"help": "length of an adversarial step in the word embeddings (FGM), e.g. 1"}
    )

    def __post_init__(self):  # noqa: D105
        if not 0 < self.layer_wise_decay <= 1:
            raise InputError(f"--layer_wise_decay {self.layer_wise_decay}: must be above 0 and at most 1")
        for name in ("freeze_layers", "gradual_unfreezing", "l2_sp", "r_drop", "fgm"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"--{name} {getattr(self, name)}: must not be negative")
        if not 0 <= self.mixout < 1:
            raise InputError(f"--mixout {self.mixout}: must be at least 0 and below 1")


@dataclass
class PartialConfig:
    """What `--tuning_kwargs` may say to `linear_probe` and `bitfit`; the name is PEFT's."""

    modules_to_save: list[str] | None = None


def apply_tuning(
    model: PreTrainedModel,
    tuning_args: TuningArguments,
    task_type: str | None,
    new_modules: list[str],
) -> PreTrainedModel | PeftModel:
    """Freeze, or wrap, the model so that only the weights of the chosen method move.

    Whatever the checkpoint did not bring (`new_modules`) is trained and saved under every method, so that a reload
    gives the same predictions.

    Args:
        model: As `load_model` returned it.
        tuning_args: `full` moves everything; `linear_probe` the task head; `bitfit` the head and every bias (Ben Zaken
            et al., 2022); any PEFT method by PEFT's own name; a folder goes on with the adapter that it holds. The
            field `modules_to_save` names modules that move as a whole under any of them, such as a pooler.
        task_type: PEFT's name of the task, e.g. `SEQ_CLS`; None where it has none.
        new_modules: As `load_model` returned them.

    Raises:
        InputError: An unknown method, a field that the method's config does not have or not with this type, a method
            that does not fit the model, or options that do not go together.
    """
    method = tuning_args.tuning
    if method != "full" and {name.rpartition(".")[0] for name, _ in model.named_parameters()} <= {*new_modules}:
        raise InputError(f"--tuning {method}: all weights of this model are new; only --tuning full can train them")
    if getattr(model, "is_quantized", False):
        if method in ("full", "bitfit"):
            raise InputError(f"--tuning {method}: quantised weights cannot move; use lora, or another adapter")
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if method in PLAIN_METHODS:
        _freeze(model, tuning_args, new_modules)
    elif os.path.isdir(method):  # Path.is_dir raises where a name is too long
        if tuning_args.tuning_kwargs:
            raise InputError(f"--tuning_kwargs: the adapter in {method} brings its own configuration")
        model = load_adapter(model, method, new_modules)
    elif method.lower() in (known := method_names()):
        model = wrap_with_peft(model, method, tuning_args.tuning_kwargs, task_type, new_modules)
    else:
        names = [*PLAIN_METHODS, *sorted(known)]
        raise InputError(
            f"--tuning {method}: no such method or folder{nearest(method.lower(), names)} ({', '.join(names)})"
        )
    if tuning_args.merge_adapter:
        check_mergeable(model)
    if tuning_args.freeze_layers is not None:
        freeze_layers(model, tuning_args.freeze_layers)
    trainable, total = count_parameters(model)
    if trainable == 0:
        raise InputError(f"--tuning {method} leaves no weight to train in this model")
    logger.info(
        "tuning: %s, %s of %s weights move (%.2f %%)", method, f"{trainable:,}", f"{total:,}", 100 * trainable / total
    )
    return model


def count_parameters(model) -> tuple[int, int]:
    """Return how many weights move, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, moves in sizes if moves), sum(size for size, _ in sizes)


def _freeze(model: PreTrainedModel, tuning_args: TuningArguments, new_modules: list[str]) -> None:
    method = tuning_args.tuning
    if method == "full":
        if tuning_args.tuning_kwargs:
            raise InputError("--tuning full takes no --tuning_kwargs")
        return
    also = parse_kwargs(method, PartialConfig, tuning_args.tuning_kwargs).get("modules_to_save") or []
    names = [name for name, _ in model.named_parameters()]
    for module in also:
        if not any(f".{module}." in f".{name}" for name in names):
            raise InputError(f"--tuning_kwargs modules_to_save: the model has no module {module!r}")
    if method == "linear_probe" and model.config.is_encoder_decoder and not also:
        raise InputError("--tuning linear_probe: an encoder-decoder has no head of its own to train; try lora")
    body = "" if model.base_model is model else f"{model.base_model_prefix}."  # T5 is its own
    biases = 0
    for name, parameter in model.named_parameters():
        is_bias = name.rpartition(".")[2] == "bias"
        biases += is_bias and name.startswith(body)
        head_or_new = not name.startswith(body) or name.rpartition(".")[0] in new_modules
        wanted = any(f".{module}." in f".{name}" for module in also)
        parameter.requires_grad = head_or_new or wanted or (method == "bitfit" and is_bias)
    if method == "bitfit" and not biases:
        raise InputError(f"--tuning bitfit: a {model.config.model_type} body has no biases; try lora")
