"""What leaves the machine has no path of it; what only looks like a path stays as it is."""

import json

import pytest

from ptft_recipes.outgoing import outgoing_files
from ptft_recipes.redaction import portable, without_local_paths


@pytest.mark.parametrize(("value", "public"), [
    ("/home/me/bert", "<local>/bert"), ("/home/me/bert/", "<local>/bert"), ("~/models/bert", "<local>/bert"),
    ("~me/models/bert", "<local>/bert"), ("C:\\Users\\me\\train.csv", "<local>/train.csv"),
    ("\\\\server\\share\\train.csv", "<local>/train.csv"), ("file:///data/sets/a.txt", "<local>/a.txt"),
    ("/my data/of 2026/a.txt=0.5", "<local>/a.txt=0.5"), ("general=/home/me/b.txt", "general=<local>/b.txt"),
    *((same, same) for same in ("org/bert", "runs/mlm", "data/train.csv", "https://host/data/a.csv", "a/b/c",
                                "s3://bucket/a", "1e-3", "and/or", "/", "I/O", "demo/aclsum_roles", "")),
])  # fmt: skip
def test_an_absolute_path_becomes_a_name(value, public):
    assert without_local_paths(value) == public
    assert without_local_paths({"a": [value], "n": 1}) == {"a": [public], "n": 1}
    # For people the same without the mark, which a program needs: PEFT would take a bare name for an id of the Hub.
    assert portable(value) == public.replace("<local>/", "")


def test_a_path_in_the_middle_of_a_text_is_cut(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    text = f'{{"offload": "{tmp_path}/disk", "log": "/home/somebody/logs/a"}}'
    assert without_local_paths(text) == '{"offload": "<local>/disk", "log": "<local>/logs/a"}'


def test_labels_are_not_paths():
    labels = {"label_names": ["/m/01abc", "/m/02"], "id2label": {"0": "/m/01abc"}}
    assert without_local_paths(labels) == labels


def test_adapters_of_one_name_stay_two():
    assert without_local_paths({"/a/one/lora": 1, "/a/two/lora": 2, "mean": 3}) == {
        "<local>/lora": 1, "<local>/lora (1)": 2, "mean": 3,
    }  # fmt: skip


def test_what_needs_no_change_is_sent_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type":   "bert"}')
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/of/me/bert"}))
    files = outgoing_files(tmp_path)
    assert files["config.json"] == tmp_path / "config.json"
    assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "<local>/bert"}
