"""Chats and prompts from files: one form of both, and every fault by its line."""

import json

import pytest
from conftest import prompt_rows

from ptft_recipes.conversations import load_conversations, read_messages
from ptft_recipes.data import DatasetArguments
from ptft_recipes.errors import InputError

CHAT = [{"role": "system", "content": "x"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetArguments(train_file=str(path))


def test_prompts_and_completions_become_chats_of_two_messages(prompts):
    raw, report = load_conversations(DatasetArguments(train_file=prompts["train"]), "prompt", "completion")
    assert report["rows"] == {"train": 156, "validation": 17, "test": 19}
    assert set(raw["train"].column_names) == {"id", "messages"}
    rows = {(row["prompt"], row["completion"]) for row in prompt_rows(192, 0)}
    for text in raw["test"]["messages"]:
        chat = read_messages(text)
        assert [message["role"] for message in chat] == ["user", "assistant"]
        assert tuple(message["content"] for message in chat) in rows


def test_chats_are_read_from_lists_and_from_json_in_a_cell(tmp_path):
    rows = [[*CHAT[:2], CHAT[2] | {"content": f"é {i}", "name": None}] for i in range(12)]
    lists = write(tmp_path / "lists.jsonl", [{"messages": row} for row in rows])
    texts = write(tmp_path / "texts.jsonl", [{"messages": json.dumps(row)} for row in rows])
    found = [load_conversations(args, "", "", "messages") for args in (lists, texts)]
    assert found[0][1]["fingerprint"] == found[1][1]["fingerprint"]
    chats = [read_messages(text) for split in found[0][0].values() for text in split["messages"]]
    assert sorted(chat[2]["content"] for chat in chats) == sorted(f"é {i}" for i in range(12))
    assert all("name" not in chat[2] for chat in chats)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (CHAT[:2], "of roles system, user: the assistant's must be the last, and not the first"),
        (CHAT[2:], "of roles assistant: the assistant's must be the last"),
        ([*CHAT[:2], {"role": "assistant", "content": " "}], "message 3 of 3 is the assistant's and empty"),
        ([CHAT[1], {"role": "assistant", "content": ""}, *CHAT[1:]], "message 2 of 4 is the assistant's and empty"),
        ([{"role": "user"}, CHAT[2]], "message 1 of 2 lacks a `role` or a `content` that is text"),
        ("not json", "not a list of messages, and not one as JSON"),
        ([], r"list \[\] is not a list of messages"),
        ([*CHAT[:2], {"role": "assistant", "content": "\ud83d"}], "half of a character"),
    ],
)
def test_a_row_that_is_no_chat_is_named_and_can_be_left_out(tmp_path, value, fault):
    args = write(tmp_path / "train.jsonl", [{"messages": CHAT}] * 20 + [{"messages": value}])
    with pytest.raises(InputError, match=rf"train: 1 rows are no chats to learn from: train.jsonl:21: .*{fault}"):
        load_conversations(args, "", "", "messages")
    args.drop_bad_rows = True
    assert load_conversations(args, "", "", "messages")[1]["dropped"]["train"] == 1
