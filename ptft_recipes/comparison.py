"""Arms of finished runs, compared on one test set: means over seeds, paired differences, corrected p-values."""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ptft_recipes.errors import InputError, nearest
from ptft_recipes.finished_runs import FinishedRun, check_metric, how_tests_differ, read_run
from ptft_recipes.significance import (
    bootstrap_intervals,
    detectable_difference,
    holm,
    paired_bootstrap,
    seeds_and_examples,
)
from ptft_recipes.study_files import STUDY_FILE, read_study

# Of a configuration, what two runs of one arm may differ in: it leaves what they are alike.
NOT_OF_THE_ARM = ("seed", "data_seed", "output_dir", "run_name", "hub_model_id")
UNNAMED = ""

Arms = dict[str, list[FinishedRun]]


def find_arms(runs: Sequence[str]) -> tuple[dict[str, list[Path]], str | None, list[str]]:
    """Return the folders of arms that a command line names.

    Args:
        runs: Folders of runs, `name=pattern` of folders that make an arm, or the folder of a study.

    Returns:
        Per arm its folders, under `UNNAMED` those whose arm their configuration decides; the baseline that a study
        names; and what is to be said of its arms.

    Raises:
        InputError: A pattern that matches nothing, or a study that cannot be read.
    """
    arms: dict[str, list[Path]] = {}
    baseline, remarks = None, []
    for text in runs:
        name, equals, pattern = text.partition("=")
        if not equals or os.path.exists(text):
            name, pattern = UNNAMED, text
        found = sorted(map(Path, glob.glob(os.path.expanduser(pattern))))
        if not found:
            raise InputError(f"--runs {text}: no such folder")
        for folder in found:
            if (folder / STUDY_FILE).is_file():
                study = read_study(folder / STUDY_FILE, None, folder)
                baseline = baseline or study.baseline
                remarks += study.shared_stages()
                for arm in study.arms:
                    arms.setdefault(arm, []).extend(study.folder(arm, seed) for seed in study.seeds)
            else:
                arms.setdefault(name, []).append(folder)
    return arms, baseline, remarks


def read_arms(folders: dict[str, Iterable[Path]]) -> tuple[Arms, list[str]]:
    """Read the runs of arms, and leave out those that cannot be compared with the rest.

    Args:
        folders: As `find_arms` returned them.

    Returns:
        The runs of each arm, by seed; and for each folder that is left out, why: it cannot be read, it is not
        finished, its test data are not those of most others, or its seed stands twice in an arm.

    Raises:
        InputError: Nothing is left.
    """
    runs, left_out = [], []
    for name, paths in folders.items():
        if name != UNNAMED and (missing := [path for path in paths if not path.exists()]):
            where = ", ".join(path.name for path in missing)
            left_out.append(f"{name}: not there: {where} in {missing[0].parent}")
        for path in dict.fromkeys(path for path in paths if name == UNNAMED or path.exists()):
            try:
                runs.append((name, read_run(path)))
            except InputError as error:
                left_out.append(str(error))
    if not runs:
        raise InputError("no finished run to compare: " + "; ".join(left_out))
    tests = Counter(_test_key(run) for _, run in runs)
    common = next(run for _, run in runs if _test_key(run) == tests.most_common(1)[0][0])
    kept = []
    for name, run in runs:
        if how := how_tests_differ(run, common):
            left_out.append(f"{run.folder}: not the test data of {common.folder}: {how}")
        else:
            kept.append((name, run))
    arms: Arms = {}
    for name, run in kept:
        arms.setdefault(name, []).append(run)
    arms = _name_arms(arms.pop(UNNAMED, [])) | arms
    for name, of_arm in arms.items():
        by_seed: dict[int, FinishedRun] = {}
        for run in of_arm:
            if (first := by_seed.setdefault(run.seed, run)) is not run:
                left_out.append(f"{run.folder}: seed {run.seed} stands twice in the arm {name}, as {first.folder} too")
        arms[name] = [by_seed[seed] for seed in sorted(by_seed)]
    left_out += [f"{name}: an arm without results" for name in folders if name != UNNAMED and name not in arms]
    return arms, left_out


def _test_key(run: FinishedRun) -> str:
    test = run.run["data"]["fingerprint"].get("test")
    return hashlib.sha256(repr((run.labels, run.ids, run.truth, test)).encode()).hexdigest()


def _name_arms(runs: list[FinishedRun]) -> Arms:
    """Form arms of runs whose configuration is the same but for the seed, and name them by what sets them apart."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(_settings(run).items())), []).append(run)
    # First by what their folders have in common, as in lora_42, lora_43.
    folders = [[run.folder.resolve().name for run in group] for group in groups.values()]
    names = [os.path.commonprefix(of_group) for of_group in folders]  # noqa: RUF071 - characters are meant
    names = [re.sub(r"[\W_]*(seed)?[\W_]*\d*$", "", name) if len(groups) > 1 else name for name in names]
    if "" in names or len(set(names)) < len(names):
        settings = [_settings(group[0]) for group in groups.values()]
        keys = sorted({key for one in settings for key in one if len({repr(of.get(key)) for of in settings}) > 1})
        names = [" ".join(f"{key}={one[key]}" for key in keys if key in one) or "defaults" for one in settings]
    return dict(zip(names, groups.values(), strict=True))


def _settings(run: FinishedRun) -> dict[str, Any]:
    config = {key: value for key, value in run.run["config"].items() if key not in NOT_OF_THE_ARM}
    return config | {"recipe": run.run["recipe"]}


class _ArmScores:
    """The scores of an arm's runs `[samples, seeds]`, kept: the baseline has the same samples in each comparison."""

    def __init__(self, runs: list[FinishedRun], metric: str):
        self.runs, self.metric, self.kept = runs, metric, {}

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        key = hashlib.sha256(np.ascontiguousarray(weights)).digest()
        if key not in self.kept:
            columns = [run.scores(weights, self.metric) for run in self.runs]
            self.kept[key] = np.stack(columns, axis=1)
        return {self.metric: self.kept[key]}

    def of_seeds(self, seeds: Sequence[int]) -> "_SomeScores":
        return _SomeScores(self, [i for i, run in enumerate(self.runs) if run.seed in seeds])


class _SomeScores:
    """Those of some of its seeds."""

    def __init__(self, scores: _ArmScores, columns: list[int]):
        self.scores, self.columns = scores, columns

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[:, self.columns] for name, values in self.scores(weights).items()}

    def mean(self, weights: np.ndarray) -> np.ndarray:
        return self(weights)[self.scores.metric].mean(axis=1)


def compare_arms(
    arms: Arms, baseline: str | None = None, metric: str | None = None, resamples: int = 1000, confidence: float = 0.95
) -> dict[str, Any]:
    """Compare every arm with the baseline, on the examples of the test set and the seeds that both have.

    With two seeds or more in both arms, intervals and p-values are of further seeds and further examples
    (`significance.seeds_and_examples`). With one, they are over the test examples alone, and the row says so.

    Args:
        arms: As `read_arms` returned them.
        baseline: An arm; the first one when None.
        metric: That all runs have; by default the one by which the first run of the baseline chose its epoch.
        resamples: Bootstrap samples.
        confidence: Coverage of the intervals.

    Returns:
        `{"metric", "baseline", "confidence", "rows_of_test", "test", "arms": [one row per arm]}`, as JSON has it, and
        `remarks` and `left_out`, empty, for what `find_arms` and `read_arms` say. In a row, `p` is corrected by Holm's
        method over the arms, and `detectable` is the smallest true difference that these test examples show with a
        chance of 80 % (at 5 %, uncorrected), were there ever so many seeds.

    Raises:
        InputError: No such arm or metric, or options that make no interval.
    """
    if not 0 < confidence < 1:
        raise InputError(f"--confidence {confidence}: give a share between 0 and 1, such as 0.95")
    if resamples < 100:
        raise InputError(f"--resamples {resamples}: too few for an interval; give 1000, or at least 100")
    baseline = next(iter(arms)) if baseline is None else baseline
    if baseline not in arms:
        raise InputError(
            f"--baseline {baseline}: no such arm with results{nearest(baseline, arms)} ({', '.join(arms)})"
        )
    first = arms[baseline][0]
    metric = metric or first.main_metric
    for runs in arms.values():
        check_metric(runs[0], metric)
    scores = {name: _ArmScores(runs, metric) for name, runs in arms.items()}
    options = {"resamples": resamples, "confidence": confidence, "vectorized": True}
    rows = []
    for name, runs in arms.items():
        row = _describe_arm(name, runs) | _mean(scores[name], len(first.ids), options)
        if name != baseline:
            row |= _difference(scores[name], scores[baseline], len(first.ids), options)
        rows.append(row)
    compared = [row for row in rows if row.get("p_uncorrected") is not None]
    for row, p in zip(compared, holm([row["p_uncorrected"] for row in compared]), strict=True):
        row["p"] = p
    return {
        "metric": metric,
        "baseline": baseline,
        "confidence": confidence,
        "resamples": resamples,
        "rows_of_test": len(first.ids),
        "test": {"name": first.run["data"].get("name"), "fingerprint": first.run["data"]["fingerprint"].get("test")},
        "arms": rows,
        "remarks": [],
        "left_out": [],
    }


def _mean(scores: _ArmScores, rows: int, options: dict[str, Any]) -> dict[str, Any]:
    by_seed = scores(np.ones((1, rows)))[scores.metric][0]
    row: dict[str, Any] = {"scores": [None if np.isnan(score) else float(score) for score in by_seed]}
    if len(by_seed) > 1:
        found = seeds_and_examples(scores, rows, **options)[scores.metric]
        return row | {"mean": found.value, "interval": found.interval, "over": "seeds and test examples"}

    def of_the_one(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {scores.metric: scores(weights)[scores.metric][:, 0]}

    interval = bootstrap_intervals(of_the_one, rows, **options)[scores.metric]
    return row | {"mean": row["scores"][0], "interval": interval, "over": "test examples alone"}


def _difference(arm: _ArmScores, baseline: _ArmScores, rows: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the difference of two arms: on the seeds that both have, or if these are too few, on all of them."""
    common = sorted({run.seed for run in arm.runs} & {run.seed for run in baseline.runs})
    several = min(len(arm.runs), len(baseline.runs)) > 1
    paired = len(common) > several
    seeds = [common if paired else [run.seed for run in scores.runs] for scores in (arm, baseline)]
    some, others = arm.of_seeds(seeds[0]), baseline.of_seeds(seeds[1])

    def either(weights: np.ndarray) -> dict[str, np.ndarray]:  # `[samples, 2 * rows]`, of which one half is 0
        first, second = np.hsplit(weights, 2)
        return {arm.metric: some.mean(first) if first.any() else others.mean(second)}

    found = over_examples = paired_bootstrap(either, rows, **options)[arm.metric]
    if several:
        found = seeds_and_examples(some, rows, others, paired_seeds=paired, **options)[arm.metric]
    error = over_examples.standard_error
    return {
        "difference": found.value,
        "difference_interval": found.interval,
        "p_uncorrected": found.p_value,
        "detectable": None if error is None else detectable_difference(error),
        "difference_over": "seeds and test examples" if several else "test examples alone",
        "paired_seeds": common if paired else [],
    }


def _describe_arm(name: str, runs: list[FinishedRun]) -> dict[str, Any]:
    """Return the seeds of an arm and what it costs: mean seconds of a run, highest memory, weights that move."""
    memory = [run.run.get("peak_memory_gib") or {} for run in runs]
    kind = "cuda" if all("cuda" in one for one in memory) else "resident"
    return {
        "arm": name,
        "seeds": [run.seed for run in runs],
        "folders": [str(run.folder) for run in runs],
        "seconds": float(np.mean([run.run["seconds"]["total"] for run in runs])),
        "resumed": sum("resumed" in run.run for run in runs),  # whose seconds are those since then
        "peak_memory_gib": max((one.get(kind, 0.0) for one in memory), default=0.0),
        "memory": kind,
        "trainable_parameters": runs[0].run.get("trainable_parameters"),
        "total_parameters": runs[0].run.get("total_parameters"),
    }
