"""One label map, made from train: what becomes of every kind of label, and which labels are refused."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from ptft_recipes.errors import InputError
from ptft_recipes.labels import MULTI, PROBLEM_TYPES, REGRESSION, SINGLE, encode_labels


def split(labels, feature=None, name="train"):
    dataset = Dataset.from_dict(
        {"id": [f"{name}.csv:{i}" for i in range(2, len(labels) + 2)], "text": ["x"] * len(labels)}
    )
    return dataset.add_column("label", labels, feature=feature)


def encode(train, *args, validation=None, test=None, **kwargs):
    splits = {"train": train, "validation": validation, "test": test}
    splits = {name: labels for name, labels in splits.items() if labels is not None}
    splits = {k: v if isinstance(v, Dataset) else split(v, name=k) for k, v in splits.items()}
    return encode_labels(splits, "label", *args, **kwargs)


def labels_of(encoded):
    return {name: list(dataset["labels"]) for name, dataset in encoded.items() if "labels" in dataset.column_names}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["pos", "neg", "pos"], ["neg", "pos"]),
        ([3, 1, 3], ["1", "3"]),
        ([10, 9, -1], ["-1", "9", "10"]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["007", "7", "07"], ["007", "07", "7"]),
        (["NA", "nan", "None"], ["NA", "None", "nan"]),
        ([True, False], ["False", "True"]),
        (["²", "1", "--5"], ["--5", "1", "²"]),
        (["1", "two"], ["1", "two"]),
    ],
    ids=str,
)
def test_a_single_label_is_numbered_in_the_order_of_the_names(labels, names):
    encoded, dropped, problem_type, found = encode(labels)
    assert (problem_type, found, dropped) == (SINGLE, names, {"train": 0})
    assert encoded["train"].features["labels"] == ClassLabel(names=names)
    assert [names[number] for number in encoded["train"]["labels"]] == [str(label) for label in labels]
    assert encoded["train"].column_names == ["id", "text", "labels"]


def test_the_map_of_train_is_applied_to_every_split_whatever_order_and_type_its_labels_come_in():
    encoded, _, _, names = encode([2, 0, 1], validation=["1", "0"], test=["2"])
    assert names == ["0", "1", "2"]
    assert labels_of(encoded) == {"train": [2, 0, 1], "validation": [1, 0], "test": [2]}
    assert len({str(dataset.features["labels"]) for dataset in encoded.values()}) == 1


def test_class_labels_keep_their_names_and_each_split_is_read_by_its_own():
    train = split([0, 1, 0], ClassLabel(names=["neg", "pos", "unused"]))
    validation = split([0, 1], ClassLabel(names=["pos", "neg"]), name="validation")
    encoded, _, problem_type, names = encode(train, validation=validation, test=["neg"])
    assert (problem_type, names) == (SINGLE, ["neg", "pos", "unused"])
    assert labels_of(encoded) == {"train": [0, 1, 0], "validation": [1, 0], "test": [0]}


def test_minus_one_of_a_class_label_means_no_label():
    feature = ClassLabel(names=["neg", "pos"])
    encoded, *_ = encode(split([0, 1], feature), test=split([-1, -1], feature))
    assert "labels" not in encoded["test"].column_names
    with pytest.raises(InputError, match=r"train: 1 rows whose 'label' cannot be used: train\.csv:4: no label"):
        encode(split([0, 1, -1], feature))
    encoded, dropped, *_ = encode(split([0, 1, -1], feature), drop_bad_rows=True)
    assert (labels_of(encoded), dropped) == ({"train": [0, 1]}, {"train": 1})


@pytest.mark.parametrize("labels", [["3.5", "1", "-2e1"], [3.5, 1.0, -20.0], ["3.5", "1", "-20"]])
def test_numbers_with_a_point_are_a_regression(labels):
    encoded, _, problem_type, names = encode(labels, test=["2.5"])
    assert (problem_type, names) == (REGRESSION, ["label"])
    assert encoded["train"].features["labels"] == Value("float32")
    assert labels_of(encoded) == {"train": [3.5, 1.0, -20.0], "test": [2.5]}


def test_whole_numbers_are_a_regression_when_that_is_asked_for():
    encoded, _, problem_type, _ = encode([1, 5, 3], REGRESSION)
    assert (problem_type, labels_of(encoded)) == (REGRESSION, {"train": [1.0, 5.0, 3.0]})


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("-100", "-100 means 'no label'"),
        ("nan", "'nan' is no finite number"),
        ("-inf", "no finite number"),
        ("1e39", "no finite number"),
        ("high", "'high' is no finite number"),
        ("3,5", "'3,5' is no finite number"),
        ("", "no label"),
    ],
)
def test_what_is_no_number_in_a_regression_is_named(bad, said):
    with pytest.raises(InputError) as error:
        encode(["3.5", "1", bad], REGRESSION)
    assert str(error.value).startswith("train: 1 rows whose 'label' cannot be used: train.csv:4: ")
    assert said in str(error.value)
    encoded, dropped, *_ = encode(["3.5", "1", bad], REGRESSION, drop_bad_rows=True)
    assert (labels_of(encoded), dropped) == ({"train": [3.5, 1.0]}, {"train": 1})


def test_lists_are_multi_label_and_a_row_may_have_none():
    encoded, _, problem_type, names = encode([["b", "a"], ["c"], []], test=[["a"], []])
    assert (problem_type, names) == (MULTI, ["a", "b", "c"])
    assert encoded["train"].features["labels"] == List(Value("float32"))
    assert labels_of(encoded) == {"train": [[1, 1, 0], [0, 0, 1], [0, 0, 0]], "test": [[1, 0, 0], [0, 0, 0]]}


def test_lists_of_class_labels_are_read_by_their_names():
    feature = List(ClassLabel(names=["x", "y", "z"]))
    encoded, _, problem_type, names = encode(split([[2, 0], [1]], feature), test=split([None, None], feature))
    assert (problem_type, names) == (MULTI, ["x", "y", "z"])
    assert labels_of(encoded) == {"train": [[1, 0, 1], [0, 1, 0]]}


@pytest.mark.parametrize("problem_type", [None, MULTI])
def test_a_separator_splits_a_cell_into_labels(problem_type):
    encoded, _, found, names = encode(["sports | politics", "politics", "007|"], problem_type, "|", validation=["007"])
    assert (found, names) == (MULTI, ["007", "politics", "sports"])
    assert labels_of(encoded) == {"train": [[0, 1, 1], [0, 1, 0], [1, 0, 0]], "validation": [[1, 0, 0]]}


def test_a_separator_contradicts_one_label_per_row():
    with pytest.raises(InputError, match=r"--label_separator '\|' is for multi_label_classification, not for single"):
        encode(["a|b", "c"], SINGLE, "|")


def test_cells_of_text_are_one_label_each_without_a_separator():
    encoded, _, _, names = encode(["a,b", "a"], MULTI)
    assert names == ["a", "a,b"]
    assert labels_of(encoded)["train"] == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("vector", "shown"), [([0, 1, 0], "0, 1, 0"), ([1.0, 1.0], "1.0, 1.0"), ([True, True], "True")]
)
def test_a_digit_per_label_is_refused_instead_of_taken_for_labels_called_0_and_1(vector, shown):
    with pytest.raises(InputError, match=rf"train\.csv:2: \[{shown}.*list the names of the row's labels"):
        encode([vector, vector])


@pytest.mark.parametrize("problem_type", [SINGLE, REGRESSION])
def test_a_list_is_refused_where_one_label_is_asked_for(problem_type):
    with pytest.raises(InputError, match=r"train\.csv:2: \['1'\] is not one label"):
        encode([["1"], ["2"]], problem_type)


@pytest.mark.parametrize("problem_type", [None, *PROBLEM_TYPES])
def test_an_object_is_no_label(problem_type):
    with pytest.raises(InputError, match="train: column 'label' holds objects with a; name a column of labels"):
        encode([{"a": 1}, {"a": 2}], problem_type)


@pytest.mark.parametrize(
    ("train", "good", "bad", "said"),
    [
        (["a", "b"], "a", "c", "label 'c' does not occur in train (a, b)"),
        (["a", "b"], "b", "A", "label 'A' does not occur in train"),
        (["7", "8"], "7", "07", "label '07' does not occur in train"),
        ([0, 1], 0, -1, "label -1 does not occur in train (0, 1)"),
        ([["a"], ["b"]], ["a", "b"], ["a", "c"], "label 'c' does not occur in train (a, b)"),
        (split([0, 1], ClassLabel(names=["a", "b"])), "b", "1", "label '1' does not occur in train (a, b)"),
    ],
)
@pytest.mark.parametrize("where", ["validation", "test"])
def test_an_unseen_label_is_named_with_its_line(train, good, bad, said, where):
    with pytest.raises(InputError) as error:
        encode(train, **{where: [good, bad]})
    assert str(error.value).startswith(f"{where}: 1 rows whose 'label' cannot be used: {where}.csv:3: {said}")
    assert "--drop_bad_rows" in str(error.value)


@pytest.mark.parametrize("missing", ["", "  ", None])
@pytest.mark.parametrize("where", ["train", "validation", "test"])
def test_a_missing_label_is_named_or_dropped_and_counted(missing, where):
    splits = {"train": ["a", "b"], "validation": ["a"], "test": ["b"]}
    splits[where] = [*splits[where], missing, missing]
    place = f"{where}.csv:{len(splits[where])}"
    with pytest.raises(InputError, match=rf"{where}: 2 rows whose 'label' cannot be used: {place}: no label"):
        encode(**splits)
    encoded, dropped, *_ = encode(**splits, drop_bad_rows=True)
    assert dropped == {"train": 0, "validation": 0, "test": 0} | {where: 2}
    assert labels_of(encoded) == {"train": [0, 1], "validation": [0], "test": [1]}
    assert list(encoded[where]["id"]) == [f"{where}.csv:{i}" for i in range(2, len(splits[where]))]


def test_nan_is_a_missing_label():
    with pytest.raises(InputError, match=r"train\.csv:4: no label"):
        encode([1.5, 2.5, float("nan")])


def test_a_null_in_a_list_is_a_missing_label():
    with pytest.raises(InputError, match=r"train\.csv:2: no label"):
        encode([["a", None], ["b"]])


def test_only_five_of_many_bad_rows_are_shown_and_long_labels_are_cut():
    with pytest.raises(InputError) as error:
        encode(["a", "b"], validation=["long " * 1000] * 50)
    assert "validation: 50 rows" in str(error.value)
    assert str(error.value).count("validation.csv:") == 5
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("test", [["", None], [None, None], ["  ", ""]])
@pytest.mark.parametrize("train", [["a", "b"], ["1.5", "2"], [["a"], ["b"]]], ids=str)
def test_a_test_split_whose_labels_are_all_missing_is_left_without_labels(train, test):
    encoded, dropped, *_ = encode(train, test=test)
    assert encoded["test"].column_names == ["id", "text"]
    assert len(encoded["test"]) == 2
    assert dropped == {"train": 0, "test": 0}


def test_a_test_split_without_a_label_column_is_left_as_it_is():
    test = split([1, 2]).remove_columns("label")
    encoded, *_ = encode(["a", "b"], test=test)
    assert encoded["test"].column_names == ["id", "text"]


def test_a_validation_split_without_labels_cannot_choose_and_is_refused():
    with pytest.raises(InputError, match="validation: 2 rows whose 'label' cannot be used"):
        encode(["a", "b"], validation=["", None])


@pytest.mark.parametrize("where", ["validation", "test"])
def test_a_split_of_which_nothing_is_left_is_refused(where):
    with pytest.raises(InputError, match=f"{where}: no row has a usable 'label': label 'c' does not occur in train"):
        encode(["a", "b"], **{where: ["c", "c"]}, drop_bad_rows=True)


@pytest.mark.parametrize(
    ("labels", "problem_type", "said"),
    [
        (["a", "a"], None, "train has the one label 'a' only"),
        ([3.5, 3.5], None, "train has the one label 3.5 only"),
        ([[], []], MULTI, "train: no row has a label"),
        (["", None], None, "train: 2 rows whose 'label' cannot be used"),
        (["a", "b"], REGRESSION, "'a' is no finite number"),
        (["a", "b"], "classification", "--problem_type classification: choose one of single_label_classification"),
    ],
)
def test_labels_that_nothing_can_be_learned_from_are_refused(labels, problem_type, said):
    with pytest.raises(InputError) as error:
        encode(labels, problem_type)
    assert said in str(error.value)


def test_a_column_of_mostly_different_values_is_taken_for_a_wrong_one():
    labels = [f"title {i}" for i in range(150)]
    with pytest.raises(
        InputError, match=r"150 different values in 150 rows; .*--problem_type regression.*--label_column"
    ):
        encode(labels)
    assert len(encode(labels * 3)[3]) == 150
    assert len(encode(labels, SINGLE)[3]) == 150
    assert len(encode(split(list(range(150)), ClassLabel(num_classes=150)))[3]) == 150


@pytest.mark.parametrize("odd", ["N/A", "nan", "inf", "1e999", "2,5"])
def test_a_stray_value_among_fractions_does_not_make_them_classes(odd):
    labels = ["0.5", "1.5", "2.5", "0.5", odd, "1.5"]
    with pytest.raises(
        InputError, match=rf"5 numbers with a point and values such as '{odd}'.*regression.*single_label"
    ):
        encode(labels)
    assert encode(labels, REGRESSION, drop_bad_rows=True)[1] == {"train": 1}
    assert odd in encode(labels, SINGLE)[3]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("problem_type", [None, SINGLE, MULTI, REGRESSION])
def test_a_number_that_is_not_finite_is_no_label(value, problem_type):
    with pytest.raises(InputError, match=r"1 rows whose 'label' cannot be used: .*no label"):
        encode([0.5, 1.5, value], problem_type)
    *_, names = encode([0.5, 1.5, value], problem_type, drop_bad_rows=True)
    assert names in (["0.5", "1.5"], ["label"])
    with pytest.raises(InputError, match="no label"):
        encode([[0.5], [1.5, value]], MULTI)


@pytest.mark.parametrize("labels", [[[["a"]], [["b"]]], [b"a", b"b"], [[b"a"], [b"b"]], [[{"a": 1}], [{"a": 2}]]])
def test_lists_in_lists_and_bytes_are_no_labels(labels):
    with pytest.raises(InputError, match=r"train: column 'label' holds .*; name a column of labels"):
        encode(labels)


def test_a_label_of_thousands_of_digits_is_a_name():
    assert encode(["1", "9" * 5000])[3] == ["1", "9" * 5000]


def test_features_of_other_columns_survive():
    features = Features({"id": Value("string"), "text": Value("large_string"), "label": Value("string")})
    dataset = Dataset.from_dict({"id": ["a", "b"], "text": ["x", "y"], "label": ["l", "m"]}, features=features)
    encoded, *_ = encode(dataset)
    assert encoded["train"].features["text"] == Value("large_string")
