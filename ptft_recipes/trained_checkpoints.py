"""A trained checkpoint or adapter as a stranger finds it: its task, its labels, its weights."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from ptft_recipes import demo
from ptft_recipes.errors import InputError, one_line
from ptft_recipes.labels import REGRESSION, SINGLE
from ptft_recipes.modeling import ModelArguments, from_pretrained, load_model, pretrained_source
from ptft_recipes.saved_adapters import load_adapter

# By what the name of the architecture ends in: the Auto class, PEFT's name of the task, the Hub's.
TASKS = {
    "ForSequenceClassification": (AutoModelForSequenceClassification, "SEQ_CLS", "text-classification"),
    "ForTokenClassification": (AutoModelForTokenClassification, "TOKEN_CLS", "token-classification"),
    "ForMaskedLM": (AutoModelForMaskedLM, None, "fill-mask"),
}
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class TrainedCheckpoint:
    """What `read_checkpoint` found."""

    auto_class: type
    task: str  # the Hub's name
    label_names: list[str]
    problem_type: str | None
    model_args: ModelArguments  # of the plain model, or of the base of the adapter
    adapter: str | None  # its folder


def recorded_options(argv: Sequence[str], default: str, dataclass_type: type) -> dict[str, Any]:
    """Return the data options of the run that trained a checkpoint, from the `config.yaml` in its folder.

    Args:
        argv: The command line, which names the checkpoint.
        default: The checkpoint where it does not.
        dataclass_type: Whose fields are taken.

    Returns:
        Options as text, for the parser to check; empty for a checkpoint without such a file.

    Raises:
        InputError: The file cannot be read.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model_name_or_path", default=default)
    path = Path(parser.parse_known_args(argv)[0].model_name_or_path, "config.yaml")
    if not os.path.isfile(path):
        return {}
    try:
        # The node tree keeps every scalar as it was written, and makes no objects.
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    names = {field.name for field in dataclasses.fields(dataclass_type)}
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return {
        key.value: value.value if isinstance(value, yaml.ScalarNode) else [item.value for item in value.value]
        for key, value in pairs
        if key.value in names and isinstance(value, yaml.ScalarNode | yaml.SequenceNode)
    }


def read_checkpoint(model_args: ModelArguments) -> TrainedCheckpoint:
    """Find out what a checkpoint is, without its weights.

    Args:
        model_args: A folder or Hub id of a model, or of an adapter, whose base its configuration names.

    Raises:
        InputError: There is no such model, or its task is none that is evaluated here.
    """
    name, revision = model_args.model_name_or_path, model_args.model_revision
    source = pretrained_source(model_args)["pretrained_model_name_or_path"]
    if os.path.isdir(source) and not any(
        (Path(source) / file).exists() for file in ("config.json", "adapter_config.json")
    ):
        inside = sorted(path.name for path in Path(source).glob("checkpoint-*"))
        hint = f"; it has {inside[-1]}, a checkpoint of a run that was not finished" if inside else ""
        raise InputError(f"{name}: the folder has no config.json and no adapter_config.json{hint}")
    adapter = base = None
    try:
        if find_adapter_config_file(source, revision=revision):
            adapter = source
            if not os.path.isdir(source):
                adapter = snapshot_download(name, revision=revision, allow_patterns=ADAPTER_FILES)
    except (OSError, ValueError) as error:  # the client's errors are of these kinds
        raise InputError(f"{name} is no folder here, and the Hub did not give it: {one_line(error)}") from error
    if adapter:
        if not (Path(adapter) / "config.json").exists():
            raise InputError(f"{name}: beside the adapter there is no config.json, which would name its labels")
        peft_config = PeftConfig.from_pretrained(adapter)
        base = demo.installed_name(peft_config.base_model_name_or_path)
        ending = next((end for end, (_, peft_task, _) in TASKS.items() if peft_task == peft_config.task_type), None)
        described = f"a task of type {peft_config.task_type}"
    config = from_pretrained(AutoConfig, replace(model_args, model_name_or_path=adapter or name))
    if adapter is None:
        architecture = (getattr(config, "architectures", None) or ["no task"])[0]
        ending = next((end for end in TASKS if architecture.endswith(end)), None)
        described = architecture
    if ending is None:
        known = ", ".join(f"...{end}" for end in TASKS)
        raise InputError(f"{name} is a checkpoint for {described}; what can be evaluated here: {known}")
    auto_class, _, task = TASKS[ending]
    labels = [config.id2label[i] for i in sorted(config.id2label)]
    problem_type = config.problem_type or (REGRESSION if len(labels) == 1 else SINGLE)
    return TrainedCheckpoint(
        auto_class=auto_class,
        task=task,
        label_names=[] if task == "fill-mask" else labels,
        problem_type=problem_type if task == "text-classification" else None,
        model_args=replace(model_args, model_name_or_path=base) if adapter else model_args,
        adapter=adapter,
    )


def load_checkpoint(checkpoint: TrainedCheckpoint, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | PeftModel:
    """Load the weights by plain `from_pretrained`, and the adapter by `PeftModel.from_pretrained`.

    Args:
        checkpoint: As `read_checkpoint` returned it.
        tokenizer: That was saved with it.

    Raises:
        InputError: Weights are missing, or do not fit.
    """
    kwargs: dict[str, Any] = {"label_names": checkpoint.label_names} if checkpoint.label_names else {}
    if checkpoint.problem_type:
        kwargs["problem_type"] = checkpoint.problem_type
    model, new_modules = load_model(checkpoint.auto_class, checkpoint.model_args, tokenizer, **kwargs)
    if checkpoint.adapter:
        return load_adapter(model, checkpoint.adapter, new_modules)
    if new_modules:
        raise InputError(
            f"{checkpoint.model_args.model_name_or_path} lacks the weights of {', '.join(new_modules)}: they would be "
            "random, and so would the scores"
        )
    return model
