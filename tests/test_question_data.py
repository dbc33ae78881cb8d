"""Questions from both forms of SQuAD and every kind of file; answers verified, repaired or refused by place."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from conftest import write_csv, write_jsonl
from datasets import Dataset, DatasetDict

from ptft_recipes.data import DatasetArguments
from ptft_recipes.errors import InputError
from ptft_recipes.question_data import find_answer, load_question_splits
from ptft_recipes.reading import read_rows

CONTEXT = "Ada wrote the first program; Ada was 27."
ROWS = [
    {"question": "Who wrote?", "context": CONTEXT, "answers": {"text": ["Ada", "Ada"], "answer_start": [0, 29]}},
    {"question": "What?", "context": CONTEXT, "answers": {"text": ["the first program"], "answer_start": [10]}},
    {"question": "Why?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
]


def load(columns=("question", "context", "answers"), **kwargs):
    return load_question_splits(DatasetArguments(**kwargs), *columns)


def nested(rows):
    """Write rows as the files of SQuAD have them, all but one in the first article."""
    questions = []
    for i, row in enumerate(rows):
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        answers = [{"text": text, "answer_start": start} for text, start in pairs]
        questions.append({"id": str(i), "question": row["question"], "is_impossible": not answers, "answers": answers})
    parts = [{"context": CONTEXT, "qas": part} for part in (questions[:1], questions[1:-1], questions[-1:])]
    articles = [{"title": "Ada", "paragraphs": parts[:2]}, {"title": "Lovelace", "paragraphs": parts[2:]}]
    return {"version": "v2.0", "data": articles}


def forms(tmp_path, rows):
    """Write the rows in every form that is promised; return the arguments that read them."""
    yield {"train_file": write_jsonl(tmp_path / "flat.jsonl", rows)}
    pairs = [
        row | {"answers": [dict(zip(("text", "answer_start"), pair, strict=True))
                           for pair in zip(*row["answers"].values(), strict=True)]} for row in rows
    ]  # fmt: skip
    yield {"train_file": write_jsonl(tmp_path / "pairs.jsonl", pairs)}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    yield {"train_file": str(tmp_path / "rows.parquet")}
    (tmp_path / "nested.json").write_text(json.dumps(nested(rows)))
    yield {"train_file": str(tmp_path / "nested.json")}
    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(tmp_path / "saved")
    yield {"dataset_name": str(tmp_path / "saved")}


def test_every_form_gives_the_same_rows(tmp_path):
    rows = [*ROWS, *({**row, "context": CONTEXT + str(i)} for i, row in enumerate(ROWS))]
    same = [row | {"context": CONTEXT} for row in rows]
    validation = write_jsonl(tmp_path / "validation.jsonl", ROWS)
    seen = 0
    for arguments in forms(tmp_path, same):
        if "train_file" in arguments:
            arguments |= {"validation_file": validation, "test_file": write_jsonl(tmp_path / "test.jsonl", ROWS)}
            raw, report = load(**arguments)
            assert [{name: row[name] for name in ROWS[0]} for row in raw["train"]] == same, arguments
            assert report["unanswerable"] == {"train": 2, "validation": 1, "test": 1}
            assert report["repaired"] == {"train": 0, "validation": 0, "test": 0}
            assert report["has_no_answers"]
        else:
            with pytest.raises(InputError, match="train has one context: a test split cannot be cut"):
                load(**arguments)
        seen += 1
    assert seen == 5


def test_the_place_of_a_nested_question_is_its_path(tmp_path):
    (tmp_path / "nested.json").write_text(json.dumps(nested(ROWS)))
    files = {f"{split}_file": str(tmp_path / "nested.json") for split in ("train", "validation")}
    raw, _ = load(**files | {"test_file": write_jsonl(tmp_path / "test.jsonl", ROWS)})
    assert raw["train"]["id"][:] == [
        "nested.json[0].paragraphs[0].qas[0]", "nested.json[0].paragraphs[1].qas[0]",
        "nested.json[1].paragraphs[0].qas[0]",
    ]  # fmt: skip


def test_a_column_of_that_name_makes_no_articles(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"text": "one", "paragraphs": 3}]))
    assert read_rows(tmp_path / "x.json", ["text"])[0]["text"] == "one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["data"][0].update(paragraphs=None), r"x\.json\[0\]: 'paragraphs' is missing, not a list"),
        (lambda data: data["data"][1]["paragraphs"][0].pop("context"), r"x\.json\[1\]\.paragraphs\[0\]: no 'context'"),
        (lambda data: data["data"][0]["paragraphs"][1].update(qas={}), r"paragraphs\[1\]: 'qas' is dict, not a list"),
        (lambda data: data["data"][0]["paragraphs"][1]["qas"][0].pop("question"), r"qas\[0\]: no 'question'"),
        (lambda data: data["data"][0]["paragraphs"][1]["qas"][0].pop("answers"), r"qas\[0\]: no column 'answers'"),
    ],
)
def test_a_broken_nested_file_is_told_by_place(tmp_path, change, message):
    data = nested(ROWS)
    change(data)
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        load(train_file=str(tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("text", "start", "place", "fault"),
    [
        ("Ada", 29, 29, None),
        ("program", 20, 20, None),
        ("program", 19, 20, None),
        ("program", None, 20, None),
        ("program", -4, 20, None),
        ("program", True, 20, None),
        ("Ada", 28, None, "is not at 28 and occurs several times"),
        ("Ada", -12, None, "is not at -12 and occurs several times"),  # from the end, as Python counts
        ("Grace", 0, None, "'Grace' does not occur in the context"),
        ("ada", 0, None, "does not occur"),
        ("", 0, None, "is no text"),
        (1843, 0, None, "1843 is no text"),
    ],
)
def test_an_answer_is_verified_and_moved_only_where_there_is_one_place(text, start, place, fault):
    found, why = find_answer(CONTEXT, text, start)
    assert found == place
    assert (why is None) == (fault is None)
    assert fault is None or fault in why


def test_text_that_overlaps_itself_is_there_twice():
    assert find_answer("banana", "ana", 9)[0] is None


def many(**changes):
    rows = [row | {"context": f"{CONTEXT} {i}"} for i in range(20) for row in ROWS]
    rows[4] = rows[4] | changes
    return rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": " "}, "no context"),
        ({"question": None}, "no question"),
        ({"answers": None}, "no answers; expected {'text': "),
        ({"answers": {"text": ["Ada"], "answer_start": [1, 2]}}, "its answers are"),
        ({"answers": {"text": ["Ada"], "answer_start": [7]}}, "'Ada' is not at 7 and occurs several times"),
    ],
)
def test_a_bad_row_is_named_or_dropped(tmp_path, changes, message):
    path = write_jsonl(tmp_path / "train.jsonl", many(**changes))
    with pytest.raises(InputError, match=r"train: 1 rows cannot be used: train\.jsonl:5: ") as caught:
        load(train_file=path)
    assert message in str(caught.value)
    assert str(caught.value).endswith("or pass --drop_bad_rows to leave them out")
    _, report = load(train_file=path, drop_bad_rows=True)
    assert report["dropped"]["train"] == 1
    assert sum(report["rows"].values()) == 59


def test_a_repaired_answer_is_counted(tmp_path, library_log):
    wrong = {"answers": {"text": ["the first program"], "answer_start": [0]}}
    raw, report = load(train_file=write_jsonl(tmp_path / "train.jsonl", many(**wrong)))
    assert report["repaired"] == {"train": 1}
    starts = [row["answers"]["answer_start"] for rows in raw.values() for row in rows if row["question"] == "What?"]
    assert starts == [[10]] * 20
    assert "1 answers were not at their answer_start" in library_log.text


@pytest.mark.parametrize("arguments", [{}, {"fold": "1/4"}])
def test_questions_about_one_context_stay_together(tmp_path, arguments):
    raw, report = load(train_file=write_jsonl(tmp_path / "train.jsonl", many()), **arguments)
    contexts = [{*rows["context"]} for rows in raw.values()]
    assert sum(map(len, contexts)) == len(set.union(*contexts)) == 20
    assert report["rows"]["test"] == (15 if arguments else 6)
    assert sum(report["rows"].values()) == 60


def test_a_test_split_without_answers_is_left_so(tmp_path):
    path = write_jsonl(tmp_path / "test.jsonl", [{"question": "Who?", "context": CONTEXT}])
    raw, report = load(train_file=write_jsonl(tmp_path / "train.jsonl", many()), test_file=path)
    assert raw["test"].column_names == ["id", "question", "context"]
    assert set(report["unanswerable"]) == {"train", "validation"}


def test_other_mistakes(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", many())
    with pytest.raises(InputError, match="no column 'passage'; its columns are 'question', 'context', 'answers'"):
        load(("question", "passage", "answers"), train_file=path)
    with pytest.raises(InputError, match="name two columns other than"):
        load(("question", "question", "answers"), train_file=path)
    none = [row | {"answers": {"text": [], "answer_start": []}} for row in many()]
    with pytest.raises(InputError, match="train: no question has an answer"):
        load(train_file=write_jsonl(tmp_path / "none.jsonl", none))
    rows = [row | {"answers": str(row["answers"])} for row in many()]
    with pytest.raises(InputError, match=r"its answers are \"{'text'"):
        load(train_file=write_csv(tmp_path / "rows.csv", rows))


def test_the_demo_asks_what_annotators_marked():
    raw, report = load(dataset_name="demo/aclsum_questions")
    assert report["rows"] == {"train": 710, "validation": 362, "test": 730}
    assert report["unanswerable"] == {"train": 180, "validation": 96, "test": 192}
    assert report["repaired"] == dict.fromkeys(raw, 0)
    row = raw["train"][2]
    assert row["question"] == "What is found or achieved?"
    assert row["answers"]["text"][0].startswith("Experimental results show that our method significantly outperforms")
