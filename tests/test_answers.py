"""Windows become answers: against every span of every window, tried one by one."""

import itertools

import numpy as np
import pytest

from ptft_recipes.answers import find_answers


def make(generator, tokens, room, stride, begin=3):
    """Return logits and places of the windows of one context, and characters of its tokens."""
    windows, first = [], 0
    while True:
        windows.append({"first": first, "begin": begin, "tokens": min(room, tokens - first)})
        if first + room >= tokens:
            break
        first += room - stride
    logits = [generator.normal(size=(begin + room + 2, 2)).astype(np.float32) for _ in windows]
    return logits, windows, np.array([[5 * i, 5 * i + 4] for i in range(tokens)]).reshape(-1, 2)


def brute_force(logits, windows, max_answer_length):
    spans, nothing = {}, min(part[0].astype(float).sum() for part in logits)
    for part, window in zip(logits, windows, strict=True):
        for i, j in itertools.combinations_with_replacement(range(window["tokens"]), 2):
            if j - i < max_answer_length:
                score = float(part[window["begin"] + i, 0]) + float(part[window["begin"] + j, 1])
                key = (window["first"] + i, window["first"] + j)
                spans[key] = max(spans.get(key, -np.inf), score)
    total = sum(map(np.exp, [*spans.values(), nothing]))
    ranked = sorted(spans, key=spans.get, reverse=True)
    return (
        [(span, np.exp(spans[span]) / total) for span in ranked],
        np.exp(nothing) / total,
        nothing - max(spans.values()),
    )


@pytest.mark.parametrize(("tokens", "room", "stride"), [(1, 4, 0), (9, 20, 5), (23, 8, 3), (40, 8, 7), (16, 8, 0)])
@pytest.mark.parametrize("longest", [1, 5, 99])
def test_the_best_spans_of_all_windows(tokens, room, stride, longest):
    generator = np.random.default_rng(tokens + longest)
    logits, windows, spans = make(generator, tokens, room, stride)
    found = find_answers(logits, windows, spans, n_best=6, max_answer_length=longest)
    ranked, no_answer, odds = brute_force(logits, windows, longest)
    expected = [(5 * i, 5 * j + 4, pytest.approx(p)) for (i, j), p in ranked[:6]]
    assert found.spans == expected
    assert (found.no_answer, found.odds) == (pytest.approx(no_answer), pytest.approx(odds))
    everything = find_answers(logits, windows, spans, n_best=10**6, max_answer_length=longest)
    assert everything.spans[:6] == found.spans, "probabilities do not depend on how many are asked for"
    assert sum(p for *_, p in everything.spans) + everything.no_answer == pytest.approx(1)


def test_the_order_of_the_windows_does_not_matter():
    logits, windows, spans = make(np.random.default_rng(0), 30, 8, 3)
    options = {"n_best": 5, "max_answer_length": 6}
    backwards = find_answers(logits[::-1], windows[::-1], spans, **options)
    assert backwards == find_answers(logits, windows, spans, **options)


def test_an_answer_is_given_up_to_the_threshold():
    logits, windows, spans = make(np.random.default_rng(1), 5, 8, 0)
    found = find_answers(logits, windows, spans, n_best=1, max_answer_length=3)
    assert found.choose(None) == found.choose(found.odds) == found.choose(found.odds + 1) == found.spans[0]
    assert found.choose(found.odds - 0.001) is None


def test_white_space_is_no_answer_and_the_bytes_of_a_character_are_one():
    logits, windows, _ = make(np.random.default_rng(0), 4, 8, 0)
    logits[0][3:7] = [[9, 9], [8, 8], [7, 7], [0, 0]]
    spans = np.array([[2, 2], [3, 4], [3, 4], [5, 6]])  # a space, an emoji of two tokens, a word
    found = find_answers(logits, windows, spans, n_best=3, max_answer_length=1)
    assert [span[:2] for span in found.spans] == [(3, 4), (5, 6)]


def test_a_context_without_tokens_has_no_answer():
    found = find_answers([np.ones((4, 2))], [{"first": 0, "begin": 0, "tokens": 0}], np.zeros((0, 2), int),
                         n_best=3, max_answer_length=3)  # fmt: skip
    assert (found.spans, found.no_answer, found.choose(None)) == ([], 1, None)


def test_logits_of_any_size_have_probabilities():
    logits, windows, spans = make(np.random.default_rng(0), 5, 8, 0)
    found = find_answers([1e4 * part for part in logits], windows, spans, n_best=2, max_answer_length=5)
    assert np.isfinite([p for *_, p in found.spans]).all()
