"""Dropout and attention for CPUs: what PyTorch computes from the same masks, in values and gradients."""

import pytest
import torch
from conftest import ALL_FAMILIES, tiny_config
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from ptft_recipes import cpu_kernels
from ptft_recipes.cpu_kernels import ATTENTION, cpu_attention, draw_keep_bits, use_cpu_kernels

DROPOUT = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "embedding_dropout",
     "mlp_dropout"), 0.3
)  # fmt: skip


def build(family, attention, auto_class=AutoModelForSequenceClassification, dropout=DROPOUT):
    config = tiny_config(family, 50)
    for name, p in dropout.items():
        if hasattr(config, name):
            setattr(config, name, p)
    torch.manual_seed(0)
    return auto_class.from_config(config, attn_implementation=attention).train()


def batch():
    torch.manual_seed(1)
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, 7:] = mask[2, 2:] = 0
    return {"input_ids": torch.randint(5, 50, (3, 11)), "attention_mask": mask}


def step(model, autocast=False):
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(model(**batch()).logits.float(), torch.tensor([0, 1, 1]))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def dropout_of_the_same_masks(x, p=0.5, training=True, inplace=False):
    return x * draw_keep_bits(x.shape, p).bool() / (1 - p) if training and p else x


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", [family for family in ALL_FAMILIES if family != "mpnet"])
def test_a_step_is_that_of_the_stock_model_with_the_same_masks(family, autocast, monkeypatch):
    fast = build(family, "sdpa")
    use_cpu_kernels(fast)
    assert fast.config._attn_implementation == ATTENTION
    loss, gradients = step(fast, autocast=autocast)
    monkeypatch.setattr(F, "dropout", dropout_of_the_same_masks)
    expected, expected_gradients = step(build(family, "eager"), autocast=autocast)
    assert gradients.keys() == expected_gradients.keys()
    assert sum(bool(gradient.any()) for gradient in gradients.values()) >= 18
    torch.testing.assert_close(loss, expected, rtol=2e-2 if autocast else 1e-5, atol=0)
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max().item()
        tolerance = (5e-2 if autocast else 1e-4) * scale + 1e-7
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=tolerance, msg=name)


def test_without_dropout_a_step_is_that_of_sdpa_to_the_bit():
    none = dict.fromkeys(DROPOUT, 0.0)
    fast = build("bert", "sdpa", dropout=none)
    use_cpu_kernels(fast)
    loss, gradients = step(fast)
    expected, expected_gradients = step(build("bert", "sdpa", dropout=none))
    assert torch.equal(loss, expected)
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in expected_gradients)


def test_in_bf16_without_dropout_the_logits_are_those_of_sdpa_to_rounding():
    fast, stock = (build("modernbert", "sdpa").eval() for _ in range(2))
    use_cpu_kernels(fast)
    exact = stock(**batch()).logits
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, expected = fast(**batch()).logits, stock(**batch()).logits
    error, stock_error = (logits - exact).abs().max(), (expected - exact).abs().max()
    assert error < 2 * stock_error + 1e-3


def test_evaluation_and_what_is_saved_are_those_of_the_stock_model(tmp_path):
    fast, stock = build("bert", "sdpa", AutoModelForMaskedLM), build("bert", "sdpa", AutoModelForMaskedLM)
    use_cpu_kernels(fast)
    with torch.no_grad():
        assert torch.equal(fast.eval()(**batch()).logits, stock.eval()(**batch()).logits)
    fast.save_pretrained(tmp_path / "fast")
    stock.save_pretrained(tmp_path / "stock")
    names = sorted(path.name for path in (tmp_path / "stock").iterdir())
    assert "model.safetensors" in names
    for name in names:
        assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_keep_the_share_that_they_should_independently(p):
    torch.manual_seed(0)
    rows = 2**20
    keep = draw_keep_bits(torch.Size([rows // 4, 4]), p)
    assert set(keep.unique().tolist()) == {-1, 0}
    share = (keep == 0).double().mean().item()
    assert abs(share - p) < 4 * (p * (1 - p) / rows) ** 0.5 + 2**-16
    neighbours = torch.corrcoef(keep.double().T)  # the four lanes of one draw
    assert (neighbours - torch.eye(4)).abs().max() < 4 / (rows // 4) ** 0.5
    torch.manual_seed(0)
    assert torch.equal(keep, draw_keep_bits(keep.shape, p)), "from PyTorch's generator, which checkpoints restore"
    assert not torch.equal(keep, draw_keep_bits(keep.shape, p))


def test_gradients_are_the_derivatives():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    mask[1, ..., 3:] = torch.finfo(torch.float64).min

    def attend(*inputs):
        torch.manual_seed(7)
        return cpu_kernels._Attention.apply(*inputs, mask, 0.25, 0.6)

    assert torch.autograd.gradcheck(attend, (query, key, value))

    def drop(x):
        torch.manual_seed(7)
        return cpu_kernels._Dropout.apply(x, 0.25)

    assert torch.autograd.gradcheck(drop, (query,))


def test_a_row_that_may_attend_to_nothing_stays_finite():
    query = torch.randn(1, 2, 4, 8, requires_grad=True)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[:, :, 2] = False
    output, weights = cpu_attention(torch.nn.Identity(), query, query, query, mask, dropout=0.1, is_causal=False)
    output.sum().backward()
    assert output.shape == (1, 4, 2, 8)
    assert weights is None
    assert query.grad.isfinite().all()


@pytest.mark.parametrize(
    ("why", "options"),
    [
        ("no dropout", {"dropout": 0.0}),
        ("causal", {"is_causal": True}),
        ("a bias that is trained", {"position_bias": torch.zeros(1, 2, 4, 4)}),
        ("fewer heads of keys", {"key_heads": 1}),
    ],
)
def test_what_it_cannot_do_is_left_to_transformers(why, options, monkeypatch):
    calls = []
    monkeypatch.setattr(cpu_kernels, "sdpa_attention_forward", lambda *args, **kwargs: calls.append(kwargs))
    query, key = torch.randn(1, 2, 4, 8), torch.randn(1, options.pop("key_heads", 2), 4, 8)
    arguments = {"dropout": 0.1, "is_causal": False} | options
    cpu_attention(torch.nn.Identity(), query, key, key, None, **arguments)
    assert len(calls) == 1, why
    assert calls[0].get("is_causal") == arguments["is_causal"], "handed on"


def test_a_decoder_stays_causal():
    model = build("llama", "sdpa", dropout=DROPOUT)
    use_cpu_kernels(model)
    hidden = []
    for last in (7, 9):
        torch.manual_seed(3)
        ids = torch.tensor([[5, 6, last]])
        hidden.append(model.model(input_ids=ids).last_hidden_state[:, :2])
    assert torch.equal(*hidden), "an earlier token sees no later one"


def test_recomputed_activations_have_the_same_masks():
    plain, recomputing = build("bert", "sdpa"), build("bert", "sdpa")
    recomputing.activation_checkpointing_enable({"use_reentrant": False})
    for model in (plain, recomputing):
        use_cpu_kernels(model)
    loss, gradients = step(plain)
    again, recomputed = step(recomputing)
    assert torch.equal(loss, again)
    assert all(torch.equal(gradients[name], recomputed[name]) for name in gradients)


def test_a_model_without_sdpa_keeps_its_attention():
    model = build("mpnet", None)
    use_cpu_kernels(model)
    assert model.config._attn_implementation == "eager"
    assert any(isinstance(module, cpu_kernels.CpuDropout) for module in model.modules())
    step(model)
