"""Which weights move under which option, and which options are refused."""

import pytest
import torch
from conftest import FAMILIES
from transformers import AutoModelForSequenceClassification

from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, load_model
from ptft_recipes.tuning import TuningArguments, apply_tuning, count_parameters


@pytest.fixture(scope="module")
def batch(tokenizer):
    encoded = tokenizer(["the match goal", "a cell of atom theory"], padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def tuned(path, tokenizer, method, kwargs=(), seed=1):
    torch.manual_seed(seed)
    arguments = ModelArguments(model_name_or_path=str(path))
    model, new = load_model(AutoModelForSequenceClassification, arguments, tokenizer, label_names=["a", "b", "c"])
    return apply_tuning(model, TuningArguments(method, list(kwargs)), "SEQ_CLS", new), new


def train_a_little(model, batch):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()
    for _ in range(3):
        torch.nn.functional.cross_entropy(model(**batch).logits, torch.tensor([0, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_probe_moves_the_head_only(checkpoints, tokenizer, family):
    model, new_modules = tuned(checkpoints[family], tokenizer, "linear_probe")
    moving = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moving == set(new_modules)


def test_linear_probe_moves_a_head_that_the_checkpoint_brought(tmp_path, checkpoint, tokenizer):
    AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3).save_pretrained(tmp_path)
    model, new_modules = tuned(tmp_path, tokenizer, "linear_probe")
    assert new_modules == []
    moving = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert moving == ["classifier.weight", "classifier.bias"]


@pytest.mark.parametrize("method", ["linear_probe", "bitfit", "lora", "bottleneck"])
def test_a_pooler_moves_as_a_whole_where_it_is_asked_for(checkpoint, tokenizer, method):
    kwargs = ["modules_to_save=[pooler]"]
    model, new_modules = tuned(checkpoint, tokenizer, method, kwargs)
    assert new_modules == ["classifier"]
    moving = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "pooler" in name]
    assert [name.rpartition(".")[2] for name in moving] == ["weight", "bias"]


def test_bitfit_moves_biases_and_the_head(checkpoint, tokenizer):
    model, _ = tuned(checkpoint, tokenizer, "bitfit")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name.endswith("bias") or name.startswith("classifier")), name


def test_full_moves_everything(checkpoint, tokenizer):
    trainable, total = count_parameters(tuned(checkpoint, tokenizer, "full")[0])
    assert trainable == total > 0


def test_an_adapter_goes_on_from_its_folder(checkpoint, tokenizer, batch, tmp_path):
    model, _ = tuned(checkpoint, tokenizer, "lora")
    train_a_little(model, batch)
    model.save_pretrained(tmp_path)
    again, _ = tuned(checkpoint, tokenizer, str(tmp_path), seed=5)
    torch.testing.assert_close(again.eval()(**batch).logits, model(**batch).logits)
    assert count_parameters(again) == count_parameters(model)


def test_tuning_kwargs_fill_the_config_with_their_types(checkpoint, tokenizer):
    kwargs = ["r=2", "lora_alpha=8", "lora_dropout=0", "use_rslora=true", "target_modules=[query]", "bias=lora_only"]
    config = tuned(checkpoint, tokenizer, "LoRA", kwargs)[0].peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 8, 0.0)
    assert config.use_rslora is True
    assert config.target_modules == {"query"}
    assert config.bias == "lora_only"


@pytest.mark.parametrize(
    ("method", "kwargs", "message"),
    [
        ("loro", [], r"no such method or folder; did you mean 'lora'\?.*linear_probe"),
        ("lora", ["rank=3"], "lora has no such field.*lora_alpha"),
        ("lora", ["lora_alfa=3"], "did you mean 'lora_alpha'"),
        ("lora", ["r=four"], "r must be int"),
        ("lora", ["r=1.5"], "r must be int"),
        ("lora", ["use_dora=maybe"], "use_dora must be bool"),
        ("lora", ["r"], "expected name=value"),
        ("bottleneck", ["placement=sideways"], "placement must be one of houlsby, pfeiffer, parallel"),
        ("bottleneck", ["reduction_factor=999"], r"above the hidden size 32 \(its fields: --tuning_kwargs"),
        ("bottleneck", ["non_linearity=rellu"], "did you mean 'relu'"),
        ("lora", ["task_type=SEQ_CLS"], "no such field"),
        ("lora", ["target_modules=[nothing]"], "on a bert model: No modules were targeted"),
        ("full", ["r=4"], "--tuning full takes no --tuning_kwargs"),
        ("bitfit", ["r=4"], r"bitfit has no such field \(modules_to_save\)"),
        ("linear_probe", ["modules_to_save=[puller]"], "the model has no module 'puller'"),
        ("linear_probe", ["modules_to_save=3"], "modules_to_save must be"),
        ("tests", [], "the folder has no adapter_config.json"),
    ],
)
def test_mistakes_are_named(checkpoint, tokenizer, monkeypatch, pytestconfig, method, kwargs, message):
    monkeypatch.chdir(pytestconfig.rootpath)
    with pytest.raises(InputError, match=message):
        tuned(checkpoint, tokenizer, method, kwargs)


def test_bitfit_needs_biases(checkpoints, tokenizer):
    with pytest.raises(InputError, match="a modernbert body has no biases"):
        tuned(checkpoints["modernbert"], tokenizer, "bitfit")


def test_an_adapter_of_another_model_is_refused(checkpoints, tokenizer, tmp_path):
    tuned(checkpoints["roberta"], tokenizer, "lora")[0].save_pretrained(tmp_path)
    with pytest.raises(InputError, match="the adapter does not fit this model"):
        tuned(checkpoints["distilbert"], tokenizer, str(tmp_path))
