"""Perplexity is exact: token-weighted over any batches, and pseudo-perplexity as one would compute it by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from ptft_recipes.perplexity import (
    before_and_after,
    masked_lm_metrics,
    masked_lm_statistics,
    pseudo_perplexity,
    sum_by_document,
)


def test_statistics_sum_up_each_row_and_metrics_weigh_each_token():
    labels = torch.tensor([[1, -100, 2], [-100, -100, -100], [-100, 0, -100]])
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    logits[0, 1] = 9.0  # the first hidden token is predicted right
    nll = -logits.log_softmax(-1)[torch.arange(3), torch.tensor([1, 2, 0])]
    found = masked_lm_statistics(logits, labels)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[:, 0].float(), torch.tensor([nll[0] + nll[1], 0.0, nll[2]]))
    assert found[:, 1].tolist() == [2, 0, 1]
    scores = masked_lm_metrics(SimpleNamespace(predictions=found.numpy()))
    assert scores["perplexity"] == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    right = (logits.argmax(-1) == torch.tensor([1, 2, 0])).float().mean().item()
    assert scores["accuracy"] == pytest.approx(right)
    twice = masked_lm_metrics(SimpleNamespace(predictions=found.numpy()), weights=np.array([2, 0, 0]))
    assert twice["perplexity"] == pytest.approx(math.exp((nll[0] + nll[1]) / 2), rel=1e-5)
    assert math.isnan(masked_lm_metrics(SimpleNamespace(predictions=found.numpy()[1:2]))["perplexity"])


def test_before_and_after_are_scored_side_by_side():
    rows = np.array([[math.log(8) * 3, 3, 1, math.log(2) * 3, 3, 3]])
    scores = before_and_after(masked_lm_metrics, SimpleNamespace(predictions=rows, label_ids=None))
    assert scores["perplexity_before"] == pytest.approx(8)
    assert scores["perplexity"] == pytest.approx(2)
    assert scores["perplexity_ratio"] == pytest.approx(0.25)
    assert (scores["accuracy_before"], scores["accuracy"]) == (pytest.approx(1 / 3), 1)


def test_blocks_are_summed_by_document_unless_there_is_one_only():
    blocks = np.arange(8.0).reshape(4, 2)
    assert sum_by_document(blocks, ["b", "a", "b", "a"]).tolist() == [[8, 10], [4, 6]]
    assert sum_by_document(blocks, ["a"] * 4).tolist() == blocks.tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_pseudo_perplexity_is_that_of_each_token_hidden_alone(checkpoint, tokenizer, batch_size):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_pretrained(checkpoint).train()
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    sentence = "the team of one big cell"
    ids, losses = tokenizer(sentence)["input_ids"], []
    model.eval()
    for place in range(1, len(ids) - 1):
        hidden = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
        with torch.no_grad():
            scores = model(torch.tensor([hidden])).logits[0, place].log_softmax(-1)
        losses.append(-scores[ids[place]].item())
    model.train()
    assert len(losses) == 6
    expected = math.exp(sum(losses) / len(losses))
    assert pseudo_perplexity(model, tokenizer, sentence, batch_size) == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_pseudo_perplexity_needs_a_sentence_that_fits(checkpoint, tokenizer):
    model = AutoModelForMaskedLM.from_pretrained(checkpoint)
    for sentence in ("", "the team " * 40):
        with pytest.raises(ValueError, match="tokens to score; between 1 and 64 are needed"):
            pseudo_perplexity(model, tokenizer, sentence)
