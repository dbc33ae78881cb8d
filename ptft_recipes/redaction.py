"""What of a text does not leave this machine: the folders of its paths, and its secrets."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

NOT_PATHS = {"label_names", "id2label", "label2id", "added_tokens_decoder", "chat_template"}  # whatever they look like
# A value that is an absolute path of at least two parts, alone or behind a name as in `general=/home/me/news.txt`.
ABSOLUTE_PATH = re.compile(
    r"(?P<name>[\w.-]+=)?(?:file://)?(?:~[\w.-]*|[A-Za-z]:)?[/\\](?:[^\n]*[/\\])(?P<last>[^/\\\n]+)[/\\]*"
)
# The folders of an absolute path somewhere in a text; not those of a URL. A token such as </s> looks like one.
FOLDERS = re.compile(r"(?<![\w.:/\\~-])(?:~|[A-Za-z]:)?[\\/](?:[^\\/\s\"',;=]+[\\/])*(?=[^\\/\s\"',;=])")
# Tokens of the Hub, and the name and password in a URL.
SECRET = re.compile(r"(?<![A-Za-z0-9])(?:hf_|api_org_)[A-Za-z0-9]{16,}|(?<=://)[^\s/:@\"]+:[^\s/:@\"]+(?=@)")
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY")  # of a variable of the environment


def without_local_paths(value: Any) -> Any:
    """Return a value of JSON with `<local>/name` in place of each absolute path: for files that programs read.

    No Hub id looks like that, so nothing is loaded from the Hub in place of what was here.

    >>> without_local_paths({"base_model": "/home/me/bert", "mix": ["papers=/data/a.txt"], "data": "demo/roles"})
    {'base_model': '<local>/bert', 'mix': ['papers=<local>/a.txt'], 'data': 'demo/roles'}
    """
    return _map_texts(value, lambda text: _shorten(text, "<local>/"))


def portable(value: Any) -> Any:
    """Return a value of JSON as people may read it: of each absolute path the last part, and no secret.

    >>> portable(["/home/me/data/train.csv", "runs/mlm", "general=/home/me/general.txt", "0/5"])
    ['train.csv', 'runs/mlm', 'general=general.txt', '0/5']
    >>> portable("https://me:password@host/data/train.csv")
    'https://***@host/data/train.csv'
    """
    return _map_texts(value, lambda text: SECRET.sub("***", FOLDERS.sub("", _shorten(text, ""))))


def secret_pattern() -> re.Pattern[bytes]:
    """Return what must not leave: `SECRET`, the login, and the values of variables that are named like secrets."""
    known = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) > 11}
    known |= {token for token in [get_token()] if token}
    return re.compile("|".join([SECRET.pattern, *map(re.escape, sorted(known))]).encode())


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        changed: dict[str, Any] = {}
        for key, found in value.items():
            name = change(str(key))  # adapters that were merged are named by their paths
            name = name if name not in changed else f"{name} ({len(changed)})"
            changed[name] = found if key in NOT_PATHS else _map_texts(found, change)
        return changed
    if isinstance(value, list | tuple):
        return [_map_texts(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _shorten(text: str, place: str) -> str:
    if match := ABSOLUTE_PATH.fullmatch(text):
        return f"{match['name'] or ''}{place}{match['last']}"
    for folder in (Path.cwd(), Path.home()):  # in the middle of a text
        if len(folder.parts) > 1:
            text = text.replace(f"{folder}{os.sep}", place)
    return text
