"""Any method of PEFT, on every family of encoders: what moves, what is saved, and the equalities that must hold."""

from importlib.util import find_spec

import peft
import pytest
import torch
from conftest import ALL_FAMILIES, tiny_config
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from ptft_recipes.adapters import NOT_YET_KNOWN, AdaLoraCallback, method_names
from ptft_recipes.errors import InputError
from ptft_recipes.merging import fold_adapter
from ptft_recipes.modeling import ModelArguments, load_model
from ptft_recipes.tuning import TuningArguments, apply_tuning

METHODS = {
    "lora": ("lora", ["r=4"]),
    "dora": ("lora", ["r=4", "use_dora=true"]),
    "rslora": ("lora", ["r=4", "use_rslora=true"]),
    "adalora": ("adalora", []),
    "ia3": ("ia3", []),
    "vera": ("vera", []),
    "oft": ("oft", ["oft_block_size=8"]),
    "ln_tuning": ("ln_tuning", []),
    "loha": ("loha", []),
    "houlsby": ("bottleneck", ["reduction_factor=4"]),
    "pfeiffer": ("bottleneck", ["reduction_factor=4", "placement=pfeiffer"]),
    "parallel": ("bottleneck", ["reduction_factor=4", "placement=parallel"]),
    "prompt_tuning": ("prompt_tuning", ["num_virtual_tokens=4"]),
    "p_tuning": ("p_tuning", ["num_virtual_tokens=4"]),
    "prefix_tuning": ("prefix_tuning", ["num_virtual_tokens=4"]),
}
PROMPTS = {"prompt_tuning", "p_tuning", "prefix_tuning"}
NOT_MERGEABLE = PROMPTS | {"houlsby", "pfeiffer", "parallel"}
NO_PREFIX = {"distilbert", "modernbert", "albert", "mpnet"}
UNFIT = {  # for the task, for the architecture, or with its default fields for a model as small as this
    "adaption_prompt": "Unsupported model type",
    "c3a": "block size",
    "cpt": "CAUSAL_LM",
    "miss": "in_features",
    "multitask_prompt_tuning": "",
    "poly": "task_ids",
    "road": "group_size",
    "shadow": "Unable to",
    "shira": "rank 32",
    "trainable_tokens": "",
    "vblora": "vector_length",
    "waveft": "n_frequency",
    "xlora": "use_cache",
}
WITHOUT_POOLER = "bert without pooler"


@pytest.fixture(scope="module")
def batch(tokenizer):
    encoded = tokenizer(["the match goal", "a cell of atom theory"], padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@pytest.fixture(scope="module")
def folders(checkpoints, tmp_path_factory, tokenizer):
    """All families, and a BERT whose pooler was lost in masked language modelling: pooler and classifier are new."""
    folder = tmp_path_factory.mktemp("mlm")
    AutoModelForMaskedLM.from_config(tiny_config("bert", len(tokenizer))).save_pretrained(folder)
    return {**checkpoints, WITHOUT_POOLER: str(folder)}


def load(path, tokenizer, seed=1):
    torch.manual_seed(seed)
    arguments = ModelArguments(model_name_or_path=str(path))
    return load_model(AutoModelForSequenceClassification, arguments, tokenizer, label_names=["a", "b", "c"])


def tuned(path, tokenizer, method, kwargs=(), seed=1):
    model, new = load(path, tokenizer, seed)
    return apply_tuning(model, TuningArguments(method, list(kwargs)), "SEQ_CLS", new), new


def train_a_little(model, batch):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    model.train()
    for _ in range(3):
        torch.nn.functional.cross_entropy(model(**batch).logits.cpu(), torch.tensor([0, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", [*ALL_FAMILIES, WITHOUT_POOLER])
def test_a_method_keeps_its_promises(folders, tokenizer, batch, tmp_path, family, name):
    method, kwargs = METHODS[name]
    path = folders[family]
    if name == "prefix_tuning" and family in NO_PREFIX:
        with pytest.raises(InputError, match=rf"prefix_tuning on a {family} model: .*past key values"):
            tuned(path, tokenizer, method, kwargs)
        return
    base, _ = load(path, tokenizer)
    base_logits = base.eval()(**batch).logits.detach()
    model, new_modules = tuned(path, tokenizer, method, kwargs)

    # At initialisation it is the base model; a prompt changes it from the start.
    start = model.eval()(**batch).logits.detach()
    if name in PROMPTS:
        assert not torch.allclose(start, base_logits)
    else:
        torch.testing.assert_close(start, base_logits)

    # What is new moves, and nothing of the head is wrapped.
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    saved = [name.replace(".modules_to_save.default", "") for name, p in model.named_parameters() if p.requires_grad]
    assert all(any(f".{module}." in name for name in saved) for module in new_modules)
    wrapped = [name for name, module in model.named_modules() if hasattr(module, "base_layer")]
    assert not [name for name in wrapped if any(name.endswith(module) for module in new_modules)]
    train_a_little(model, batch)
    trained = model(**batch).logits.detach()
    assert not torch.allclose(trained, start, atol=1e-3)
    weights = dict(model.named_parameters())
    assert frozen
    assert all(torch.equal(weights[name], value) for name, value in frozen.items())

    # Without the adapter it is the base model again. (PEFT cannot disable prompts on models that do not generate.)
    if name not in PROMPTS:
        with model.disable_adapter():
            torch.testing.assert_close(model(**batch).logits.detach(), base_logits)

    # Saved and loaded with plain PEFT, head included, it predicts the same.
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)  # other random values in whatever the adapter's folder does not bring
    base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
    torch.testing.assert_close(PeftModel.from_pretrained(base, tmp_path).eval()(**batch).logits, trained)

    # Merged it is a plain model that predicts the same.
    if name in NOT_MERGEABLE:
        with pytest.raises(InputError, match="cannot be merged"):
            fold_adapter(model)
        return
    merged = fold_adapter(model)
    torch.testing.assert_close(merged(**batch).logits, trained, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(plain(**batch).logits, trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("targets", [[], ["target_modules=all-linear"], ["target_modules=[dense, Wo, lin1, q]"]])
def test_the_head_of_a_masked_language_model_is_never_wrapped(folders, tokenizer, family, targets):
    model, new = load_model(AutoModelForMaskedLM, ModelArguments(folders[family]), tokenizer)
    model = apply_tuning(model, TuningArguments("lora", targets), None, new)
    wrapped = [name for name, module in model.named_modules() if hasattr(module, "base_layer")]
    assert wrapped
    body = f"base_model.model.{model.get_base_model().base_model_prefix}."
    assert [name for name in wrapped if not name.startswith(body)] == []


@pytest.mark.parametrize("method", sorted(method_names()))
def test_every_method_of_peft_works_or_says_why_not(checkpoint, tokenizer, batch, method):
    if method in UNFIT:
        with pytest.raises(InputError, match=f"--tuning {method}.*{UNFIT[method]}"):
            tuned(checkpoint, tokenizer, method)
        return
    model, _ = tuned(checkpoint, tokenizer, method)
    train_a_little(model, batch)
    assert torch.isfinite(model(**batch).logits).all()


def test_every_method_of_peft_is_known_by_its_name(checkpoint, tokenizer):
    with pytest.raises(InputError) as caught:
        tuned(checkpoint, tokenizer, "nonsense")
    known = str(caught.value)
    assert len(peft.PEFT_TYPE_TO_CONFIG_MAPPING) > 40
    assert "bottleneck" in known
    assert all(method.value.lower() in known for method in peft.PEFT_TYPE_TO_CONFIG_MAPPING)


def test_prompts_are_refused_where_peft_would_ignore_them(checkpoint, tokenizer):
    model, new = load_model(AutoModelForMaskedLM, ModelArguments(checkpoint), tokenizer)
    with pytest.raises(InputError, match="PEFT has no prompts for this task"):
        apply_tuning(model, TuningArguments("prompt_tuning"), None, new)


def test_the_penalty_of_adalora_is_the_one_of_peft(checkpoint, tokenizer, batch):
    """PEFT adds it to a loss that the model computes; ours comes from outside the model."""
    model, _ = tuned(checkpoint, tokenizer, "adalora")
    model.eval()
    labels = torch.tensor([0, 2])
    model(**batch, labels=labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(**batch).logits, labels).backward()
    without = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    AdaLoraCallback().on_pre_optimizer_step(None, None, None, model=model)
    changed = 0
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)
            changed += not torch.allclose(without[name], expected[name])
    assert changed == 2 * 2 * 2, "A and B of query and value in two layers"


def test_adalora_learns_its_budget_from_the_training(run_cls, tmp_path):
    options = {"num_train_epochs": 2, "save_strategy": "no", "load_best_model_at_end": "false"}
    result = run_cls("--tuning", "adalora", "--tuning_kwargs", "init_r=6", "target_r=2", **options)
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "run"))
    assert config.total_step == result["run"]["steps"] != NOT_YET_KNOWN
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    ranks = [int((value != 0).sum()) for name, value in saved.items() if "lora_E" in name]
    assert len(ranks) == 4
    assert sum(ranks) == 4 * 2, "the budget, shared out over the four matrices"


def test_adalora_keeps_the_best_epoch(run_cls):
    """PEFT's own way to save ranks fails here: the best epoch has another pattern than the last one."""
    result = run_cls("--tuning", "adalora", "--tuning_kwargs", "init_r=6", "target_r=2", num_train_epochs=3)
    assert result["run"]["best_step"] > 0


def test_a_budget_without_steps_is_refused(run_cls):
    with pytest.raises(InputError, match=r"leave none of the .* steps"):
        run_cls("--tuning", "adalora", "--tuning_kwargs", "tinit=500", "tfinal=500", num_train_epochs=1)


@pytest.fixture
def quantizable(tmp_path, tokenizer):
    """A BERT body wide enough for the blocks of 64 weights that 4 bits are scaled by."""
    config = tiny_config("bert", len(tokenizer))
    config.hidden_size = config.intermediate_size = 64
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "wide")
    return str(tmp_path / "wide")


@pytest.mark.parametrize("method", ["lora", "bottleneck", "linear_probe"])
@pytest.mark.parametrize("bits", [pytest.param("load_in_4bit", marks=pytest.mark.gpu), "load_in_8bit"])
def test_the_body_can_be_quantised_and_the_head_still_moves(quantizable, tokenizer, batch, tmp_path, bits, method):
    pytest.importorskip("bitsandbytes")
    arguments = ModelArguments(quantizable, **{bits: True})

    def build():
        torch.manual_seed(1)
        return load_model(AutoModelForSequenceClassification, arguments, tokenizer, label_names=["a", "b", "c"])

    model, new = build()
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["bert.encoder.layer.1.output.dense"] == f"Linear{'4bit' if '4' in bits else '8bitLt'}"
    assert kinds["classifier"] == kinds["bert.pooler.dense"] == "Linear"
    model = apply_tuning(model, TuningArguments(method), "SEQ_CLS", new).to(model.device)
    batch = {name: value.to(model.device) for name, value in batch.items()}
    start = model.eval()(**batch).logits.detach()
    trained = train_a_little(model, batch)(**batch).logits.detach()
    assert not torch.allclose(trained, start, atol=1e-3)
    if method == "linear_probe":
        return
    model.save_pretrained(tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(build()[0], tmp_path / "adapter").eval()
    torch.testing.assert_close(reloaded(**batch).logits, trained, rtol=1e-2, atol=1e-2)
    with pytest.raises(InputError, match="load its base in full precision" if method == "lora" else "merge"):
        fold_adapter(model)


@pytest.mark.parametrize("method", ["full", "bitfit"])
def test_quantised_weights_do_not_move(quantizable, tokenizer, method):
    pytest.importorskip("bitsandbytes")
    arguments = ModelArguments(quantizable, load_in_8bit=True)
    model, new = load_model(AutoModelForSequenceClassification, arguments, tokenizer)
    with pytest.raises(InputError, match="quantised weights cannot move; use lora"):
        apply_tuning(model, TuningArguments(method), "SEQ_CLS", new)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
def test_without_bitsandbytes_the_error_says_what_to_install(quantizable, tokenizer):
    arguments = ModelArguments(quantizable, load_in_8bit=True)
    with pytest.raises(InputError, match=r"pip install.* bitsandbytes"):
        load_model(AutoModelForSequenceClassification, arguments, tokenizer)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="only a CPU cannot do it")
def test_4_bits_are_refused_on_a_cpu(quantizable, tokenizer):
    arguments = ModelArguments(quantizable, load_in_4bit=True)
    with pytest.raises(InputError, match="--load_in_4bit needs a GPU"):
        load_model(AutoModelForSequenceClassification, arguments, tokenizer)


@pytest.mark.parametrize("other", ["load_in_8bit", "from_scratch"])
def test_what_does_not_go_with_4_bits(other):
    with pytest.raises(InputError, match=f"--{other}"):
        ModelArguments("x", load_in_4bit=True, **{other: True})
