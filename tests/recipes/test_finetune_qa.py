"""The recipe end to end, in process, on tiny models: answers in short and long contexts, and questions without any."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FAMILIES, cut_off, question_rows, run_card, runner, write_jsonl

from ptft_recipes.answer_metrics import score_answer
from ptft_recipes.errors import InputError
from ptft_recipes.finished_runs import read_run


def read_predictions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]


def assert_same_answers(names: dict, folder: Path) -> None:
    """Compare what the code on a card answers with what the run predicted."""
    lines = read_predictions(folder)
    asked = [(row["question"], row["context"]) for row in question_rows(48, 2)]
    assert [names["answer"](*pair) for pair in asked] == [line["predicted"] for line in lines]


def answerable(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["answers"]["text"]]


def long_rows(count: int, seed: int) -> list[dict]:
    """Return questions about contexts of some 40 words, where a window has 25: many fillers stand before the rest."""
    rows = []
    for i, row in enumerate(question_rows(count, seed)):
        before = "the old and new " * (2 + i % 4)
        starts = [start + len(before) for start in row["answers"]["answer_start"]]
        context = before + row["context"] + " of a" * 6
        rows.append(row | {"context": context, "answers": row["answers"] | {"answer_start": starts}})
    return rows


@pytest.fixture(scope="module")
def learned(finetune_qa, checkpoint, questions, tmp_path_factory):
    """A run that learned, by whose folder and results several tests go."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    run = runner(finetune_qa, checkpoint, questions, folder, ["--max_length", "32", "--stride", "8"])
    return folder, run(num_train_epochs=4)


def test_a_run_learns_and_leaves_everything_that_the_readme_promises(learned):
    folder, results = learned
    metrics = results["metrics"]
    assert metrics["f1"]["value"] > 0.85, "a quarter is what no answer to anything gives"
    assert metrics["exact_match/HasAns"]["value"] > 0.7
    assert metrics["f1/NoAns"]["value"] > 0.85
    low, high = metrics["f1"]["ci95"]
    assert low <= metrics["f1"]["value"] <= high
    assert metrics["f1"]["n"] == 48
    assert json.loads((folder / "results.json").read_text()) == results
    for name in ("README.md", "config.yaml", "plots/learning_curves.png"):
        assert (folder / name).stat().st_size > 0, name
    lines = read_predictions(folder)
    assert [line["question"] for line in lines] == [row["question"] for row in question_rows(48, 2)]
    assert [line["gold"] for line in lines] == [row["answers"]["text"] for row in question_rows(48, 2)]
    scores = [score_answer(line["gold"], line["predicted"], has_no_answers=True) for line in lines]
    again = dict(zip(("exact_match", "f1"), np.mean(scores, axis=0), strict=True))
    assert again == pytest.approx({name: metrics[name]["value"] for name in again})
    threshold = results["run"]["question_answering"]["no_answer_threshold"]
    for line in lines:
        assert line["predicted"] == ("" if line["no_answer_odds"] > threshold else line["n_best"][0]["text"])
        probabilities = [span["probability"] for span in line["n_best"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 1 < len(probabilities) <= 20
        assert sum(probabilities) + line["no_answer_probability"] < 1 + 1e-4
    assert {line["predicted"] == "" for line in lines} == {True, False}


def test_the_settings_of_the_answers_stay_with_the_model(learned):
    folder, results = learned
    settings = json.loads((folder / "config.json").read_text())["question_answering"]
    assert settings == results["run"]["question_answering"]
    assert settings == {"no_answer_threshold": pytest.approx(settings["no_answer_threshold"]), "max_length": 32,
                        "max_answer_length": 2, "stride": 8}  # fmt: skip


def test_the_card_answers_as_the_run_did(learned):
    folder, _ = learned
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    assert "- type: exact_match" in card
    assert "| answers | at most 2 tokens; intervals over questions |" in card
    assert "| label | exact_match | f1 |" in card
    assert_same_answers(run_card(folder), folder)


def test_a_finished_run_is_scored_again_by_question(learned):
    folder, results = learned
    run = read_run(folder)
    assert run.main_metric == "f1"
    assert len(run.ids) == 48
    assert run.score(np.ones(48))["f1/NoAns"] == pytest.approx(results["metrics"]["f1/NoAns"]["value"])


@pytest.mark.parametrize("tuning", ["lora", pytest.param("bottleneck", marks=pytest.mark.slow)])
def test_an_adapter_answers_by_its_card_as_the_run_did(run_qa, checkpoint, tmp_path, tuning):
    flags = ["--tuning_kwargs", "reduction_factor=4"] if tuning == "bottleneck" else []
    results = run_qa(*flags, tuning=tuning, max_steps=6)
    assert results["run"]["trainable_parameters"] < results["run"]["total_parameters"] / 2
    assert_same_answers(run_card(tmp_path / "run", checkpoint), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_by_its_card_as_the_run_did(finetune_qa, checkpoints, questions, tmp_path, family):
    flags = ["--max_length", "32", "--stride", "8", "--max_steps", "6"]
    runner(finetune_qa, checkpoints[family], questions, tmp_path / "run", flags)()
    assert_same_answers(run_card(tmp_path / "run"), tmp_path / "run")


@pytest.mark.slow
def test_long_contexts_are_read_in_windows_and_merged(run_qa, tmp_path):
    sizes = {"train": 256, "validation": 40, "test": 40}
    files = {
        f"{split}_file": write_jsonl(tmp_path / f"{split}.jsonl", long_rows(size, seed))
        for seed, (split, size) in enumerate(sizes.items())
    }
    results = run_qa(**files, num_train_epochs=5)
    tokens = results["run"]["data"]["tokens"]
    assert tokens["test"]["rows_of_several_windows"] > 30
    assert tokens["train"]["answers_in_no_window"] == 0
    assert results["metrics"]["f1"]["value"] > 0.8


def test_without_unanswerable_questions_there_is_no_threshold_and_without_answers_no_score(run_qa, tmp_path):
    files = {
        f"{split}_file": write_jsonl(tmp_path / f"{split}.jsonl", answerable(question_rows(64, seed)))
        for seed, split in enumerate(("train", "validation"))
    }
    rows = [{"question": row["question"], "context": row["context"]} for row in question_rows(9, 5)]
    results = run_qa(**files, max_steps=2, test_file=write_jsonl(tmp_path / "new.jsonl", rows))
    assert results["run"]["question_answering"]["no_answer_threshold"] is None
    assert results["metrics"] == {}
    lines = read_predictions(tmp_path / "run")
    assert len(lines) == 9
    assert all(line["gold"] is None and line["predicted"] for line in lines)


def test_intervals_are_over_contexts_where_questions_share_one(run_qa, learned, tmp_path):
    rows = [row | {"question": f"{word} {row['question']}"} for row in question_rows(12, 2) for word in ("one", "a")]
    results = run_qa(test_file=write_jsonl(tmp_path / "test.jsonl", rows), max_steps=2)
    assert results["metrics"]["exact_match"]["n"] == 24
    assert results["run"]["resampled"] == "contexts"
    assert learned[1]["run"]["resampled"] == "questions"


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_in_the_same_weights(run_qa, tmp_path, tuning):
    common = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 5, "max_steps": 14,
              "save_total_limit": 9, "max_train_samples": 64, "per_device_train_batch_size": 6,
              "load_best_model_at_end": "false"}  # fmt: skip
    flags = ["--tuning", "lora", "--tuning_kwargs", "lora_dropout=0.1"] if tuning == "lora" else []
    whole = run_qa(*flags, **common, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", 5, tmp_path / "run")
    resumed = run_qa(*flags, **common)
    assert resumed["run"]["resumed"]["from"] == "checkpoint-5"
    last = "model.safetensors" if tuning == "full" else "adapter_model.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    assert resumed["metrics"] == whole["metrics"]


@pytest.mark.slow
def test_the_stock_path_and_new_weights_train_too(run_qa, tmp_path):
    assert run_qa("--stock", max_steps=2)["run"]["stock"]
    run_qa("--from_scratch", label_smoothing_factor=0.1, max_steps=2, output_dir=tmp_path / "new")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--context_column", "passage"], "no column 'passage'; its columns are 'question', 'context', 'answers'"),
        (["--max_length", "100"], "this model reads at most 64 tokens"),
        (["--stride", "30"], "must be more than the stride; raise --max_length, lower --stride"),
        (["--n_best", "0"], "--n_best, --max_answer_length: must be at least 1"),
        (["--r_drop", "1"], "--r_drop compares one distribution per row"),
        (["--metric_for_best_model", "exact_matsch"], "no such metric; did you mean 'exact_match'"),
        (["--metric_for_best_model", "no_answer_threshold"], r"no such metric \((loss, )?exact_match, f1(, loss)?\)"),
    ],
)
def test_mistakes_end_in_one_clear_line(run_qa, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        run_qa(*flags)
    assert "\n" not in str(caught.value)


def test_logits_that_are_not_finite_stop_the_run(run_qa, finetune_qa, monkeypatch):
    original = finetune_qa.load_model

    def broken(*args, **kwargs):
        model, new_modules = original(*args, **kwargs)
        model.qa_outputs.bias.data[0] = np.nan
        return model, new_modules

    monkeypatch.setattr(finetune_qa, "load_model", broken)
    with pytest.raises(FloatingPointError, match="logits of some tokens are nan or infinite"):
        run_qa(max_steps=2)
