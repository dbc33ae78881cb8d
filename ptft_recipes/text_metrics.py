"""Scores of generated texts: BLEU and chrF by sacrebleu, and ROUGE; from statistics per text, for the bootstrap."""

import functools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ptft_recipes.errors import InputError, nearest

BLEU, CHRF = "bleu", "chrf"
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
METRICS = (BLEU, CHRF, *ROUGE)
LENGTH = ("characters", "gold_characters", "exact", "texts")  # the last statistics of every text
# How many statistics sacrebleu keeps of a text: two lengths, and right and found n-grams to n = 4; and n-grams of the
# prediction, the reference and both, to n = 6.
WIDTHS = {BLEU: 10, CHRF: 18}

Texts = Sequence[str] | Sequence[Sequence[str]]


def text_statistics(
    predictions: Sequence[str], references: Texts, metrics: Sequence[str], language: str = ""
) -> np.ndarray:
    """Count per text what every score is made of.

    Args:
        predictions: The generated texts.
        references: A reference of each, or several.
        metrics: Some of `METRICS`.
        language: Two letters of the language that is written, for BLEU's words: zh, ja and ko have no spaces.

    Returns:
        `[texts, n]` float64: of BLEU and chrF sacrebleu's counts, of each ROUGE score its F1, and last those of
        `LENGTH`. The corpus BLEU and chrF are functions of the sums, the ROUGE scores are means.

    Raises:
        InputError: An unknown metric, sacrebleu is not installed, or a different number of texts and references.
    """
    check_metrics(metrics)
    if len(predictions) != len(references):
        raise InputError(f"{len(predictions)} predictions and {len(references)} references: one per text is needed")
    references = [[row] if isinstance(row, str) else list(row) for row in references]
    parts = [np.zeros((len(predictions), 0))]
    for name in metrics:
        if name not in ROUGE:
            scorer, streams = _scorer(name, language), _streams(references)
            # What sacrebleu's own significance tests are made of; its public methods keep no statistics of chrF.
            statistics = scorer._extract_corpus_statistics([*predictions], streams) if streams else []
            parts.append(np.array(statistics, dtype=np.float64).reshape(len(predictions), WIDTHS[name]))
    if rouge := [name for name in metrics if name in ROUGE]:
        scores = [rouge_scores(text, row) for text, row in zip(predictions, references, strict=True)]
        rows = [[row[name] for name in rouge] for row in scores]
        parts.append(np.array(rows, dtype=np.float64).reshape(len(predictions), len(rouge)))
    lengths = [
        (len(text), np.mean([len(reference) for reference in row]), text.strip() in {r.strip() for r in row}, 1)
        for text, row in zip(predictions, references, strict=True)
    ]
    return np.hstack([*parts, np.array(lengths, dtype=np.float64).reshape(len(predictions), len(LENGTH))])


def text_metrics(
    prediction, *, metrics: Sequence[str], language: str = "", weights: np.ndarray | None = None
) -> dict[str, float]:
    """Score texts from their statistics.

    Args:
        prediction: With `predictions` `[texts, n]`, as `text_statistics` returns them.
        metrics: As given to it.
        language: Likewise.
        weights: `[texts]`, how often each counts; once each when None.

    Returns:
        In the order of `METRICS` those asked for: bleu and chrf from 0 to 100, over the corpus, as sacrebleu has them;
        rouge1, rouge2, rougeL, rougeLsum from 0 to 1, F1, a mean over texts; and always exact_match, the share of
        texts that are their reference to the letter, and length_ratio, characters written over characters of the
        references, which falls when a model stops early. nan where there is no text.
    """
    statistics = np.asarray(prediction.predictions, dtype=np.float64)
    # Not `@`: BLAS would start threads for it.
    sums = statistics.sum(axis=0) if weights is None else np.einsum("r,rn->n", weights, statistics)
    characters, gold_characters, exact, texts = sums[-len(LENGTH) :]
    scores, start = {}, 0
    for name in metrics:
        if name not in ROUGE:
            counts = sums[start : start + WIDTHS[name]].tolist()
            start += WIDTHS[name]
            scores[name] = _scorer(name, language)._compute_score_from_stats(counts).score if texts else float("nan")
    rouge = [name for name in metrics if name in ROUGE]
    scores |= {name: _ratio(total, texts) for name, total in zip(rouge, sums[start:], strict=False)}
    scores = {name: float(scores[name]) for name in METRICS if name in scores}
    return scores | {"exact_match": _ratio(exact, texts), "length_ratio": _ratio(characters, gold_characters)}


def metric_signatures(metrics: Sequence[str], references: Texts, language: str = "") -> dict[str, str]:
    """Return how each score was computed, in a line that others can compare: sacrebleu's signature where it has one.

    Args:
        metrics: Some of `METRICS`.
        references: As for `text_statistics`; their number is in the signature.
        language: Likewise.
    """
    signatures = {}
    numbers = {1 if isinstance(row, str) else len(row) for row in references}
    for name in metrics:
        if name in ROUGE:
            signatures[name] = "F1|case:lc|words:unicode|stemmer:no|mean:texts"
            signatures[name] += "|sentences:lines" if name == "rougeLsum" else ""
            continue
        scorer = _scorer(name, language)
        scorer.num_refs = max(numbers) if len(numbers) == 1 else -1  # sacrebleu's "varying"
        signatures[name] = str(scorer.get_signature())
    return signatures


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise an InputError for an unknown metric, one named twice, or one that needs what is not installed."""
    for name in metrics:
        if name not in METRICS:
            raise InputError(f"no such text metric: {name!r}{nearest(name, METRICS)} (known: {', '.join(METRICS)})")
        if name not in ROUGE:
            _scorer(name)
    if len(set(metrics)) < len(metrics):
        raise InputError(f"text metrics {', '.join(metrics)}: name each once")


def rouge_scores(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Return the ROUGE F1 scores of a text, each that of its best reference.

    Words are runs of letters and digits in lower case, not stemmed. The package `rouge-score` takes letters other than
    a to z for spaces, which gives 0 to a text in Greek; of English text the scores are the same. Of languages that are
    written without spaces ROUGE says little: take chrF.

    >>> rouge_scores("the cat sat", ["the cat sat down"])["rouge2"]
    0.8

    Args:
        prediction: Its sentences, for rougeLsum, stand on lines of their own.
        references: One or more.

    Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries (2004), sections 2, 3.1 and 3.2; as ROUGE-1.5.5
    does, rougeLsum counts a word at most as often as it occurs on either side.
    """
    scores = [_rouge(_words(prediction), _lines(prediction), reference) for reference in references]
    return {name: max(score[name] for score in scores) for name in ROUGE}


def _rouge(words: list[str], lines: list[list[str]], reference: str) -> dict[str, float]:
    gold = _words(reference)
    scores = {}
    for n in (1, 2):
        found, wanted = (Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (words, gold))
        scores[f"rouge{n}"] = _f1((found & wanted).total(), found.total(), wanted.total())
    scores["rougeL"] = _f1(len(_common_subsequence(gold, words)), len(words), len(gold))
    left, hits = Counter(words) & Counter(gold), 0
    for line in _lines(reference):
        union = set().union(*(_common_subsequence(line, other) for other in lines))
        for place in sorted(union):
            hits += left[line[place]] > 0
            left[line[place]] -= 1
    return scores | {"rougeLsum": _f1(hits, len(words), len(gold))}


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _lines(text: str) -> list[list[str]]:
    return [_words(line) for line in text.split("\n") if line]


def _common_subsequence(first: list[str], second: list[str]) -> list[int]:
    """Return the places in `first` of a longest common subsequence; of several the one that ROUGE-1.5.5 takes."""
    table = [[0] * (len(second) + 1)]
    for word in first:
        above, row = table[-1], [0]
        for j, other in enumerate(second):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        table.append(row)
    i, j, places = len(first), len(second), []
    while i and j:
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            places.append(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places[::-1]


def _f1(right: int, predicted: int, gold: int) -> float:
    return _ratio(2 * right, predicted + gold) if right else 0.0


@functools.cache  # the bootstrap asks a thousand times
def _scorer(name: str, language: str = ""):
    """Return sacrebleu's metric; its words are those of the language where it knows better than by spaces."""
    try:
        from sacrebleu import metrics

        # `force` quiets its warning of texts that end in " .", which some corpora do.
        return metrics.BLEU(trg_lang=language, force=True) if name == BLEU else metrics.CHRF()
    except (ImportError, RuntimeError) as error:  # RuntimeError: without MeCab, which Japanese and Korean need
        missing = f"sacrebleu[{language}]" if isinstance(error, RuntimeError) else "ptft-recipes[text]"
        raise InputError(f"{name} needs sacrebleu: python -m pip install -c constraints.txt '{missing}'") from None


def _streams(references: list[list[str]]) -> list[list[str | None]]:
    """Turn references per text into sacrebleu's streams: the first of every text, the second, ...; None for none."""
    most = max(map(len, references), default=0)
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
