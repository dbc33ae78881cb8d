"""The front matter of a model card, which the Hub checks and reads."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ptft_recipes.errors import one_line
from ptft_recipes.evaluation import split_by_class
from ptft_recipes.modeling import is_hub_id
from ptft_recipes.redaction import portable

# Where the Hub knows a metric by another name.
METRIC_TYPES = {"macro_f1": "f1", "micro_f1": "f1", "pearson": "pearsonr", "spearman": "spearmanr", "r2": "r_squared"}


def describe(results: dict[str, Any], task: str | None, is_adapter: bool, name: str) -> ModelCardData:
    """Return what the Hub sorts and links a model by: base model, data set, task, scores.

    Args:
        results: Of the run.
        task: The Hub's name of the task; None for a tokenizer.
        is_adapter: What was saved needs its base model.
        name: Of the model.

    Source: huggingface/hub-docs, modelcard.md, which also says what is checked when a card is pushed.
    """
    run, data = results["run"], results["run"]["data"]
    base_model = hub_ancestor(run.get("lineage", []))
    merged = [name for name in run.get("merged", {}) if name != "mean"]
    relation = "adapter" if is_adapter else "merge" if len(merged) > 1 else "finetune"
    hub_id, config = data.get("hub_id"), run["config"]
    dataset = {"dataset_type": hub_id or "unknown", "dataset_name": one_line(portable(data["name"]))}
    if hub_id:
        dataset |= {"dataset_config": config.get("dataset_config"), "dataset_revision": config.get("dataset_revision")}
    if "test" not in data.get("cut", {}) and not data.get("fold"):
        dataset["dataset_split"] = config.get("test_split", "test") if hub_id else "test"
    scores = [
        EvalResult(
            task_type=task,
            metric_type=METRIC_TYPES.get(metric, metric),
            metric_value=float(f"{found['value']:.4g}"),
            metric_name=_with_interval(metric, found),  # the Hub has no field for an interval, and shows this name
            **dataset,
        )
        for metric, found in split_by_class(results["metrics"])[0].items()
        if task and found["value"] is not None and not metric.endswith("_before")  # that is the base model's
    ]
    return ModelCardData(
        base_model=base_model,
        base_model_relation=relation if base_model and task else None,
        datasets=[hub_id] if hub_id and is_hub_id(hub_id) else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=task,
        tags=["ptft-recipes"],
        model_name=name if scores else None,
        eval_results=scores or None,
    )


def _with_interval(metric: str, found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return metric if low is None else f"{metric}, 95 % interval {low:.4g} to {high:.4g}"


def hub_ancestor(lineage: list[dict[str, Any]]) -> str | None:
    """Return the nearest model of the Hub that the weights come from; None if they were new, or nobody knows.

    A stage that started from the folder of an earlier run goes back to where that one started.

    Args:
        lineage: Of `results.json`, the first stage first.

    >>> mlm = {"from": "org/base", "hub_id": "org/base", "from_scratch": False}
    >>> hub_ancestor([mlm, {"from": "runs/mlm", "hub_id": None, "from_scratch": False}])
    'org/base'
    """
    for stage in reversed(lineage):
        if stage["from_scratch"]:
            return None
        hub_id = stage.get("hub_id")  # of the run's own telling: `from` may be a folder that looks like one
        if hub_id and is_hub_id(hub_id):
            return hub_id
    return None
