"""What a run leaves for people: plots and plain files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

WRITTEN_BY_A_RUN = "# Written by a run. To repeat it: --config <this file> --output_dir <another>"


def write_text(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all, whenever the process is killed."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def dump_yaml(config: dict[str, Any]) -> str:
    """Return a flat configuration as YAML, in its own order, a line per value."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=float("inf"))


def write_yaml(path: Path, config: dict[str, Any]) -> None:
    """Write the configuration of a run below a line that tells it is one."""
    write_text(path, f"{WRITTEN_BY_A_RUN}\n{dump_yaml(config)}")


def plot_confusion_matrix(counts: np.ndarray, label_names: list[str], path: Path) -> None:
    """Draw the shares of each gold label's row; up to 20 labels with numbers, beyond that as colors only.

    Args:
        counts: `[labels, labels]`, gold by predicted.
        label_names: `[labels]`; long ones are cut, and of more than 60 only some are written.
        path: Of the PNG.
    """
    size = len(label_names)
    with_numbers = size <= 20
    # A bitmap has at most 65,535 pixels a side; 16 inches are 2,080.
    side = min(max(2.4, (0.6 if with_numbers else 0.3) * size), 16)
    figure, axes = _figure(width=side + (2 if with_numbers else 3), height=side + 1.4)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(0, size, -(-size // 60))
    names = [label_names[i] if len(label_names[i]) <= 24 else label_names[i][:23] + "…" for i in ticks]
    # A name may hold dollar signs, between which matplotlib would look for a formula.
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="gold")
    if with_numbers:
        axes.set_title("rows, and share of the gold label", fontsize=9)
        for row, column in np.ndindex(counts.shape):
            text = f"{counts[row, column]:.0f}\n{shares[row, column]:.0%}"
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    else:
        figure.colorbar(image, label="share of the gold label", shrink=0.6)
    _save(figure, path)


def plot_reliability(curves: dict[str, np.ndarray], path: Path) -> None:
    """Draw how often claims of each confidence come true, and how many claims there are.

    Args:
        curves: Per name `[bins, 3]`: mean confidence, share that is right, size; as `reliability_curve` returns them.
        path: Of the PNG.
    """
    figure, (left, right) = _figure(width=9, height=3.8, columns=2)
    left.plot([0, 1], [0, 1], ":", color="gray", label="as claimed")
    for name, curve in curves.items():
        left.plot(curve[:, 0], curve[:, 1], "-o", markersize=4, label=name)
        right.step(curve[:, 0], curve[:, 2] / curve[:, 2].sum(), where="mid", label=name)
    left.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1), title="reliability")
    right.set(xlabel="confidence", ylabel="share of the predictions", xlim=(0, 1), title="how confident it is")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    _save(figure, path)


def plot_learning_curves(log_history: list[dict[str, float]], path: Path) -> None:
    """Draw the training and validation loss, and beside them the validation scores, over epochs.

    Args:
        log_history: Trainer's `state.log_history`.
        path: Of the PNG.
    """
    train = [entry for entry in log_history if "loss" in entry]
    validation = [entry for entry in log_history if any(name.startswith("eval_") for name in entry)]
    names = dict.fromkeys(name for entry in validation for name in entry if _is_score(name))
    figure, (left, right) = _figure(width=9, height=3.6, columns=2)
    if train:
        # A line through one point is invisible.
        _draw(left, train, "loss", "train", "." if len(train) == 1 else "", color="tab:blue")
    if any("eval_loss" in entry for entry in validation):
        _draw(left, validation, "eval_loss", "validation", "o", color="tab:orange")
    for name in names:
        _draw(right, validation, name, name.removeprefix("eval_"), "o")
    if any(abs(entry.get(name, 0)) > 1 for entry in validation for name in names):
        right.set_yscale("symlog", linthresh=1)  # squared errors would press correlations into one line
    for axes, title in ((left, "loss"), (right, "validation scores")):
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.set_xlim(left=0)
            axes.legend(fontsize=9)
        else:
            axes.text(0.5, 0.5, "nothing was logged", ha="center", va="center", transform=axes.transAxes)
    _save(figure, path)


def plot_trials(scores: list[float | None], pruned: list[bool], metric: str, maximize: bool, path: Path) -> None:
    """Draw the validation score of every trial of a search, and the best so far.

    Args:
        scores: Of the trials in their order; None for one that failed. One that was pruned has its last score.
        pruned: Which ones were.
        metric: Name of the score.
        maximize: More of it is better.
        path: Of the PNG.
    """
    figure, axes = _figure(width=7, height=3.6)
    values = np.array([np.nan if score is None else score for score in scores], dtype=float)
    numbers, cut, gone = np.arange(len(values)), np.array(pruned, dtype=bool), np.isnan(values)
    whole = np.where(cut, np.nan, values)
    if not np.isnan(whole).all():
        best = (np.fmax if maximize else np.fmin).accumulate(whole)
        axes.plot(numbers, best, "-", drawstyle="steps-post", color="tab:orange", label="best so far")
        axes.plot(numbers, whole, "o", color="tab:blue", markersize=5, label="complete")
    if cut.any():
        axes.plot(numbers[cut], values[cut], "x", color="tab:gray", label="pruned, at its last score")
    if gone.any():
        low = np.nanmin(values) if not gone.all() else 0.0
        axes.plot(numbers[gone], np.full(gone.sum(), low), "v", color="tab:red", label="failed, without a score")
    axes.set(xlabel="trial", ylabel=f"validation {metric}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, fontsize=9)
    _save(figure, path)


def plot_importance(importance: dict[str, float], path: Path) -> None:
    """Draw the share of each option, the most important one on top.

    Args:
        importance: `{option: share}`.
        path: Of the PNG.
    """
    figure, axes = _figure(width=7, height=1.2 + 0.36 * len(importance))
    names = sorted(importance, key=importance.get)
    bars = axes.barh(names, [importance[name] for name in names], color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set(xlabel="importance for reaching the best quarter of the trials (PED-ANOVA)", xlim=(0, 1.08))
    _save(figure, path)


def plot_forest(comparison: dict[str, Any], path: Path) -> None:
    """Draw the mean score of each arm with its interval, and beside it the difference to the baseline with its own.

    Args:
        comparison: As `comparison.compare_arms` returned it.
        path: Of the PNG.
    """
    arms, metric = comparison["arms"], comparison["metric"]
    figure, (left, right) = _figure(width=10, height=1.2 + 0.34 * len(arms), columns=2)
    for axes, value, interval, title in (
        (left, "mean", "interval", metric),
        (right, "difference", "difference_interval", f"difference to {comparison['baseline']}"),
    ):
        for place, row in enumerate(arms):
            if row.get(value) is not None:
                axes.plot(row[value], place, "s", color="tab:blue", markersize=5)
                if None not in row[interval]:
                    axes.plot(row[interval], [place, place], color="tab:blue", linewidth=1.5)
        axes.set(title=title, ylim=(len(arms) - 0.5, -0.5))
        axes.title.set_parse_math(False)
        axes.grid(axis="x", alpha=0.3)
    right.axvline(0, color="black", linewidth=0.8)
    names = [row["arm"] if len(row["arm"]) <= 40 else row["arm"][:39] + "…" for row in arms]
    left.set_yticks(range(len(arms)), names, parse_math=False)
    right.set_yticks(range(len(arms)), [""] * len(arms))
    _save(figure, path)


def _is_score(name: str) -> bool:
    excluded = ("_loss", "_runtime", "_per_second", "_time")
    return name.startswith("eval_") and "/" not in name and not name.endswith(excluded)


def _draw(axes, entries: list[dict[str, float]], name: str, label: str, marker: str, color: str | None = None) -> None:
    epochs, values = [entry["epoch"] for entry in entries], [entry.get(name, np.nan) for entry in entries]
    axes.plot(epochs, values, "-", marker=marker, markersize=5, label=label, color=color)


def _figure(width: float, height: float, columns: int = 1):
    # The object interface: no global backend is chosen, no window can open.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
