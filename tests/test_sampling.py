"""Draws carry their epoch through any loader: the same rows and masks with any number of workers."""

import pytest
import torch
from conftest import topic_rows
from datasets import Dataset

from ptft_recipes.acceleration import LengthGroupedSampler
from ptft_recipes.blocks import split_into_blocks
from ptft_recipes.collators import MaskingCollator
from ptft_recipes.sampling import Draw, DrawnRows, DrawSampler


@pytest.fixture(scope="module")
def dataset(tokenizer):
    rows = topic_rows(40, seed=0)
    blocks = split_into_blocks(tokenizer, [row["text"] for row in rows], list(map(str, range(40))), max_length=16)
    return Dataset.from_dict(blocks)


def sampler(dataset, epochs=2):
    return DrawSampler(LengthGroupedSampler(dataset["length"][:], 4, seed=5), epochs)


def test_draws_cover_each_row_once_per_epoch_and_tell_how_far_training_is(dataset):
    draws = sampler(dataset)
    seen = []
    for epoch in (0, 1):
        draws.set_epoch(epoch)
        found = list(draws)
        assert {draw.epoch for draw in found} == {epoch}
        assert sorted(draw.row for draw in found) == list(range(len(dataset)))
        seen += found
    progress = [draw.progress for draw in seen]
    assert progress == pytest.approx([i / len(progress) for i in range(len(progress))])
    assert [d.row for d in seen[: len(dataset)]] != [d.row for d in seen[len(dataset) :]]


def test_a_row_knows_its_draw(dataset):
    example = DrawnRows(dataset)[Draw(3, 7, 0.5)]
    assert example == dataset[3] | {"row": 3, "epoch": 7, "progress": 0.5}
    assert len(DrawnRows(dataset)) == len(dataset)


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_workers_make_the_batches_that_one_process_makes(dataset, tokenizer, options):
    def batches(**kwargs):
        draws = sampler(dataset)
        collator = MaskingCollator(tokenizer, "word", 0.3, 0.5, seed=1)
        loader = torch.utils.data.DataLoader(DrawnRows(dataset), 8, sampler=draws, collate_fn=collator, **kwargs)
        found = []
        for epoch in (0, 1):
            draws.set_epoch(epoch)
            found.append(list(loader))
        return found

    alone, workers = batches(), batches(**options)
    for ours, theirs in zip([*alone[0], *alone[1]], [*workers[0], *workers[1]], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ("input_ids", "labels", "attention_mask"))
    first, second = alone
    hidden = [sum(int((batch["labels"] >= 0).sum()) for batch in epoch) for epoch in (first, second)]
    assert 0 < hidden[0] < hidden[1], "the second epoch has its own masks, and more of them"
