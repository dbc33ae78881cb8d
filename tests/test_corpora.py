"""Corpora by weight, and corpora that are streamed: the same on every machine, over any number of epochs."""

from collections import Counter

import numpy as np
import pytest
from conftest import write_documents
from datasets import Dataset
from transformers import TrainingArguments

from ptft_recipes.corpora import load_corpora, training_rows
from ptft_recipes.data import DatasetArguments
from ptft_recipes.errors import InputError
from ptft_recipes.sampling import MixingSampler


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


def test_rows_in_memory_know_their_corpus(tmp_path):
    parts = {"train": Dataset.from_dict({"x": [1, 2]}), "train/b": Dataset.from_dict({"x": [3]}), "test": None}
    rows = training_rows(parts, {}, TrainingArguments(str(tmp_path), use_cpu=True))
    assert rows[:] == {"x": [1, 2, 3], "corpus": [0, 0, 1]}
