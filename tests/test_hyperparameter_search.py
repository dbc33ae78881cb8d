"""Trials go on where a process was killed, fail without stopping the rest, and are pruned at equal epochs."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy import Engine, event

from ptft_recipes.errors import InputError, StoppedBySignal
from ptft_recipes.hyperparameter_search import TrialCallback, open_study, run_trials
from ptft_recipes.search_report import format_trial, plot_study, short
from ptft_recipes.search_space import Search

CHOICES = CategoricalDistribution(["1e-3", "2e-3", "3e-3", "1", "4e-3"])
RATE = {"learning_rate": FloatDistribution(1e-5, 1e-1, log=True)}


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """A study writes dozens of times per trial, each of which SQLite would take to the disk."""
    monkeypatch.setattr("ptft_recipes.hyperparameter_search.clear_device_cache", lambda **kwargs: None)

    def connected(connection, record):
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)


class Killed(BaseException):
    """What no code can catch in the process itself."""


class Recipe:
    """Stands for a recipe: three epochs, whose score is the better the nearer the learning rate is to 1e-3."""

    __name__ = "recipe"

    def __init__(self, at_step=lambda call, epoch: None):
        self.calls, self.at_step, self.after_evaluation = [], at_step, lambda call, epoch: None
        self.fingerprint = {"train": "a", "validation": "b", "test": "c"}

    def score(self, options):
        return 1 / (1 + abs(float(options.get("learning_rate", 1e-3)) - 1e-3))

    def main(self, argv, callbacks):
        options = dict(flag.removeprefix("--").split("=", 1) for flag in argv)
        self.calls.append(options)
        assert options["do_predict"] == "false"
        arguments = SimpleNamespace(metric_for_best_model="macro_f1")
        for callback in callbacks:
            callback.on_train_begin(arguments, None, None)
        for epoch in (1, 2, 3):
            for callback in callbacks:
                callback.on_step_begin(arguments, None, None)
            self.at_step(len(self.calls) - 1, epoch)
            for callback in callbacks:
                metrics = {"eval_macro_f1": self.score(options) * epoch / 3}
                callback.on_evaluate(arguments, SimpleNamespace(epoch=float(epoch)), None, metrics)
            self.after_evaluation(len(self.calls) - 1, epoch)
        run = {"validation": {"macro_f1": self.score(options)}, "data": {"fingerprint": self.fingerprint}}
        folder = Path(options["output_dir"])
        (folder / "checkpoint-3").mkdir(parents=True)
        (folder / "model.safetensors").write_text("weights")
        (folder / "results.json").write_text(json.dumps({"metrics": {}, "run": run}))


def make(recipe=None, space=RATE, **options):
    options = {"trials": 6, "startup_trials": 2, "pruner": "none"} | options
    return Search(recipe or Recipe(), [], [], {"model": "tiny"}, space, {}, "macro_f1", True, **options)


def run(search, folder):
    study = open_study(search, folder)
    run_trials(study, search, folder)
    return study


def points(study):
    return [(trial.state, trial.params, trial.value, trial.intermediate_values) for trial in study.trials]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_points_differ_and_the_best_is_found_again_from_the_file(sampler, tmp_path):
    search = make(sampler=sampler)
    study = run(search, tmp_path)
    assert len({trial.params["learning_rate"] for trial in study.trials}) == len(search.recipe.calls) == 6
    assert study.best_value == max(trial.value for trial in study.trials)
    again = open_study(search, tmp_path)
    assert points(again) == points(study)
    run_trials(again, search, tmp_path)
    assert len(search.recipe.calls) == 6, "nothing is left to do"
    run(make(search.recipe, sampler=sampler, trials=8), tmp_path)
    assert len(search.recipe.calls) == 8, "more trials are no other search"


def test_a_grid_takes_every_point_once(tmp_path):
    space = {"size": CategoricalDistribution(["8", "16"]), "epochs": IntDistribution(1, 3)}
    search = make(space=space, sampler="grid", trials=6)
    assert len(search.grid()) == 6
    study = run(search, tmp_path)
    assert [trial.params for trial in study.trials] == search.grid()
    assert len(search.recipe.calls) == 6


@pytest.mark.parametrize(
    ("sampler", "epoch", "pruner"), [("tpe", 1, "median"), ("random", 3, "none"), ("grid", 1, "median")]
)
def test_a_killed_search_ends_as_if_it_had_not_been(sampler, epoch, pruner, tmp_path):
    space = RATE if sampler != "grid" else {"learning_rate": CategoricalDistribution([str(i) for i in range(6)])}
    expected = run(make(space=space, sampler=sampler, pruner=pruner), tmp_path / "whole")

    def kill(call, at):
        if (call, at) in ((1, epoch), (4, epoch)):
            raise Killed

    search = make(Recipe(kill), space, sampler=sampler, pruner=pruner)
    for _ in range(2):
        with pytest.raises(Killed):
            run(search, tmp_path / "killed")
    study = run(search, tmp_path / "killed")
    assert points(study) == points(expected)
    assert len(search.recipe.calls) == 8
    assert search.recipe.calls[1] == search.recipe.calls[2], "the same trial in the same folder goes on"


def test_a_trial_that_ended_unrecorded_is_not_run_again(tmp_path, monkeypatch):
    search = make(trials=1)
    study = open_study(search, tmp_path)
    monkeypatch.setattr(study, "tell", lambda *args: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run_trials(study, search, tmp_path)
    study = run(search, tmp_path)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]
    assert len(search.recipe.calls) == 1


def test_a_trial_in_which_the_process_dies_again_and_again_is_given_up(tmp_path):
    def kill(call, epoch):
        if 1 <= call <= 3:
            raise Killed

    search = make(Recipe(kill), trials=3)
    for _ in range(3):
        with pytest.raises(Killed):
            run(search, tmp_path)
    study = run(search, tmp_path)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[1].user_attrs["reason"] == "the process was killed in it 3 times"


def test_a_signal_is_no_failure_however_often(tmp_path):
    def stop(call, epoch):
        if call < 5:
            raise StoppedBySignal("SIGTERM at step 3")

    search = make(Recipe(stop), trials=1)
    for _ in range(5):
        with pytest.raises(StoppedBySignal):
            run(search, tmp_path)
    assert [trial.state for trial in run(search, tmp_path).trials] == [TrialState.COMPLETE]


def test_failures_are_kept_with_their_reason_and_stop_nothing(tmp_path, library_log):
    def fail(call, epoch):
        if call in (1, 2, 3, 4):
            raise (FloatingPointError("loss nan at step 3"), SystemExit(2), MemoryError("no\nroom"), ValueError())[
                call - 1
            ]

    search = make(Recipe(fail))
    study = run(search, tmp_path)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", *["FAIL"] * 4, "COMPLETE"]
    reasons = [trial.user_attrs.get("reason") for trial in study.trials]
    assert reasons[1:4] == ["FloatingPointError: loss nan at step 3", "SystemExit: 2", "MemoryError: no room"]
    assert "Traceback" in (tmp_path / "trials" / "1" / "log.txt").read_text()
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [row["reason"] for row in rows][1] == reasons[1]
    assert [row["state"] for row in rows] == ["complete", "fail", "fail", "fail", "fail", "complete"]
    assert "trial 1: failed, best" in library_log.text


def test_when_nothing_gets_through_it_stops(tmp_path):
    def fail(call, epoch):
        raise InputError("train.csv: no such file")

    search = make(Recipe(fail))
    with pytest.raises(
        InputError, match=r"the first 3 trials all failed; the last one: InputError: train\.csv: no such"
    ):
        run(search, tmp_path)


def test_a_trial_worse_than_the_median_at_the_same_epoch_is_pruned(tmp_path):
    search = make(space={"learning_rate": CHOICES}, sampler="grid", trials=5, pruner="median")
    study = run(search, tmp_path)
    states = dict(zip(CHOICES.choices, [trial.state for trial in study.trials], strict=True))
    assert states["1"] == TrialState.PRUNED
    assert [*study.trials[3].intermediate_values] == [100], "epochs in hundredths; cut short after the first"
    assert not (tmp_path / "trials" / "3" / "results.json").exists()
    later = make(space={"learning_rate": CHOICES}, sampler="grid", trials=5, pruner="median", prune_from_epoch=2)
    assert [*run(later, tmp_path / "later").trials[3].intermediate_values] == [100, 200]
    kept = run(make(space={"learning_rate": CHOICES}, sampler="grid", trials=5), tmp_path / "none")
    assert {trial.state for trial in kept.trials} == {TrialState.COMPLETE}


def test_a_signal_at_the_evaluation_that_prunes_is_obeyed_and_the_trial_pruned_later(tmp_path):
    def stop(call, epoch):
        if call == 3:
            raise StoppedBySignal("SIGTERM at step 3")

    search = make(space={"learning_rate": CHOICES}, sampler="grid", trials=5, pruner="median")
    search.recipe.after_evaluation = stop
    with pytest.raises(StoppedBySignal):
        run(search, tmp_path)
    study = run(search, tmp_path)
    assert study.trials[3].state == TrialState.PRUNED
    assert [*study.trials[3].intermediate_values] == [100]


def test_steps_are_epochs_so_that_batch_sizes_can_be_compared(tmp_path):
    search = make()
    trial = open_study(search, tmp_path).ask()
    callback = TrialCallback(trial)
    arguments = SimpleNamespace(metric_for_best_model="eval_loss")
    for epoch, score in ((0.5, 3.0), (1.0, float("nan")), (1.5, 2.0), (1.5, 9.0)):
        state = SimpleNamespace(epoch=epoch, global_step=7)
        callback.on_evaluate(arguments, state, None, {"eval_loss": score})
    assert trial.study.trials[0].intermediate_values == {50: 3.0, 150: 2.0}, "no nan; none twice"


def test_the_same_point_is_not_trained_twice(tmp_path, library_log):
    search = make(space={"learning_rate": CategoricalDistribution(["1e-3", "1"])}, trials=8, pruner="median")
    study = run(search, tmp_path)
    assert len(search.recipe.calls) == 2
    assert len(study.trials) == 8
    by_point = {(trial.params["learning_rate"], trial.state, trial.value) for trial in study.trials}
    assert len(by_point) == 2
    assert ", as trial 0, " in library_log.text


def test_of_a_trial_its_scores_are_kept_and_not_its_weights(tmp_path):
    run(make(trials=1), tmp_path)
    assert {path.name for path in (tmp_path / "trials" / "0").iterdir()} == {"log.txt", "results.json"}


def test_a_score_that_is_not_finite_is_a_failure(tmp_path):
    recipe = Recipe()
    recipe.score = lambda options: None if len(recipe.calls) == 2 else 0.5
    recipe.at_step = lambda call, epoch: None
    search = make(recipe, trials=2)
    recipe.main, main = lambda argv, callbacks: main(argv, []), recipe.main
    study = run(search, tmp_path)
    assert study.trials[1].user_attrs["reason"] == "its validation scores are not finite"


def test_other_data_are_noticed(tmp_path):
    search = make(trials=2)
    run(make(search.recipe, trials=1), tmp_path)
    search.recipe.fingerprint = {"train": "a", "validation": "changed", "test": "c"}
    with pytest.raises(InputError, match="the data have changed since the first trial: validation"):
        run(search, tmp_path)
    search.recipe.fingerprint = {"train": "a", "validation": "b", "test": "c"}
    assert len(run(search, tmp_path).trials) == 2


def test_another_search_is_refused_by_name(tmp_path):
    run(make(trials=1), tmp_path)
    space = {"learning_rate": FloatDistribution(1e-5, 1.0, log=True)}
    for other, name in ((make(space=space), "space.learning_rate"), (make(seed=7), "seed: 42 then, now 7")):
        with pytest.raises(InputError, match=f"is of another search .*{name}"):
            open_study(other, tmp_path)
    other = make()
    other.config = {"model": "large"}
    with pytest.raises(InputError, match=r"arguments\.model: tiny then, now large"):
        open_study(other, tmp_path)


def test_two_processes_do_not_search_in_one_folder(tmp_path):
    code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match="another process is searching"):
            open_study(make(), tmp_path)
        other.communicate(b"\n")
    open_study(make(), tmp_path)


def test_folders_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "study.db").write_bytes(b"no database, but longer than a header of one " * 10)
    with pytest.raises(InputError, match=r"cannot be used: .*not a database"):
        open_study(make(), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be used"):
        open_study(make(), tmp_path / "file")
    assert len(run(make(trials=1), tmp_path / "odd ?#% name").trials) == 1
    assert (tmp_path / "odd ?#% name" / "study.db").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        open_study(make(), tmp_path / "new")


def test_lines_fit_a_terminal_and_plots_are_drawn(tmp_path, library_log):
    space = RATE | {
        "per_device_train_batch_size": CategoricalDistribution(["8", "16"]),
        "weight_decay": FloatDistribution(0, 1),
    }

    def fail(call, epoch):
        if call == 4:
            raise MemoryError("out of memory " * 20)

    search = make(Recipe(fail), space, trials=16, startup_trials=9, pruner="median")
    study = run(search, tmp_path)
    lines = [line for line in library_log.messages if line.startswith("trial ")]
    assert len(lines) == 16
    assert max(map(len, lines)) == 80
    assert lines[5].endswith("; " + ", ".join(short(value, 3) for value in study.trials[5].params.values())), (
        "no names"
    )
    assert lines[0].startswith(
        f"trial 0: {study.trials[0].value:.4g}, best {study.trials[0].value:.4g} (0), 0 s, 15 to go;"
    )
    assert {"complete", "pruned", "fail"} == {row["state"] for row in csv.DictReader((tmp_path / "trials.csv").open())}
    importance = plot_study(study, search, tmp_path / "plots")
    assert max(importance, key=importance.get) == "learning_rate"
    assert sum(importance.values()) == pytest.approx(1)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"history.png", "importance.png"}


def test_few_trials_have_a_history_and_no_importance(tmp_path):
    search = make(trials=3)
    assert plot_study(run(search, tmp_path), search, tmp_path / "plots") == {}
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["history.png"]


def test_a_search_may_minimise(tmp_path):
    search = make(trials=4)
    search.maximize = False
    study = run(search, tmp_path)
    assert study.best_value == min(trial.value for trial in study.trials)
    assert format_trial(study.trials[0], study, search).startswith("trial 0: ")
    assert isinstance(study.sampler, optuna.samplers.TPESampler)
