"""From wherever the data is to checked splits: sources, cuts, counts, overlap, and faults named before any compute."""

import json
import logging
import shutil
import time
from collections import Counter

import pyarrow.parquet
import pytest
from conftest import TOPICS, topic_rows, write_csv
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from ptft_recipes import data
from ptft_recipes.data import FILE_NAMES, DatasetArguments, load_splits
from ptft_recipes.errors import InputError
from ptft_recipes.splits import CUT_FRACTION, SPLITS

ROWS = topic_rows(60, seed=3)


def load(text_columns=("text",), label_column="label", problem_type=None, separator=None, **options):
    options = {name: str(value) if name.endswith(("_file", "_name")) else value for name, value in options.items()}
    return load_splits(DatasetArguments(**options), text_columns, label_column, problem_type, separator)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def named(dataset):
    """Return text and label name of each row."""
    return [(row["text"], dataset.features["labels"].int2str(row["labels"])) for row in dataset]


def pairs(rows):
    return [(row["text"], row["label"]) for row in rows]


@pytest.fixture
def train_file(tmp_path):
    return write_csv(tmp_path / "train.csv", ROWS)


@pytest.fixture
def report_of(caplog):
    """Return the lines that were logged about the data."""
    caplog.set_level(logging.INFO, logger="ptft_recipes")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "ptft_recipes.splits"]


# Sources


def test_three_files_become_three_splits_under_one_label_map(topics):
    splits, report = load(**{f"{split}_file": path for split, path in topics.items()})
    assert isinstance(splits, DatasetDict)
    assert list(splits) == list(SPLITS)
    for seed, (split, size) in enumerate({"train": 256, "validation": 64, "test": 64}.items()):
        assert named(splits[split]) == pairs(topic_rows(size, seed))
        assert splits[split].features["labels"] == ClassLabel(names=sorted(TOPICS))
    assert splits["test"][0]["id"] == "test.csv:2"
    assert report["rows"] == {"train": 256, "validation": 64, "test": 64}
    assert report["name"] == "train.csv, validation.csv, test.csv"
    assert report["cut"] == {}
    assert report["dropped"] == {"train": 0, "validation": 0, "test": 0}
    assert (report["problem_type"], report["label_names"]) == ("single_label_classification", sorted(TOPICS))


def _sources(folder):
    """Write the same rows in every form that is read; return the options that name them."""
    (folder / "a_folder").mkdir()
    (folder / "text.json").write_text(json.dumps(ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "text.parquet")
    write_csv(folder / "a_folder" / "my_train.csv", ROWS)
    feature = Features({"text": Value("string"), "label": ClassLabel(names=["sports", "science", "markets"])})
    labelled = Dataset.from_list(ROWS, features=feature)
    DatasetDict(train=labelled).save_to_disk(folder / "saved_dict")
    labelled.save_to_disk(folder / "saved")
    write_csv(folder / "text.tsv", ROWS, delimiter="\t")
    return {
        "csv": {"train_file": write_csv(folder / "text.csv", ROWS)},
        "semicolon": {"train_file": write_csv(folder / "semicolon.csv", ROWS, delimiter=";")},
        "tsv": {"train_file": folder / "text.tsv"},
        "jsonl": {"train_file": write_jsonl(folder / "text.jsonl", ROWS)},
        "json": {"dataset_name": folder / "text.json"},
        "parquet": {"dataset_name": folder / "text.parquet"},
        "folder": {"dataset_name": folder / "a_folder"},
        "DatasetDict": {"dataset_name": folder / "saved_dict"},
        "Dataset": {"dataset_name": folder / "saved"},
    }


def test_the_same_rows_from_every_kind_of_source_are_the_same_data(tmp_path):
    loaded = {form: load(**options) for form, options in _sources(tmp_path).items()}
    assert len(loaded) == 9
    expected = sorted(pairs(ROWS))
    fingerprints = {}
    for form, (splits, report) in loaded.items():
        assert sorted(pair for split in SPLITS for pair in named(splits[split])) == expected, form
        # The saved ClassLabel has its own order of names, so other numbers.
        fingerprints.setdefault(tuple(report["label_names"]), set()).add(str(report["fingerprint"]))
    assert fingerprints.keys() == {("markets", "science", "sports"), ("sports", "science", "markets")}
    assert all(len(values) == 1 for values in fingerprints.values())


@pytest.mark.parametrize(
    "names",
    [
        {"train": "train.csv", "validation": "validation.csv", "test": "test.csv"},
        {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"},
        {"train": "my-train_v2.csv", "validation": "my-val_v2.csv", "test": "my-eval_v2.csv"},
        {"train": "Train.CSV", "validation": "VALID.CSV", "test": "TEST.CSV"},
        {"train": "train.csv", "test": "test.csv"},
    ],
    ids=lambda names: names["train"] + str(len(names)),
)
def test_a_folder_is_read_by_the_names_of_its_files(tmp_path, names):
    for i, (split, name) in enumerate(names.items()):
        rows = [{"text": f"{split} {row['text']}", "label": row["label"]} for row in ROWS[i:]]
        write_jsonl(tmp_path / name, rows) if "jsonl" in name else write_csv(tmp_path / name, rows)
    (tmp_path / "notes.md").write_text("train")
    (tmp_path / "vocabulary.txt").write_text("contest trained devil")
    splits, report = load(dataset_name=tmp_path)
    for split in names:
        assert all(text.startswith(split) for text in splits[split]["text"])
    assert set(report["cut"]) == set(SPLITS) - set(names)
    assert set(FILE_NAMES) == set(SPLITS)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["train.csv", "train.jsonl"], "train.csv, train.jsonl could all be train; use --train_file"),
        (["train.csv", "dev.csv", "val.csv"], "dev.csv, val.csv could all be validation; use --validation_file"),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], "could all be train"),
        (["train_test.csv"], "train_test.csv could be more than one split"),
        (
            ["validation.csv", "test.csv"],
            "no train file (train.csv, train.jsonl, ...); it has test.csv, validation.csv",
        ),
        (["constrained.csv"], "no train file (train.csv, train.jsonl, ...); it has constrained.csv; use --train_file"),
        ([], "it has no data file"),
    ],
)
def test_a_folder_that_can_be_read_in_two_ways_or_none_is_refused(tmp_path, files, said):
    for name in files:
        write_csv(tmp_path / name, ROWS)
    with pytest.raises(InputError) as error:
        load(dataset_name=tmp_path)
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_splits_of_a_data_set_are_found_under_the_names_that_are_given(tmp_path):
    rows = Dataset.from_list(ROWS)
    DatasetDict(train=rows, dev=rows.select(range(5)), holdout=rows.select(range(7))).save_to_disk(tmp_path / "saved")
    splits, report = load(dataset_name=tmp_path / "saved", validation_split="dev", test_split="holdout")
    assert report["rows"] == {"train": 60, "validation": 5, "test": 7}
    assert splits["validation"][4]["id"] == "dev[4]"
    with pytest.raises(InputError, match="has no split 'heldout'; its splits are train, dev, holdout"):
        load(dataset_name=tmp_path / "saved", test_split="heldout")
    DatasetDict(training=rows).save_to_disk(tmp_path / "no_train")
    with pytest.raises(InputError, match="has no split 'train'; its splits are training"):
        load(dataset_name=tmp_path / "no_train")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"sentence": ["x"], "label": ["a"]}, "split train: no column 'text'; its columns are 'sentence', 'label'"),
        ({"text": [7], "label": ["a"]}, "split train: column 'text' holds int64, not text"),
        ({"text": [["x"]], "label": ["a"]}, "split train: column 'text' holds List"),
        ({"text": [None], "label": ["a"]}, "split train: column 'text' holds null, not text"),
    ],
)
def test_a_saved_data_set_with_wrong_columns_is_refused(tmp_path, columns, said):
    DatasetDict(train=Dataset.from_dict(columns)).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError) as error:
        load(dataset_name=tmp_path / "saved")
    assert said in str(error.value)


def test_a_damaged_saved_data_set_is_refused_in_one_line(tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved" / "train").glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(InputError, match="saved cannot be loaded: ") as error:
        load(dataset_name=tmp_path / "saved")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["stanfordnlp/sst2", "no_such_data_set", "./data/train.csv", "/no/such/folder"])
def test_a_hub_id_that_cannot_be_reached_ends_quickly_in_one_readable_line(name):
    start = time.perf_counter()
    with pytest.raises(InputError) as error:
        load(dataset_name=name)
    assert time.perf_counter() - start < 5
    assert str(error.value).startswith(f"{name} is no file or folder here, and the Hub did not give it: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 450


def test_the_hub_is_asked_for_the_configuration_and_the_revision(monkeypatch):
    asked = {}

    def load_dataset(name, configuration, revision):
        asked.update(name=name, configuration=configuration, revision=revision)
        return DatasetDict(train=Dataset.from_list(ROWS))

    monkeypatch.setattr(data, "load_dataset", load_dataset)
    _, report = load(dataset_name="nyu-mll/glue", dataset_config="sst2", dataset_revision="abc")
    assert asked == {"name": "nyu-mll/glue", "configuration": "sst2", "revision": "abc"}
    assert report["rows"] == {"train": 49, "validation": 5, "test": 6}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no data: pass --dataset_name (Hub id, folder or file) or --train_file"),
        ({"validation_file": "x.csv"}, "--validation_file and --test_file need a --train_file"),
        ({"dataset_name": "x.csv", "test_file": "x.csv"}, "--validation_file and --test_file need a --train_file"),
        ({"dataset_name": "glue", "train_file": "x.csv"}, "--train_file and --dataset_name glue: give one of them"),
        ({"train_file": "no/such.csv"}, "no/such.csv: no such file"),
        ({"dataset_name": "demo/aclsum_role"}, "did you mean 'demo/aclsum_roles'?"),
    ],
)
def test_options_that_name_no_data_or_two_data_sets_are_refused(options, said):
    with pytest.raises(InputError) as error:
        load(**options)
    assert said in str(error.value)


def test_train_file_takes_the_place_of_the_demo(train_file):
    _, report = load(dataset_name="demo/aclsum_roles", train_file=train_file)
    assert report["name"] == "train.csv"


@pytest.mark.parametrize(("text_columns", "label_column"), [(["label"], "label"), (["text"], "id"), (["id"], "label")])
def test_columns_that_would_overwrite_each_other_are_refused(tmp_path, text_columns, label_column):
    path = write_csv(tmp_path / "train.csv", [{"id": "1", **row} for row in ROWS])
    with pytest.raises(
        InputError, match=r"column '(id|label)' is written by the recipe, or is text and label at once"
    ):
        load(text_columns, label_column, train_file=path)


@pytest.mark.parametrize(("text_columns", "label_column"), [([], "label"), ([""], "label"), (["text"], "")])
def test_columns_without_a_name_are_refused(tmp_path, text_columns, label_column):
    with pytest.raises(InputError, match="the name of a column must not be empty"):
        load(text_columns, label_column, train_file=write_csv(tmp_path / "train.csv", ROWS))


# Texts


def test_pairs_of_texts_are_read_in_order_and_compared_as_pairs(tmp_path):
    rows = [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": "ab"[i % 2]} for i in range(20)]
    test = [rows[3], {"premise": "p 4", "hypothesis": "h 5", "label": "a"}]
    options = {"train_file": write_csv(tmp_path / "train.csv", rows), "test_file": write_csv(tmp_path / "t.csv", test)}
    splits, report = load(("premise", "hypothesis"), validation_file=options["train_file"], **options)
    assert splits["test"][1] == {"id": "t.csv:3", "premise": "p 4", "hypothesis": "h 5", "labels": 0}
    assert report["overlap_with_train"]["test"] == {"exact": 1, "normalised": 1}
    rows[7]["hypothesis"] = " "
    write_csv(tmp_path / "train.csv", rows)
    with pytest.raises(InputError, match=r"train: 1 rows with an empty premise or hypothesis \(train\.csv:9\)"):
        load(("premise", "hypothesis"), **options)


def test_raw_text_needs_no_labels(tmp_path):
    (tmp_path / "train.txt").write_text("".join(f"line {i}\nand more\n\n" for i in range(20)))
    splits, report = load(label_column=None, train_file=tmp_path / "train.txt")
    assert splits["train"].column_names == ["id", "text"]
    assert report["rows"] == {"train": 16, "validation": 2, "test": 2}
    assert "label_names" not in report
    assert len({text for split in SPLITS for text in splits[split]["text"]}) == 20


@pytest.mark.parametrize("empty", ["", "  ", "\u00a0\t", None])
@pytest.mark.parametrize("where", ["train", "test"])
def test_an_empty_text_is_named_with_its_line_or_dropped_and_counted(tmp_path, report_of, empty, where):
    rows = {"train": list(ROWS), "test": ROWS[:9]}
    rows[where] = [*rows[where][:5], {"text": empty, "label": "sports"}, *rows[where][5:]]
    options = {f"{split}_file": write_jsonl(tmp_path / f"{split}.jsonl", rows[split]) for split in rows}
    with pytest.raises(InputError) as error:
        load(**options)
    assert str(error.value).startswith(f"{where}: 1 rows with an empty text ({where}.jsonl:6); ")
    assert "--drop_bad_rows" in str(error.value)
    splits, report = load(drop_bad_rows=True, **options)
    assert report["dropped"] == {"train": 0, "validation": 0, "test": 0} | {where: 1}
    assert f"{where}.jsonl:6" not in splits[where]["id"]
    assert any(where in line and "; 1 bad rows dropped" in line for line in report_of())


def test_rows_dropped_for_their_text_and_for_their_label_are_counted_together(tmp_path):
    bad = [{"text": "", "label": "sports"}, {"text": "x", "label": None}, {"text": " ", "label": None}]
    test = [*ROWS[:4], {"text": "x", "label": "unseen"}, *bad]
    _, report = load(
        train_file=write_jsonl(tmp_path / "train.jsonl", ROWS + bad),
        test_file=write_jsonl(tmp_path / "test.jsonl", test),
        drop_bad_rows=True,
    )
    assert report["dropped"] == {"train": 3, "validation": 0, "test": 4}
    assert report["rows"]["test"] == 4
    assert report["rows"]["train"] + report["rows"]["validation"] == 60


def test_a_split_of_empty_texts_is_refused(tmp_path, train_file):
    test_file = write_jsonl(tmp_path / "test.jsonl", [{"text": ""}, {"text": None}])
    with pytest.raises(InputError, match="test: no rows are left"):
        load(train_file=train_file, test_file=test_file, drop_bad_rows=True)


def test_many_empty_texts_show_the_first_five(tmp_path):
    path = write_csv(tmp_path / "train.csv", [{"text": "", "label": "a"}] * 8)
    with pytest.raises(InputError, match=r"8 rows .*\(train\.csv:2, .*train\.csv:6, \.\.\.\)"):
        load(train_file=path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": 17, "label": "a"}', "train.jsonl:3: column 'text' holds int 17, not text"),
        ('{"text": NaN, "label": "a"}', "train.jsonl:3: column 'text' holds float nan, not text"),
        ('{"text": ["x"], "label": "a"}', "train.jsonl:3: column 'text' holds list ['x'], not text"),
        (f'{{"text": {{"0": "{"x" * 999}"}}, "label": "a"}}', "train.jsonl:3: column 'text' holds dict {'0': 'xxx"),
        ('{"text": "cut \\ud83d", "label": "a"}', "train.jsonl:3: column 'text' holds '\\ud83d', half of a character"),
        (
            '{"text": "x", "label": 7}',
            "column 'label' cannot be read as one type: int (train.jsonl:3), str (train.jsonl:1)",
        ),
        ('{"text": "x", "label": ["a"]}', "list (train.jsonl:3), str (train.jsonl:1)"),
        ('{"text": "x", "label": "\\ud83d"}', "column 'label' cannot be read as one type"),
        ('{"text": "x", "lable": "a"}', "train.jsonl:3: no column 'label'; its columns are 'text', 'lable'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_line(tmp_path, line, said):
    good = '{"text": "x", "label": "a"}\n{"text": "y", "label": null}\n'
    (tmp_path / "train.jsonl").write_text(good + line + "\n")
    with pytest.raises(InputError) as error:
        load(train_file=tmp_path / "train.jsonl", drop_bad_rows=True)
    assert said in str(error.value)
    assert len(str(error.value)) < 400


# Labels


def test_na_and_007_stay_text_as_texts_and_as_labels(tmp_path):
    rows = [{"text": text, "label": label} for text in ("NA", "007", "null", "1e5") for label in ("NA", "007", "7")]
    splits, report = load(**{f"{split}_file": write_csv(tmp_path / f"{split}.csv", rows) for split in SPLITS})
    assert named(splits["train"]) == pairs(rows)
    assert report["label_names"] == ["007", "7", "NA"]


def test_an_unseen_label_is_reported_with_its_line(tmp_path, train_file):
    test_file = write_csv(tmp_path / "test.csv", [*ROWS[:3], {"text": "x", "label": "weather"}])
    with pytest.raises(InputError) as error:
        load(train_file=train_file, test_file=test_file)
    assert "test.csv:5: label 'weather' does not occur in train (markets, science, sports)" in str(error.value)


@pytest.mark.parametrize("rows", [[{"text": "x"}], [{"text": "x", "label": ""}], [{"text": "x", "label": None}]])
def test_a_test_split_without_labels_is_kept_to_be_predicted_and_that_is_said(tmp_path, train_file, report_of, rows):
    splits, report = load(train_file=train_file, test_file=write_jsonl(tmp_path / "test.jsonl", rows * 3))
    assert splits["test"].column_names == ["id", "text"]
    assert report["rows"]["test"] == 3
    said = [line for line in report_of() if "no labels: predicted, not scored" in line]
    assert len(said) == 1
    assert "test" in said[0]


def test_a_label_column_is_needed_in_train_and_validation(tmp_path, train_file):
    unlabelled = write_csv(tmp_path / "unlabelled.csv", [{"text": "x"}])
    with pytest.raises(InputError, match=r"unlabelled\.csv: no column 'label'; its columns are 'text'"):
        load(train_file=unlabelled)
    with pytest.raises(InputError, match=r"unlabelled\.csv: no column 'label'"):
        load(train_file=train_file, validation_file=unlabelled)


@pytest.mark.parametrize(
    ("labels", "problem_type", "names"),
    [
        ([1, 0, float("nan")], "single_label_classification", ["0", "1"]),
        ([True, False, None], "single_label_classification", ["False", "True"]),
        ([3.5, 4, None], "regression", ["label"]),
        ([["a"], [], ["b", "a"]], "multi_label_classification", ["a", "b"]),
    ],
    ids=str,
)
def test_labels_of_json_keep_their_type(tmp_path, labels, problem_type, names):
    rows = [{"text": f"{i} {label}", "label": label} for i in range(12) for label in labels]
    _, report = load(train_file=write_jsonl(tmp_path / "train.jsonl", rows), drop_bad_rows=True)
    assert (report["problem_type"], report["label_names"]) == (problem_type, names)
    assert report["dropped"]["train"] == sum(label is None or label != label for label in labels) * 12


def test_the_separator_and_the_problem_type_reach_the_labels(tmp_path):
    path = write_csv(tmp_path / "train.csv", [{"text": f"t {i}", "label": "a|b" if i % 2 else "b"} for i in range(20)])
    assert load(train_file=path, separator="|")[1]["label_names"] == ["a", "b"]
    path = write_csv(tmp_path / "train.csv", [{"text": f"t {i}", "label": i} for i in range(20)])
    assert load(train_file=path, problem_type="regression")[1]["problem_type"] == "regression"


# Cuts


def skewed(counts):
    return [{"text": f"{label} {i}", "label": label} for label, count in counts.items() for i in range(count)]


@pytest.mark.parametrize("given", [(), ("validation",), ("test",)])
def test_a_missing_split_is_cut_from_train_stratified_disjoint_and_always_the_same(tmp_path, report_of, given):
    rows = skewed({"common": 700, "some": 200, "few": 100})
    options = {"train_file": write_csv(tmp_path / "train.csv", rows)}
    options |= {f"{split}_file": write_csv(tmp_path / f"{split}.csv", rows[::100]) for split in given}
    splits, report = load(**options)
    missing = {"validation", "test"} - set(given)
    assert set(report["cut"]) == missing
    cut = [text for split in missing for text in splits[split]["text"]]
    assert sorted([*splits["train"]["text"], *cut]) == sorted(row["text"] for row in rows)
    for split in ("train", *missing):
        shares = Counter(label for _, label in named(splits[split]))
        size = len(splits[split])
        if split != "train":
            assert abs(size - CUT_FRACTION * 1000) <= CUT_FRACTION**2 * 1000 + 1
        for label, share in {"common": 0.7, "some": 0.2, "few": 0.1}.items():
            assert abs(shares[label] - share * size) <= 2, (split, label)
    said = [line.split()[0] for line in report_of() if "cut from train by seed 0" in line]
    assert sorted(said) == sorted(missing)
    again, second = load(**options)
    assert second == report
    assert all(list(again[split]["id"]) == list(splits[split]["id"]) for split in SPLITS)


def test_a_cut_does_not_follow_the_order_of_the_file(tmp_path):
    splits, _ = load(train_file=write_csv(tmp_path / "train.csv", skewed({"a": 500, "b": 500})))
    numbers = [int(text.split()[1]) for text in splits["test"]["text"]]
    assert len(numbers) == 100
    assert 180 < sum(numbers) / len(numbers) < 320  # the mean of 0..499, give or take 4.5 standard errors


@pytest.mark.parametrize("rare", [1, 2, 3])
def test_every_rare_label_keeps_a_row_in_train(tmp_path, rare):
    rows = skewed({"common": 200} | {f"rare {i}": rare for i in range(40)})
    splits, _ = load(train_file=write_csv(tmp_path / "train.csv", rows))
    assert len({label for _, label in named(splits["train"])}) == 41
    tags = [{"text": row["text"], "label": ["all", row["label"]]} for row in rows]
    splits, report = load(train_file=write_jsonl(tmp_path / "train.jsonl", tags))
    assert all(sum(column) > 0 for column in zip(*splits["train"]["labels"], strict=True))
    assert len(report["label_names"]) == 42


def test_a_cut_of_numbers_spans_their_range(tmp_path):
    rows = [{"text": f"t {i}", "label": i + 0.5} for i in range(100)]
    splits, report = load(train_file=write_csv(tmp_path / "train.csv", rows))
    assert report["problem_type"] == "regression"
    tens = sorted(int(label // 10) for label in splits["test"]["labels"])
    assert tens == list(range(10))


@pytest.mark.parametrize(("counts", "split"), [({"a": 1, "b": 1}, "test"), ({"a": 2, "b": 1}, "validation")])
def test_data_too_small_to_cut_ask_for_the_missing_file(tmp_path, counts, split):
    path = write_csv(tmp_path / "train.csv", skewed(counts))
    with pytest.raises(InputError, match=f"rows: too few to cut a {split} split from; give --{split}_file"):
        load(train_file=path)
    copy = shutil.copy(path, tmp_path / "copy.csv")
    _, report = load(train_file=path, validation_file=path, test_file=copy)
    assert report["rows"]["train"] == sum(counts.values())


def test_the_smallest_data_that_can_be_cut_are_cut(tmp_path):
    splits, report = load(train_file=write_csv(tmp_path / "train.csv", skewed({"a": 2, "b": 2})))
    assert report["rows"] == {"train": 2, "validation": 1, "test": 1}
    assert set(splits["train"]["labels"]) == {0, 1}


# Samples


def test_a_sample_is_random_fixed_and_taken_after_the_label_map_was_made(topics):
    options = {f"{split}_file": path for split, path in topics.items()}
    whole, _ = load(**options)
    splits, report = load(max_train_samples=20, max_eval_samples=10, **options)
    assert report["rows"] == {"train": 20, "validation": 10, "test": 10}
    assert set(splits["train"]["id"]) < set(whole["train"]["id"])
    assert list(splits["train"]["id"]) != list(whole["train"]["id"])[:20]
    assert load(max_train_samples=20, max_eval_samples=10, **options)[1] == report
    assert load(max_train_samples=1, **options)[1]["label_names"] == sorted(TOPICS)
    assert load(max_train_samples=10**6, max_eval_samples=10**6, **options)[1] == load(**options)[1]


@pytest.mark.parametrize("limit", [0, -1])
@pytest.mark.parametrize("option", ["max_train_samples", "max_eval_samples"])
def test_a_sample_of_nothing_is_refused(train_file, option, limit):
    with pytest.raises(InputError, match=f"--{option} {limit}: must be at least 1"):
        load(train_file=train_file, **{option: limit})


# What is reported


def test_overlap_with_train_is_counted_to_the_letter_and_after_normalisation(tmp_path, report_of):
    train = [
        {"text": text, "label": "ab"[i % 2]}
        for i, text in enumerate(["Caf\u00e9 au lait!", "a b", "stra\u00dfe", "\U0001f600", "???"])
    ]
    test = [
        "Caf\u00e9 au lait!",
        "cafe\u0301  AU LAIT",
        "\uff41 B",
        "a c",
        "STRASSE",
        "\U0001f621",
        "!!!",
        "\U0001f600 ",
    ]
    options = {"train_file": write_csv(tmp_path / "train.csv", train)}
    for split, texts in {"validation": ["new"], "test": test}.items():
        options[f"{split}_file"] = write_csv(tmp_path / f"{split}.csv", [{"text": t, "label": "a"} for t in texts])
    _, report = load(**options)
    assert report["overlap_with_train"] == {
        "validation": {"exact": 0, "normalised": 0},
        "test": {"exact": 1, "normalised": 5},
    }
    assert any("test" in line and "; 5 also in train (1 to the letter)" in line for line in report_of())
    assert not any("validation" in line and "also in train" in line for line in report_of())


def test_the_fingerprint_changes_with_any_row_text_label_and_order_and_with_nothing_else(tmp_path):
    (tmp_path / "elsewhere").mkdir()

    def fingerprint(rows, name="train.csv"):
        path = write_csv(tmp_path / name, rows)
        return load(train_file=path, validation_file=path, test_file=shutil.copy(path, f"{path}.copy.csv"))[1][
            "fingerprint"
        ]

    first = fingerprint(ROWS)
    assert set(first) == set(SPLITS)
    assert len(set(first.values())) == 1
    assert fingerprint(ROWS, "elsewhere/other.csv") == first
    other = {"sports": "science", "science": "markets", "markets": "sports"}[ROWS[5]["label"]]
    changes = {
        "text": [*ROWS[:5], {**ROWS[5], "text": ROWS[5]["text"] + " "}, *ROWS[6:]],
        "label": [*ROWS[:5], {**ROWS[5], "label": other}, *ROWS[6:]],
        "order": ROWS[::-1],
        "fewer": ROWS[:-1],
        "twice": [*ROWS, ROWS[-1]],
    }
    found = {change: fingerprint(rows)["train"] for change, rows in changes.items()}
    assert len({first["train"], *found.values()}) == 1 + len(changes)


def test_the_report_is_logged_and_can_be_written_as_json(topics, report_of):
    _, report = load(**{f"{split}_file": path for split, path in topics.items()})
    assert json.loads(json.dumps(report)) == report
    lines = report_of()
    assert lines[0] == "data: train.csv, validation.csv, test.csv"
    assert [line.split()[:2] for line in lines[1:4]] == [["train", "256"], ["validation", "64"], ["test", "64"]]
    assert lines[4] == "  labels: markets, science, sports (single_label_classification)"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad.csv", b"text,label\nx,a\ncaf\xe9,b\n", "bad.csv:3: byte 0xe9 is not UTF-8"),
        ("bad.csv", b"text,label\nx\n", "bad.csv:2: 1 cells where the header has 2"),
        ("bad.csv", b"text:label\nx:a\n", "its columns are 'text:label'"),
        ("bad.jsonl", b'{"text": "x", "label": "a"}\n{"text"\n', "bad.jsonl:2: broken JSON"),
        ("bad.csv", b"text,label\nx,a\n,b\n", "bad.csv:3"),
        ("bad.csv", b"text,label\nx,a\ny,a\n", "train has the one label 'a' only"),
    ],
)
def test_the_recipe_refuses_bad_data_before_it_looks_for_a_model(finetune_cls, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    argv = ["--model_name_or_path", "/no/such/model", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    with pytest.raises(InputError) as error:
        finetune_cls.main([*argv, "--train_file", str(tmp_path / name)])
    assert said in str(error.value)


def test_what_is_tested_on_does_not_choose(tmp_path):
    train = write_csv(tmp_path / "train.csv", topic_rows(40, 0))
    held_out = write_csv(tmp_path / "dev.csv", topic_rows(10, 1))
    with pytest.raises(InputError, match="--validation_file and --test_file are the same; leave one out"):
        load(train_file=train, validation_file=held_out, test_file=held_out)
    saved = {"train": topic_rows(40, 0), "validation": topic_rows(10, 1)}
    DatasetDict({split: Dataset.from_list(rows) for split, rows in saved.items()}).save_to_disk(tmp_path / "saved")
    splits, report = load(dataset_name=str(tmp_path / "saved"), test_split="validation")
    assert report["rows"] == {"train": 36, "validation": 4, "test": 10}
    assert report["cut"] == {"validation": 4}
    assert splits["test"]["text"][:] == [row["text"] for row in saved["validation"]]
    assert not list((tmp_path / "saved").rglob("cache-*")), "nothing is written into the user's folder"
