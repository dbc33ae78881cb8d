"""Questions with contexts become windows, by every family of tokenizers; an answer is found by its characters."""

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SPECIAL_TOKENS
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.models.roberta import RobertaTokenizer

from ptft_recipes import card_usage
from ptft_recipes.answer_windows import count_answer_windows, token_spans, tokenize_questions, tokens_of_answer
from ptft_recipes.answers import find_answers
from ptft_recipes.errors import InputError
from ptft_recipes.windows import prepare_for_words

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("t", "h"), ("th", "e")]
BYTES = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *ALPHABET, *map("".join, MERGES)])}
WORDS = ["the", "goal", "😀", "e\u0301", "中国", "U.S.", "\u200b", "\u2013", "naïve", "(the)", "x\u00a0y", "Straße"]


def fast(tokenizer):
    """Join a question and a context as BERT and ModernBERT do."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def wordpiece():
    letters = [chr(i) for i in range(33, 0x180)]
    pieces = [*SPECIAL_TOKENS, "the", "go", "##al", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return fast(tokenizer)


def byte_level():
    """As ModernBERT has it: the offsets of a token begin with the space before its word."""
    tokenizer = Tokenizer(models.BPE(BYTES, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return fast(tokenizer)


def roberta():
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *list(BYTES)[5:]])}
    return RobertaTokenizer(vocab=vocabulary, merges=MERGES, model_max_length=64)


def metaspace():
    vocabulary = [(token, 0.0) for token in [*SPECIAL_TOKENS, "▁the", "the", "▁", *sorted({*"\n".join(WORDS)})]]
    tokenizer = Tokenizer(models.Unigram(vocabulary, 1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return fast(tokenizer)


FAMILIES = {"wordpiece": wordpiece, "byte level": byte_level, "roberta": roberta, "metaspace": metaspace}


@pytest.fixture(params=FAMILIES, scope="module")
def any_tokenizer(request):
    return prepare_for_words(FAMILIES[request.param]())


def windows_of(tokenizer, questions, contexts, answers=None, max_length=32, stride=8):
    found = tokenize_questions(
        tokenizer, questions, contexts, range(len(questions)), answers, max_length=max_length, stride=stride
    )
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def test_the_trap_that_the_spans_step_around():
    offsets = byte_level()("goal the", add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert offsets[-1] == (4, 8), "with the space"
    assert token_spans(byte_level(), "goal the")[-1].tolist() == [5, 8]


def test_every_answer_is_found_by_its_characters_and_read_back(any_tokenizer):
    generator = random.Random(0)
    read = 0
    for _ in range(60):
        words = generator.choices(WORDS, k=generator.randint(1, 12))
        context = generator.choice([" ", "  ", "\n"]).join(words)
        i = generator.randrange(len(words))
        text = words[i]
        start = sum(len(word) for word in words[:i]) + i * (
            context.find(words[1], len(words[0])) - len(words[0]) if i else 0
        )
        assert context.startswith(text, start)
        spans = token_spans(any_tokenizer, context)
        tokens = tokens_of_answer(spans, start, start + len(text))
        if tokens is None:
            assert text in ("\u200b", "e\u0301", "\u2013", "中国", "😀"), "the vocabulary has nothing of it"
            continue
        read += 1
        assert context[spans[tokens[0], 0] : spans[tokens[1], 1]].strip() == text
    assert read > 40


def test_windows_hold_the_whole_question_and_every_token_of_the_context(any_tokenizer):
    question, context = "the goal", " ".join(WORDS * 3)
    found = windows_of(any_tokenizer, [question], [context])
    ids = any_tokenizer(context, add_special_tokens=False)["input_ids"]
    asked = any_tokenizer(question, add_special_tokens=False)["input_ids"]
    seen = set()
    assert len(found) > 2
    for window in found:
        begin, count, first = window["begin"], window["tokens"], window["first"]
        assert window["input_ids"][1 : 1 + len(asked)] == asked
        assert window["input_ids"][begin : begin + count] == ids[first : first + count]
        assert window["length"] == len(window["input_ids"]) <= 32
        seen |= {*range(first, first + count)}
    assert seen == {*range(len(ids))}
    assert all(b["first"] == a["first"] + a["tokens"] - 8 for a, b in itertools.pairwise(found))


def test_an_answer_is_labelled_where_the_whole_of_it_is_and_nowhere_else(any_tokenizer):
    words = ["goal"] * 12 + ["U.S."] + ["the"] * 30
    context = " ".join(words)
    answer = {"text": ["U.S. the"], "answer_start": [context.index("U.S.")]}
    found = windows_of(any_tokenizer, ["the"] * 2, [context] * 2, [answer, {"text": [], "answer_start": []}])
    spans = token_spans(any_tokenizer, context)
    gold = tokens_of_answer(spans, answer["answer_start"][0], answer["answer_start"][0] + 8)
    inside = 0
    for window in found:
        start, end, begin, behind = window["labels"]
        assert (begin, behind) == (window["begin"], window["begin"] + window["tokens"])
        whole = window["row"] == 0 and window["first"] <= gold[0] and gold[1] < window["first"] + window["tokens"]
        assert ((start, end) != (0, 0)) == whole
        if whole:
            tokens = spans[[window["first"] + start - begin, window["first"] + end - begin]]
            assert context[tokens[0, 0] : tokens[1, 1]] == "U.S. the"
            inside += 1
        assert window["answer_length"] == (end - start + 1 if whole else 0)
    assert 1 <= inside < len(found) / 2


def test_rows_without_answers_have_no_labels(any_tokenizer):
    assert "labels" not in windows_of(any_tokenizer, ["the"], ["goal"])[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 65}, "reads at most 64 tokens"),
        ({"stride": 26}, "the question of row 2, 'the the the', has 3 tokens and leaves 26 for its context"),
        ({"stride": -1}, "must be more than the stride"),
        ({"max_length": 5, "stride": 0}, "leaves 0 for its context"),
    ],
)
def test_a_question_is_never_cut(options, message):
    tokenizer = prepare_for_words(wordpiece())
    with pytest.raises(InputError, match=message):
        windows_of(tokenizer, ["the", "the the the"], ["goal"] * 2, **options)


def test_what_is_counted():
    tokenizer = prepare_for_words(wordpiece())
    contexts = ["the goal", " ".join(["goal"] * 30), "the"]
    answers = [
        {"text": ["goal"], "answer_start": [4]},
        {"text": [contexts[1]], "answer_start": [0]},
        {"text": [], "answer_start": []},
    ]
    found = windows_of(tokenizer, ["the"] * 3, contexts, answers, max_length=16, stride=4)
    raw = {"train": Dataset.from_dict({"answers": answers})}
    counts = count_answer_windows({"train": Dataset.from_list(found)}, raw)["train"]
    assert counts["answers_in_no_window"] == 1, "of 60 tokens, in windows of 12"
    assert (counts["windows"], counts["rows_of_several_windows"], counts["longest_answer"]) == (len(found), 1, 2)
    assert counts["tokens"] == sum(window["length"] for window in found)


def test_a_context_of_which_the_tokenizer_leaves_nothing():
    tokenizer = prepare_for_words(wordpiece())
    (window,) = windows_of(tokenizer, ["the"], ["\u200b"], [{"text": ["\u200b"], "answer_start": [0]}])
    assert (window["tokens"], window["labels"]) == (0, [0, 0, 0, 0])
    assert np.array_equal(token_spans(tokenizer, "\u200b"), np.zeros((0, 2)))


def test_the_code_on_the_card_answers_what_the_scorer_answers(any_tokenizer):
    """Of random logits the best span often begins or ends in white space, or lacks an accent at its end."""
    generator, names, differ = np.random.default_rng(0), {}, 0
    code = "import unicodedata\nimport torch\n" + card_usage.ANSWER.rpartition("print(")[0]
    exec(compile(code, "card", "exec"), names)
    settings = {"max_length": 64, "max_answer_length": 5, "no_answer_threshold": 2.0}
    for number in range(60):
        words = generator.choice([*WORDS, " ", "\n"], size=generator.integers(1, 7))
        context, question = "  ".join(words), "the goal"
        windows = windows_of(any_tokenizer, [question], [context], max_length=64)
        logits = np.round(generator.normal(size=(len(windows[0]["input_ids"]), 2)), 3)
        if len(windows) > 1:
            continue
        found = find_answers(
            [logits], windows, token_spans(any_tokenizer, context), n_best=1, max_answer_length=5
        ).choose(2.0)
        names |= {"tokenizer": any_tokenizer, "model": Chosen(settings, torch.tensor(logits[None]))}
        assert names["answer"](question, context) == (context[found[0] : found[1]] if found else ""), number
        differ += bool(found)
    assert differ > 20


class Chosen:
    """A model whose logits a test has chosen."""

    def __init__(self, settings, logits):
        self.config = SimpleNamespace(question_answering=settings)
        self.output = SimpleNamespace(start_logits=logits[..., 0], end_logits=logits[..., 1])

    def __call__(self, **inputs):
        return self.output
