"""What a run leaves for people: plots and plain files."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml


def write_yaml(path: Path, config: dict[str, Any]) -> None:
    """Write a flat configuration, in its own order."""
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")


def plot_confusion_matrix(counts: np.ndarray, label_names: list[str], path: Path) -> None:
    """Draw counts and shares of each gold label's row.

    Args:
        counts: `[labels, labels]`, gold by predicted.
        label_names: `[labels]`.
        path: Of the PNG.
    """
    size = len(label_names)
    figure, axes = _figure(width=max(4.5, 0.55 * size + 2.5), height=max(3.8, 0.5 * size + 2))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(size), label_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), label_names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    if size <= 20:
        for row, column in np.ndindex(counts.shape):
            text = f"{counts[row, column]:.0f}\n{shares[row, column]:.0%}"
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, label="share of the gold label")
    _save(figure, path)


def plot_learning_curves(log_history: list[dict[str, float]], path: Path) -> None:
    """Draw the training and validation loss, and beside them the validation scores, over epochs.

    Args:
        log_history: Trainer's `state.log_history`.
        path: Of the PNG.
    """
    train = [(entry["epoch"], entry["loss"]) for entry in log_history if "loss" in entry]
    validation = [entry for entry in log_history if "eval_loss" in entry]
    figure, (left, right) = _figure(width=9, height=3.6, columns=2)
    if train:
        left.plot(*zip(*train, strict=True), label="train", color="tab:blue")
    epochs = [entry["epoch"] for entry in validation]
    left.plot(epochs, [entry["eval_loss"] for entry in validation], "o-", label="validation", color="tab:orange")
    names = [n for n in (validation[-1] if validation else {}) if n.startswith("eval_") and "/" not in n]
    for name in names:
        if name != "eval_loss" and not name.endswith(("_runtime", "_per_second", "_time")):
            right.plot(epochs, [entry[name] for entry in validation], "o-", label=name.removeprefix("eval_"))
    for axes, title in ((left, "loss"), (right, "validation scores")):
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    _save(figure, path)


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
