"""Any method of PEFT by its own name: its config filled from text, its targets chosen, every mistake named."""

import dataclasses
import logging
import re
import typing
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from huggingface_hub.dataclasses import type_validator
from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
    PeftConfig,
    PeftModel,
    PeftType,
    PromptLearningConfig,
    get_peft_model,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_TARGETS
from transformers import PreTrainedModel, TrainerCallback
from transformers.pytorch_utils import Conv1D

from ptft_recipes import bottleneck  # noqa: F401 -- PEFT knows the method from then on
from ptft_recipes.architectures import sub_layers
from ptft_recipes.embeddings import restore_output_bias, trainable_tokens
from ptft_recipes.errors import InputError, nearest

logger = logging.getLogger(__name__)

PROMPT_FIELDS = {
    "token_dim": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
}
SAVED_BY_PEFT = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
NOT_YET_KNOWN = 10**9  # AdaLoRA's total_step, which its callback sets when training starts


def wrap_with_peft(
    model: PreTrainedModel, method: str, tuning_kwargs: list[str], task_type: str | None, new_modules: list[str]
) -> PeftModel:
    """Wrap the model with a method of PEFT, and run it once on four tokens to see that the two work together.

    Where PEFT has no target modules for an architecture, they are all linear layers of the body. Prediction heads are
    never targets unless `exclude_modules` says so. Where the method can train single tokens (LoRA) and the checkpoint
    has new words, their embeddings move too.

    Args:
        model: As `load_model` returned it.
        method: PEFT's name of the method, in any case.
        tuning_kwargs: `name=value` pairs, fields of the method's config.
        task_type: PEFT's name of the task; None where it has none, as for masked language modelling.
        new_modules: To train and save in full, beside what the method adds. (Beside new words, the bias of a new
            vocabulary head stays 0.)

    Raises:
        InputError: No such method or field, a value of the wrong type, or a method that does not fit the model.
    """
    config = _peft_config(method, tuning_kwargs, model, task_type, new_modules)
    try:
        model = get_peft_model(model, config)
        restore_output_bias(model)
        if not model.config.is_encoder_decoder:
            with torch.no_grad():
                model.eval()(input_ids=torch.ones((1, 4), dtype=torch.long, device=model.device))
    except Exception as error:  # PEFT's checks of the config against the model raise many kinds
        where = f"--tuning {method} on a {model.config.model_type} model"
        raise InputError(
            f"{where}: {error or type(error).__name__} (its fields: --tuning_kwargs name=value)"
        ) from error
    return model.train()


def method_names() -> dict[str, PeftType]:
    """Return the methods that PEFT knows, by the names that `--tuning` takes."""
    return {peft_type.value.lower(): peft_type for peft_type in PeftType if peft_type in PEFT_TYPE_TO_CONFIG_MAPPING}


def _peft_config(method, tuning_kwargs, model, task_type, new_modules) -> PeftConfig:
    peft_type = method_names()[method.lower()]
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    values = parse_kwargs(method, config_class, tuning_kwargs)
    fields = {f.name for f in dataclasses.fields(config_class)}
    if "target_modules" in fields:
        _choose_targets(values, peft_type, model, new_modules)
    body = f"{model.base_model_prefix}."
    if "exclude_modules" in fields and model.base_model is not model:
        # A suffix such as `dense` names layers of the body, and means none of the head.
        new = "".join(f"|{re.escape(name)}" for name in new_modules if name.startswith(body))
        values.setdefault("exclude_modules", rf"(?!{re.escape(body)}).*{new}")
    if peft_type == PeftType.ADALORA:
        values.setdefault("total_step", NOT_YET_KNOWN)
    if issubclass(config_class, PromptLearningConfig):
        if task_type is None:
            raise InputError(f"--tuning {method}: PEFT has no prompts for this task; try lora or bottleneck")
        values.setdefault("num_virtual_tokens", 20)
        if peft_type != PeftType.PREFIX_TUNING:  # these stand before the word embeddings: narrow in ALBERT and ELECTRA
            values.setdefault("token_dim", model.get_input_embeddings().weight.shape[1])
    for name, attribute in PROMPT_FIELDS.items():
        if name in fields:  # PEFT looks for GPT's names of these and does not find DistilBERT's
            values.setdefault(name, getattr(model.config, attribute))
    if "trainable_token_indices" in fields:
        values.setdefault("trainable_token_indices", trainable_tokens(model, new_modules))
    if "modules_to_save" in fields:
        new = _saved_in_full(model, new_modules, task_type, beside_tokens=bool(values.get("trainable_token_indices")))
        values["modules_to_save"] = [*(values.get("modules_to_save") or []), *new] or None
    try:
        return config_class(task_type=task_type, **values)
    except (ValueError, TypeError) as error:
        raise InputError(f"--tuning {method}: {error}") from error


def _saved_in_full(model, new_modules: list[str], task_type: str | None, beside_tokens: bool) -> list[str]:
    """Return the new modules for `modules_to_save`."""
    # What PEFT adds itself for a task must not be wrapped twice.
    new = [name for name in new_modules if name.split(".")[0] not in SAVED_BY_PEFT.get(task_type, ())]
    output = model.get_output_embeddings()
    if beside_tokens and output is not None and output.weight is model.get_input_embeddings().weight:
        # Of a shared matrix PEFT trains single rows, or all of a module that holds it, and fails at both.
        new = [name for name in new if all(module is not output for module in model.get_submodule(name).modules())]
    # Nor a module inside of one: the outer one's own parameters would be lost.
    return [name for name in new if not any(name.startswith(f"{other}.") for other in new)]


def _choose_targets(values: dict, peft_type: PeftType, model: PreTrainedModel, new_modules: list[str]) -> None:
    """Set `target_modules` where the user did not and PEFT could not, in place."""
    model_type, wanted = model.config.model_type, values.get("target_modules")
    known = getattr(PEFT_TYPE_TO_TUNER_MAPPING.get(peft_type), "target_module_mapping", None)
    if peft_type == PeftType.LN_TUNING:
        values.setdefault("target_modules", _in_body(model, lambda m: type(m).__name__.endswith("Norm"), new_modules))
    elif peft_type == PeftType.IA3 and wanted is None and model_type not in IA3_TARGETS:
        layers = sub_layers(model_type)
        values["target_modules"] = layers.pattern(layers.key, layers.value, layers.feed_forward_output)
        values.setdefault("feedforward_modules", layers.pattern(layers.feed_forward_output))
    elif wanted == "all-linear" or (wanted is None and known and model_type not in known):
        values["target_modules"] = _in_body(model, lambda m: isinstance(m, torch.nn.Linear | Conv1D), new_modules)


def _in_body(model: PreTrainedModel, chosen, new_modules: list[str]) -> list[str]:
    """Return the names of the chosen modules of the body, without those that are new."""
    body = "" if model.base_model is model else f"{model.base_model_prefix}."
    head = model.get_output_embeddings()  # T5 has no body of its own: its head stands beside the stacks
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(body) and chosen(module) and name not in new_modules and (body or module is not head)
    ]


class AdaLoraCallback(TrainerCallback):
    """What AdaLoRA needs in every step, and `Trainer` does not do: its orthogonality penalty and its rank budget.

    PEFT adds the penalty to a loss that the model itself computes; the recipes' losses are computed outside of it, so
    here its gradient is added once per optimizer step, after clipping. What is saved keeps `init_r` ranks, those over
    the budget being zero.

    Source: Zhang et al., Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (2023), equation 4 and
    algorithm 1.
    """

    rank_pattern: dict | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):  # noqa: D102
        tuner = model.base_model
        config = tuner.peft_config[tuner.trainable_adapter_name]
        if config.total_step == NOT_YET_KNOWN:
            config.total_step = state.max_steps
        if config.tinit >= config.total_step - config.tfinal:
            raise InputError(
                f"--tuning adalora: tinit {config.tinit} and tfinal {config.tfinal} leave none of the "
                f"{config.total_step} steps to share out ranks in"
            )
        tuner.rankallocator.set_total_step(config.total_step)
        if state.global_step:
            logger.warning(
                "adalora: importance scores are not in a checkpoint; the ranks may end otherwise than without the stop"
            )

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):  # noqa: D102
        tuner = model.base_model
        moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
        down = [p for name, p in moving.items() if "lora_A" in name]
        up = [p for name, p in moving.items() if "lora_B" in name]
        products = [*(p @ p.T for p in down), *(p.T @ p for p in up)]
        penalty = sum(torch.linalg.norm(product - torch.eye(len(product)).to(product)) for product in products)
        weight = tuner.peft_config[tuner.trainable_adapter_name].orth_reg_weight / len(products)
        gradients = torch.autograd.grad(weight * penalty, [*down, *up])
        for factor, gradient in zip([*down, *up], gradients, strict=True):
            factor.grad.add_(gradient)

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):  # noqa: D102
        tuner = model.base_model
        config = tuner.peft_config[tuner.trainable_adapter_name]
        config.rank_pattern = self.rank_pattern
        tuner.update_and_allocate(state.global_step + 1)
        # PEFT would cut the saved matrices to this pattern, and load the best epoch's with the last one's pattern.
        self.rank_pattern, config.rank_pattern = config.rank_pattern, None


def parse_kwargs(
    method: str, config_class: type, pairs: Sequence[str], option: str = "--tuning_kwargs"
) -> dict[str, Any]:
    """Parse `name=value` pairs into the fields of a configuration, checked by name and type.

    Args:
        method: For the error.
        config_class: A dataclass; what it inherits from `PeftConfig` is not to be set by hand.
        pairs: `name=value`, values in YAML.
        option: By which they were given, for the error.

    Raises:
        InputError: No such field, or a value of another type.
    """
    inherited = {f.name for f in dataclasses.fields(PeftConfig)}
    settable = {f.name for f in dataclasses.fields(config_class) if f.init} - inherited
    types = typing.get_type_hints(config_class)
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"{option} {pair}: expected name=value")
        if name not in settable:
            there = ", ".join(sorted(settable))
            raise InputError(f"{option} {name}: {method} has no such field{nearest(name, settable)} ({there})")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            raise InputError(f"{option} {pair:.80}: {getattr(error, 'problem', error)}") from None
        if isinstance(value, str) and _is_float(value):
            value = float(value)  # YAML reads 1e-3 as text
        elif type(value) is int and takes(types[name], float) and not takes(types[name], int):
            value = float(value)
        try:
            type_validator(name, value, types[name])
        except TypeError:
            raise InputError(f"{option} {pair}: {name} must be {type_name(types[name])}") from None
        values[name] = value
    return values


def takes(hint, kind: type) -> bool:
    """Tell whether a type hint allows values of this type."""
    return kind is hint or kind in typing.get_args(hint)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def type_name(hint) -> str:
    """Return what a type hint allows, for an error."""
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
