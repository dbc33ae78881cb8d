"""Scores of texts: sacrebleu's own corpus scores, published ROUGE values, and the bootstrap by text."""

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from ptft_recipes import text_metrics as module
from ptft_recipes.errors import InputError
from ptft_recipes.significance import bootstrap_intervals
from ptft_recipes.text_metrics import METRICS, metric_signatures, rouge_scores, text_metrics, text_statistics

WORDS = ["der", "Hund,", "die", "Katze", "und", "das", "Haus;", "sie", "laufen", "nicht", "(heute)", "...", "3.5"]


def score(predictions, references, metrics=METRICS, language="", weights=None):
    statistics = text_statistics(predictions, references, metrics, language)
    return text_metrics(SimpleNamespace(predictions=statistics), metrics=metrics, language=language, weights=weights)


@pytest.fixture(scope="module")
def texts():
    generator = random.Random(1)
    gold = [" ".join(generator.choices(WORDS, k=generator.randint(3, 12))) for _ in range(40)]
    found = [" ".join(generator.choice([*text.split(), "x"]) for _ in text.split()) for text in gold]
    return [*found[:-1], ""], gold


def test_corpus_bleu_and_chrf_are_those_of_sacrebleu(texts):
    found, gold = texts
    scores = score(found, gold)
    assert scores["bleu"] == pytest.approx(BLEU().corpus_score(found, [gold]).score, abs=1e-9)
    assert scores["chrf"] == pytest.approx(CHRF().corpus_score(found, [gold]).score, abs=1e-9)
    assert 1 < scores["bleu"] < 99
    assert list(scores) == [*METRICS, "exact_match", "length_ratio"]
    chosen = score(found, gold, metrics=("rougeL", "bleu"))
    assert chosen == {name: scores[name] for name in chosen}, "alone as among the others"


def test_several_references_and_a_varying_number_of_them(texts):
    found, gold = texts
    streams = [gold, [None, *gold[:-1]]]
    rows = [[text for text in row if text is not None] for row in zip(*streams, strict=True)]
    scores = score(found, rows)
    assert scores["bleu"] == pytest.approx(BLEU().corpus_score(found, streams).score, abs=1e-9)
    assert scores["chrf"] == pytest.approx(CHRF().corpus_score(found, streams).score, abs=1e-9)
    assert "nrefs:var" in metric_signatures(["bleu"], rows)["bleu"]
    assert score(["b"], [["a", "b"]], ["rouge1"])["rouge1"] == 1, "the best reference counts"


@pytest.mark.parametrize(
    ("prediction", "reference", "published"),  # by rouge-score 0.1.2, without its stemmer
    [
        (
            "the dog ran to a house\nit sat on the mat",
            "the cat sat on the mat.\nA dog ran to the red house; it's 42",
            (0.8148148148, 0.48, 0.4444444444, 0.6666666667),
        ),
        (
            "The quick brown dog jumps on the log.",
            "The quick brown fox jumps over the lazy dog",
            (0.7058823529, 0.2666666667, 0.5882352941, 0.5882352941),
        ),
        ("a b c\nd e", "a c b e\nd b", (0.9090909091, 0.0, 0.5454545455, 0.9090909091)),
        ("", "a", (0, 0, 0, 0)),
        ("a", "", (0, 0, 0, 0)),
    ],
)
def test_rouge_is_that_of_rouge_score(prediction, reference, published):
    assert tuple(rouge_scores(prediction, [reference]).values()) == pytest.approx(published)


def test_rouge_reads_other_letters_than_a_to_z():
    assert rouge_scores("Моя кошка спит", ["моя кошка ест"])["rouge1"] == pytest.approx(2 / 3)


def test_a_weight_counts_a_text_so_many_times(texts):
    found, gold = (part[:5] for part in texts)
    weights = np.array([2, 0, 1, 3, 0])
    repeated = [[text for text, n in zip(part, weights, strict=True) for _ in range(n)] for part in (found, gold)]
    weighted = score(found, gold, weights=weights)
    assert weighted == pytest.approx(score(*repeated))
    assert weighted["bleu"] == pytest.approx(BLEU().corpus_score(repeated[0], [repeated[1]]).score)
    nothing = score(found, gold, weights=np.zeros(5))
    assert all(np.isnan(value) for value in nothing.values())


def test_the_bootstrap_holds_the_value(texts):
    found, gold = texts
    metrics = ("bleu", "chrf", "rouge1")
    prediction = SimpleNamespace(predictions=text_statistics(found, gold, metrics))
    intervals = bootstrap_intervals(
        lambda weights: text_metrics(prediction, metrics=metrics, weights=weights), len(gold), resamples=200
    )
    for name, value in text_metrics(prediction, metrics=metrics).items():
        assert intervals[name][0] <= value <= intervals[name][1]
    assert intervals["bleu"][0] < intervals["bleu"][1]


def test_chinese_is_not_split_at_spaces():
    found, gold = ["我喜欢猫和狗"], ["我喜欢猫和鸟"]
    assert score(found, gold, ["bleu"], "zh")["bleu"] > 30 > score(found, gold, ["bleu"])["bleu"]
    assert "tok:zh" in metric_signatures(["bleu"], gold, "zh")["bleu"]


def test_signatures_tell_how_it_was_done():
    signatures = metric_signatures(METRICS, ["a", "b"])
    assert signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert signatures["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert [name for name in METRICS if "lines" in signatures[name]] == ["rougeLsum"]


def test_no_text_has_no_score():
    assert all(np.isnan(value) for value in score([], []).values())


def test_exact_match_and_length_ratio():
    scores = score(["ab ", "c"], ["ab", "cdef"], [])
    assert scores == {"exact_match": 0.5, "length_ratio": pytest.approx(4 / 6)}


def test_what_the_user_can_mend(monkeypatch):
    with pytest.raises(InputError, match=r"'blue'; did you mean 'bleu'\?"):
        module.check_metrics(["blue"])
    with pytest.raises(InputError, match="name each once"):
        module.check_metrics(["bleu", "bleu"])
    with pytest.raises(InputError, match="2 predictions and 1 references"):
        text_statistics(["a", "b"], ["a"], ["rouge1"])
    module._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(InputError, match=r"bleu needs sacrebleu: python -m pip install .*ptft-recipes\[text\]"):
        module.check_metrics(["bleu"])
    module.check_metrics(["rouge1"])
