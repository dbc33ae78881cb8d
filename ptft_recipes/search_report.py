"""What a search shows for itself: a line per trial, a table, the history, the importance of the options."""

import csv
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ptft_recipes.reporting import plot_importance, plot_trials
from ptft_recipes.search_space import Search

LINE = 80  # columns
# Fewer complete trials say nothing about which option was important.
FEW = 8
ENDED = COMPLETE, PRUNED, FAILED = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


def format_trial(trial: FrozenTrial, study: optuna.Study, search: Search) -> str:
    """Return a line of at most 80 columns: how a trial ended, the best so far, and the point of the space.

    Where the names of the options have no room, it has their values in the order of the space.
    """
    score = next(reversed(trial.intermediate_values.values()), None) if trial.state == PRUNED else trial.value
    parts = [{COMPLETE: "", PRUNED: "pruned at ", FAILED: "failed"}[trial.state] + short(score) * (score is not None)]
    if study.get_trials(deepcopy=False, states=(COMPLETE,)):
        parts.append(f"best {short(study.best_value)} ({study.best_trial.number})")
    same = trial.user_attrs.get("as")
    parts.append(f"{trial.user_attrs.get('seconds', 0):.0f} s" if same is None else f"as trial {same}")
    parts.append(f"{search.trials - trial.number - 1} to go")
    values = [short(value, 3) for value in trial.params.values()]
    named = ", ".join(f"{name} {value}" for name, value in zip(trial.params, values, strict=True))
    points = [reason] if (reason := trial.user_attrs.get("reason")) else [named, ", ".join(values)]
    lines = [f"trial {trial.number}: {', '.join(parts)}; {point}" for point in points]
    return next((line for line in lines if len(line) <= LINE), f"{lines[-1][: LINE - 1]}…")


def short(value: Any, digits: int = 4) -> str:
    """Return a score, or the value of an option, with so many digits."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def write_trials(study: optuna.Study, search: Search, path: Path) -> None:
    """Write a CSV file with a row per trial that has ended.

    Args:
        study: Of the search.
        search: For the names of the options.
        path: Of the file.
    """
    columns = ["trial", "state", search.metric, *search.space, "seconds", "same_as", "reason"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for trial in study.get_trials(deepcopy=False, states=ENDED):
            point = [trial.params.get(name) for name in search.space]
            told = [trial.user_attrs.get(name) for name in ("seconds", "as", "reason")]
            writer.writerow([trial.number, trial.state.name.lower(), trial.value, *point, *told])


def plot_study(study: optuna.Study, search: Search, folder: Path) -> dict[str, float]:
    """Draw the history of a search and, from eight complete trials on, how important each option was.

    Args:
        study: Of the search.
        search: As it was read.
        folder: Of the PNG files.

    Returns:
        `{option: share}`, empty where there are too few trials to say.

    Source: Watanabe et al., PED-ANOVA (2023).
    """
    ended = study.get_trials(deepcopy=False, states=ENDED)
    pruned = [trial.state == PRUNED for trial in ended]
    plot_trials([trial.value for trial in ended], pruned, search.metric, search.maximize, folder / "history.png")
    if len(study.get_trials(deepcopy=False, states=(COMPLETE,))) < FEW:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
    importance = optuna.importance.get_param_importances(study, evaluator=evaluator)
    plot_importance(importance, folder / "importance.png")
    return importance
