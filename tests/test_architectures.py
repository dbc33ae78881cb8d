"""The table of sub-layers: of every family, exactly the projections of its layers, and nothing of a head."""

import re

import pytest
import torch
from conftest import tiny_config, tiny_seq2seq_config
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.pytorch_utils import Conv1D

from ptft_recipes.architectures import ENCODER_DECODERS, SUB_LAYERS, sub_layers
from ptft_recipes.errors import InputError

DECODERS = ("gemma", "gemma2", "gpt2", "llama", "mistral", "opt", "qwen2", "qwen3")
OUTSIDE_THE_LAYERS = (
    "classifier|score|lm_head|pooler|cls|predictions|generator_|head|decoder|pre_classifier|vocab_|dense|"
    "embeddings_project|embedding_hidden_mapping_in|contact_head"
)


def classes_of(family):
    classes = [AutoModel, AutoModelForSequenceClassification]
    classes.append(AutoModelForCausalLM if family in DECODERS else AutoModelForMaskedLM)
    return classes if family == "opt" else [*classes, AutoModelForTokenClassification]


@pytest.mark.parametrize("family", [family for family in SUB_LAYERS if family not in ENCODER_DECODERS])
def test_each_name_is_found_once_in_each_layer_and_nowhere_else(family):
    names = sub_layers(family)
    config = tiny_config(family, 30)
    layers = 1 if family == "albert" else config.num_hidden_layers
    for auto_class in classes_of(family):
        linear = {
            n for n, m in auto_class.from_config(config).named_modules() if isinstance(m, torch.nn.Linear | Conv1D)
        }
        assert len(linear) >= layers * len(names.projections())
        for name in names.projections():
            assert len([n for n in linear if re.fullmatch(names.pattern(name), n)]) == layers, (auto_class, name)
        rest = {n for n in linear if not re.fullmatch(names.pattern(*names.projections()), n)}
        assert all(re.fullmatch(rf"(\w+\.)?(encoder\.)?({OUTSIDE_THE_LAYERS})\w*(\.\w+)*", n) for n in rest), rest
        assert not [n for n in rest if re.search(r"\.\d+\.", n)], "a projection of a layer is missing in the table"


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_of_encoder_decoders_each_name_is_found_once_in_each_layer_of_both_stacks(family):
    names, config = sub_layers(family), tiny_seq2seq_config(family, 30)
    modules = AutoModelForSeq2SeqLM.from_config(config).named_modules()
    linear = {name for name, module in modules if isinstance(module, torch.nn.Linear)}
    for name in names.projections():
        assert len([n for n in linear if re.fullmatch(names.pattern(name), n)]) == 4, (
            "2 layers that read, 2 that write"
        )
    rest = {n for n in linear if not re.fullmatch(names.pattern(*names.projections()), n)}
    assert len(rest) == 1 + 2 * 4, "the head, and in each decoder layer the attention to the encoder"


@pytest.mark.parametrize("family", ["albert", "bert", "distilbert", "gpt2", "llama", "modernbert", "mpnet"])
def test_lora_and_ia3_take_the_patterns(family):
    names = sub_layers(family)
    layers = 1 if family == "albert" else 2
    scaled = {names.key, names.value, names.feed_forward_output}
    feed_forward = names.pattern(names.feed_forward_output)
    configs = [
        (LoraConfig(target_modules=names.pattern(*names.projections())), set(names.projections())),
        (LoraConfig(target_modules=names.pattern(names.query, names.value)), {names.query, names.value}),
        (IA3Config(target_modules=names.pattern(*scaled), feedforward_modules=feed_forward), scaled),
    ]
    for config, expected in configs:
        config.task_type = "SEQ_CLS"
        base = AutoModelForSequenceClassification.from_config(tiny_config(family, 30))
        tuner = get_peft_model(base, config).base_model
        assert len(tuner.targeted_module_names) == layers * len(expected)
    scaled_inputs = [name for name, module in tuner.model.named_modules() if getattr(module, "is_feedforward", False)]
    assert len(scaled_inputs) == layers
    assert all(re.fullmatch(feed_forward, name) for name in scaled_inputs)


def test_an_unknown_family_is_told_how_to_name_modules():
    with pytest.raises(InputError, match=r"funnel: no table.*albert, bart, bert, .*target_modules=\["):
        sub_layers("funnel")
