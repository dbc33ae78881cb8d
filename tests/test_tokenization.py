"""From text to token ids: what is cut and what is unknown is counted as a direct computation counts it."""

import copy
import logging

import pytest
from conftest import FILLERS, TOPICS, topic_rows
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing
from tokenizers.trainers import BpeTrainer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from ptft_recipes.errors import InputError
from ptft_recipes.tokenization import count_tokens, tokenize

KNOWN = {*FILLERS, *(word for words in TOPICS.values() for word in words)}
TEXTS = [row["text"] for row in topic_rows(50, seed=5)]
TEXTS += [
    "goal",
    "goal zebra",
    "Match Zebra yak team",
    "zebra " * 30,
    "goal " * 30 + "zebra",
    "goal " * 6,
    "goal " * 7,
]


@pytest.mark.parametrize("max_length", [3, 8, 32, 64])
def test_truncated_and_unknown_tokens_are_those_that_a_direct_count_finds(tokenizer, max_length):
    batch = tokenize(tokenizer, TEXTS, max_length=max_length)
    words = [text.split() for text in TEXTS]
    kept = [row[: max_length - 2] for row in words]  # without [CLS] and [SEP]
    assert batch["truncated"] == [len(row) > max_length - 2 for row in words]
    assert batch["length"] == [len(row) + 2 for row in kept]
    assert batch["unknown"] == [sum(word.lower() not in KNOWN for word in row) for row in kept]
    assert batch["input_ids"] == [
        tokenizer.convert_tokens_to_ids(["[CLS]", *map(str.lower, row), "[SEP]"]) for row in kept
    ]
    assert {len(column) for column in batch.values()} == {len(TEXTS)}
    assert 0 < sum(batch["truncated"]) < len(TEXTS) or max_length in (3, 64)


@pytest.mark.parametrize("max_length", [7, 9, 20])
def test_of_a_pair_the_longer_text_is_cut(tokenizer, max_length):
    firsts = ["goal " * 10, "goal team", "goal", "goal team coach", "goal " * 10]
    seconds = ["bank", "price " * 10, "bank", "bank price trade", "bank " * 10]
    batch = tokenize(tokenizer, firsts, seconds, max_length=max_length)
    lengths = [len(a.split()) + len(b.split()) + 3 for a, b in zip(firsts, seconds, strict=True)]
    assert batch["truncated"] == [length > max_length for length in lengths]
    assert batch["length"] == [min(length, max_length) for length in lengths]
    assert batch["input_ids"][0].count(tokenizer.convert_tokens_to_ids("bank")) == 1
    assert batch["input_ids"][1].count(tokenizer.convert_tokens_to_ids("goal")) == 1
    assert batch["unknown"] == [0] * 5


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("kind", ["words", "bpe", "more than its backend"])
def test_it_is_what_the_tokenizer_gives(tokenizer, kind, pair):
    if kind == "bpe":
        backend = Tokenizer(BPE(unk_token="<unk>"))
        backend.pre_tokenizer = ByteLevel()
        specials = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
        backend.train_from_iterator(TEXTS, BpeTrainer(vocab_size=300, special_tokens=specials, show_progress=False))
        backend.post_processor = RobertaProcessing(("</s>", 1), ("<s>", 0))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>",
                                            model_max_length=64)  # fmt: skip
    else:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        if kind != "words":
            tokenizer.__class__ = Reversing
    texts = [TEXTS, TEXTS[::-1]] if pair else [TEXTS]
    ours = tokenize(tokenizer, *texts, max_length=16)
    theirs = tokenizer(*texts, truncation=True, max_length=16)
    assert ours["input_ids"] == theirs["input_ids"]
    kept = pair if kind == "words" else kind != "bpe"
    assert ("token_type_ids" in ours) == kept, "zeros are left out"
    assert ours.get("token_type_ids") in (None, theirs.get("token_type_ids"))
    assert all(map(all, theirs["attention_mask"])), "which padding adds"
    padded = tokenizer.pad({name: ours[name] for name in tokenizer.model_input_names if name in ours})
    assert [sum(mask) for mask in padded["attention_mask"]] == ours["length"]


class Reversing(PreTrainedTokenizerFast):
    """A tokenizer that does more than its backend, as LUKE's does."""

    def __call__(self, *texts, **kwargs):
        batch = super().__call__(*texts, **kwargs)
        batch["input_ids"] = [ids[::-1] for ids in batch["input_ids"]]
        return batch


def test_a_slow_tokenizer_is_counted_the_same_way():
    tokenizer = ByT5Tokenizer()  # bytes, and </s> at the end
    assert not tokenizer.is_fast
    texts = ["a" * n for n in range(1, 12)]
    batch = tokenize(tokenizer, texts, max_length=6)
    assert batch["truncated"] == [n + 1 > 6 for n in range(1, 12)]
    assert batch["length"] == [min(n + 1, 6) for n in range(1, 12)]
    pair = tokenize(tokenizer, texts, ["bb"] * 11, max_length=8)
    assert pair["truncated"] == [n + 2 + 2 > 8 for n in range(1, 12)]


def test_max_length_is_limited_by_the_model(tokenizer):
    assert tokenize(tokenizer, ["goal"], max_length=tokenizer.model_max_length)["length"] == [3]
    with pytest.raises(InputError, match="--max_length 65: this model reads at most 64 tokens"):
        tokenize(tokenizer, ["goal"], max_length=65)


@pytest.mark.parametrize(("texts", "special"), [([["goal " * 9]], 2), ([["goal " * 9], ["bank"]], 3)])
def test_max_length_leaves_room_for_text(tokenizer, texts, special):
    for max_length in (special, 1, 0, -1):
        with pytest.raises(InputError, match=f"--max_length {max_length}: {special} special tokens leave no room"):
            tokenize(tokenizer, *texts, max_length=max_length)
    assert tokenize(tokenizer, *texts, max_length=special + 1)["length"] == [special + 1]


def test_the_counts_of_each_split_are_summed_and_logged(tokenizer, caplog):
    texts = {"train": TEXTS, "validation": ["goal team", "zebra yak"], "test": ["goal " * 30]}
    raw = DatasetDict({split: Dataset.from_dict({"text": rows}) for split, rows in texts.items()})
    dataset = raw.map(lambda rows: tokenize(tokenizer, rows["text"], max_length=8), batched=True, batch_size=7)
    with caplog.at_level(logging.INFO, logger="ptft_recipes"):
        counts = count_tokens(dataset)
    assert counts["validation"] == {"tokens": 8, "longest": 4, "truncated_rows": 0, "rows_with_unknown_tokens": 1}
    assert counts["test"] == {"tokens": 8, "longest": 8, "truncated_rows": 1, "rows_with_unknown_tokens": 0}
    words = [text.split() for text in TEXTS]
    assert counts["train"] == {
        "tokens": sum(min(len(row), 6) + 2 for row in words),
        "longest": 8,
        "truncated_rows": sum(len(row) > 6 for row in words),
        "rows_with_unknown_tokens": sum(any(word.lower() not in KNOWN for word in row[:6]) for row in words),
    }
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in lines] == ["train", "validation", "test"]
    assert "8 tokens, at most 4 in a row; 0 rows truncated, 1 with unknown tokens" in lines[1]
