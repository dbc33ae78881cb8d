"""Files from others, opened without waiting, unpacking or guessing."""

import contextlib
import json
import lzma
import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.compression import compr

from ptft_recipes.errors import InputError, one_line

# zip, gzip, bzip2, xz, 7z, zstd, tar: how their files begin
ARCHIVE = re.compile(rb"PK\x03\x04|\x1f\x8b|BZh\d1AY&SY|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|(?s:.{257})ustar")

# By fsspec's names; zstd is there with the package zstandard.
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


def check_file(path: str | Path) -> None:
    """Raise an InputError unless the path is a regular file: a pipe or a device would be waited for, or never end."""
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise InputError(f"{path}: {'not a regular file' if os.path.lexists(path) else 'no such file'}")


def check_no_archive(path: Path) -> None:
    """Raise an InputError if a file is packed, whatever its name says; nothing is ever unpacked."""
    with readable(path), path.open("rb") as file:
        start = file.read(512)
    if ARCHIVE.match(start):
        raise InputError(f"{path}: it is an archive, or compressed, and nothing is unpacked here; unpack it first")


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read its bytes; one whose ending is in `COMPRESSIONS` is unpacked on the way, never to the disk.

    Raises:
        InputError: It is damaged or cut off, or its compression is one that is not installed.
    """
    name = COMPRESSIONS.get(path.suffix.lower())
    if name and name not in compr:
        raise InputError(f"{path}: needs python -m pip install zstandard; or unpack it first: zstd -d")
    try:
        with path.open("rb") as packed, compr[name](packed, mode="rb") if name else packed as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the disk; gzip and bz2 raise an OSError without one
            raise
        raise InputError(f"{path}: damaged or cut off: {one_line(error)}; make or copy it again") from None


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn a failure to read a file into an InputError that names it."""
    try:
        yield
    except OSError as error:  # no permission, a failing disk
        raise InputError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None


def check_saved_names(folder: str | Path) -> None:
    """Raise an InputError if a folder of `save_to_disk` has its data read from outside of the folder."""
    for path in (
        found for name in ("dataset_dict.json", "state.json", "*/state.json") for found in Path(folder).glob(name)
    ):
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in [*content.get("splits", []), *(file["filename"] for file in content.get("_data_files", []))]:
            if Path(name).name != name or "\\" in name or name == "..":
                raise InputError(f"{path.name} names {name!r}, which is not in its folder")


def parse_json(text: str, path: Path, line: int = 1, finite: bool = False) -> Any:
    """Parse a JSON value in which no key stands twice.

    Args:
        text: The value.
        path: Of its file.
        line: On which the value begins.
        finite: Refuse NaN, infinities, and what overflows to one.

    Raises:
        InputError: Broken JSON, a key that stands twice, values nested or numbers written beyond what can be read.
    """

    def finite_float(number: str) -> float:
        if not math.isfinite(float(number)):
            raise InputError(f"{path}: {number:.60} is no finite number")
        return float(number)

    def unique(pairs: list[tuple]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):  # json would keep the last, other readers the first
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{path}:{line}: the key {twice!r:.60} stands twice in an object")
        return found

    try:
        checks = {"parse_float": finite_float, "parse_constant": finite_float} if finite else {}
        return json.loads(text, object_pairs_hook=unique, **checks)
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}"
        raise InputError(f"{place}: broken JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise InputError(f"{path}:{line}: JSON nested too deeply to be data") from None
    except InputError:
        raise
    except ValueError:  # an integer of more digits than Python converts
        raise InputError(f"{path}:{line}: a number of thousands of digits; write it as text, in quotes") from None
