"""Next-token prediction: packed documents are as if alone, the loss is exact, and encoders are refused."""

import types
from functools import partial

import pytest
import torch
from conftest import tiny_config
from transformers import AutoModelForCausalLM, TrainingArguments

from ptft_recipes.causal import CausalCollator, CausalLMTrainer, CompletionTrainer, check_decoder, check_packing
from ptft_recipes.cpu_kernels import use_cpu_kernels
from ptft_recipes.errors import InputError

DOCUMENTS = [[5, 9, 7, 4, 6, 0], [8, 8, 10, 0], [12, 5, 11, 9, 0]]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def packed(documents=DOCUMENTS):
    return {"input_ids": [token for document in documents for token in document], "segments": [*map(len, documents)]}


@pytest.mark.parametrize("kernels", ["sdpa", "for CPUs"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_logits_of_a_packed_document_are_those_of_the_document_alone(decoders, decoder_tokenizer, family, kernels):
    model = load(decoders[family])
    if kernels == "for CPUs":
        use_cpu_kernels(model)
    short = packed(DOCUMENTS[:1])
    batch = CausalCollator(decoder_tokenizer)([packed(), short])  # the second row is padded
    del batch["labels"]
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        start = 0
        for document in DOCUMENTS:
            alone = model(input_ids=torch.tensor([document])).logits[0]
            torch.testing.assert_close(logits[0, start : start + len(document)], alone, atol=1e-5, rtol=1e-4)
            start += len(document)
        torch.testing.assert_close(logits[1, :6], logits[0, :6], atol=1e-5, rtol=1e-4)
        # The trap: with a cache transformers does not look for packed documents.
        cached = model(**batch, use_cache=True).logits
    assert not torch.allclose(cached[0, 6:10], logits[0, 6:10], atol=1e-3)


def test_a_label_stands_at_the_token_before_it_and_never_in_another_document(decoder_tokenizer):
    batch = CausalCollator(decoder_tokenizer)([packed(DOCUMENTS[:2]), packed(DOCUMENTS[1:2])])
    assert batch["labels"].tolist() == [
        [9, 7, 4, 6, 0, -100, 8, 10, 0, -100],
        [8, 10, 0, -100, -100, -100, -100, -100, -100, -100],
    ]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3], [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]
    assert "attention_mask" not in batch
    rows = [{"input_ids": [4, 5, 6, 0], "labels": [-100, -100, 6, 0]}, {"input_ids": [4, 5], "labels": [-100, 5]}]
    batch = CausalCollator(decoder_tokenizer)(rows)
    assert batch["labels"].tolist() == [[-100, 6, 0, -100], [5, -100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    decoder_tokenizer.eos_token = None  # a template may end turns without one
    assert torch.equal(CausalCollator(decoder_tokenizer)(rows)["labels"], batch["labels"])


def trainer_of(kind, folder, decoder_tokenizer, path, stock=False):
    arguments = TrainingArguments(str(path), use_cpu=True, report_to="none", remove_unused_columns=False)
    return kind(
        model=load(folder), args=arguments, data_collator=CausalCollator(decoder_tokenizer), run={"stock": stock},
        processing_class=decoder_tokenizer,
    )  # fmt: skip


@pytest.mark.parametrize("stock", [False, True])
def test_the_loss_is_the_mean_over_all_predicted_tokens_of_the_step(decoders, decoder_tokenizer, tmp_path, stock):
    trainer = trainer_of(CausalLMTrainer, decoders["llama"], decoder_tokenizer, tmp_path, stock)
    trainer.model.train()
    model = load(decoders["llama"])
    with torch.no_grad():
        parts = [model(input_ids=torch.tensor([d]), labels=torch.tensor([d])).loss * (len(d) - 1) for d in DOCUMENTS]
    tokens = sum(len(document) - 1 for document in DOCUMENTS)
    found = []
    for rows in ([packed()], [packed(DOCUMENTS[:1]), packed(DOCUMENTS[1:])], [{"input_ids": d} for d in DOCUMENTS]):
        # In one batch, and accumulated.
        found.append(trainer.compute_loss(trainer.model, trainer.data_collator(rows), num_items_in_batch=tokens))
        each = [trainer.compute_loss(trainer.model, trainer.data_collator([row]), num_items_in_batch=tokens)
                for row in rows]  # fmt: skip
        found.append(sum(each))
    torch.testing.assert_close(torch.stack(found), (sum(parts) / tokens).expand(6), atol=1e-5, rtol=1e-5)
    found[0].backward()
    assert trainer.model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_step_counts_every_label_the_first_of_a_row_too(decoders, decoder_tokenizer, tmp_path, family):
    # The trap: of a decoder Trainer counts `labels[:, 1:]`, as if the loss were to shift them.
    trainer = trainer_of(CausalLMTrainer, decoders[family], decoder_tokenizer, tmp_path)
    batches = [
        trainer.data_collator([packed()]),
        trainer.data_collator([packed(DOCUMENTS[:1]), packed(DOCUMENTS[1:])]),
    ]
    counted = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    assert counted == sum((batch["labels"] != -100).sum() for batch in batches) == 24


def test_predictions_are_the_sums_of_each_row(decoders, decoder_tokenizer, tmp_path):
    from datasets import Dataset

    trainer = trainer_of(partial(CompletionTrainer, generation=None), decoders["gpt2"], decoder_tokenizer, tmp_path)
    rows = {"input_ids": DOCUMENTS, "labels": [[-100, -100, *document[2:]] for document in DOCUMENTS]}
    found = trainer.predict(Dataset.from_dict(rows | {"length": [*map(len, DOCUMENTS)]})).predictions
    for document, (loss, tokens, right) in zip(DOCUMENTS, found, strict=True):
        with torch.no_grad():
            logits = load(decoders["gpt2"])(input_ids=torch.tensor([document])).logits[0, 1:-1]
        target = torch.tensor(document[2:])
        assert tokens == len(target)
        assert loss == pytest.approx(
            torch.nn.functional.cross_entropy(logits, target, reduction="sum").item(), rel=1e-4
        )
        assert right == (logits.argmax(-1) == target).sum()


def test_an_encoder_is_refused_and_a_decoder_is_not(decoders):
    check_decoder(load(decoders["llama"]))
    with pytest.raises(InputError, match="bert is an encoder here: its tokens see the next one"):
        check_decoder(AutoModelForCausalLM.from_config(tiny_config("bert", 40)))


def test_a_model_in_which_packed_documents_see_each_other_is_refused(decoders):
    model = load(decoders["gpt2"])
    check_packing(model)
    forward = model.forward
    model.forward = types.MethodType(lambda self, position_ids=None, **kwargs: forward(**kwargs), model)
    with pytest.raises(InputError, match="gpt2 with sdpa attention lets packed documents see each other"):
        check_packing(model)


def test_flash_attention_keeps_packed_documents_apart_in_batches_of_one_only_and_is_tried_without_a_gpu(decoders):
    model = load(decoders["llama"])
    model.config._attn_implementation = "flash_attention_2"
    check_decoder(model)
    with pytest.raises(
        InputError, match="llama with flash_attention_2 attention lets packed documents see each other"
    ):
        check_packing(model)
    assert model.config._attn_implementation == "flash_attention_2"
