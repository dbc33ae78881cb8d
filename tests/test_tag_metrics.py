"""Scores of tags: seqeval's published examples, brute force, and the bootstrap by sentence."""

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, classification_report, f1_score

from ptft_recipes.significance import bootstrap_intervals
from ptft_recipes.tag_metrics import partial_credit, score_names, tag_metrics, tag_statistics
from ptft_recipes.tag_schemes import BILOU, IOB2, PLAIN, Entity, complete_labels, strict_entities


def scores(gold, predicted, scheme=IOB2, labels=None, weights=None):
    labels = labels or complete_labels({tag for row in [*gold, *predicted] for tag in row}, scheme)
    statistics = tag_statistics(gold, predicted, labels, scheme)
    return tag_metrics(SimpleNamespace(predictions=statistics), label_names=labels, scheme=scheme, weights=weights)


def test_the_examples_that_seqeval_publishes():
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = scores(gold, predicted)
    assert found["f1"] == found["conlleval_f1"] == found["precision"] == found["recall"] == 0.5
    assert (found["f1/MISC"], found["f1/PER"]) == (0, 1)
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["partial_f1"] == pytest.approx(0.75), "one exact, one that overlaps"
    found = scores([["B-NP", "I-NP", "O"]], [["I-NP", "I-NP", "O"]])
    assert (found["f1"], found["conlleval_f1"]) == (0, 1), "the README's case for its strict mode"


def test_type_and_both_borders_must_be_right():
    gold = [["B-PER", "I-PER", "O", "B-LOC"]]
    assert scores(gold, [["B-PER", "I-PER", "O", "B-PER"]])["f1"] == 0.5
    assert scores(gold, [["B-PER", "O", "O", "B-LOC"]])["f1"] == 0.5
    assert scores(gold, gold)["f1"] == 1


@pytest.mark.parametrize("scheme", [IOB2, BILOU])
def test_counts_agree_with_sets_of_entities(scheme):
    generator = random.Random(0)
    labels = complete_labels(["B-X", "B-Y"], scheme)
    gold, predicted = ([generator.choices(labels, k=6) for _ in range(200)] for _ in range(2))
    sets = [
        {(i, *e) for i, row in enumerate(rows) for e in strict_entities(row, scheme)} for rows in (gold, predicted)
    ]
    for kind in ("X", "Y", None):
        a, b = ({e for e in entities if kind in (None, e[1])} for entities in sets)
        suffix = f"/{kind}" if kind else ""
        found = scores(gold, predicted, scheme, labels)
        assert found[f"precision{suffix}"] == pytest.approx(len(a & b) / len(b))
        assert found[f"recall{suffix}"] == pytest.approx(len(a & b) / len(a))
        assert found[f"f1{suffix}"] == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
        assert 0 < found[f"f1{suffix}"] < found[f"partial_f1{suffix}"] < 1


def best_pairing(gold, predicted):
    """Try every pairing of gold with predicted entities."""
    if len(gold) > len(predicted):
        gold, predicted = predicted, gold
    credit = [[(a == b) or 0.5 * (a.start < b.end and b.start < a.end) for b in predicted] for a in gold]
    orders = itertools.permutations(range(len(predicted)), len(gold))
    return max(sum(credit[i][j] for i, j in enumerate(order)) for order in orders)


def test_partial_credit_is_the_best_of_all_pairings():
    generator = random.Random(0)

    def entities():
        borders = sorted(generator.sample(range(12), 2 * generator.randint(0, 4)))
        return [Entity("X", a, b) for a, b in zip(borders[::2], borders[1::2], strict=True)]

    for _ in range(2000):
        gold, predicted = entities(), entities()
        assert partial_credit(gold, predicted) == best_pairing(gold, predicted), (gold, predicted)


def test_what_occurs_nowhere_is_undefined_and_not_zero():
    found = scores([["O", "O"]], [["O", "O"]], labels=["O", "B-X", "I-X"])
    assert np.isnan(
        [found[name] for name in ("precision", "recall", "f1", "partial_f1", "conlleval_f1", "f1/X")]
    ).all()
    assert found["accuracy"] == 1
    found = scores([["B-X", "O"]], [["O", "O"]])
    assert found["precision"] == found["recall"] == found["f1"] == 0, "found nothing of what is there"
    found = scores([["O", "O"]], [["B-X", "O"]])
    assert found["precision"] == found["recall"] == found["f1"] == 0, "found what is not there"


def test_plain_tags_are_scored_as_scikit_learn_scores_words():
    generator = random.Random(0)
    tags = ["ADJ", "NOUN", "VERB"]
    gold, predicted = ([generator.choices(tags, k=generator.randint(3, 3)) for _ in range(90)] for _ in range(2))
    found = scores(gold, predicted, PLAIN, [*tags, "X"])
    flat = [list(itertools.chain.from_iterable(rows)) for rows in (gold, predicted)]
    assert found["accuracy"] == pytest.approx(accuracy_score(*flat))
    assert found["macro_f1"] == pytest.approx(f1_score(*flat, average="macro"))
    report = classification_report(*flat, output_dict=True)
    for tag in tags:
        for kind, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert found[f"{kind}/{tag}"] == pytest.approx(report[tag][name])
    assert np.isnan(found["f1/X"])
    assert "partial_f1/X" not in found


def test_weights_are_sentences_that_stand_in_the_sample_so_often():
    generator = random.Random(1)
    labels = complete_labels(["B-X", "B-Y"], IOB2)
    gold, predicted = ([generator.choices(labels, k=5) for _ in range(30)] for _ in range(2))
    weights = np.array([generator.randint(0, 3) for _ in gold])
    repeated = [[row for row, n in zip(rows, weights, strict=True) for _ in range(n)] for rows in (gold, predicted)]
    assert scores(gold, predicted, labels=labels, weights=weights) == pytest.approx(scores(*repeated, labels=labels))


def test_an_interval_by_sentence_is_wider_than_one_by_word_when_errors_come_together():
    """Half of the sentences are all wrong: 40 independent outcomes, not 400."""
    gold = [["A"] * 10 for _ in range(40)]
    predicted = [["A" if i % 2 else "B"] * 10 for i in range(40)]

    def width(gold, predicted):
        statistics = SimpleNamespace(predictions=tag_statistics(gold, predicted, ["A", "B"], PLAIN))
        score = lambda weights: tag_metrics(statistics, label_names=["A", "B"], scheme=PLAIN, weights=weights)  # noqa: E731
        low, high = bootstrap_intervals(score, len(gold), resamples=400)["accuracy"]
        return high - low

    by_word = width([[tag] for row in gold for tag in row], [[tag] for row in predicted for tag in row])
    assert width(gold, predicted) == pytest.approx(10**0.5 * by_word, rel=0.25)


def test_names_are_types_or_plain_tags():
    assert score_names(["O", "B-X", "I-X", "B-Y", "I-Y"], IOB2) == ["X", "Y"]
    assert score_names(["O", "NOUN"], PLAIN) == ["O", "NOUN"]
