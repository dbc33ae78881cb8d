"""Read rows from local files without guessing: text stays text, and every fault is named by file and line."""

import codecs
import contextlib
import csv
import io
import itertools
import json
import math
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ptft_recipes.errors import InputError, one_line

DELIMITERS = (",", "\t", ";", "|")
# zip, gzip, bzip2, xz, 7z, zstd, tar: how their files begin
ARCHIVE = re.compile(rb"PK\x03\x04|\x1f\x8b|BZh\d1AY&SY|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|(?s:.{257})ustar")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")


def read_rows(
    path: str | Path, required: Sequence[str], optional: Sequence[str] = (), documents: bool = False
) -> list[dict]:
    """Read one data file.

    CSV and TSV cells stay strings (`NA` and `007` too), JSON keeps its types, a `.txt` file has one example per line
    in a column `text`, or with `documents` one document from each blank line to the next. The delimiter of a CSV file
    is the one under which its header holds the required columns.

    Args:
        path: A file that ends in one of `SUFFIXES`.
        required: Columns that must be there.
        optional: Columns that are kept where they are there, and are None elsewhere.
        documents: The file is raw text: an example may have more than one line.

    Returns:
        One dict per row with the columns asked for and `id`, the place that the row came from, e.g. `train.csv:17`.

    Raises:
        InputError: No such file, one that cannot be opened, an unknown ending, no rows, a column that is missing or
            there twice, a broken line, bytes that are not UTF-8.
    """
    path = Path(path)
    check_file(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: cannot read {path.suffix or 'a file without an ending'}; use {', '.join(SUFFIXES)}")
    _check_no_archive(path)
    read = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".json": _json}
    read[".txt"] = _documents if documents else _lines
    rows = list(_select(path, read.get(path.suffix.lower(), _json_lines)(path, required), required, optional))
    if not rows:
        raise InputError(f"{path}: no rows")
    return rows


def stream_documents(path: str | Path, text_column: str) -> Iterator[dict[str, str]]:
    """Read the documents of a file one after the other, in memory that does not grow with the file.

    Args:
        path: A `.txt` file, with a document from each blank line to the next, or a `.jsonl`, `.ndjson` or `.parquet`
            file.
        text_column: Of the documents.

    Yields:
        `id`, the document's place in the file, and its text under the column's name; blank ones are left out.

    Raises:
        InputError: As `read_rows`, once the fault is reached; or a file that can only be read as a whole.
    """
    path = Path(path)
    read = {".txt": _documents, ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
    if path.suffix.lower() not in read:
        raise InputError(f"{path}: --streaming reads {', '.join(read)}; convert it, or leave --streaming out")
    check_file(path)
    _check_no_archive(path)
    for row in _select(path, read[path.suffix.lower()](path, [text_column]), [text_column], ()):
        check_text(row, text_column)
        if row[text_column] and row[text_column].strip():
            yield row


def check_file(path: str | Path) -> None:
    """Raise an InputError unless the path is a regular file: a pipe or a device would be waited for, or never end."""
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise InputError(f"{path}: {'not a regular file' if os.path.lexists(path) else 'no such file'}")


def check_columns(where: str | Path, found: Iterable[str], required: Sequence[str]) -> None:
    """Raise an InputError that names the columns that are there, unless all required ones are among them."""
    found = list(found)
    missing = [column for column in required if column not in found]
    if missing:
        raise InputError(
            f"{where}: no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(f'{column!r:.60}' for column in found[:20])}{', ...' * (len(found) > 20)}. "
            "Name the right ones with the --..._column options"
        )


def check_text(row: dict, column: str) -> None:
    """Raise an InputError that names the row, unless its column is empty or holds text that can be written down."""
    text, where = row[column], f"{row['id']}: column {column!r} holds"
    if not isinstance(text, str | None):
        raise InputError(f"{where} {type(text).__name__} {reprlib.repr(text):.60}, not text")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a pair: an emoji that was cut in two
        raise InputError(f"{where} {text[error.start]!r}, half of a character; remove it") from None


def check_saved_names(folder: str | Path) -> None:
    """Raise an InputError if a folder of `save_to_disk` has its data read from outside of the folder."""
    for path in (
        found for name in ("dataset_dict.json", "state.json", "*/state.json") for found in Path(folder).glob(name)
    ):
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in [*content.get("splits", []), *(file["filename"] for file in content.get("_data_files", []))]:
            if Path(name).name != name or "\\" in name or name == "..":
                raise InputError(f"{path.name} names {name!r}, which is not in its folder")


def _check_no_archive(path: Path) -> None:
    with _readable(path), path.open("rb") as file:
        start = file.read(512)
    if ARCHIVE.match(start):
        raise InputError(f"{path}: it is an archive, or compressed, and nothing is unpacked here; unpack it first")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # no permission, a failing disk
        raise InputError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None


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


def _select(path: Path, rows, required: Sequence[str], optional: Sequence[str]) -> Iterator[dict]:
    with _readable(path):
        for place, row in rows:
            check_columns(f"{path}{place}", row, required)
            yield {"id": f"{path.name}{place}"} | {name: row.get(name) for name in (*required, *optional)}


def _decode(path: Path) -> str:
    data = path.read_bytes()
    return _decode_part(data, path)


def _text_lines(path: Path) -> Iterator[str]:
    """Read a file line by line, so that one of any size takes no more memory than its longest line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):  # at \n only: JSON allows U+2028 and others inside a string
            text = _decode_part(line, path, number)
            if number == 1 and "\n" not in text and "\r" in text.rstrip("\r"):
                raise InputError(f"{path}: its lines end in \\r alone, as on an old Mac; convert them: tr '\\r' '\\n'")
            yield text.removesuffix("\n")


def _decode_part(data: bytes, path: Path, line: int = 1) -> str:
    try:
        # Not "utf-8-sig": behind a byte order mark its errors count from the wrong place.
        text, place = data.removeprefix(codecs.BOM_UTF8 if line == 1 else b"").decode(), data.find(b"\0")
    except UnicodeDecodeError as error:
        place = len(data) - len(error.object) + error.start
    if place < 0:
        return text
    encoding = "UTF-16" if b"\0" in data else "WINDOWS-1252"
    line += data.count(b"\n", 0, place)
    raise InputError(
        f"{path}:{line}: byte 0x{data[place]:02x} is not UTF-8 text; re-encode the file, "
        f"e.g. iconv -f {encoding} -t UTF-8 {path.name}"
    )


def _csv(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict]]:
    text = _decode(path)
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    csv.field_size_limit(2**31 - 1)  # the default refuses documents of more than 128 kB
    header_line = re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    headers = {d: next(csv.reader([header_line], delimiter=d)) for d in DELIMITERS}
    preferred = "\t" if path.suffix.lower() == ".tsv" else ","
    fitting = [d for d in DELIMITERS if set(required) <= set(headers[d])]
    # Where several fit (one column), or none, the one that splits the header most is the one in use.
    delimiter = max(fitting or DELIMITERS, key=lambda d: (len(headers[d]), d == preferred))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header, line = None, 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                check_columns(path, header, required)
                if twice := [name for name in header if header.count(name) > 1]:
                    raise InputError(f"{path}:{start}: the column name {twice[0]!r:.60} stands twice in the header")
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{path}:{start}: {len(cells)} cells where the header has {len(header)}; "
                    f"quote a cell that holds {delimiter!r} or a line break"
                )
            yield f":{start}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        reason = str(error).replace("\t", "\\t")  # the delimiter
        raise InputError(
            f"{path}:{line}: broken CSV: {reason}; a quote is probably not closed or not doubled"
        ) from None


def _json_lines(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_text_lines(path), start=1):
        if not line.strip():
            continue
        row = parse_json(line, path, number)
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: expected an object {{...}} per line, found {type(row).__name__}")
        yield f":{number}", row


def _json(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict]]:
    text = _decode(path)
    try:
        rows = parse_json(text, path)
    except InputError as error:
        # JSON lines under the name .json, as many exports have it
        if "Extra data" in str(error) and text.lstrip().startswith("{"):
            yield from _json_lines(path, required)
            return
        raise
    if isinstance(rows, dict):
        rows = [rows] if not isinstance(rows.get("data"), list) else rows["data"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f'{path}: expected a list of objects [{{...}}, ...], or {{"data": [...]}}')
    for index, row in enumerate(rows):
        yield f"[{index}]", row


def _lines(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_text_lines(path), start=1):
        if line.strip():
            yield f":{number}", {"text": line.rstrip("\r")}


def _documents(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict]]:
    start, lines = 0, []
    for number, line in enumerate(itertools.chain(_text_lines(path), [""]), start=1):
        if line.strip():
            start = start if lines else number
            lines.append(line.rstrip("\r"))
        elif lines:
            yield f":{start}", {"text": "\n".join(lines)}
            lines = []


def _parquet(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            check_columns(path, names, required)
            if twice := [name for name in names if names.count(name) > 1]:
                raise InputError(f"{path}: the column name {twice[0]!r:.60} stands twice")
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=100))
            for index, row in enumerate(itertools.chain.from_iterable(batches)):
                yield f"[{index}]", row
    except InputError:
        raise
    # UnicodeDecodeError, a ValueError: text that is not UTF-8.
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {one_line(error)}") from None
