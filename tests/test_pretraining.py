"""The trainer of masked language models: exact under accumulation and in any batch size; pooler and head are kept."""

import math

import pytest
import torch
from conftest import topic_rows
from datasets import Dataset
from numerics.optimizer_step import NO_DROPOUT, KeepGradients
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    TrainingArguments,
)

from ptft_recipes.blocks import split_into_blocks
from ptft_recipes.collators import MaskingCollator, mask_held_out
from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments
from ptft_recipes.objectives import masked_lm_loss
from ptft_recipes.pretraining import MaskedLMTrainer, prepare_masked_lm
from ptft_recipes.sparse_head import model_body
from ptft_recipes.tuning import TuningArguments


@pytest.fixture(scope="module")
def blocks(tokenizer):
    """13 blocks of uneven length."""
    texts = [" ".join(row["text"] for row in topic_rows(1 + i % 4, seed=i)) for i in range(13)]
    found = split_into_blocks(tokenizer, texts, list(map(str, range(13))), max_length=64)
    return Dataset.from_dict(found).add_column("corpus", [0] * 13)


def build(checkpoint, tokenizer, blocks, folder, batch_size, accumulation=1, **kwargs):
    config = AutoConfig.from_pretrained(checkpoint, **NO_DROPOUT)
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_pretrained(checkpoint, config=config)
    arguments = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=batch_size, max_grad_norm=0, use_cpu=True, logging_steps=1, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    keep = KeepGradients()
    options = {
        "train_dataset": blocks,
        "eval_dataset": mask_held_out(blocks, tokenizer),
        "data_collator": MaskingCollator(tokenizer, "word", 0.3),
        "compute_loss_func": masked_lm_loss,
        "callbacks": [keep],
    }
    return MaskedLMTrainer(model, arguments, **options | kwargs), keep


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_accumulated_batches_give_the_loss_and_gradient_of_one(checkpoints, tokenizer, blocks, tmp_path, family):
    found = []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        trainer, keep = build(checkpoints[family], tokenizer, blocks, tmp_path, batch_size, accumulation)
        trainer.train()
        loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        found.append((loss, keep.gradients))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(gradients, found[0][1], atol=1e-6, rtol=1e-4)


def test_evaluation_is_exact_in_any_batch_size(checkpoint, tokenizer, blocks, tmp_path):
    held_out = mask_held_out(blocks, tokenizer)
    for batch_size in (1, 4, 64):
        trainer, _ = build(checkpoint, tokenizer, blocks, tmp_path, batch_size)
        metrics = trainer.evaluate()
        losses, right = [], []
        with torch.no_grad():
            for row in held_out:
                labels = torch.tensor(row["labels"])
                logits = trainer.model.eval()(torch.tensor([row["input_ids"]])).logits[0]
                at = labels != -100
                losses += torch.nn.functional.cross_entropy(logits[at], labels[at], reduction="none").tolist()
                right += (logits[at].argmax(-1) == labels[at]).tolist()
        assert len(losses) > 20
        mean = sum(losses) / len(losses)
        assert metrics["eval_loss"] == pytest.approx(mean, rel=1e-5)
        assert metrics["eval_perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
        assert metrics["eval_accuracy"] == pytest.approx(sum(right) / len(right))
        rows = trainer.predict(held_out).predictions
        assert rows[:, 1].tolist() == [sum(label != -100 for label in row["labels"]) for row in held_out]


def test_scoring_before_training_does_not_cast_the_weights(checkpoint, tokenizer, blocks, tmp_path):
    trainer, _ = build(checkpoint, tokenizer, blocks, tmp_path, 4)
    trainer.args.bf16_full_eval = True
    trainer.predict(mask_held_out(blocks, tokenizer))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", ["albert", "bert", "mpnet", "xlm-roberta"])
def test_a_pooler_that_the_checkpoint_has_is_kept_frozen_and_saved(tmp_path, family):
    config = AutoConfig.for_model(
        family, vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        embedding_size=16, max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(1)
    body = AutoModel.from_config(config)
    body.save_pretrained(tmp_path / "base")
    arguments = ModelArguments(str(tmp_path / "base"))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    assert model_body(model).pooler is None, "the trap: the class for masked language modelling drops it"
    model = prepare_masked_lm(model, arguments, TuningArguments(), [])
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert len(frozen) == 2
    assert all(".pooler." in name for name in frozen)
    model(torch.tensor([[5, 6]])).logits.sum().backward()
    model.save_pretrained(tmp_path / "out")
    again, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    kept, given = again.pooler.state_dict(), body.pooler.state_dict()
    assert all(torch.equal(kept[name], given[name]) for name in given)


def test_new_weights_have_no_pooler_to_keep(checkpoint):
    arguments = ModelArguments(checkpoint, from_scratch=True)
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(checkpoint))
    assert model_body(prepare_masked_lm(model, arguments, TuningArguments(), [])).pooler is None


def test_under_lora_the_vocabulary_matrix_stays_the_embeddings(checkpoint):
    model = AutoModelForMaskedLM.from_pretrained(checkpoint)
    new = ["cls.predictions", "cls.predictions.decoder", "cls.predictions.transform.dense"]
    model = prepare_masked_lm(model, ModelArguments(checkpoint), TuningArguments("lora"), new)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert {name.rpartition("default.")[2] for name in trained} == {
        "bias", "transform.dense.weight", "transform.dense.bias", "transform.LayerNorm.weight",
        "transform.LayerNorm.bias",
    }  # fmt: skip
    base = model.get_base_model()
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight
    assert base.get_output_embeddings().bias is base.cls.predictions.bias


def test_an_encoder_decoder_is_refused(checkpoint):
    config = BartConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(InputError, match="bart is an encoder-decoder; masked language modelling needs an encoder"):
        prepare_masked_lm(model, ModelArguments(checkpoint), TuningArguments(), [])
