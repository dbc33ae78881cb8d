"""A trained checkpoint or adapter as a stranger finds it: its task, its labels, its weights."""

import argparse
import dataclasses
import json
import os
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    EvalPrediction,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from ptft_recipes import demo
from ptft_recipes.errors import InputError, nearest, one_line
from ptft_recipes.labels import REGRESSION, SINGLE
from ptft_recipes.modeling import ModelArguments, from_pretrained, load_model, pretrained_source
from ptft_recipes.saved_adapters import load_adapter

# By what the name of the architecture ends in: the Auto class, PEFT's name of the task, the Hub's.
TASKS = {
    "ForSequenceClassification": (AutoModelForSequenceClassification, "SEQ_CLS", "text-classification"),
    "ForTokenClassification": (AutoModelForTokenClassification, "TOKEN_CLS", "token-classification"),
    "ForMaskedLM": (AutoModelForMaskedLM, None, "fill-mask"),
    "ForQuestionAnswering": (AutoModelForQuestionAnswering, "QUESTION_ANS", "question-answering"),
    "ForConditionalGeneration": (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM", "text2text-generation"),
    "MTModel": (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM", "text2text-generation"),  # Marian's
    "ForCausalLM": (AutoModelForCausalLM, "CAUSAL_LM", "text-generation"),
    "LMHeadModel": (AutoModelForCausalLM, "CAUSAL_LM", "text-generation"),  # GPT-2's
}
HAS_LABELS = ("text-classification", "token-classification")
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


# What is here by one name for all tasks, and what a run calls it.
OPTIONS = {
    "text_column": ("question_column", "source_column", "prompt_column"),
    "text_pair_column": ("context_column",),
    "label_column": ("answers_column", "target_column", "completion_column"),
    "max_length": ("max_source_length",),
}


@dataclass(frozen=True)
class TaskSettings:
    """How texts were made and read, by the names and with the defaults of the recipes that trained on them."""

    task: Literal["translation", "summarization"] = "translation"
    source_prefix: str = ""
    source_lang: str | None = None
    target_lang: str | None = None
    max_target_length: int = 128
    messages_column: str | None = None
    use_chat_template: bool = True
    max_new_tokens: int = 64
    n_best: int = 20


@dataclass(frozen=True)
class TrainedCheckpoint:
    """What `read_checkpoint` found."""

    auto_class: type
    task: str  # the Hub's name
    label_names: list[str]
    problem_type: str | None
    model_args: ModelArguments  # of the plain model, or of the base of the adapter
    adapter: str | None  # its folder
    settings: TaskSettings = TaskSettings()
    question_answering: dict[str, Any] = field(default_factory=dict)  # as the run kept it in the model's config


@dataclass(frozen=True)
class Predicted:
    """What a checkpoint predicts of a split.

    Args:
        prediction: What `metrics` scores, `[rows, ...]` in the order of the data: logits and labels, or counts per
            row. Without labels `label_ids` is None.
        metrics: `metrics(prediction, weights=None)`.
        lines: Of the file of predictions.
        lengths: `[rows]`, tokens (words, where tags are predicted) that the model reads.
        seconds: That predicting took.
        groups: `[rows]`, what belongs together and is resampled as one, unless a column says it; None if nothing does.
    """

    prediction: EvalPrediction
    metrics: Callable[..., dict[str, float]]
    lines: list[dict[str, Any]]
    lengths: list[int]
    seconds: float
    groups: list[int] | None = None


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
    recorded = _recorded(parser.parse_known_args(argv)[0].model_name_or_path)
    recorded |= {name: recorded[theirs] for name, names in OPTIONS.items() for theirs in names if theirs in recorded}
    names = {field.name for field in dataclasses.fields(dataclass_type)}
    return {name: value for name, value in recorded.items() if name in names}


def _recorded(folder: str) -> dict[str, Any]:
    """Return all options of the run in a folder, as text; nothing for one without the `config.yaml` of a run."""
    path = Path(folder, "config.yaml")
    if not os.path.isfile(path):
        return {}
    try:
        # The node tree keeps every scalar as it was written, and makes no objects.
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return {
        key.value: value.value if isinstance(value, yaml.ScalarNode) else [item.value for item in value.value]
        for key, value in pairs
        if isinstance(value, yaml.ScalarNode | yaml.SequenceNode)
    }


def read_settings(pairs: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Return what texts say of `TaskSettings`, with the types of its fields.

    Args:
        pairs: Names and values.
        where: They stand, for the error.

    Raises:
        InputError: There is no such setting, or it cannot have that value.
    """
    hints, found = typing.get_type_hints(TaskSettings), {}
    for name, text in pairs:
        if name not in hints:
            raise InputError(f"{where} {name}: no such setting{nearest(name, hints)} ({', '.join(hints)})")
        choices = {"true": True, "false": False} if hints[name] is bool else None
        if typing.get_origin(hints[name]) is Literal:
            choices = {choice: choice for choice in typing.get_args(hints[name])}
        if choices and text in choices:
            found[name] = choices[text]
        elif hints[name] is int and str(text).isdecimal() and int(text) > 0:
            found[name] = int(text)
        elif choices or hints[name] is int or not isinstance(text, str):
            expected = (
                " or ".join(choices) if choices else "a whole number of at least 1" if hints[name] is int else "text"
            )
            raise InputError(f"{where} {name}: {text!r:.60}, where {expected} belongs")
        else:
            found[name] = text
    return found


def read_checkpoint(model_args: ModelArguments, task_settings: Sequence[str] = ()) -> TrainedCheckpoint:
    """Find out what a checkpoint is, without its weights.

    Args:
        model_args: A folder or Hub id of a model, or of an adapter, whose base its configuration names.
        task_settings: `name=value`, fields of `TaskSettings`, in the place of what the run has recorded.

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
    if (recipe := _recipe_of(adapter or source)) in ("pretrain_clm", "pretrain_span"):
        raise InputError(f"{name} was trained by {recipe} on raw text; its results.json has its held-out perplexity")
    labels = [config.id2label[i] for i in sorted(config.id2label)]
    problem_type = config.problem_type or (REGRESSION if len(labels) == 1 else SINGLE)
    recorded, known = _recorded(adapter or source), {field.name for field in dataclasses.fields(TaskSettings)}
    settings = read_settings(((n, v) for n, v in recorded.items() if n in known), f"{name}/config.yaml")
    settings |= read_settings((pair.partition("=")[::2] for pair in task_settings), "--task_settings")
    return TrainedCheckpoint(
        auto_class=auto_class,
        task=task,
        label_names=labels if task in HAS_LABELS else [],
        problem_type=problem_type if task == "text-classification" else None,
        model_args=replace(model_args, model_name_or_path=base) if adapter else model_args,
        adapter=adapter,
        settings=TaskSettings(**settings),
        question_answering=getattr(config, "question_answering", {}),
    )


def _recipe_of(folder: str) -> str | None:
    try:
        return json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))["run"]["recipe"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # the folder of a stranger


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
        if os.path.isfile(Path(checkpoint.adapter, "generation_config.json")):  # PEFT passes `generate` on to the base
            model.generation_config = GenerationConfig.from_pretrained(checkpoint.adapter)
        return load_adapter(model, checkpoint.adapter, new_modules)
    if new_modules:
        raise InputError(
            f"{checkpoint.model_args.model_name_or_path} lacks the weights of {', '.join(new_modules)}: they would be "
            "random, and so would the scores"
        )
    return model
