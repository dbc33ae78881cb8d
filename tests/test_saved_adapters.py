"""A saved adapter fits to the last weight, or is refused: PEFT drops and invents weights with a warning at most."""

import copy
import json
import os
import time

import peft
import pytest
import torch
from conftest import tiny_config
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from ptft_recipes.adapters import wrap_with_peft
from ptft_recipes.errors import InputError
from ptft_recipes.saved_adapters import load_adapter

NEW = ["classifier"]


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(tiny_config("bert", 30)).eval()


@pytest.fixture
def folder(base, tmp_path):
    model = get_peft_model(copy.deepcopy(base), LoraConfig(task_type="SEQ_CLS", r=4, modules_to_save=[*NEW]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    return tmp_path


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(base, folder, new_modules=NEW) -> str:
    with pytest.raises(InputError) as error:
        load_adapter(copy.deepcopy(base), str(folder), new_modules)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600
    return str(error.value)


# BOFT and AdaMSS compute with the weights while they wrap the model, so that there is nothing to compare beforehand.
@pytest.mark.parametrize("method", ["boft", "adamss", "lora", "vera", "adalora", "ia3", "ln_tuning", "bottleneck"])
def test_a_method_comes_back_bit_for_bit(base, tmp_path, method):
    saved = wrap_with_peft(copy.deepcopy(base), method, [], "SEQ_CLS", [*NEW])
    for parameter in saved.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    saved.save_pretrained(tmp_path)
    again = load_adapter(copy.deepcopy(base), str(tmp_path), NEW)
    ids = torch.tensor([[2, 7, 8, 3]])
    assert torch.equal(again.eval()(input_ids=ids).logits, saved.eval()(input_ids=ids).logits)
    moving = [{name for name, p in model.named_parameters() if p.requires_grad} for model in (saved, again)]
    assert moving[0] == moving[1]


def test_weights_that_the_file_lacks_stay_random_in_peft_and_are_an_error_here(base, folder):
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "layer.1" in name)
    save_file({other: weight for other, weight in weights.items() if other != name}, path)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)  # the trap
    assert f"its file lacks {name}" in refused(base, folder)


def test_weights_without_a_place_are_dropped_by_peft_and_are_an_error_here(base, folder):
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "query" in name)
    save_file(weights | {name.replace("query", "key"): weights[name].clone()}, path)
    peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)  # the trap: not even a warning
    assert "the model has no place for" in refused(base, folder)


@pytest.mark.parametrize("method", ["IA3", "BOTTLENECK", "LOHA"])
def test_a_config_of_another_method_would_load_as_random_weights(base, folder, method):
    change(folder, peft_type=method)
    refused(base, folder)


@pytest.mark.parametrize("fields", [{"r": 10**10}, {"rank_pattern": {"query": 10**10}}])
def test_a_rank_of_billions_allocates_nothing(base, folder, fields):
    change(folder, **fields)
    start = time.perf_counter()
    assert "lora_A.weight has the shape [4, 32], where the model has [10000000000, 32]" in refused(base, folder)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "LORO"}, "peft_type must be a method of the installed PEFT, not 'LORO'; did you mean 'lora'?"),
        ({"peft_type": None}, "peft_type must be"),
        ({"r": "4"}, "r must be int"),
        ({"r": True}, "r must be int"),
        ({"lora_alpha": None}, "lora_alpha must be int"),
        ({"rank_pattern": [1]}, "rank_pattern must be"),
        ({"rank_pattern": {"query": "2"}}, "does not fit this model"),
        ({"use_dora": "yes"}, "use_dora must be bool"),
        ({"r": -1}, "positive"),
        ({"new_option": 3}, "lora has no field 'new_option' in the installed PEFT"),
        ({"target_modules": ["nothing"]}, "does not fit this model"),
        ({"target_modules": "("}, "does not fit this model"),
        ({"lora_dropout": float("nan")}, "NaN is no finite number"),
        ({"megatron_config": {"a": 1}}, "megatron"),
        ({"init_lora_weights": ["query"]}, "init_lora_weights must be"),
    ],
)
def test_a_field_that_cannot_be_is_named(base, folder, fields, said):
    change(folder, **fields)
    assert said in refused(base, folder)


def test_fields_of_a_newer_peft_that_are_off_are_nothing_to_lose(base, folder):
    before = load_adapter(copy.deepcopy(base), str(folder), NEW)
    change(folder, new_option=None, newer=False, lora_alpha=8.0, auto_mapping={"parent_library": "os"})
    after = load_adapter(copy.deepcopy(base), str(folder), NEW)
    ids = torch.tensor([[2, 7, 8, 3]])
    assert torch.equal(before.eval()(input_ids=ids).logits, after.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("text", ["", "null", "[]", "{" * 5000, '{"peft_type": "LORA", "peft_type": "IA3"}', "\0"])
def test_a_config_that_is_no_object_is_refused(base, folder, text):
    (folder / "adapter_config.json").write_text(text)
    assert "adapter_config.json" in refused(base, folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused_at_once(base, folder, name):
    (folder / name).unlink()
    assert f"the folder has no {name}" in refused(base, folder)
    os.mkfifo(folder / name)
    assert f"{name}: not a regular file" in refused(base, folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{name}: not a regular file" in refused(base, folder)


def test_a_damaged_file_or_a_weight_that_is_not_finite_is_refused(base, folder):
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"\xff" * 16 + whole[16:]):
        path.write_bytes(damaged)
        assert "adapter_model.safetensors: damaged" in refused(base, folder)
    path.write_bytes(whole)
    weights = load_file(path)
    name = next(iter(weights))
    weights[name].view(-1)[0] = float("inf")
    save_file(weights, path)
    assert "holds values that are not finite" in refused(base, folder)


def test_a_pickle_is_not_read(base, folder, tmp_path):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "pwned") + b"'\ntR.")
    assert "other formats are not read" in refused(base, folder)
    assert not (tmp_path / "pwned").exists()


def test_a_new_head_that_the_adapter_does_not_bring_is_refused(base, folder):
    path = folder / "adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(path).items() if "lora" in name}, path)
    change(folder, task_type=None, modules_to_save=None)
    load_adapter(copy.deepcopy(base), str(folder), [])
    assert "classifier is new in this model, and the adapter does not bring it" in refused(base, folder)
