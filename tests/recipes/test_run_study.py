import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, load_recipe

from ptft_recipes.errors import InputError

STUB = ROOT / "tests" / "stub_recipe.py"


@pytest.fixture(scope="module")
def run_study():
    """The recipe as a module."""
    return load_recipe("run_study")


def write(path: Path, output_dir: Path, arms: dict[str, str], seeds: str = "[1, 2]") -> str:
    """Write a study of the stub, and return its path."""
    lines = [f"seeds: {seeds}", f"output_dir: {output_dir}", f"common: {{{STUB}: {{rows: 60}}}}", "arms:"]
    lines += [f"  {name}: {{recipe: {STUB}, {options}}}" for name, options in arms.items()]
    path.write_text("\n".join(lines))
    return str(path)


ARMS = {"base": "score: 0.6", "better": "score: 0.95"}


@pytest.fixture(scope="module")
def finished(run_study, tmp_path_factory, without_accelerate):
    """A study that was run to its end: its folder, what `main` returned, and what it printed."""
    out = tmp_path_factory.mktemp("study") / "out"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        results = run_study.main(["--study", write(out.parent / "mine.yaml", out, ARMS), "--parallel", "4"])
    return out, results, printed.getvalue()


class TestStudy:
    def test_it_runs_every_cell_once_and_compares_the_arms(self, finished):
        out, results, printed = finished
        assert printed.startswith(f"study: {out}, 4 cells, 0 of them finished\n[1/4] ")
        assert "| nothing left\n" in printed
        assert [row["seeds"] for row in results["arms"]] == [[1, 2], [1, 2]]
        assert results["arms"][1]["difference"] > 0.2
        files = {path.name for path in out.iterdir()}
        assert {"study.yaml", "forest.png", "report.html", "table.csv", "table.json", "table.md"} <= files
        assert (out / "study.yaml").read_text() == (out.parent / "mine.yaml").read_text()
        assert (out / "table.md").read_text() in printed

    def test_more_arms_run_alone(self, run_study, finished, tmp_path, capsys):
        out = finished[0]
        more = write(tmp_path / "more.yaml", out, ARMS | {"more": "score: 0.7"}, seeds="[1]")
        run_study.main(["--study", more])
        printed = capsys.readouterr().out
        assert "3 cells, 2 of them finished" in printed
        assert printed.count("\n[") == 1
        starts = [len(path.read_text().splitlines()) for path in out.glob("arms/*/seed-*/starts")]
        assert starts == [1] * 5

    def test_a_dry_run_starts_nothing(self, run_study, finished, tmp_path, capsys):
        out = finished[0]
        study = write(tmp_path / "dry.yaml", out, ARMS | {"new": "score: 0.8"}, seeds="[3]")
        assert run_study.main(["--study", study, "--dry_run", "--output_dir", str(tmp_path / "out")]) is None
        lines = capsys.readouterr().out.splitlines()
        assert lines[1] == "# base-seed3: unknown time"
        assert lines[2].startswith("accelerate launch --config_file ")
        assert lines[2].endswith(f"--output_dir={tmp_path}/out/arms/base/seed-3")
        assert lines[-1] == "# unknown time left, 3 cells"
        assert not (tmp_path / "out").exists()
        study = write(tmp_path / "dry.yaml", out, ARMS | {"new": "score: 0.8"}, seeds="[1, 3]")
        run_study.main(["--study", study, "--dry_run", "--parallel", "2"])
        assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")] == [
            "# new-seed1: unknown time", "# base-seed3: 11 s", "# better-seed3: 11 s", "# new-seed3: unknown time",
            "# about 11 s left, and 2 cells of unknown time",
        ]  # fmt: skip

    def test_other_arguments_are_refused_before_anything_runs(self, run_study, finished, tmp_path):
        other = write(tmp_path / "other.yaml", finished[0], {"another": "score: 0.7", "base": "score: 0.9"})
        with pytest.raises(InputError, match=r"base/seed-1 was run with other arguments \(score: 0.6 then, now 0.9\)"):
            run_study.main(["--study", other])
        assert not (finished[0] / "arms" / "another").exists()

    def test_a_failed_cell_is_named_and_the_rest_compared(self, run_study, finished, tmp_path, capsys):
        arms = {"base": "score: 0.6", "broken": "fail: error, rows: 0"}
        study = write(tmp_path / "mine.yaml", tmp_path / "out", arms, seeds="[1]")
        with pytest.raises(SystemExit) as stop:
            run_study.main(["--study", study, "--parallel", "2"])
        assert stop.value.code == 1
        out, err = capsys.readouterr()
        assert err.endswith("run_study.py: not finished: broken-seed1\n")
        assert re.search(r"\] broken-seed1: failed \| \d s \| stub_recipe.py: error: no such column \| ", out)
        assert "Left out: broken: an arm without results" in out
        assert "| base | 1 |" in out
        assert "logs/broken-seed1.log" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(("option", "message"), [
    ("learning_rte: 1", "unknown argument --learning_rte; did you mean '--learning_rate'?"),
    ("learning_rate: [1, 2]", "unexpected value '2'"),
    ("learning_rate: -1", "argument --learning_rate: -1.0 is out of range"),
    ("eval_strategy: steps", "--load_best_model_at_end requires"),
])  # fmt: skip
def test_the_recipes_check_their_arguments_before_anything_runs(run_study, tmp_path, option, message):
    arms = f"arms: {{a: {{recipe: finetune_cls, {option}}}}}"
    (tmp_path / "mine.yaml").write_text(f"seeds: [1]\noutput_dir: {tmp_path}/out\n{arms}")
    with pytest.raises(InputError) as error:
        run_study.main(["--study", str(tmp_path / "mine.yaml")])
    assert str(error.value).startswith(f"{tmp_path}/mine.yaml:3: finetune_cls: ")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_cells_under_accelerate_are_stopped_and_go_on(tmp_path, checkpoint, corpus, topics):
    """Pre-training once, fine-tuning with two seeds from it and from the checkpoint; stopped after the first cell."""
    files = ", ".join(f"{split}_file: {path}" for split, path in topics.items())
    texts = ", ".join(f"{split}_file: {path}" for split, path in corpus.items())
    tiny = "max_length: 32, per_device_train_batch_size: 8, bf16: false, learning_rate: 5e-3"
    (tmp_path / "mine.yaml").write_text(f"""\
seeds: [1, 2]
output_dir: out
common:
  finetune_cls: {{{files}, {tiny}, num_train_epochs: 2}}
  pretrain_mlm: {{{texts}, {tiny}, model_name_or_path: {checkpoint}, num_train_epochs: 1}}
arms:
  base: {{recipe: finetune_cls, model_name_or_path: {checkpoint}}}
  papers: [{{recipe: pretrain_mlm, seed: 7}}, {{recipe: finetune_cls, model_name_or_path: <previous>}}]
""")
    command = [sys.executable, str(ROOT / "recipes" / "run_study.py"), "--study", "mine.yaml", "--parallel", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    out = tmp_path / "out"
    while process.poll() is None and not list(out.rglob("results.json")):
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 75
    assert not [child for child in children if child.is_running()]
    finished = {path.parent for path in out.rglob("results.json")}
    assert 1 <= len(finished) < 5

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"5 cells, {len(finished)} of them finished" in done.stdout
    stage = next((out / "stages").iterdir())
    for seed in (1, 2):
        results = json.loads((out / "arms" / "papers" / f"seed-{seed}" / "results.json").read_text())
        assert results["run"]["config"]["model_name_or_path"] == str(Path("out/stages") / stage.name)
        assert [step["recipe"] for step in results["run"]["lineage"]] == ["pretrain_mlm", "finetune_cls"]
    assert "| papers | 2 |" in done.stdout
    assert "pretrain_mlm" in (out / "report.html").read_text()
    # A changed study is refused by name; the same one has nothing left to do.
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "5 cells, 5 of them finished\n\n" in again.stdout
