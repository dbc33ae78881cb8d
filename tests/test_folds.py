"""Folds: every row is tested on once, labels in equal shares, groups never divided."""

import collections

import numpy as np
import pytest
from conftest import topic_rows, write_csv
from sklearn.model_selection import StratifiedGroupKFold

from ptft_recipes.data import DatasetArguments, load_splits
from ptft_recipes.errors import InputError
from ptft_recipes.folds import assign_folds, parse_fold


@pytest.mark.parametrize("text", ["5/5", "0/1", "x/5", "1", "-1/5", "0/5/", "0/5x", ""])
def test_another_form_is_refused(text):
    with pytest.raises(InputError, match=r"expected <number>/<count>"):
        parse_fold(text)


def test_every_fold_has_its_share_of_every_label():
    labels = np.random.default_rng(0).choice(4, p=[0.6, 0.3, 0.08, 0.02], size=503)
    folds = assign_folds(labels, None, 5, 503)
    assert {k: (folds == k).sum() for k in range(5)} == {0: 101, 1: 101, 2: 101, 3: 100, 4: 100}
    for label in range(4):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (folds == assign_folds(labels, None, 5, 503)).all()
    # Not by their order in the file.
    assert len(set(folds[:10])) > 2


@pytest.mark.parametrize("labels", [[[0.0, 1.0], [1.0, 0.0]] * 10, [0.5, 1.5] * 10, None])
def test_any_kind_of_label_can_be_divided(labels):
    assert sorted(np.bincount(assign_folds(labels, None, 4, 20))) == [5] * 4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_stay_whole_and_labels_as_even_as_with_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    groups = np.sort(generator.integers(40, size=600))
    bias = generator.dirichlet([1, 1, 1], size=40)
    labels = np.array([generator.choice(3, p=bias[g]) for g in groups])
    folds = assign_folds(labels, groups, 5, 600)
    assert all(len(set(folds[groups == g])) == 1 for g in set(groups))

    def unevenness(folds):
        return np.std(
            [np.bincount(labels[folds == k], minlength=3) / np.bincount(labels) for k in range(5)], axis=0
        ).mean()

    theirs = np.empty(600, int)
    for k, (_, test) in enumerate(StratifiedGroupKFold(5).split(labels, labels, groups)):
        theirs[test] = k
    assert unevenness(folds) < 1.5 * unevenness(theirs)
    assert max(np.bincount(folds)) - min(np.bincount(folds)) < 60


def test_too_few_groups_are_refused():
    with pytest.raises(InputError, match="3 groups are too few for 5 folds"):
        assign_folds([0] * 9, [1, 2, 3] * 3, 5, 9)
    with pytest.raises(InputError, match="2 rows are too few for 5 folds"):
        assign_folds(None, None, 5, 2)


@pytest.fixture
def file(tmp_path):
    rows = [row | {"speaker": f"s{i % 10}"} for i, row in enumerate(topic_rows(100, 0))]
    return write_csv(tmp_path / "all.csv", rows)


@pytest.mark.parametrize("column", [None, "speaker"])
def test_the_folds_of_a_file_cover_it_once(file, column):
    seen, speakers = collections.Counter(), []
    for k in range(4):
        fold = f"{k}/4" + (f"/{column}" if column else "")
        raw, report = load_splits(DatasetArguments(train_file=file, fold=fold), ["text"], "label")
        parts = {split: set(raw[split]["id"]) for split in raw}
        assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 100
        assert raw["test"].column_names == ["id", "text", "labels"]
        assert report["fold"] == {"number": k, "count": 4, "group_column": column}
        seen.update(parts["test"])
        speakers.append({int(name.split(":")[1]) % 10 for name in parts["test"]})
    assert set(seen.values()) == {1}
    assert len(seen) == 100
    if column:
        assert sum(map(len, speakers)) == 10


def test_what_does_not_go_together_is_refused(file):
    with pytest.raises(InputError, match="tests on a part of train; leave --test_file out"):
        load_splits(DatasetArguments(train_file=file, test_file=file, fold="0/4"), ["text"], "label")
    with pytest.raises(InputError, match="no column 'author'"):
        load_splits(DatasetArguments(train_file=file, fold="0/4/author"), ["text"], "label")
    with pytest.raises(InputError, match="--fold divides train, and there is none"):
        load_splits(DatasetArguments(validation_file=file, fold="0/4"), ["text"], label_names=())
