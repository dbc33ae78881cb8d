"""A corpus as a stream: which documents, how often, and what is refused."""

import json
import tracemalloc

import datasets
import pytest

from ptft_recipes.documents import load_documents, load_general
from ptft_recipes.errors import InputError


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"text {i}\n\n" for i in range(25)))
    return path


def test_every_tenth_document_is_held_out_always_the_same(corpus):
    documents = load_documents("text", train_file=str(corpus))
    assert list(documents["test"]) == ["text 9", "text 19"]
    train = list(documents["train"])
    assert train == [f"text {i}" for i in range(25) if i not in (9, 19)]
    assert list(documents["train"]) == train, "as often as asked"
    report = documents["train"].report
    assert report["documents"] == 23
    assert report["characters"] == sum(map(len, train))
    corpus.write_text(corpus.read_text() + "one more\n")
    list(documents["train"])
    assert documents["train"].report["fingerprint"] != report["fingerprint"]


def test_the_demo_papers():
    documents = load_documents("text", "demo/aclsum_papers")
    assert (len(list(documents["train"])), len(list(documents["test"]))) == (90, 10)


def test_files_folders_and_their_test_split(tmp_path, corpus):
    (tmp_path / "held.jsonl").write_text('{"body": "held out"}\n')
    (tmp_path / "own.jsonl").write_text('{"body": "a"}\n{"body": null}\n{"body": "b"}\n')
    own = load_documents("body", None, None, str(tmp_path / "own.jsonl"), str(tmp_path / "held.jsonl"))
    assert [list(own[split]) for split in ("train", "test")] == [["a", "b"], ["held out"]]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.txt").write_text("a\nb\n")
    (folder / "test.txt").write_text("c\n")
    found = load_documents("text", str(folder))
    assert [list(found[split]) for split in ("train", "test")] == [["a", "b"], ["c"]]
    assert list(load_documents("text", str(corpus))["test"]) == ["text 9", "text 19"]
    assert next(iter(load_general(str(corpus), "text"))) == "text 0"


def test_a_hub_data_set_is_streamed(monkeypatch):
    def load_dataset(name, config, streaming):
        assert (name, config, streaming) == ("org/texts", "en", True)
        rows = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(10)]})
        return datasets.IterableDatasetDict(train=rows.to_iterable_dataset())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    documents = load_documents("text", "org/texts", "en")
    assert list(documents["test"]) == ["text 9"]
    assert len(list(documents["train"])) == 9
    with pytest.raises(InputError, match=r"org/texts: no column 'body'; its columns are 'text'"):
        load_documents("body", "org/texts", "en")


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    texts = [f"{i} " + "word " * 2000 for i in range(1500)]  # 15 MB
    path = tmp_path / f"corpus.{suffix}"
    if suffix == "parquet":
        datasets.Dataset.from_dict({"text": texts}).to_parquet(path, batch_size=50)
    else:
        path.write_text("".join((json.dumps({"text": text}) if suffix == "jsonl" else text) + "\n" for text in texts))
    del texts
    tracemalloc.start()
    documents = load_documents("text", train_file=str(path))
    assert sum(1 for _ in documents["train"]) == 1350
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"corpus\.txt: no text; give more text"),
        (b" \n\n", r"corpus\.txt: no text; give more text"),
        (b"a\n" * 9, r"fewer than 10 documents, none to hold out; give more text, or a --test_file"),
        (b"a\n" * 20 + b"caf\xe9\n", r"corpus\.txt:21: byte 0xe9 is not UTF-8 text; re-encode the file"),
    ],
)
def test_texts_that_cannot_be_used_are_refused_at_once(tmp_path, content, message):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_documents("text", train_file=str(path))


def test_other_faults(tmp_path, corpus):
    with pytest.raises(InputError, match="no corpus: pass --train_file, or --dataset_name"):
        load_documents("text")
    with pytest.raises(InputError, match="--train_file and --dataset_name other: give one of them"):
        load_documents("text", "other", train_file=str(corpus))
    with pytest.raises(InputError, match=r"nowhere\.txt: no such file"):
        load_documents("text", train_file=str(tmp_path / "nowhere.txt"))
    with pytest.raises(InputError, match="demo/aclsum_papers: no column 'body'"):
        load_documents("body", "demo/aclsum_papers")
    path = tmp_path / "numbers.jsonl"
    path.write_text('{"text": 7}\n')
    with pytest.raises(InputError, match=r"numbers\.jsonl:1: int 7, not text"):
        load_documents("text", train_file=str(path))
    path.write_text('{"text": "\\ud83d"}\n')
    with pytest.raises(InputError, match=r"numbers\.jsonl:1: .*half of a character"):
        load_documents("text", train_file=str(path))
    path.write_text("")
    with pytest.raises(InputError, match=r"numbers\.jsonl: no text"):
        load_general(str(path), "text")
