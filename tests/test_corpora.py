"""Corpora by weight, and corpora that are streamed: the same on every machine, over any number of epochs."""

import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from datasets import Dataset, IterableDataset
from transformers import TrainingArguments

from ptft_recipes.corpora import StreamedRows, load_corpora, training_rows
from ptft_recipes.data import DatasetArguments
from ptft_recipes.errors import InputError
from ptft_recipes.sampling import MixingSampler


def write_documents(path: Path, count: int, word: str = "word") -> str:
    path.write_text("\n\n".join(f"{word} {i}" for i in range(count)), encoding="utf-8")
    return str(path)


def stream(rows: int, word: str = "a") -> IterableDataset:
    def read():
        yield from ({"text": f"{word}{i}"} for i in range(rows))

    return IterableDataset.from_generator(read)


class TestMixing:
    def test_every_corpus_has_its_share_and_none_is_repeated_before_its_end(self):
        corpus = [0] * 60 + [1] * 100 + [2] * 5
        sampler = MixingSampler([1] * 165, corpus, [0.3, 0.1], 4, seed=0)
        assert len(sampler) == 60 + 30 + 10
        drawn = Counter()
        for epoch in range(3):
            sampler.set_epoch(epoch)
            rows = list(sampler)
            assert Counter(corpus[row] for row in rows) == {0: 60, 1: 30, 2: 10}
            assert len({row for row in rows if row < 60}) == 60
            drawn.update(rows)
        general = [drawn[row] for row in range(60, 160)]
        assert max(general) == 1, "90 of 100 rows, none twice"
        assert {drawn[row] for row in range(160, 165)} == {6}, "30 draws go round 5 rows"

    def test_the_order_depends_on_seed_and_epoch_alone(self):
        def rows(seed, epoch):
            sampler = MixingSampler(np.arange(50), [0] * 30 + [1] * 20, [0.2], 4, seed)
            sampler.set_epoch(epoch)
            return list(sampler)

        assert rows(1, 2) == rows(1, 2)
        assert rows(1, 2) != rows(1, 3)
        assert rows(1, 2) != rows(2, 2)

    def test_corpora_are_loaded_with_held_out_documents_of_their_own(self, tmp_path):
        domain = write_documents(tmp_path / "domain.txt", 40)
        general = write_documents(tmp_path / "general.txt", 30, "other")
        arguments = DatasetArguments(train_file=domain)
        raw, report = load_corpora(arguments, "text", [f"{general}=0.25"])
        assert list(raw) == ["train", "validation", "test", "train/general", "test/general"]
        assert len(raw["test/general"]) == 3
        assert report["mix"] == {"general": 0.25}
        assert "train/general" not in load_corpora(arguments, "text", [f"{general}=0"])[0], "0: only scored"

    @pytest.mark.parametrize(
        ("mix", "message"),
        [
            (["a.txt"], "--mix a.txt: expected <corpus>=<share"),
            (["a.txt=x"], "--mix a.txt=x: expected <corpus>=<share"),
            (["a.txt=1.5"], "--mix a.txt=1.5: expected <corpus>=<share"),
            (["a.txt=0.5", "b.txt=0.5"], "shares of 1 in all leave nothing"),
        ],
    )
    def test_shares_that_make_no_sense_are_refused(self, tmp_path, mix, message):
        with pytest.raises(InputError, match=message):
            load_corpora(DatasetArguments(train_file=write_documents(tmp_path / "d.txt", 40)), "text", mix)


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

    def test_rows_in_memory_know_their_corpus(self, tmp_path):
        parts = {"train": Dataset.from_dict({"x": [1, 2]}), "train/b": Dataset.from_dict({"x": [3]}), "test": None}
        rows = training_rows(parts, {}, TrainingArguments(str(tmp_path), use_cpu=True))
        assert rows[:] == {"x": [1, 2, 3], "corpus": [0, 0, 1]}


MEASURE = """
import json, sys, psutil
from functools import partial
from ptft_recipes.blocks import count_blocks, split_into_blocks
from ptft_recipes.corpora import StreamedRows, load_corpora
from ptft_recipes.data import DatasetArguments
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


def test_a_folder_is_not_streamed_by_other_rules(tmp_path):
    (tmp_path / "train.txt").write_text("a document\nof two lines\n\nanother\n")
    with pytest.raises(InputError, match="--streaming reads a file or the Hub, not a folder"):
        load_corpora(DatasetArguments(dataset_name=str(tmp_path)), "text", streaming=True)


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
