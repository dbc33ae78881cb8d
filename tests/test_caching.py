"""Rows of some size are kept by their content, with what is computed of them."""

import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import datasets
import pytest
from conftest import ROOT, write_csv
from datasets import Dataset
from transformers import AutoTokenizer

from ptft_recipes import caching
from ptft_recipes.caching import keep_on_disk
from ptft_recipes.tokenization import tokenize


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(caching, "SMALLEST", 2000)
    return tmp_path / "cache" / "ptft-recipes"


def sentences(count=200, word="match"):
    return Dataset.from_dict(
        {"id": [str(i) for i in range(count)], "text": [f"a big {word} {i}" for i in range(count)]}
    )


def preprocess(rows, tokenizer):
    return tokenize(tokenizer, rows["text"], max_length=8)


def test_tokens_are_computed_once_for_the_same_rows(checkpoint, folder):
    made = []
    for again in range(2):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        if again:
            tokenizer("a state", truncation=True, max_length=3)
        kept = keep_on_disk(sentences())
        tokens = kept.map(preprocess, batched=True, fn_kwargs={"tokenizer": tokenizer})
        assert kept.to_list() == sentences().to_list()
        assert len(tokens["input_ids"][7]) == 6
        made.append([(path, path.stat().st_mtime_ns) for path in folder.glob("*/cache-*.arrow")])
    assert len(made[0]) == 1
    assert made[0] == made[1], "nothing was written again"
    keep_on_disk(sentences(word="game"))
    assert len(list(folder.iterdir())) == 2


def test_rows_that_were_chosen_are_kept_in_their_order():
    chosen = sentences().select([5, 3, 199] * 50)
    assert keep_on_disk(chosen)["id"][:] == ["5", "3", "199"] * 50
    few = sentences().select([5, 3])
    assert keep_on_disk(few) is few, "its two rows are small, though the table below is not"


def test_few_rows_are_left_alone(folder):
    rows = sentences(3)
    assert keep_on_disk(rows) is rows
    assert not folder.exists()


def test_without_room_or_right_the_rows_stay_as_they_are(tmp_path, folder, monkeypatch, library_log):
    rows = sentences()
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**4))
    assert keep_on_disk(rows) is rows
    assert not list(folder.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(caching, "SMALLEST", 2000)
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file"))
    assert keep_on_disk(rows) is rows


def test_a_damaged_file_is_passed_over(folder, library_log):
    rows = sentences()
    keep_on_disk(rows)
    (arrow,) = folder.glob("*/*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert keep_on_disk(rows).to_list() == rows.to_list()
    assert "tokens are not kept for the next start" in library_log.text


COUNTS = """
import importlib.util, os, sys

spec = importlib.util.spec_from_file_location("finetune_cls", sys.argv[1])
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)
plain = recipe.tokenize

def counted(tokenizer, texts, *more, **kwargs):
    with open(os.environ["COUNTED"], "a") as file:
        file.write(f"{os.environ['RANK']} {len(texts)}\\n")
    return plain(tokenizer, texts, *more, **kwargs)

recipe.tokenize = counted
recipe.main(sys.argv[2:])
"""


@pytest.mark.slow
def test_of_two_processes_on_a_machine_one_tokenizes(tmp_path, checkpoint):
    rows = [{"text": " ".join([f"{i} the team and a cell"] * 8), "label": str(i % 2)} for i in range(8000)]
    files = {"train": rows, "validation": rows[:50], "test": rows[:50]}
    flags = [f"--{split}_file={write_csv(tmp_path / f'{split}.csv', part)}" for split, part in files.items()]
    flags += [f"--model_name_or_path={checkpoint}", "--max_length=32", "--max_steps=1"]
    flags += [f"--output_dir={tmp_path / 'run'}"]
    (tmp_path / "counts.py").write_text(COUNTS)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / "multi_cpu.yaml"), "--main_process_port", "0"]
    command += [str(tmp_path / "counts.py"), str(ROOT / "recipes" / "finetune_cls.py"), *flags]
    told = {"COUNTED": str(tmp_path / "counted"), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = Counter()
    for line in (tmp_path / "counted").read_text().splitlines():
        rank, count = line.split()
        counts[rank] += int(count)
    assert counts["0"] == 8100
    assert counts["1"] == 100, "what is too small to be kept on the disk"
