"""YAML configurations that are broken in known ways, and an independent reading of each."""

import dataclasses
import json
import math
import random
import typing
from pathlib import Path

import yaml
from conftest import ROOT
from reliability.broken_adapters import PLACES
from reliability.broken_data import put_elsewhere

VALUES = [
    "3", "-1", "0", "1e-3", "1e999", "-1e999", "nan", ".nan", "inf", "-.inf", "010", "0o10", "0x1F", "0b11",
    "1_000", "1:30",
    "190:20:30", "1.5.2", "yes", "no", "on", "off", "y", "True", "TRUE", "~", "null", "", "''", '" "', "2020-01-01",
    "2020-13-45", "2001-12-14t21:59:43.10-05:00", "[]", "[1, 2]", "[a, [b]]", "[--seed=1]", "--seed=1", "- 1", "{}",
    "{a: 1}", "{a: {b: [1]}}", "&x 3", "*x", "&x [*x]", "!!python/object/apply:os.system [touch pwned]",
    "!!python/name:os.system", "!!binary aGk=", "!!set {a, b}", "!!str 3", "!!int '3'", "!!float 3", "!local 3",
    "!!null ''",
    "|\n  two\n  lines", ">\n  folded\n  text", "'single ''quote'''", '"\\u00e9 \\x07"', '"\\ud800"', '"\\0"',
    "'unclosed",
    '"unclosed', "%n", "@at", "`tick", "a: b", "a #c", "../../etc", "/", "9" * 30, "9" * 6000, "x" * 200_000, "0.1",
    "1.",
    "+1", "-0", "é", "東京", "👩‍🔬", "٣", "²", "3 3", "3,5", "steps", "epoch", "linear", "adamw_torch", "none", "all",
    "'{\"a\": 1}'", "'{\"a\": '", "'[1]'", "'3'", "nowhere.json", "<<", "=", "?", "-", ":", "[" * 2000, "{a: " * 2000,
]  # fmt: skip

WHOLE = [
    "- a\n- b\n", "just text\n", "3\n", "[]\n", "{}\n", "null\n", "---\nseed: 1\n---\nseed: 2\n",
    "seed: 1\n...\nseed: 2\n",
    "\tseed: 1\n", "seed:\t1\n", "seed: 1\n\tmax_length: 2\n", "%YAML 9.9\n---\nseed: 1\n",
    "%TAG ! tag:x,2000:\n---\nseed: !y 1\n",
    "? [a, b]\n: 1\n", "? {a: 1}\n: 1\n", "1: 2\n", "null: 2\n", "2020-01-01: 2\n", "true: 2\n", "<<: {seed: 1}\n",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n", "&a seed: 1\n*a : 2\n",
    "seed: &a 1\nmax_length: *a\n",
    "[" * 5000, "{" * 5000, "a: " * 500, "- " * 5000, "? " * 3000, "seed: 1\nseed: 1\n", "'seed': 1\nseed: 1\n",
    "seed : 1\n",
    "Seed: 1\n", "seed-: 1\n", "--seed: 1\n", "config: other.yaml\n", "help: true\n", "help_all: true\n",
    "no_bf16: true\n",
    "!!python/object:os.system {}\n", "&x [*x]\n", "seed: 1 # c\n#\n", "x" * 300_000, "x: 1\n" * 20_000,
    "seed: 1\rmax_length: 2\r",
    "seed: 1\u2028max_length: 2\n", "seed: 1\x0b\n", "\ufeffseed: 1\n", "seed: 1\n\x00", '{"seed": 1, "seed": 2}',
    '{"seed": 1}',
]  # fmt: skip
# The billion laughs, in a key that takes a list.
LAUGHS = "x0: &x0 [lol, lol]\n" + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12))


@dataclasses.dataclass
class ConfigCase:
    """A configuration file and how it was made."""

    path: Path
    recipe: str
    valid: bool
    done: list[str] = dataclasses.field(default_factory=list)


def valid_configs(recipe: str) -> list[str]:
    """Return the recipe's own configurations."""
    return [path.read_text() for path in sorted((ROOT / "recipes" / "configs" / recipe).glob("*.yaml"))]


def make_config(seed: int, folder: Path, names: list[str], mutations: list) -> ConfigCase:
    """Write one file: every twelfth is valid.

    Args:
        seed: Of the choices.
        folder: To write to.
        names: The keys that the recipe knows.
        mutations: Functions of (rng, bytes), as for data files.
    """
    rng = random.Random(f"yaml {seed}")
    recipe = "finetune_cls" if "label_column" in names else "pretrain_mlm"
    case = ConfigCase(folder / "run.yaml", recipe, seed % 12 == 0)
    data = rng.choice(valid_configs(recipe)).encode()
    if not case.valid:
        how = rng.choice(
            ["value", "value", "value", "whole", "bytes", "key", "laughs", "place"] if seed % 5 else ["value"]
        )
        case.done.append(how)
        if how == "value":
            for _ in range(rng.choice([1, 1, 2])):
                line = f"{rng.choice(names)}: {rng.choice(VALUES)}"
                case.done.append(line[:60])
                data = (b"" if rng.random() < 0.8 else data) + line.encode("utf-8", "replace") + b"\n"
        elif how == "whole":
            data = rng.choice(WHOLE).encode("utf-8")
        elif how == "bytes":
            mutate = rng.choice(mutations)
            case.done.append(mutate.__name__)
            data = mutate(rng, data)
        elif how == "key":
            name = rng.choice(names)
            name = rng.choice(
                [name.upper(), name[:-1], f"{name}s", name.replace("_", "-"), f" {name}", f"{name}\0", "k" * 100_000]
            )
            data += f"{name}: 1\n".encode()
        elif how == "place":
            case.done.append(rng.choice(PLACES))
            put_elsewhere(case.path, case.done[-1])
            return case
        else:
            data = LAUGHS.replace("x11", rng.choice(names)).encode()
    case.path.write_bytes(data)
    return case


def compare_config(case: ConfigCase, config: dict, instances: tuple) -> str:
    """Return what differs between what was parsed and what YAML says, or an empty string."""
    text = case.path.read_bytes().decode("utf-8")
    try:
        read = yaml.safe_load(text)
    except ValueError:  # a date that does not exist: text all the same
        read = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        return f"accepted, though {str(error)[:80]}"
    written = yaml.load(text, Loader=yaml.BaseLoader) or {}
    if read is not None and not isinstance(read, dict):
        return "accepted, though no mapping"
    keys = [node.value for node, _ in yaml.compose(text).value] if read else []
    if len(set(keys)) < len(keys):
        return "accepted, though a key stands twice"
    hints = {name: hint for i in instances for name, hint in typing.get_type_hints(type(i)).items()}
    fields = {f.name: f for i in instances for f in dataclasses.fields(i)}
    for name, value in (read or {}).items():
        if name not in hints:
            return f"accepted the unknown key {name!r:.40}"
        found = config.get(name, fields[name].default)
        if name not in config and fields[name].default is dataclasses.MISSING:
            found = fields[name].default_factory()
        difference = _value_differs(found, value, written[name], hints[name])
        if difference:
            return f"{name}: {difference}"
    return ""


def _value_differs(found, value, written, hint) -> str:
    kinds = set(typing.get_args(hint)) if typing.get_origin(hint) not in (list, None) else {hint}
    kinds.discard(type(None))
    said = f"{found!r:.40} for {written!r:.40}"
    if isinstance(found, float) and not math.isfinite(found):
        return f"{found} is no number to train with"
    if isinstance(found, bool):
        if isinstance(value, bool):
            return "" if found == value else said
        return (
            ""
            if str(written).lower() in (("true", "t", "yes", "y", "1") if found else ("false", "f", "no", "n", "0"))
            else said
        )
    if isinstance(found, int | float):
        if isinstance(value, bool | list | dict | None):
            return said
        if isinstance(value, int | float):
            return "" if found == value else said
        return "" if found == float(written) else said
    if isinstance(found, list):
        return "" if found == (written if isinstance(written, list) else [written]) else said
    if isinstance(found, dict):
        return "" if found == json.loads(written or "{}") else said
    return "" if str(getattr(found, "value", found)) == written else said
