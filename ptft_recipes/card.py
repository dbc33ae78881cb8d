"""The model card, written from measured results."""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ptft_recipes.card_metadata import describe
from ptft_recipes.card_usage import usage
from ptft_recipes.errors import one_line
from ptft_recipes.evaluation import format_score, predicts_test_split, split_by_class
from ptft_recipes.labels import REGRESSION
from ptft_recipes.limitations import count_labels, find_limitations
from ptft_recipes.markdown import code, escape, fenced, rounded, table
from ptft_recipes.redaction import portable
from ptft_recipes.reporting import dump_yaml, write_text

KINDS = {
    "text-classification": "Text classification",
    "token-classification": "Token classification",
    "question-answering": "Extractive question answering",
    "text-generation": "A language model",
    "fill-mask": "A masked language model",
    "feature-extraction": "An encoder",
    "text2text-generation": "An encoder-decoder that fills gaps",
    "translation": "Translation",
    "summarization": "Summarization",
    None: "A tokenizer",
}
PRETRAINING_TASKS = ("fill-mask", "feature-extraction", "text2text-generation")
# Of the configuration, what is of this machine or of the upload only.
NOT_SHOWN = (
    "output_dir", "run_name", "push_to_hub", "disable_tqdm", "hub_model_id", "hub_private_repo", "hub_strategy",
)  # fmt: skip
_score = partial(format_score, number=rounded)
COUNTED = {"truncated_rows": "truncated", "tokens": "tokens", "blocks": "blocks", "windows": "windows"}


def write_model_card(output_dir: Path, results: dict[str, Any], task: str | None, model_id: str) -> None:
    """Write `README.md`: what was trained on what, the measured scores, what speaks against it, and how to use it.

    No absolute path gets into it: of a file or folder there is its name.

    Args:
        output_dir: Of the run; its plots, predictions and adapter are looked for there.
        results: Of the run.
        task: The Hub's name of the task; None for a tokenizer.
        model_id: By which a reader loads the model: the repository, or a folder.
    """
    run, metrics = results["run"], results["metrics"]
    path = output_dir / "adapter_config.json"
    adapter = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    counts = _count_labels(output_dir / "predictions" / "test.jsonl", run["data"])
    model_id = portable(model_id) if os.path.isabs(model_id) else model_id
    name = one_line(Path(model_id).name or output_dir.resolve().name)
    limitations = "\n".join(f"- {sentence}" for sentence in find_limitations(results, counts))
    plots = [f"![{path.stem.replace('_', ' ')}](plots/{path.name})" for path in sorted(output_dir.glob("plots/*.png"))]
    sections = [
        f"# {escape(name)}",
        _summary(run, task),
        "## Results\n\n" + _results_table(metrics, run, counts),
        _signatures(run.get("signatures", {})),
        "## What was merged\n\n" + _merged_table(run["merged"]) if "merged" in run else "",
        "\n\n".join(plots),
        f"## Limitations\n\n{limitations}",
        "## Use\n\n" + usage(model_id, run, task, adapter),
        "## Data\n\n" + _data_section(run),
        "## Training\n\n" + _training_section(run),
    ]
    body = "\n\n".join(section for section in sections if section)
    front_matter = describe(results, task, adapter is not None, name).to_yaml()
    write_text(output_dir / "README.md", str(ModelCard(f"---\n{front_matter}\n---\n\n{body}\n")))


def format_lineage(lineage: list[dict[str, Any]]) -> str:
    """Say through which stages the weights went, oldest first; one without steps added words.

    >>> format_lineage([{"recipe": "pretrain_mlm", "from": "bert", "from_scratch": False, "data": "papers",
    ...                  "fingerprint": "0ab1", "steps": 9}])
    '`bert` → `papers` (pretrain_mlm, 9 steps, data `0ab1`)'
    """
    start = "new weights in the architecture of " * lineage[0]["from_scratch"] + code(portable(lineage[0]["from"]))
    stages = [start]
    for stage in lineage:
        steps = f"{stage['steps']:,} steps, " if stage["steps"] else ""
        data = f"data {code(stage['fingerprint'])}"
        stages.append(f"{code(portable(stage['data']))} ({escape(stage['recipe'])}, {steps}{data})")
    return " → ".join(stages)


def _summary(run: dict[str, Any], task: str | None) -> str:
    data, config = run["data"], run["config"]
    names = data.get("label_names") or []
    labels = f" with {len(names)} labels" * bool(names)
    if 0 < len(names) <= 12:
        labels += f": {', '.join(map(escape, names))}"
    kind = "Regression on texts" if data.get("problem_type") == REGRESSION else KINDS[task]
    what = f"{kind}{labels}."
    recipe = f"`{run['recipe']}` of ptft-recipes {run['versions']['ptft-recipes']}"
    base = code(portable(run["base_model"]))
    if hub_id := run.get("base_model_hub_id"):
        base = f"[{base}](https://huggingface.co/{hub_id})"
    if merged := [name for name in run.get("merged", {}) if name != "mean"]:
        each = "adapters of" if "mean" in run["merged"] else "runs that started from"
        how = "an adapter folded into" if len(merged) == 1 else f"the mean of {len(merged)} {each}"
        return f"{what} Made by {recipe}: {how} {base}."
    start = "Pre-training continued from" if task in PRETRAINING_TASKS else "Fine-tuned from"
    start = "Made from that of" if task is None else start
    if config.get("from_scratch"):
        start = "Trained from new weights in the architecture of"
    text = f"{what} {start} {base} on {code(portable(data['name']))} by {recipe}."
    if "trainable_parameters" in run:
        moved, total = run["trainable_parameters"], run["total_parameters"]
        tuning = code(portable(config.get("tuning", "full")))
        text += f" Tuning {tuning}: {moved:,} of {total:,} weights trained ({moved / total:.1%})."
    lineage = run.get("lineage", [])
    return text + (f"\n\nLineage: {format_lineage(lineage)}." if len(lineage) > 1 else "")


def _results_table(metrics: dict[str, Any], run: dict[str, Any], counts: Mapping[str, int]) -> str:
    if not predicts_test_split(run):
        return "The test split was not predicted."
    if not metrics:
        return "The test split has no labels; nothing was scored."
    of = f"On {run['data']['rows']['test']:,} test rows"
    intro = f"{of}, scored once; in brackets 95 % bootstrap intervals over the rows.\n\n"
    if any(name.partition("/")[0].endswith("_before") for name in metrics):
        return intro.replace("rows", "documents") + _before_and_after(metrics, run["data"]["name"])
    overall, by_class = split_by_class(metrics)
    text = intro + table(["metric", "test"], ([escape(name), _score(found)] for name, found in overall.items()))
    if by_class:
        kinds = list(next(iter(by_class.values())))
        rows = [[escape(label), *(_score(scores[kind]) for kind in kinds)] for label, scores in by_class.items()]
        if counts:
            kinds = [*kinds, "test examples"]
            rows = [[*row, f"{counts.get(label, 0):,}"] for row, label in zip(rows, by_class, strict=True)]
        text += "\n\n" + table(["label", *kinds], rows)
    return text


def _signatures(signatures: dict[str, str]) -> str:
    """Return how the scores of texts were computed, so that others can compare theirs."""
    return "\n".join(f"- {escape(name)}: {code(signature)}" for name, signature in signatures.items())


def _before_and_after(metrics: dict[str, Any], name: str) -> str:
    """Return the scores of one or more texts, before training and after it side by side."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for key, found in metrics.items():
        metric, _, text = key.partition("/")
        base, when, _ = metric.rpartition("_before")
        kind = base if when else metric.removesuffix("_after")
        rows.setdefault((text or portable(name), kind), {})["before" if when else "after"] = _score(found)
    cells = [[escape(a), escape(b), row.get("before", ""), row.get("after", "")] for (a, b), row in rows.items()]
    headings = ["text", "metric", "before", "after"]
    several = len({text for text, _ in rows}) > 1
    return table(headings, cells) if several else table(headings[1:], (row[1:] for row in cells))


def _merged_table(merged: dict[str, Any]) -> str:
    """Return the validation scores of what was merged."""
    metrics = list(split_by_class(next(iter(merged.values())))[0])
    folders = [name for name in merged if os.path.isabs(name)]
    common = os.path.commonpath(map(os.path.dirname, folders)) if folders else ""
    shown = {name: Path(os.path.relpath(name, common)).as_posix() if name in folders else name for name in merged}
    rows = ([escape(shown[name]), *(_score(scores[metric]) for metric in metrics)] for name, scores in merged.items())
    return "On the validation split:\n\n" + table(["model", *metrics], rows)


def _data_section(run: dict[str, Any]) -> str:
    data, config = run["data"], run["config"]
    source = code(portable(data["name"]))
    whose = ", a demo data set of ptft-recipes" if data["name"].startswith("demo/") else ", not published here"
    if hub_id := data.get("hub_id"):
        source = f"[{source}](https://huggingface.co/datasets/{hub_id}) of the Hub"
        chosen = {"configuration": config.get("dataset_config"), "revision": config.get("dataset_revision")}
        whose = "".join(f", {name} {code(value)}" for name, value in chosen.items() if value)
    source += whose
    if mixed := {name: share for name, share in data.get("mix", {}).items() if share}:
        source += "; mixed in: " + ", ".join(f"{code(name)} ({share:.0%})" for name, share in mixed.items())
    if augmented := data.get("augmentation"):
        source += f"; {augmented['rows'] - data['rows']['train']:,} augmented copies of training rows on top"
    kinds = [kind for kind in COUNTED if kind in data.get("tokens", {}).get("train", {})]
    headings = ["split", "rows", "dropped", *(COUNTED[kind] for kind in kinds), "also in train", "fingerprint"]
    rows = []
    for split, count in data["rows"].items():
        overlap = data["overlap_with_train"].get(split, {}).get("normalised", "")
        counts = [_number(data["tokens"].get(split, {}).get(kind)) for kind in kinds]
        cut = " (cut from train)" * (split in data["cut"])
        fingerprint = code(data["fingerprint"][split]) if data["fingerprint"][split] else ""
        rows.append([split + cut, _number(count), data["dropped"][split], *counts, overlap, fingerprint])
    explained = "The fingerprint is a hash of the rows: the same on any machine, other if one letter is."
    return f"{source}.\n\n{table(headings, rows)}\n\n{explained}"


def _number(count: int | None) -> str:
    return "streamed" if count is None else f"{count:,}"


def _training_section(run: dict[str, Any]) -> str:
    seconds, rows = run["seconds"], {}
    since = f" (since {escape(run['resumed']['from'])}, from where it went on)" if "resumed" in run else ""
    if run.get("steps"):
        best = [f"validation {name} {value:.3f}" for name, value in run["validation"].items() if value is not None]
        rows["steps, epochs"] = f"{run['steps']:,}, {run['epochs']:g}"
        if run["best_step"]:
            rows["best step"] = f"{run['best_step']:,}" + f" ({escape(best[0])})" * bool(best)
    if settings := run.get("question_answering"):
        threshold, longest = settings["no_answer_threshold"], settings["max_answer_length"]
        rows["no answer"] = "never given" if threshold is None else f"above a threshold of {threshold:.4g}"
        rows["answers"] = f"at most {longest} tokens; intervals over {run.get('resampled', 'questions')}"
    rows["seed"] = run["seed"]
    rows["hardware"] = f"{escape(run['hardware'])}; {run['processes']} process(es), {run['precision']}"
    trained = f"{seconds['train']:,.0f} s of training, " if seconds.get("train") else ""
    rows["time"] = f"{trained}{seconds['total']:,.0f} s in all{since}"
    rows["energy"] = _energy(run) + since
    if "trainable_parameters" in run:
        trained = f"{run['trainable_parameters']:,} of {run['total_parameters']:,} trained"
        rows["weights"] = f"{trained}; {run['saved_mib']:.1f} MiB saved"
    rows["peak memory"] = ", ".join(f"{gib:.2f} GiB ({kind})" for kind, gib in run["peak_memory_gib"].items())
    if milliseconds := run.get("milliseconds_per_step"):
        rows["step"] = f"{milliseconds} ms (median)"
    commit = "not in a repository" if run["commit"] is None else run["commit"][:12] + " (changed)" * bool(run["dirty"])
    rows["commit"] = commit
    rows["versions"] = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    shown = portable({name: value for name, value in run["config"].items() if name not in NOT_SHOWN})
    settings = fenced(dump_yaml(shown).strip(), "yaml")
    explained = "Arguments, without those that have the defaults of their classes:"
    return f"{table(['', ''], rows.items())}\n\n{explained}\n\n{settings}"


def _energy(run: dict[str, Any]) -> str:
    energy = run.get("energy")
    if not energy or energy["kilowatt_hours"] is None:
        return "not estimated" + (f": {escape(energy['assumed'])}" if energy else "")
    spent = energy["kilowatt_hours"]
    amount = f"{rounded(spent)} kWh" if spent >= 1 else f"{rounded(1000 * spent)} Wh"
    return (
        f"about {amount}, an estimate, not measured: {escape(energy['assumed'])} at full load for the whole time, "
        "without memory and cooling; no CO2 figure, because where the power came from is not known"
    )


def _count_labels(path: Path, data: dict[str, Any]) -> Mapping[str, int]:
    if not path.exists() or not data.get("label_names"):
        return {}
    with path.open(encoding="utf-8") as file:
        return count_labels(map(json.loads, file), data)
