"""A demo answers what the run predicted; gradio itself is stood in for, but in the last test."""

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, question_rows, runner, topic_rows, write_csv, write_jsonl
from huggingface_hub import RepoCard
from test_architecture import imported

from ptft_recipes import question_demo, spaces
from ptft_recipes.commands import main
from ptft_recipes.tag_schemes import lenient_entities


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def start(space: Path, monkeypatch):
    """Run an app as Python would, with a gradio that only keeps what it is given; return its function."""
    kept = {}
    component = lambda **options: options  # noqa: E731
    gradio = SimpleNamespace(
        Interface=lambda fn, inputs, output, **options: kept.update(fn=fn, inputs=inputs, output=output, **options),
        **dict.fromkeys(("Textbox", "Label", "Number", "HighlightedText"), component),
        Error=ValueError,
    )
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    runpy.run_path(str(space / "app.py"), run_name="app")
    return kept


def make(run: Path, tmp_path: Path, *flags) -> Path:
    assert main(["space", str(run), str(tmp_path / "space"), *flags]) == 0
    return tmp_path / "space"


def assert_equal_scores(answers: list[dict], predictions: list[dict]) -> None:
    assert len(answers) == len(predictions) > 10
    for answer, predicted in zip(answers, predictions, strict=True):
        assert answer == pytest.approx(predicted["probabilities"], abs=1e-5)
        assert max(answer, key=answer.get) == predicted["predicted"]


@pytest.fixture(scope="module")
def runs(finetune_cls, checkpoint, topics, tmp_path_factory):
    """Return a function that gives a short run by the name of its tuning."""
    folder = tmp_path_factory.mktemp("runs")

    def get(tuning: str) -> Path:
        if not (folder / tuning).exists():
            run = runner(finetune_cls, checkpoint, topics, folder / tuning, ["--max_length", "32", "--max_steps", "6"])
            run("--tuning", tuning)
        return folder / tuning

    return get


@pytest.mark.parametrize("tuning", ["full", "lora", pytest.param("bottleneck", marks=pytest.mark.slow)])
def test_a_classifier_answers_as_the_run_did(tuning, runs, tmp_path, monkeypatch, capsys):
    run = runs(tuning)
    capsys.readouterr()
    space = make(run, tmp_path)
    told = capsys.readouterr().out
    assert "nothing was pushed" in told
    assert f"python {space}/app.py" in told
    if tuning != "full":  # the base travels too: nothing outside of the folder is read
        assert 'FOLDER / "base"' in (space / "app.py").read_text()
        assert json.loads((space / "model" / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    texts = [path.read_text() for path in space.rglob("*") if path.suffix in (".py", ".json", ".md")]
    assert not [text for text in texts if str(run.parent) in text], "a path of this machine"
    answer = start(space, monkeypatch)["fn"]
    predictions = read_rows(run / "predictions" / "test.jsonl")
    assert_equal_scores([answer(row["text"]) for row in topic_rows(64, 2)], predictions)


def test_what_is_written_is_what_a_space_needs_and_nothing_of_the_data(runs, tmp_path):
    run = runs("full")
    versions = json.loads((run / "results.json").read_text())["run"]["versions"]
    space = make(run, tmp_path)
    names = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == {"app.py", "requirements.txt", "README.md", *(f"model/{name}" for name in model)}
    card = RepoCard.load(space / "README.md").data.to_dict()
    assert card == {
        "title": "full", "sdk": "gradio", "sdk_version": spaces.GRADIO, "app_file": "app.py",
        "python_version": versions["python"].rpartition(".")[0],
    }  # fmt: skip
    assert (space / "requirements.txt").read_text().split() == [
        f"gradio=={spaces.GRADIO}",
        f"torch=={versions['torch'].partition('+')[0]}",
        f"transformers=={versions['transformers']}",
    ]


def test_a_pushed_model_is_loaded_from_the_hub(runs, tmp_path):
    space = make(runs("full"), tmp_path, "--repo_id", "me/it's")
    assert not (space / "model").exists()
    assert """pipeline("text-classification", "me/it's")""" in (space / "app.py").read_text()
    assert RepoCard.load(space / "README.md").data.models == ["me/it's"]


@pytest.mark.slow
def test_pairs_several_labels_and_numbers(run_cls, tmp_path, monkeypatch):
    rows = [
        {"a": row["text"], "b": row["text"][::-1], "label": f"{row['label']}|all", "size": len(row["text"])}
        for row in topic_rows(120, 3)
    ]
    path = write_csv(tmp_path / "rows.csv", rows)
    common = {"data": False, "dataset_name": path, "text_column": "a", "text_pair_column": "b", "max_steps": 2}
    run_cls(label_separator="|", output_dir=tmp_path / "several", **common)
    run_cls(label_column="size", output_dir=tmp_path / "number", problem_type="regression", **common)
    for name in ("several", "number"):
        main(["space", str(tmp_path / name)])
        app = start(tmp_path / f"{name}-space", monkeypatch)
        assert [box["label"] for box in app["inputs"]] == ["Text", "Second text"]
        predictions = read_rows(tmp_path / name / "predictions" / "test.jsonl")
        for predicted in predictions[:5]:
            row = rows[int(predicted["id"].rpartition(":")[2])]
            answer = app["fn"](row["a"], row["b"])
            expected = predicted.get("probabilities", predicted["predicted"])
            assert answer == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("scheme", ["IOB2", pytest.param("BILOU", marks=pytest.mark.slow)])
def test_a_tagger_marks_the_entities_that_the_run_predicted(scheme, run_token_cls, tagged, tmp_path, monkeypatch):
    files = dict(tagged)
    if scheme == "BILOU":
        for split, path in tagged.items():
            text = re.sub(r"\tB-(\w+)(?=\n(?!.*\tI-))", r"\tU-\1", Path(path).read_text())
            text = re.sub(r"\tI-(\w+)(?=\n(?!.*\tI-))", r"\tL-\1", text)
            files[split] = str(tmp_path / f"{split}.conll")
            Path(files[split]).write_text(text)
    options = {f"{split}_file": path for split, path in files.items()}
    results = run_token_cls(data=False, num_train_epochs=5, **options)
    assert results["run"]["data"]["scheme"] == scheme
    app = start(make(tmp_path / "run", tmp_path), monkeypatch)
    found = 0
    for row in read_rows(tmp_path / "run" / "predictions" / "test.jsonl"):
        words, text = row["words"], " ".join(row["words"])
        ends = [len(" ".join(words[: i + 1])) for i in range(len(words))]
        starts = [end - len(word) for word, end in zip(words, ends, strict=True)]
        answer = app["fn"](text)
        assert answer["text"] == text
        tags = [{"U": "B", "L": "I"}.get(tag[0], tag[0]) + tag[1:] for tag in row["predicted"]]
        expected = {(kind, starts[first], ends[last - 1]) for kind, first, last in lenient_entities(tags)}
        assert {(part["entity_group"], part["start"], part["end"]) for part in answer["entities"]} == expected
        found += len(expected)
    assert found > 20


@pytest.mark.parametrize("tuning", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_questions_are_answered_as_the_run_did(tuning, run_qa, tmp_path, monkeypatch):
    rows = question_rows(48, 2)
    for row in rows:
        row["context"] += " of the old one" * 8  # several windows
    run_qa(tuning=tuning, max_steps=8, test_file=write_jsonl(tmp_path / "long.jsonl", rows))
    space = make(tmp_path / "run", tmp_path)
    assert (space / "ptft_recipes" / "answers.py").exists(), "nothing of this library is installed where it runs"
    app = start(space, monkeypatch)
    assert [box["label"] for box in app["inputs"]] == ["Question", "Text"]
    answered = 0
    for row, line in zip(rows, read_rows(tmp_path / "run" / "predictions" / "test.jsonl"), strict=True):
        text, probability, marked = app["fn"](row["question"], row["context"])
        expected = line["n_best"][0]["probability"] if line["predicted"] else line["no_answer_probability"]
        assert (text, probability) == (line["predicted"] or "(no answer)", pytest.approx(expected, abs=1e-5))
        for part in marked["entities"]:
            assert marked["text"][part["start"] : part["end"]] == line["predicted"]
            answered += 1
    assert 0 < answered <= 48
    with pytest.raises(ValueError, match="and leaves 0 for its context"):
        app["fn"]("the " * 40, "one goal")


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("pairs", []),
        ("completions", []),
        pytest.param(
            "pairs",
            ["--tuning", "lora", "--generation_kwargs", "num_beams=2", "min_new_tokens=4", "--learning_rate", "2e-2"],
            marks=pytest.mark.slow,
        ),
        pytest.param("completions", ["--tuning", "lora"], marks=pytest.mark.slow),
        pytest.param("completions", ["--use_chat_template", "false"], marks=pytest.mark.slow),
    ],
)
def test_texts_are_written_as_the_run_wrote_them(kind, flags, text_runs, tmp_path, monkeypatch):
    run = text_runs(kind, *flags)
    app = start(make(run, tmp_path), monkeypatch)
    lines = read_rows(run / "predictions" / "test.jsonl")
    asked = [line["source"] if kind == "pairs" else line["prompt"][-1]["content"] for line in lines]
    assert [app["fn"](text) for text in asked] == [line["predicted"] for line in lines]
    assert len({line["predicted"] for line in lines}) > 1
    assert app["output"]["label"] == ("Translation" if kind == "pairs" else "Answer")
    if kind == "completions":
        with pytest.raises(ValueError, match="tokens; the model was trained on 48"):
            app["fn"]("the " * 60)


def test_how_texts_are_made_is_no_program(text_runs, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(text_runs("pairs"), run, ignore=shutil.ignore_patterns("checkpoint-*"))
    results = json.loads((run / "results.json").read_text())
    attack = '" + __import__("os").mkdir("attack") + "{max_length}'
    results["run"]["config"] |= {"source_prefix": attack, "source_lang": "a'b", "target_lang": "c\\", "task": attack}
    (run / "results.json").write_text(json.dumps(results))
    monkeypatch.chdir(tmp_path)
    app = start(make(run, tmp_path), monkeypatch)
    app["fn"]("the cat")
    assert not (tmp_path / "attack").exists()
    assert app["output"]["label"] == "Translation"
    (run / "generation_config.json").unlink()
    assert main(["space", str(run), str(tmp_path / "other")]) == 2


def described(tmp_path, **changes) -> Path:
    run = {
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21"},
        "config": {}, "base_model": "org/base", "data": {"problem_type": "single_label_classification"},
    } | changes  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"run": run}))
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"max_length": "128); import os; os.mkdir('attack"}},
        {"versions": {"python": "3.11", "torch": "2\n--index-url http://evil", "transformers": "5", "peft": "0"}},
        {"versions": {}},
        {"data": None},
    ],
)
def test_what_a_stranger_wrote_into_the_results_does_not_become_a_program(changes, tmp_path, capsys):
    assert main(["space", str(described(tmp_path, **changes)), str(tmp_path / "space")]) == 2
    assert "is not that of a finished run" in capsys.readouterr().err
    assert not (tmp_path / "space").exists()


def test_other_tasks_a_used_folder_and_links_are_refused(tmp_path, capsys):
    run = described(tmp_path)
    (tmp_path / "space").mkdir()
    assert main(["space", str(run), str(tmp_path / "space")]) == 2
    assert "exists and is left as it is" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["space", str(run), str(tmp_path / "file" / "space")]) == 2
    assert "cannot be written: Not a directory" in capsys.readouterr().err
    (tmp_path / "secret").write_text("hf_secret")
    (run / "vocab.txt").symlink_to(tmp_path / "secret")
    assert main(["space", str(run), str(tmp_path / "other")]) == 5
    assert "is a link" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    (run / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    assert main(["space", str(run), str(tmp_path / "other")]) == 2
    assert "is for BertForMaskedLM; there are demos of what the finetune_*.py recipes train" in capsys.readouterr().err
    (run / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))  # of raw text
    assert main(["space", str(run), str(tmp_path / "other")]) == 2
    assert "is for GPT2LMHeadModel; there are demos of what" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "brought"),
    [(["bottleneck"], spaces.BOTTLENECK), (["answers", "answer_windows", "errors"], question_demo.IMPORTED)],
)
def test_a_demo_brings_all_that_it_imports(first, brought):
    needed, waiting = {"__init__"}, [*first]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        found = imported(ROOT / "ptft_recipes" / f"{name}.py")
        waiting += [other.split(".")[1] for other in found if other.startswith("ptft_recipes.")]
    assert sorted(f"{name}.py" for name in needed) == sorted(brought)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "tagger", "answers"])
def test_the_real_gradio_answers_a_request(kind, run_cls, run_token_cls, run_qa, tmp_path):
    pytest.importorskip("gradio")
    run = {"classifier": run_cls, "tagger": run_token_cls, "answers": run_qa}[kind]
    run("--tuning", "lora", num_train_epochs=2)
    space = make(tmp_path / "run", tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    row = read_rows(tmp_path / "run" / "predictions" / "test.jsonl")[0]
    asked = {
        "classifier": lambda: [topic_rows(64, 2)[0]["text"]],
        "tagger": lambda: [" ".join(row["words"])],
        "answers": lambda: [row["question"], question_rows(48, 2)[0]["context"]],
    }[kind]()
    with subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment) as process:
        try:
            answer = ask(f"http://127.0.0.1:{port}/gradio_api/call/predict", asked, process)
        finally:
            process.kill()
    if kind == "classifier":
        scores = {part["label"]: part["confidence"] for part in answer[0]["confidences"]}
        assert scores == pytest.approx(row["probabilities"], abs=1e-5)
    elif kind == "tagger":
        assert "".join(part["token"] for part in answer[0]).split() == row["words"]
        marked = [part["class_or_confidence"] for part in answer[0] if part["class_or_confidence"]]
        assert marked == [entity.type for entity in lenient_entities(row["predicted"])]
    else:
        expected = row["n_best"][0]["probability"] if row["predicted"] else row["no_answer_probability"]
        assert answer[:2] == [row["predicted"] or "(no answer)", pytest.approx(expected, abs=1e-5)]
        assert "".join(part["token"] for part in answer[2]) == asked[1]


def ask(url: str, texts: list[str], process) -> list:
    """Ask a demo as its documentation says: an event is started, and then read."""
    body, deadline = json.dumps({"data": texts}).encode(), time.monotonic() + 300
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as started:
                event = json.load(started)["event_id"]
            break
        except OSError:
            assert process.poll() is None, "the app has ended"
            assert time.monotonic() < deadline
            time.sleep(0.5)
    with urllib.request.urlopen(f"{url}/{event}", timeout=60) as stream:
        lines = stream.read().decode().splitlines()
    assert "event: complete" in lines, lines
    return json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))
