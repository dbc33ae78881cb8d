"""Local files: text stays text, whatever the format; every fault is named by file and line."""

import gzip
import json
import os
import tracemalloc

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from conftest import write_csv

from ptft_recipes.errors import InputError
from ptft_recipes.reading import SUFFIXES, check_columns, read_rows, stream_documents

ROWS = [{"text": "a new match", "label": "sports"}, {"text": "NA", "label": "007"}]


@pytest.fixture
def write(tmp_path):
    """Write a file as given, byte for byte, and return its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(path, required=("text", "label"), optional=()):
    return read_rows(path, required, optional)


def contents(rows):
    return [{name: value for name, value in row.items() if name != "id"} for row in rows]


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_a_table_is_read_whatever_its_delimiter_line_ending_and_byte_order_mark(write, delimiter, ending, mark):
    lines = [delimiter.join(("text", "label")), *(delimiter.join(row.values()) for row in ROWS), ""]
    rows = read(write("train.csv", mark + ending.join(lines).encode()))
    assert contents(rows) == ROWS
    assert [row["id"] for row in rows] == ["train.csv:2", "train.csv:3"]


@pytest.mark.parametrize("value", ["NA", "nan", "null", "None", "007", "1e5", "3.50", "True", " padded ", "", "#N/A"])
@pytest.mark.parametrize("name", ["train.csv", "train.tsv"])
def test_a_cell_stays_the_text_that_it_is(tmp_path, name, value):
    path = write_csv(tmp_path / name, [{"text": value, "label": value}], delimiter="\t" if "tsv" in name else ",")
    assert contents(read(path)) == [{"text": value, "label": value}]


def test_each_suffix_that_is_promised_can_be_read(write):
    table = pyarrow.Table.from_pylist(ROWS)
    lines = "\n".join(map(json.dumps, ROWS))
    written = {".csv": "text,label\na new match,sports\nNA,007\n", ".jsonl": lines, ".ndjson": lines}
    written |= {".json": json.dumps(ROWS), ".tsv": written[".csv"].replace(",", "\t")}
    seen = []
    for suffix, content in written.items():
        assert contents(read(write(f"train{suffix}", content))) == ROWS, suffix
        assert contents(read(write(f"train{suffix.upper()}", content))) == ROWS, suffix
        seen.append(suffix)
    path = write("train.parquet", b"")
    pyarrow.parquet.write_table(table, path)
    assert contents(read(path)) == ROWS
    path = write("train.txt", "a new match\r\n\n  \nNA\n")
    assert contents(read(path, ["text"])) == [{"text": row["text"]} for row in ROWS]
    columns = {".conll": "a X\nb Y\n", ".bio": "a\tX\nb\tY\n"}
    columns[".conllu"] = "".join(
        f"{i}\t{w}\t_\t{t}{6 * chr(9) + '_'}\n" for i, (w, t) in enumerate(("aX", "bY"), start=1)
    )
    for suffix, content in columns.items():
        rows = contents(read(write(f"train{suffix}", content), ["tokens", "tags"]))
        assert rows == [{"tokens": ["a", "b"], "tags": ["X", "Y"]}], suffix
    assert sorted([*seen, ".parquet", ".txt", *columns]) == sorted(SUFFIXES)


def test_line_numbers_count_the_lines_of_the_file_not_the_records(write):
    path = write("train.csv", 'text,label\r\n"two\r\nlines",a\r\n\r\n"x\n\ny",b\r\nlast,c\r\n')
    assert [row["id"] for row in read(path)] == ["train.csv:2", "train.csv:5", "train.csv:8"]
    assert [row["text"] for row in read(path)] == ["two\r\nlines", "x\n\ny", "last"]
    assert [row["id"] for row in read(write("blank.csv", "\n\ntext,label\n\nx,a\n"))] == ["blank.csv:5"]
    assert [row["id"] for row in read(write("blank.jsonl", '\n{"text": "x", "label": "a"}\n'))] == ["blank.jsonl:2"]


def test_quotes_delimiters_and_unicode_separators_inside_a_cell_are_kept(write):
    text = 'she said "no"; twice, | and\tleft\u2028here\x0bthere\x85'
    path = write_csv(write("train.csv", b""), [{"text": text, "label": "a"}, {"text": "next", "label": "b"}])
    assert [row["text"] for row in read(path)] == [text, "next"]
    line = json.dumps({"text": text, "label": "a"}, ensure_ascii=False)
    path = write("train.jsonl", f"{line}\n{line}\n")
    assert [(row["id"], row["text"]) for row in read(path)] == [("train.jsonl:1", text), ("train.jsonl:2", text)]


def test_a_quote_that_stands_inside_an_unquoted_cell_is_text(write):
    path = write("train.csv", 'text,label\nshe said "no" twice,a\n5" pipe,b\n')
    assert [row["text"] for row in read(path)] == ['she said "no" twice', '5" pipe']


def test_a_document_of_megabytes_fits_into_a_cell(tmp_path):
    text = "word, " * 200_000
    path = write_csv(tmp_path / "train.csv", [{"text": text, "label": "a"}])
    assert read(path)[0]["text"] == text


def test_a_column_of_text_alone_may_hold_other_delimiters(write):
    path = write("train.csv", 'text\n"one, two"\nthree; four | five\n')
    assert [row["text"] for row in read(path, ["text"])] == ["one, two", "three; four | five"]


def test_columns_that_nobody_asked_for_are_left_out_and_optional_ones_are_none_where_they_miss(write):
    path = write("test.csv", "id,text,note\n17,x,y\n")
    assert read(path, ["text"], ["label"]) == [{"id": "test.csv:2", "text": "x", "label": None}]
    path = write("test.jsonl", '{"text": "x"}\n{"text": "y", "label": 3}\n')
    assert [row["label"] for row in read(path, ["text"], ["label"])] == [None, 3]


def test_the_header_decides_the_delimiter_even_where_an_optional_column_is_all_that_it_splits(write):
    assert contents(read(write("test.csv", "text;label\nx, y;a\n"), ["text"], ["label"])) == [
        {"text": "x, y", "label": "a"}
    ]


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ("text,label\nx,a\ny\n", 3, "1 cells where the header has 2"),
        ("text,label\nx,a,b\n", 2, "3 cells where the header has 2"),
        ("text,label\nx,a\n  \ny,b\n", 3, "1 cells where the header has 2"),
        ('text,label\n"x\ny",a\nz,b,c\n', 4, "quote a cell that holds ','"),
        ("text\none, two\n", 2, "2 cells where the header has 1"),
        ('text,label\nx,a\n"never closed,b\ny,c\n', 3, "a quote is probably not closed"),
        ('text,label\n"said "no" twice",a\n', 2, "not doubled"),
        ("text,label,text\nx,a,y\n", 1, "column name 'text' stands twice"),
        ("\ntext,label,,\nx,a,,\n", 2, "column name '' stands twice"),
    ],
)
def test_a_broken_csv_line_is_named_with_its_reason(write, content, line, said):
    path = write("train.csv", content)
    with pytest.raises(InputError) as error:
        read(path, [name for name in ("text", "label") if name in content])
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "\n\n", "  \n \n", "\ufeff"])
def test_an_empty_csv_file_is_refused(write, content):
    with pytest.raises(InputError, match=r"train\.csv: the file is empty"):
        read(write("train.csv", content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "text,label\n"),
        ("train.jsonl", ""),
        ("train.jsonl", "\n \n"),
        ("train.txt", "\n"),
        ("train.json", "[]"),
        ("train.json", '{"data": []}'),
    ],
)
def test_a_file_without_rows_is_refused(write, name, content):
    with pytest.raises(InputError, match=rf"{name}: no rows"):
        read(write(name, content))


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_a_missing_column_names_the_columns_that_are_there(write, delimiter):
    path = write("train.csv", f"sentence{delimiter}target\nx{delimiter}a\n")
    with pytest.raises(InputError) as error:
        read(path)
    assert "no column 'text', 'label'; its columns are 'sentence', 'target'." in str(error.value)
    assert "--..._column" in str(error.value)


def test_a_file_without_a_header_shows_what_was_taken_for_one_in_a_line(write):
    with pytest.raises(InputError, match="its columns are 'a fine film', 'good'"):
        read(write("train.csv", "a fine film,good\na dull film,bad\n"))
    with pytest.raises(InputError) as error:
        read(write("train.csv", f"{'long ' * 50_000},good\nshort,bad\n"))
    assert len(str(error.value)) < 400


def test_check_columns_passes_what_is_complete():
    check_columns("x", ["a", "b", "c"], ["c", "a"])
    with pytest.raises(InputError, match=r"x: no column 'd'"):
        check_columns("x", ["a"], ["a", "d"])


@pytest.mark.parametrize(
    ("name", "content", "line", "byte", "encoding"),
    [
        ("train.csv", b"text,label\nx,a\ncaf\xe9,b\n", 3, "0xe9", "WINDOWS-1252"),
        ("train.csv", b"\xef\xbb\xbftext,label\n\xe9,b\n", 2, "0xe9", "WINDOWS-1252"),
        ("train.jsonl", b'{"text": "x", "label": "a"}\n{"text": "\xfc"}\n', 2, "0xfc", "WINDOWS-1252"),
        ("train.json", b'[{"text":\n"\xfc"}]', 2, "0xfc", "WINDOWS-1252"),
        ("train.txt", b"one\ntwo\nthree \x80\n", 3, "0x80", "WINDOWS-1252"),
        ("train.txt", b"cut in a character \xe2\x82", 1, "0xe2", "WINDOWS-1252"),
        ("train.csv", "text,label\nx,a\n".encode("utf-16"), 1, "0xff", "UTF-16"),
        ("train.csv", "text,label\nx,a\n".encode("utf-16-le"), 1, "0x00", "UTF-16"),
        ("train.csv", b"text,label\nx,a\ny\0,b\n", 3, "0x00", "UTF-16"),
    ],
)
def test_bytes_that_are_not_utf_8_are_named_with_line_and_remedy(write, name, content, line, byte, encoding):
    path = write(name, content)
    with pytest.raises(InputError) as error:
        read_rows(path, ["text"] if name.endswith("txt") else ["text", "label"])
    assert str(error.value).startswith(f"{path}:{line}: byte {byte} is not UTF-8")
    assert f"iconv -f {encoding} -t UTF-8 {name}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "place", "said"),
    [
        ("train.jsonl", '{"text": "x", "label": 1}\n{"text": "y", "label": }\n', ":2", "broken JSON: Expecting value"),
        ("train.jsonl", '{"text": "x", "label": 1}\n{"text": "y"\n', ":2", "broken JSON"),
        ("train.jsonl", '{"text": "x", "label": 1} {"text": "y", "label": 1}\n', ":1", "Extra data at column 27"),
        ("train.jsonl", '{"text": "x", "label": 1}\n\n["y", 2]\n', ":3", "expected an object {...} per line"),
        (
            "train.jsonl",
            '{"text": "x", "label": 1}\n{"text": "y"}\n',
            ":2",
            "no column 'label'; its columns are 'text'",
        ),
        ("train.json", '[{"text": "x", "label": 1},\n{"text": "y" "label": 2}]', ":2", "broken JSON"),
        ("train.json", '[{"text": "x", "label": 1}]\n]', ":2", "broken JSON: Extra data at column 1"),
        ("train.json", '{"text": "x", "label": 1}\n{"text": }\n', ":2", "broken JSON"),
        ("train.json", "", ":1", "broken JSON"),
        ("train.json", '["x", "y"]', "", "expected a list of objects"),
        ("train.json", '"x"', "", "expected a list of objects"),
        ("train.json", '{"train": [], "test": []}', "[0]", "its columns are 'train', 'test'"),
    ],
)
def test_broken_json_is_named_with_its_place(write, name, content, place, said):
    path = write(name, content)
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}{place}: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (json.dumps(ROWS), ["train.json[0]", "train.json[1]"]),
        (json.dumps({"version": 1, "data": ROWS}, indent=1), ["train.json[0]", "train.json[1]"]),
        ("\n".join(map(json.dumps, ROWS)), ["train.json:1", "train.json:2"]),
        ("\ufeff" + json.dumps(ROWS), ["train.json[0]", "train.json[1]"]),
    ],
    ids=["list", "data", "lines", "bom"],
)
def test_json_is_read_as_a_list_under_data_or_by_lines(write, content, ids):
    rows = read(write("train.json", content))
    assert contents(rows) == ROWS
    assert [row["id"] for row in rows] == ids


def test_json_keeps_its_types(write):
    values = ["007", 7, 7.5, True, None, ["a"], {"a": 1}]
    path = write("train.jsonl", "\n".join(json.dumps({"text": "x", "label": value}) for value in values))
    found = [row["label"] for row in read(path)]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_parquet_keeps_text_whatever_its_encoding(tmp_path):
    texts = ["NA", None, "007"]
    table = pyarrow.table(
        {
            "text": pyarrow.array(texts, pyarrow.large_string()),
            "label": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
            "image": pyarrow.array([b"1", b"2", b"3"]),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    rows = read(tmp_path / "train.parquet")
    assert contents(rows) == [{"text": text, "label": label} for text, label in zip(texts, "aba", strict=True)]
    assert rows[2]["id"] == "train.parquet[2]"


def test_parquet_that_misses_columns_or_is_damaged_is_refused(tmp_path):
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"sentence": ["x"] * 1000}), path)
    with pytest.raises(InputError, match="no column 'text', 'label'; its columns are 'sentence'"):
        read(path)
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", b"text,label\nx,a\n", whole[:-20], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"train\.parquet: not a readable Parquet file"):
            read(path)


@pytest.mark.parametrize("name", ["train.xlsx", "train", "train.csv.gz"])
def test_an_unknown_ending_lists_the_known_ones(write, name):
    with pytest.raises(InputError, match=r"cannot read .*use \.csv, \.tsv, \.jsonl"):
        read(write(name, "text,label\nx,a\n"))


@pytest.mark.parametrize("documents", [False, True])
def test_a_compressed_file_is_to_be_streamed_where_rows_are_documents(write, documents):
    with pytest.raises(InputError, match=r"cannot read \.gz") as caught:
        read_rows(write("corpus.jsonl.gz", '{"text": "x"}\n'), ["text"], documents=documents)
    assert ("--streaming" in str(caught.value)) == documents  # the other recipes have no such option


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no\.csv: no such file"):
        read(tmp_path / "no.csv")


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.json", "train.parquet", "train.txt"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "loop", "device", "long"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name, kind):
    path = tmp_path / (f"{'x' * 5000}{name}" if kind == "long" else name)
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("loop", "device"):
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    said = "no such file" if kind == "long" else "not a regular file"
    with pytest.raises(InputError, match=said):
        read(path)
    if not name.endswith(("csv", "json")):
        with pytest.raises(InputError, match=said):
            next(stream_documents(path, "text"))


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file that fails for root too is needed")
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.json", "train.txt"])
def test_a_file_that_fails_while_it_is_read_is_named(tmp_path, name):
    path = tmp_path / name
    path.symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match=rf"{name}: cannot be read: Input/output error"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.jsonl", '{"text": "x", "label": 1, "text": "y"}\n', "train.jsonl:1: the key 'text' stands twice"),
        ("train.json", '[{"text": "x", "label": 1, "label": 2}]', "the key 'label' stands twice"),
        ("train.json", '{"data": [], "data": []}', "the key 'data' stands twice"),
        ("train.jsonl", f"\n{'[' * 5000}", "train.jsonl:2: JSON nested too deeply"),
        ("train.json", '{"a":' * 5000, "train.json:1: JSON nested too deeply"),
        ("train.jsonl", f'{{"text": "x", "label": {"1" * 5000}}}', "train.jsonl:1: a number of thousands of digits"),
        ("train.csv", gzip.compress(b"text,label\nx,a\n", mtime=0), "train.csv: it is an archive, or compressed"),
        ("train.jsonl", b"PK\x03\x04\x14\0\0\0", "train.jsonl: it is an archive, or compressed"),
        ("train.csv", 'text\tlabel\n"x"y\ta\n', r"'\\t' expected after"),
    ],
)
def test_what_a_parser_would_choke_on_or_misread_is_named(write, name, content, said):
    with pytest.raises(InputError) as error:
        read(write(name, content))
    assert said.replace("\\\\", "\\") in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("documents", [False, True])
def test_the_line_ends_of_an_old_mac_are_refused_where_they_would_make_one_line_of_a_file(write, documents):
    path = write("train.txt", b"one\rtwo\rthree\r")
    with pytest.raises(InputError, match=r"end in \\r alone.*tr '\\r' '\\n'"):
        read_rows(path, ["text"], documents=documents)
    assert read(write("train.txt", b"a bar\rof progress\n"), ["text"])[0]["text"] == "a bar\rof progress"


def test_parquet_with_a_column_twice_bytes_that_are_no_text_or_a_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "train.parquet"
    text = pyarrow.array(["x"] * 3)
    pyarrow.parquet.write_table(pyarrow.table([text, text, text], names=["text", "label", "text"]), path)
    with pytest.raises(InputError, match=r"train\.parquet: the column name 'text' stands twice"):
        read(path)
    broken = pyarrow.array([b"\xff\xfe"] * 3).view(pyarrow.utf8())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken, "label": text}), path)
    with pytest.raises(InputError, match=r"not a readable Parquet file: .*can't decode byte 0xff"):
        read(path)
    table = pyarrow.table({"text": ["a word that can be found"] * 3, "label": ["x"] * 3})
    pyarrow.parquet.write_table(table, path, write_page_checksum=True, compression="none")
    path.write_bytes(path.read_bytes().replace(b"a word that can", b"a Word that can", 1))
    with pytest.raises(InputError, match="CRC"):
        read(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_file_of_documents_has_one_from_each_blank_line_to_the_next(write, end):
    path = write("notes.txt", end.join(["", "one", "two", " ", "", "three", "", "four"]).encode())
    expected = [
        {"id": "notes.txt:2", "text": "one\ntwo"},
        {"id": "notes.txt:6", "text": "three"},
        {"id": "notes.txt:8", "text": "four"},
    ]
    assert read_rows(path, ["text"], documents=True) == expected
    assert list(stream_documents(path, "text")) == expected


def test_documents_are_read_one_by_one(write):
    path = write("notes.jsonl", b'{"text": "a"}\n{"text": " "}\n{"text": null}\n{"text": "b"}\n{"text": 3}\n')
    documents = stream_documents(path, "text")
    assert next(documents) == {"id": "notes.jsonl:1", "text": "a"}
    assert next(documents) == {"id": "notes.jsonl:4", "text": "b"}, "blank ones are left out"
    with pytest.raises(InputError, match=r"notes\.jsonl:5: column 'text' holds int 3, not text"):
        next(documents)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"text\na\n", "--streaming reads .txt, .jsonl, .ndjson, .parquet; convert it"),
        ("x.txt", b"one\n\xff", r"x.txt:2: byte 0xff is not UTF-8"),
        ("x.jsonl", b'{"text": "\\ud83d"}\n', r"x.jsonl:1: column 'text' holds '\\ud83d', half of a character"),
        ("x.parquet", b"PAR1", "x.parquet: not a readable Parquet file"),
        ("x.jsonl", b'{"body": "a"}\n', r"x.jsonl:1: no column 'text'; its columns are 'body'"),
    ],
)
def test_a_file_that_cannot_be_streamed_says_why(write, name, content, message):
    with pytest.raises(InputError, match=message):
        list(stream_documents(write(name, content), "text"))


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    texts = [f"{i} " + "word " * 2000 for i in range(1500)]  # 15 MB
    path = tmp_path / f"corpus.{suffix}"
    if suffix == "parquet":
        datasets.Dataset.from_dict({"text": texts}).to_parquet(path, batch_size=50)
    else:
        ends = "\n" if suffix == "jsonl" else "\n\n"
        path.write_text("".join((json.dumps({"text": text}) if suffix == "jsonl" else text) + ends for text in texts))
    del texts
    tracemalloc.start()
    assert sum(1 for _ in stream_documents(path, "text")) == 1500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000
