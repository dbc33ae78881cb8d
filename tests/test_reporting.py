"""Plots that open and show something whatever was logged, and YAML that reads back as it was."""

import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from ptft_recipes.reporting import plot_confusion_matrix, plot_learning_curves, plot_reliability, write_yaml

pytestmark = pytest.mark.filterwarnings("error")  # among them: a layout that does not fit


def pixels(path):
    """Return a PNG `[height, width, 3]`, read to its end."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def share_of_ink(image):
    return np.mean(image.min(axis=-1) < 250)


def draw_counts(counts, names, path):
    """Return the image, and `[points, 2]` the pixels (row, column) that are dark because of the counts."""
    plot_confusion_matrix(np.asarray(counts), names, path)
    image = pixels(path)
    plot_confusion_matrix(np.zeros_like(counts), names, path)
    dark, dark_without = ((picture[..., 2] > 90) & (picture[..., 0] < 80) for picture in (image, pixels(path)))
    return image, np.argwhere(dark & ~dark_without)


@pytest.mark.parametrize("size", [2, 4, 20, 30, 200])
def test_a_confusion_matrix_of_any_size_is_a_png_with_its_diagonal(size, tmp_path):
    names = [f"label {i}" for i in range(size)]
    image, dark = draw_counts(10 * np.eye(size, dtype=int), names, tmp_path / "plots" / "confusion_matrix.png")
    assert 300 < image.shape[0] <= image.shape[1] < 3000
    assert share_of_ink(image) > 0.02
    height, width = np.ptp(dark, axis=0)
    assert height == pytest.approx(width, rel=0.02)
    assert height > 0.5 * image.shape[0]
    assert np.corrcoef(dark.T)[0, 1] > 0.7  # down and to the right


def test_gold_labels_are_the_rows(tmp_path):
    _, dark = draw_counts([[0, 9, 0], [0, 0, 0], [0, 0, 0]], ["a", "b", "c"], tmp_path / "plot.png")
    _, diagonal = draw_counts(9 * np.eye(3, dtype=int), ["a", "b", "c"], tmp_path / "plot.png")
    top, middle = diagonal[:, 0].min(), diagonal.mean(axis=0)[1]
    assert dark[:, 0].min() == top
    assert dark[:, 1].mean() == pytest.approx(middle, abs=5)


@pytest.mark.parametrize(
    "names",
    [["$5-$10", "$\\frac{$"], ["x" * 300, "y"], ["é ß", "ω 'quoted'"], ["", "_b"], ["a\nb", "c"]],
    ids=["dollars", "long", "unicode", "empty", "lines"],
)
def test_any_label_name_can_be_drawn(names, tmp_path):
    _, plain = draw_counts(10 * np.eye(2, dtype=int), ["a", "b"], tmp_path / "plot.png")
    _, dark = draw_counts(10 * np.eye(2, dtype=int), names, tmp_path / "plot.png")
    assert np.ptp(dark[:, 0]) > 0.5 * np.ptp(plain[:, 0])  # room is left for the matrix


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.eye(3) * 0, np.diag([5, 0, 0])], ids=["0", "-0", "one class"])
def test_labels_without_rows_are_drawn_as_empty(matrix, tmp_path):
    plot_confusion_matrix(matrix, ["a", "b", "c"], tmp_path / "plot.png")
    assert share_of_ink(pixels(tmp_path / "plot.png")) > 0.01


def train_log(step, loss):
    return {"loss": loss, "grad_norm": 1.0, "learning_rate": 1e-4, "epoch": step / 10, "step": step}


def evaluation_log(step, **scores):
    return {"eval_loss": 0.5, "eval_runtime": 1.0, "eval_steps_per_second": 9.0, "epoch": step / 10} | {
        f"eval_{name}": value for name, value in scores.items()
    }


END = {"train_runtime": 3.0, "train_samples_per_second": 10.0, "train_loss": 0.4, "epoch": 4.0}
HISTORIES = {
    "empty": [],
    "nothing but the end": [END],
    "one training loss": [train_log(1, 0.5)],
    "training only": [train_log(s, 1 / s) for s in range(1, 10)],
    "one evaluation": [evaluation_log(10, accuracy=0.7)],
    "one of each": [train_log(5, 0.5), evaluation_log(10, accuracy=0.7), END],
    "evaluation without a loss": [{"eval_accuracy": 0.5, "epoch": 1.0}],
    "scores that come and go": [evaluation_log(10, accuracy=0.5), evaluation_log(20, f1=0.6), evaluation_log(30)],
    "undefined scores": [evaluation_log(10, roc_auc=np.nan), evaluation_log(20, roc_auc=np.nan)],
    "a regression": [evaluation_log(s, pearson=s / 50, mse=2e4 / s, r2=s - 30.0) for s in (10, 20, 30)],
    "scores per class": [evaluation_log(10, **{"f1": 0.5, "f1/a": 0.4, "f1/b": 0.6})],
    "long": [train_log(s, 1 / s) for s in range(1, 3000)] + [evaluation_log(s, f1=0.5) for s in range(10, 3000, 10)],
}


@pytest.mark.parametrize("history", HISTORIES)
def test_learning_curves_of_any_history_are_a_png_with_something_on_it(history, tmp_path):
    path = tmp_path / "plots" / "learning_curves.png"
    plot_learning_curves(HISTORIES[history], path)
    image = pixels(path)
    assert image.shape == (468, 1170, 3)
    assert share_of_ink(image) > 0.01


def colors(history, path):
    """Return the pixels of the training line's blue in the left half, and of any color in the right half."""
    plot_learning_curves(history, path)
    image = pixels(path).astype(int)
    half = image.shape[1] // 2
    left, right = image[:, :half], image[:, half:]
    blue = (abs(left - [31, 119, 180]).sum(axis=-1) < 30).sum()
    return blue, (np.ptp(right, axis=-1) > 60).sum()


def test_a_single_loss_shows_as_a_point(tmp_path):
    alone, _ = colors([train_log(5, 0.5)], tmp_path / "a.png")
    # In the legend alone the line's sample has the same color; the point makes the difference.
    unseen, _ = colors([train_log(5, np.nan)], tmp_path / "b.png")
    assert alone > unseen > 0


def test_scores_per_class_and_timings_are_not_drawn(tmp_path):
    _, nothing = colors([evaluation_log(10, **{"f1/a": 0.4}), evaluation_log(20, **{"f1/a": 0.5})], tmp_path / "a.png")
    _, something = colors([evaluation_log(10, f1=0.4), evaluation_log(20, f1=0.5)], tmp_path / "b.png")
    assert nothing == 0 < something


def test_a_reliability_diagram_shows_every_curve(tmp_path):
    one, many = np.array([[0.7, 0.5, 10.0]]), np.array([[0.1, 0.0, 5.0], [0.5, 0.6, 1.0], [0.9, 0.9, 30.0]])
    shares = []
    for name, curves in {"one": {"a": one}, "two": {"a": one, "b": many}}.items():
        plot_reliability(curves, tmp_path / "plots" / f"{name}.png")
        image = pixels(tmp_path / "plots" / f"{name}.png")
        colored = np.ptp(image.astype(int), axis=-1) > 60
        shares.append(colored.mean())
    assert 0 < shares[0] < shares[1]


def test_no_global_backend_is_touched(tmp_path):
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from ptft_recipes.reporting import plot_confusion_matrix, plot_learning_curves\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "assert 'matplotlib' not in sys.modules\n"  # --help need not wait for it
        "plot_confusion_matrix(np.eye(2), ['a', 'b'], folder / 'a.png'); plot_learning_curves([], folder / 'b.png')\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(list(tmp_path.glob("*.png"))) == 2


CONFIG = {
    "zeta": 1,
    "learning_rate": 1e-05,
    "tiny": 5e-324,
    "huge": 1.7976931348623157e308,
    "tenth": 0.1,
    "whole": 4.0,
    "alpha": True,
    "text_of_digits": "007",
    "text_of_a_float": "1e-05",
    "text_of_a_bool": "no",
    "text_of_a_null": "null",
    "text_with_signs": "a: b # c, 'd' \"e\" {f} [g]",
    "empty": "",
    "spaces": "  padded  ",
    "lines": "one\ntwo\n",
    "long": "word " * 60 + "end",
    "unicode": "Größe 日本語 🙂 é",
    "path": "C:\\runs\\new",
    "list": ["r=16", "007", "ä"],
    "nothing": None,
}


def test_yaml_reads_back_equal_in_its_order_with_its_types(tmp_path):
    write_yaml(tmp_path / "config.yaml", CONFIG)
    read = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert read == CONFIG
    assert list(read) == list(CONFIG)
    assert [type(value) for value in read.values()] == [type(value) for value in CONFIG.values()]


def test_yaml_is_written_for_people(tmp_path):
    write_yaml(tmp_path / "config.yaml", CONFIG)
    lines = (tmp_path / "config.yaml").read_text(encoding="utf-8").splitlines()
    assert "unicode: Größe 日本語 🙂 é" in lines
    assert f"long: {CONFIG['long']}" in lines  # not folded
    assert "- r=16" in lines
