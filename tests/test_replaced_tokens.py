"""Replaced-token detection against a direct dense computation; exact under accumulation, in any batch size."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import topic_rows
from datasets import Dataset
from numerics.optimizer_step import KeepGradients
from transformers import EvalPrediction, TrainingArguments

from ptft_recipes.blocks import split_into_blocks
from ptft_recipes.collators import MaskingCollator, mask_held_out
from ptft_recipes.electra import load_generator_and_discriminator
from ptft_recipes.modeling import ModelArguments
from ptft_recipes.replaced_tokens import (
    ReplacedTokenCollator,
    ReplacedTokenTrainer,
    detection_metrics,
    replaced_token_loss,
)


@pytest.fixture(scope="module")
def blocks(tokenizer):
    """13 blocks of uneven length."""
    texts = [" ".join(row["text"] for row in topic_rows(1 + i % 4, seed=i)) for i in range(13)]
    found = split_into_blocks(tokenizer, texts, list(map(str, range(13))), max_length=64)
    return Dataset.from_dict(found).add_column("corpus", [0] * 13)


@pytest.fixture
def pair(checkpoints, tokenizer):
    """Generator and discriminator without dropout, of one seed."""
    torch.manual_seed(0)
    model = load_generator_and_discriminator(ModelArguments(checkpoints["electra"]), tokenizer, size=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    return model


def examples(blocks, rows, epoch=0):
    return [blocks[i] | {"row": i, "epoch": epoch, "progress": 0.0} for i in rows]


class TestCollator:
    def test_masks_are_those_of_masked_language_modelling(self, tokenizer, blocks):
        batch = ReplacedTokenCollator(tokenizer, "token", 0.3, seed=3)(examples(blocks, range(8)))
        plain = MaskingCollator(tokenizer, "token", 0.3, seed=3)(examples(blocks, range(8)))
        assert all(torch.equal(batch[name], value) for name, value in plain.items())
        hidden = batch["labels"] != -100
        assert torch.equal(batch["draws"] >= 0, hidden)
        for i in range(8):
            ids = torch.tensor(blocks[i]["input_ids"])
            assert torch.equal(batch["original_ids"][i, : len(ids)], ids)
            plain_tokens = ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
            assert torch.equal(batch["scored"][i, : len(ids)], plain_tokens)
            assert not batch["scored"][i, len(ids) :].any()

    def test_draws_depend_on_seed_epoch_and_row_alone(self, tokenizer, blocks):
        collator = ReplacedTokenCollator(tokenizer, "token", 0.3, seed=3)
        whole = collator(examples(blocks, range(8)))["draws"]
        alone = collator(examples(blocks, [5]))["draws"][0]
        assert torch.equal(whole[5, : len(alone)], alone)
        later = collator(examples(blocks, [5], epoch=1))["draws"][0]
        other = ReplacedTokenCollator(tokenizer, "token", 0.3, seed=4)(examples(blocks, [5]))["draws"][0]
        values = [set(draws[draws >= 0].tolist()) for draws in (alone, later, other)]
        assert not values[0] & values[1]
        assert not values[0] & values[2]
        draws = torch.cat([collator(examples(blocks, range(13), epoch))["draws"].flatten() for epoch in range(30)])
        draws = draws[draws >= 0]
        assert draws.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / len(draws)))

    def test_held_out_rows_get_the_same_draws_in_every_run_and_order(self, tokenizer, blocks):
        held_out = mask_held_out(blocks, tokenizer)
        found = []
        for seed, order in ((1, [2, 5]), (2, [5, 2])):
            batch = ReplacedTokenCollator(tokenizer, seed=seed)([held_out[i] for i in order])
            found.append(batch["draws"][order.index(5)])
        assert torch.equal(*found)
        assert (found[0] >= 0).any()


def dense_losses(pair, batch, corrupted):
    """Both losses summed, by plain calls of the two models, and their numbers of items."""
    labels, scored = batch["labels"], batch["scored"]
    mask = {"attention_mask": batch["attention_mask"]}
    logits = pair.generator(input_ids=batch["input_ids"], **mask).logits
    generator = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100)
    found = pair.discriminator(input_ids=corrupted, **mask).logits
    is_replaced = (corrupted != batch["original_ids"]).float()
    each = F.binary_cross_entropy_with_logits(found, is_replaced, reduction="none")
    return generator, (each * scored).sum(), int((labels != -100).sum()), int(scored.sum())


def corrupted_by_hand(pair, batch):
    """Sample token by token with the inverse of the cumulated probabilities, in float64."""
    with torch.no_grad():
        logits = pair.generator(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    corrupted = batch["original_ids"].clone()
    for i, k in (batch["draws"] >= 0).nonzero().tolist():
        cumulated = np.cumsum(logits[i, k].double().softmax(-1).numpy())
        corrupted[i, k] = int(np.searchsorted(cumulated, float(batch["draws"][i, k]), side="right"))
    return corrupted


def test_losses_and_gradients_are_those_of_the_dense_computation(pair, tokenizer, blocks):
    batch = ReplacedTokenCollator(tokenizer, "token", 0.4)(examples(blocks, range(8)))
    corrupted = corrupted_by_hand(pair, batch)
    generator, detection, hidden, scored = dense_losses(pair, batch, corrupted)
    assert hidden > 20
    assert scored > 2 * hidden
    expected = generator / hidden + 50 * detection / scored
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in pair.named_parameters() if p.grad is not None}
    pair.zero_grad()
    labels = batch.pop("labels")
    outputs = pair(**batch)
    loss = replaced_token_loss(outputs, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    found = {name: p.grad for name, p in pair.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    assert {name.split(".")[0] for name in found} == {"generator", "discriminator"}
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_the_discriminator_teaches_the_generator_nothing_but_shared_embeddings(pair, tokenizer, blocks):
    batch = ReplacedTokenCollator(tokenizer, "token", 0.4)(examples(blocks, range(8)))
    labels = batch.pop("labels")
    outputs = pair(**batch)
    assert not outputs.replaced.requires_grad
    detection = replaced_token_loss(outputs, labels) - replaced_token_loss(outputs, labels, detection_weight=0)
    F.binary_cross_entropy_with_logits(outputs.logits, (outputs.replaced == 1).float()).backward()
    moved = {name for name, p in pair.generator.named_parameters() if p.grad is not None}
    assert moved == {"electra.embeddings.word_embeddings.weight", "electra.embeddings.position_embeddings.weight"}
    assert detection > 0


def test_what_the_generator_gets_right_counts_as_original(pair, tokenizer, blocks):
    batch = ReplacedTokenCollator(tokenizer, "token", 0.4)(examples(blocks, range(8)))
    labels = batch.pop("labels")
    hidden, favourite = labels != -100, int(labels[labels != -100].mode().values)
    with torch.no_grad():  # a generator that always says the same word
        pair.generator.generator_lm_head.bias[favourite] = 1e4
    replaced = pair(**batch).replaced
    assert replaced[hidden].tolist() == (labels[hidden] != favourite).long().tolist()
    assert 0 < (replaced[hidden] == 0).sum() < hidden.sum()
    assert set(replaced[batch["scored"] & ~hidden].tolist()) == {0}, "what is not hidden is never replaced"
    assert set(replaced[~batch["scored"]].tolist()) == {-100}


def test_the_share_of_replaced_tokens_is_what_the_generator_misses(pair, tokenizer, blocks):
    rate, shares = 0.3, []
    vocabulary = len(tokenizer)
    with torch.no_grad():  # every token as likely as any other
        pair.generator.generator_lm_head.weight.zero_()
        collator = ReplacedTokenCollator(tokenizer, "token", rate)
        for epoch in range(20):
            batch = collator(examples(blocks, range(13), epoch))
            del batch["labels"]
            replaced = pair(**batch).replaced
            shares.append([int((replaced == 1).sum()), int((replaced != -100).sum())])
    found, scored = np.sum(shares, axis=0)
    expected = rate * (1 - 1 / vocabulary)
    assert found / scored == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / scored))


def build(pair, tokenizer, blocks, folder, batch_size, accumulation=1):
    arguments = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=batch_size, max_grad_norm=0, use_cpu=True, logging_steps=1, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    keep = KeepGradients()
    return ReplacedTokenTrainer(
        pair, arguments, train_dataset=blocks, eval_dataset=mask_held_out(blocks, tokenizer), callbacks=[keep],
        data_collator=ReplacedTokenCollator(tokenizer, "word", 0.3), processing_class=tokenizer,
    ), keep  # fmt: skip


def test_accumulated_batches_give_the_loss_and_gradient_of_one(pair, tokenizer, blocks, tmp_path):
    start, found = {name: value.clone() for name, value in pair.state_dict().items()}, []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        pair.load_state_dict(start)
        trainer, keep = build(pair, tokenizer, blocks, tmp_path, batch_size, accumulation)
        trainer.train()
        loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        found.append((loss, keep.gradients))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(gradients, found[0][1], atol=1e-5, rtol=1e-4)


def test_evaluation_is_exact_in_any_batch_size(pair, tokenizer, blocks, tmp_path):
    held_out = mask_held_out(blocks, tokenizer)
    collator, totals = ReplacedTokenCollator(tokenizer), np.zeros(4)
    called, true = [], []
    for row in held_out:
        batch = collator([row])
        corrupted = corrupted_by_hand(pair.eval(), batch)
        with torch.no_grad():
            totals += [float(value) for value in dense_losses(pair, batch, corrupted)]
            logits = pair.discriminator(input_ids=corrupted, attention_mask=batch["attention_mask"]).logits
        called += (logits > 0)[batch["scored"]].tolist()
        true += (corrupted != batch["original_ids"])[batch["scored"]].tolist()
    generator, detection = totals[0] / totals[2], totals[1] / totals[3]
    called, true = np.array(called), np.array(true)
    for batch_size in (1, 4, 64):
        metrics = build(pair, tokenizer, blocks, tmp_path, batch_size)[0].evaluate()
        assert metrics["eval_loss"] == pytest.approx(generator + 50 * detection, rel=1e-5)
        assert metrics["eval_generator_perplexity"] == pytest.approx(math.exp(generator), rel=1e-5)
        assert metrics["eval_detection_loss"] == pytest.approx(detection, rel=1e-5)
        assert metrics["eval_detection_accuracy"] == pytest.approx((called == true).mean())
        f1 = 2 * (called & true).sum() / (called.sum() + true.sum())
        assert metrics["eval_detection_f1"] == pytest.approx(f1)
        assert metrics["eval_replaced"] == pytest.approx(true.mean())


def test_metrics_weigh_rows_and_leave_undefined_what_has_nothing_to_score():
    rows = np.array([[3 * math.log(2), 3, 1, 2.0, 10, 8, 3, 1, 1], [0, 0, 0, 4.0, 10, 10, 0, 0, 0]])
    scores = detection_metrics(EvalPrediction(rows, None), np.array([2, 1]), detection_weight=10)
    assert scores["generator_perplexity"] == pytest.approx(2)
    assert scores["detection_loss"] == pytest.approx(8 / 30)
    assert scores["detection_accuracy"] == pytest.approx(26 / 30)
    assert scores["detection_f1"] == pytest.approx(2 * 2 / (6 + 2))
    assert scores["loss"] == pytest.approx(math.log(2) + 80 / 30)
    nothing = detection_metrics(EvalPrediction(rows[:1] * 0, None))
    assert all(math.isnan(value) for value in nothing.values())
