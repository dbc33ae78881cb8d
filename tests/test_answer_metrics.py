"""Exact match and F1 against a reference written from the definition of SQuAD's scripts; the no-answer threshold."""

import collections
import itertools
import random
import re
import string
from types import SimpleNamespace

import numpy as np
import pytest

from ptft_recipes.answer_metrics import (
    answer_metrics,
    answer_statistics,
    best_threshold,
    normalize_answer,
    score_answer,
)
from ptft_recipes.significance import bootstrap_intervals


def reference_tokens(text):
    """Lower case; then no punctuation; then no articles; then split at white space: the order of both scripts."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def reference_f1(gold, predicted, version):
    gold, predicted = reference_tokens(gold), reference_tokens(predicted)
    if version == 2 and (len(gold) == 0 or len(predicted) == 0):
        return float(gold == predicted)
    same = sum((collections.Counter(gold) & collections.Counter(predicted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def reference(golds, predicted, version):
    if version == 2:
        golds = [text for text in golds if reference_tokens(text)] or [""]
    exact = max(float(reference_tokens(text) == reference_tokens(predicted)) for text in golds)
    return exact, max(reference_f1(text, predicted, version) for text in golds)


@pytest.mark.parametrize(
    ("gold", "predicted", "exact", "f1"),
    [
        (["Denver Broncos", "The Denver Broncos!"], "the denver  broncos", 1, 1),
        (["Santa Clara, California", "Levi's Stadium"], "Levi's Stadium in Santa Clara", 0, 4 / 7),
        (["Saint Bernadette Soubirous"], "Bernadette", 0, 0.5),
        (["gold gold"], "gold", 0, 2 / 3),
        (["Ångström\u2019s"], "ångström\u2019s", 1, 1),
        (["Ångström's"], "ångström\u2019s", 0, 0),
        (["1,000"], "1000", 1, 1),
        (["a.m."], "am", 1, 1),
        (["U.S.-based"], "US based", 0, 0),
        (["theatre"], "the atre", 0, 0),
        (["中国 北京"], "中国", 0, 2 / 3),
        (["10 °C"], "10\u00a0°C", 1, 1),
    ],
)
def test_worked_examples(gold, predicted, exact, f1):
    for has_no_answers in (False, True):
        assert score_answer(gold, predicted, has_no_answers) == (exact, pytest.approx(f1))


@pytest.mark.parametrize(
    ("gold", "predicted", "version_1", "version_2"),
    [
        ([], "", None, (1, 1)),
        ([], "Paris", None, (0, 0)),
        (["Paris"], "", (0, 0), (0, 0)),
        (["The"], "", (1, 0), (1, 1)),  # 1.1 compares the empty texts, and finds no common word in them
        (["The", "band"], "a", (1, 0), (0, 0)),  # 2.0 leaves gold answers out of which nothing is left
    ],
)
def test_where_the_two_scripts_differ(gold, predicted, version_1, version_2):
    assert score_answer(gold, predicted, has_no_answers=True) == version_2
    if version_1:
        assert score_answer(gold, predicted, has_no_answers=False) == version_1


def test_random_answers_score_as_the_reference_does():
    generator = random.Random(0)
    parts = [
        "a",
        "The",
        "an",
        "U.S.",
        "gold",
        "gold",
        "-",
        "\u2019",
        "é",
        "½",
        "中",
        "x-y",
        "\u00a0",
        "_",
        "AND",
        "'s",
        "",
    ]
    seen = collections.Counter()
    for _ in range(3000):
        golds = [" ".join(generator.choices(parts, k=generator.randint(0, 4))) for _ in range(generator.randint(1, 3))]
        predicted = " ".join(generator.choices(parts, k=generator.randint(0, 4)))
        for version in (1, 2):
            exact, f1 = score_answer(golds, predicted, has_no_answers=version == 2)
            assert (exact, f1) == pytest.approx(reference(golds, predicted, version)), (golds, predicted, version)
            seen["exact" if exact else "partly" if f1 else "wrong"] += 1
    assert min(seen.values()) > 200, seen


def test_articles_are_words_of_their_own():
    assert normalize_answer("A theory: the an-archist\u2019s  man") == "theory anarchist\u2019s man"


def scores(gold, predicted, has_no_answers, weights=None):
    rows = SimpleNamespace(predictions=answer_statistics(gold, predicted, has_no_answers))
    return answer_metrics(rows, has_no_answers=has_no_answers, weights=weights)


def test_questions_with_and_without_an_answer_are_scored_apart():
    gold, predicted = [["red fox"], ["fox"], [], []], ["fox", "fox", "", "fox"]
    found = scores(gold, predicted, has_no_answers=True)
    assert found == pytest.approx({
        "exact_match": 0.5, "f1": (2 / 3 + 1 + 1 + 0) / 4, "exact_match/HasAns": 0.5, "f1/HasAns": 5 / 6,
        "exact_match/NoAns": 0.5, "f1/NoAns": 0.5,
    })  # fmt: skip
    assert set(scores(gold[:2], predicted[:2], has_no_answers=False)) == {"exact_match", "f1"}
    assert np.isnan(scores(gold[:2], predicted[:2], has_no_answers=True)["f1/NoAns"])
    weighted = scores(gold, predicted, has_no_answers=True, weights=np.array([0, 2, 1, 0]))
    assert weighted == scores([["fox"], ["fox"], []], ["fox", "fox", ""], has_no_answers=True)


def test_questions_about_one_context_are_resampled_together():
    statistics = np.repeat(np.random.default_rng(0).integers(0, 2, 40), 5)[:, None] * np.ones(3)
    rows = SimpleNamespace(predictions=statistics)
    widths = []
    for groups in (None, np.repeat(np.arange(40), 5)):
        low, high = bootstrap_intervals(
            lambda weights: answer_metrics(rows, has_no_answers=False, weights=weights), len(statistics), groups=groups
        )["f1"]
        widths.append(high - low)
    assert widths[1] > 1.8 * widths[0]


def test_the_threshold_is_the_best_of_all():
    generator = np.random.default_rng(0)
    for _ in range(50):
        odds = generator.choice([-3.0, -1, 0, 0.5, 2, np.inf], 12)
        answered, unanswered = generator.integers(0, 3, (2, 12)) / 2

        def score(threshold, odds=odds, answered=answered, unanswered=unanswered):
            return np.where(odds <= threshold, answered, unanswered).sum()

        found = best_threshold(odds, answered, unanswered)
        assert score(found) == max(map(score, [-9, -3, -1, 0, 0.5, 2, 9]))
        assert not np.isin(found, odds), "no question lies on it"


def test_a_threshold_without_any_span_is_still_a_number():
    assert best_threshold(np.array([np.inf]), np.array([0.0]), np.array([1.0])) == 0


def test_the_best_of_several_gold_answers_counts_in_any_order():
    for golds in itertools.permutations(["the big red fox", "fox", "dog"]):
        assert score_answer(golds, "red fox", has_no_answers=True) == (0, pytest.approx(0.8))
