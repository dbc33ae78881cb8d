"""The head at masked positions only: the same loss and the same gradient as the dense one, for every family."""

import statistics
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForMaskedLM

from ptft_recipes.demo import model_path
from ptft_recipes.objectives import masked_lm_loss
from ptft_recipes.sparse_head import model_body, only_at

FAMILIES = (
    "albert", "bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta",
)  # fmt: skip


def build(family: str, **kwargs):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if family == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    config = AutoConfig.for_model(
        family, vocab_size=50, max_position_embeddings=34, pad_token_id=1, bos_token_id=2, eos_token_id=3,
        cls_token_id=2, sep_token_id=3, embedding_size=16, **sizes, **kwargs,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(config).eval()


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 50, (4, 12), generator=generator)
    labels = torch.where(torch.rand(4, 12, generator=generator) < 0.3, ids, -100)
    labels[2] = -100  # a row in which nothing is hidden
    mask = torch.ones_like(ids)
    mask[3, 8:], labels[3, 8:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask}, labels


def step(model, sparse: bool, items=17, autocast=False):
    """Return loss, logits and gradients of one forward and backward pass."""
    inputs, labels = batch()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if sparse:
            with only_at(model, labels != -100):
                outputs = model(**inputs)
        else:
            outputs = model(**inputs)
        loss = masked_lm_loss(outputs, labels, items)
    loss.backward()
    return loss, outputs.logits, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_those_of_the_dense_head(family, tied):
    model = build(family, tie_word_embeddings=tied)
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert same == tied
    _, labels = batch()
    dense, dense_logits, dense_gradients = step(model, sparse=False)
    sparse, logits, gradients = step(model, sparse=True)
    assert logits.shape == ((labels != -100).sum(), 50)
    torch.testing.assert_close(logits, dense_logits[labels != -100])
    torch.testing.assert_close(sparse, dense)
    assert len(gradients) > 10
    torch.testing.assert_close(gradients, dense_gradients, atol=1e-6, rtol=1e-4)


def test_the_dense_loss_is_that_of_transformers():
    model = build("bert")
    inputs, labels = batch()
    own = model(**inputs, labels=labels).loss
    torch.testing.assert_close(masked_lm_loss(model(**inputs), labels), own)


def test_it_is_the_same_under_bf16_autocast():
    model = build("bert")
    dense, _, dense_gradients = step(model, sparse=False, autocast=True)
    sparse, _, gradients = step(model, sparse=True, autocast=True)
    torch.testing.assert_close(sparse, dense, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(gradients, dense_gradients, atol=2e-3, rtol=2e-2)


def test_it_reaches_into_a_peft_model_whose_wrapper_calls_forward_past_the_hooks():
    model = get_peft_model(build("bert"), LoraConfig(target_modules=["query"], init_lora_weights=False)).eval()
    dense, _, dense_gradients = step(model, sparse=False)
    sparse, logits, gradients = step(model, sparse=True)
    assert logits.dim() == 2
    assert all("lora" in name for name in gradients)
    torch.testing.assert_close(sparse, dense)
    torch.testing.assert_close(gradients, dense_gradients, atol=1e-6, rtol=1e-4)


def test_nothing_stays_behind_in_the_model():
    model = build("bert")
    inputs, labels = batch()
    with pytest.raises(RuntimeError, match="stop"), only_at(model, labels != -100):
        raise RuntimeError("stop")
    assert not model_body(model)._forward_hooks
    assert model(**inputs).logits.shape == (4, 12, 50)


def test_a_batch_in_which_nothing_is_hidden_has_loss_zero_and_zero_gradients():
    model = build("bert")
    inputs, _ = batch()
    labels = torch.full((4, 12), -100)
    with only_at(model, labels != -100):
        loss = masked_lm_loss(model(**inputs), labels)
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_positions_of_another_shape_are_refused():
    model = build("bert")
    inputs, _ = batch()
    with (
        pytest.raises(ValueError, match=r"\(4, 12, 32\) for positions \(4, 13\)"),
        only_at(model, torch.ones(4, 13) > 0),
    ):
        model(**inputs)


@pytest.mark.slow
def test_it_makes_a_step_of_minilm_faster():
    model = AutoModelForMaskedLM.from_pretrained(model_path("demo/minilm")).train()
    ids = torch.randint(1000, 30000, (16, 128), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.15, ids, -100)

    def seconds(positions):
        start = time.perf_counter()
        with only_at(model, positions):
            logits = model(ids).logits
            at = labels[positions]
            torch.nn.functional.cross_entropy(logits, at).backward()
        model.zero_grad()
        return time.perf_counter() - start

    # Side by side, because the machine may not be idle; "everywhere" is the dense head.
    ratios = [seconds(torch.ones_like(ids) > 0) / seconds(labels != -100) for _ in range(8)]
    print(f"dense / sparse: {statistics.median(ratios[1:]):.2f} (of {[round(ratio, 2) for ratio in ratios]})")
    assert statistics.median(ratios[1:]) > 1.2
