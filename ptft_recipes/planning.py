"""What a long training will take: from a few measured steps to days, devices and cost."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ptft_recipes import launching
from ptft_recipes.errors import InputError
from ptft_recipes.finished_runs import read_results
from ptft_recipes.shipped import find_shipped, shipped_files
from ptft_recipes.significance import bootstrap_intervals


def measure_throughput(
    recipe: str, flags: Sequence[str], steps: int, accelerate_config: str | None = None
) -> dict[str, Any]:
    """Let a recipe train a few steps in processes of its own, and return how fast it was.

    Args:
        recipe: The name of one of the collection, or a file.
        flags: Of the recipe.
        steps: To time, after some to warm up.
        accelerate_config: For `accelerate launch`; by default it starts a process, or one per GPU.

    Returns:
        The report of `throughput.ThroughputCallback`, with `tokens_per_second` of all processes, `interval`, a 95 %
        bootstrap interval of it over the steps, `utilisation`, the share of the FLOP per second of large matrix
        products, and `recipe`.

    Raises:
        InputError: There is no such recipe, it does not train, or it refused its flags or data; with its reason.
    """
    path = Path(recipe) if os.path.isfile(recipe) else shipped_files()[find_shipped(recipe)]
    command = [*launching.LAUNCH, *(["--config_file", accelerate_config] if accelerate_config else [])]
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder, "report.json"), Path(folder, "log")
        command += ["-m", "ptft_recipes.throughput", str(report), str(steps), str(path), *flags]
        with log.open("wb") as file:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, preexec_fn=launching.DIE_WITH_PARENT
            ).returncode
        if not report.is_file():
            early = f"it ended before {steps} steps; is it a recipe that trains?"
            reason = launching.why_it_failed(log) if code else early
            raise InputError(f"{path.stem} could not be measured: {reason}")
        found = json.loads(report.read_text())
    return describe_speed(found | {"recipe": path.stem})


def describe_speed(report: dict[str, Any]) -> dict[str, Any]:
    """Add tokens per second, their interval over the steps, and the utilisation to a report of steps.

    >>> report = {"step_seconds": [1.0, 1.0], "step_tokens": [50, 150], "flop_per_token": 6.0}
    >>> speed = describe_speed(report | {"gemm_flop_per_second": 1200.0})
    >>> speed["tokens_per_second"], speed["utilisation"]
    (100.0, 0.5)
    """
    seconds, tokens = np.asarray(report["step_seconds"]), np.asarray(report["step_tokens"])

    def score(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"rate": weights @ tokens / (weights @ seconds)}

    rate = float(score(np.ones(len(seconds)))["rate"])
    return report | {
        "tokens_per_second": rate,
        "interval": bootstrap_intervals(score, len(seconds), vectorized=True)["rate"],
        "utilisation": rate * report["flop_per_token"] / report["gemm_flop_per_second"],
    }


def format_speed(speed: dict[str, Any]) -> str:
    """Return what `measure_throughput` found, in two lines."""
    low, high = speed["interval"]
    return (
        f"measured: {speed['tokens_per_second']:,.0f} tokens per second [{low:,.0f}, {high:,.0f}], without padding; "
        f"{speed['processes']} process(es), {speed['device']}, {speed['precision']}\n"
        f"  {speed['parameters']:,} weights, {speed['flop_per_token'] / 1e9:.3g} GFLOP per token; utilisation "
        f"{speed['utilisation']:.0%} of {speed['gemm_flop_per_second'] / 1e12:.3g} TFLOP/s (large matrix products)"
    )


def make_plan(
    tokens: float,
    devices: Sequence[int],
    tokens_per_second: float,
    price_per_hour: float | None = None,
    efficiency: float = 1.0,
) -> list[dict[str, Any]]:
    """Say how long the training takes on so many devices, and what it costs.

    Args:
        tokens: To train on, those of all epochs.
        devices: Numbers of devices.
        tokens_per_second: Of one device.
        price_per_hour: Of one device.
        efficiency: Share of its speed that a device keeps beside others; of a single one nothing is taken.

    >>> make_plan(864e6, [1, 10], 1000, price_per_hour=2, efficiency=0.5)[1]
    {'devices': 10, 'tokens_per_day': 432000000.0, 'days': 2.0, 'device_hours': 480.0, 'cost': 960.0}
    """
    rows = []
    for count in devices:
        per_day = 86400 * tokens_per_second * count * (efficiency if count > 1 else 1)
        hours = 24 * count * tokens / per_day
        cost = {} if price_per_hour is None else {"cost": hours * price_per_hour}
        rows.append(
            {"devices": count, "tokens_per_day": per_day, "days": tokens / per_day, "device_hours": hours} | cost
        )
    return rows


def format_plan(rows: list[dict[str, Any]]) -> str:
    """Return a plan as a Markdown table."""
    heads = ["devices", "tokens per day", "days", "device-hours", *(["cost"] if "cost" in rows[0] else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{'---:|' * len(heads)}"]
    for row in rows:
        cells = [f"{row['devices']:,}", f"{row['tokens_per_day']:,.3g}"]
        cells += [f"{row[name]:,.0f}" if row[name] > 100 else f"{row[name]:.2g}" for name in ("days", "device_hours")]
        cells += [f"{row['cost']:,.0f}"] if "cost" in row else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def check_plan(folder: str | Path, speed: dict[str, Any]) -> dict[str, Any]:
    """Compare the speed of a few steps with what a finished run took, evaluations and saving included.

    Args:
        folder: Of the run.
        speed: As `measure_throughput` returned it.

    Returns:
        `tokens` and `seconds` of the run's training, the `planned_seconds`, and their `ratio`.

    Raises:
        InputError: The run has no record of its tokens.
    """
    run = read_results(Path(folder, "results.json"))["run"]
    rate, seconds = run.get("tokens_per_second"), run["seconds"].get("train")
    if not (rate and seconds):
        raise InputError(
            f"{folder}: results.json has no tokens per second of a training; a stream, for one, does not count them"
        )
    planned = rate * seconds / speed["tokens_per_second"]
    return {"tokens": rate * seconds, "seconds": seconds, "planned_seconds": planned, "ratio": seconds / planned}


def format_check(folder: str | Path, check: dict[str, Any]) -> str:
    """Return what `check_plan` found, in a line."""
    return (
        f"{folder}: {check['tokens']:,.0f} tokens in {check['seconds']:,.0f} s of training, evaluations and saving in "
        f"it; by the steps {check['planned_seconds']:,.0f} s: it took {check['ratio']:.2f} times that"
    )
