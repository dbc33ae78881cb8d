"""A checkpoint scored by a stranger has the scores of the run that trained it; and what else is told of it."""

import csv
import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import load_recipe, pair_rows, prompt_rows, question_rows, topic_rows, write_csv, write_jsonl

from ptft_recipes import checkpoint_report, evaluation, reporting
from ptft_recipes.checkpoint_tasks import TASKS
from ptft_recipes.errors import InputError
from ptft_recipes.finished_runs import read_run
from ptft_recipes.significance import bootstrap_intervals
from ptft_recipes.trained_checkpoints import OPTIONS, TaskSettings, TrainedCheckpoint

FEW = partial(bootstrap_intervals, resamples=40)
TINY = ["--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true"]
LORA = ["--tuning", "lora", "--tuning_kwargs", "r=4"]
BOTTLENECK = ["--tuning", "bottleneck", "--tuning_kwargs", "reduction_factor=4"]


@pytest.fixture(scope="session")
def evaluate_checkpoint():
    """The recipe as a module."""
    return load_recipe("evaluate_checkpoint")


def no_plot(figure, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


@pytest.fixture
def few_resamples(monkeypatch):
    """For tests of anything but intervals and plots, which would take most of the time."""
    monkeypatch.setattr(evaluation, "bootstrap_intervals", FEW)
    monkeypatch.setattr(checkpoint_report, "RESAMPLES", 40)
    monkeypatch.setattr(reporting, "_save", no_plot)


@pytest.fixture
def evaluate(evaluate_checkpoint, tmp_path, few_resamples):
    """Evaluate a folder in process; flags as given."""

    def run(folder, *flags, output_dir="evaluated"):
        argv = ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / output_dir), *TINY]
        return evaluate_checkpoint.main([*argv, *map(str, flags)])

    return run


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def values(results) -> dict[str, float]:
    return {name: score["value"] for name, score in results["metrics"].items()}


@pytest.mark.parametrize("flags", [[], LORA, BOTTLENECK], ids=["full", "lora", "bottleneck"])
def test_the_scores_are_those_of_the_run(run_cls, evaluate, tmp_path, flags):
    trained = run_cls(*flags, num_train_epochs=1)
    found = evaluate(tmp_path / "run")  # the data and the columns are in the run's config.yaml
    assert found["metrics"] == trained["metrics"]
    assert found["run"]["data"]["fingerprint"] == trained["run"]["data"]["fingerprint"]
    before, after = (read_lines(tmp_path / name / "predictions" / "test.jsonl") for name in ("run", "evaluated"))
    assert [line["id"] for line in after] == [line["id"] for line in before]
    assert [line["predicted"] for line in after] == [line["predicted"] for line in before]
    assert json.loads((tmp_path / "evaluated" / "results.json").read_text()) == found
    assert read_run(tmp_path / "evaluated").labels == found["run"]["data"]["label_names"]  # compare_runs takes it


@pytest.fixture(scope="module")
def trained(finetune_cls, finetune_token_cls, pretrain_mlm, checkpoint, tagged, corpus, tmp_path_factory):
    """Return a function that trains, once each: single, binary, multi, number, pair, tags, or masked."""
    folder, made = tmp_path_factory.mktemp("trained"), {}

    def files(kind):
        paths = {}
        for seed, (split, size) in enumerate({"train": 192, "validation": 96, "test": 96}.items()):
            rows = topic_rows(size, seed + 10)
            for i, row in enumerate(rows):
                row["speaker"] = f"s{i % 12}"
                if kind == "binary":
                    row["label"] = "sports" if row["label"] == "sports" else "other"
                if kind == "multi":
                    row["label"] = row["label"] + "|long" * (len(row["text"].split()) > 8)
                if kind == "number":
                    row["label"] = len(row["text"].split()) + 0.5
                if kind == "pair":
                    row["second"] = row["text"]
            paths[split] = write_csv(folder / f"{kind}-{split}.csv", rows)
        return paths

    def get(kind):
        if kind in made:
            return made[kind]
        recipe, length = {"tags": (finetune_token_cls, 16), "masked": (pretrain_mlm, 32)}.get(kind, (finetune_cls, 32))
        paths = {"tags": tagged, "masked": corpus}.get(kind) or files(kind)
        argv = ["--model_name_or_path", checkpoint, "--output_dir", str(folder / kind), "--max_length", str(length)]
        argv += ["--learning_rate", "5e-3", "--num_train_epochs", "1", "--per_device_train_batch_size", "8", *TINY]
        argv += [token for split, path in paths.items() for token in (f"--{split}_file", path)]
        argv += {
            "multi": ["--label_separator", "|"],
            "tags": ["--stride", "4"],
            "pair": ["--text_pair_column", "second"],
        }.get(kind, [])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "bootstrap_intervals", FEW)
            patch.setattr(reporting, "_save", no_plot)
            made[kind] = folder / kind, recipe.main(argv), paths
        return made[kind]

    return get


@pytest.mark.parametrize("kind", ["binary", "multi", "number", "pair", "tags", "masked"])
def test_every_task_has_the_scores_of_its_run(trained, evaluate, kind):
    folder, results, _ = trained(kind)
    found = evaluate(folder)
    if kind == "masked":  # the run has them before training, and their ratio, too
        results = {"metrics": {name: results["metrics"][name] for name in ("perplexity", "accuracy")}}
    assert found["metrics"] == results["metrics"]
    assert found["split"] == "test"
    assert len(found["slices"]) >= 2
    assert all(sum(scores[name]["n"] for scores in found["slices"].values()) == score["n"]
               for name, score in found["metrics"].items() if "/" not in name)  # fmt: skip


WORDS = ["--generation_kwargs", "num_beams=2", "min_new_tokens=4", "--learning_rate", "2e-2"]  # else it writes none
ADAPTERS = {"answers": LORA, "pairs": [*LORA, *WORDS], "completions": LORA}


@pytest.mark.parametrize(
    ("kind", "flags"),
    [*((kind, []) for kind in ADAPTERS), *(pytest.param(*item, marks=pytest.mark.slow) for item in ADAPTERS.items())],
)
def test_texts_have_the_scores_and_the_words_of_their_run(text_runs, evaluate, tmp_path, kind, flags):
    folder = text_runs(kind, *flags)
    trained = json.loads((folder / "results.json").read_text())
    found = evaluate(folder)
    expected = trained["metrics"]
    if kind == "completions":  # the run has them before training, too
        expected = {name: score for name, score in expected.items() if name in found["metrics"]}
        assert {*expected} == {"rouge1", "rouge2", "rougeL", "exact_match", "length_ratio", "perplexity",
                               "token_accuracy"}  # fmt: skip
    assert found["metrics"] == expected
    assert found["run"]["data"]["fingerprint"] == trained["run"]["data"]["fingerprint"]
    before, after = (read_lines(path / "predictions" / "test.jsonl") for path in (folder, tmp_path / "evaluated"))
    assert after == [{name: line[name] for name in after[0]} for line in before]
    assert len({json.dumps(line["predicted"]) for line in after}) > 1
    assert len(found["slices"]) >= 2
    assert read_run(tmp_path / "evaluated").run["recipe"] == "evaluate_checkpoint"  # compare_runs takes it


def test_the_defaults_of_texts_are_those_of_their_recipes(finetune_qa, finetune_seq2seq):
    """A run's config.yaml has only what departs from them."""
    nothing = load_recipe("evaluate_checkpoint").DataArguments()
    for task, recipe in (("question-answering", finetune_qa), ("text2text-generation", finetune_seq2seq),
                         ("text-generation", load_recipe("finetune_clm"))):  # fmt: skip
        theirs = {field.name: field.default for field in dataclasses.fields(recipe.DataArguments)}
        for name, default in vars(TaskSettings()).items():
            assert theirs.get(name, default) == default, (task, name)
        checkpoint = TrainedCheckpoint(None, task, [], None, None, None)
        ours = vars(TASKS[task](checkpoint, SimpleNamespace(is_fast=True), nothing).data_args)
        for name in ("text_column", "text_pair_column", "label_column", "max_length", "stride"):
            theirs_name = next((other for other in (name, *OPTIONS.get(name, ())) if other in theirs), None)
            assert ours[name] == theirs.get(theirs_name), (task, name)


def stranger(folder: Path, copy: Path) -> Path:
    """Copy what anybody loads of a run."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("config.yaml", "results.json", "README.md"):
            shutil.copy(path, copy)
    return copy


def test_questions_of_others_are_answered_with_the_threshold_of_the_run(text_runs, evaluate, tmp_path):
    folder = text_runs("answers")
    rows = [{"q": row["question"], "c": row["context"], "a": row["answers"], "part": i % 3}
            for i, row in enumerate(question_rows(48, 2))]  # fmt: skip
    flags = ["--test_file", write_jsonl(tmp_path / "test.jsonl", rows), "--text_column", "q", "--text_pair_column"]
    flags += ["c", "--label_column", "a", "--slice_columns", "part", "--perturbations", "capitals", "dropped_words"]
    found = evaluate(stranger(folder, tmp_path / "model"), *flags)
    trained = json.loads((folder / "results.json").read_text())
    assert values(found) == {name: score["value"] for name, score in trained["metrics"].items()}
    threshold = trained["run"]["question_answering"]["no_answer_threshold"]
    assert found["run"]["data"]["answered_by"] == {"no_answer_threshold": threshold, "n_best": 20,
                                                   "max_answer_length": 2}  # fmt: skip
    assert {name: part["f1"]["n"] for name, part in found["slices"].items() if "=" in name} == dict.fromkeys(
        ("part=0", "part=1", "part=2"), 16
    )
    # The tiny tokenizer lowers case; of the few words of a question the one that matters is left out now and then.
    assert found["robustness"]["capitals"]["f1"]["difference"]["value"] == 0
    lines = read_lines(tmp_path / "evaluated" / "predictions" / "test.jsonl")
    mistakes = read_lines(tmp_path / "evaluated" / "mistakes.jsonl")
    wrong = {line["id"] for line in lines if line["predicted"] not in (line["gold"] or [""])}
    assert {mistake["id"] for mistake in mistakes} == wrong != set()
    assert [m["probability"] for m in mistakes] == sorted((m["probability"] for m in mistakes), reverse=True)
    assert mistakes[0]["context"] in [row["c"] for row in rows]


def test_several_questions_about_a_context_are_resampled_together(text_runs, evaluate, tmp_path):
    rows = [row | {"question": f"{word} {row['question']}"} for row in question_rows(12, 2) for word in ("one", "a")]
    path = write_jsonl(tmp_path / "test.jsonl", rows)
    model = stranger(text_runs("answers"), tmp_path / "model")
    shared = evaluate(model, "--test_file", path)["metrics"]["f1"]
    apart = write_jsonl(tmp_path / "apart.jsonl", [row | {"row": i} for i, row in enumerate(rows)])
    flags = ["--test_file", apart, "--group_column", "row"]
    alone = evaluate(model, *flags, output_dir="alone")["metrics"]["f1"]
    assert shared["value"] == alone["value"]
    assert shared["ci95"] != alone["ci95"]


def test_a_stranger_says_how_texts_were_read_and_sees_the_worst(text_runs, evaluate, tmp_path):
    folder = text_runs("pairs")
    rows = [row | {"part": i % 2} for i, row in enumerate(pair_rows(32, 2))]
    flags = ["--test_file", write_jsonl(tmp_path / "test.jsonl", rows), "--slice_columns", "part"]
    model, lengths = stranger(folder, tmp_path / "model"), ["max_target_length=12", "--max_length", "16"]
    found = evaluate(model, *flags, "--perturbations", "typos", "--task_settings", "source_prefix=the ", *lengths)
    trained = json.loads((folder / "results.json").read_text())
    assert values(found) == {name: score["value"] for name, score in trained["metrics"].items()}
    assert found["run"]["data"]["generation"]["num_beams"] == 2
    assert found["run"]["data"]["signatures"] == trained["run"]["signatures"]
    assert found["slices"]["part=1"]["bleu"]["n"] == 16
    typos = found["robustness"]["typos"]["chrf"]
    assert typos["value"] - typos["difference"]["value"] == pytest.approx(values(found)["chrf"])
    assert typos["difference"]["value"] != 0
    worst = read_lines(tmp_path / "evaluated" / "mistakes.jsonl")
    assert [line["chrf"] for line in worst] == sorted(line["chrf"] for line in worst)
    assert len(worst) == 32
    assert "# The texts with the lowest chrf" in (tmp_path / "evaluated" / "mistakes.md").read_text()
    assert (tmp_path / "evaluated" / "predictions" / "samples.md").read_text() == (
        folder / "predictions" / "samples.md"
    ).read_text()
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"source": row["source"]} for row in rows[:5]])
    plain = evaluate(model, "--test_file", bare, "--task_settings", "task=summarization", *lengths, output_dir="bare")
    assert plain["metrics"] == {}
    assert [line["gold"] for line in read_lines(tmp_path / "bare" / "predictions" / "test.jsonl")] == [None] * 5
    assert not (tmp_path / "bare" / "mistakes.md").exists()


def test_chats_of_others_are_answered_as_the_run_answered(text_runs, evaluate, tmp_path):
    folder = text_runs("completions")
    rows = [
        {"chat": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}],
         "topic": row["completion"]}
        for row in prompt_rows(32, 2)
    ]  # fmt: skip
    flags = ["--test_file", write_jsonl(tmp_path / "test.jsonl", rows), "--slice_columns", "topic"]
    model = stranger(folder, tmp_path / "model")
    found = evaluate(model, *flags, "--task_settings", "messages_column=chat", "--max_length", "48")
    trained = json.loads((folder / "results.json").read_text())
    assert values(found) == {name: trained["metrics"][name]["value"] for name in found["metrics"]}
    assert found["run"]["data"]["generation"]["max_new_tokens"] == 6
    assert {name for name in found["slices"] if name.startswith("topic=")} == {
        "topic=the team", "topic=the atom", "topic=the bank",
    }  # fmt: skip
    worst = read_lines(tmp_path / "evaluated" / "mistakes.jsonl")
    assert [line["rougeL"] for line in worst] == sorted(line["rougeL"] for line in worst)
    assert rows[0]["chat"][0]["content"] in (tmp_path / "evaluated" / "predictions" / "samples.md").read_text()


def test_a_plain_decoder_writes_greedily_and_not_as_its_own_settings_sample(decoders, prompts, evaluate, tmp_path):
    model = stranger(Path(decoders["llama"]), tmp_path / "model")
    settings = {"do_sample": True, "temperature": 0.5, "max_length": 20, "eos_token_id": 2}
    (model / "generation_config.json").write_text(json.dumps(settings))
    flags = ["--test_file", prompts["test"], "--max_length", "48", "--task_settings", "max_new_tokens=3"]
    generation = evaluate(model, *flags)["run"]["data"]["generation"]
    assert {name: generation.get(name) for name in ("do_sample", "temperature", "max_new_tokens", "eos_token_id")} == {
        "do_sample": False, "temperature": None, "max_new_tokens": 3, "eos_token_id": [2],
    }  # fmt: skip


def test_what_makes_no_sense_for_texts_is_refused_in_one_line(text_runs, evaluate, run_span, corpus, tmp_path):
    answers, pairs, completions = (text_runs(kind) for kind in ADAPTERS)
    run_span("--max_steps", "1")
    broken = stranger(answers, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["question_answering"]["max_length"] = "32); import os"
    (broken / "config.json").write_text(json.dumps(config))
    fit = ["--fit_on_validation", "true"]
    cases = [
        (answers, fit, "--fit_on_validation: only classifiers of sequences have temperatures"),
        (pairs, fit, "--fit_on_validation: only classifiers of sequences have temperatures"),
        (completions, fit, "--fit_on_validation: only classifiers of sequences have temperatures"),
        (completions, ["--perturbations", "typos"], r"typos: not for this task \(none is\)"),
        (pairs, ["--pseudo_perplexity_blocks", "3"], "is for masked language models"),
        (pairs, ["--slice_columns", "target"], "column 'target' is"),
        (completions, ["--slice_columns", "messages"], "column 'messages' is"),
        (pairs, ["--task_settings", "prefix=a"], "--task_settings prefix: no such setting"),
        (pairs, ["--task_settings", "task=poetry"], "task: 'poetry', where translation or summarization belongs"),
        (pairs, ["--task_settings", "n_best"], "n_best: '', where a whole number of at least 1 belongs"),
        (broken, ["--test_file", corpus["test"]], "question_answering is .* not as finetune_qa.py writes it"),
        (tmp_path / "span", [], "was trained by pretrain_span on raw text"),
    ]
    for i, (folder, flags, message) in enumerate(cases):
        with pytest.raises(InputError, match=message) as error:
            evaluate(folder, *flags, output_dir=f"out-{i}")
        assert "\n" not in str(error.value)
        assert not (tmp_path / f"out-{i}" / "results.json").exists()


def test_validation_and_train_are_splits_too(trained, evaluate, tmp_path):
    folder, results, _ = trained("single")
    found = evaluate(folder, "--split", "validation")
    assert found["metrics"]["macro_f1"]["value"] == pytest.approx(results["run"]["validation"]["macro_f1"], abs=1e-9)
    assert len(read_lines(tmp_path / "evaluated" / "predictions" / "validation.jsonl")) == 96
    assert evaluate(folder, "--split", "train", output_dir="train")["metrics"]["accuracy"]["n"] == 192


def test_a_stranger_s_results_from_the_written_predictions(trained, evaluate, tmp_path):
    """What is written is what was scored: scikit-learn on the lines gives the same figures."""
    from sklearn import metrics as sklearn

    folder, _, _ = trained("binary")
    found = evaluate(folder)
    lines = read_lines(tmp_path / "evaluated" / "predictions" / "test.jsonl")
    gold, predicted = ([line[key] for line in lines] for key in ("gold", "predicted"))
    assert values(found)["macro_f1"] == pytest.approx(sklearn.f1_score(gold, predicted, average="macro"))
    probability = [line["probabilities"]["sports"] for line in lines]
    brier = sklearn.brier_score_loss([g == "sports" for g in gold], probability)
    assert found["calibration"]["brier"]["value"] == pytest.approx(brier, abs=1e-5)
    assert (tmp_path / "evaluated" / "plots" / "reliability.png").exists()
    assert (tmp_path / "evaluated" / "plots" / "confusion_matrix.png").exists()


def test_other_data_without_train_is_scored_by_the_labels_of_the_checkpoint(trained, evaluate, tmp_path):
    folder, _, paths = trained("single")
    rows = list(csv.DictReader(Path(paths["test"]).read_text().splitlines()))
    only = [row for row in rows if row["label"] != "markets"]  # one label does not occur
    other = write_csv(tmp_path / "other.csv", [{"words": row["text"], "topic": row["label"]} for row in only])
    # A stranger has the model, not the run.
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes((folder / name).read_bytes())
    flags = ["--test_file", other, "--text_column", "words", "--label_column", "topic", "--max_length", 32]
    found = evaluate(tmp_path / "model", *flags)
    assert found["run"]["data"]["rows"] == {"test": len(only)}
    assert found["run"]["data"]["label_names"] == ["markets", "science", "sports"]
    whole = {line["id"].rsplit(":")[-1]: line for line in read_lines(folder / "predictions" / "test.jsonl")}
    kept = [line for line, row in zip(whole.values(), rows, strict=True) if row["label"] != "markets"]
    found = read_lines(tmp_path / "evaluated" / "predictions" / "test.jsonl")
    assert [line["predicted"] for line in found] == [line["predicted"] for line in kept]


def test_slices_groups_and_mistakes(trained, evaluate, tmp_path):
    folder, _, _ = trained("single")
    plain = evaluate(folder)
    found = evaluate(folder, "--slice_columns", "speaker", "--group_column", "speaker", output_dir="sliced")
    assert found["run"]["data"]["fingerprint"] == plain["run"]["data"]["fingerprint"]  # the model does not see them
    assert values(found) == values(plain)
    assert found["metrics"]["macro_f1"]["ci95"] != plain["metrics"]["macro_f1"]["ci95"]
    speakers = {name: scores for name, scores in found["slices"].items() if name.startswith("speaker=")}
    assert len(speakers) == 12
    assert all(scores["accuracy"]["n"] == 8 for scores in speakers.values())
    mean = np.mean([scores["accuracy"]["value"] for scores in speakers.values()])
    assert mean == pytest.approx(values(plain)["accuracy"])
    wrong = [line for line in read_lines(tmp_path / "evaluated" / "predictions" / "test.jsonl")
             if line["gold"] != line["predicted"]]  # fmt: skip
    mistakes = read_lines(tmp_path / "evaluated" / "mistakes.jsonl")
    assert len(mistakes) == min(len(wrong), 50) > 0
    assert {line["id"] for line in mistakes} <= {line["id"] for line in wrong}
    assert [m["probability"] for m in mistakes] == sorted((m["probability"] for m in mistakes), reverse=True)
    assert f"| {mistakes[0]['id']} | {mistakes[0]['text']} |" in (tmp_path / "evaluated" / "mistakes.md").read_text()


@pytest.mark.parametrize("kind", ["single", "binary", "multi"])
def test_what_is_fitted_comes_from_validation_alone(trained, evaluate, kind, tmp_path):
    folder, _, paths = trained(kind)
    found = evaluate(folder, "--fit_on_validation", "true")
    fitted = found["fitted"]
    assert 0.01 < fitted["temperature"] < 60
    assert ("thresholds" in fitted) == (kind != "single")
    # Other test rows, the same validation: the same temperature and thresholds.
    flags = ["--test_file", paths["train"], "--fit_on_validation", "true"]
    other = evaluate(folder, *flags, output_dir="other")
    assert other["metrics"] != found["metrics"]
    for name in {"temperature", "thresholds"} & fitted.keys():
        assert other["fitted"][name] == fitted[name]
    # On the split that they are fitted on they cannot harm.
    same = shutil.copy(paths["validation"], tmp_path / "same.csv")
    itself = evaluate(folder, "--test_file", same, "--fit_on_validation", "true", output_dir="itself")
    before, after = itself["calibration"]["nll"]["value"], itself["fitted"]["calibration"]["nll"]["value"]
    assert after <= before + 1e-6
    if kind == "multi":
        assert itself["fitted"]["metrics"]["macro_f1"]["difference"]["value"] >= -1e-9


def test_robustness_is_a_paired_difference(trained, evaluate):
    folder, _, _ = trained("single")
    found = evaluate(folder, "--perturbations", "typos", "capitals", "dropped_words")
    assert list(found["robustness"]) == ["typos", "capitals", "dropped_words"]
    # The tiny tokenizer lowers case, and does not know a misspelt word.
    difference = found["robustness"]["capitals"]["accuracy"]["difference"]
    assert difference == {"value": 0.0, "ci95": [0.0, 0.0], "p_value": 1.0}
    for scores in found["robustness"].values():
        for name, score in scores.items():
            assert score["value"] - score["difference"]["value"] == pytest.approx(values(found)[name])
    again = evaluate(folder, "--perturbations", "typos", output_dir="again")
    assert again["robustness"]["typos"] == found["robustness"]["typos"]


def test_tags_are_perturbed_word_by_word(trained, evaluate):
    folder, _, _ = trained("tags")
    found = evaluate(folder, "--perturbations", "typos", "capitals")
    assert found["robustness"]["capitals"]["f1"]["difference"]["value"] == 0.0
    assert found["robustness"]["typos"]["f1"]["value"] is not None
    with pytest.raises(InputError, match=r"dropped_words: not for this task \(typos, capitals\)"):
        evaluate(folder, "--perturbations", "dropped_words", output_dir="other")


def test_pseudo_perplexity_is_scored_token_by_token(trained, evaluate):
    folder, _, _ = trained("masked")
    found = evaluate(folder, "--pseudo_perplexity_blocks", 12)
    score = found["pseudo_perplexity"]
    assert score["blocks"] == 12
    assert score["ci95"][0] < score["value"] < score["ci95"][1]
    # Of a model that knows its words both are of the same size.
    assert 0.3 < score["value"] / values(found)["perplexity"] < 3


def test_what_cannot_be_evaluated_is_refused_in_one_line(trained, evaluate, checkpoint, tmp_path):
    single = trained("single")[0]
    number, masked = trained("number")[0], trained("masked")[0]
    (tmp_path / "empty" / "checkpoint-7").mkdir(parents=True)
    labels = write_csv(tmp_path / "labels.csv", [{"text": "a match", "label": "tennis"}] * 3)
    lone = write_csv(tmp_path / "lone.csv", topic_rows(20, 3))
    fit = ["--fit_on_validation", "true"]
    cases = [
        (tmp_path / "empty", [], r"no config.json and no adapter_config.json; it has checkpoint-7"),
        (tmp_path / "nowhere", [], r"nowhere is no folder here, and the Hub did not give it"),
        (
            checkpoint,
            ["--test_file", lone],
            r"is a checkpoint for BertModel; what can be evaluated here: \.\.\.ForSeq",
        ),
        (single, ["--test_file", labels], r"label 'tennis' does not occur in the checkpoint \(markets, science"),
        (single, ["--slice_columns", "label"], r"column 'label' is text, label or id, and can be no column of groups"),
        (single, ["--slice_columns", "author"], r"no column 'author'"),
        (single, [*fit, "--split", "validation"], r"apart from the scored one: it is what is scored"),
        (number, fit, r"--fit_on_validation: only classifiers of sequences"),
        (number, ["--pseudo_perplexity_blocks", 3], r"is for masked language models"),
        (masked, ["--perturbations", "typos"], r"typos: not for this task \(none is\)"),
        (masked, ["--group_column", "id"], r"perplexity is scored by document"),
    ]
    for i, (folder, flags, message) in enumerate(cases):
        with pytest.raises(InputError, match=message) as error:
            evaluate(folder, *flags, output_dir=f"out-{i}")
        assert "\n" not in str(error.value)
        assert not (tmp_path / f"out-{i}" / "results.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "dev"], "--split dev: choose one of train, validation, test"),
        (["--perturbations", "typo"], "--perturbations typo: choose from typos, capitals, dropped_words"),
    ],
)
def test_wrong_arguments_end_in_one_line(trained, evaluate, capsys, flags, message):
    with pytest.raises(SystemExit):
        evaluate(trained("single")[0], *flags)
    assert capsys.readouterr().err.endswith(f"error: {message}\n")


def test_without_validation_nothing_is_fitted(trained, evaluate, tmp_path):
    folder, _, paths = trained("single")
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InputError, match="needs a validation split to fit on, apart from the scored one: there is no"):
        evaluate(tmp_path / "model", "--test_file", paths["test"], "--fit_on_validation", "true")
    with pytest.raises(InputError, match="--split validation: there is none; the splits are test"):
        evaluate(tmp_path / "model", "--test_file", paths["test"], "--split", "validation", output_dir="other")


def test_a_model_without_its_head_is_refused(trained, evaluate, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _, paths = trained("single")
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((folder / name).read_bytes())
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks the weights of classifier: they would be random"):
        evaluate(tmp_path / "model", "--test_file", paths["test"])


def test_rows_without_labels_are_predicted(trained, evaluate, tmp_path):
    folder, _, _ = trained("single")
    rows = [{"text": row["text"]} for row in topic_rows(20, 3)]
    found = evaluate(folder, "--test_file", write_csv(tmp_path / "new.csv", rows))
    assert found["metrics"] == {}
    lines = read_lines(tmp_path / "evaluated" / "predictions" / "test.jsonl")
    assert [line["gold"] for line in lines] == [None] * 20
