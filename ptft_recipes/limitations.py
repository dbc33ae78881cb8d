"""What the measurements of a run say against its model."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ptft_recipes.evaluation import format_score, predicts_test_split, split_by_class
from ptft_recipes.markdown import code, rounded
from ptft_recipes.tag_schemes import PLAIN, strict_entities

WIDE = 0.05  # half of an interval, as a share of the score
FEW = 30  # test rows of a label
POOR = 0.5  # F1
SOME = 0.01  # share of the rows
LENGTH_OFF = 0.15  # of the references' length
SHOWN = 5  # labels in one sentence


def count_labels(lines: Iterable[dict[str, Any]], data: dict[str, Any]) -> Counter[str]:
    """Count the test examples of each label that is scored: rows, or entities, or words with plain tags.

    Args:
        lines: Of `predictions/test.jsonl`.
        data: The report of the data, with `scheme` for tags.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        gold = line.get("gold")
        if "scheme" in data and data["scheme"] != PLAIN:
            counts.update(entity.type for entity in strict_entities(gold or [], data["scheme"]))
        else:
            counts.update([gold] if isinstance(gold, str) else gold if isinstance(gold, list) else [])
    return counts


def find_limitations(results: dict[str, Any], label_counts: Mapping[str, int]) -> list[str]:
    """Return what speaks against a model by its own results, a sentence or two each, as Markdown.

    Args:
        results: Of the run.
        label_counts: As `count_labels` returned them; empty where nothing was predicted.
    """
    run, metrics = results["run"], results["metrics"]
    found = [*_of_the_test(metrics, run), *_of_labels(metrics, label_counts), *_of_texts(run["data"])]
    if run["config"].get("model_name_or_path") == "demo/smollm2":
        found.append("Measured on a base whose weights were rounded to 4 bits (Q4_1), not on the published ones.")
    if run.get("steps"):
        seed = f"One run, with seed {run['seed']}"
        found.append(f"{seed}: the intervals do not hold what another seed would change.")
    found.append("Language, domain and licence of the texts are not recorded; on other texts nothing was measured.")
    return found


def _of_the_test(metrics: dict[str, Any], run: dict[str, Any]) -> list[str]:
    if not predicts_test_split(run):
        return ["Nothing was measured on test rows."]
    if not metrics:
        return ["The test rows have no labels, so nothing was scored."]
    overall, found, data = split_by_class(metrics)[0], [], run["data"]
    scored = {name: each for name, each in overall.items() if each["value"] is not None}
    main = next(iter(run.get("validation", {})), None)
    main = main if main in scored else next(iter(scored), None)
    if main and (half := _half_width(scored[main])) > WIDE * abs(scored[main]["value"]):
        of = f"{scored[main]['n']:,} test {'documents' if 'blocks' in _counts(data, 'test') else 'rows'}"
        found.append(f"{of} tell {code(main)} only to about ±{rounded(half)}: {format_score(scored[main], rounded)}.")
    if "blocks" in _counts(data, "test") and data["rows"]["test"] == 1:
        found.append("A single test document: the intervals are over its blocks, which are not independent.")
    if undefined := [code(name) for name in overall if name not in scored]:
        found.append(f"Undefined on this test split: {', '.join(undefined)}.")
    ratio = scored.get("length_ratio", {"value": 1})["value"]
    if abs(ratio - 1) > LENGTH_OFF:
        found.append(f"What it writes is {rounded(ratio)} times as long as the references.")
    if fold := data.get("fold"):
        found.append(f"The test rows are fold {fold['number']} of {fold['count']} of train, not a split of its own.")
    elif data.get("cut", {}).get("test"):
        found.append("The test rows were cut from train at random, so they are as like it as rows can be.")
    overlap = data.get("overlap_with_train", {}).get("test", {}).get("normalised", 0)
    if overlap:
        share = _share(overlap, data["rows"]["test"])
        found.append(
            f"{share} of the test rows are in train too, apart from case and punctuation: scores may be too high."
        )
    for name, each in metrics.items():
        metric, _, text = name.partition("/")
        if text and metric.endswith("perplexity_ratio") and each["ci95"][0] is not None and each["ci95"][0] > 1:
            score = metric.removesuffix("_ratio").replace("_", " ")
            found.append(
                f"The model knows less of {code(text)} than before: its {score} is {format_score(each, rounded)} "
                "times as high."
            )
    return found


def _of_labels(metrics: dict[str, Any], counts: Mapping[str, int]) -> list[str]:
    f1 = {label: scores["f1"]["value"] for label, scores in split_by_class(metrics)[1].items() if "f1" in scores}
    found = []
    if poor := sorted((label for label in f1 if (f1[label] or 0) < POOR), key=lambda label: f1[label] or 0):
        worst = [f"{code(label)} ({'undefined' if f1[label] is None else rounded(f1[label])})" for label in poor]
        found.append(f"F1 below {POOR}: {_some(worst)}.")
    few = sorted(
        (label for label in f1 if counts and counts.get(label, 0) < FEW), key=lambda label: counts.get(label, 0)
    )
    if few:
        rare = [f"{code(label)} ({counts.get(label, 0)})" for label in few]
        found.append(f"Fewer than {FEW} test examples, so that their scores are hardly known: {_some(rare)}.")
    return found


def _of_texts(data: dict[str, Any]) -> list[str]:
    found = []
    for split in ("train", "test"):
        counts, rows = _counts(data, split), data["rows"].get(split)
        cut, read = counts.get("truncated_rows") or 0, rows
        if split == "train":
            read = data.get("augmentation", {}).get("rows", rows)
        if rows and cut > (SOME * read if split == "train" else 0):
            found.append(f"{_share(cut, read)} of the {split} rows are longer than the model was shown, and were cut.")
        if rows and (cut := counts.get("truncated_targets", 0)) > (SOME * rows if split == "train" else 0):
            found.append(f"{_share(cut, rows)} of the {split} targets are longer than the model may write.")
        if rows and (lost := counts.get("answers_in_no_window", 0)):
            found.append(
                f"{_share(lost, rows)} of the {split} answers are in no window as a whole and cannot be found."
            )
        if rows and (dropped := data.get("dropped", {}).get(split, 0)):
            found.append(f"{_share(dropped, rows + dropped)} of the {split} rows were dropped: no text, or no label.")
    counts, rows = _counts(data, "test"), data["rows"].get("test")
    unknown, tokens = counts.get("unknown_tokens") or 0, counts.get("tokens") or 0
    if unknown > SOME * tokens > 0:
        found.append(f"{_share(unknown, tokens)} of the test tokens are unknown to the vocabulary.")
    elif rows and (strange := counts.get("rows_with_unknown_tokens", 0)) > SOME * rows:
        found.append(f"{_share(strange, rows)} of the test rows have words that the vocabulary cannot write.")
    return found


def _counts(data: dict[str, Any], split: str) -> dict[str, Any]:
    return data.get("tokens", {}).get(split, {})


def _half_width(found: dict[str, Any]) -> float:
    low, high = found["ci95"]
    return 0.0 if low is None else (high - low) / 2


def _share(part: int, whole: int) -> str:
    """Return a count with its share.

    >>> _share(46, 3740), _share(1, 3740)
    ('46 (1.2 %)', '1 (under 0.1 %)')
    """
    percent = 100 * part / whole
    return f"{part:,} ({f'{percent:.1f}' if percent >= 0.1 else 'under 0.1'} %)"


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
