"""Which weights move: all, the head, the biases, or what a PEFT method adds."""

import dataclasses
import logging
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub.dataclasses import type_validator
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import PreTrainedModel

from ptft_recipes.errors import InputError, nearest

logger = logging.getLogger(__name__)

PROMPT_FIELDS = {
    "token_dim": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
}
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
    layer_wise_decay: float = field(
        default=1.0,
        metadata={"help": "factor per layer by which the learning rate falls from the head down, e.g. 0.8"},
    )


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
            et al., 2022); any PEFT method by PEFT's own name; a folder goes on with the adapter that it holds.
        task_type: PEFT's name of the task, e.g. `SEQ_CLS`; None where it has none.
        new_modules: As `load_model` returned them.

    Raises:
        InputError: An unknown method, or a field that the method's config does not have or not with this type.
    """
    method = tuning_args.tuning
    if not 0 < tuning_args.layer_wise_decay <= 1:
        raise InputError(f"--layer_wise_decay {tuning_args.layer_wise_decay}: must be above 0 and at most 1")
    if method != "full" and {name.rpartition(".")[0] for name, _ in model.named_parameters()} <= {*new_modules}:
        raise InputError(f"--tuning {method}: all weights of this model are new; only --tuning full can train them")
    if method in PLAIN_METHODS:
        if tuning_args.tuning_kwargs:
            raise InputError(f"--tuning {method} takes no --tuning_kwargs")
        _freeze(model, method, new_modules)
    elif Path(method).is_dir():
        if tuning_args.tuning_kwargs:
            raise InputError(f"--tuning_kwargs: the adapter in {method} brings its own configuration")
        model = _load_adapter(model, method)
    else:
        config = _peft_config(method, tuning_args.tuning_kwargs, model, task_type, new_modules)
        try:
            model = get_peft_model(model, config)
        except (ValueError, TypeError, AttributeError) as error:  # PEFT's checks of the config against the model
            where = f"--tuning {method} on a {model.config.model_type} model"
            raise InputError(f"{where}: {error}; set it with --tuning_kwargs name=value") from error
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


def _freeze(model: PreTrainedModel, method: str, new_modules: list[str]) -> None:
    if method == "full":
        return
    body = f"{model.base_model_prefix}."
    biases = 0
    for name, parameter in model.named_parameters():
        is_bias = name.rpartition(".")[2] == "bias"
        biases += is_bias and name.startswith(body)
        head_or_new = not name.startswith(body) or name.rpartition(".")[0] in new_modules
        parameter.requires_grad = head_or_new or (method == "bitfit" and is_bias)
    if method == "bitfit" and not biases:
        raise InputError(f"--tuning bitfit: a {model.config.model_type} body has no biases; try lora")


def _load_adapter(model: PreTrainedModel, folder: str) -> PeftModel:
    if not (Path(folder) / "adapter_config.json").exists():
        raise InputError(f"--tuning {folder}: the folder has no adapter_config.json")
    try:
        return PeftModel.from_pretrained(model, folder, is_trainable=True)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--tuning {folder}: the adapter does not fit this model: {reason[:400]}") from error


def _peft_config(method, tuning_kwargs, model, task_type, new_modules) -> PeftConfig:
    methods = {
        peft_type.value.lower(): peft_type for peft_type in PeftType if peft_type in PEFT_TYPE_TO_CONFIG_MAPPING
    }
    if method.lower() not in methods:
        known = [*PLAIN_METHODS, *sorted(methods)]
        raise InputError(
            f"--tuning {method}: no such method or folder{nearest(method.lower(), known)} ({', '.join(known)})"
        )
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[methods[method.lower()]]
    values = _parse_kwargs(method, config_class, tuning_kwargs)
    fields = {f.name for f in dataclasses.fields(config_class)}
    if method.lower() == "ln_tuning":
        norms = [name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")]
        values.setdefault("target_modules", [name for name in norms if name.startswith(f"{model.base_model_prefix}.")])
    elif (
        "target_modules" in fields
        and model.config.model_type not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    ):
        values.setdefault("target_modules", "all-linear")
    for name, attribute in PROMPT_FIELDS.items():
        if name in fields:  # PEFT looks for GPT's names of these and does not find DistilBERT's
            values.setdefault(name, getattr(model.config, attribute))
    if "modules_to_save" in fields:
        # PEFT adds these two itself for sequence classification; a module inside one must not be wrapped twice.
        automatic = ("classifier", "score") if task_type == "SEQ_CLS" else ()
        new = [name for name in new_modules if name.split(".")[0] not in automatic]
        values["modules_to_save"] = [*(values.get("modules_to_save") or []), *new] or None
        if values.get("target_modules") == "all-linear" and "exclude_modules" in fields and new:
            values.setdefault("exclude_modules", new)
    try:
        return config_class(task_type=task_type, **values)
    except (ValueError, TypeError) as error:
        raise InputError(f"--tuning {method}: {error}") from error


def _parse_kwargs(method: str, config_class: type, tuning_kwargs: list[str]) -> dict:
    """Parse `name=value` pairs into the fields of a PEFT config, checked by name and type."""
    inherited = {f.name for f in dataclasses.fields(PeftConfig)}
    settable = {f.name for f in dataclasses.fields(config_class) if f.init} - inherited
    types = typing.get_type_hints(config_class)
    values = {}
    for pair in tuning_kwargs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--tuning_kwargs {pair}: expected name=value")
        if name not in settable:
            there = ", ".join(sorted(settable))
            raise InputError(f"--tuning_kwargs {name}: {method} has no such field{nearest(name, settable)} ({there})")
        value = yaml.safe_load(text)
        if isinstance(value, str) and _is_float(value):
            value = float(value)  # YAML reads 1e-3 as text
        elif isinstance(value, int) and not isinstance(value, bool) and types[name] is float:
            value = float(value)
        try:
            type_validator(name, value, types[name])
        except TypeError:
            raise InputError(f"--tuning_kwargs {pair}: {name} must be {_type_name(types[name])}") from None
        values[name] = value
    return values


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _type_name(hint) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
