"""Bottleneck adapters: what they compute, what of them moves and is saved, on every family, as PEFT's methods do."""

import copy
import importlib.util
import json

import peft
import pytest
import torch
from conftest import tiny_config
from peft import PeftModel, PeftType, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    FunnelConfig,
)

from ptft_recipes import bottleneck
from ptft_recipes.architectures import sub_layers
from ptft_recipes.bottleneck import BottleneckConfig, BottleneckLayer, InputProjection
from ptft_recipes.errors import InputError

ENCODERS = ("bert", "roberta", "distilbert", "albert", "mpnet", "modernbert", "electra", "camembert", "deberta-v2")
DECODERS = ("llama", "gpt2", "opt")
PLACEMENTS = ("houlsby", "pfeiffer", "parallel")
HIDDEN, LAYERS, VOCABULARY = 32, 2, 30


def tiny(family, auto_class=AutoModelForSequenceClassification, **changes):
    torch.manual_seed(0)
    config = tiny_config(family, VOCABULARY)
    config.num_labels = 3
    for name, value in changes.items():
        setattr(config, name, value)
    return auto_class.from_config(config).eval()


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    return {"input_ids": torch.randint(5, VOCABULARY, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}


def config_of(placement="houlsby", task_type=None, **fields):
    return BottleneckConfig(placement=placement, task_type=task_type, reduction_factor=4, **fields)


def randomise(model, names, seed=2):
    """Give adapters, which start at zero, weights that matter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bottleneck_" in name and any(f".{adapter}." in name for adapter in names):
                parameter.normal_(std=0.3)


def train_a_little(model, batch):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()
    for _ in range(3):
        logits = model(**batch).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, -2), torch.arange(logits[..., 0].numel()) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def parameters(model, trainable):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad == trainable}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_identity_training_saving_and_reloading(family, placement, batch, tmp_path):
    base = tiny(family)
    expected = base(**batch).logits
    model = get_peft_model(copy.deepcopy(base), config_of(placement, "SEQ_CLS")).eval()
    assert torch.equal(model(**batch).logits, expected), "not the identity at initialisation"

    frozen, moving = parameters(model, trainable=False), parameters(model, trainable=True)
    assert all("bottleneck_" in name or "modules_to_save" in name for name in moving)
    train_a_little(model, batch)
    after = dict(model.named_parameters())
    assert len(frozen) > 10
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert sum(not torch.equal(after[name], value) for name, value in moving.items()) > len(moving) / 2
    trained = model(**batch).logits
    assert not torch.allclose(trained, expected, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(**batch).logits, expected)
    assert torch.equal(copy.deepcopy(model)(**batch).logits, trained)

    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    saved = load_file(tmp_path / "adapter_model.safetensors")
    head = ("classifier", "score", "pre_classifier")  # PEFT's `classifier` is the end of DistilBERT's pre_classifier
    assert all("bottleneck_" in name or name.split(".")[2] in head for name in saved)
    assert sum(value.numel() for value in saved.values()) == sum(value.numel() for value in moving.values())
    other_head = copy.deepcopy(base)
    torch.nn.init.normal_(next(p for n, p in other_head.named_parameters() if n.split(".")[0] in head))
    reloaded = PeftModel.from_pretrained(other_head, tmp_path).eval()
    assert torch.equal(reloaded(**batch).logits, trained)


@pytest.mark.parametrize(
    ("family", "auto_class"),
    [
        *((family, AutoModelForMaskedLM) for family in ENCODERS),
        *((family, AutoModelForCausalLM) for family in DECODERS),
    ],
)
def test_a_language_model_without_task_type(family, auto_class, batch, tmp_path):
    base = tiny(family, auto_class)
    expected = base(**batch).logits
    model = get_peft_model(copy.deepcopy(base), config_of()).eval()
    assert torch.equal(model(**batch).logits, expected)
    train_a_little(model, batch)
    model.save_pretrained(tmp_path)
    assert all("bottleneck_" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    reloaded = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(reloaded(**batch).logits, model(**batch).logits)
    assert not torch.allclose(model(**batch).logits, expected, atol=1e-3)


@pytest.mark.parametrize("reduction_factor", [2, 4, 16])
def test_parameter_counts_are_those_of_the_papers(reduction_factor):
    size = HIDDEN // reduction_factor
    each = 2 * HIDDEN * size + HIDDEN + size
    for placement, adapters in (("houlsby", 2 * LAYERS), ("pfeiffer", LAYERS), ("parallel", LAYERS)):
        model = get_peft_model(
            tiny("bert", AutoModel), BottleneckConfig(placement=placement, reduction_factor=reduction_factor)
        )
        assert model.get_nb_trainable_parameters()[0] == adapters * each


def test_layers_that_share_weights_share_an_adapter(batch):
    model = get_peft_model(tiny("albert", AutoModel), config_of("parallel"))
    (layer,) = [m for m in model.modules() if isinstance(m, BottleneckLayer)]
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    model(**batch)
    assert len(calls) == LAYERS


def add_up(layer, name, hidden_states):
    """Compute scaling * up(relu(down(x))) from the weights alone."""
    down, up = layer.bottleneck_down[name], layer.bottleneck_up[name]
    inner = (hidden_states @ down.weight.T + down.bias).clamp(min=0)
    return layer.scaling[name] * (inner @ up.weight.T + up.bias)


def projections_in_and_out(model, batch, layer=0):
    """Run a BERT body; return the module and the input of a layer's feed-forward, and input and output of its end."""
    block = model.base_model.model.encoder.layer[layer]
    seen = {}
    handles = [
        block.intermediate.register_forward_hook(lambda m, args, out: seen.update(feed_forward_input=args[0])),
        block.output.dense.register_forward_hook(lambda m, args, out: seen.update(inner=args[0], out=out)),
    ]
    model(**batch)
    for handle in handles:
        handle.remove()
    return block.output.dense, seen


@pytest.mark.parametrize("scaling", [None, 0.5])
def test_what_a_serial_and_a_parallel_adapter_compute(batch, scaling):
    for placement, factor in (("pfeiffer", scaling or 1.0), ("parallel", scaling or 4.0)):
        model = get_peft_model(tiny("bert", AutoModel), config_of(placement, scaling=scaling)).eval()
        randomise(model, ["default"])
        dense, seen = projections_in_and_out(model, batch)
        assert dense.scaling == {"default": factor}
        projected = dense.base_layer(seen["inner"])
        source = seen["feed_forward_input"] if placement == "parallel" else projected
        torch.testing.assert_close(seen["out"], projected + add_up(dense, "default", source))


def test_houlsby_adapters_stand_behind_attention_and_feed_forward():
    block = get_peft_model(tiny("bert", AutoModel), config_of("houlsby")).base_model.model.encoder.layer[0]
    found = {name for name, module in block.named_modules() if isinstance(module, BottleneckLayer)}
    assert found == {"attention.output.dense", "output.dense"}


@pytest.mark.parametrize("order", [["one", "two", "beside"], ["two", "one"], ["beside", "one"]])
def test_a_stack_applies_its_adapters_in_their_order(batch, order):
    model = get_peft_model(tiny("bert", AutoModel), config_of("pfeiffer"), adapter_name="one").eval()
    model.add_adapter("two", config_of("houlsby", scaling=2.0))
    model.add_adapter("beside", config_of("parallel"))
    randomise(model, ["one", "two", "beside"])
    model.base_model.set_adapter(order)
    dense, seen = projections_in_and_out(model, batch)
    expected = dense.base_layer(seen["inner"])
    for name in order:
        expected = expected + add_up(dense, name, seen["feed_forward_input"] if name == "beside" else expected)
    torch.testing.assert_close(seen["out"], expected)
    attention = model.base_model.model.encoder.layer[0].attention.output.dense
    assert set(attention.bottleneck_down) == {"two"}


def test_a_task_adapter_with_its_head_on_a_language_adapter(batch):
    """MAD-X: the language's adapter has no head, so that PEFT's one active head is the task's."""
    model = get_peft_model(tiny("bert"), config_of("pfeiffer"), adapter_name="language").eval()
    model.add_adapter("task", config_of("pfeiffer", modules_to_save=["classifier"]))
    randomise(model, ["language", "task"])
    model.base_model.set_adapter(["language", "task"])
    model.base_model.set_requires_grad("language", False)
    moving = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert moving
    assert all(".task." in name for name in moving)
    both = model(**batch).logits
    model.set_adapter("task")
    assert not torch.allclose(model(**batch).logits, both)


def test_adapters_are_added_switched_loaded_and_deleted(batch, tmp_path):
    base = tiny("roberta")
    expected = base(**batch).logits
    model = get_peft_model(copy.deepcopy(base), config_of("houlsby", "SEQ_CLS"), adapter_name="one").eval()
    model.add_adapter("two", config_of("parallel", "SEQ_CLS"))
    randomise(model, ("one", "two"))
    outputs = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        outputs[name] = model(**batch).logits
        assert {n for n, p in model.named_parameters() if p.requires_grad and f".{name}." not in n} == set()
    assert not torch.allclose(outputs["one"], outputs["two"])
    assert not torch.allclose(outputs["two"], expected)
    assert model.get_model_status().active_adapters == ["two"]
    model.save_pretrained(tmp_path)

    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "one", adapter_name="one").eval()
    again.load_adapter(tmp_path / "two", adapter_name="two")
    assert torch.equal(again(**batch).logits, outputs["one"])
    again.set_adapter("two")
    assert torch.equal(again(**batch).logits, outputs["two"])
    again.delete_adapter("two")
    again.set_adapter("one")
    assert torch.equal(again(**batch).logits, outputs["one"])
    assert not [name for name in again.state_dict() if ".two." in name]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_merging_is_refused_and_unloading_gives_the_base_back(batch, placement):
    base = tiny("modernbert", AutoModelForMaskedLM)
    model = get_peft_model(copy.deepcopy(base), config_of(placement)).eval()
    randomise(model, ["default"])
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="cannot be merged: its non-linearity"):
            merge()
    unloaded = model.unload()
    assert list(unloaded.state_dict()) == list(base.state_dict())
    assert torch.equal(unloaded(**batch).logits, base(**batch).logits)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_mixed_precision(batch, placement):
    for dtype in (torch.float32, torch.bfloat16):
        base = tiny("bert").to(dtype)
        model = get_peft_model(copy.deepcopy(base), config_of(placement)).eval()
        adapter = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for p in adapter} == {torch.float32}
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**batch).logits
            assert torch.equal(logits, base(**batch).logits)
        logits.float().sum().backward()
        assert any(p.grad.abs().sum() > 0 for p in adapter)
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, base(**batch).logits), "without autocast"


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_gradient_checkpointing_changes_no_gradient(batch, family, placement, use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = get_peft_model(tiny(family), config_of(placement, "SEQ_CLS"))
        randomise(model, ["default"])
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        calls = []
        layer = next(m for m in model.modules() if isinstance(m, BottleneckLayer))
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(**batch).logits.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        assert len(calls) == (2 if checkpointing else 1)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_the_feed_forward_input_is_let_go_and_belongs_to_one_copy(batch):
    model = get_peft_model(tiny("bert"), config_of("parallel"))
    clone = copy.deepcopy(model)
    for each in (model, clone):
        each(**batch)
        holders = [m.bottleneck_input for m in each.modules() if isinstance(m, BottleneckLayer)]
        assert len(holders) == LAYERS
        assert all(holder.hidden_states is None for holder in holders)
        assert {id(m.bottleneck_input) for m in each.modules() if isinstance(m, InputProjection)} == set(
            map(id, holders)
        )
    assert not {id(m) for m in model.modules()} & {id(m) for m in clone.modules()}


def test_a_chunked_feed_forward_gives_the_same(batch):
    outputs = []
    for size in (0, 1):
        model = get_peft_model(tiny("bert", chunk_size_feed_forward=size), config_of("parallel")).eval()
        randomise(model, ["default"])
        outputs.append(model(**batch).logits)
    torch.testing.assert_close(*outputs)


def test_layer_norms_are_trained_saved_and_switched_with_their_adapter(batch, tmp_path):
    base = tiny("bert")
    model = get_peft_model(copy.deepcopy(base), config_of("houlsby", "SEQ_CLS", train_layer_norms=True)).eval()
    assert torch.equal(model(**batch).logits, base(**batch).logits)
    norms = [n for n, p in model.named_parameters() if p.requires_grad and "LayerNorm" in n]
    assert len(norms) == 2 * (1 + 2 * LAYERS)
    model.add_adapter("other", config_of("pfeiffer", "SEQ_CLS", train_layer_norms=True))
    assert set(model.peft_config["other"].modules_to_save) == set(model.peft_config["default"].modules_to_save)
    train_a_little(model, batch)
    trained = model(**batch).logits
    assert not torch.equal(dict(model.named_parameters())[norms[0]], base.bert.embeddings.LayerNorm.weight)
    model.set_adapter("other")
    assert torch.equal(model(**batch).logits, base(**batch).logits)
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(reloaded(**batch).logits, trained)


def test_an_activation_with_weights_is_saved(batch, tmp_path):
    base = tiny("bert")
    model = get_peft_model(copy.deepcopy(base), config_of("pfeiffer", non_linearity="prelu")).eval()
    randomise(model, ["default"])
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert len([name for name in names if name.endswith("bottleneck_activation.weight")]) == LAYERS
    assert torch.equal(PeftModel.from_pretrained(base, tmp_path).eval()(**batch).logits, model(**batch).logits)
    model.add_adapter("other", config_of("pfeiffer"))
    model.set_adapter("other")
    assert all(".other." in name for name in parameters(model, trainable=True))
    model.delete_adapter("default")
    assert not [name for name in model.state_dict() if ".default." in name]


def test_dropout_acts_in_training_only():
    model = get_peft_model(tiny("bert"), config_of("pfeiffer", dropout=0.5))
    randomise(model, ["default"])
    layer = next(m for m in model.modules() if isinstance(m, BottleneckLayer))
    hidden_states = torch.randn(4, 64)
    assert torch.equal(layer.eval()(hidden_states), layer(hidden_states))
    assert not torch.equal(layer.train()(hidden_states), layer(hidden_states))


def test_layers_can_be_left_out():
    model = get_peft_model(tiny("bert", AutoModel), config_of("pfeiffer", exclude_modules=r".*layer\.0\..*"))
    assert model.base_model.targeted_module_names == ["encoder.layer.1.output.dense"]


def test_modules_of_an_unknown_family_are_named_by_hand(batch):
    funnel = FunnelConfig(
        vocab_size=VOCABULARY, block_sizes=[1, 1], d_model=32, n_head=2, d_head=16, d_inner=64, num_labels=3
    )
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(funnel).eval()
    for placement in PLACEMENTS:
        with pytest.raises(InputError, match="funnel: no table of this family's projections"):
            get_peft_model(copy.deepcopy(base), config_of(placement))
    by_hand = {
        "houlsby": {"target_modules": ["post_proj", "linear_2"]},
        "parallel": {"target_modules": ["linear_2"], "input_modules": ["linear_1"]},
    }
    for placement, fields in by_hand.items():
        model = get_peft_model(copy.deepcopy(base), config_of(placement, **fields)).eval()
        assert torch.equal(model(**batch).logits, base(**batch).logits)
        randomise(model, ["default"])
        assert not torch.allclose(model(**batch).logits, base(**batch).logits)


@pytest.mark.parametrize("input_modules", [["nothing"], ["layer.0.intermediate.dense"], ["pooler.dense"]])
def test_an_input_projection_must_belong_to_its_output(input_modules):
    names = sub_layers("bert")
    config = config_of(
        "parallel", target_modules=names.pattern(names.feed_forward_output), input_modules=input_modules
    )
    with pytest.raises(ValueError, match=r"input_modules .* comes before encoder\.layer\.\d\.output\.dense"):
        get_peft_model(tiny("bert", AutoModel), config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"placement": "pfeifer"}, "placement 'pfeifer': must be one of .*; did you mean 'pfeiffer'"),
        ({"reduction_factor": 0}, "reduction_factor 0: must be a whole number"),
        ({"reduction_factor": 1.5}, "reduction_factor 1.5: must be a whole number"),
        ({"reduction_factor": True}, "reduction_factor True"),
        ({"non_linearity": "rellu"}, "non_linearity 'rellu': .*; did you mean 'relu'"),
        ({"dropout": 1.0}, "dropout 1.0: must be at least 0 and below 1"),
        ({"dropout": float("nan")}, "dropout nan"),
        ({"scaling": 0.0}, "scaling 0.0: must be above 0"),
        ({"scaling": float("inf")}, "scaling inf"),
        ({"input_modules": ["fc1"]}, "input_modules: houlsby adapters read no feed-forward input"),
        ({"placement": "parallel", "target_modules": ["fc2"]}, "give both target_modules and input_modules"),
        ({"task_type": "POETRY"}, "Invalid task type"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BottleneckConfig(**fields)


def test_a_reduction_factor_above_the_hidden_size_is_refused():
    with pytest.raises(ValueError, match="reduction_factor 64: above the hidden size 32"):
        get_peft_model(tiny("bert"), BottleneckConfig(reduction_factor=64))


def test_only_projections_carry_adapters():
    with pytest.raises(ValueError, match="needs a linear projection, not a LayerNorm"):
        get_peft_model(tiny("bert"), config_of(target_modules=["LayerNorm"]))


def test_the_saved_configuration_says_all(tmp_path):
    get_peft_model(tiny("bert"), config_of("parallel", "SEQ_CLS")).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "BOTTLENECK"
    assert (saved["scaling"], saved["reduction_factor"], saved["placement"]) == (4.0, 4, "parallel")
    assert peft.PeftConfig.from_pretrained(tmp_path).input_modules == saved["input_modules"] is not None


def test_an_adapter_of_the_fork_with_the_same_name_is_refused(tmp_path):
    """A fork of PEFT published BOTTLENECK adapters; PEFT would drop the unknown fields with a warning only."""
    config = {"peft_type": "BOTTLENECK", "bottleneck_size": 64, "target_modules": ["fc2"], "scaling": 1.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="saved by a fork of PEFT"):
        PeftModel.from_pretrained(tiny("opt"), tmp_path)


def test_importing_anew_registers_anew():
    members = list(PeftType)
    spec = importlib.util.find_spec("ptft_recipes.bottleneck")
    fresh = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(fresh)
        assert fresh.BottleneckConfig is not BottleneckConfig
        assert peft.PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.BOTTLENECK] is fresh.BottleneckConfig
        assert peft.PEFT_TYPE_TO_TUNER_MAPPING["BOTTLENECK"] is fresh.BottleneckModel
        assert list(PeftType) == members
        assert PeftType("BOTTLENECK") is PeftType.BOTTLENECK is copy.deepcopy(PeftType.BOTTLENECK)
    finally:
        bottleneck._register()
    assert peft.PEFT_TYPE_TO_CONFIG_MAPPING["BOTTLENECK"] is BottleneckConfig
