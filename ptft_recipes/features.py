"""Run a frozen body once over every row, and train the head on what it gave."""

import logging

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.modeling_outputs import BaseModelOutputWithPooling

logger = logging.getLogger(__name__)

COLUMN = "inputs_embeds"  # an input that every model's forward names, and that these recipes use for nothing else
TOKENS = ("input_ids", "attention_mask", "token_type_ids")


def cache_features(
    model: PreTrainedModel,
    dataset: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    training_args: TrainingArguments,
    stock: bool = False,
) -> DatasetDict:
    """Replace the tokens of every row by the vector that the head reads, where no weight of the body moves.

    That is linear probing: the body runs without dropout, once per row instead of once per row and epoch. The model is
    changed in place: given these features it skips its body, given tokens it is the model that it was.

    Args:
        model: For sequence classification; a pooler may move although the rest of the body does not.
        dataset: Splits with the columns of the tokenizer.
        tokenizer: For padding.
        training_args: For batch size, device and precision.
        stock: Leave the rows as they are.

    Returns:
        The splits with the column `inputs_embeds` `[1, hidden]` in the place of the tokens. They are returned as they
        were when the body moves, or when the head reads more than one vector per row, which a first batch shows.
    """
    body, collate = model.base_model, DataCollatorWithPadding(tokenizer)
    moving = {name.split(".")[0] for name, parameter in body.named_parameters() if parameter.requires_grad}
    if stock or body is model or moving - {"pooler"}:
        return dataset
    moving_pooler = bool(moving)
    model.to(training_args.device).eval()

    def features(rows: Dataset) -> tuple[dict, torch.Tensor]:
        columns = [name for name in TOKENS if name in rows.column_names]
        batch = collate(rows.select_columns(columns).to_list()).to(training_args.device)
        output = body(**batch)
        if getattr(output, "pooler_output", None) is not None and not moving_pooler:
            return batch, output.pooler_output
        if getattr(model.config, "classifier_pooling", "cls") == "mean":
            mask = batch["attention_mask"][..., None]
            return batch, (output.last_hidden_state * mask).sum(1) / mask.sum(1)
        return batch, output.last_hidden_state[:, 0]

    run_body = body.forward

    def forward(*args, inputs_embeds=None, **kwargs):
        if inputs_embeds is None:
            return run_body(*args, **kwargs)
        vector = inputs_embeds[:, 0]
        if moving_pooler:
            vector = body.pooler(inputs_embeds)
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=vector)

    with torch.no_grad(), torch.autocast(training_args.device.type, torch.bfloat16, enabled=training_args.bf16):
        batch, vectors = features(dataset["train"].select(range(min(4, len(dataset["train"])))))
        expected = model(**batch).logits
        body.forward = forward
        tolerance = 2e-2 if training_args.bf16 else 1e-4
        if not torch.allclose(model(inputs_embeds=vectors[:, None]).logits, expected, tolerance, tolerance):
            body.forward = run_body
            logger.info("features are not cached: the head of this model reads more than one vector per row")
            return dataset
        return DatasetDict({split: _with_features(rows, features, training_args) for split, rows in dataset.items()})


def _with_features(rows: Dataset, features, training_args: TrainingArguments) -> Dataset:
    order = np.argsort(rows["length"][:])  # rows of one batch are of one length, or nearly
    vectors = np.concatenate(
        [
            features(rows.select(order[start : start + training_args.per_device_eval_batch_size]))[1].float().cpu()
            for start in range(0, len(rows), training_args.per_device_eval_batch_size)
        ]
    )
    rows = rows.remove_columns([name for name in TOKENS if name in rows.column_names])
    return rows.add_column(COLUMN, [[vector] for vector in vectors[np.argsort(order)]])
