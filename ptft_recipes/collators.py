"""Batches for masked language modelling: which tokens are hidden, and who attends to whom."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ptft_recipes.blocks import NO_WORD
from ptft_recipes.errors import InputError
from ptft_recipes.modeling import POSITIONS_AFTER_PADDING

UNITS = ("token", "word", "span")
SPAN_GEOMETRIC, SPAN_LONGEST = 0.2, 10  # SpanBERT: section 3.1
HELD_OUT_SEED, HELD_OUT_RATE = 0, 0.15
# Families whose body takes a finished 4-D mask and position ids; MPNet, for one, computes relative positions itself.
PACKABLE = ("albert", "bert", "camembert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta")


class MaskingCollator:
    """Hides tokens and pads: of the chosen ones 80 % become the mask token, 10 % a random token, 10 % stay.

    What is hidden in a row depends on the seed, the epoch and the row alone: not on the batch, the worker or process
    that makes it, nor on where a run was resumed. A row that has `labels` already is only padded.

    Args:
        tokenizer: The model's; special and unknown tokens are never chosen.
        unit: What is chosen at once. `token`: each token by itself (Devlin et al., 2019, section 3.1). `word`: all
            tokens of a word, each then replaced by itself (whole word masking, in BERT's repository since May 2019).
            `span`: runs of 1 to 10 whole words with geometric lengths, each run replaced in one way (Joshi et al.,
            SpanBERT, 2020, section 3.1).
        mlm_probability: Expected share of the tokens that is chosen.
        mlm_probability_end: The share at the end of training, to which it goes linearly; as at the start when None.
        seed: Of the choice.
        config: The model's; needed for packed rows, which have `segments`.

    Raises:
        InputError: An unknown unit, or a share that is not between 0 and 1.
    """

    def __init__(  # noqa: D107
        self,
        tokenizer: PreTrainedTokenizerBase,
        unit: str = "token",
        mlm_probability: float = 0.15,
        mlm_probability_end: float | None = None,
        seed: int = 0,
        config: PreTrainedConfig | None = None,
    ):
        if unit not in UNITS:
            raise InputError(f"--masking_unit {unit}: choose one of {', '.join(UNITS)}")
        self.rates = (mlm_probability, mlm_probability if mlm_probability_end is None else mlm_probability_end)
        if not all(0 < rate < 1 for rate in self.rates):
            raise InputError(f"--mlm_probability {self.rates}: must be between 0 and 1")
        if unit != "token" and len(set(tokenizer("one two", add_special_tokens=False).word_ids())) < 2:
            raise InputError(f"--masking_unit {unit}: this tokenizer does not mark words; use --masking_unit token")
        self.unit, self.seed, self.config = unit, seed, config
        self.mask_id, self.pad_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        known = list(tokenizer.get_vocab().values())  # not range(len(tokenizer)): some vocabularies have holes
        self.is_special = np.zeros(max(known) + 1, dtype=bool)
        self.is_special[tokenizer.all_special_ids] = True
        self.plain_ids = np.setdiff1d(known, tokenizer.all_special_ids)

    def mask(
        self, input_ids: Sequence[int], word_ids: Sequence[int], row: int, epoch: int = 0, progress: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hide tokens of one row.

        Args:
            input_ids: `[length]`.
            word_ids: `[length]`, as `split_into_blocks` returns them.
            row: Number of the row in its data set.
            epoch: How often the row has been read before.
            progress: Share of training that is over, for the schedule.

        Returns:
            The ids that the model reads, and the labels: the hidden tokens, -100 elsewhere; both `[length]`.
        """
        generator = np.random.default_rng([self.seed, epoch, row])
        ids = np.array(input_ids, dtype=np.int64)
        may = ~self.is_special[ids]
        rate = self.rates[0] + (self.rates[1] - self.rates[0]) * progress
        if self.unit == "span":
            span = _choose_spans(np.asarray(word_ids), may, rate, generator)
            chosen = span >= 0
            how = generator.random(len(ids))[span]
        else:
            starts = np.ones(len(ids), dtype=bool)
            if self.unit == "word":
                starts[1:] = np.diff(word_ids) != 0
            chosen = (generator.random(len(ids))[starts.cumsum() - 1] < rate) & may
            how = generator.random(len(ids))
        labels = np.where(chosen, ids, -100)
        random_ids = generator.choice(self.plain_ids, len(ids))
        ids[chosen & (how < 0.8)] = self.mask_id
        ids = np.where(chosen & (how >= 0.9), random_ids, ids)
        return ids, labels

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            examples: With `input_ids` and either `labels`, or `word_ids`, `row` and optionally `epoch` and `progress`;
                packed ones with `segments`.

        Returns:
            `input_ids`, `attention_mask` and `labels`, `[batch, length]`. Of packed rows `attention_mask` is
            `[batch, 1, length, length]` (or one per kind of layer) and there are `position_ids` `[batch, length]`.
        """
        rows = [
            (example["input_ids"], example["labels"])
            if "labels" in example
            else self.mask(
                example["input_ids"],
                example["word_ids"],
                example["row"],
                example.get("epoch", 0),
                example.get("progress", 0.0),
            )
            for example in examples
        ]
        shape = len(rows), max(len(ids) for ids, _ in rows)
        input_ids, labels = np.full(shape, self.pad_id), np.full(shape, -100)
        attention_mask = np.zeros(shape, dtype=np.int64)
        for i, (ids, row_labels) in enumerate(rows):
            input_ids[i, : len(ids)], labels[i, : len(ids)], attention_mask[i, : len(ids)] = ids, row_labels, 1
        batch: dict[str, Any] = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
        if "segments" in examples[0]:
            return batch | packed_attention([example["segments"] for example in examples], shape[1], self.config)
        return batch | {"attention_mask": torch.from_numpy(attention_mask)}


def _choose_spans(word_ids: np.ndarray, may: np.ndarray, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Return for each token the number of its span, -1 for those in none; `rate` of the tokens in expectation."""
    span = np.full(len(word_ids), -1)
    starts = np.flatnonzero(np.r_[True, np.diff(word_ids) != 0])
    ends = np.r_[starts[1:], len(word_ids)]
    usable = may[starts]
    budget = rate * may.sum()
    order = generator.permutation(np.flatnonzero(usable))
    lengths = np.minimum(generator.geometric(SPAN_GEOMETRIC, len(order)), SPAN_LONGEST)
    for number, (word, length) in enumerate(zip(order.tolist(), lengths.tolist(), strict=True)):
        for k in range(word, min(word + length, len(starts))):
            if not usable[k] or span[starts[k]] >= 0:
                break
            size = ends[k] - starts[k]
            # The word that would overspend is taken as often as makes the share exact in expectation.
            if size > budget and generator.random() >= budget / size:
                return span
            span[starts[k] : ends[k]] = number
            budget -= size
            if budget <= 0:
                return span
    return span


def mask_held_out(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Hide tokens once and for all, the same for every run: 15 % of the tokens, each by itself, always by one seed.

    So perplexities of runs with other seeds, units and rates are of the same tokens.

    Args:
        dataset: Of blocks.
        tokenizer: The model's.

    Returns:
        The blocks with `input_ids`, `labels`, `length`, `document`, and their number `row`.

    Raises:
        InputError: Nothing could be hidden.
    """
    collator = MaskingCollator(tokenizer, "token", HELD_OUT_RATE, seed=HELD_OUT_SEED)

    def hide(example: dict[str, Any], row: int) -> dict[str, Any]:
        input_ids, labels = collator.mask(example["input_ids"], example["word_ids"], row)
        return {"input_ids": input_ids, "labels": labels, "row": row}

    hidden = dataset.map(hide, with_indices=True, remove_columns="word_ids")
    if all(label == -100 for labels in hidden["labels"] for label in labels):
        raise InputError(
            "a held-out text has no token that could be hidden: its words are unknown to the tokenizer, or too few"
        )
    return hidden


def check_packable(config: PreTrainedConfig) -> None:
    """Raise an InputError unless the model can keep the attention of packed blocks apart."""
    if config.model_type not in PACKABLE:
        raise InputError(f"--packing: not for {config.model_type} models ({', '.join(PACKABLE)})")
    if config._attn_implementation != "sdpa":  # eager adds the mask to the scores: a bool one would keep nothing apart
        raise InputError(f"--packing needs --attn_implementation sdpa, not {config._attn_implementation}")


def packed_attention(segments: Sequence[Sequence[int]], length: int, config: PreTrainedConfig) -> dict[str, Any]:
    """Keep the attention and the positions of each packed block to itself.

    The mask that transformers makes of a 2-D one lets packed documents attend to each other, whatever the position ids
    say; a 4-D mask it takes as it is. Padding is a block of its own: a token that may attend to nothing becomes nan.

    Args:
        segments: `[batch, blocks]`, the lengths of the blocks in each row.
        length: Of the padded rows.
        config: The model's.

    Returns:
        `position_ids` `[batch, length]` and `attention_mask` `[batch, 1, length, length]` bool; of a model with
        sliding windows one such mask per kind of layer.
    """
    first = config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0
    block = np.full((len(segments), length), NO_WORD)
    positions = np.full((len(segments), length), first)
    for i, lengths in enumerate(segments):
        used = sum(lengths)
        block[i, :used] = np.repeat(np.arange(len(lengths)), lengths)
        positions[i, :used] += np.concatenate([np.arange(n) for n in lengths])
    full = torch.from_numpy(block[:, None, :, None] == block[:, None, None, :])
    result: dict[str, Any] = {"position_ids": torch.from_numpy(positions), "attention_mask": full}
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        place = torch.arange(length)
        near = (place[:, None] - place[None, :]).abs() <= config.sliding_window
        result["attention_mask"] = {"full_attention": full, "sliding_attention": full & near}
    return result
