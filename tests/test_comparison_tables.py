import csv
import io
import json

import pytest
from finished import write_classifier

from ptft_recipes.comparison import compare_arms, read_arms
from ptft_recipes.comparison_tables import csv_of, markdown_of, notes_of, table_of, write_comparison


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """Two arms with two seeds, one of them with a bar in its name, and one with one seed."""
    folder = tmp_path_factory.mktemp("arms")
    folders = {}
    for name, right, seeds in (("base", 0.7, [1, 2]), ("a|b", 0.9, [1, 2]), ("one", 0.7, [2])):
        folders[name] = [write_classifier(folder / f"{right}-{s}-{len(seeds)}", right, s) for s in seeds]
    return read_arms(folders)[0]


@pytest.fixture(scope="module")
def comparison(arms):
    """Of the three arms."""
    return compare_arms(arms, resamples=200)


def test_the_table_says_what_the_numbers_say(comparison):
    headings, rows = table_of(comparison)
    assert headings[:5] == ["arm", "seeds", "macro_f1", "difference to base", "p (Holm)"]
    base, better, one = rows
    means = [row["mean"] for row in comparison["arms"]]
    assert base[2].startswith(f"{means[0]:.3f} [")
    assert base[3] == "baseline"
    assert better[3].startswith(f"{means[1] - means[0]:+.3f} [+")
    assert [one[1], one[2][-1], one[3][-1]] == ["1", "†", "†"]
    assert base[5:] == ["12 s", "1.50 GiB", "50 (25.0%)"]


def test_notes_say_what_is_not_obvious(comparison):
    said = {"remarks": ["One thing."], "left_out": ["runs/x: no folder"]}
    notes = "\n".join(notes_of(comparison | said))
    assert "on the 200 test rows of demo/roles (fingerprint abc)" in notes
    assert "† One seed: over the test rows alone" in notes
    assert "corrected for 2 comparisons by Holm's method" in notes
    assert "one: its difference is on the seeds that base has too, 2." in notes
    assert "would show on this test set with a chance of 80 %" in notes
    assert notes.endswith("\nOne thing.\nLeft out: runs/x: no folder")


def test_markdown_has_a_row_per_arm(comparison):
    lines = markdown_of(comparison).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert "| a\\|b |" in rows[3]
    assert {line.replace("\\|", "").count("|") for line in rows} == {9}


def test_csv_has_the_numbers(comparison):
    rows = list(csv.DictReader(io.StringIO(csv_of(comparison))))
    assert [row["arm"] for row in rows] == ["base", "a|b", "one"]
    assert float(rows[1]["difference"]) == comparison["arms"][1]["difference"]
    assert float(rows[1]["high"]) == comparison["arms"][1]["interval"][1]
    assert rows[0]["difference"] == ""
    assert rows[0]["seeds"] == "1 2"


def test_files(comparison, tmp_path):
    write_comparison(tmp_path / "table", comparison | {"left_out": ["x"]})
    files = {path.name: path for path in (tmp_path / "table").iterdir()}
    assert set(files) == {"table.md", "table.csv", "table.json", "forest.png"}
    assert files["forest.png"].read_bytes().startswith(b"\x89PNG")
    found = json.loads(files["table.json"].read_text())
    assert found["left_out"] == ["x"]
    assert found["arms"][1]["p"] == comparison["arms"][1]["p"]


def test_undefined_scores_are_said_to_be(comparison):
    row = comparison["arms"][1] | {"mean": None, "difference": None, "p": None, "interval": [None, None],
                                   "difference_interval": [None, None]}  # fmt: skip
    _, rows = table_of(comparison | {"arms": [comparison["arms"][0], row]})
    assert rows[1][2:5] == ["undefined", "undefined", ""]
