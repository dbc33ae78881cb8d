"""Words and labels in windows: nothing shifts, nothing is lost, nothing counts twice."""

import random

import numpy as np
import pytest
from conftest import SPECIAL_TOKENS
from datasets import Dataset, DatasetDict
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaTokenizer

from ptft_recipes.errors import InputError
from ptft_recipes.windows import (
    IGNORED,
    NO_TOKEN,
    continuation_labels,
    count_windows,
    merge_windows,
    own_words,
    prepare_for_words,
    space_between_words,
    tokenize_words,
)

PIECES = ["un", "##related", "match", "##es", "é", "e", "中", "国", "😀", "the"]


def fast(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


@pytest.fixture(scope="module")
def wordpiece():
    """BERT's own pipeline: it drops zero-width and control characters, strips accents, and splits Chinese."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *PIECES])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return prepare_for_words(fast(tokenizer))


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("t", "h"), ("th", "e")]
BYTES = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *ALPHABET, *map("".join, MERGES)])}


def marked(pre_tokenizer, model=None):
    """Return a tokenizer that marks words by the space before them."""
    tokenizer = Tokenizer(model or models.BPE(BYTES, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizer
    return fast(tokenizer)


def roberta():
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *list(BYTES)[5:]])}
    return RobertaTokenizer(vocab=vocabulary, merges=MERGES, model_max_length=64)


def split_then_bytes():
    """As Llama 3 and EuroBERT do it: a space before each part would be one inside of words."""
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|'[st]| ?[^\s\p{L}]+"), "isolated")
    return marked(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))


def metaspace(scheme):
    vocabulary = [(token, 0.0) for token in [*SPECIAL_TOKENS, "▁the", "the", "▁", *"the'!s"]]
    return marked(pre_tokenizers.Metaspace(prepend_scheme=scheme), models.Unigram(vocabulary, 1))


SPACED = {
    "roberta": roberta,
    "bytes": lambda: marked(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "bytes, marked": lambda: marked(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "split, then bytes": split_then_bytes,
    "metaspace": lambda: metaspace("always"),
    "metaspace, first": lambda: metaspace("first"),
}


def windows_of(tokenizer, rows, labels=None, max_length=12, stride=2, **kwargs):
    return tokenize_words(tokenizer, rows, range(len(rows)), labels, max_length=max_length, stride=stride, **kwargs)


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (["the", "😀", "match"], []),
        (["the", "🏳\ufe0f\u200d🌈", "match"], []),
        (["the", "\u200b", "match"], [1]),
        (["\u200b", "\ufeff", "the"], [0, 1]),
        (["the", "\u0301", "match"], [1]),
        (["the", "e\u0301", "match"], []),
        (["中国", "the", "中"], []),
        (["match\u200bes", "the", "\u00a0"], [2]),
        (["the", "\x00", "\u00ad"], [1, 2]),
        (["[SEP]", "the", "unrelated"], []),
    ],
)
def test_characters_that_the_tokenizer_drops_shift_no_label(wordpiece, words, lost):
    labels = list(range(len(words)))
    found = windows_of(wordpiece, [words], [labels])
    tokens = wordpiece.convert_ids_to_tokens(found["input_ids"][0])
    for word, position in enumerate(found["positions"][0]):
        assert (position == NO_TOKEN) == (word in lost)
        if word not in lost:
            alone = wordpiece.tokenize(words[word])
            assert tokens[position : position + len(alone)] == alone
            assert found["labels"][0][position] == word
    assert [label for label in found["labels"][0] if label != IGNORED] == [i for i in labels if i not in lost]


def test_a_row_of_nothing_but_lost_words_keeps_its_words(wordpiece):
    found = windows_of(wordpiece, [["\u200b", "\u0301"], ["the"]], [[1, 2], [3]])
    assert found["positions"] == [[NO_TOKEN, NO_TOKEN], [1]]
    assert found["labels"][0] == [IGNORED, IGNORED]
    merged = merge_windows(np.array([[7, 7, 7], [7, 5, 7]]), Dataset.from_dict(found), default=9)
    assert merged == {0: [9, 9], 1: [5]}


def test_labels_stand_at_the_first_piece_or_at_all(wordpiece):
    words, names = ["unrelated", "matches", "the"], ["O", "B-X", "I-X"]
    first = windows_of(wordpiece, [words], [[1, 2, 0]])["labels"][0]
    assert first == [IGNORED, 1, IGNORED, 2, IGNORED, 0, IGNORED]
    every = windows_of(wordpiece, [words], [[1, 2, 0]], continuations=continuation_labels(names))["labels"][0]
    assert every == [IGNORED, 1, 2, 2, 2, 0, IGNORED], "an entity begins once"
    assert continuation_labels(["O", "B", "I", "NOUN", "B-Y", "S-Y"]) == [0, 2, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", SPACED)
def test_a_list_of_words_is_read_as_the_text_of_them(kind):
    tokenizer, words = SPACED[kind](), ["the", "the's", "the", "!"]
    found = windows_of(prepare_for_words(tokenizer), [words], [[0, 1, 2, 3]], max_length=40)
    assert found["input_ids"] == [tokenizer(" ".join(words))["input_ids"]]
    assert [label for label in found["labels"][0] if label != IGNORED] == [0, 1, 2, 3]
    assert space_between_words(tokenizer) == ("" if "meta" in kind or "marked" in kind else " ")


def test_transformers_runs_words_together_and_forgets_that_it_should_not(tmp_path):
    """The trap, and why it is not mended in the tokenizer: when this fails, `space_between_words` can go."""
    tokenizer = roberta()
    together = tokenizer.convert_ids_to_tokens(tokenizer(["the", "the"], is_split_into_words=True)["input_ids"])
    assert together == ["<s>", "the", "the", "</s>"], "as in `thethe`"
    tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    tokenizer.save_pretrained(tmp_path)
    assert not RobertaTokenizer.from_pretrained(tmp_path).backend_tokenizer.pre_tokenizer.add_prefix_space


def random_rows(generator, count=60):
    words = ["the", "unrelated", "matches", "中国", "\u200b", "中国中国中国中国中国"]
    return [generator.choices(words, k=generator.randint(1, 40)) for _ in range(count)]


@pytest.mark.parametrize(("max_length", "stride"), [(5, 0), (5, 2), (8, 1), (8, 5), (12, 4), (64, 8)])
def test_every_word_is_in_one_window_and_comes_back_in_order(wordpiece, max_length, stride):
    generator = random.Random(max_length)
    rows = random_rows(generator)
    labels = [[generator.randint(0, 8) for _ in row] for row in rows]
    found = windows_of(wordpiece, rows, labels, max_length, stride)
    assert max(found["length"]) <= max_length
    length = max(map(len, found["labels"]))
    predicted = np.array([row + [77] * (length - len(row)) for row in found["labels"]])  # a model that is always right
    order = generator.sample(range(len(predicted)), len(predicted))
    merged = merge_windows(predicted[order], Dataset.from_dict(found).select(order), default=99)
    readable = [[word != "\u200b" for word in row] for row in rows]
    assert merged == {
        i: [label if read else 99 for label, read in zip(*pair, strict=True)]
        for i, pair in enumerate(zip(labels, readable, strict=True))
    }
    counted = sum(label != IGNORED for row in found["labels"] for label in row)
    assert counted == sum(map(sum, readable)), "in the loss each word once"


def test_a_word_is_read_where_it_has_most_context(wordpiece):
    rows = random_rows(random.Random(0))
    max_length, stride = 12, 5
    room = max_length - 2
    found = windows_of(wordpiece, rows, max_length=max_length, stride=stride)
    seen = 0
    for i, row in enumerate(rows):
        number = [k for k, source in enumerate(found["row"]) if source == i]
        total = sum(len(wordpiece.tokenize(word)) for word in row)
        for k in number:
            for position in (p for p in found["positions"][k] if p != NO_TOKEN):
                place = found["window"][k] * (room - stride) + position - 1

                def context(window, place=place, last=number[-1] - number[0], total=total):
                    first, end = window * (room - stride), min(window * (room - stride) + room, total)
                    left = place - first if window else float("inf")
                    right = end - 1 - place if window < last else float("inf")
                    return min(left, right) if first <= place < end else -1

                assert context(found["window"][k]) == max(context(window) for window in range(len(number)))
                seen += len(number) > 1
    assert seen > 500


def test_own_words_by_hand():
    windows = [[None, 0, 1, 2, 3, None], [None, 2, 3, 4, 4, None], [None, 4, 4, 5, None]]
    assert own_words(windows, 7, stride=2) == [(0, [1, 2, 3]), (3, [2, 3]), (5, [3, NO_TOKEN])]
    assert own_words([[None, 0, 0, None], [None, 0, 0, None]], 1, stride=1) == [(0, [1]), (0, [])], "one long word"


@pytest.mark.parametrize(
    ("max_length", "stride", "message"),
    [
        (65, 8, "--max_length 65: this model reads at most 64 tokens"),
        (12, 10, "--stride 10: must be at least 0, and below the 10 tokens of a window"),
        (12, -1, "--stride -1"),
        (2, 0, "--stride 0: .* below the 0 tokens of a window"),
    ],
)
def test_windows_that_cannot_be_are_refused(wordpiece, max_length, stride, message):
    with pytest.raises(InputError, match=message):
        windows_of(wordpiece, [["the"]], max_length=max_length, stride=stride)


def test_a_slow_tokenizer_is_refused(wordpiece, monkeypatch):
    monkeypatch.setattr(type(wordpiece), "is_fast", False)
    with pytest.raises(InputError, match="has no fast version"):
        prepare_for_words(wordpiece)


def test_what_is_lost_is_counted(wordpiece, caplog):
    caplog.set_level("INFO")
    rows = [["the", "\u200b", "xyz"], ["the"] * 30]
    counts = count_windows(DatasetDict(train=Dataset.from_dict(windows_of(wordpiece, rows))))["train"]
    assert counts["rows_of_several_windows"] == 1
    assert counts["words_without_token"] == counts["unknown_tokens"] == 1
    assert counts["windows"] == 5
    assert "1 words without a token, 1 unknown" in caplog.text
