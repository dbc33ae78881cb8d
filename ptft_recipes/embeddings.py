"""A checkpoint that knows new words: each starts as the mean of the pieces that it was split into."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, pretrained_source, shard_names

logger = logging.getLogger(__name__)


def find_weights(model_args: ModelArguments) -> list[Path]:
    """Return the safetensors files of a checkpoint, downloaded if need be.

    Raises:
        InputError: There are none, or `--from_scratch` says not to use them.
    """
    if model_args.from_scratch:
        raise InputError("--from_scratch: to extend keeps the weights; pass it to the recipe that trains the model")
    source = pretrained_source(model_args)
    if whole := _find(SAFE_WEIGHTS_NAME, **source):
        return [whole]
    index = _find(SAFE_WEIGHTS_INDEX_NAME, **source)
    if not index:
        name = model_args.model_name_or_path
        raise InputError(f"{name} has no {SAFE_WEIGHTS_NAME}; save it as safetensors first (save_pretrained does)")
    shards = {name: _find(name, **source) for name in shard_names(index)}
    if lost := [name for name, path in shards.items() if path is None]:
        raise InputError(f"{model_args.model_name_or_path} has no {lost[0]}, which {SAFE_WEIGHTS_INDEX_NAME} names")
    return [*shards.values()]


def extend_checkpoint(
    model_args: ModelArguments,
    weights: list[Path],
    pieces: dict[int, list[int]],
    output_dir: str | Path,
    stage: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Write a copy of a checkpoint whose vocabulary has the new tokens.

    Everything that has a row per token (input embeddings, untied output embeddings, bias of the prediction head) gets
    rows that are the mean over the old pieces; every other weight is copied to the bit. The weights are taken from the
    file and not through a model, because no model class has them all: `BertForMaskedLM` would lose the pooler, and
    `BertModel` the prediction head. The config keeps which tokens are new, see `trainable_tokens`.

    Args:
        model_args: The checkpoint.
        weights: Its files, as `find_weights` returned them.
        pieces: As `extend_tokenizer` returned them: new id -> ids of the old pieces.
        output_dir: Where weights and config are written.
        stage: What the lineage is to keep of this run.

    Returns:
        The lineage of the checkpoint, which its config keeps: every stage since the first weights.

    Raises:
        InputError: The weights cannot be read, or are not those of this vocabulary.

    Source: Sachidananda et al., Efficient Domain Adaptation of Language Models via Adaptive Tokenization (SustaiNLP
    2021), subword-based initialization.
    """
    source, output_dir = pretrained_source(model_args), Path(output_dir)
    config = AutoConfig.from_pretrained(**source)
    old_rows, new_rows = config.vocab_size, max(config.vocab_size, max(pieces) + 1)  # some have spare rows
    output_dir.mkdir(parents=True, exist_ok=True)
    extended = []
    for path in weights:
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path}: {error}") from None
        for name, tensor in tensors.items():
            if tensor.dim() and len(tensor) == old_rows:
                tensors[name] = extend_rows(tensor, pieces, new_rows)
                extended.append(name)
        save_file(tensors, output_dir / path.name, metadata={"format": "pt"})
        if path.name != SAFE_WEIGHTS_NAME:
            index = _find(SAFE_WEIGHTS_INDEX_NAME, **source)
            (output_dir / SAFE_WEIGHTS_INDEX_NAME).write_bytes(index.read_bytes())
    if not extended:
        raise InputError(f"{model_args.model_name_or_path}: no weights have the {old_rows} rows of its vocabulary")
    config.vocab_size = new_rows
    config.new_tokens = {"first": min(pieces), "count": len(pieces)}
    config.lineage = [*getattr(config, "lineage", []), *([stage] if stage else [])]
    config.save_pretrained(output_dir)
    logger.info("embeddings: %d new rows in %s", len(pieces), ", ".join(extended))
    return config.lineage


def write_config(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, output_dir: str | Path) -> None:
    """Write the config of a checkpoint, without weights, for a tokenizer that has nothing in common with its own.

    Args:
        model_args: Gives the architecture, for `--from_scratch`.
        tokenizer: The new one, whose size and special tokens the config gets.
        output_dir: Where it is written.
    """
    config = AutoConfig.from_pretrained(**pretrained_source(model_args))
    config.vocab_size = len(tokenizer)
    if new_token_indices(config):
        config.new_tokens = None
    starts_and_ends = {"bos": tokenizer.cls_token_id, "eos": tokenizer.sep_token_id}
    ids = {"pad": tokenizer.pad_token_id, "cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id}
    for name, value in (ids | starts_and_ends).items():
        if getattr(config, f"{name}_token_id", None) is not None:
            setattr(config, f"{name}_token_id", value)
    config.save_pretrained(output_dir)


def extend_rows(tensor: torch.Tensor, pieces: dict[int, list[int]], rows: int) -> torch.Tensor:
    """Return a tensor with more rows, the new ones the mean over their pieces' rows.

    Args:
        tensor: `[tokens, ...]`.
        pieces: New row -> old rows.
        rows: Number of rows of the result; those that are neither old nor in `pieces` are 0.

    >>> extend_rows(torch.tensor([[1.0], [3.0]]), {2: [0, 1]}, rows=3).tolist()
    [[1.0], [3.0], [2.0]]
    """
    extended = tensor.new_zeros(rows, *tensor.shape[1:])
    extended[: len(tensor)] = tensor
    for row, old in pieces.items():
        extended[row] = tensor[old].float().mean(dim=0).to(tensor.dtype)
    return extended


def new_token_indices(config: PreTrainedConfig) -> list[int]:
    """Return the ids of the tokens that `extend_checkpoint` added, none for a checkpoint that was never extended."""
    new = getattr(config, "new_tokens", None) or {"first": 0, "count": 0}
    return [*range(new["first"], new["first"] + new["count"])]


def trainable_tokens(model: PreTrainedModel, new_modules: Sequence[str] = ()) -> dict[str, list[int]] | None:
    """Return PEFT's `trainable_token_indices`, so that beside an adapter only the rows of the new words move.

    Args:
        model: Of an extended checkpoint; with untied output embeddings their new rows are named too.
        new_modules: As `load_model` returned them: all of these moves, not single rows.

    Returns:
        The new ids by the full name of the embedding module; None where no words are new.
    """
    indices = new_token_indices(model.config)
    if not indices:
        return None
    wanted = [model.get_input_embeddings()]
    output = model.get_output_embeddings()
    if output is not None and output.weight is not wanted[0].weight:
        wanted.append(output)
    names = [name for name, module in model.named_modules() if any(module is each for each in wanted)]
    return {name: indices for name in names if name not in new_modules}


def restore_output_bias(model: PeftModel) -> None:
    """Put the bias of the prediction head back, which PEFT leaves out while it trains single tokens of it.

    `TrainableTokensLayer` computes a wrapped output layer as `F.linear(input, weight)`: without this, the model
    differs from the base before the first step, and from itself after merging. To be called after `get_peft_model`
    and after `PeftModel.from_pretrained`; a merged model needs nothing.
    """
    for module in model.modules():
        if isinstance(module, TrainableTokensLayer) and getattr(module.base_layer, "bias", None) is not None:
            module.register_forward_hook(_add_bias)


def _add_bias(layer: TrainableTokensLayer, inputs, output: torch.Tensor) -> torch.Tensor:
    if layer.disable_adapters or layer.merged or not layer.active_adapters:
        return output  # the base layer computed it, with its bias
    return output + layer.base_layer.bias


@torch.no_grad()
def check_extended(
    model_args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    pieces: dict[int, list[int]],
    output_dir: str | Path,
    text: str,
) -> None:
    """Load the checkpoint that was written, and compare it with the one that it came from.

    Args:
        model_args: The old checkpoint.
        tokenizer: The old tokenizer.
        pieces: New id -> ids of the old pieces.
        output_dir: The new checkpoint.
        text: Is read by both with the old tokens.

    Raises:
        RuntimeError: The old tokens give other hidden states than before, or a new row is not the mean of its pieces.
    """
    load = {"use_safetensors": True, "trust_remote_code": model_args.trust_remote_code, "dtype": "float32"}
    before = AutoModel.from_pretrained(**pretrained_source(model_args) | load).eval()
    after = AutoModel.from_pretrained(output_dir, **load).eval()
    inputs = tokenizer(text, truncation=True, max_length=min(128, tokenizer.model_max_length), return_tensors="pt")
    inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    if not torch.equal(before(**inputs)[0], after(**inputs)[0]):
        raise RuntimeError(f"{output_dir}: the extended model computes something else for the old tokens")
    old, new = before.get_input_embeddings().weight, after.get_input_embeddings().weight
    expected = torch.stack([old[ids].mean(dim=0) for ids in pieces.values()])
    # Half precision is rounded when it is written.
    if not torch.allclose(new[[*pieces]], expected, rtol=1e-2, atol=1e-3):
        raise RuntimeError(f"{output_dir}: the new rows are not the means of their pieces")


def _find(filename: str, pretrained_model_name_or_path: str, revision: str, **_) -> Path | None:
    path = cached_file(
        pretrained_model_name_or_path,
        filename,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
    )
    return Path(path) if path else None
