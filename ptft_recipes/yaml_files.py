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
        raise InputError(f"{path}: empty")
    return root


def place(path: str | Path, node: yaml.Node) -> str:
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
        raise InputError(f"{place(path, node)}: expected lines of the form `key: value`")
    found: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or not key_node.value:
            raise InputError(f"{place(path, key_node)}: a key must be a word")
        key = key_node.value
        if known and key not in known:
            hint = nearest(key, known) or f"; there are {', '.join(known)}"
            raise InputError(f"{place(path, key_node)}: unknown key {key!r:.60}{hint}")
        if key in found:
            raise InputError(f"{place(path, key_node)}: {key!r:.60} stands here a second time")
        found[key] = value
    return found


def scalar(path: str | Path, node: yaml.Node, key: str) -> str:
    """Return a plain value as it was written.

    Args:
        path: Of the file.
        node: Of the value.
        key: That it belongs to.

    Raises:
        InputError: It is a list or a mapping, is missing, or asks for an object.
    """
    if not isinstance(node, yaml.ScalarNode) or node.tag not in YAML_TAGS:
        raise InputError(f"{place(path, node)}: {key!r:.60} must be a plain value")
    if node.tag == "tag:yaml.org,2002:null":
        raise InputError(f"{place(path, node)}: {key!r:.60} has no value")
    return node.value


def scalars(path: str | Path, node: yaml.Node, key: str) -> list[str]:
    """Return the plain values of a list, as they were written.

    Args:
        path: Of the file.
        node: Of the list.
        key: That it belongs to.

    Raises:
        InputError: It is no list, or an item is no plain value or would be read as a flag.
    """
    if not isinstance(node, yaml.SequenceNode) or node.tag not in YAML_TAGS:
        raise InputError(f"{place(path, node)}: {key!r:.60} must be a list of plain values")
    values = [scalar(path, item, key) for item in node.value]
    if flags := [value for value in values if re.match(r"-(?![\d.])", value)]:
        raise InputError(f"{place(path, node)}: {key!r:.60}: the item {flags[0]!r:.60} would be read as a flag")
    return values
