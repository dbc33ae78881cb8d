"""A flat YAML file as flags: argparse then checks names, types and choices of both alike."""

import os
import re
from pathlib import Path

import yaml

from ptft_recipes.errors import nearest

# Of what is read as it is written. Any other tag, such as !!python/object, asks the reader to make something.
YAML_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")
}


def read_config(path: str, parser, names: set[str]) -> list[str]:
    """Turn a flat YAML file into flags, each checked alone so that an error names its line.

    Args:
        path: Of the file.
        parser: Of the recipe; its `error` ends the process, after `where`, which is the line that is being read.
        names: The keys that exist.
    """
    if not os.path.isfile(path):  # a pipe would be waited for
        parser.error(f"--config {path}: {'not a regular file' if os.path.lexists(path) else 'no such file'}")
    try:
        text = Path(path).read_text(encoding="utf-8")
        # The node tree keeps every scalar as it was written: 1e-3 and 007 reach argparse as text, and `on` is no bool.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--config {path}: {error}")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # and not PyYAML's own message, which quotes the file
        place = f":{mark.line + 1}" if mark else ""
        what = " ".join(filter(None, (getattr(error, name, None) for name in ("context", "problem"))))
        parser.error(f"--config {path}{place}: not valid YAML: {what or error}")
    except RecursionError:
        parser.error(f"--config {path}: nested too deeply; expected lines of the form `key: value`")
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode) or root.tag not in YAML_TAGS:
        parser.error(f"--config {path}: expected lines of the form `key: value`")
    argv, seen = [], set()
    for key_node, value_node in root.value:
        parser.where = f"{path}:{key_node.start_mark.line + 1}: "
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
        if key not in names:
            parser.error(f"unknown key {key!r:.60}{nearest(key, names)}")
        if key in seen:
            parser.error(f"{key!r} stands here a second time")
        seen.add(key)
        if key == "hub_token":
            parser.error("a token is never read from a file; use `hf auth login`, or set HF_TOKEN")
        action = parser._option_string_actions[f"--{key}"]
        is_list = action.nargs in ("+", "*")
        for node in (value_node, *(value_node.value if isinstance(value_node, yaml.SequenceNode) else ())):
            if node.tag not in YAML_TAGS:
                parser.error(f"{key!r}: the tag {node.tag!r:.60} asks for an object; only plain values are read")
        if isinstance(value_node, yaml.ScalarNode):
            if value_node.tag == "tag:yaml.org,2002:null":
                parser.error(f"{key!r} has no value; leave the line out to keep the default")
            if action.type in (int, float) and re.fullmatch(r"[-+]?0\d[\d_]*", value_node.value):
                parser.error(f"{key!r}: {value_node.value:.60} is octal to some readers; leave the leading zero out")
            tokens = [f"--{key}={value_node.value}"]
        elif isinstance(value_node, yaml.SequenceNode) and not is_list:
            parser.error(f"{key!r} must be a single value, not a list")
        elif isinstance(value_node, yaml.SequenceNode) and all(
            isinstance(item, yaml.ScalarNode) for item in value_node.value
        ):
            if flag := next((item.value for item in value_node.value if re.match(r"-(?![\d.])", item.value)), None):
                parser.error(f"{key!r}: the item {flag!r:.60} would be read as a flag")
            tokens = [f"--{key}", *(item.value for item in value_node.value)]
        else:
            parser.error(f"{key!r} must be a value or a list of values; nested keys are not read")
        parser.parse(tokens)
        argv += tokens
    parser.where = ""
    return argv
