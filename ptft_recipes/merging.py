"""Fold an adapter into its base model, and average models of one base."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers import AutoConfig, PreTrainedModel

from ptft_recipes.errors import InputError


def check_mergeable(model: PreTrainedModel | PeftModel) -> None:
    """Raise an InputError unless the model has an adapter that folds into the weights of its base."""
    if not isinstance(model, PeftModel):
        raise InputError("there is no adapter to merge: the model is a plain one")
    if getattr(model.get_base_model(), "is_quantized", False):
        raise InputError(
            "merging rounds the adapter to the quantised weights; load its base in full precision to merge"
        )
    method = model.active_peft_config.peft_type.value.lower()
    if not hasattr(model.base_model, "merge_and_unload"):
        raise InputError(f"{method} adds inputs, not weights: it cannot be merged into the base model")
    try:
        model.base_model._check_merge_allowed()
    except ValueError as error:
        raise InputError(f"{method}: {error}") from error


def fold_adapter(model: PeftModel) -> PreTrainedModel:
    """Return the plain model that computes what the base computes with its adapter; the adapter is used up.

    Args:
        model: With one active adapter.

    Raises:
        InputError: A method whose function is no change of weights, such as prompts or bottleneck adapters.
    """
    check_mergeable(model)
    # PEFT stumbles over heads of several layers for some methods, and leaves the wrapper in place for others, so that
    # the head would be lost on loading: unwrap what was trained in full before it merges.
    base = model.get_base_model()
    for name, module in [*base.named_modules()]:
        if isinstance(module, ModulesToSaveWrapper):
            base.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    return model.merge_and_unload()


def fold_if_mergeable(model: PeftModel, alone: bool) -> PreTrainedModel | PeftModel:
    """Return the folded model, or the model as it is when its adapter is no change of weights.

    Args:
        model: With one active adapter.
        alone: There is nothing to average it with, so that it must fold.

    Raises:
        InputError: It must fold and cannot.
    """
    try:
        return fold_adapter(model)
    except InputError:
        if alone:
            raise
        return model


def check_adapters(folders: Sequence[str], base_model: str, label_names: Sequence[str]) -> None:
    """Raise an InputError unless these folders hold adapters of one method, of this base, with these labels."""
    if not folders:
        raise InputError("--adapters: give one folder with an adapter, or more")
    methods = {}
    for folder in folders:
        if not (Path(folder) / "adapter_config.json").exists():
            raise InputError(f"--adapters {folder}: the folder has no adapter_config.json")
        config = PeftConfig.from_pretrained(folder)
        if config.base_model_name_or_path != base_model:
            found = config.base_model_name_or_path
            raise InputError(f"--adapters {folder}: its base is {found}, not {base_model}; see --model_name_or_path")
        methods[config.peft_type.value.lower()] = folder
        labels = [*AutoConfig.from_pretrained(folder, trust_remote_code=False).id2label.values()]
        if labels != [*label_names]:
            raise InputError(f"--adapters {folder}: it predicts {', '.join(labels)}, not {', '.join(label_names)}")
    if len(methods) > 1:
        listed = ", ".join(f"{method} ({folder})" for method, folder in methods.items())
        raise InputError(f"--adapters: they are of several methods: {listed}")


def average_weights(models: Iterable[torch.nn.Module]) -> torch.nn.Module:
    """Set the first model's weights to the mean of all, computed in float64, and return it, frozen.

    Args:
        models: Of one architecture, taken one at a time.

    Raises:
        InputError: Their weights do not have the same names and shapes.

    Source: Wortsman et al., Model Soups (2022), section 2 (the uniform soup); Chronopoulou et al., AdapterSoup (2023),
    for adapters that stay adapters.
    """
    models = iter(models)
    average = next(models)
    totals = {name: parameter.detach().double() for name, parameter in average.named_parameters()}
    count = 1
    for count, model in enumerate(models, start=2):
        weights = dict(model.named_parameters())
        if differing := [name for name in {**totals, **weights} if not _alike(totals.get(name), weights.get(name))]:
            raise InputError(f"model {count} and the first are not of one kind: {differing[0]} differs")
        for name, total in totals.items():
            total += weights[name].detach().double()
    with torch.no_grad():
        for name, parameter in average.named_parameters():
            parameter.copy_(totals[name] / count)
    return average.requires_grad_(False)


def _alike(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape
