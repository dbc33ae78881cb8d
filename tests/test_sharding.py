"""What a model that FSDP or DeepSpeed cuts needs beyond Trainer; tests/recipes/test_engines.py trains with them."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from conftest import ENCODER_DECODERS, tiny_config
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.integrations import deepspeed as integration

from ptft_recipes import sharding
from ptft_recipes.errors import InputError
from ptft_recipes.sharding import (
    check_options,
    cut_by_layers,
    is_cut,
    layer_classes,
    tensors_only,
    whole_until_trained,
)
from ptft_recipes.tuning import TuningArguments


def tiny_model(family):
    sizes = ENCODER_DECODERS.get(family)
    config = AutoConfig.for_model(family, vocab_size=30, **sizes) if sizes else tiny_config(family, 30)
    with torch.device("meta"):
        return AutoModel.from_config(config)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert", ["BertLayer"]),
        ("roberta", ["RobertaLayer"]),
        ("distilbert", ["TransformerBlock"]),
        ("modernbert", ["ModernBertEncoderLayer"]),
        ("mpnet", ["MPNetLayer"]),
        ("llama", ["LlamaDecoderLayer"]),
        ("gpt2", ["GPT2Block"]),
        ("t5", ["T5Block"]),
        ("bart", ["BartDecoderLayer", "BartEncoderLayer"]),
        ("albert", []),  # one layer, passed through again and again
    ],
)
def test_the_layers_of_a_model_are_found_and_its_embeddings_are_not_among_them(family, expected):
    model = tiny_model(family)
    assert layer_classes(model) == expected
    embeddings = model.get_input_embeddings()
    assert not [m for m in model.modules() if type(m).__name__ in expected and embeddings in m.modules()]


def fsdp_trainer(model, **plugin):
    plugin = SimpleNamespace(**{"fsdp_version": 2, "transformer_cls_names_to_wrap": None} | plugin)
    return SimpleNamespace(accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)), model=model)


def test_classes_that_the_configuration_names_stay():
    for named, expected in ((None, ["BertLayer"]), (["BertPooler"], ["BertPooler"])):
        trainer = fsdp_trainer(tiny_model("bert"), transformer_cls_names_to_wrap=named)
        with cut_by_layers(trainer):
            assert trainer.model.get_output_embeddings() is None, "there is none"
        assert trainer.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap == expected


def test_embeddings_that_encoder_and_decoder_share_are_refused_before_fsdp2_fails():
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", vocab_size=30, **ENCODER_DECODERS["t5"]))
    told = r"cut embeddings that encoder\.embed_tokens, decoder\.embed_tokens share; use deepspeed_zero3"
    with pytest.raises(InputError, match=told), cut_by_layers(fsdp_trainer(model)):
        pass
    with cut_by_layers(fsdp_trainer(model, fsdp_version=1)):
        assert model.get_output_embeddings() is model.lm_head


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_head_that_holds_the_bias_of_the_output_is_cut_together_with_it(family, monkeypatch):
    model, groups = AutoModelForMaskedLM.from_config(tiny_config(family, 30)), []
    monkeypatch.setattr(sharding, "fully_shard", lambda modules, **kwargs: groups.append(modules))
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    with cut_by_layers(fsdp_trainer(model, mixed_precision_policy=None, cpu_offload=None)):
        if family == "bert":
            assert groups == [[*ends, model.cls.predictions]]
            assert model.get_output_embeddings() is None
        else:  # accelerate cuts these two together itself
            assert groups == []
            assert model.get_output_embeddings() is ends[1]
    assert model.get_output_embeddings() is ends[1]


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fgm": 1.0}, "--fgm"),
        ({"l2_sp": 0.1}, "--l2_sp"),
        ({"mixout": 0.5}, "--mixout"),
        ({"merge_adapter": True, "tuning": "lora"}, "--merge_adapter"),
        ({"tuning": "adalora"}, "--tuning adalora"),
        ({"tuning": "lora", "layer_wise_decay": 0.9, "r_drop": 1.0}, ""),
    ],
)
def test_what_needs_whole_weights_is_refused(engine, options, told):
    trainer = SimpleNamespace(is_fsdp_enabled=engine == "fsdp", is_deepspeed_enabled=engine == "deepspeed")
    if told:
        with pytest.raises(InputError, match=f"(?i){told}: {engine} cuts the weights that it needs whole"):
            check_options(trainer, TuningArguments(**options))
    else:
        check_options(trainer, TuningArguments(**options))
    trainer.is_fsdp_enabled = trainer.is_deepspeed_enabled = False
    check_options(trainer, TuningArguments(**options))


@pytest.mark.parametrize(
    ("fsdp", "plugin", "expected"),
    [(True, None, True), (False, None, False), (False, 2, False), (False, 3, True)],
)
def test_a_process_has_a_whole_model_but_under_fsdp_and_zero_3(fsdp, plugin, expected):
    state = SimpleNamespace(deepspeed_plugin=plugin and SimpleNamespace(zero_stage=plugin))
    trainer = SimpleNamespace(is_fsdp_enabled=fsdp, accelerator=SimpleNamespace(state=state))
    assert is_cut(trainer) == expected


def test_until_there_is_an_optimizer_a_model_is_evaluated_whole():
    trainer = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False, optimizer=None)
    with whole_until_trained(trainer):
        assert not trainer.is_fsdp_enabled
    assert trainer.is_fsdp_enabled
    trainer.optimizer = object()
    with whole_until_trained(trainer):
        assert trainer.is_fsdp_enabled


def test_zero_3_does_not_cut_a_model_as_it_is_loaded(monkeypatch):
    class Stage3:
        def is_zero3(self):
            return True

    monkeypatch.setattr(integration, "_hf_deepspeed_config_weak_ref", None)
    config = Stage3()
    integration.set_hf_deepspeed_config(config)
    sharding.load_whole(SimpleNamespace(deepspeed_plugin=None))
    assert integration.is_deepspeed_zero3_enabled()
    sharding.load_whole(SimpleNamespace(deepspeed_plugin=object()))
    assert not integration.is_deepspeed_zero3_enabled()


class Evil:
    def __reduce__(self):
        return print, ("it ran",)


class Harmless:
    pass


def test_a_checkpoint_of_deepspeed_runs_no_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sharding, "_deepspeed_classes", lambda: [Harmless])
    for name, content in (("evil", Evil()), ("harmless", {"scaler": Harmless(), "step": torch.ones(2)})):
        torch.save(content, tmp_path / f"{name}.pt")
    with tensors_only(SimpleNamespace(is_deepspeed_enabled=True)):
        assert torch.load(tmp_path / "harmless.pt", weights_only=False)["step"].sum() == 2
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "evil.pt", weights_only=False)
    assert capsys.readouterr().out == ""
    with tensors_only(SimpleNamespace(is_deepspeed_enabled=False)):
        torch.load(tmp_path / "evil.pt", weights_only=False)
    assert capsys.readouterr().out == "it ran\n", "the file would do it"


def test_the_classes_that_deepspeed_saves_are_where_they_are_looked_for():
    pytest.importorskip("deepspeed")
    with tensors_only(SimpleNamespace(is_deepspeed_enabled=True)):
        assert "deepspeed.runtime.fp16.loss_scaler" in str(torch.serialization.get_safe_globals())
