"""Prepared splits come back from the Hub as they were, with the names of their labels."""

import re

import pytest
from datasets import load_dataset
from huggingface_hub import snapshot_download

from ptft_recipes.data import DatasetArguments, load_splits
from ptft_recipes.dataset_push import push_dataset
from ptft_recipes.errors import InputError, PushError
from ptft_recipes.tagged_data import load_tagged_splits

pytestmark = pytest.mark.usefixtures("login")


def topic_splits(topics):
    data_args = DatasetArguments(train_file=topics["train"], test_file=topics["test"])
    return load_splits(data_args, ["text"], "label")


@pytest.mark.parametrize(("kind", "protocol"), [("topics", "xet"), ("tagged", "lfs")])
def test_splits_are_pushed_and_come_back(hub, kind, topics, tagged, tmp_path):
    if kind == "topics":
        raw, report = topic_splits(topics)
    else:
        data_args = DatasetArguments(train_file=tagged["train"], test_file=tagged["test"])
        raw, report = load_tagged_splits(data_args, "tokens", "tags")
    address = push_dataset(raw, report, "mine")
    assert address.startswith(f"{hub.url}/datasets/me/mine/commit/")
    assert push_dataset(raw, report, "me/mine") == address
    assert hub.repository("me/mine", "datasets").private
    found = load_dataset(snapshot_download("me/mine", repo_type="dataset"), cache_dir=str(tmp_path / "datasets"))
    assert {split: rows.features for split, rows in found.items()} == {
        split: rows.features for split, rows in raw.items()
    }
    assert {split: rows.to_list() for split, rows in found.items()} == {
        split: rows.to_list() for split, rows in raw.items()
    }
    card = hub.content("me/mine", "README.md", "datasets").decode()
    assert re.search(rf"\| validation \(cut from train\) \| {len(raw['validation'])} \| 0 \|", card)
    assert str(tmp_path.parent.parent) not in card


def test_data_does_not_become_public_by_accident(hub, topics):
    hub.add("me/mine", private=False, kind="datasets")
    with pytest.raises(InputError, match="me/mine is public already"):
        push_dataset(*topic_splits(topics), "mine")


def test_a_push_of_data_that_fails_is_told(hub, topics):
    hub.fail("POST", "/commit/", 403)
    with pytest.raises(
        PushError, match=r"the push of the data to me/mine failed \(.*403.*; the same call tries again"
    ):
        push_dataset(*topic_splits(topics), "mine")
