"""Corpora that are streamed: every document once, in shares, from files of many kinds, the same after a resume."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from unittest import mock

import pyarrow
import pyarrow.parquet
import pytest
from accelerate.data_loader import IterableDatasetShard
from conftest import ROOT, write_documents
from datasets import IterableDataset
from transformers import TrainingArguments

from ptft_recipes import reading, safe_files, streaming
from ptft_recipes.corpora import load_corpora, training_rows
from ptft_recipes.data import DatasetArguments
from ptft_recipes.errors import InputError
from ptft_recipes.reading import stream_documents
from ptft_recipes.streaming import StreamedRows


def stream(rows: int, word: str = "a") -> IterableDataset:
    def read():
        yield from ({"text": f"{word}{i}"} for i in range(rows))

    return IterableDataset.from_generator(read)


class TestStreaming:
    def test_an_epoch_has_every_row_once_in_an_order_of_its_own(self):
        rows = StreamedRows([stream(50)], [], seed=3, buffer_size=20, length=50, total=100)
        assert len(rows) == 50
        epochs = []
        for epoch in (0, 1, 0):
            rows.set_epoch(epoch)
            epochs.append(list(rows))
            assert {row["epoch"] for row in epochs[-1]} == {epoch}
        texts = [[row["text"] for row in epoch] for epoch in epochs]
        assert sorted(texts[0]) == sorted(texts[1]) == sorted(f"a{i}" for i in range(50))
        assert texts[0] == texts[2] != texts[1]
        assert texts[0] != [f"a{i}" for i in range(50)]
        assert [row["row"] for row in epochs[0]] == list(range(50))
        assert epochs[1][0]["progress"] == 0.5

    def test_without_a_length_it_goes_on_for_ever_and_mixes_by_share(self):
        def read(seed):
            parts = [stream(40, "a"), stream(15, "b")]
            return [row["text"] for row in islice(StreamedRows(parts, [0.25], seed, buffer_size=10), 400)]

        texts = read(0)
        assert texts == read(0) != read(1)
        counts = Counter(text[0] for text in texts)
        assert 60 < counts["b"] < 140
        domain = [text for text in texts if text[0] == "a"]
        assert len(set(domain[:40])) == 40, "no row a second time before the corpus is through"
        assert domain[:40] != domain[40:80]
        with pytest.raises(TypeError):
            len(StreamedRows([stream(3)], [], 0, 10))

    def test_documents_are_held_out_from_the_start_of_the_stream(self, tmp_path):
        path = write_documents(tmp_path / "long.txt", 400)
        arguments = DatasetArguments(train_file=path, max_eval_samples=50)
        raw, report = load_corpora(arguments, "text", streaming=True)
        texts = {split: [row["text"] for row in rows] for split, rows in raw.items()}
        assert [len(texts[split]) for split in ("test", "validation", "train")] == [50, 50, 300]
        assert len(set(texts["test"] + texts["validation"] + texts["train"])) == 400
        assert report["cut"] == {"test": 50, "validation": 50}
        again = load_corpora(arguments, "text", streaming=True)[1]
        assert report["fingerprint"]["train"] == again["fingerprint"]["train"] != ""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"dataset_name": "demo/aclsum_papers"}, "--streaming needs a --train_file"),
            ({"train_file": "missing.txt"}, "missing.txt: no such file"),
        ],
    )
    def test_what_cannot_be_streamed_is_refused(self, arguments, message):
        with pytest.raises(InputError, match=message):
            load_corpora(DatasetArguments(**arguments), "text", streaming=True)

    def test_a_stream_that_the_held_out_documents_use_up_is_refused(self, tmp_path):
        path = write_documents(tmp_path / "short.txt", 100)
        with pytest.raises(InputError, match="no documents are left after 100 were held out as test"):
            load_corpora(DatasetArguments(train_file=path), "text", streaming=True)

    def test_several_workers_and_mixtures_without_an_end_are_refused(self, tmp_path):
        report = {"tokens": {"train": {"blocks": 9}}, "mix": {"b": 0.5}}
        arguments = TrainingArguments(str(tmp_path), use_cpu=True, dataloader_num_workers=2)
        with pytest.raises(InputError, match="use --dataloader_num_workers 0 or 1"):
            training_rows({"train": stream(9)}, report, arguments)
        arguments = TrainingArguments(str(tmp_path), use_cpu=True)
        with pytest.raises(InputError, match="needs --max_steps"):
            training_rows({"train": stream(9), "train/b": stream(9)}, report, arguments)


MEASURE = """
import json, sys, psutil
from functools import partial
from ptft_recipes.blocks import count_blocks, split_into_blocks
from ptft_recipes.corpora import load_corpora
from ptft_recipes.data import DatasetArguments
from ptft_recipes.streaming import StreamedRows
from transformers import AutoTokenizer

path, checkpoint = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
raw, report = load_corpora(DatasetArguments(train_file=path), "text", streaming=True)

def encode(examples):
    return split_into_blocks(tokenizer, examples["text"], examples["id"], 64)

blocks = raw["train"].map(encode, batched=True, batch_size=100, remove_columns=["id", "text"])
counts = count_blocks({"train": blocks}, tokenizer, 64)["train"]
rows = StreamedRows([blocks], [], 0, buffer_size=1000, length=counts["blocks"])
seen = sum(len(row["input_ids"]) for row in rows)
assert seen == counts["tokens"]
import resource
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"tokens": seen, "rss": peak / 1024}))
"""


def texts_of(rows) -> list[str]:
    return [row["text"] for row in rows]


def write_files(folder: Path, count: int, each: int = 30) -> list[str]:
    """Write documents `<file> <number>` to files, and return their paths."""
    folder.mkdir()
    return [write_documents(folder / f"{i}.txt", each, f"w{i}") for i in range(count)]


def open_documents(source: str, limit: int = 5):
    return load_corpora(DatasetArguments(train_file=source, max_eval_samples=limit), "text", streaming=True)


class TestSources:
    def test_a_folder_has_files_of_every_kind_each_document_once(self, tmp_path):
        folder = tmp_path / "papers"
        (folder / "more").mkdir(parents=True)
        lines = {name: [f"{name} {i}" for i in range(10)] for name in ("b", "c", "d", "e", "f")}
        documents = {name: "\n\n".join(texts).encode() for name, texts in lines.items()}
        rows = {
            name: "\n".join(json.dumps({"text": text}) for text in texts).encode() for name, texts in lines.items()
        }
        write_documents(folder / "a.txt", 10, "a")
        (folder / "b.jsonl.gz").write_bytes(gzip.compress(rows["b"]))
        (folder / "more" / "c.txt.bz2").write_bytes(bz2.compress(documents["c"]))
        (folder / "d.ndjson.xz").write_bytes(lzma.compress(rows["d"]))
        (folder / "e.jsonl").write_bytes(rows["e"])
        pyarrow.parquet.write_table(pyarrow.table({"text": lines["f"]}), folder / "f.parquet")
        raw, report = open_documents(str(folder))
        assert raw["train"].num_shards == 6
        assert report["name"] == "papers"
        found = [text for split in ("test", "validation", "train") for text in texts_of(raw[split])]
        assert sorted(found) == sorted(
            [f"a {i}" for i in range(10)] + [text for texts in lines.values() for text in texts]
        )
        assert texts_of(raw["test"]) == [f"a {i}" for i in range(5)]

    def test_a_pattern_and_what_else_lies_there(self, tmp_path, caplog):
        write_files(tmp_path / "x", 3)
        (tmp_path / "x" / "README.md").write_text("of no interest")
        assert open_documents(str(tmp_path / "x" / "[01].txt"))[0]["train"].num_shards == 2
        assert "left out" not in caplog.text
        with caplog.at_level("WARNING"):
            raw, report = open_documents(str(tmp_path / "x"))
        assert raw["train"].num_shards == 3
        assert "left out, as no text to stream: README.md" in caplog.text
        fingerprint = report["fingerprint"]["train"]
        assert open_documents(str(tmp_path / "x"))[1]["fingerprint"]["train"] == fingerprint
        (tmp_path / "x" / "2.txt").write_text("another text")
        assert open_documents(str(tmp_path / "x"))[1]["fingerprint"]["train"] != fingerprint

    def test_nothing_to_read_is_refused(self, tmp_path):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "a.csv").write_text("text\na")
        for source in (tmp_path / "x", tmp_path / "x" / "*.csv"):
            with pytest.raises(InputError, match=r"no files that can be streamed .*files there: a\.csv"):
                open_documents(str(source))
        with pytest.raises(InputError, match=r"no files that can be streamed .*files there: none"):
            open_documents(str(tmp_path / "x" / "*.txt"))

    def test_a_file_of_another_split_is_not_trained_on(self, tmp_path):
        write_files(tmp_path / "x", 2)
        write_documents(tmp_path / "x" / "test.txt", 30)
        with pytest.raises(InputError, match=r"test\.txt: by its name not to be trained on; give it as"):
            open_documents(str(tmp_path / "x"))
        assert open_documents(str(tmp_path / "x" / "*.txt"))[0]["train"].num_shards == 3

    @pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
    @pytest.mark.parametrize("damage", ["cut off", "flipped", "not packed"])
    def test_a_damaged_file_is_named(self, tmp_path, kind, damage):
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind]
        data = bytearray(pack(b"a text\n\n" + b"\n\n".join(b"%d" % (i * i) for i in range(9000))))
        if damage == "cut off":
            data = data[:-50]
        elif damage == "flipped":
            data[len(data) // 2] ^= 255
        else:
            data = b"plain text"
        path = tmp_path / f"corpus.txt.{kind}"
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"corpus\.txt\.{kind}.*(: damaged or cut off: |is not UTF-8)"):
            list(stream_documents(path, "text"))

    def test_a_fault_in_the_first_rows_of_any_file_is_found_at_once(self, tmp_path):
        write_files(tmp_path / "x", 3)
        (tmp_path / "x" / "9.jsonl").write_text('{"body": "a"}')
        with pytest.raises(InputError, match=r"9\.jsonl:1: no column 'text'; its columns are 'body'"):
            open_documents(str(tmp_path / "x"))

    def test_a_file_without_documents_is_told_and_does_no_harm(self, tmp_path, caplog):
        write_files(tmp_path / "x", 2)
        (tmp_path / "x" / "9.txt").write_text("\n\n")
        with caplog.at_level("WARNING"):
            raw, _ = open_documents(str(tmp_path / "x"))
        assert "1 of 3 files hold no document" in caplog.text
        assert len(list(raw["train"])) == 60 - 10

    def test_a_compression_that_is_not_installed_and_a_line_without_end(self, tmp_path, monkeypatch):
        (tmp_path / "a.txt.zst").write_bytes(b"x")
        monkeypatch.delitem(safe_files.compr, "zstd", raising=False)
        with pytest.raises(InputError, match=r"a\.txt\.zst: needs python -m pip install zstandard"):
            list(stream_documents(tmp_path / "a.txt.zst", "text"))
        monkeypatch.setattr(reading, "LONGEST_LINE", 2**20)
        (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"short\n\n" + b"a" * 2**21))
        with pytest.raises(InputError, match=r"b\.txt\.gz:3: a line of more than 1 MiB"):
            list(stream_documents(tmp_path / "b.txt.gz", "text"))

    def test_the_hub_has_a_shard_per_file(self, tmp_path, monkeypatch):
        folder = tmp_path / "x"
        folder.mkdir()
        files = []
        for i in range(3):
            files.append(str(folder / f"{i}.jsonl"))
            Path(files[-1]).write_text("\n".join(json.dumps({"text": f"w{i} {j}", "n": j}) for j in range(20)) + "\n")
        real = streaming.load_dataset
        monkeypatch.setattr(
            streaming, "load_dataset", lambda *_, **__: real("json", data_files=files, split="train", streaming=True)
        )
        raw, report = load_corpora(DatasetArguments(dataset_name="lab/papers", max_eval_samples=4), "text", (), True)
        assert raw["train"].num_shards == 3
        assert report["fingerprint"]["train"] == "main, streamed"
        held_out = texts_of(raw["test"]) + texts_of(raw["validation"])
        shares = [texts_of(raw["train"].shard(2, rank, contiguous=False)) for rank in (0, 1)]
        assert sorted(shares[0] + shares[1] + held_out) == sorted(f"w{i} {j}" for i in range(3) for j in range(20))


def shared_out(raw, world: int, folder: Path, batch_size: int = 2, mix: dict | None = None) -> list[StreamedRows]:
    """Return the stream of each of some processes, over so many steps that nobody counts."""
    streams = []
    for rank in range(world):
        report = {"tokens": {"train": {"blocks": None}}, "mix": mix or {}, "fingerprint": {"train": "abc"}}
        arguments = TrainingArguments(
            str(folder), use_cpu=True, max_steps=10, per_device_train_batch_size=batch_size, seed=3
        )
        with mock.patch.multiple(TrainingArguments, world_size=world, process_index=rank):
            streams.append(training_rows(raw, report, arguments, buffer_size=7))
        assert report["fingerprint"]["train"] == ("abc" if streams[-1].share == (0, 1) else f"abc, in {world} shares")
    return streams


class TestShares:
    @pytest.mark.parametrize(("files", "world"), [(4, 2), (5, 2), (5, 4), (2, 2)])
    def test_each_process_reads_its_own_files_and_together_all_of_them(self, tmp_path, files, world):
        paths = write_files(tmp_path / "x", files)
        raw, _ = open_documents(str(tmp_path / "x"))
        read = []
        for rank, rows in enumerate(shared_out({"train": raw["train"]}, world, tmp_path)):
            mine = files // world + (rank < files % world)
            count = 30 * mine - 10 * (rank == 0)  # 10 documents of the first file are held out
            rows = islice((row for row in rows if row), 2 * count)
            rows = list(rows)
            assert [row["row"] for row in rows] == list(range(rank, 2 * count * world, world))
            texts = texts_of(rows)
            assert len({text.split()[0] for text in texts}) == mine
            assert Counter(Counter(texts).values()) == {2: count}, "two passes"
            assert texts[:count] != texts[count:], "in another order"
            read += texts[:count]
        held_out = texts_of(raw["test"]) + texts_of(raw["validation"])
        assert sorted(read + held_out) == sorted(f"w{i} {j}" for i in range(len(paths)) for j in range(30))

    def test_accelerate_deals_out_to_each_process_what_it_read(self, tmp_path):
        write_files(tmp_path / "x", 3)
        raw, _ = open_documents(str(tmp_path / "x"))
        rows = shared_out({"train": raw["train"]}, 3, tmp_path)
        for rank, stream in enumerate(rows):
            dealt = IterableDatasetShard(stream, batch_size=2, num_processes=3, process_index=rank)
            batches = list(islice(dealt, 20))
            assert None not in batches
            assert {row["text"].split()[0] for row in batches} == {f"w{rank}"}
            stream.batch_size = 1  # found to be smaller in mid-training
            again = IterableDatasetShard(stream, batch_size=1, num_processes=3, process_index=rank)
            assert list(islice(again, 20)) == batches

    def test_fewer_files_than_processes_are_read_by_all_as_one_process_would(self, tmp_path):
        write_files(tmp_path / "x", 1)
        raw, _ = open_documents(str(tmp_path / "x" / "0.txt"))
        one, two = (shared_out({"train": raw["train"]}, world, tmp_path)[0] for world in (1, 2))
        assert two.share == (0, 1)
        assert texts_of(islice(one, 50)) == texts_of(islice(two, 50))

    def test_a_mixed_in_corpus_of_one_file_is_shared_out_row_by_row(self, tmp_path):
        write_files(tmp_path / "x", 4)
        raw, _ = open_documents(str(tmp_path / "x"))
        general = stream(24, "general ")
        rows = shared_out({"train": raw["train"], "train/g": general}, 2, tmp_path, mix={"g": 0.5})
        found = []
        for mine in rows:
            texts = (row["text"] for row in mine if row and row["text"].startswith("general"))
            found.append(list(islice(texts, 12)))
        assert sorted(found[0] + found[1]) == sorted(f"general {i}" for i in range(24))

    def test_a_process_without_text_is_told_before_training(self, tmp_path):
        write_files(tmp_path / "x", 1)
        (tmp_path / "x" / "1.txt").write_text("\n\n")
        raw, _ = open_documents(str(tmp_path / "x"))
        with pytest.raises(InputError, match="the files that process 1 of 2 would read hold no text"):
            shared_out({"train": raw["train"]}, 2, tmp_path)

    def test_what_is_held_out_is_nowhere_in_training(self, tmp_path):
        write_files(tmp_path / "x", 2)
        with (tmp_path / "x" / "1.txt").open("a") as file:
            file.write("\n\nw0 3")  # a document of the test split again
        raw, _ = open_documents(str(tmp_path / "x"))
        assert "w0 3" in texts_of(raw["test"])
        for rank in (0, 1):
            assert "w0 3" not in texts_of(raw["train"].shard(2, rank))
        assert len(list(raw["train"])) == 50


@pytest.mark.parametrize("at", [0, 9, -1])
def test_a_change_at_either_end_of_a_file_of_any_size_is_noticed(tmp_path, monkeypatch, at):
    monkeypatch.setattr(streaming, "DIGESTED", 10)
    for length in (5, 15, 20, 90):
        text = bytearray(b"x" * length)
        (file := tmp_path / "a.txt").write_bytes(text)
        before = streaming._digest([str(file)])
        text[min(at, length - 1)] ^= 1
        file.write_bytes(text)
        assert streaming._digest([str(file)]) != before
        file.write_bytes(b"x" * (length + 1))
        assert streaming._digest([str(file)]) != before


def test_corpora_of_one_folder_keep_different_names(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    sources = ["wiki.2020.txt", "wiki.2021.txt", "wiki.2020.jsonl.gz", "dumps/*.jsonl", "dumps/", ".hidden", "*.txt"]
    names = ["wiki.2020", "wiki.2021", "wiki.2020", "dumps", "dumps", ".hidden", "here"]
    assert [streaming.corpus_name(source) for source in sources] == names


def test_held_out_documents_of_a_stream_are_text(tmp_path):
    lines = {"train": ["a", "b", "c"], "test": [1, 2]}
    for split, texts in lines.items():
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    paths = {f"{split}_file": str(tmp_path / f"{split}.jsonl") for split in lines}
    with pytest.raises(InputError, match=r"test\.jsonl:1: column 'text' holds int 1, not text"):
        load_corpora(DatasetArguments(**paths, max_eval_samples=1), "text", streaming=True)


@pytest.mark.slow
def test_memory_does_not_grow_with_a_streamed_corpus(tmp_path, checkpoint):
    document = " ".join(["the team of one big cell and a new stock"] * 30)
    found = []
    for size in (1, 20):
        path = tmp_path / f"{size}.txt"
        with path.open("w") as file:
            for i in range(2000 * size):
                file.write(f"{i} {document}\n\n")
        command = [sys.executable, "-c", MEASURE, str(path), checkpoint]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    small, large = found
    print(found)
    assert large["tokens"] > 18 * small["tokens"]
    assert large["rss"] < 1.1 * small["rss"], "MiB"
