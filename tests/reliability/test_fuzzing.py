"""Broken inputs end in a clear error of ours or in a correct result: never in a traceback, a hang or a misreading."""

import contextlib
import copy
import dataclasses
import io
import json
import math
import os
import signal
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pytest
from conftest import argument_types
from huggingface_hub import ModelCard
from reliability.broken_adapters import base_model, compare_adapter, make_adapter
from reliability.broken_configs import compare_config, make_config
from reliability.broken_data import BYTES, compare_rows, compare_splits, make_case, make_place
from reliability.broken_runs import compare_run, make_run

from ptft_recipes.cli import parse_args
from ptft_recipes.corpora import load_corpora
from ptft_recipes.data import DatasetArguments, load_splits
from ptft_recipes.errors import InputError
from ptft_recipes.reading import read_rows
from ptft_recipes.tuning import TuningArguments, apply_tuning

# Cases in the full run, and in the default suite.
KINDS = {
    "csv": (500, 40),
    "jsonl": (400, 40),
    "json": (300, 32),
    "parquet": (300, 32),
    "txt": (150, 16),
    "place": (140, 28),
    "yaml": (700, 60),
    "adapter": (400, 40),
    "run": (600, 60),
}
SECONDS = 10  # of one case; what takes longer hangs


class Hang(BaseException):
    """Not an Exception: nothing on the way may take it for an error of its own."""


@dataclass
class Tally:
    """Outcomes of the cases of one kind."""

    refused: int = 0
    correct: int = 0
    failures: list[str] = field(default_factory=list)


@pytest.fixture
def recipes(finetune_cls, pretrain_mlm):
    return [finetune_cls, pretrain_mlm]


@pytest.fixture
def fuzz(recipes, tmp_path, monkeypatch):
    """Run the cases of one kind."""
    monkeypatch.chdir(tmp_path)  # `touch pwned` would land here
    datasets.disable_progress_bars()
    base = base_model()

    def hang(*_):
        raise Hang

    def run(kind: str, count: int) -> Tally:
        before = signal.signal(signal.SIGALRM, hang)
        tally = Tally()
        try:
            for seed in range(count):
                folder = tmp_path / f"{kind} {seed}"
                folder.mkdir()
                environment = dict(os.environ)
                case, attempt = prepare(kind, seed, folder, recipes, base)
                fault = judge(case, attempt, tally)
                os.environ.clear()
                os.environ.update(environment)  # TrainingArguments writes into it
                if fault:
                    tally.failures.append(f"({kind}, seed {seed}) {case.done}: {fault}")
        finally:
            signal.signal(signal.SIGALRM, before)
        assert not (tmp_path / "pwned").exists(), "code from an input was run"
        print(f"{kind}: {count} cases, {tally.refused} refused, {tally.correct} correct, {len(tally.failures)} failed")
        return tally

    return run


def prepare(kind, seed, folder, recipes, base):
    """Make a case, and the call that tries it: it returns what is wrong with what was accepted."""
    if kind == "adapter":
        case = make_adapter(seed, folder, base)

        def attempt():
            arguments = TuningArguments(tuning=str(folder))
            return compare_adapter(case, apply_tuning(copy.deepcopy(base), arguments, "SEQ_CLS", ["classifier"]), base)

    elif kind == "run":
        case = make_run(seed, folder)

        def attempt():
            return compare_run(case, seed)

    elif kind == "yaml":
        recipe = recipes[seed % 2]
        types = argument_types(recipe)
        names = [f.name for kind in types for f in dataclasses.fields(kind) if f.init]
        case = make_config(seed, folder, names, BYTES)

        def attempt():
            *instances, config = parse_args(types, recipe.DEFAULTS, ["--config", str(case.path)])
            return compare_config(case, config, tuple(instances))

    else:
        case = make_place(seed, folder) if kind == "place" else make_case(kind, seed, folder)
        documents, path = case.label_column is None, str(case.path)
        source = {"dataset_name": path} if seed % 5 == 1 else {"train_file": path}
        if kind == "place" and seed % 3 == 1 and case.path.parent == folder and case.path.name.startswith("train"):
            source = {"dataset_name": str(folder)}

        def rows():
            columns = [*case.text_columns, *([] if documents else [case.label_column])]
            return compare_rows(case, read_rows(case.path, columns, documents=documents), documents)

        def splits(drop=False):
            arguments = DatasetArguments(**source, drop_bad_rows=drop)
            columns = case.text_columns, case.label_column
            return compare_splits(case, *load_splits(arguments, *columns, case.problem_type, case.separator), drop)

        def corpus(streaming=False):
            case.text_columns = case.text_columns[:1]
            arguments = DatasetArguments(**source, max_eval_samples=2 if streaming else None)
            raw, report = load_corpora(arguments, case.text_columns[0], streaming=streaming)
            if not streaming:
                return compare_splits(case, raw, report)
            return compare_rows(case, sorted_rows(raw), documents, blank=False)

        def sorted_rows(raw):
            return [row for split in ("test", "validation", "train") for row in raw[split]]

        calls = [rows, splits, lambda: splits(drop=True)]
        if documents:
            streamed = path.endswith((".txt", ".jsonl", ".ndjson", ".parquet")) and "train_file" in source
            calls = [rows, splits, corpus, lambda: corpus(streamed)]
        attempt = calls[seed // 2 % len(calls)]
    return case, attempt


def judge(case, attempt, tally: Tally) -> str:
    """Try a case within its time; return what is wrong, or an empty string."""
    error_stream, message = io.StringIO(), None
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(error_stream):
            fault = attempt()
    except InputError as error:
        message = str(error)
    except SystemExit as stop:
        message = error_stream.getvalue().removesuffix("\n")
        if stop.code != 2:
            return f"left with code {stop.code}"
    except Hang:
        return f"hung for {SECONDS} s"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} from {Path(place.filename).name}:{place.lineno}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    if message is None:
        tally.correct += 1
        return fault
    tally.refused += 1
    if case.valid:
        return f"refused, though nothing is wrong: {message[:300]}"
    shown = message.replace(str(case.path), "PATH")
    if not shown.strip() or not shown.isprintable() or len(shown) > 2000:
        return f"an unreadable message of {len(shown)} characters: {shown[:200]!r}"
    return ""


def check(kind: str, count: int, tally: Tally) -> None:
    assert not tally.failures, "\n".join([f"{len(tally.failures)} failures", *tally.failures[:5]])
    assert tally.refused + tally.correct == count
    # A kind whose cases all end alike has tested one thing only.
    assert min(tally.refused, tally.correct) > count // 10, tally


@pytest.mark.parametrize("kind", KINDS)
def test_some_broken_inputs(fuzz, kind):
    count = KINDS[kind][1]
    check(kind, count, fuzz(kind, count))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_broken_inputs(fuzz, kind):
    count = KINDS[kind][0]
    check(kind, count, fuzz(kind, count))


def test_there_are_two_thousand_that_are_broken():
    # At most one in eight is left valid, as a control.
    assert sum(full - math.ceil(full / 8) for full, _ in KINDS.values()) >= 2000
    assert sum(some for _, some in KINDS.values()) >= 250


HOSTILE = ["../../label", "/etc/label", "a\nb", "\x1b[2Jc", "$x$ <b> | `d`", "e" * 300, "{f} %s", "---\ng: 1"]


def test_names_from_the_data_never_become_file_names_nor_break_a_run(run_cls, tmp_path):
    files, results = {}, {}
    for kind, names in {"plain": list("abcdefgh"), "hostile": HOSTILE}.items():
        columns = ["text", "label"] if kind == "plain" else ["../text", "../../la\tbel"]
        rows = [{columns[0]: f"word{i % 8} match goal", columns[1]: names[i % 8]} for i in range(40)]
        paths = {split: tmp_path / kind / f"{split}.jsonl" for split in ("train", "validation", "test")}
        (tmp_path / kind).mkdir()
        for path in paths.values():
            path.write_text("\n".join(map(json.dumps, rows)))
        flags = [token for split, path in paths.items() for token in (f"--{split}_file", str(path))]
        flags += ["--text_column", columns[0], "--label_column", columns[1], "--num_train_epochs", "1"]
        output_dir = tmp_path / "outputs" / kind
        before = {*tmp_path.rglob("*")}
        run_cls(*flags, data=False, output_dir=output_dir)
        written = {*tmp_path.rglob("*")} - before - {output_dir, output_dir.parent}
        assert all(path.is_relative_to(output_dir) for path in written)
        files[kind] = sorted(str(path.relative_to(output_dir)) for path in written)
        results[kind] = [json.loads(line) for line in (output_dir / "predictions" / "test.jsonl").open()]
        card = ModelCard.load(output_dir / "README.md")
        assert card.data.pipeline_tag == "text-classification"
    assert files["hostile"] == files["plain"]
    assert [row["gold"] for row in results["hostile"]] == [HOSTILE[i % 8] for i in range(40)]
