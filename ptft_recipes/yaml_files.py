"""YAML with a structure, read strictly: every value as it was written, and for every error its line."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from ptft_recipes.config_files import YAML_TAGS
from ptft_recipes.errors import InputError, nearest, one_line
from ptft_recipes.safe_files import check_file


def read_yaml(path: str | Path) -> yaml.Node:
    """Read a YAML file as a tree of nodes, in which 1e-3 and 007 are still text and `on` is no bool.

    Args:
        path: Of the file.

    Raises:
        InputError: It is no regular file, cannot be read, is no YAML, or is empty.
    """
    check_file(path)
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # and not PyYAML's own message, which quotes the file
        what = " ".join(filter(None, (getattr(error, name, None) for name in ("context", "problem"))))
        raise InputError(f"{path}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {one_line(what)}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    if root is None:
        raise InputError(f"{path}: the file is empty")
    return root


def where(path: str | Path, node: yaml.Node) -> str:
    """Return file and line of a node."""
    return f"{path}:{node.start_mark.line + 1}"


def mapping(path: str | Path, node: yaml.Node, known: Sequence[str] = ()) -> dict[str, yaml.Node]:
    """Return the values of a mapping by their keys, none of which stands twice.

    Args:
        path: Of the file.
        node: Of the mapping.
        known: The keys that exist; any, if there are none.

    Raises:
        InputError: What else it is, or which key is wrong.
    """
    if not isinstance(node, yaml.MappingNode) or node.tag not in YAML_TAGS:
        raise InputError(f"{where(path, node)}: expected `key: value`")
    found: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
        if known and key not in known:
            hint = nearest(key, known) or f"; there are {', '.join(known)}"
            raise InputError(f"{where(path, key_node)}: unknown key {key!r:.60}{hint}")
        if key in found:
            raise InputError(f"{where(path, key_node)}: {key!r:.60} stands here a second time")
        found[key] = value
    return found


def scalar(path: str | Path, node: yaml.Node) -> str:
    """Return a plain value as it was written.

    Raises:
        InputError: It is a list or a mapping, has no value, or asks for an object.
    """
    if not isinstance(node, yaml.ScalarNode) or node.tag not in YAML_TAGS:
        raise InputError(f"{where(path, node)}: expected a plain value")
    if node.tag == "tag:yaml.org,2002:null":
        raise InputError(f"{where(path, node)}: a value is missing")
    return node.value


def scalars(path: str | Path, node: yaml.Node) -> list[str]:
    """Return the plain values of a list, as they were written.

    Raises:
        InputError: It is no list, or an item is no plain value or would be read as a flag.
    """
    if not isinstance(node, yaml.SequenceNode) or node.tag not in YAML_TAGS:
        raise InputError(f"{where(path, node)}: expected a list")
    values = [scalar(path, item) for item in node.value]
    if flags := [value for value in values if re.match(r"-(?![\d.])", value)]:
        raise InputError(f"{where(path, node)}: {flags[0]!r:.60} would be read as a flag")
    return values
