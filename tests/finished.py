"""Folders that look like those of finished runs, written by hand, for what reads them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ptft_recipes.answer_metrics import answer_metrics, answer_statistics
from ptft_recipes.metrics import multi_label_scores, regression_scores, single_label_scores
from ptft_recipes.tag_metrics import tag_metrics, tag_statistics

LABELS = ["approach", "none", "outcome"]
SINGLE, MULTI = "single_label_classification", "multi_label_classification"
VERSIONS = {"ptft-recipes": "0.1.0", "python": "3.11.7", "transformers": "5.23.0", "torch": "2.13.0"}


def results(**run) -> dict:
    """Return what `results.json` of a sequence classifier holds, with other values of `run`."""
    data = {
        "name": "demo/aclsum_roles",
        "hub_id": None,
        "rows": {"train": 300, "validation": 30, "test": 40},
        "dropped": {"train": 1, "validation": 0, "test": 0},
        "cut": {"validation": 30},
        "overlap_with_train": {"validation": {"exact": 1, "normalised": 2}, "test": {"exact": 0, "normalised": 0}},
        "fingerprint": {"train": "aa", "validation": "bb", "test": "cc"},
        "tokens": {split: {"truncated_rows": 3} for split in ("train", "validation", "test")},
    }
    return {
        "split": "test",
        "metrics": {
            "accuracy": {"value": 0.7213, "ci95": [0.7071, 0.7355], "n": 40},
            "roc_auc": {"value": None, "ci95": [None, None], "n": 40},
            "f1/none": {"value": 0.5, "ci95": [0.4, 0.6], "n": 40},
        },
        "run": {
            "recipe": "finetune_cls", "base_model": "org/base", "base_model_hub_id": "org/base",
            "config": {"output_dir": "out/x", "tuning": "full"},
            "versions": {"ptft-recipes": "0.1.0", "torch": "2.13.0"}, "commit": "0123456789abcdef", "dirty": False,
            "seed": 42, "hardware": "a CPU, 2 cores", "processes": 1, "precision": "bf16", "steps": 10, "epochs": 2.0,
            "best_step": 5, "validation": {"macro_f1": 0.6}, "trainable_parameters": 10, "total_parameters": 20,
            "seconds": {"train": 3.0, "test": 1.0, "total": 9.0}, "data": data, "saved_mib": 1.5,
            "milliseconds_per_step": 250.0, "peak_memory_gib": {"resident": 1.25},
            "energy": {"kilowatt_hours": 6e-5, "assumed": "2 cores at 12 W"},
            "lineage": [
                {"recipe": "pretrain_mlm", "from": "org/first", "hub_id": "org/first", "from_scratch": False,
                 "data": "notes.txt", "fingerprint": "dd", "steps": 7},
                {"recipe": "finetune_cls", "from": "org/base", "hub_id": "org/base", "from_scratch": False,
                 "data": "demo/aclsum_roles", "fingerprint": "aa", "steps": 10},
            ],
        } | run,
    }  # fmt: skip


def write_run(folder: Path, lines: list[dict], metrics: dict[str, float], data: dict, seed: int = 42, **run) -> Path:
    """Write the folder of a finished run with the given predictions and scores."""
    config = {"learning_rate": 1e-4, "output_dir": str(folder), "seed": seed} | run.pop("config", {})
    data = {"name": "demo/roles", "fingerprint": {"test": "abc"}} | data
    described = {
        "recipe": "finetune_cls", "versions": VERSIONS, "commit": "0" * 40, "dirty": False, "seed": seed,
        "hardware": "a CPU, 2 cores", "processes": 1, "precision": "bf16", "config": config, "data": data,
        "validation": {next(iter(metrics)): 0.5}, "trainable_parameters": 50, "total_parameters": 200,
        "seconds": {"train": 5.0, "total": 10.0 + seed % 10}, "peak_memory_gib": {"resident": 1.5},
    } | run  # fmt: skip
    scores = {name: {"value": value, "ci95": [0, 1], "n": len(lines)} for name, value in metrics.items()}
    (folder / "predictions").mkdir(parents=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "predictions" / "test.jsonl").write_text(text, encoding="utf-8")
    (folder / "results.json").write_text(json.dumps({"split": "test", "metrics": scores, "run": described}))
    (folder / "README.md").write_text("card")
    return folder


def write_classifier(folder: Path, right: float, seed: int = 42, rows: int = 200, labels=LABELS, **kwargs) -> Path:
    """Write a run that classifies; `right` is the share of the rows that it gets right, on average.

    Gold labels are those of every other run; how hard a row is, too.
    """
    gold = np.random.default_rng(0).integers(len(labels), size=rows)
    hard = np.random.default_rng(1).normal(size=rows)
    own = np.random.default_rng(100 + seed + round(1000 * right))
    hits = hard + 0.5 * own.normal(size=rows) < np.quantile(hard, right)
    chosen = np.where(hits, gold, (gold + own.integers(1, len(labels), size=rows)) % len(labels))
    chances = own.dirichlet(np.ones(len(labels)), size=rows)
    order = np.sort(chances, axis=1)
    chances = np.where(np.arange(len(labels)) == chosen[:, None], order[:, -1:], order[:, :1])
    chances /= chances.sum(axis=1, keepdims=True)
    metrics = single_label_scores(chances, gold, None, labels)
    metrics = {"macro_f1": metrics.pop("macro_f1")} | metrics
    lines = [
        {"id": f"test.csv:{i}", "gold": labels[g], "predicted": labels[c],
         "probabilities": dict(zip(labels, np.round(p, 6).tolist(), strict=True))}
        for i, (g, c, p) in enumerate(zip(gold, chosen, chances, strict=True))
    ]  # fmt: skip
    return write_run(folder, lines, metrics, {"problem_type": SINGLE, "label_names": list(labels)}, seed, **kwargs)


def write_multi_label(folder: Path, seed: int = 42) -> Path:
    """Write a run that gives every text any number of labels; one chance was rounded up to one half."""
    own = np.random.default_rng(seed)
    gold, chances = own.integers(2, size=(50, 3)), own.random((50, 3))
    chances[0] = 0.4999999, 0.5, 0.9
    metrics = multi_label_scores(chances, gold, None, LABELS)
    lines = [
        {"id": str(i), "gold": [LABELS[k] for k in np.flatnonzero(g)],
         "predicted": [LABELS[k] for k in np.flatnonzero(p >= 0.5)],
         "probabilities": dict(zip(LABELS, np.round(p, 6).tolist(), strict=True))}
        for i, (g, p) in enumerate(zip(gold, chances, strict=True))
    ]  # fmt: skip
    return write_run(folder, lines, metrics, {"problem_type": MULTI, "label_names": LABELS}, seed)


def write_regression(folder: Path, seed: int = 42) -> Path:
    """Write a run that predicts numbers."""
    own = np.random.default_rng(seed)
    gold = np.random.default_rng(0).normal(size=60)
    predicted = gold + 0.3 * own.normal(size=60)
    metrics = regression_scores(predicted, gold)
    pairs = zip(gold.tolist(), predicted.tolist(), strict=True)
    lines = [{"id": str(i), "gold": g, "predicted": p} for i, (g, p) in enumerate(pairs)]
    return write_run(folder, lines, metrics, {"problem_type": "regression", "label_names": []}, seed)


def write_tagger(folder: Path, seed: int = 42) -> Path:
    """Write a run that tags words; one word is a line separator of Unicode."""
    own, names = np.random.default_rng(seed), ["O", "B-LOC", "I-LOC"]
    gold = [["O", "B-LOC", "I-LOC"], ["B-LOC", "O", "O"], ["O", "O", "B-LOC"]] * 10
    predicted = [tags if own.random() < 0.7 else ["O", "O", "O"] for tags in gold]
    statistics = tag_statistics(gold, predicted, names, "IOB2")
    metrics = tag_metrics(SimpleNamespace(predictions=statistics), label_names=names, scheme="IOB2")
    metrics = {"f1": metrics.pop("f1")} | metrics
    pairs = zip(gold, predicted, strict=True)
    lines = [
        {"id": f"a:{i}", "words": ["x", "\u2028", "z"], "gold": g, "predicted": p} for i, (g, p) in enumerate(pairs)
    ]
    return write_run(folder, lines, metrics, {"label_names": names, "scheme": "IOB2"}, seed)


def write_answers(folder: Path, seed: int = 42) -> Path:
    """Write a run that answers questions, some of which have no answer."""
    own = np.random.default_rng(seed)
    gold = [["red fox", "fox"], [], ["the dog"]] * 10
    predicted = [own.choice(["fox", "dog", "the red fox", ""]) for _ in gold]
    statistics = answer_statistics(gold, predicted, has_no_answers=True)
    metrics = answer_metrics(SimpleNamespace(predictions=statistics), has_no_answers=True)
    metrics = {"f1": metrics.pop("f1")} | metrics
    lines = [
        {"id": f"a:{i}", "gold": g, "predicted": str(p)} for i, (g, p) in enumerate(zip(gold, predicted, strict=True))
    ]
    return write_run(folder, lines, metrics, {"has_no_answers": True}, seed)


def write_language_model(folder: Path, loss: float = 2.0, seed: int = 42, hidden: int = 5) -> Path:
    """Write a run of masked language modelling: two blocks in each of 20 documents."""
    own = np.random.default_rng(seed)
    lines, total = [], 0.0
    for i in range(40):
        of_block = loss * hidden * own.uniform(0.8, 1.2)
        total += of_block
        lines.append({"document": f"d{i // 2}", "loss_before": 50.0, "tokens_before": hidden, "right_before": 0.0,
                      "loss": of_block, "tokens": float(hidden), "right": 1.0})  # fmt: skip
    metrics = {"perplexity": float(np.exp(total / (40 * hidden))), "perplexity_before": 9.0, "accuracy": 1 / hidden}
    write_run(folder, lines, metrics, {}, seed, recipe="pretrain_mlm")
    results = json.loads((folder / "results.json").read_text())
    for score in results["metrics"].values():
        score["n"] = 20
    (folder / "results.json").write_text(json.dumps(results))
    return folder
