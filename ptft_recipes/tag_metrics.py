"""Scores of tagged sentences, from counts per sentence, so that the bootstrap resamples sentences; numpy only."""

from collections.abc import Sequence

import numpy as np

from ptft_recipes.tag_schemes import PLAIN, Entity, lenient_entities, split_tag, strict_entities

PER_NAME = ("right", "predicted", "gold", "partly")
OVERALL = ("lenient_right", "lenient_predicted", "lenient_gold", "right_words", "words")


def score_names(label_names: Sequence[str], scheme: str) -> list[str]:
    """Return what is scored by itself: the types of entities, or every plain tag."""
    return list(label_names) if scheme == PLAIN else sorted({split_tag(tag)[1] for tag in label_names} - {""})


def tag_statistics(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], label_names: Sequence[str], scheme: str
) -> np.ndarray:
    """Count per sentence what every score is made of.

    Args:
        gold: The tags of each sentence.
        predicted: As many for each sentence.
        label_names: Of the model.
        scheme: One of `tag_schemes.SCHEMES`.

    Returns:
        `[sentences, n]` float64: per name of `score_names` the counts `PER_NAME`, and last those of `OVERALL`.
        Entities are right when type and borders are; of plain tags, words are counted. `partly` is the credit of
        `partial_credit`.
    """
    names = {name: i for i, name in enumerate(score_names(label_names, scheme))}
    rows = np.zeros((len(gold), len(names) * len(PER_NAME) + len(OVERALL)))
    for row, right_tags, tags in zip(rows, gold, predicted, strict=True):
        counts = row[: -len(OVERALL)].reshape(len(names), len(PER_NAME))  # a view
        pairs = list(zip(right_tags, tags, strict=True))
        row[-2:] = sum(a == b for a, b in pairs), len(pairs)
        if scheme == PLAIN:
            for a, b in pairs:
                counts[names[b], 1] += 1
                counts[names[a], 2] += 1
                counts[names[a], 0] += a == b
            continue
        right, found = strict_entities(right_tags, scheme), strict_entities(tags, scheme)
        for column, entities in enumerate((set(right) & set(found), found, right)):
            for entity in entities:
                counts[names[entity.type], column] += 1
        for name, i in names.items():
            counts[i, 3] = partial_credit(
                [entity for entity in right if entity.type == name],
                [entity for entity in found if entity.type == name],
            )
        right, found = set(lenient_entities(right_tags)), set(lenient_entities(tags))
        row[-5:-2] = len(right & found), len(found), len(right)
    return rows


def partial_credit(gold: Sequence[Entity], predicted: Sequence[Entity]) -> float:
    """Return the credit for entities of one type and sentence: 1 for each pair with the same borders, 1/2 for overlap.

    An entity is in one pair at most, so that a long prediction over several entities is paid once.

    >>> partial_credit([Entity("X", 0, 2), Entity("X", 3, 5)], [Entity("X", 1, 2), Entity("X", 3, 5)])
    1.5

    Args:
        gold: In order, none overlapping another.
        predicted: Likewise.

    Source: Segura-Bedmar et al., SemEval-2013 Task 9 (2013), section 4, whose partial match needs no equal type.
    """
    i = j = 0
    credit = 0.0
    while i < len(gold) and j < len(predicted):
        a, b = gold[i], predicted[j]
        paired = a.start < b.end and b.start < a.end
        credit += paired * (1 if a == b else 0.5)
        i, j = i + (paired or a.end <= b.end), j + (paired or b.end < a.end)
    return credit


def tag_metrics(
    prediction, *, label_names: Sequence[str], scheme: str, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Score tagged sentences from their counts.

    Args:
        prediction: With `predictions` `[sentences, n]`, as `tag_statistics` returns them.
        label_names: Of the model.
        scheme: One of `tag_schemes.SCHEMES`.
        weights: `[sentences]`, how often each counts; once each when None.

    Returns:
        Entities: precision, recall and f1 over all types, where type and both borders must be right and the tags legal
        (seqeval with `mode="strict"`); partial_f1, by `partial_credit`; conlleval_f1, which reads illegal tags as the
        CoNLL script does (seqeval's default); accuracy over words; and precision, recall, f1 and partial_f1 per type.
        Plain tags: accuracy; macro_f1 over the tags in gold or prediction; precision, recall and f1 per tag. A score
        of what occurs neither in gold nor in prediction is nan, where seqeval has 0.
    """
    statistics = np.asarray(prediction.predictions, dtype=np.float64)
    # Not `@`: BLAS would start threads for it.
    sums = statistics.sum(axis=0) if weights is None else np.einsum("r,rn->n", weights, statistics)
    names = score_names(label_names, scheme)
    counts, overall = np.split(sums, [len(names) * len(PER_NAME)])
    counts = counts.reshape(len(names), len(PER_NAME))
    by_name = {name: _scores(*row) for name, row in zip(names, counts, strict=True)}
    accuracy = float(_ratio(overall[3], overall[4]))
    if scheme == PLAIN:
        kinds = ("precision", "recall", "f1")
        f1 = np.array([scores["f1"] for scores in by_name.values()])
        scores = {"accuracy": accuracy, "macro_f1": float(np.nanmean(f1)) if np.isfinite(f1).any() else float("nan")}
    else:
        kinds = ("precision", "recall", "f1", "partial_f1")
        scores = _scores(*counts.sum(axis=0)) | {
            "conlleval_f1": _scores(*overall[:3], partly=0)["f1"],
            "accuracy": accuracy,
        }
    return scores | {f"{kind}/{name}": by_name[name][kind] for name in names for kind in kinds}


def _scores(right: float, predicted: float, gold: float, partly: float) -> dict[str, float]:
    either = predicted + gold
    return {
        "precision": _ratio(right, predicted) if predicted else _ratio(0, either),
        "recall": _ratio(right, gold) if gold else _ratio(0, either),
        "f1": _ratio(2 * right, either),
        "partial_f1": _ratio(2 * partly, either),
    }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
