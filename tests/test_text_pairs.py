"""Pairs of texts: where they come from, what is wrong with them, and both sides as tokens."""

import json

import pytest
from conftest import PAIRS, pair_rows, write_csv
from datasets import Dataset, DatasetDict

from ptft_recipes.data import DatasetArguments
from ptft_recipes.errors import InputError
from ptft_recipes.text_pairs import count_pairs, load_text_pairs, tokenize_pairs


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_aligned(folder, name, rows):
    for side, column in (("en", "source"), ("de", "target")):
        (folder / f"{name}.{side}").write_text("".join(row[column] + "\n" for row in rows))
    return str(folder / f"{name}.en")


def load(path, source="source", target="target", **kwargs):
    return load_text_pairs(DatasetArguments(train_file=str(path), **kwargs), source, target)


def texts(rows):
    return [(row["source"], row["target"]) for row in rows]


def test_the_same_pairs_from_every_kind_of_file(tmp_path):
    rows = pair_rows(40, 1)
    nested = [{"translation": {"en": row["source"], "de": row["target"]}} for row in rows]
    flat, report = load(write_jsonl(tmp_path / "flat.jsonl", rows))
    assert report["rows"] == {"train": 32, "validation": 4, "test": 4}
    assert flat["train"].column_names == ["id", "source", "target"]
    as_csv = [{"x": row["source"], "y": row["target"]} for row in rows]
    Dataset.from_list(nested).to_parquet(tmp_path / "nested.parquet")
    others = [
        load(write_csv(tmp_path / "pairs.csv", as_csv), "x", "y"),
        load(write_jsonl(tmp_path / "nested.jsonl", nested), "translation.en", "translation.de"),
        load(tmp_path / "nested.parquet", "translation.en", "translation.de"),
        load(write_aligned(tmp_path, "train", rows), "en", "de"),
    ]
    for raw, other in others:
        assert other["fingerprint"] == report["fingerprint"]
        assert texts(raw["test"]) == texts(flat["test"])
    assert raw["train"][0]["id"].startswith("train.en:")
    DatasetDict(train=Dataset.from_list(nested)).save_to_disk(tmp_path / "saved")
    data_args = DatasetArguments(dataset_name=str(tmp_path / "saved"))
    raw, other = load_text_pairs(data_args, "translation.en", "translation.de")
    assert other["fingerprint"] == report["fingerprint"]


def test_aligned_files_of_different_length_are_told_with_both_counts(tmp_path):
    path = write_aligned(tmp_path, "train", pair_rows(12, 1))
    (tmp_path / "train.de").write_text("eins\n" * 11)
    with pytest.raises(InputError, match=r"train\.en has 12 lines and \S*train\.de 11: every line"):
        load(path, "en", "de")
    (tmp_path / "train.de").unlink()
    with pytest.raises(InputError, match=r"train\.de: no such file"):
        load(path, "en", "de")


def test_a_blank_line_of_an_aligned_file_keeps_its_number(tmp_path):
    path = write_aligned(tmp_path, "train", pair_rows(30, 1))
    (tmp_path / "train.de").write_text("eins\n" * 6 + "\n" + "eins\n" * 23)
    with pytest.raises(InputError, match=r"train: 1 rows with an empty source or target \(train\.en:7\)"):
        load(path, "en", "de")
    raw, report = load(path, "en", "de", drop_bad_rows=True)
    assert report["dropped"]["train"] == 1
    assert "train.en:7" not in {row["id"] for split in raw.values() for row in split}


def test_a_test_split_need_not_be_translated(tmp_path):
    paths = {"test_file": write_jsonl(tmp_path / "t.jsonl", [{"source": "cat"}])}
    raw, _ = load(write_jsonl(tmp_path / "a.jsonl", pair_rows(30, 1)), **paths)
    assert raw["test"].column_names == ["id", "source"]
    write_aligned(tmp_path, "b", pair_rows(30, 1))
    (tmp_path / "only.en").write_text("cat\ndog\n")
    raw, _ = load(tmp_path / "b.en", "en", "de", test_file=str(tmp_path / "only.en"))
    assert raw["test"]["source"][:] == ["cat", "dog"]
    assert "target" not in raw["test"].column_names


def test_another_translation_of_a_training_text_counts_as_overlap(tmp_path):
    test = [{"source": "the cat", "target": "eine ganz andere"}]
    rows = [*pair_rows(30, 1), {"source": "The cat.", "target": "die Katze"}]
    paths = {"test_file": write_jsonl(tmp_path / "t.jsonl", test)}
    paths["validation_file"] = write_jsonl(tmp_path / "v.jsonl", pair_rows(3, 9))
    _, report = load(write_jsonl(tmp_path / "a.jsonl", rows), **paths)
    assert report["overlap_with_train"]["test"] == {"exact": 0, "normalised": 1}


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"source": "a", "target": 3}], ("source", "target"), r"a\.jsonl:1: column 'target' holds int 3, not text"),
        ([{"source": "a"}], ("source", "target"), r"a\.jsonl:1: no column 'target'; its columns are 'source'"),
        ([{"source": "a", "target": "a"}], ("source", "source"), "name two columns"),
        ([{"t": {"en": "a"}}], ("t.en", "t.de"), r"a\.jsonl:1, column 't': no column 'de'; its columns are 'en'"),
        ([{"t": "a"}], ("t.en", "t.de"), r"a\.jsonl:1: column 't' holds 'a', not texts by language"),
        ([{"t": "a"}], ("t", "t.de"), "one holds the other"),
    ],
)
def test_what_the_user_can_mend(tmp_path, rows, columns, message):
    with pytest.raises(InputError, match=message):
        load(write_jsonl(tmp_path / "a.jsonl", rows), *columns)


def test_each_side_is_cut_at_its_own_length_and_counted(seq2seq_tokenizer):
    sources, targets = ["cat dog house", "cat"], ["Katze", "Hund Haus Baum unbekannt"]
    batch = tokenize_pairs(seq2seq_tokenizer, sources, targets, max_source_length=3, max_target_length=4)
    vocabulary = seq2seq_tokenizer.get_vocab()
    assert batch["input_ids"] == [[vocabulary["cat"], vocabulary["dog"], 1], [vocabulary["cat"], 1]]
    assert batch["labels"][1] == [*(vocabulary[word] for word in ("Hund", "Haus", "Baum")), 1], "it still ends"
    assert batch["truncated"] == [True, False]
    assert batch["truncated_target"] == [False, True]
    assert batch["length"] == [3 + 2, 2 + 4]
    assert batch["unknown"] == [0, 0], "the unknown word was cut off"
    counts = count_pairs(DatasetDict(train=Dataset.from_dict(dict(batch))))["train"]
    assert (counts["tokens"], counts["truncated_rows"], counts["truncated_targets"]) == (11, 1, 1)
    unlabelled = tokenize_pairs(seq2seq_tokenizer, sources, None, max_source_length=9, max_target_length=9)
    assert "labels" not in unlabelled
    assert unlabelled["length"] == [4, 2]
    assert len(PAIRS) == 10


@pytest.mark.parametrize("length", [1, 65])
def test_a_length_that_the_model_cannot_write_is_refused(seq2seq_tokenizer, length):
    with pytest.raises(InputError, match=f"--max_target_length {length}: this model writes 2 to 64"):
        tokenize_pairs(seq2seq_tokenizer, ["cat"], ["Katze"], max_source_length=9, max_target_length=length)
