"""The weights of finished runs averaged into one model, which costs no more than one."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from ptft_recipes.card import write_model_card
from ptft_recipes.data import DatasetArguments
from ptft_recipes.ensembles import by_validation, is_better
from ptft_recipes.errors import InputError
from ptft_recipes.evaluation import with_intervals, write_lines
from ptft_recipes.finished_runs import PREDICTIONS, FinishedRun, classifier_scores, read_lines
from ptft_recipes.merging import average_weights, fold_adapter
from ptft_recipes.modeling import ModelArguments
from ptft_recipes.provenance import peak_memory, seconds_since_start
from ptft_recipes.reporting import write_text
from ptft_recipes.trained_checkpoints import load_checkpoint, read_checkpoint

logger = logging.getLogger(__name__)

SOUPS = ("uniform soup", "greedy soup")


def load_member(
    member: FinishedRun, model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Load the model of a run, an adapter folded into its base, so that its weights can be averaged with others.

    Args:
        member: The run.
        model_args: How to load; which model, the run says.
        tokenizer: Of the runs.

    Raises:
        InputError: The model cannot be loaded, or its adapter is no change of weights.
    """
    logging.disable(logging.INFO)  # a line per load, of which there are many
    try:
        checkpoint = read_checkpoint(replace(model_args, model_name_or_path=str(member.folder)))
        if checkpoint.adapter and member.run["config"].get("from_scratch"):
            raise InputError("its adapter belongs to new weights, which are not saved")
        model = load_checkpoint(checkpoint, tokenizer)
        return fold_adapter(model) if checkpoint.adapter else model
    except InputError as error:
        raise InputError(f"{member.folder}: {error}; --soups false combines the outputs only") from error
    finally:
        logging.disable(logging.NOTSET)


def greedy_soup(
    ranked: list[FinishedRun], score: Callable[[list[FinishedRun]], float], better: Callable[[float, float], bool]
) -> list[FinishedRun]:
    """Choose what goes into a soup: the best member, and each further one that makes the soup no worse on validation.

    Args:
        ranked: The members, best first.
        score: The validation score of the mean of some members.
        better: Whether a first score is better than a second.

    Source: Wortsman et al., Model Soups (2022), recipe 1.
    """
    chosen = ranked[:1]
    best = score(chosen)
    for member in ranked[1:]:
        if not better(best, found := score([*chosen, member])):
            chosen, best = [*chosen, member], found
    return chosen


def cook_soups(
    members: list[FinishedRun],
    load: Callable[[FinishedRun], PreTrainedModel],
    trainer: Callable[..., Any],
    dataset: DatasetDict,
    metrics: Callable[..., dict[str, float]],
) -> dict[str, np.ndarray]:
    """Average the weights of all members, and of those that a greedy choice on validation keeps; save both models.

    Args:
        members: As they were read.
        load: Returns the model of a member, as `load_member` does.
        trainer: Returns a `RecipeTrainer` for a `model`; its `output_dir` gets a folder for each soup.
        dataset: Tokenized, with `validation` and `test`.
        metrics: `metrics(prediction)`.

    Returns:
        The logits `[rows, labels]` that each soup predicts for the test split.

    Raises:
        InputError: The test rows are not those of the runs, or a model cannot be averaged.
    """
    metric = members[0].main_metric
    if [str(name) for name in dataset["test"]["id"]] != members[0].ids:
        raise InputError("the test split has other rows now than when the runs predicted it; see --runs")

    def average(chosen: list[FinishedRun]):
        return trainer(model=average_weights(load(member) for member in chosen))

    def score(chosen: list[FinishedRun]) -> float:
        value = float(metrics(average(chosen).predict(dataset["validation"]))[metric])
        logger.info("validation %s %.4f: weights of %s", metric, value, ", ".join(str(run.folder) for run in chosen))
        return value

    soups = zip(SOUPS, (members, greedy_soup(by_validation(members), score, is_better(metric))), strict=True)
    logits = {}
    for name, chosen in soups:
        cooked = average(chosen)
        cooked.model.config.averaged_runs = [run.folder.name for run in chosen]
        cooked.save_model(str(Path(cooked.args.output_dir) / name.replace(" ", "_")))
        logits[name] = cooked.predict(dataset["test"]).predictions
    return logits


def finish_soups(
    results: dict[str, Any],
    members: list[FinishedRun],
    run: dict[str, Any],
    data_args: DatasetArguments,
    output_dir: Path,
) -> None:
    """Make of each soup's folder a finished run, which can be compared, pushed and shown like any other.

    It gets its predictions, every score on test with its interval, and a card with the validation scores of what was
    averaged.

    Args:
        results: As `score_systems` returned them, which has written what each system predicts.
        members: As they were read.
        run: What `start_run` returned, with the report of the data.
        data_args: Those of the members, by which a reader of the results knows how the texts were read.
        output_dir: Where `cook_soups` has saved the soups.
    """
    known = {"seconds": {"total": round(seconds_since_start(), 1)}, "peak_memory_gib": peak_memory(run["device"])}
    known["config"] = {k: v for k, v in members[0].run["config"].items() if hasattr(data_args, k)} | run["config"]
    known |= {
        name: value for name, value in members[0].run.items() if name.startswith("base_model") or name == "lineage"
    }
    for name in SOUPS:
        folder = output_dir / name.replace(" ", "_")
        averaged = json.loads((folder / "config.json").read_text(encoding="utf-8"))["averaged_runs"]
        merged = {
            str(member.folder): {
                metric: {"value": value, "ci95": [None, None]} for metric, value in member.run["validation"].items()
            }
            for member in members
            if member.folder.name in averaged
        }
        lines = read_lines(output_dir / "predictions" / f"{folder.name}.jsonl")
        write_lines(folder / PREDICTIONS, lines)
        score, _ = classifier_scores(lines, run["data"]["problem_type"], run["data"]["label_names"])
        metrics = with_intervals(lambda _, weights=None, score=score: score(weights), EvalPrediction(lines, lines))
        soup = {"split": "test", "metrics": metrics, "run": run | known | {"merged": merged}}
        write_model_card(folder, soup, "text-classification", str(folder))
        write_text(folder / "results.json", json.dumps(soup, indent=2, allow_nan=False) + "\n")
