"""FSDP and DeepSpeed, which cut a model over the processes: what Trainer leaves undone with such a model."""

import contextlib
from collections.abc import Iterator

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import Trainer, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ptft_recipes.errors import InputError
from ptft_recipes.optimization import LAYER

# They read, keep or move single weights, of which a process has only a part, or not the one that the engine trains.
WHOLE_ONLY = ("l2_sp", "mixout", "fgm", "merge_adapter")


def is_cut(trainer: Trainer) -> bool:
    """Tell whether training leaves no process with a whole model: one alone could not even compute with it.

    Args:
        trainer: Before or after training.
    """
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def check_options(trainer: Trainer, options) -> None:
    """Refuse what would fail with a model that is cut, or do nothing without a word.

    Args:
        trainer: Before it trains.
        options: The `TuningArguments`.

    Raises:
        InputError: There is such an option.
    """
    if options.gradual_unfreezing and trainer.args.world_size > 1:
        raise InputError("--gradual_unfreezing: DistributedDataParallel cannot do it; use one process")
    engine = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed" if trainer.is_deepspeed_enabled else ""
    asked = [f"--{name}" for name in WHOLE_ONLY if getattr(options, name)]
    asked += ["--tuning adalora"] if options.tuning.lower() == "adalora" else []
    if engine and asked:
        raise InputError(f"{asked[0]}: {engine} cuts the weights that it needs whole; use multi_gpu.yaml")


def load_whole(training_args: TrainingArguments) -> None:
    """Have models loaded whole in every process, and cut when training starts.

    With ZeRO 3, transformers cuts a model as it is loaded, whatever `zero3_init_flag` says (accelerate 1.15.0). What
    happens to its weights before training (counted, hashed, given new words or an adapter) would then find none.

    Args:
        training_args: As parsed; while there is a plugin for DeepSpeed in them, transformers finds it.
    """
    if training_args.deepspeed_plugin is not None:
        unset_hf_deepspeed_config()


def layer_classes(model: torch.nn.Module) -> list[str]:
    """Return the names of the classes that a model stacks, e.g. `BertLayer`; none where all layers are one."""
    names = {
        type(module).__name__
        for name, module in model.named_modules()
        if (found := LAYER.search(f".{name}.")) and found.end() == len(name) + 2  # T5 has layers in its layers
    }
    return sorted(names)


@contextlib.contextmanager
def cut_by_layers(trainer: Trainer) -> Iterator[None]:
    """Have FSDP gather the model layer by layer, unless the configuration names the classes to cut at.

    accelerate takes `_no_split_modules` for them: many encoders have none, and those that have name their embeddings
    too, which FSDP2 cuts once more and fails (1.15.0). It fails likewise where a third module holds a weight of the
    embeddings or of the output, as the bias of the output in BERT's head.

    Args:
        trainer: That is about to hand its model to the engine.

    Raises:
        InputError: Encoder and decoder share their embeddings, which FSDP2 cannot cut.
    """
    plugin, model = getattr(trainer.accelerator.state, "fsdp_plugin", None), trainer.model
    if plugin is None:
        yield
        return
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(model)
    is_cut = plugin.fsdp_version == 2 and _cut_ends_together(model, plugin)
    if is_cut:
        model.get_output_embeddings = lambda: None  # accelerate would cut it once more
    try:
        yield
    finally:
        if is_cut:
            del model.get_output_embeddings


def _cut_ends_together(model: torch.nn.Module, plugin: FullyShardedDataParallelPlugin) -> bool:
    """Make one group of embeddings, output and what else holds a weight of theirs; say whether there was such."""
    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    weights = {id(weight) for module in ends for weight in module.parameters(recurse=False)}
    holders = {
        name: module
        for name, module in model.named_modules()
        if module not in ends and weights & {id(weight) for weight in module.parameters(recurse=False)}
    }
    if any(isinstance(module, torch.nn.Embedding) for module in holders.values()):
        raise InputError(f"FSDP2 cannot cut embeddings that {', '.join(holders)} share; use deepspeed_zero3.yaml")
    if holders:
        policy = plugin.mixed_precision_policy or MixedPrecisionPolicy()
        kwargs = {"mp_policy": policy, "offload_policy": plugin.cpu_offload, "reshard_after_forward": False}
        fully_shard([*ends, *holders.values()], **kwargs)
    return bool(holders)


@contextlib.contextmanager
def whole_until_trained(trainer: Trainer) -> Iterator[None]:
    """Let a model that is not cut up yet be evaluated as it is, whole in every process.

    Trainer would hand it to the engine without an optimizer, which FSDP2 and ZeRO below stage 3 refuse.

    Args:
        trainer: That evaluates or predicts.
    """
    engines = trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled
    if trainer.optimizer is None:
        trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False
    try:
        yield
    finally:
        trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled = engines


@contextlib.contextmanager
def tensors_only(trainer: Trainer) -> Iterator[None]:
    """Have a checkpoint of DeepSpeed read as those of Trainer are: without running what it says.

    DeepSpeed reads its files by `torch.load(..., weights_only=False)` (0.19.8), which runs any code in them.

    Args:
        trainer: That reads a checkpoint.
    """
    if not trainer.is_deepspeed_enabled:
        yield
        return
    with patch_environment(torch_force_weights_only_load="1"), torch.serialization.safe_globals(_deepspeed_classes()):
        yield


def _deepspeed_classes() -> list[type]:
    """Return what DeepSpeed writes into a checkpoint besides tensors."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
