"""Batches, loss and scores of gap filling against plain calls of the models; exact under accumulation."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import topic_rows
from datasets import Dataset
from numerics.optimizer_step import KeepGradients
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EvalPrediction,
    T5EncoderModel,
    TrainingArguments,
)

from ptft_recipes.errors import InputError
from ptft_recipes.gap_filling import (
    GapCollator,
    GapFillingTrainer,
    corrupt_held_out,
    gap_metrics,
    gap_statistics,
    load_gap_filler,
)
from ptft_recipes.gap_tokens import load_gap_tokenizer, split_literally
from ptft_recipes.gaps import Gaps
from ptft_recipes.modeling import ModelArguments
from ptft_recipes.tuning import TuningArguments

FAMILIES = {"t5": "span_corruption", "bart": "denoising"}


@pytest.fixture(scope="module", params=FAMILIES)
def parts(request, checkpoints):
    """Model without dropout, tokenizer, 13 blocks of uneven length, and the objective, of T5 and of BART."""
    folder, objective = checkpoints[request.param], FAMILIES[request.param]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [" . ".join(row["text"] for row in topic_rows(1 + i % 4, seed=i)) for i in range(13)]
    blocks = Dataset.from_dict(split_literally(tokenizer, texts, list(map(str, range(13))), 64))
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    for module in model.modules():
        for name in ("p", "dropout"):  # BART keeps the rate as a number in each layer
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model, tokenizer, blocks.add_column("corpus", [0] * len(blocks)), objective


def examples(blocks, rows, epoch=0):
    return [blocks[i] | {"row": i, "epoch": epoch, "progress": 0.0} for i in rows]


def test_the_decoder_reads_the_labels_shifted_as_the_model_itself_shifts_them(parts):
    model, tokenizer, blocks, objective = parts
    collator = GapCollator(Gaps(tokenizer, objective), model.config)
    batch = collator(examples(blocks, range(8)))
    shifted = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    used = batch["labels"] != -100
    assert torch.equal(batch["decoder_input_ids"][used], shifted[used])
    assert (batch["decoder_input_ids"][~used] == tokenizer.pad_token_id).all()
    assert (batch["labels"] == -100).any()
    assert not batch["hidden_labels"][batch["labels"] == -100].any()
    assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == tokenizer.pad_token_id)
    alone = collator(examples(blocks, [5]))
    for name, values in alone.items():
        assert torch.equal(batch[name][5, : values.shape[1]], values[0]), "whatever else is in the batch"
    with torch.no_grad():
        together, single = (model.eval()(**{k: v for k, v in each.items() if "labels" not in k}).logits
                            for each in (batch, alone))  # fmt: skip
    torch.testing.assert_close(together[5, : single.shape[1]], single[0], atol=1e-5, rtol=1e-4)


def test_without_what_the_decoder_reads_one_model_stops_and_the_other_says_nothing(parts):
    """The trap: Trainer takes the labels away, and with them what the decoder is to read."""
    model, tokenizer, blocks, objective = parts
    batch = GapCollator(Gaps(tokenizer, objective), model.config)(examples(blocks, range(2)))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if objective == "span_corruption":
        with pytest.raises(ValueError, match="must specify exactly one of input_ids"):
            model(**inputs)
    else:
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1], "it wrote the shifted input"


def build(parts, folder, batch_size, accumulation=1):
    model, tokenizer, blocks, objective = parts
    arguments = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=batch_size, max_grad_norm=0, use_cpu=True, logging_steps=1, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    keep = KeepGradients()
    return GapFillingTrainer(
        model, arguments, train_dataset=blocks, callbacks=[keep], processing_class=tokenizer,
        eval_dataset=corrupt_held_out({"test": blocks}, tokenizer, objective)["test"],
        data_collator=GapCollator(Gaps(tokenizer, objective), model.config),
    ), keep  # fmt: skip


def test_accumulated_batches_give_the_loss_and_gradient_of_one(parts, tmp_path):
    model = parts[0]
    start, found = {name: value.clone() for name, value in model.state_dict().items()}, []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        trainer, keep = build(parts, tmp_path, batch_size, accumulation)
        trainer.train()
        model.load_state_dict(start)
        loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        found.append((loss, keep.gradients))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(gradients, found[0][1], atol=1e-5, rtol=1e-4)


def test_scores_are_exact_in_any_batch_size(parts, tmp_path):
    model, tokenizer, blocks, objective = parts
    losses = {"target": [], "gap": []}
    held_out = corrupt_held_out({"test": blocks}, tokenizer, objective)["test"]
    for row in held_out:
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():  # by the model's own loss, token by token
            logits = model.eval()(input_ids=torch.tensor([row["input_ids"]]), labels=labels).logits[0]
        each = F.cross_entropy(logits, labels[0], reduction="none")
        losses["target"] += each.tolist()
        losses["gap"] += each[torch.tensor(row["hidden_labels"])].tolist()
    assert 20 < len(losses["gap"]) < len(losses["target"])
    for batch_size in (1, 4, 64):
        metrics = build(parts, tmp_path, batch_size)[0].evaluate()
        assert metrics["eval_loss"] == pytest.approx(np.mean(losses["target"]), rel=1e-5)
        for name, values in losses.items():
            assert metrics[f"eval_{name}_perplexity"] == pytest.approx(math.exp(np.mean(values)), rel=1e-5)


def test_metrics_weigh_rows_and_leave_undefined_what_has_nothing_to_score():
    rows = np.array([[8 * math.log(2), 8, 4, 3 * math.log(4), 3, 1], [0, 2, 2, 0, 0, 0]])
    scores = gap_metrics(EvalPrediction(rows, None), np.array([2, 1]))
    assert scores["gap_perplexity"] == pytest.approx(4)
    assert scores["gap_accuracy"] == pytest.approx(1 / 3)
    assert scores["target_perplexity"] == pytest.approx(2 ** (16 / 18))
    assert scores["target_accuracy"] == pytest.approx(10 / 18)
    assert math.isnan(gap_metrics(EvalPrediction(rows[1:], None))["gap_perplexity"])


def test_what_accelerate_pads_to_another_process_changes_no_score():
    """It pads every output with -100, and a column of truth values becomes one of numbers."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 4, 9, generator=generator), torch.tensor([[1, 2, 3, 4], [5, 6, -100, -100]])
    hidden = torch.tensor([[True, False, True, False], [False, True, False, False]])
    expected = gap_statistics((logits, hidden), labels)
    padded = [F.pad(part, (0, 2), value=-100) for part in (hidden.long(), labels)]
    found = gap_statistics((F.pad(logits, (0, 0, 0, 2), value=-100), padded[0]), padded[1])
    assert torch.equal(found, expected)
    assert expected[:, 4].tolist() == [2, 1], "hidden tokens"


class TestLoading:
    def load(self, model, objective="span_corruption", **arguments):
        tuning = TuningArguments(arguments.pop("tuning", "full"))
        model_args = ModelArguments(str(model), **arguments)
        tokenizer = load_gap_tokenizer(model_args, objective)
        model, _ = load_gap_filler(model_args, tuning, tokenizer, Gaps(tokenizer, objective))
        return model, tokenizer

    def test_new_tokens_get_embeddings_that_are_trained_and_old_ones_stay(self, checkpoints):
        before = AutoModelForSeq2SeqLM.from_pretrained(checkpoints["bart"])
        model, tokenizer = self.load(checkpoints["bart"])
        assert model.get_input_embeddings().num_embeddings == len(tokenizer) == model.config.vocab_size
        old = before.get_input_embeddings().weight
        assert torch.equal(model.get_input_embeddings().weight[: len(old)], old)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        new = model.get_input_embeddings().weight[len(old) :]
        assert torch.pdist(new).min() > 0.5 * torch.pdist(old).mean(), "sentinels can be told apart"
        with pytest.raises(InputError, match="--tuning lora: <extra_id_0> is new to this model and would not be"):
            self.load(checkpoints["bart"], tuning="lora")

    def test_sentinels_of_new_weights_are_as_far_apart_as_words(self, checkpoints, tokenizer, tmp_path):
        config = AutoConfig.from_pretrained(checkpoints["t5"], vocab_size=len(tokenizer))
        config.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        model, with_sentinels = self.load(tmp_path, from_scratch=True)
        weight = model.get_input_embeddings().weight
        assert len(weight) == len(with_sentinels) == len(tokenizer) + 100
        old, new = weight[: len(tokenizer)], weight[len(tokenizer) :]
        assert torch.pdist(new).mean().item() == pytest.approx(torch.pdist(old).mean().item(), rel=0.1)

    def test_what_cannot_fill_gaps_is_refused(self, checkpoints, checkpoint, tmp_path):
        with pytest.raises(InputError, match="is of type bert; gap filling needs an encoder-decoder"):
            self.load(checkpoint)
        with pytest.raises(InputError, match="--tuning linear_probe: the head of an encoder-decoder"):
            self.load(checkpoints["t5"], tuning="linear_probe")
        T5EncoderModel.from_pretrained(checkpoints["t5"]).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(checkpoints["t5"]).save_pretrained(tmp_path)
        with pytest.raises(InputError, match="is of type t5; gap filling needs an encoder-decoder"):
            self.load(tmp_path)
        shutil.copy(Path(checkpoints["t5"], "config.json"), tmp_path)
        with pytest.raises(InputError, match="the checkpoint has no decoder"):
            self.load(tmp_path)

    @pytest.mark.parametrize(("name", "message"), [
        ("decoder_start_token_id", "its config has no decoder_start_token_id"),
        ("eos_token_id", r"the tokenizer ends a text with token 1, and the model with None"),
    ])  # fmt: skip
    def test_a_decoder_starts_and_ends(self, checkpoints, tmp_path, name, message):
        model = AutoModelForSeq2SeqLM.from_pretrained(checkpoints["t5"])
        setattr(model.config, name, None)
        setattr(model.generation_config, name, None)
        model.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(checkpoints["t5"]).save_pretrained(tmp_path)
        with pytest.raises(InputError, match=re.compile(message)):
            self.load(tmp_path)
