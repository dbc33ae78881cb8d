"""Prepared splits come back from the Hub as they were, with the names of their labels."""

import re
import shlex
from pathlib import Path

import datasets
import pytest
from conftest import topic_rows, write_csv
from datasets import load_dataset

from ptft_recipes.commands import main
from ptft_recipes.data import DatasetArguments
from ptft_recipes.dataset_push import prepare_splits

pytestmark = pytest.mark.usefixtures("login")
TASKS = {"topics": "text-classification", "tagged": "token-classification", "corpus": "fill-mask"}


@pytest.fixture
def stranger(hub, monkeypatch, tmp_path):
    """Return `load_dataset`, turned to the Hub, with a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return lambda name: load_dataset(name, cache_dir=str(tmp_path / "datasets"))


def columns_and_rows(splits) -> dict:
    return {split: (dataset.features, dataset.to_list()) for split, dataset in splits.items()}


@pytest.mark.parametrize(("kind", "protocol"), [("topics", "xet"), ("tagged", "lfs"), ("corpus", "lfs")])
def test_a_stranger_loads_the_same_rows_with_the_same_features(hub, kind, request, stranger, capsys, tmp_path):
    files = request.getfixturevalue(kind)
    argv = [files["train"], "mine", "--test_file", files["test"], "--task", TASKS[kind]]
    assert main(["push-dataset", *argv]) == 0
    address, errors = capsys.readouterr()
    assert address.startswith(f"{hub.url}/datasets/me/mine/commit/")
    assert errors == "", "no progress bars where there is no terminal"
    assert main(["push-dataset", *argv]) == 0
    assert capsys.readouterr().out == address, "nothing new"
    assert hub.repository("me/mine", "datasets").private
    data_args = DatasetArguments(train_file=files["train"], test_file=files["test"])
    raw, _ = prepare_splits(data_args, TASKS[kind])
    assert columns_and_rows(stranger("me/mine")) == columns_and_rows(raw)
    card = hub.content("me/mine", "README.md", "datasets").decode()
    assert re.search(rf"\| validation \(cut from train\) \| {len(raw['validation'])} \| 0 \|", card)
    assert str(tmp_path.parent.parent) not in card
    # What the card tells to give to a recipe reads the same rows.
    flags = dict(zip(*[iter(shlex.split(re.search("For the recipes: `(.*?)`", card)[1]))] * 2, strict=True))
    again = {"text_column": flags.get("--text_column") or flags.get("--words_column"),
             "label_column": flags.get("--label_column") or flags.get("--tags_column")}  # fmt: skip
    found, _ = prepare_splits(DatasetArguments(dataset_name=flags["--dataset_name"]), TASKS[kind], **again)
    for split, dataset in raw.items():
        assert found[split].remove_columns("id").to_list() == dataset.remove_columns("id").to_list()


def test_pairs_several_labels_and_a_test_split_without_labels(hub, stranger, tmp_path):
    rows = [row | {"pair": "a, b", "topics": f"old|{row.pop('label')}", "price": 1} for row in topic_rows(40, seed=1)]
    (tmp_path / "data").mkdir()
    write_csv(tmp_path / "data" / "train.csv", rows)
    write_csv(tmp_path / "data" / "test.csv", [{"text": row["text"], "pair": row["pair"]} for row in rows[:5]])
    flags = ["--text_pair_column", "pair", "--label_column", "topics", "--label_separator", "|"]
    assert main(["push-dataset", str(tmp_path / "data"), "lab/mine", *flags]) == 0
    found = stranger("lab/mine")
    assert found["train"].column_names == ["id", "text", "pair", "labels"]
    label = found["train"].features["labels"].feature
    topics = {row["text"]: row["topics"] for row in rows}
    for row in [*found["train"], *found["validation"]]:
        assert {label.int2str(number) for number in row["labels"]} == {*topics[row["text"]].split("|")}
    assert found["test"]["labels"] == [None] * 5
    assert "--text_column text --text_pair_column pair" in hub.content("lab/mine", "README.md", "datasets").decode()


@pytest.mark.parametrize("secret", ["hf_AbCdEfGh0123456789", "https://me:pw@host/a", "the password of this test"])
def test_a_row_with_a_secret_stays_here(hub, secret, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_PASSWORD", "the password of this test")
    rows = topic_rows(40, seed=1)
    rows[3]["text"] += f"\n see {secret}"
    rows[5]["text"] = f"{secret} {rows[5]['text']}"
    path = Path(write_csv(tmp_path / "train.csv", rows))
    assert main(["push-dataset", str(path), "mine"]) == 2
    told = capsys.readouterr().err
    lines = [number for number, line in enumerate(path.read_text().splitlines(), 1) if secret in line]
    assert "2 rows hold what looks like a token or a password" in told
    assert {*map(int, re.findall(r"train\.csv:(\d+)", told))} <= {lines[0] - 1, *lines}, "a row of two lines"
    assert len(re.findall(r"train\.csv:\d+", told)) == 2
    assert secret not in told
    assert not hub.requests("", "POST")


def test_a_label_with_a_secret_stays_here_too(hub, capsys, tmp_path):
    rows = [row | {"label": "hf_AbCdEfGh0123456789"} if i % 2 else row for i, row in enumerate(topic_rows(40, seed=1))]
    assert main(["push-dataset", write_csv(tmp_path / "train.csv", rows), "mine"]) == 2
    assert "the name of a label or of the data" in capsys.readouterr().err
    assert not hub.requests("", "POST")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--label_column", "topic"], "no column 'topic'"),
        (["--task", "fill-mask", "--label_column", "label"], "the texts of fill-mask have no labels; leave it out"),
        (["--task", "token-classification", "--label_separator", "|"], "are for text-classification, not for token"),
        (["--validation_file", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_made(hub, flags, told, topics, capsys):
    assert main(["push-dataset", topics["train"], "mine", *flags]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not hub.requests("", "POST")


def test_files_beside_what_is_no_file_are_refused(hub, topics, capsys):
    assert main(["push-dataset", "demo/aclsum_roles", "mine", "--test_file", topics["test"]]) == 2
    assert "demo/aclsum_roles is no file" in capsys.readouterr().err


def test_data_does_not_become_public_by_accident(hub, topics, capsys):
    hub.add("me/mine", private=False, kind="datasets")
    assert main(["push-dataset", topics["train"], "mine"]) == 2
    assert "me/mine is public already" in capsys.readouterr().err
    assert main(["push-dataset", topics["train"], "mine", "--public"]) == 0
    assert {*hub.repository("me/mine", "datasets").head().files} >= {"README.md"}


def test_a_push_that_fails_ends_with_the_command_that_tries_again(hub, topics, capsys):
    hub.fail("POST", "/commit/", 403)
    argv = ["push-dataset", topics["train"], "mine", "--public"]
    assert main(argv) == 5
    told = capsys.readouterr().err
    assert re.search(
        r"ptft: error: the push of the data to me/mine failed \(.*403.*\). Retry: ptft push-dataset", told
    )
    assert shlex.split(told.partition(" Retry: ptft ")[2]) == argv
    assert main(argv) == 0
