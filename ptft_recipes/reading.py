"""Read rows from local files without guessing: text stays text, and every fault is named by file and line."""

import codecs
import csv
import io
import itertools
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ptft_recipes.conll import parse_columns, parse_conllu
from ptft_recipes.errors import InputError, one_line
from ptft_recipes.safe_files import COMPRESSIONS, check_file, check_no_archive, parse_json, readable, unpacked
from ptft_recipes.squad import is_nested, parse_articles

DELIMITERS = (",", "\t", ";", "|")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".conll", ".bio", ".conllu")

LONGEST_LINE = 2**28  # bytes; a small compressed file can unpack to a line that no memory holds


def read_rows(
    path: str | Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    documents: bool = False,
    words: bool = False,
) -> list[dict]:
    """Read one data file.

    CSV and TSV cells stay strings (`NA` and `007` too), JSON keeps its types, a `.txt` file has one example per line
    in a column `text`, or with `documents` one document from each blank line to the next. The delimiter of a CSV file
    is the one under which its header holds the required columns. CoNLL-U files, and files with a word and its tags per
    line, are read by `ptft_recipes.conll`, the nested JSON of SQuAD by `ptft_recipes.squad`.

    Args:
        path: A file that ends in one of `SUFFIXES`.
        required: Columns that must be there.
        optional: Columns that are kept where they are there, and are None elsewhere.
        documents: The file is raw text: an example may have more than one line.
        words: A `.txt` or `.tsv` file has a word and its tags per line, as a `.conll` file has.

    Returns:
        One dict per row with the columns asked for and `id`, the place that the row came from, e.g. `train.csv:17`.

    Raises:
        InputError: No such file, one that cannot be opened, an unknown ending, no rows, a column that is missing or
            there twice, a broken line, bytes that are not UTF-8.
    """
    path = Path(path)
    check_file(path)
    if path.suffix.lower() not in SUFFIXES:
        what = path.suffix or "a file without an ending"
        hint = ", or --streaming" * (documents and can_be_streamed(path))
        raise InputError(f"{path}: cannot read {what}; use {', '.join(SUFFIXES)}{hint}")
    check_no_archive(path)
    read = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".json": _json}
    read[".txt"] = _documents if documents else _lines
    read |= dict.fromkeys((".conll", ".bio", *((".txt", ".tsv") if words else ())), _columns) | {".conllu": _conllu}
    rows = list(_select(path, read.get(path.suffix.lower(), _json_lines)(path, required), required, optional))
    if not rows:
        raise InputError(f"{path}: no rows")
    return rows


def can_be_streamed(path: str | Path) -> bool:
    """Tell by the ending of a file whether `stream_documents` reads it."""
    return _streamed_suffix(Path(path)) in STREAMED


def stream_documents(path: str | Path, text_column: str) -> Iterator[dict[str, str]]:
    """Read the documents of a file one after the other, in memory that does not grow with the file.

    Args:
        path: A `.txt` file, with a document from each blank line to the next, or a `.jsonl`, `.ndjson` or `.parquet`
            file. All but the last may be compressed: `.txt.gz`, `.bz2`, `.xz`, and `.zst` with the package zstandard.
        text_column: Of the documents.

    Yields:
        `id`, the document's place in the file, and its text under the column's name; blank ones are left out.

    Raises:
        InputError: As `read_rows`, once the fault is reached; or a file that can only be read as a whole.
    """
    path = Path(path)
    suffix = _streamed_suffix(path)
    if suffix not in STREAMED:
        raise InputError(f"{path}: --streaming reads {', '.join(STREAMED)}; convert it, or leave --streaming out")
    check_file(path)
    if path.suffix.lower() not in COMPRESSIONS:
        check_no_archive(path)
    for row in _select(path, STREAMED[suffix](path, [text_column]), [text_column], ()):
        check_text(row, text_column)
        if row[text_column] and row[text_column].strip():
            yield row


def _streamed_suffix(path: Path) -> str:
    return (Path(path.stem) if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def read_lines(path: str | Path) -> list[str]:
    """Read a text file of which every line counts, blank ones too: it belongs to the same line of another file.

    Raises:
        InputError: No such file, one that cannot be opened, no lines, bytes that are not UTF-8.
    """
    path = Path(path)
    check_file(path)
    check_no_archive(path)
    with readable(path):
        lines = [line.rstrip("\r") for line in _text_lines(path)]
    if not lines:
        raise InputError(f"{path}: no rows")
    return lines


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


def check_words(row: dict, column: str) -> None:
    """Raise an InputError that names the row, unless its column is empty or a list of words that can be written."""
    words = row[column]
    if not isinstance(words, list | None):
        raise InputError(
            f"{row['id']}: column {column!r} holds {type(words).__name__} {words!r:.60}, not a list of words"
        )
    for word in words or ():
        check_text({"id": row["id"], column: word}, column)


def _select(path: Path, rows, required: Sequence[str], optional: Sequence[str]) -> Iterator[dict]:
    with readable(path):
        for place, row in rows:
            check_columns(f"{path}{place}", row, required)
            yield {"id": f"{path.name}{place}"} | {name: row.get(name) for name in (*required, *optional)}


def _decode(path: Path) -> str:
    data = path.read_bytes()
    return _decode_part(data, path)


def _text_lines(path: Path) -> Iterator[str]:
    """Read a file line by line, so that one of any size takes no more memory than its longest line."""
    with unpacked(path) as file:
        # At \n only: JSON allows U+2028 and others inside a string.
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
            if len(line) > LONGEST_LINE:
                raise InputError(f"{path}:{number}: a line of more than {LONGEST_LINE >> 20} MiB; split it")
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
    if is_nested(rows) and not {*required} <= {*rows[0]}:
        yield from parse_articles(rows, path)
        return
    for index, row in enumerate(rows):
        yield f"[{index}]", row


def _lines(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_text_lines(path), start=1):
        if line.strip():
            yield f":{number}", {"text": line.rstrip("\r")}


def _columns(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict]]:
    return parse_columns(_text_lines(path), path)


def _conllu(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict]]:
    return parse_conllu(_text_lines(path), path)


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


STREAMED = {".txt": _documents, ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
