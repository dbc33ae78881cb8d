"""Adapter folders that are broken in known ways, and what each must predict by the formula of LoRA."""

import copy
import dataclasses
import json
import math
import random
import re
from pathlib import Path

import torch
from conftest import tiny_config
from peft import LoraConfig, get_peft_model
from reliability.broken_data import BYTES, put_elsewhere
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

VALUES = [
    *(None, True, False, 0, -1, 1, 2, 4, 8, 16, 10**6, 10**12, 10**30, 0.0, 0.5, -0.5, 1.5, 4.0, 1e308),
    *(
        float("nan"),
        float("inf"),
        "",
        "x",
        "4",
        "null",
        "../x",
        "all-linear",
        "all",
        "none",
        "query",
        "que.*",
        "(",
        "*",
    ),
    *("x" * 100_000, [], ["query"], ["query", "value"], ["nothing"], ["query", "dense"], [None], [1], [["query"]]),
    *(["classifier"], ["puller"], {}, {"query": 2}, {"query": "2"}, {"query": True}, {"query": -1}, {"query": 10**9}),
    *({"value": 3.0}, {"(": 2}, {"a": {"b": [1]}}, {"query": None}, {"parent_library": "os", "base_model_class": "x"}),
]
NEW_FIELDS = ["new_option", "code", "runtime_config", "self", "__class__", "bottleneck_size", "r ", "R", "k" * 100_000]
TYPES = ["lora", "LORO", "ADALORA", "IA3", "LOHA", "BOTTLENECK", "PROMPT_TUNING", "", None, 3, ["LORA"], {"a": 1}]
WHOLE = [
    "",
    "null",
    "3",
    "[]",
    "{}",
    '"LORA"',
    "{" * 5000,
    "[" * 5000,
    "\0",
    '{"peft_type": "LORA"}',
    "not json",
    "NaN",
]
PLACES = ["missing", "directory", "fifo", "loop", "device"]
X = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 6, 3]])


@dataclasses.dataclass
class AdapterCase:
    """A folder and how it was made."""

    path: Path
    valid: bool
    done: list[str] = dataclasses.field(default_factory=list)


def base_model():
    """Return a tiny BERT whose classifier is new."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(tiny_config("bert", 30)).eval()


def make_adapter(seed: int, folder: Path, base) -> AdapterCase:
    """Write one adapter: every eighth is valid."""
    rng = random.Random(f"adapter {seed}")
    case = AdapterCase(folder, seed % 8 == 0)
    form = rng.choice(
        [{}, {}, {"use_rslora": True}, {"rank_pattern": {"query": 2}}, {"alpha_pattern": {"0.*value": 3}}]
    )
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "modules_to_save": ["classifier"]} | form
    model = get_peft_model(copy.deepcopy(base), LoraConfig(task_type="SEQ_CLS", **options))
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    if not case.valid:
        config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        how = rng.choice(
            ["field"] * 5 + ["new", "type", "drop", "twice", "whole", "bytes", "place", "pickle", "weight bytes"]
        )
        how = rng.choice([how, how, "tensors"])
        case.done.append(how)
        if how in ("field", "new", "type", "drop"):
            values = json.loads(config.read_text())
            for _ in range(rng.choice([1, 1, 2])):
                names = {"new": NEW_FIELDS, "type": ["peft_type"]}.get(how, sorted(values))
                name, value = rng.choice(names), rng.choice(TYPES if how == "type" else VALUES)
                case.done.append(f"{name:.30}: {value!r:.50}")
                values[name] = value
                if how == "drop":
                    del values[name]
            config.write_text(json.dumps(values))
        elif how == "twice":
            name = rng.choice(["r", "lora_alpha", "peft_type", "target_modules"])
            config.write_text(config.read_text().replace("{", f'{{"{name}": 2,', 1))
        elif how == "whole":
            config.write_text(rng.choice(WHOLE))
        elif how in ("bytes", "weight bytes"):
            path = config if how == "bytes" else weights
            mutate = rng.choice(BYTES)
            case.done.append(mutate.__name__)
            path.write_bytes(mutate(rng, path.read_bytes()))
        elif how == "place":
            put_elsewhere(rng.choice([config, weights]), rng.choice(PLACES))
        elif how == "pickle":
            weights.unlink()
            (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
        else:
            save_file(_change(rng, load_file(weights), case), weights)
    return case


def _change(rng, tensors: dict, case: AdapterCase) -> dict:
    name = rng.choice(sorted(tensors))
    how = rng.choice(
        ["drop", "add", "rename", "transpose", "longer", "nan", "inf", "half", "integer", "zeros", "swap"]
    )
    case.done.append(f"{how} {name}")
    tensor = tensors.pop(name) if how in ("drop", "rename") else tensors[name]
    if how == "add":
        tensors[rng.choice(["x", f"{name}x", name.replace("layer.0", "layer.7"), "base_model.model.new.weight"])] = (
            tensor + 1
        )
    elif how == "rename":
        tensors[rng.choice([name.upper(), name.replace("base_model.", ""), name.replace("query", "key")])] = tensor
    elif how == "transpose":
        tensors[name] = tensor.T.contiguous() if tensor.ndim == 2 else tensor[None]
    elif how == "longer":
        tensors[name] = torch.cat([tensor, tensor])
    elif how in ("nan", "inf"):
        tensor.view(-1)[0] = float(how)
    elif how == "half":
        tensors = {n: t.half() for n, t in tensors.items()}
    elif how == "integer":
        tensors[name] = torch.ones_like(tensor, dtype=torch.int64)
    elif how == "zeros":
        tensors[name] = torch.zeros_like(tensor)
    elif how == "swap":
        other = next((n for n in sorted(tensors) if n != name and tensors[n].shape == tensor.shape), name)
        tensors[name], tensors[other] = tensors[other], tensor
    return tensors


def compare_adapter(case: AdapterCase, wrapped, base) -> str:
    """Return what differs between the wrapped model and the formula W + scaling B A, or an empty string."""
    values = json.loads((case.path / "adapter_config.json").read_text())
    if values["peft_type"] != "LORA":
        return f"accepted as {values['peft_type']!r:.40}"
    tensors = {name: t.float() for name, t in load_file(case.path / "adapter_model.safetensors").items()}
    expected = copy.deepcopy(base)
    places = dict(expected.named_parameters())
    for name, tensor in tensors.items():
        target = name.removeprefix("base_model.model.")
        if target in places:
            places[target].data.copy_(tensor)
        elif ".lora_A." in target:
            module = target.removesuffix(".lora_A.weight")
            rank, alpha = _of(values.get("rank_pattern"), module, values["r"]), _of(
                values.get("alpha_pattern"), module, values.get("lora_alpha", 8)
            )  # fmt: skip
            if rank != tensor.shape[0]:
                return f"accepted the rank {rank} of a file with {tensor.shape[0]}"
            scaling = alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)
            places[f"{module}.weight"].data.add_(scaling * tensors[name.replace("lora_A", "lora_B")] @ tensor)
        elif ".lora_B." not in target:
            return f"accepted the key {name:.60}"
    frozen = [
        n for n, p in wrapped.named_parameters() if ("lora_" in n or "modules_to_save" in n) and not p.requires_grad
    ]
    if frozen or not any("classifier.modules_to_save" in n for n, _ in wrapped.named_parameters()):
        return f"does not move: {frozen[:2] or 'classifier'}"
    with torch.no_grad():
        found, wanted = wrapped.eval()(input_ids=X).logits, expected(input_ids=X).logits
    if not torch.allclose(found, wanted, atol=1e-4, rtol=1e-4):
        return f"logits differ by {(found - wanted).abs().max().item():g}"
    return ""


def _of(pattern: dict | None, module: str, default: float) -> float:
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
