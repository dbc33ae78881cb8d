"""Cells as real processes of a stub recipe; how `accelerate launch` starts them is in recipes/test_run_study.py."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT

from ptft_recipes.errors import InputError, StoppedBySignal
from ptft_recipes.launching import Launcher, run_cells, why_it_failed
from ptft_recipes.studies import (
    FAILED,
    FINISHED,
    NOT_RUN,
    Progress,
    check_cells,
    describe_left,
    estimate_seconds,
    open_study,
    plan_cells,
)
from ptft_recipes.study_files import read_study

CPU = ROOT / "accelerate_configs" / "cpu.yaml"
STUB = Path(__file__).parent / "stub_recipe.py"


@pytest.fixture
def plan(tmp_path):
    """Return a function that plans a study of the stub, given its arms as YAML."""

    def make(arms: str, seeds: str = "[1]"):
        path = tmp_path / "study.yaml"
        path.write_text(f"output_dir: {tmp_path}/out\nseeds: {seeds}\narms:\n{arms}".replace("STUB", str(STUB)))
        cells = plan_cells(read_study(path, ROOT / "recipes"))
        check_cells(cells)
        return cells

    return make


def run(cells, parallel=None):
    told = []
    folder = cells[-1].output_dir.parents[2]
    states = run_cells(cells, Launcher(CPU, parallel), folder / "logs", lambda *line: told.append(line))
    return {cell.name: state for cell, state in states.items()}, {line[0].name: line[1:] for line in told}


def starts(cell) -> list[str]:
    return (cell.output_dir / "starts").read_text().splitlines()


@pytest.mark.usefixtures("without_accelerate")
class TestCells:
    ARMS = """\
  good: {recipe: STUB, score: 0.7}
  wrong: {recipe: STUB, fail: error}
  crash: {recipe: STUB, fail: crash}
  silent: {recipe: STUB, fail: silent}
  after: [{recipe: STUB, seed: 9, fail: crash}, {recipe: STUB, model_name_or_path: <previous>}]
"""

    def test_a_failed_cell_keeps_its_log_and_does_not_stop_the_rest(self, plan, tmp_path):
        cells = plan(self.ARMS)
        states, told = run(cells, parallel=4)
        shared = next(cell.name for cell in cells if cell.arm is None)
        assert states == {
            "good-seed1": FINISHED, "wrong-seed1": FAILED, "crash-seed1": FAILED, "silent-seed1": FAILED,
            shared: FAILED, "after-seed1": NOT_RUN,
        }  # fmt: skip
        assert told["wrong-seed1"][2] == "stub_recipe.py: error: no such column"
        assert told["crash-seed1"][2] == "RuntimeError: index out of bounds"
        assert told["after-seed1"][2] == f"{shared} did not finish"
        log = (tmp_path / "out" / "logs" / "crash-seed1.log").read_text()
        assert log.startswith("$ accelerate launch --config_file ")
        assert "Traceback" in log
        assert len(told) == len(cells) == 6

    def test_the_same_command_skips_what_is_finished_and_tries_again_what_failed(self, plan):
        cells = plan(self.ARMS)
        run(cells, parallel=4)
        states, told = run(plan(self.ARMS), parallel=4)
        assert told.keys() == states.keys() - {"good-seed1"}
        assert states["good-seed1"] == FINISHED
        by_name = {cell.name: cell for cell in cells}
        assert len(starts(by_name["good-seed1"])) == 1
        assert len(starts(by_name["wrong-seed1"])) == 2

    def test_a_stage_comes_first_and_is_handed_on(self, plan):
        arms = "  a: [{recipe: STUB, seed: 9, sleep: 0.5}, {recipe: STUB, model_name_or_path: <previous>}]\n"
        cells = plan(arms, seeds="[1, 2]")
        states, told = run(cells, parallel=3)
        assert set(states.values()) == {FINISHED}
        assert next(iter(told)) == cells[0].name
        assert all(f"--model_name_or_path={cells[0].output_dir}" in cell.arguments for cell in cells[1:])

    def test_cells_side_by_side_share_the_cores(self, plan, monkeypatch):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        cells = plan("  a: {recipe: STUB, sleep: 1}\n", seeds="[1, 2, 3, 4]")
        began = time.monotonic()
        run(cells, parallel=4)
        assert time.monotonic() - began < 3.5, "one after another they take 4 s"
        threads = max(len(os.sched_getaffinity(0)) // 4, 1)
        assert [line.split()[1] for cell in cells for line in starts(cell)] == [str(threads)] * 4

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
    def test_a_signal_stops_the_cells_when_they_have_saved(self, plan, number):
        cells = plan("  a: {recipe: STUB, sleep: 60}\n  b: {recipe: STUB}\n")

        def interrupt():
            while not (cells[0].output_dir / "ready").exists() or not cells[1].is_finished():
                time.sleep(0.05)
            os.kill(os.getpid(), number)

        threading.Thread(target=interrupt).start()
        before = signal.getsignal(number)
        with pytest.raises(StoppedBySignal, match=f"{number.name}; 1 of 2 cells are finished, the same command goes"):
            run(cells, parallel=2)
        assert (cells[0].output_dir / "saved").exists()
        assert not psutil.pid_exists(int(starts(cells[0])[0].split()[0]))
        assert signal.getsignal(number) == before
        states, _ = run(cells)
        assert set(states.values()) == {FINISHED}

    def test_who_is_killed_takes_the_cells_along(self, plan, tmp_path):
        cells = plan("  a: {recipe: STUB, sleep: 60}\n")
        child = os.fork()
        if not child:
            run(cells)
            os._exit(0)
        while not (cells[0].output_dir / "ready").exists():
            time.sleep(0.05)
        launcher = psutil.Process(int(starts(cells[0])[0].split()[0])).parent()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        psutil.wait_procs([launcher], timeout=5)
        assert not launcher.is_running()
        psutil.Process(int(starts(cells[0])[0].split()[0])).kill()  # a recipe follows its launcher; the stub does not

    def test_time_is_estimated_from_the_cells_of_an_arm(self, plan, capsys):
        cells = plan("  a: {recipe: STUB}\n  b: {recipe: STUB, score: 0.7}\n", seeds="[1, 2]")
        assert describe_left(cells, 1) == "unknown time left, 4 cells"
        run_cells(cells[:1], Launcher(CPU), cells[0].output_dir.parents[2] / "logs", Progress(cells, 1))
        line = r"\[1/4\] a-seed1: finished \| \d s \| accuracy 0.500 \[0.400, 0.600\] \| about 7 s left, and 2 cells "
        assert re.match(line, capsys.readouterr().out)
        assert {cell.name: seconds for cell, seconds in estimate_seconds(cells).items()} == {
            "b-seed1": None, "a-seed2": 7.0, "b-seed2": None,
        }  # fmt: skip
        run(cells, parallel=2)
        assert describe_left(cells, 1) == "nothing left"


@pytest.mark.usefixtures("without_accelerate")
def test_a_finished_cell_of_other_arguments_is_refused_and_named(plan):
    run(plan("  a: {recipe: STUB, score: 0.6}\n"))
    with pytest.raises(InputError, match=r"arms/a/seed-1 was run with other arguments \(score: 0.6 then, now 0.7\)"):
        plan("  a: {recipe: STUB, score: 0.7}\n")
    plan("  a: {recipe: STUB, score: 0.6}\n  b: {recipe: STUB}\n", seeds="[1, 2]")  # more arms and seeds are fine


def test_the_recipe_checks_the_arguments_of_its_cells(plan):
    with pytest.raises(InputError, match=r"study.yaml:4: stub_recipe: unrecognized arguments: --scroe=1"):
        plan("  a: {recipe: STUB, scroe: 1}\n")


def test_a_recipe_that_cannot_be_imported_is_named(tmp_path, plan):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    with pytest.raises(InputError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        plan(f"  a: {{recipe: {tmp_path}/broken.py}}\n")


def test_a_study_runs_once_at_a_time(tmp_path):
    (tmp_path / "study.yaml").write_text(f"seeds: [1]\noutput_dir: {tmp_path}/out\narms: {{a: {{recipe: {STUB}}}}}")
    study = read_study(tmp_path / "study.yaml", ROOT)
    child = os.fork()
    if not child:
        open_study(study)
        (tmp_path / "held").touch()
        time.sleep(60)
    while not (tmp_path / "held").exists():
        time.sleep(0.02)
    with pytest.raises(InputError, match="another process runs the study"):
        open_study(study)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    open_study(study)
    assert (tmp_path / "out" / "study.yaml").read_text() == study.text


class TestLauncher:
    def test_one_cell_per_gpu(self, plan, monkeypatch):
        cell = plan("  a: {recipe: STUB}\n")[0]
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        launcher = Launcher(ROOT / "accelerate_configs" / "single_gpu.yaml")
        assert launcher.slots == 2
        command = launcher.command(cell, slot=1)
        assert "--gpu_ids 1 --main_process_port 0" in " ".join(command)
        parsed = launch_command_parser().parse_args(command[2:])  # accelerate's own
        assert (parsed.gpu_ids, parsed.main_process_port, parsed.training_script) == ("1", 0, str(STUB))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
        four = Launcher(ROOT / "accelerate_configs" / "single_gpu.yaml", 4)
        assert [four.command(cell, slot)[5] for slot in range(4)] == ["5", "3", "5", "3"]
        assert Launcher(ROOT / "accelerate_configs" / "multi_gpu.yaml").slots == 1
        assert Launcher(CPU).slots == 1

    @pytest.mark.parametrize(("file", "parallel", "message"), [
        ("none.yaml", 1, r"none\.yaml: no such file"),
        ("multi_cpu.yaml", 2, "starts 2 processes per cell"),
        ("cpu.yaml", -1, "--parallel -1: give 1 or more"),
    ])  # fmt: skip
    def test_what_cannot_be_started_is_refused(self, file, parallel, message):
        with pytest.raises(InputError, match=message):
            Launcher(ROOT / "accelerate_configs" / file, parallel)


ACCELERATE = (
    "Traceback (most recent call last):\nsubprocess.CalledProcessError: Command x returned non-zero exit status"
)
TORCHRUN = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: x"


@pytest.mark.parametrize(("text", "reason"), [
    (f"x\nfinetune_cls.py: diverged: nan\n{ACCELERATE}", "finetune_cls.py: diverged: nan"),
    (f"a.py, rank 1: error: no room\na.py, rank 0: lost: one is gone\n{TORCHRUN}", "a.py, rank 1: error: no room"),
    (f"a.py, rank 0: lost: one is gone\n{TORCHRUN}", "a.py, rank 0: lost: one is gone"),
    (f"Traceback (most recent call last):\nKeyError: 'a'\n{ACCELERATE}", "KeyError: 'a'"),
    (f"torch.OutOfMemoryError: no room\n{TORCHRUN}", "torch.OutOfMemoryError: no room"),
    ("killed", "killed"),
    ("", "it said nothing"),
])  # fmt: skip
def test_a_log_tells_why(tmp_path, text, reason):
    earlier = "earlier.py: error: of another try\n"
    (tmp_path / "log").write_text(earlier + text)
    assert why_it_failed(tmp_path / "log", start=len(earlier)) == reason
