import json
import subprocess
import sys

import pytest
from conftest import ROOT, load_recipe
from finished import write_classifier

from ptft_recipes.errors import InputError


@pytest.fixture(scope="module")
def compare_runs():
    """The recipe as a module."""
    return load_recipe("compare_runs")


@pytest.fixture
def folders(tmp_path):
    """Two arms of finished runs, and one that was cut off."""
    for seed in (1, 2, 3):
        write_classifier(tmp_path / f"full_{seed}", 0.7, seed)
        write_classifier(tmp_path / f"lora_{seed}", 0.9, seed, config={"tuning": "lora"})
    (tmp_path / "lora_3" / "results.json").unlink()
    return tmp_path


def test_it_prints_one_table_and_writes_it(compare_runs, folders, capsys):
    table = folders / "table"
    results = compare_runs.main(
        ["--runs", f"{folders}/full_*", f"{folders}/lora_*", "--baseline", "lora", "--output_dir", str(table)]
    )
    printed = capsys.readouterr().out
    assert printed == (table / "table.md").read_text()
    assert [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")][2:] == [
        "full",
        "lora",
    ]
    assert f"Left out: {folders}/lora_3: not the output folder of a run" in printed
    full = json.loads((table / "table.json").read_text())["arms"][0]
    assert full == results["arms"][0]
    assert full["difference"] < -0.1
    assert full["paired_seeds"] == [1, 2]


def test_arms_by_name_and_another_metric(compare_runs, folders, capsys):
    argv = ["--runs", f"a={folders}/full_[12]", f"b={folders}/lora_1", "--metric", "accuracy", "--resamples", "100"]
    results = compare_runs.main([*argv, "--confidence", "0.9"])
    assert [row["arm"] for row in results["arms"]] == ["a", "b"]
    assert "| arm | seeds | accuracy | difference to a |" in capsys.readouterr().out
    assert (results["confidence"], results["resamples"]) == (0.9, 100)


def test_nothing_to_compare_is_one_line(compare_runs, tmp_path):
    with pytest.raises(InputError, match=r"--runs .*none: no such folder"):
        compare_runs.main(["--runs", str(tmp_path / "none")])


@pytest.mark.parametrize(("kind", "metric"), [("answers", "f1"), ("pairs", "chrf"), ("completions", None)])
def test_runs_on_texts_are_compared_row_by_row(compare_runs, text_runs, kind, metric, capsys):
    folders = {"long": text_runs(kind), "short": text_runs(kind, "--max_steps", "2")}
    argv = ["--runs", *(f"{name}={folder}" for name, folder in folders.items()), "--resamples", "100"]
    results = compare_runs.main([*argv, "--metric", metric] if metric else argv)
    metric = metric or "perplexity"  # by which a decoder chooses its epoch
    assert results["metric"] == metric
    values = {name: json.loads((folder / "results.json").read_text())["metrics"][metric]["value"]
              for name, folder in folders.items()}  # fmt: skip
    assert values["long"] != values["short"]
    assert {row["arm"]: row["mean"] for row in results["arms"]} == pytest.approx(values)
    assert results["arms"][1]["difference"] == pytest.approx(values["short"] - values["long"])
    assert results["left_out"] == []
    assert f"| arm | seeds | {metric} | difference to long |" in capsys.readouterr().out


@pytest.mark.slow  # seconds of imports
def test_a_copy_runs_from_an_empty_folder(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    copy = tmp_path / "empty" / "my_table.py"
    copy.write_text((ROOT / "recipes" / "compare_runs.py").read_text())
    command = [sys.executable, "my_table.py", "--runs", str(folders / "full_1"), str(folders / "lora_1")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "empty")
    assert done.returncode == 0, done.stderr
    assert "| full |" in done.stdout
