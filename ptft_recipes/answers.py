"""From the logits of windows to answers: the best spans of a whole context, with probabilities; numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


@dataclass(frozen=True)
class Answers:
    """What a model says to one question.

    Args:
        spans: The best spans, the best first: begin and end in characters of the context, and the probability.
        no_answer: The probability that the context has no answer.
        odds: By how much the logits of no answer are above those of the best span: the score that the no-answer
            threshold is for. Infinite without a span.
    """

    spans: list[tuple[int, int, float]]
    no_answer: float
    odds: float

    def choose(self, threshold: float | None) -> tuple[int, int, float] | None:
        """Return the best span; None where no answer is likelier by more than a threshold, if there is one."""
        return self.spans[0] if self.spans and (threshold is None or self.odds <= threshold) else None


def find_answers(
    logits: Sequence[np.ndarray],
    windows: Sequence[dict[str, int]],
    spans: np.ndarray,
    *,
    n_best: int,
    max_answer_length: int,
) -> Answers:
    """Put the windows of one question together, and return its best answers.

    Every span of up to `max_answer_length` tokens is scored, by the sum of the logits of its first and its last token,
    in the window where that is highest; no answer by the sum at the first token, in the window where that is lowest.
    Probabilities are the softmax over all of these: they do not depend on `n_best`.

    Args:
        logits: `[length, 2]` per window, of starts and of ends.
        windows: Of each, as `tokenize_questions` returns them: `first`, `begin` and `tokens`.
        spans: `[tokens, 2]` of the context, as `token_spans` returns them.
        n_best: How many spans to return.
        max_answer_length: In tokens.

    Source: Devlin et al., BERT (2019), sections 4.2 and 4.3; the softmax over all windows: Clark and Gardner, Simple
    and Effective Multi-Paragraph Reading Comprehension (2018), section 3.2.
    """
    width = max(1, min(max_answer_length, len(spans)))
    grid = np.full((len(spans), width), -np.inf)  # first token of a span, tokens that follow it
    nothing = np.inf
    for part, window in zip(logits, windows, strict=True):
        first, begin, count = window["first"], window["begin"], window["tokens"]
        nothing = min(nothing, float(part[0].astype(np.float64).sum()))
        if count == 0:
            continue
        start, end = part[begin : begin + count].astype(np.float64).T
        ends = sliding_window_view(np.append(end, np.full(width - 1, -np.inf)), width)
        rows = grid[first : first + count]
        np.maximum(rows, start[:, None] + ends, out=rows)
    is_space = spans[:, 0] == spans[:, 1]
    grid[is_space] = -np.inf  # an answer neither begins nor ends in white space
    if len(spans):
        grid[sliding_window_view(np.append(is_space, np.ones(width - 1, dtype=bool)), width)] = -np.inf
    scores = grid.ravel()
    highest = max(scores.max(initial=-np.inf), nothing)
    total = np.exp(scores - highest).sum() + np.exp(nothing - highest)
    best: dict[tuple[int, int], float] = {}
    for i in _highest(scores, 4 * n_best):  # the bytes of a character are several tokens with the same characters
        span = int(spans[i // width, 0]), int(spans[i // width + i % width, 1])
        best.setdefault(span, float(scores[i]))
    ranked = list(best.items())[:n_best]
    return Answers(
        spans=[(*span, float(np.exp(score - highest) / total)) for span, score in ranked],
        no_answer=float(np.exp(nothing - highest) / total),
        odds=nothing - ranked[0][1] if ranked else float("inf"),
    )


def _highest(scores: np.ndarray, count: int) -> list[int]:
    """Return the places of the highest finite scores, the highest first; of equal ones in order."""
    if len(scores) > count:
        limit = np.partition(scores, -count)[-count]
        places = np.flatnonzero(scores >= limit)
    else:
        places = np.arange(len(scores))
    places = places[np.isfinite(scores[places])]
    return places[np.argsort(-scores[places], kind="stable")][:count].tolist()
