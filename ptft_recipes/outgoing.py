"""What of a run leaves the machine: files on a list, without the paths and the secrets of this machine."""

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import get_token

from ptft_recipes.errors import PushError
from ptft_recipes.reporting import WRITTEN_BY_A_RUN, dump_yaml

# No data, no predictions with text, no optimizer, no pickle, no token. A pattern that starts with * would also match
# in the folders of the checkpoints.
WEIGHTS = (
    "model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors",
    "adapter_config.json",
)  # fmt: skip
# What `from_pretrained` reads.
LOADED = (
    *WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja",
    "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    "source.spm", "target.spm", "generation_config.json",
    "generator/model.safetensors", "generator/config.json", "generator/tokenizer.json",
    "generator/tokenizer_config.json",
)  # fmt: skip
ALLOWED = ("README.md", "results.json", "config.yaml", "plots/*.png", *LOADED)
# Files that name where something came from; the others are sent as they are.
WITH_PATHS = {"results.json", "config.yaml", "config.json", "adapter_config.json", "tokenizer_config.json"}
NOT_PATHS = {"label_names", "id2label", "label2id", "added_tokens_decoder", "chat_template"}  # whatever they look like

# An absolute path of at least two parts, alone or behind a name as in `general=/home/me/news.txt`.
ABSOLUTE_PATH = re.compile(
    r"(?P<name>[\w.-]+=)?(?:file://)?(?:~[\w.-]*|[A-Za-z]:)?[/\\](?:[^\n]*[/\\])(?P<last>[^/\\\n]+)[/\\]*"
)
TOKEN = re.compile(rb"(?<![A-Za-z0-9])(?:hf_|api_org_)[A-Za-z0-9]{16,}|://[^\s/:@\"]+:[^\s/:@\"]+@")
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY")


def pushed_files(folder: Path, allowed: tuple[str, ...] = ALLOWED) -> list[str]:
    """Return which files may leave the machine: those that match a list, and never what a link leads to.

    Args:
        folder: Of a run, or a checkpoint.
        allowed: Patterns of paths below it.

    Raises:
        PushError: One of them is a link, or lies behind one.
    """
    files = {path for pattern in allowed for path in folder.glob(pattern) if path.is_file()}
    names = sorted(path.relative_to(folder) for path in files)
    if links := [name for name in names if (folder / name).resolve() != folder.resolve() / name]:
        raise PushError(f"{folder / links[0]} is a link, and could lead to anything; nothing was pushed")
    return [name.as_posix() for name in names]


def outgoing_files(folder: Path, allowed: tuple[str, ...] = ALLOWED) -> dict[str, bytes | Path]:
    """Return what is to be pushed: the path of a file that is sent as it is, or its content without local paths.

    Args:
        folder: Of a run, or a checkpoint; nothing in it is changed.
        allowed: As for `pushed_files`.

    Raises:
        PushError: A link, or a file that holds what looks like a secret.
    """
    files: dict[str, bytes | Path] = {}
    for name in pushed_files(folder, allowed):
        files[name] = folder / name
        if Path(name).name in WITH_PATHS:
            text = (folder / name).read_text(encoding="utf-8")
            content = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
            if (public := without_local_paths(content)) != content:
                text = json.dumps(public, indent=2, ensure_ascii=False)
                text = f"{WRITTEN_BY_A_RUN}\n{dump_yaml(public)}" if name.endswith(".yaml") else f"{text}\n"
                files[name] = text.encode()
    secrets = {value.encode() for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) > 11}
    secrets |= {token.encode() for token in [get_token()] if token}
    for name, content in files.items():
        data = content if isinstance(content, bytes) else _readable_part(content)
        if TOKEN.search(data) or any(secret in data for secret in secrets):
            raise PushError(f"{folder / name} holds what looks like a token or a password; nothing was pushed")
    return files


def without_local_paths(value: Any) -> Any:
    """Return a value of JSON with `<local>/name` in place of each absolute path; no Hub id looks like that.

    >>> without_local_paths({"base_model": "/home/me/bert", "mix": ["papers=/data/a.txt"], "data": "demo/roles"})
    {'base_model': '<local>/bert', 'mix': ['papers=<local>/a.txt'], 'data': 'demo/roles'}
    """
    if isinstance(value, dict):
        public: dict[str, Any] = {}
        for key, found in value.items():
            name = str(without_local_paths(key))  # adapters that were merged are named by their paths
            name = name if name not in public else f"{name} ({len(public)})"
            public[name] = found if key in NOT_PATHS else without_local_paths(found)
        return public
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if match := ABSOLUTE_PATH.fullmatch(value):
        return f"{match['name'] or ''}<local>/{match['last']}"
    for place in (Path.cwd(), Path.home()):  # in the middle of a text
        if len(place.parts) > 1:
            value = value.replace(f"{place}{os.sep}", "<local>/")
    return value


def _readable_part(path: Path) -> bytes:
    """Return a file, or of weights the header: what a person or a program may have written into it."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            return file.read(int.from_bytes(file.read(8), "little"))
        return file.read()
