"""Data files that are broken in known ways, and an independent strict reading of each."""

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import os
import random
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

DELIMITERS = ",;|\t"
WORDS = [
    "match",
    "goal",
    "cell",
    "atom",
    "café",
    "naïve",
    "東京",
    "👩‍🔬",
    "мир",
    "a\u2028b",
    "NA",
    "null",
    "007",
    "1e5",
]
TRICKY = [
    "x, y",
    "x; y",
    'say "no"',
    "two\nlines",
    "a\r\nb",
    "tab\there",
    "pipe | here",
    " padded ",
    "#N/A",
    "$x$",
    "\\",
]
# Labels are data: none may become a path, a formula or a number.
LABELS = [
    ["sports", "science", "markets"],
    ["0", "1"],
    ["007", "7"],
    ["../x", "/etc/passwd"],
    ["True", "no"],
    ["été", "東京"],
]


class NotReadableError(Exception):
    """The strict reading finds nothing that could be called the content of the file."""


@dataclass
class DataCase:
    """A file, what is asked of it, and how it was made."""

    path: Path
    text_columns: list[str]
    label_column: str | None
    separator: str | None = None
    problem_type: str | None = None
    valid: bool = False
    done: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------------- the files


def rows_of(rng: random.Random, suffix: str) -> tuple[list[dict], DataCase]:
    """Return rows that are valid, and the case that asks for them."""
    text_columns = rng.choice([["text"], ["text"], ["premise", "hypothesis"], ["the text"]])
    typed = suffix in (".jsonl", ".ndjson", ".json", ".parquet")
    kind = rng.choice(["single", "single", "multi", "number", "rating", "whole", "none"])
    if suffix == ".txt":
        text_columns, kind = ["text"], "none"
    case = DataCase(Path(), text_columns, None if kind == "none" else "label")
    names = rng.choice(LABELS)
    if kind == "multi" and not typed:
        case.separator = "&"
    rows = []
    for i in range(rng.randint(14, 30)):
        row = {"note": rng.choice(WORDS)} if rng.random() < 0.5 and suffix in (".jsonl", ".ndjson") else {}
        for column in text_columns:
            words = rng.choices(WORDS, k=rng.randint(1, 5))
            words += rng.choices(TRICKY, k=rng.random() < 0.3)
            row[column] = f"{i} " + " ".join(words)
            if suffix == ".txt":
                row[column] = row[column].replace("\r", "").replace("\n", " ")
        if kind == "single":
            row["label"] = names[i % len(names)]
        elif kind == "multi":
            chosen = sorted({*rng.sample(names, k=rng.randint(1, 2)), names[i % len(names)]})
            row["label"] = chosen if typed else "&".join(chosen)
        elif kind == "number":
            row["label"] = round(rng.uniform(-3, 3), 2) + 0.001
            row["label"] = row["label"] if typed else f"{row['label']:.3f}"
        elif kind == "rating":
            row["label"] = (0.5, 1.5, 2.5)[i % 3] if typed else ("0.5", "1.5", "2.5")[i % 3]
        elif kind == "whole":
            row["label"] = i % 3 if typed else str(i % 3)
        rows.append(row)
    return rows, case


def csv_bytes(rng: random.Random, rows: list[dict], delimiter: str | None = None) -> bytes:
    """Write rows as CSV, with one of the delimiters, line ends and quotings."""
    buffer, end = io.StringIO(), rng.choice(["\n", "\r\n", "\r"])
    quoting = csv.QUOTE_ALL if end == "\r" else rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])  # else \n stays bare
    delimiter = delimiter or (rng.choice(DELIMITERS) if len(rows[0]) > 1 else ",")
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return rng.choice([b"", b"", b"\xef\xbb\xbf"]) + buffer.getvalue().encode()


def json_lines_bytes(rng: random.Random, rows: list[dict]) -> bytes:
    """Write rows as JSON lines."""
    ascii_only, end = rng.random() < 0.5, rng.choice(["\n", "\r\n", "\n\n"])
    return rng.choice([b"", b"\xef\xbb\xbf"]) + end.join(json.dumps(r, ensure_ascii=ascii_only) for r in rows).encode()


def json_bytes(rng: random.Random, rows: list[dict]) -> bytes:
    """Write rows as one JSON value, in a form that the readers promise."""
    form = rng.choice(["list", "data", "lines"])
    if form == "lines":
        return json_lines_bytes(rng, rows)
    return json.dumps(rows if form == "list" else {"version": 1, "data": rows}, indent=rng.choice([None, 1])).encode()


def txt_bytes(rng: random.Random, rows: list[dict]) -> bytes:
    """Write rows as raw text, some of them in paragraphs."""
    end = rng.choice(["\n", "\r\n"])
    return "".join(f"{row['text']}{end * rng.randint(1, 3)}" for row in rows).encode()


def parquet_bytes(rng: random.Random, rows: list[dict], table: pyarrow.Table | None = None) -> bytes:
    """Write rows as Parquet, with one of the codecs, encodings and page versions."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(
        table or pyarrow.Table.from_pylist(rows),
        buffer,
        compression=rng.choice(["none", "snappy", "gzip", "zstd"]),
        use_dictionary=rng.random() < 0.5,
        data_page_version=rng.choice(["1.0", "2.0"]),
        write_page_checksum=rng.random() < 0.5,
        row_group_size=rng.choice([5, 1000]),
        store_schema=rng.random() < 0.5,
    )
    return buffer.getvalue()


WRITERS = {
    ".csv": csv_bytes,
    ".tsv": lambda rng, rows: csv_bytes(rng, rows, "\t"),
    ".jsonl": json_lines_bytes,
    ".ndjson": json_lines_bytes,
    ".json": json_bytes,
    ".txt": txt_bytes,
    ".parquet": parquet_bytes,
}

# ------------------------------------------------------------------------------------------------------ the mutations


def _somewhere(rng, data: bytes) -> int:
    return rng.randrange(len(data) + 1)


def _lines(rng, data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True) or [b""]


def truncate(rng, data):
    return data[: _somewhere(rng, data)]


def flip_bits(rng, data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def insert_bytes(rng, data):
    place = _somewhere(rng, data)
    junk = [
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b'"',
        b"'",
        b",",
        b"\t",
        b"\n",
        b"\r",
        b"\\",
        b"{",
        b"]",
        b"\x1a",
        b"\x1b[2J",
    ]
    return data[:place] + rng.choice(junk) * rng.choice([1, 1, 2, 500]) + data[place:]


def delete_bytes(rng, data):
    place = _somewhere(rng, data)
    return data[:place] + data[place + rng.randint(1, 20) :]


def duplicate_bytes(rng, data):
    place, length = _somewhere(rng, data), rng.randint(1, 200)
    return data[: place + length] + data[place:]


def delete_line(rng, data):
    lines = _lines(rng, data)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def duplicate_line(rng, data):
    lines = _lines(rng, data)
    place = rng.randrange(len(lines))
    return b"".join([*lines[: place + 1], lines[place], *lines[place + 1 :]])


def swap_lines(rng, data):
    lines = _lines(rng, data)
    rng.shuffle(lines)
    return b"".join(lines)


def join_lines(rng, data):
    lines = _lines(rng, data)
    place = rng.randrange(len(lines))
    lines[place] = lines[place].rstrip(b"\r\n")
    return b"".join(lines)


def first_line_only(rng, data):
    return _lines(rng, data)[0]


def nothing_left(rng, data):
    return rng.choice([b"", b"\n", b" \n \n", b"\xef\xbb\xbf", b"\0"])


def other_encoding(rng, data):
    text = data.decode("utf-8", "replace")
    return text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "cp1252", "shift_jis", "utf-7"]), "replace")


def other_line_ends(rng, data):
    return data.replace(b"\r\n", b"\n").replace(b"\n", rng.choice([b"\r", b"\r\n", b"\n\r", b"\x0b", b"\xe2\x80\xa8"]))


def packed(rng, data):
    buffer = io.BytesIO()
    kind = rng.choice(["gz", "bz2", "zip", "tar", "pickle"])
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("../train.csv", data)
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo("../train.csv")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    elif kind == "pickle":
        return b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94."
    else:
        return {"gz": gzip, "bz2": bz2}[kind].compress(data)
    return buffer.getvalue()


BYTES = [
    truncate, truncate, flip_bits, flip_bits, insert_bytes, insert_bytes, insert_bytes, delete_bytes, duplicate_bytes,
    delete_line, duplicate_line, swap_lines, join_lines, first_line_only, nothing_left, other_encoding,
    other_line_ends, packed,
]  # fmt: skip

JUNK = [
    "null", "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "9" * 30, "-0", "0.1", "true", "false",
    '""',
    '"  "', "[]", "{}", '["a", null]', '["a", ["b"]]', '[{"a": 1}]', '{"a": {"b": [1]}}', '"\\ud800"', '"\\ud83d x"',
    '"\\u0000"', '"../../x"', "[" * 3000 + "]" * 3000, "[" * 300 + "]" * 300, '{"a":' * 2000 + "1" + "}" * 2000,
    '"' + "x" * 300_000 + '"', "[1, 2]", "[1.5, true]", "undefined", "'x'", "1.", "01", "+1", "0x10", "1_000",
    '"a" "b"', '"\\x41"', '"\t"', '"%s %n {0} $x$"', "[[1], [2]]",
]  # fmt: skip


def json_value(rng, data):
    """Put junk where a value stands in a line of JSON."""
    lines = _lines(rng, data)
    place = rng.randrange(len(lines))
    parts = lines[place].split(b": ")
    if len(parts) > 1:
        i = rng.randrange(1, len(parts))
        rest = max(parts[i].rfind(b", "), parts[i].rfind(b"}"))
        parts[i] = rng.choice(JUNK).encode() + (parts[i][rest:] if rest >= 0 else b"\n")
        lines[place] = b": ".join(parts)
    return b"".join(lines)


def json_all_labels(rng, data):
    """Put junk, drawn anew for each, where the labels stand."""
    few = [*rng.sample([j for j in JUNK if len(j) < 50], k=2), "1", "2.5", '"a"', "true"]
    few = rng.sample(few, k=3)
    parts = data.split(b'"label": ')
    for i in range(1, len(parts)):
        rest = parts[i].rfind(b"}")
        if rest >= 0:
            parts[i] = rng.choice(few).encode() + parts[i][rest:]
    return b'"label": '.join(parts)


def json_key_twice(rng, data):
    lines = _lines(rng, data)
    place = rng.randrange(len(lines))
    column = rng.choice([b'"text"', b'"label"', b'"note"', b'"data"'])
    lines[place] = lines[place].replace(
        b"{", b"{" + column + b": " + rng.choice([b'"other"', b"1", b"null"]) + b", ", 1
    )
    return b"".join(lines)


def json_wrapped(rng, data):
    return (
        rng.choice([b"[", b"[" * 5000, b'{"data": ', b'{"train": ', b'{"a":' * 3000])
        + data
        + rng.choice([b"]", b"}", b""])
    )


JSON = [json_value, json_value, json_value, json_all_labels, json_key_twice, json_wrapped]


def csv_header(rng, data):
    """Rename, repeat, drop or quote a name in the header, or put something before it."""
    name = rng.choice([b"text", b"label", b"premise", b"hypothesis"])
    other = rng.choice(
        [b"", b"text", b"label", b" text", b"Text", b'"text', b"text,", b'"te\nxt"', b"\xef\xbb\xbftext", b"../x"]
    )
    head = rng.choice([b"", b"\n\n", b"# a comment\n", b"sep=;\n", b'"', b"x" * 200_000])
    return head + data.replace(name, other, 1)


def csv_cells(rng, data):
    """Add or drop delimiters, quotes and long cells in a line."""
    lines = _lines(rng, data)
    place = rng.randrange(len(lines))
    line = lines[place]
    how = rng.choice(["ragged", "quote", "other", "long", "quotes", "number", "blank"])
    delimiter = rng.choice([b",", b";", b"\t", b"|"])
    if how == "ragged":
        line = line.rstrip(b"\r\n") + delimiter * rng.choice([1, 3, 10_000]) + b"\n"
    elif how == "quote":
        line = b'"' + line
    elif how == "quotes":
        line = line.replace(delimiter, b'"' + delimiter + b'"')
    elif how == "other":
        line = line.replace(rng.choice([b",", b";", b"\t", b"|"]), delimiter)
    elif how == "long":
        line = b"y" * 400_000 + line
    elif how == "number":
        line = line.rstrip(b"\r\n").rpartition(delimiter)[0] + delimiter + rng.choice(
            [b"NaN", b"inf", b"1e999", b"1" * 5000, b"-100", b"", b"  ", b"2.5", b"=1+1", b"\xd9\xa3", b"\xc2\xb2"]
        ) + b"\n"  # fmt: skip
    else:
        line += rng.choice([b"\n\n", b"  \n", b'""\n', delimiter + b"\n"])
    lines[place] = line
    return b"".join(lines)


CSV = [csv_header, csv_cells, csv_cells, csv_cells]


def parquet_table(rng, rows: list[dict]) -> pyarrow.Table:
    """Return a table whose types or columns are not what is asked for."""
    table = pyarrow.Table.from_pylist(rows)
    column = rng.choice(table.column_names)
    place, count = table.column_names.index(column), len(rows)
    strange = [
        pyarrow.array([b"ab"] * count),
        pyarrow.array([b"\xff\xfe"] * count).view(pyarrow.utf8()),  # not UTF-8 in a column of text
        pyarrow.array(range(count)),
        pyarrow.array([i % 2 for i in range(count)], pyarrow.timestamp("s")),
        pyarrow.array([i % 2 for i in range(count)], pyarrow.uint64()),
        pyarrow.array([i % 2 == 0 for i in range(count)]),
        pyarrow.array([str(i % 2) for i in range(count)]).dictionary_encode(),
        pyarrow.array([str(i % 2) for i in range(count)], pyarrow.large_string()),
        pyarrow.array([f"{i % 3}.5" for i in range(count)]).cast(pyarrow.decimal128(10, 2)),
        pyarrow.array([float("nan"), *[1.5] * (count - 1)]),
        pyarrow.array([float("inf"), *[1.5] * (count - 1)]),
        pyarrow.array([None] * count),
        pyarrow.array([None, *["x", "y"] * count][:count]),
        pyarrow.array([{"a": 1}] * count),
        pyarrow.array([["a", None]] * count),
        pyarrow.array([[["a"]], [["b"]]] * count)[:count],
        pyarrow.array([[b"a"], [b"b"]] * count)[:count],
        pyarrow.array(["x" * 300_000, *["y"] * (count - 1)]),
        pyarrow.array(["", *["y"] * (count - 1)]),
    ]
    how = rng.choice(["type", "type", "type", "twice", "renamed", "empty", "dropped"])
    if how == "type":
        return table.set_column(place, column, rng.choice(strange))
    if how == "twice":
        return table.append_column(column, rng.choice([table[column], pyarrow.array(["z"] * count)]))
    if how == "renamed":
        return table.rename_columns([rng.choice(["x", name, "../x"]) for name in table.column_names])
    return table.slice(0, 0) if how == "empty" else table.drop_columns([column])


# ---------------------------------------------------------------------------------------------------------- the cases


def make_case(kind: str, seed: int, folder: Path) -> DataCase:
    """Write one file: every eighth is valid, the others have one to three things wrong."""
    rng = random.Random(f"{kind} {seed}")
    suffix = {"csv": rng.choice([".csv", ".csv", ".tsv"]), "jsonl": rng.choice([".jsonl", ".ndjson"])}.get(
        kind, f".{kind}"
    )
    rows, case = rows_of(rng, suffix)
    case.path, case.valid = folder / f"train{suffix}", seed % 8 == 0
    data = WRITERS[suffix](rng, rows)
    if not case.valid:
        if suffix == ".parquet" and rng.random() < 0.5:
            data = parquet_bytes(rng, rows, parquet_table(rng, rows))
            case.done.append("parquet_table")
        else:
            special = {".csv": CSV, ".tsv": CSV, ".jsonl": JSON, ".ndjson": JSON, ".json": JSON}.get(suffix, [])
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                mutate = rng.choice(special if special and rng.random() < 0.5 else BYTES)
                data = mutate(rng, data)
                case.done.append(mutate.__name__)
        if rng.random() < 0.1:
            case.problem_type = rng.choice(["regression", "single_label_classification", "multi_label_classification"])
        if rng.random() < 0.1:
            case.separator = rng.choice(["|", ",", " ", "&", "x"])
    case.path.write_bytes(data)
    return case


def put_elsewhere(path: Path, how: str) -> None:
    """Put something else where a file was."""
    path.unlink(missing_ok=True)
    if how == "directory":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "loop":
        path.symlink_to(path)
    elif how == "device":
        path.symlink_to("/dev/zero")


def make_place(seed: int, folder: Path) -> DataCase:
    """Put something else where a data file belongs."""
    rng = random.Random(f"place {seed}")
    suffix = rng.choice(sorted(WRITERS))
    rows, case = rows_of(rng, suffix)
    case.path = path = folder / f"train{suffix}"
    data = WRITERS[suffix](rng, rows)
    how = PLACES[seed % len(PLACES)]
    case.done, case.valid = [how], how in ("dots", "link", "odd name")
    put_elsewhere(path, how)
    if how == "dangling":
        path.symlink_to(folder / "nowhere")
    elif how == "link":
        (folder / "there").write_bytes(data)
        path.symlink_to(folder / "there")
    elif how == "input/output error":
        path.symlink_to("/proc/self/mem")  # a regular file whose first page cannot be read, for root either
    elif how == "long name":
        case.path = folder / f"{'x' * 5000}{suffix}"
    elif how == "nul":
        case.path = folder / f"x\0y{suffix}"
    elif how == "dots":
        (folder / "in").mkdir()
        path.write_bytes(data)
        case.path = folder / "in" / ".." / path.name
    elif how == "odd name":
        case.path = folder / f"a,b;'\"$(x) ü 👩 {suffix}"
        case.path.write_bytes(data)
    elif how == "odd ending":
        case.path = folder / rng.choice(["train", "train.xlsx", "train.csv.gz", "..", "", ".csv", "train."])
        if not case.path.exists():
            case.path.write_bytes(data)
    elif how == "unreadable":
        path.write_bytes(data)
        path.chmod(0)
    return case


PLACES = [
    "directory", "fifo", "loop", "dangling", "link", "input/output error", "device", "long name", "nul", "dots",
    "odd name", "odd ending", "unreadable", "missing",
]  # fmt: skip

# -------------------------------------------------------------------------------------------------- the strict reading


def strict_rows(case: DataCase, documents: bool = False) -> list[tuple[str, dict]]:
    """Read the file again, by other means, as (place, row).

    Raises:
        NotReadableError: There is no correct reading.
    """
    data, suffix = case.path.read_bytes(), case.path.suffix
    if suffix == ".parquet":
        rows = _strict_parquet(data, case)
    else:
        data = data.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in data:
            raise NotReadableError("NUL")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise NotReadableError("not UTF-8") from error
        if suffix in (".csv", ".tsv"):
            rows = _strict_csv(text, case)
        elif suffix == ".txt":
            rows = _strict_text(text, documents)
        else:
            rows = _strict_json(text, suffix)
    columns = [*case.text_columns, *([case.label_column] if case.label_column else [])]
    if any(column not in row for _, row in rows for column in columns):
        raise NotReadableError("a column is missing")
    if not rows:
        raise NotReadableError("no rows")
    return [(place, {column: row[column] for column in columns}) for place, row in rows]


def _strict_csv(text: str, case: DataCase) -> list[tuple[str, dict]]:
    """Read CSV by RFC 4180, with the line ends of all systems; a state machine, so as not to ask the csv module."""
    wanted = [*case.text_columns, *([case.label_column] if case.label_column else [])]
    readings, preferred = [], "\t" if case.path.suffix == ".tsv" else ","
    for delimiter in DELIMITERS:
        try:
            records = _records(text, delimiter)
        except NotReadableError:
            continue
        if records and set(wanted) <= set(records[0][1]):
            readings.append((len(records[0][1]), delimiter == preferred, records))
    if not readings:
        raise NotReadableError("no delimiter fits")
    *_, records = max(readings, key=lambda reading: reading[:2])
    header = records[0][1]
    if len(set(header)) < len(header) or any(len(cells) != len(header) for _, cells in records):
        raise NotReadableError("ragged, or a name twice")
    return [(f":{line}", dict(zip(header, cells, strict=True))) for line, cells in records[1:]]


def _records(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    records, cells, cell, state, line, start = [], [], [], "start", 1, 1
    text = text.replace("\r\n", "\ue000\n") if "\ue000" not in text else text
    i = 0
    while i <= len(text):
        c = text[i] if i < len(text) else None
        pair = c == "\ue000" and text[i + 1 : i + 2] == "\n"
        ends_line = pair or c in ("\r", "\n")
        if state == "quoted":
            if c is None:
                raise NotReadableError("a quote is not closed")
            if c == '"':
                state = "closed"
            else:
                cell.append("\r\n" if pair else c)
                line += ends_line
        elif c is None or ends_line:
            if state != "start" or cells:
                records.append((start, [*cells, "".join(cell)]))
            line += ends_line
            cells, cell, state, start = [], [], "start", line
        elif c == delimiter:
            cells.append("".join(cell))
            cell, state = [], "next"
        elif c == '"' and state == "closed":
            cell.append('"')
            state = "quoted"
        elif state == "closed":
            raise NotReadableError("something behind a closing quote")
        elif c == '"' and state in ("start", "next"):
            state = "quoted"
        else:
            cell.append(c)
            state = "plain"
        i += 2 if pair else 1
    return records


def _no_key_twice(pairs):
    if len({key for key, _ in pairs}) < len(pairs):
        raise NotReadableError("a key stands twice")
    return dict(pairs)


def _load(text: str):
    try:
        return json.loads(text, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise NotReadableError(str(error)) from error


def _strict_json(text: str, suffix: str) -> list[tuple[str, dict]]:
    rows = None
    if suffix == ".json":
        try:
            value = _load(text)
            rows = value["data"] if isinstance(value, dict) and isinstance(value.get("data"), list) else value
            rows = [(f"[{i}]", row) for i, row in enumerate(rows if isinstance(rows, list) else [rows])]
        except NotReadableError as error:
            if "Extra data" not in str(error):
                raise
    if rows is None:
        lines = enumerate(text.split("\n"), start=1)
        rows = [(f":{number}", _load(line)) for number, line in lines if line.strip()]
    if not all(isinstance(row, dict) for _, row in rows):
        raise NotReadableError("not an object")
    return rows


def _strict_text(text: str, documents: bool) -> list[tuple[str, dict]]:
    if "\n" not in text and "\r" in text.rstrip("\r"):
        raise NotReadableError("lines of an old Mac would be one line")
    rows, open_document = [], False
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if not line.strip():
            open_document = False
        elif documents and open_document:
            rows[-1][1]["text"] += f"\n{line}"
        else:
            rows.append((f":{number}", {"text": line}))
            open_document = True
    return rows


def _strict_parquet(data: bytes, case: DataCase) -> list[tuple[str, dict]]:
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data), use_threads=False)
        table.validate(full=True)
        if len(set(table.column_names)) < len(table.column_names):
            raise NotReadableError("a column stands twice")
        columns = {name: table[name].to_pylist() for name in table.column_names}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise NotReadableError(str(error)) from error
    return [(f"[{i}]", {name: columns[name][i] for name in columns}) for i in range(table.num_rows)]


# ---------------------------------------------------------------------------------------------------------- comparing


def compare_rows(case: DataCase, found: list[dict], documents: bool, blank: bool = True) -> str:
    """Return what differs between the rows that were read and the strict reading, or an empty string."""
    try:
        expected = strict_rows(case, documents)
    except NotReadableError as error:
        return f"read, though {error}"
    expected = [{"id": f"{case.path.name}{place}", **row} for place, row in expected]
    if not blank:
        expected = [row for row in expected if (row[case.text_columns[0]] or "").strip()]
    if [*map(_typed, expected)] != [*map(_typed, found)]:
        return f"read {len(found)} rows for {len(expected)}, or others"
    return ""


def _typed(value):
    """Tell 1 from True and 1.0, and let NaN equal itself."""
    if isinstance(value, dict):
        return [(name, _typed(v)) for name, v in value.items()]
    if isinstance(value, list):
        return [_typed(v) for v in value]
    return type(value).__name__, str(value) if value != value else value


def compare_splits(case: DataCase, splits, report, drop: bool = False) -> str:
    """Return what differs between the splits and the strict reading, or an empty string."""
    documents = case.label_column is None
    try:
        expected = {f"{case.path.name}{place}": row for place, row in strict_rows(case, documents)}
    except NotReadableError as error:
        return f"read, though {error}"
    found = [row for split in splits.values() for row in split]
    missing = {*expected} - {row["id"] for row in found}
    if len({row["id"] for row in found}) < len(found) or {row["id"] for row in found} - {*expected}:
        return "rows that are not in the file"
    if len(missing) != report["dropped"]["train"] or (missing and not drop):
        return f"{len(found)} rows for {len(expected)}"
    for place in missing:
        if _is_usable(expected[place], case, report):
            return f"{place} was dropped"
    for row in found:
        wanted = expected[row["id"]]
        for column in case.text_columns:
            if row[column] != wanted[column] or not row[column].strip():
                return f"{row['id']}: {column} is {row[column]!r:.50} for {wanted[column]!r:.50}"
        if not documents:
            difference = _label_differs(row["labels"], wanted[case.label_column], report, case)
            if difference:
                return f"{row['id']}: {difference}"
    if not documents and case.problem_type is None and not case.separator:
        values = [row[case.label_column] for row in expected.values()]
        fractions = sum(_is_fraction(value) for value in values)
        if fractions == len(values) and report["problem_type"] != "regression":
            return f"{report['problem_type']} of fractions"
        if not fractions and report["problem_type"] == "regression":
            return "regression without a fraction"
        if len(values) / 2 < fractions < len(values) and report["problem_type"] == "single_label_classification":
            return "fractions and others as classes"
    return ""


def _is_usable(row: dict, case: DataCase, report) -> bool:
    if not all(row[column] and row[column].strip() for column in case.text_columns):
        return False
    label = row[case.label_column]
    if label is None or str(label).strip() == "" or label != label or label in (float("inf"), float("-inf")):
        return False
    if isinstance(label, list) and None in label:
        return False
    if report["problem_type"] == "regression":
        try:
            return abs(float(label)) < 3e38 and float(label) != -100
        except (TypeError, ValueError):
            return False
    return True


def _is_fraction(value) -> bool:
    if not isinstance(value, float | str | decimal.Decimal):
        return False
    try:
        return np.isfinite(float(value)) and (not isinstance(value, str) or "." in str(value))
    except (ValueError, OverflowError):
        return False


def _label_differs(label, wanted, report, case) -> str:
    names, problem = report["label_names"], report["problem_type"]
    if wanted is None or str(wanted).strip() == "" or wanted != wanted:
        return f"a label where there is none: {label}"
    if isinstance(wanted, float) and not np.isfinite(wanted):
        return f"{wanted} became the label {label}"
    if problem == "regression":
        return "" if np.float32(label) == np.float32(float(wanted)) else f"{label} for {wanted}"
    if problem == "multi_label_classification":
        found = {name for name, present in zip(names, label, strict=True) if present == 1.0}
        wanted = wanted if isinstance(wanted, list) else (
            [part.strip() for part in str(wanted).split(case.separator)] if case.separator else [wanted]
        )  # fmt: skip
        if any(not isinstance(w, str | int | float | datetime.datetime) or w != w for w in wanted):
            return f"{wanted!r:.60} became labels"
        return "" if found == {*map(str, wanted)} - {""} else f"{sorted(found)} for {wanted}"
    if isinstance(wanted, bytes | list | dict):
        return f"{wanted!r:.60} became a label"
    return "" if names[label] == str(wanted) else f"{names[label]!r:.50} for {wanted!r:.50}"
