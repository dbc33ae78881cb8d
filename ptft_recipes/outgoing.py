"""What of a run leaves the machine: files on a list, without the paths and the secrets of this machine."""

import json
from pathlib import Path

import yaml

from ptft_recipes.errors import PushError
from ptft_recipes.redaction import secret_pattern, without_local_paths
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
    secret = secret_pattern()
    for name, content in files.items():
        if secret.search(content if isinstance(content, bytes) else _readable_part(content)):
            raise PushError(f"{folder / name} holds what looks like a token or a password; nothing was pushed")
    return files


def _readable_part(path: Path) -> bytes:
    """Return a file, or of weights the header: what a person or a program may have written into it."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            return file.read(int.from_bytes(file.read(8), "little"))
        return file.read()
