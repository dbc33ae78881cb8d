"""Trials of a recipe, each a run of its own, judged and pruned by their validation scores."""

import json
import logging
import math
import os
import shutil
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from accelerate.utils.memory import clear_device_cache
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError
from transformers import TrainerCallback

from ptft_recipes.errors import InputError, StoppedBySignal, one_line
from ptft_recipes.evaluation import format_score
from ptft_recipes.logs import log_into
from ptft_recipes.reporting import write_yaml
from ptft_recipes.search_report import COMPLETE, ENDED, FAILED, PRUNED, format_trial, short, write_trials
from ptft_recipes.search_space import Search

logger = logging.getLogger(__name__)

# Of every trial, whatever the search says.
TRIAL_FLAGS = ["--do_predict=false", "--push_to_hub=false", "--report_to=none", "--disable_tqdm=true"]
# What is kept of a trial; its weights are not.
KEPT = (".lock", "log.txt", "config.yaml", "results.json")
# A trial in which the process was killed so often is not tried again: perhaps it takes all the memory.
DEATHS = 3
# So many failures, before any trial has got through, are no matter of the space.
FAILURES = 3


class TrialCallback(TrainerCallback):
    """Report every validation score to the study, and leave a trial that is not worth going on with.

    The step is the epoch in hundredths. Optuna compares trials at equal steps; those of the optimizer, which Trainer's
    own search reports, are not equal as soon as trials differ in their batch size.

    Args:
        trial: That is running.
    """

    def __init__(self, trial: optuna.Trial):  # noqa: D107
        self.trial, self.is_hopeless = trial, False

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: D102
        self.is_hopeless = self.trial.should_prune()  # one that was stopped after its last evaluation

    def on_evaluate(self, args, state, control, metrics, **kwargs):  # noqa: D102
        score = metrics[f"eval_{args.metric_for_best_model.removeprefix('eval_')}"]
        step = round(100 * state.epoch)
        if step not in _frozen(self.trial).intermediate_values and math.isfinite(score):  # a trial that goes on
            self.trial.report(score, step)
        self.is_hopeless = self.trial.should_prune()

    def on_step_begin(self, args, state, control, **kwargs):
        """Leave a trial that was found to be hopeless; not as soon as that, when SIGTERM may be waiting to be obeyed.

        Raises:
            optuna.TrialPruned: Its last score was worse than the median of other trials at that epoch.
        """
        if self.is_hopeless:
            raise optuna.TrialPruned


def open_study(search: Search, output_dir: str | Path) -> optuna.Study:
    """Open the study of a search, or begin it, in `study.db`; the process keeps the folder to itself.

    Args:
        search: As it was read.
        output_dir: Of the search.

    Raises:
        InputError: The folder cannot be used, another process uses it, or its study is of another search.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("a search is one process; start it with python, not with accelerate launch")
    output_dir = Path(output_dir)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock = FileLock(output_dir / ".lock", timeout=1, is_singleton=True)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        study = optuna.create_study(
            storage=URL.create("sqlite", database=str(output_dir / "study.db")).render_as_string(),
            study_name="search",
            load_if_exists=True,
            direction="maximize" if search.maximize else "minimize",
        )
        then = study.user_attrs.get("search")
    except Timeout:
        raise InputError(f"another process is searching in {output_dir}; wait for it, or stop it") from None
    except (OSError, DatabaseError) as error:
        raise InputError(f"{output_dir} cannot be used: {one_line(error)}") from error
    now = json.loads(json.dumps(search.described()))
    if then is None:
        for point in search.grid() if search.sampler == "grid" else ():
            study.enqueue_trial(point, skip_if_exists=True)
        study.set_user_attr("search", now)
    elif changed := [name for name in (now | then) if now.get(name) != then.get(name)]:
        listed = "; ".join(f"{name}: {then.get(name)} then, now {now.get(name)}" for name in changed)
        raise InputError(f"{output_dir} is of another search ({listed}); choose another --output_dir")
    _locks[:] = [lock]
    return study


_locks: list[FileLock] = []  # held until the process ends or opens another study


def run_trials(study: optuna.Study, search: Search, output_dir: str | Path) -> None:
    """Run the trials that are missing; what a killed process left running is gone on with first.

    A trial that fails is kept with its reason and stops nothing, unless there is nothing yet that got through.

    Args:
        study: Of the search; a search that goes on takes the same points as one that was never stopped, because the
            sampler of every trial has a seed of its own.
        search: As it was read.
        output_dir: Of the search.

    Raises:
        InputError: The first trials all fail, or the data are others than those of earlier trials.
        StoppedBySignal: SIGTERM or Ctrl-C; the trial goes on when the search does.
    """
    output_dir, failures = Path(output_dir), 0
    while (trial := _next_trial(study, search)) is not None:
        state, value, reason = _run_trial(study, trial, search, output_dir)
        if state == FAILED:
            trial.set_user_attr("reason", reason)
        frozen = study.tell(trial, value, None if state == COMPLETE else state)
        _tidy(output_dir / "trials" / str(frozen.number))
        logger.info(format_trial(frozen, study, search))
        write_trials(study, search, output_dir / "trials.csv")
        failures += state == FAILED
        if failures >= FAILURES and not study.get_trials(states=(COMPLETE, PRUNED)):
            raise InputError(f"the first {failures} trials all failed; the last one: {reason}")


def _next_trial(study: optuna.Study, search: Search) -> optuna.Trial | None:
    cut_off = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    number = cut_off[0].number if cut_off else len(study.get_trials(deepcopy=False, states=ENDED))
    if number >= search.trials:
        return None
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    tpe = optuna.samplers.TPESampler(seed=seed, n_startup_trials=search.startup_trials)
    study.sampler = tpe if search.sampler == "tpe" else optuna.samplers.RandomSampler(seed=seed)
    study.pruner = optuna.pruners.NopPruner()
    if search.pruner == "median":
        study.pruner = optuna.pruners.MedianPruner(search.startup_trials, n_warmup_steps=100 * search.prune_from_epoch)
    return optuna.Trial(study, cut_off[0]._trial_id) if cut_off else study.ask()


def _run_trial(
    study: optuna.Study, trial: optuna.Trial, search: Search, output_dir: Path
) -> tuple[TrialState, float | None, str]:
    """Return the state that a trial ends in, its score, and the reason why it failed."""
    params = {name: _suggest(trial, name, distribution) for name, distribution in search.space.items()}
    if twin := _same_point(study, params):
        trial.set_user_attr("as", twin.number)
        for step, score in twin.intermediate_values.items():
            trial.report(score, step)
        return twin.state, twin.value if twin.state == COMPLETE else None, ""
    starts, began = trial.user_attrs.get("starts", 0), time.monotonic()
    if starts >= DEATHS:
        return FAILED, None, f"the process was killed in it {starts} times"
    trial.set_user_attr("starts", starts + 1)
    folder = output_dir / "trials" / str(trial.number)
    try:
        with log_into(folder / "log.txt"):
            if not (folder / "results.json").exists():  # else killed between its end and its entry
                flags = [*search.argv, *search.flags(params), f"--output_dir={folder}", *TRIAL_FLAGS]
                search.recipe.main(flags, callbacks=[TrialCallback(trial)])
        run = json.loads((folder / "results.json").read_text(encoding="utf-8"))["run"]
    except (StoppedBySignal, KeyboardInterrupt):
        trial.set_user_attr("starts", starts)
        raise
    except optuna.TrialPruned:
        return PRUNED, None, ""
    except (Exception, SystemExit) as error:
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        return FAILED, None, one_line(f"{type(error).__name__}: {error}")
    finally:
        trial.set_user_attr("seconds", trial.user_attrs.get("seconds", 0) + round(time.monotonic() - began, 1))
        clear_device_cache(garbage_collection=True)
    then = study.user_attrs.get("data", run["data"]["fingerprint"])
    # Augmented copies are a trial's own.
    prints = {split: now for split, now in run["data"]["fingerprint"].items() if split != "copies"}
    if changed := [split for split, now in prints.items() if now != then.get(split)]:
        shutil.rmtree(folder)  # this trial goes on when the data are what they were
        raise InputError(f"the data have changed since the first trial: {', '.join(changed)}; begin another search")
    study.set_user_attr("data", then)
    score = run["validation"].popitem()[1]
    return (FAILED, None, "its validation scores are not finite") if score is None else (COMPLETE, score, "")


def _suggest(trial: optuna.Trial, name: str, distribution) -> Any:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    is_float = isinstance(distribution, optuna.distributions.FloatDistribution)
    suggest = trial.suggest_float if is_float else trial.suggest_int
    return suggest(name, distribution.low, distribution.high, log=distribution.log)


def _same_point(study: optuna.Study, params: dict[str, Any]) -> FrozenTrial | None:
    """Return an earlier trial of the same point: the same seed would give the same scores."""
    earlier = study.get_trials(deepcopy=False, states=(COMPLETE, PRUNED))
    return next((trial for trial in earlier if trial.params == params), None)


def _frozen(trial: optuna.Trial) -> FrozenTrial:
    return trial.study.get_trials(deepcopy=False)[trial.number]


def _tidy(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in KEPT:
            path.unlink()


def run_winner(study: optuna.Study, search: Search, output_dir: str | Path) -> dict[int, dict[str, Any]]:
    """Write the winner's arguments as `best.yaml`, run the recipe with them, and so score the test split.

    Args:
        study: With all its trials.
        search: As it was read; its `seeds` are those of the runs.
        output_dir: Of the search.

    Returns:
        The results of the run of each seed. A run that is finished is not repeated.

    Raises:
        InputError: No trial got to its end.
    """
    output_dir = Path(output_dir)
    if not study.get_trials(deepcopy=False, states=(COMPLETE,)):
        raise InputError("no trial got to its end: each was pruned, or failed; see trials.csv")
    winner, results = study.best_trial, {}
    write_yaml(output_dir / "best.yaml", search.resolve(winner.params))
    logger.info("%s/best.yaml: the arguments of trial %d, validation %s %s, the best of %d trials", output_dir,
                winner.number, search.metric, short(winner.value), len(study.trials))  # fmt: skip
    for seed in search.seeds:
        folder = output_dir / f"winner-{winner.number}" / f"seed-{seed}"
        if not (folder / "README.md").exists():  # the last file of a run
            flags = [f"--config={output_dir / 'best.yaml'}", f"--seed={seed}", f"--output_dir={folder}"]
            search.recipe.main(flags)
        results[seed] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        metric = next(iter(results[seed]["run"]["validation"]))
        score = results[seed]["metrics"].get(metric)  # none where the test split has no labels
        logger.info("%s: test %s %s", folder, metric, format_score(score) if score else "not scored")
    return results
