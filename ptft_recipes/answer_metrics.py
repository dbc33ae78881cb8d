"""Exact match and F1 of answers by the definition of SQuAD, from sums per question; numpy only.

Source: Rajpurkar et al., SQuAD (2016), section 6.1, and SQuAD 2.0 (2018), section 4, whose evaluation scripts define
what counts as equal: lower case, without ASCII punctuation, without `a`, `an`, `the`, white space made one space.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return what is compared of an answer.

    >>> normalize_answer("The  U.S.-based  team!")
    'usbased team'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def score_answer(gold: Sequence[str], predicted: str, has_no_answers: bool) -> tuple[float, float]:
    """Return exact match and F1 of one answer, each with the gold answer that suits it best.

    Args:
        gold: All gold answers; none for a question that its context does not answer.
        predicted: An empty text for no answer.
        has_no_answers: Score as SQuAD 2.0 does, where gold answers of articles and punctuation alone do not count and
            no answer is matched by no answer; else as SQuAD 1.1 does.
    """
    golds, found = [normalize_answer(text) for text in gold], normalize_answer(predicted)
    if has_no_answers:
        golds = [text for text in golds if text] or [""]
    return (
        max((float(text == found) for text in golds), default=0.0),
        max((_f1(text.split(), found.split(), has_no_answers) for text in golds), default=0.0),
    )


def _f1(gold: list[str], found: list[str], has_no_answers: bool) -> float:
    if has_no_answers and not (gold and found):
        return float(gold == found)
    common = sum((Counter(gold) & Counter(found)).values())
    return 2 * common / (len(gold) + len(found)) if common else 0.0


def answer_statistics(gold: Sequence[Sequence[str]], predicted: Sequence[str], has_no_answers: bool) -> np.ndarray:
    """Score each question.

    Args:
        gold: Per question its gold answers.
        predicted: Per question the answer, empty for none.
        has_no_answers: As for `score_answer`.

    Returns:
        `[questions, 3]`: exact match, F1, and 1 where there is a gold answer.
    """
    rows = [
        (*score_answer(golds, text, has_no_answers), float(bool(golds)))
        for golds, text in zip(gold, predicted, strict=True)
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def answer_metrics(prediction, *, has_no_answers: bool, weights: np.ndarray | None = None) -> dict[str, float]:
    """Score answers from what `answer_statistics` made of them.

    Args:
        prediction: With `predictions` `[questions, 3]`.
        has_no_answers: Of the data; then the scores are also given for the questions with and without an answer.
        weights: `[questions]`, how often each counts; once each when None.

    Returns:
        `exact_match` and `f1`, from 0 to 1; and `exact_match/HasAns`, `f1/NoAns`, ... as the SQuAD 2.0 script names
        them. A score of no questions is nan.
    """
    exact, f1, has_answer = np.asarray(prediction.predictions, dtype=np.float64).T
    weights = np.ones(len(exact)) if weights is None else weights
    parts = {"": weights}
    if has_no_answers:
        parts |= {"/HasAns": weights * has_answer, "/NoAns": weights * (1 - has_answer)}
    return {
        f"{name}{part}": float(np.einsum("r,r->", chosen, scores) / total) if (total := chosen.sum()) else float("nan")
        for part, chosen in parts.items()
        for name, scores in (("exact_match", exact), ("f1", f1))
    }


def best_threshold(odds: np.ndarray, answered: np.ndarray, unanswered: np.ndarray) -> float:
    """Return the no-answer threshold with the highest score: the question is answered where its odds are not above it.

    Args:
        odds: `[questions]`, of no answer against the best span.
        answered: `[questions]`, the score of giving the best span.
        unanswered: `[questions]`, the score of giving no answer.

    Returns:
        A number between two odds, or beyond all of them by 1, so that no question lies on it; of equal scores the
        lowest such threshold.

    Source: Rajpurkar et al. (2018), the script's `find_best_thresh`, which does the same for exact match and F1.
    """
    finite = np.unique(odds[np.isfinite(odds)])
    if not len(finite):
        return 0.0
    candidates = np.concatenate([[finite[0] - 1], (finite[1:] + finite[:-1]) / 2, [finite[-1] + 1]])
    order = np.argsort(odds, kind="stable")
    gains = np.append(0.0, np.cumsum((answered - unanswered)[order]))
    scores = gains[np.searchsorted(odds[order], candidates, side="right")]
    return float(candidates[np.argmax(scores)])
