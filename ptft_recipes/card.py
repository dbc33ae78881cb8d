"""The model card, written from measured results."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ptft_recipes.evaluation import format_score, predicts_test_split, split_by_class
from ptft_recipes.reporting import write_text

# By the Hub's name of the task: the Auto class, a name for the pipeline, an input for it.
USAGE = {
    "text-classification": ("AutoModelForSequenceClassification", "classify", '"Some text."'),
    "token-classification": ("AutoModelForTokenClassification", "tag", '"Some text."'),
    "fill-mask": ("AutoModelForMaskedLM", "fill", 'f"Some {fill.tokenizer.mask_token}."'),
    "feature-extraction": ("AutoModel", "encode", '"Some text.", return_tensors=True'),
}
PRETRAINING_TASKS = ("fill-mask", "feature-extraction")


def write_model_card(output_dir: Path, results: dict[str, Any], task: str, model_id: str) -> None:
    """Write `README.md` with what was trained on what, the measured scores, and how to use it.

    Args:
        output_dir: Of the run.
        results: Its results.
        task: The Hub's name of the task.
        model_id: By which a reader loads the model: the repository, or a folder.
    """
    run, metrics, base_model = results["run"], results["metrics"], results["run"]["base_model"]
    data = run["data"]
    path = output_dir / "adapter_config.json"
    adapter = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    overall = {name: score for name, score in split_by_class(metrics)[0].items() if score["value"] is not None}
    name = Path(model_id).name
    card_data = ModelCardData(
        base_model=base_model if _could_be_hub_id(base_model) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=task,
        tags=["ptft-recipes"],
        model_name=name,
        eval_results=[
            EvalResult(task, data["name"], data["name"], metric, round(score["value"], 4), dataset_split="test")
            for metric, score in overall.items()
        ]
        or None,
    )
    sections = [
        f"# {name}",
        _summary(run, base_model, task),
        "## Results\n\n" + _results_table(metrics, run),
        "## Use\n\n" + _usage(model_id, base_model, adapter, task),
        "## Data\n\n" + _data_table(data),
        "## Training\n\n" + _training_table(run),
    ]
    if "merged" in run:
        sections.insert(3, "## What was merged\n\n" + _merged_table(run["merged"]))
    plots = [f"![{path.stem.replace('_', ' ')}](plots/{path.name})" for path in sorted(output_dir.glob("plots/*.png"))]
    sections.insert(3, "\n\n".join(plots))
    body = "\n\n".join(section for section in sections if section)
    card = ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{body}\n")
    write_text(output_dir / "README.md", str(card))


def _could_be_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)) and not Path(name).exists()


def _summary(run: dict[str, Any], base_model: str, task: str) -> str:
    start = "pre-training continued from" if task in PRETRAINING_TASKS else "fine-tuned from"
    if run["config"].get("from_scratch"):
        start = "trained from new weights in the architecture of"
    if merged := [name for name in run.get("merged", {}) if name != "mean"]:
        what = "an adapter folded into" if len(merged) == 1 else f"the mean of {len(merged)} adapters of"
        return f"`{run['recipe']}` of ptft-recipes {run['versions']['ptft-recipes']}: {what} `{base_model}`."
    tuning = run["config"].get("tuning", "full")
    share = run["trainable_parameters"] / run["total_parameters"]
    return (
        f"`{run['recipe']}` of ptft-recipes {run['versions']['ptft-recipes']}, {start} `{base_model}` on "
        f"`{run['data']['name']}`; tuning `{tuning}`, {run['trainable_parameters']:,} of {run['total_parameters']:,} "
        f"weights trained ({share:.1%}).\n\nLineage: {format_lineage(run['lineage'])}."
    )


def format_lineage(lineage: list[dict[str, Any]]) -> str:
    """Say through which stages the weights went, oldest first; one without steps added words.

    >>> format_lineage([{"recipe": "pretrain_mlm", "from": "bert", "from_scratch": False, "data": "papers",
    ...                  "fingerprint": "0ab1", "steps": 9}])
    '`bert` → `papers` (pretrain_mlm, 9 steps, data `0ab1`)'
    """
    start = "new weights in the architecture of " * lineage[0]["from_scratch"] + f"`{lineage[0]['from']}`"
    steps = [f"{stage['steps']:,} steps, " if stage["steps"] else "" for stage in lineage]
    stages = [
        f"`{stage['data']}` ({stage['recipe']}, {count}data `{stage['fingerprint']}`)"
        for stage, count in zip(lineage, steps, strict=True)
    ]
    return " → ".join([start, *stages])


def _results_table(metrics: dict[str, Any], run: dict[str, Any]) -> str:
    if not predicts_test_split(run):
        return "The test split was not predicted."
    if not metrics:
        return "The test split has no labels; nothing was scored."
    (overall, by_class), rows = split_by_class(metrics), run["data"]["rows"]["test"]
    lines = [f"On {rows:,} test rows, scored once; in brackets 95 % bootstrap intervals over the rows.\n"]
    lines += [
        "| metric | test |",
        "|---|---|",
        *(f"| {name} | {format_score(score)} |" for name, score in overall.items()),
    ]
    if by_class:
        kinds = list(next(iter(by_class.values())))
        lines += ["", f"| label | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
        lines += [
            f"| {label} | {' | '.join(format_score(scores[kind]) for kind in kinds)} |"
            for label, scores in by_class.items()
        ]
    return "\n".join(lines)


def _merged_table(merged: dict[str, Any]) -> str:
    """Return the validation scores of what was merged."""
    metrics = list(split_by_class(merged["mean"])[0])
    lines = ["On the validation split:\n", f"| model | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for name, scores in merged.items():
        lines.append(f"| {name} | {' | '.join(format_score(scores[metric]) for metric in metrics)} |")
    return "\n".join(lines)


def _usage(model_id: str, base_model: str, adapter: dict[str, Any] | None, task: str) -> str:
    auto_class, name, text = USAGE[task]
    if adapter:
        # Unmerged, PEFT leaves the bias out of a vocabulary head of which it trains single tokens.
        merge = ".merge_and_unload()" * bool(task == "fill-mask" and adapter.get("trainable_token_indices"))
        needs = "import ptft_recipes.bottleneck  # PEFT knows the method from then on\n"
        code = (
            needs * (adapter["peft_type"] == "BOTTLENECK") + "from peft import PeftModel\n"
            f"from transformers import AutoConfig, {auto_class}, AutoTokenizer, pipeline\n\n"
            f'config = AutoConfig.from_pretrained("{model_id}")  # of the run: labels, lineage\n'
            f'base = {auto_class}.from_pretrained("{base_model}", config=config)\n'
            f'model = PeftModel.from_pretrained(base, "{model_id}"){merge}\n'
            f'{name} = pipeline("{task}", model, tokenizer=AutoTokenizer.from_pretrained("{model_id}"))'
        )
    else:
        code = f'from transformers import pipeline\n\n{name} = pipeline("{task}", "{model_id}")'
    return f"```python\n{code}\nprint({name}({text}))\n```"


def _data_table(data: dict[str, Any]) -> str:
    counted = {"truncated_rows": "truncated", "tokens": "tokens", "blocks": "blocks", "windows": "windows"}
    kinds = [kind for kind in counted if kind in data["tokens"]["train"]]
    headings = ["split", "rows", "dropped", *(counted[kind] for kind in kinds), "also in train", "fingerprint"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for split, rows in data["rows"].items():
        overlap = data["overlap_with_train"].get(split, {}).get("normalised", "")
        counts = " | ".join(_number(data["tokens"][split][kind]) for kind in kinds)
        cut = " (cut from train)" if split in data["cut"] else ""
        dropped, fingerprint = data["dropped"][split], data["fingerprint"][split]
        lines.append(f"| {split}{cut} | {_number(rows)} | {dropped} | {counts} | {overlap} | `{fingerprint}` |")
    return "\n".join(lines)


def _number(count: int | None) -> str:
    return "streamed" if count is None else f"{count:,}"


def _training_table(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    commit = "not in a repository" if run["commit"] is None else run["commit"][:12] + " (changed)" * bool(run["dirty"])
    best = ", ".join(
        f"validation {name} {value:.3f}" for name, value in run["validation"].items() if value is not None
    )
    memory = ", ".join(f"{gib:.2f} GiB ({kind})" for kind, gib in run["peak_memory_gib"].items())
    rows = {
        "steps, epochs": f"{run['steps']}, {run['epochs']}",
        **({"best step": f"{run['best_step']} ({best})"} if run["best_step"] else {}),
        "seed": run["seed"],
        "hardware": f"{run['hardware']}; {run['processes']} process(es), {run['precision']}",
        "time": f"{run['seconds']['train']:.0f} s of training, {run['seconds']['total']:.0f} s in all"
        + (f" (since {run['resumed']['from']}, from where it went on)" if "resumed" in run else ""),
        "weights": f"{run['trainable_parameters']:,} of {run['total_parameters']:,} trained; "
        f"{run['saved_mib']:.1f} MiB saved",
        "peak memory": memory,
        **({"step": f"{ms} ms (median)"} if (ms := run["milliseconds_per_step"]) else {}),
        "commit": commit,
        "versions": versions,
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    settings = "\n".join(f"{name}: {value}" for name, value in run["config"].items() if name != "output_dir")
    return f"{table}\n\n```yaml\n{settings}\n```"
