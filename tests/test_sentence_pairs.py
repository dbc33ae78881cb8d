"""Pairs of sentences: nothing lost, half of them wrong, by seed, epoch and row; losses as in a direct computation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FILLERS, TOPICS
from datasets import Dataset
from numerics.optimizer_step import NO_DROPOUT, KeepGradients
from scipy.stats import binomtest
from transformers import AutoConfig, AutoModelForPreTraining, TrainingArguments

from ptft_recipes.blocks import NO_WORD
from ptft_recipes.errors import InputError
from ptft_recipes.sentence_pairs import SentencePairCollator, finish_held_out, split_into_pairs
from ptft_recipes.sentence_prediction import SentencePairTrainer, sentence_objective

LENGTH = 24


@pytest.fixture(scope="module")
def documents():
    """30 documents of 1 to 12 sentences of 1 to 9 words; document k has words of its own topic alone."""
    generator = np.random.default_rng(0)
    names = sorted(TOPICS)
    return [
        " ".join(
            " ".join(generator.choice([*TOPICS[names[k % 3]], *FILLERS[:3]], generator.integers(1, 10))) + " .\n"
            for _ in range(1 + k % 12)
        )
        for k in range(30)
    ]


@pytest.fixture(scope="module")
def pairs(tokenizer, documents):
    return Dataset.from_dict(split_into_pairs(tokenizer, documents, [f"d{k:02}" for k in range(30)], LENGTH))


def drawn(pairs, rows, epoch=0):
    return [pairs[i] | {"row": i, "epoch": epoch, "progress": 0.0} for i in rows]


def segments(ids, types) -> tuple[list[int], list[int]]:
    """Return the two segments of a row as it is read, without special tokens."""
    ids = list(ids)
    first, second = ([t for t, k in zip(ids, types, strict=True) if k == kind and t not in (2, 3)] for kind in (0, 1))
    return first, second


class TestSplitting:
    def test_every_token_is_in_one_row_and_no_row_in_two_documents(self, tokenizer, documents, pairs):
        for k, text in enumerate(documents):
            rows = [row for row in pairs if row["document"] == f"d{k:02}"]
            found = [t for row in rows for t in row["input_ids"] if t not in (2, 3)]
            assert found == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert max(pairs["length"]) <= LENGTH
        assert [len(ids) for ids in pairs["input_ids"]] == pairs["length"][:]

    def test_rows_are_cut_at_the_sentence_border_next_to_the_middle(self, tokenizer):
        text = "The team. A goal of the match! One\nThe coach and the new player? A season of the new"
        row = {name: values[0] for name, values in split_into_pairs(tokenizer, [text], ["a"], 64).items()}
        assert tokenizer.decode(row["input_ids"][: row["cut"]]).count("[SEP]") == 1
        first, second = row["input_ids"][1 : row["cut"] - 1], row["input_ids"][row["cut"] : -1]
        assert tokenizer.decode(second).startswith("the coach and")
        assert tokenizer.decode(first).endswith("one")
        words = np.array(row["word_ids"])
        assert (words == NO_WORD).tolist() == [t in (2, 3) for t in row["input_ids"]]
        assert (np.diff(words[words != NO_WORD]) == 1).all(), "no word number stands twice"

    def test_one_sentence_has_no_second_segment_and_a_long_one_becomes_two(self, tokenizer):
        rows = split_into_pairs(tokenizer, ["the team", " ".join(["goal"] * 20)], ["a", "b"], LENGTH)
        assert rows["cut"][0] == rows["length"][0] == 4
        assert (rows["cut"][1], rows["length"][1]) == (12, 23)
        with pytest.raises(InputError, match="no room for a pair"):
            split_into_pairs(tokenizer, ["the team"], ["a"], 4)


@pytest.mark.parametrize("objective", ["next", "order"])
class TestArranging:
    def test_half_of_the_pairs_are_wrong_and_the_rest_as_they_were(self, tokenizer, pairs, objective):
        collator, labels = SentencePairCollator(tokenizer, objective, pairs, LENGTH), []
        for epoch in range(20):
            for i, row in enumerate(pairs):
                generator = np.random.default_rng([0, epoch, i, 2])
                ids, words, types, label = collator.arrange(row | {"row": i}, generator)
                assert len(ids) == len(words) == len(types) <= LENGTH
                assert (np.array(words) == NO_WORD).tolist() == [t in (2, 3) for t in ids]
                labels.append(label)
                first, second = segments(row["input_ids"], [0] * row["cut"] + [1] * (row["length"] - row["cut"]))
                found = segments(ids, types)
                if label == -100:
                    assert not second
                    assert (ids, set(types)) == (row["input_ids"], {0})
                elif label == 0:
                    assert (ids, found) == (row["input_ids"], (first, second))
                elif objective == "order":
                    assert found == (second, first)
                else:
                    assert found[0] == first
                    others = [set(o["input_ids"]) for o in pairs if o["document"] != row["document"]]
                    assert any(set(found[1]) <= other for other in others)
        labels = np.array(labels)
        assert set(labels) == {-100, 0, 1}
        assert binomtest(int((labels == 1).sum()), int((labels != -100).sum()), 0.5).pvalue > 1e-6

    def test_batches_depend_on_seed_epoch_and_row_alone(self, tokenizer, pairs, objective):
        collator = SentencePairCollator(tokenizer, objective, pairs, LENGTH, "token", 0.3, None, 5)
        whole, row = collator(drawn(pairs, range(20))), 7
        alone = collator(drawn(pairs, [row]))
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "labels", "token_type_ids", "attention_mask"):
            assert torch.equal(whole[name][row, :length], alone[name][0]), name
            assert not whole["attention_mask"][row, length:].any()
        assert whole["sentence_labels"][row] == alone["sentence_labels"][0]
        found = {tuple(collator(drawn(pairs, range(20), epoch))["sentence_labels"].tolist()) for epoch in range(3)}
        assert len(found) == 3

    def test_held_out_rows_are_the_same_in_every_run(self, tokenizer, pairs, objective):
        held_out = finish_held_out(pairs, tokenizer, objective, LENGTH)
        batches = [
            SentencePairCollator(tokenizer, objective, pairs, LENGTH, "token", 0.15, None, seed)(list(held_out))
            for seed in (1, 2)
        ]
        assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
        assert set(batches[0]["sentence_labels"].tolist()) == {-100, 0, 1}
        assert held_out["length"][:] == batches[0]["attention_mask"].sum(1).tolist()


def test_lengths_do_not_give_a_segment_of_another_document_away(tokenizer, pairs):
    collator, lengths = SentencePairCollator(tokenizer, "next", pairs, LENGTH), {0: [], 1: []}
    for epoch in range(40):
        for i, row in enumerate(pairs):
            ids, _, types, label = collator.arrange(row | {"row": i}, np.random.default_rng([epoch, i]))
            if label >= 0:
                lengths[label].append((len(ids) - sum(types), sum(types)))
    differences = [np.mean(lengths[0], axis=0) - np.mean(lengths[1], axis=0)]
    assert np.abs(differences).max() < 0.5, "tokens, in the mean of about 500 pairs each"


def test_next_sentences_of_one_document_are_refused(tokenizer):
    rows = Dataset.from_dict(split_into_pairs(tokenizer, ["the team . a goal .\n" * 9], ["a"], LENGTH))
    with pytest.raises(InputError, match="the text has only one"):
        SentencePairCollator(tokenizer, "next", rows, LENGTH)


def load(checkpoint):
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(checkpoint, **NO_DROPOUT, classifier_dropout_prob=0.0)
    return AutoModelForPreTraining.from_pretrained(checkpoint, config=config)


def test_the_head_decides_and_a_model_without_one_is_refused(checkpoints):
    assert sentence_objective(load(checkpoints["bert"])) == "next"
    assert sentence_objective(load(checkpoints["albert"])) == "order"
    for family in ("roberta", "electra", "distilbert"):
        with pytest.raises(InputError, match="has no head for pairs of sentences, as BERT and ALBERT have one"):
            sentence_objective(load(checkpoints[family]))


def build(checkpoint, tokenizer, pairs, folder, batch_size, accumulation=1):
    model, keep = load(checkpoint), KeepGradients()
    arguments = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=batch_size, max_grad_norm=0, use_cpu=True, logging_steps=1, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    objective = sentence_objective(model)
    trainer = SentencePairTrainer(
        model, arguments, train_dataset=pairs.add_column("corpus", [0] * len(pairs)), callbacks=[keep],
        eval_dataset=finish_held_out(pairs, tokenizer, objective, LENGTH), processing_class=tokenizer,
        data_collator=SentencePairCollator(tokenizer, objective, pairs, LENGTH, "word", 0.3),
    )  # fmt: skip
    return trainer, keep


@pytest.mark.parametrize("family", ["bert", "albert"])
class TestTraining:
    def test_the_loss_and_gradient_are_those_of_the_model_itself(
        self, checkpoints, tokenizer, pairs, tmp_path, family
    ):
        trainer, keep = build(checkpoints[family], tokenizer, pairs, tmp_path, 8)
        batches = list(trainer.get_train_dataloader())
        trainer.train()
        loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        model, batch = load(checkpoints[family]), batches[0]
        sentence_labels = batch.pop("sentence_labels")
        name = "next_sentence_label" if family == "bert" else "sentence_order_label"
        expected = model(**batch, **{name: sentence_labels}).loss  # transformers' own: dense, a mean each
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        expected.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        torch.testing.assert_close(keep.gradients, gradients, atol=1e-6, rtol=1e-4)
        assert any("pooler" in n for n in gradients)

    def test_accumulated_batches_give_the_loss_and_gradient_of_one(
        self, checkpoints, tokenizer, pairs, tmp_path, family
    ):
        found = []
        for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
            trainer, keep = build(checkpoints[family], tokenizer, pairs, tmp_path, batch_size, accumulation)
            trainer.train()
            loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
            found.append((loss, keep.gradients))
        for loss, gradients in found[1:]:
            assert loss == pytest.approx(found[0][0], rel=1e-5)
            torch.testing.assert_close(gradients, found[0][1], atol=1e-6, rtol=1e-4)


def test_evaluation_is_exact_in_any_batch_size(checkpoints, tokenizer, pairs, tmp_path):
    tokens, sentences, right = [], [], []
    for row in finish_held_out(pairs, tokenizer, "next", LENGTH):
        labels, truth = torch.tensor(row["labels"]), torch.tensor([row["sentence_label"]])
        with torch.no_grad():
            outputs = load(checkpoints["bert"]).eval()(
                torch.tensor([row["input_ids"]]), token_type_ids=torch.tensor([row["token_type_ids"]])
            )
        at = labels != -100
        tokens += F.cross_entropy(outputs.prediction_logits[0][at], labels[at], reduction="none").tolist()
        if truth >= 0:
            sentences.append(F.cross_entropy(outputs.seq_relationship_logits, truth).item())
            right.append(int(outputs.seq_relationship_logits.argmax() == truth))
    for batch_size in (1, 16):
        metrics = build(checkpoints["bert"], tokenizer, pairs, tmp_path, batch_size)[0].evaluate()
        assert metrics["eval_perplexity"] == pytest.approx(math.exp(np.mean(tokens)), rel=1e-5)
        assert metrics["eval_sentence_loss"] == pytest.approx(np.mean(sentences), rel=1e-5)
        assert metrics["eval_loss"] == pytest.approx(np.mean(tokens) + np.mean(sentences), rel=1e-5)
        assert metrics["eval_sentence_accuracy"] == pytest.approx(np.mean(right))
