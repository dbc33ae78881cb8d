"""An adapter from its folder: nothing is loaded that does not fit the model to the last weight."""

import copy
import dataclasses
import itertools
import os
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import type_validator
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from ptft_recipes.adapters import method_names, takes, type_name
from ptft_recipes.embeddings import restore_output_bias
from ptft_recipes.errors import InputError, nearest, one_line
from ptft_recipes.safe_files import check_file, parse_json

# Fields of an adapter_config.json by which PEFT would import a module or open files outside of the adapter's folder.
REACH_OUTSIDE = ("megatron_config", "prompt_tuning_init_state_dict_path", "adapters")


def load_adapter(model: PreTrainedModel, folder: str, new_modules: Sequence[str] = ()) -> PeftModel:
    """Wrap the model with a saved adapter that goes on moving.

    PEFT takes what it finds: weights that the file lacks stay random, those that the model lacks are dropped, and a
    rank of a billion is allocated before its shape is compared. Here the adapter is compared first, on a copy of the
    model without numbers.

    Args:
        model: As `load_model` returned it.
        folder: With `adapter_config.json` and `adapter_model.safetensors`.
        new_modules: As `load_model` returned them: the adapter must bring them, since nothing else does.

    Raises:
        InputError: The folder has no adapter, a damaged one, or one of another model.
    """
    _check_config(folder)
    shapes = _read_shapes(folder)
    try:
        if not getattr(model, "is_quantized", False):  # packed weights cannot be copied without their numbers
            _compare(_wrap_without_numbers(model, folder), shapes)
        wrapped = PeftModel.from_pretrained(model, folder, is_trainable=True)
        _compare(wrapped, shapes)
    except Exception as error:  # PEFT's checks of the config against the model raise many kinds
        reason = one_line(error) or type(error).__name__
        raise InputError(f"--tuning {folder}: the adapter does not fit this model: {reason}") from error
    for name, weight in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items():
        if not torch.isfinite(weight).all():
            raise InputError(f"--tuning {folder}: {name} holds values that are not finite; the adapter is damaged")
    moving = [
        name.replace(".modules_to_save.default", "") for name, p in wrapped.named_parameters() if p.requires_grad
    ]
    for module in _untied(model, new_modules):
        if not any(f".{module}." in f".{name}" for name in moving):
            raise InputError(f"--tuning {folder}: {module} is new in this model, and the adapter does not bring it")
    restore_output_bias(wrapped)
    return wrapped


def _check_config(folder: str) -> None:
    """Check `adapter_config.json` by name and type: PEFT drops what it does not know."""
    path = Path(folder) / "adapter_config.json"
    if not os.path.lexists(path):
        raise InputError(f"--tuning {folder}: the folder has no adapter_config.json")
    check_file(path)
    try:
        values = parse_json(path.read_text(encoding="utf-8"), path, finite=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    method = str(values.get("peft_type")).lower() if isinstance(values, dict) else ""
    if method not in (known := method_names()):
        hint = nearest(method, known)
        raise InputError(f"{path}: peft_type must be a method of the installed PEFT, not {method.upper()!r:.60}{hint}")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[known[method]]
    hints = typing.get_type_hints(config_class)
    fields = {field.name for field in dataclasses.fields(config_class)}
    for name, value in values.items():
        # A newer PEFT may add fields; what is off there is nothing to lose.
        if name not in fields and value:
            raise InputError(
                f"{path}: {method} has no field {name!r:.60} in the installed PEFT{nearest(name, fields)}"
            )
        if name in REACH_OUTSIDE and value:
            raise InputError(f"{path} sets {name}, which leads outside of the folder")
        if name in fields and not _has_type(name, value, hints[name]):
            raise InputError(f"{path}: {name} must be {type_name(hints[name]):.200}")


def _has_type(name: str, value: Any, hint) -> bool:
    if isinstance(value, bool) and not takes(hint, bool) and hint is not typing.Any:
        return False  # to Python a number
    try:
        type_validator(name, int(value) if isinstance(value, float) and takes(hint, int) else value, hint)
    except TypeError:
        return False
    return True


def _read_shapes(folder: str) -> dict[str, list[int]]:
    path = Path(folder) / "adapter_model.safetensors"
    if not os.path.lexists(path):
        raise InputError(f"--tuning {folder}: the folder has no adapter_model.safetensors; other formats are not read")
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged: {one_line(error)}") from None


def _wrap_without_numbers(model: PreTrainedModel, folder: str) -> PeftModel | None:
    """Wrap a copy of the model that takes no memory; None for a method that computes with the weights at once."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    empty = {
        id(t): torch.nn.Parameter(t.to("meta"), requires_grad=False)
        if isinstance(t, torch.nn.Parameter)
        else t.to("meta")
        for t in tensors
    }
    try:
        config = PeftConfig.from_pretrained(folder)
        config.base_model_name_or_path = None  # PEFT would warn that it is another
        with torch.device("meta"):  # PEFT's low_cpu_mem_usage allocates each matrix before it lets go of it
            return get_peft_model(copy.deepcopy(model, memo=empty), config, low_cpu_mem_usage=True)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        return None


def _compare(wrapped: PeftModel | None, shapes: dict[str, list[int]]) -> None:
    """Raise a ValueError unless the file holds what the wrapped model saves, and nothing without a place in it."""
    if wrapped is None:
        return
    own = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    places = wrapped.state_dict() | own  # embeddings may have been saved beside the adapter
    for name in own:
        if name not in shapes:
            raise ValueError(f"its file lacks {name}")
    for name, shape in shapes.items():
        if name not in places:
            raise ValueError(f"the model has no place for {name}")
        if list(places[name].shape) != shape:
            raise ValueError(f"{name} has the shape {shape}, where the model has {list(places[name].shape)}")


def _untied(model: PreTrainedModel, new_modules: Sequence[str]) -> list[str]:
    """Return the new modules, without those that hold, or are part of, the output embeddings, which may be shared."""
    output = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if output is not None and module is output]
    return [
        new
        for new in new_modules
        if not any(f"{a}.".startswith(f"{b}.") for n in names for a, b in ((new, n), (n, new)))
    ]
