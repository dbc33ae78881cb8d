"""What is done to the splits of any task; test_data.py has the rest, through load_splits."""

import pytest
from datasets import ClassLabel, Dataset, List

from ptft_recipes.errors import InputError
from ptft_recipes.splits import complete_splits


def sentences(words, labels=None):
    dataset = Dataset.from_dict({"id": [str(i) for i in range(len(words))], "tokens": [w.split() for w in words]})
    if labels is None:
        return dataset
    return dataset.add_column("labels", labels, feature=List(ClassLabel(names=["O", "X"])))


def complete(splits, **kwargs):
    return complete_splits(splits, {"name": "x", "dropped": {}}, ["tokens"], stratify=False, **kwargs)


def test_lists_of_words_are_compared_as_texts():
    train = sentences(["A big match", "one goal"] * 10)
    splits, report = complete({"train": train, "validation": sentences(["a  big match", "two"]), "test": train})
    assert report["overlap_with_train"]["validation"] == {"exact": 0, "normalised": 1}
    assert report["overlap_with_train"]["test"] == {"exact": 20, "normalised": 20}
    assert list(splits) == ["train", "validation", "test"]


def test_the_same_words_with_other_labels_have_another_fingerprint():
    prints = [
        complete(dict.fromkeys(("train", "validation", "test"), sentences(["a b"] * 3, [[0, label]] * 3)))[1]
        for label in (0, 1, 1)
    ]
    first, second, third = (report["fingerprint"]["train"] for report in prints)
    assert first != second == third


def test_rows_of_one_group_stay_together_when_splits_are_cut():
    rows = Dataset.from_dict({"id": [str(i) for i in range(100)], "tokens": [["w", str(i)] for i in range(100)],
                              "text": [f"text {i % 20}" for i in range(100)]})  # fmt: skip
    splits, report = complete({"train": rows}, group_column="text")
    assert report["cut"] == {"test": 10, "validation": 10}
    groups = [{*part["text"]} for part in splits.values()]
    assert list(map(len, groups)) == [16, 2, 2]
    assert len(set.union(*groups)) == 20
    with pytest.raises(InputError, match="train has one text: a test split cannot be cut from it; give --test_file"):
        complete({"train": rows.filter(lambda row: row["text"] == "text 1")}, group_column="text")


def test_missing_splits_are_cut_and_samples_are_taken():
    splits, report = complete({"train": sentences([f"w{i}" for i in range(100)])}, max_train_samples=50)
    assert report["rows"] == {"train": 50, "validation": 9, "test": 10}
    ids = [name for split in splits.values() for name in split["id"]]
    assert len(set(ids)) == len(ids)
    with pytest.raises(InputError, match="--max_eval_samples 0: must be at least 1"):
        complete({"train": sentences(["a"] * 9)}, max_eval_samples=0)
