"""Words with tags from every kind of source; faults by file and line; schemes said, illegal tags counted."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from conftest import tagged_rows, write_conll
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from ptft_recipes.data import DatasetArguments
from ptft_recipes.errors import InputError
from ptft_recipes.tagged_data import load_tagged_splits

ROWS = [
    {"tokens": ["Peter", "saw", "New", "York"], "tags": ["B-PER", "O", "B-LOC", "I-LOC"]},
    {"tokens": ["EU", "😀"], "tags": ["B-ORG", "O"]},
    {"tokens": ["中国", "\u200b"], "tags": ["B-LOC", "O"]},
]


def load(words="tokens", tags="tags", **kwargs):
    return load_tagged_splits(DatasetArguments(**kwargs), words, tags)


def named(dataset, report, words="tokens"):
    names = report["label_names"]
    return [
        {"tokens": row, "tags": [names[label] for label in labels]}
        for row, labels in zip(dataset[words], dataset["labels"], strict=True)
    ]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def forms(tmp_path, rows, name):
    """Write the rows in every form that is promised; return the arguments that read them."""
    yield {"train_file": write_jsonl(tmp_path / f"{name}.jsonl", rows)}
    path = tmp_path / f"{name}.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    yield {"train_file": str(path)}
    for suffix in ("conll", "bio", "txt", "tsv"):
        yield {"train_file": write_conll(tmp_path / f"{name}.{suffix}", rows)}
    lines = (
        [f"{i}\t{w}\t_\t{t}\t_\t_\t_\t_\t_\t_\n" for i, (w, t) in enumerate(zip(*row.values(), strict=True), start=1)]
        for row in rows
    )
    path = tmp_path / f"{name}.conllu"
    path.write_text("\n".join("".join(sentence) for sentence in lines), encoding="utf-8")
    yield {"train_file": str(path)}
    names = sorted({tag for row in rows for tag in row["tags"]}, reverse=True)
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
    folder = tmp_path / f"{name}_saved"
    DatasetDict(train=Dataset.from_list(rows, features=features)).save_to_disk(folder)
    yield {"dataset_name": str(folder)}


def test_every_form_gives_the_same_words_and_tags(tmp_path):
    rows, seen = ROWS + tagged_rows(20, 0), []
    for arguments in forms(tmp_path, rows, "train"):
        splits, report = load(**arguments)
        found = [row for dataset in splits.values() for row in named(dataset, report)]
        assert sorted(map(str, found)) == sorted(map(str, rows)), arguments
        assert report["scheme"] == "IOB2"
        assert report["default_label"] == "O"
        seen.append(report["label_names"])
    assert len(seen) == 8
    assert seen[0] == seen[1] == seen[6]
    assert seen[0][:3] == ["O", "B-LOC", "I-LOC"]
    assert seen[7] == sorted(seen[7], reverse=True), "a ClassLabel keeps its own order"


def test_ids_say_where_a_sentence_stands(tmp_path):
    path = write_conll(tmp_path / "all.conll", ROWS + tagged_rows(20, 0))
    splits, _ = load(train_file=path, validation_file=path)
    assert list(splits["validation"]["id"])[:2] == ["all.conll:1", "all.conll:6"]


def test_columns_are_chosen_by_name_or_number(tmp_path):
    path = tmp_path / "dev.txt"
    path.write_text("EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n" * 20)
    assert load(train_file=str(path))[1]["label_names"] == ["O", "B-ORG", "I-ORG"]
    chunks = load(train_file=str(path), tags="2")[1]["label_names"]
    assert chunks == ["O", "B-NP", "I-NP", "B-VP", "I-VP"]
    assert load(train_file=str(path), tags="-3")[1]["label_names"] == ["NNP", "VBZ"]
    with pytest.raises(InputError, match=r"dev.txt:1: no column 'upos'; its columns are 'tokens', 'tags', '-4'"):
        load(train_file=str(path), tags="upos")


def test_the_scheme_is_said_in_one_line_and_illegal_tags_are_counted_per_split(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = tagged_rows(30, 0)
    broken = [{"tokens": ["a", "b"], "tags": ["I-sports", "I-markets"]}]
    files = {
        f"{split}_file": write_conll(tmp_path / f"{split}.conll", rows + broken * times)
        for split, times in {"train": 0, "validation": 1, "test": 3}.items()
    }
    _, report = load(**files)
    assert report["illegal_tags"] == {"train": 0, "validation": 2, "test": 6}
    assert "tags: entities in IOB2; illegal tags: 0 in train, 2 in validation, 6 in test of " in caplog.text
    assert caplog.text.count("entities in") == 1


def test_plain_tags_are_no_entities(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [{"tokens": ["a", "dog", "ran"], "tags": ["DET", "NOUN", "NOUN"]}] * 20
    _, report = load(train_file=write_jsonl(tmp_path / "x.jsonl", rows))
    assert (report["scheme"], report["default_label"]) == ("plain", "NOUN")
    assert "tags: plain, they mark no entities; train 48 words" in caplog.text


def test_a_split_without_entities_is_said(tmp_path, caplog):
    train, empty = (
        write_jsonl(tmp_path / f"{n}.jsonl", rows)
        for n, rows in (("a", ROWS), ("b", [{"tokens": ["x"], "tags": ["O"]}]))
    )
    load(train_file=train, validation_file=train, test_file=empty)
    assert "test has no entity: its precision, recall and F1 are undefined" in caplog.text


def test_tags_may_be_numbers_and_a_test_split_may_have_none(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", [{"tokens": ["a", "b"], "tags": [0, 1]}] * 20)
    test = write_jsonl(tmp_path / "test.jsonl", [{"tokens": ["a"]}])
    splits, report = load(train_file=train, test_file=test)
    assert report["label_names"] == ["0", "1"]
    assert splits["test"].column_names == ["id", "tokens"]
    assert "test" not in report["illegal_tags"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, r"x.jsonl:2: 2 words and 1 tags"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, r"x.jsonl:2: word 2 of 2 is empty"),
        ({"tokens": [None, "a"], "tags": ["O", "O"]}, r"x.jsonl:2: word 1 of 2 is empty"),
        ({"tokens": [], "tags": []}, r"x.jsonl:2: no words"),
        ({"tokens": None, "tags": None}, r"x.jsonl:2: no words"),
        ({"tokens": ["a"], "tags": None}, r"x.jsonl:2: 1 words and 0 tags"),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, r"x.jsonl:2: an empty tag"),
        ({"tokens": ["a", "b"], "tags": ["O", ""]}, r"x.jsonl:2: an empty tag"),
    ],
)
def test_bad_rows_are_named_by_line_or_dropped_and_counted(tmp_path, row, message):
    path = write_jsonl(tmp_path / "x.jsonl", [ROWS[0], row, *ROWS, *tagged_rows(20, 0)])
    with pytest.raises(
        InputError, match=f"train: 1 rows cannot be used: {message}. Mend them, or pass --drop_bad_rows"
    ):
        load(train_file=path)
    _, report = load(train_file=path, drop_bad_rows=True)
    assert report["dropped"] == {"train": 1, "validation": 0, "test": 0}
    assert sum(report["rows"].values()) == 24


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": "a b", "tags": ["O", "O"]}, r"x.jsonl:2: column 'tokens' holds str 'a b', not a list of words"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, r"x.jsonl:2: column 'tokens' holds int 3, not text"),
        ({"tokens": ["\ud83d"], "tags": ["O"]}, r"x.jsonl:2: column 'tokens' holds .* half of a character"),
        ({"tokens": ["a"]}, r"x.jsonl:2: no column 'tags'"),
    ],
)
def test_cells_that_are_no_lists_are_refused(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        load(train_file=write_jsonl(tmp_path / "x.jsonl", [ROWS[0], row, *ROWS]))


def test_what_cannot_be_learned_is_refused(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", ROWS)
    other = write_jsonl(tmp_path / "dev.jsonl", [{"tokens": ["a"], "tags": ["B-MISC"]}])
    with pytest.raises(InputError, match=r"validation: 1 rows .*dev.jsonl:1: tag 'B-MISC' does not occur in train"):
        load(train_file=train, validation_file=other, test_file=train)
    only = write_jsonl(tmp_path / "o.jsonl", [{"tokens": ["a"], "tags": ["O"]}] * 9)
    with pytest.raises(InputError, match="train has no tag but O; nothing can be learned"):
        load(train_file=only)
    with pytest.raises(InputError, match="column 'tags' holds str 'O', not a list of tags"):
        load(train_file=write_jsonl(tmp_path / "s.jsonl", [{"tokens": ["a"], "tags": "O"}] * 9))
    slip = write_jsonl(tmp_path / "slip.jsonl", [*ROWS, {"tokens": ["a"], "tags": ["0"]}])
    with pytest.raises(InputError, match="tags such as 'B-LOC' mark entities, and '0' are of no scheme"):
        load(train_file=slip)
    with pytest.raises(InputError, match="`id` and `labels` are written by the recipe"):
        load(train_file=train, tags="id")


def test_a_saved_data_set_of_texts_is_refused(tmp_path):
    Dataset.from_dict({"tokens": ["a b"], "tags": [["O", "O"]]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="column 'tokens' holds string, not lists of words"):
        load(dataset_name=str(tmp_path / "saved"))


def test_a_class_label_of_each_split_is_read_by_its_own_names(tmp_path):
    def saved(names):
        features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
        return Dataset.from_list(ROWS, features=features)

    names = ["O", "B-PER", "B-LOC", "I-LOC", "B-ORG"]
    with_padding = Dataset.from_list(ROWS, features=saved([*names, "<pad>"]).features)
    DatasetDict(train=with_padding, validation=with_padding, test=with_padding).save_to_disk(tmp_path / "padded")
    assert load(dataset_name=str(tmp_path / "padded"))[1]["label_names"] == names, "no word is `<pad>`"
    DatasetDict(train=saved(names), validation=saved(names[::-1]), test=saved(names)).save_to_disk(tmp_path / "saved")
    splits, report = load(dataset_name=str(tmp_path / "saved"))
    assert report["label_names"] == names
    assert named(splits["validation"], report) == ROWS
