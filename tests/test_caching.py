"""Rows of some size are kept by their content, with what is computed of them."""

from types import SimpleNamespace

import datasets
import pytest
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
