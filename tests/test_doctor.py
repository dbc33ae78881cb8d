"""What the doctor finds, on machines that are made up, and by launchers that really start."""

import http.server
import importlib.metadata
import importlib.util
import json
import os
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from huggingface_hub import constants

from ptft_recipes import doctor, processes
from ptft_recipes.commands import main
from ptft_recipes.doctor import Finding, format_finding

GIB = 2**30
LAUNCHED = {"WORLD_SIZE": "", "ACCELERATE_USE_CPU": "False", "ACCELERATE_MIXED_PRECISION": "no"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "HF_TOKEN", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def config_file(tmp_path, name="multi_cpu", **changes):
    lines = (ROOT / "accelerate_configs" / f"{name}.yaml").read_text().splitlines()
    kept = [line for line in lines if line.partition(":")[0] not in changes]
    path = tmp_path / "accelerate.yaml"
    path.write_text("\n".join([*kept, *(f"{key}: {value}" for key, value in changes.items())]))
    return str(path)


class TestProcesses:
    @pytest.mark.parametrize("is_real", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_a_configuration_that_starts_fewer_than_it_says_is_wrong(self, is_real, tmp_path, monkeypatch):
        if not is_real:  # in place of accelerate one that starts a single process, too
            code = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[-2:]]))"
            monkeypatch.setattr(processes, "LAUNCH", [sys.executable, "-c", code])
        file = config_file(tmp_path, distributed_type="MULTI_CPU")
        started, finding = doctor._processes(torch, processes.read_accelerate_config(file))
        assert len(started) == 1
        assert (finding.state, finding.found) == ("wrong", f"{file} starts 1; it asks for 2")
        assert "distributed_type MULTI_CPU does not start more" in finding.remedy
        assert "ptft cp --accelerate multi_cpu" in finding.remedy

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "count"), [("multi_cpu", 2), ("cpu", 1), ("single_gpu", 1), ("multi_gpu", 2)])
    def test_those_that_travel_with_the_library_start_what_they_say(self, name, count):
        file = str(ROOT / "accelerate_configs" / f"{name}.yaml")
        started, finding = doctor._processes(torch, processes.read_accelerate_config(file))
        assert len(started) == count
        assert finding == Finding("processes", f"{file} starts {count}")

    def test_one_that_cannot_start_is_told_in_the_launchers_words(self, tmp_path, monkeypatch):
        file = config_file(tmp_path)
        monkeypatch.setattr(processes, "LAUNCH", [sys.executable, "-c", "raise ValueError('no such device')"])
        started, finding = doctor._processes(torch, processes.read_accelerate_config(file))
        assert started == []
        assert (finding.state, finding.found) == ("wrong", f"{file} starts none: ValueError: no such device")

    def test_one_that_hangs_is_not_waited_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr(processes, "LAUNCH", [sys.executable, "-c", "import time; time.sleep(60)"])
        monkeypatch.setattr(processes, "LAUNCH_SECONDS", 0.2)
        _, finding = doctor._processes(torch, processes.read_accelerate_config(config_file(tmp_path)))
        assert "starts none: nothing came for 0.2 s" in finding.found

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"num_machines": 2, "num_processes": 8}, "waits for 2 machines; 4 of 8 processes are for this one"),
            ({"mpirun_config": "{mpirun_hostfile: hosts}"}, "starts processes on the hosts of mpirun"),
            ({"tpu_use_cluster": "true"}, "starts a cluster of TPUs"),
        ],
    )
    def test_what_would_reach_other_machines_is_not_started(self, changes, why, tmp_path, monkeypatch):
        monkeypatch.setattr(processes, "start_processes", lambda file: pytest.fail("it was started"))
        _, finding = doctor._processes(torch, processes.read_accelerate_config(config_file(tmp_path, **changes)))
        assert finding.state == "note"
        assert f"not tried, because it {why}" in finding.found

    @pytest.mark.parametrize(
        ("name", "gpus", "environment", "state", "told"),
        [
            ("multi_gpu", 1, {}, "wrong", "more processes than GPUs"),
            ("multi_gpu", 2, {}, "ok", ""),
            ("multi_gpu", 4, {}, "note", "--num_processes 4 would use all"),
            ("multi_cpu", 2, {}, "note", "add --use_cpu true to the recipe"),
            ("multi_cpu", 1, {"ACCELERATE_USE_CPU": "True"}, "ok", ""),
        ],
    )
    def test_processes_and_gpus_are_compared(self, name, gpus, environment, state, told, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(processes, "start_processes", lambda file: ([LAUNCHED | environment] * 2, ""))
        file = str(ROOT / "accelerate_configs" / f"{name}.yaml")
        _, finding = doctor._processes(torch, processes.read_accelerate_config(file))
        assert finding.state == state
        assert told in finding.remedy

    def test_a_model_that_would_be_cut_over_cpus_is_wrong(self, monkeypatch):
        monkeypatch.setattr(processes, "start_processes", lambda file: ([LAUNCHED] * 2, ""))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        file = str(ROOT / "accelerate_configs" / "fsdp2.yaml")
        _, finding = doctor._processes(torch, processes.read_accelerate_config(file))
        assert finding.state == "wrong"
        assert finding.found == f"{file} starts 2, and there are no GPUs to cut a model over"
        assert "ptft cp --accelerate multi_cpu" in finding.remedy
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        _, finding = doctor._processes(torch, processes.read_accelerate_config(file))
        assert finding == Finding("processes", f"{file} starts 2")

    @pytest.mark.parametrize("stage", [2, 3])
    def test_deepspeed_that_is_not_installed_is_named(self, stage, monkeypatch):
        monkeypatch.setattr(processes, "start_processes", lambda file: ([], "ImportError: DeepSpeed is not installed"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        file = str(ROOT / "accelerate_configs" / f"deepspeed_zero{stage}.yaml")
        _, finding = doctor._processes(torch, processes.read_accelerate_config(file))
        assert (finding.state, finding.found) == (
            "wrong",
            f"{file} starts none: ImportError: DeepSpeed is not installed",
        )
        assert finding.remedy == "python -m pip install 'ptft-recipes[deepspeed]'"

    def test_a_file_that_is_none_of_accelerate_is_refused(self, tmp_path, capsys):
        assert main(["doctor", "--accelerate_config", str(tmp_path / "none.yaml")]) == 2
        assert "no such file; `ptft ls --accelerate` lists some" in capsys.readouterr().err
        (tmp_path / "odd.yaml").write_text("learning_rate: 1\n")
        with pytest.raises(ValueError, match=r"odd\.yaml: .*`accelerate config` writes a new one"):
            processes.read_accelerate_config(str(tmp_path / "odd.yaml"))


class TestPrecision:
    @pytest.mark.parametrize(
        ("gpu", "native", "told", "state", "found"),
        [
            (False, True, {}, "ok", "bf16, in which this CPU computes natively"),
            (False, False, {}, "ok", "fp32: this CPU is not faster in bf16"),
            (True, False, {}, "ok", "fp32: this device is not faster in bf16 (--fp16 true may help)"),
            (False, True, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "wrong", "fp16, which CPUs do not train in"),
            (True, True, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "ok", "fp16, because the configuration says so"),
            (False, False, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "note", "bf16, because the configuration says so"),
            (True, True, {"ACCELERATE_USE_CPU": "True"}, "ok", "bf16, in which this CPU computes natively"),
        ],
    )
    def test_it_is_the_one_that_recipes_use(self, gpu, native, told, state, found, monkeypatch):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
        finding = doctor._precision(torch, [LAUNCHED | told], lambda use_cpu: native)
        assert finding.state == state
        assert finding.found.startswith(found)


class TestAccelerator:
    def test_a_driver_without_a_device_is_wrong(self, monkeypatch):
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
        finding = doctor._accelerator(torch)
        assert (finding.state, finding.name) == ("wrong", "accelerator")
        assert f"torch {torch.__version__} " in finding.remedy
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert doctor._accelerator(torch).state == "note"
        monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
        assert doctor._accelerator(torch) == Finding("accelerator", "none; training runs on the CPU")

    @pytest.mark.parametrize(("free", "state"), [(70, "ok"), (3, "note")])
    def test_a_gpu_is_named_with_its_memory(self, free, state, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ((free if i == 0 else 80) * GIB, 80 * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "H100")
        finding = doctor._accelerator(torch)
        assert finding.found == f"H100 ({free}.0 of 80.0 GiB free), H100 (80.0 of 80.0 GiB free)"
        assert finding.state == state

    def test_one_thread_where_there_are_cores_is_noted(self, monkeypatch):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
        assert doctor._threads() == Finding("CPU", "4 cores for this process")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert doctor._threads().state == "note"

    def test_a_launcher_of_another_environment_is_noted(self, monkeypatch, tmp_path):
        monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
        assert doctor._launcher().state == "wrong"
        monkeypatch.setattr(doctor.shutil, "which", lambda name: str(tmp_path / name))
        assert doctor._launcher().state == "note"
        scripts = doctor.sysconfig.get_path("scripts")
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"{scripts}/{name}")
        assert doctor._launcher() == Finding("launcher", f"{scripts}/accelerate")


class TestVersions:
    def test_a_package_that_is_too_old_or_missing_is_wrong(self, monkeypatch):
        required = ["transformers>=5.23,<6", "no-such-package>=1", "peft>=0.1", 'optuna>=99; extra == "search"']
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
        version = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: "4.57" if name == "transformers" else version(name)
        )
        first, *wrong = doctor._versions()
        assert "transformers 4.57" in first.found
        assert [(finding.state, finding.found) for finding in wrong] == [
            ("wrong", "transformers 4.57; needed is transformers<6,>=5.23"),
            ("wrong", "no-such-package is not installed; needed is no-such-package>=1"),
        ]
        assert wrong[0].remedy == "python -m pip install 'transformers<6,>=5.23'"


@pytest.fixture
def hub(monkeypatch):
    """Return a function that lets a server on this machine answer as the Hub would; and what it was asked."""
    servers = []

    def serve(status: int, body: str):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append((self.path, self.headers.get("authorization")))
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
        return asked

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


class TestHub:
    ME = json.dumps({"name": "me", "auth": {"accessToken": {"role": "write"}}})

    @pytest.mark.parametrize(
        ("token", "status", "body", "state", "told"),
        [
            ("hf_x", 200, ME, "ok", "as me (token of HF_TOKEN)"),
            ("hf_x", 200, ME.replace("write", "read"), "note", "as me (token of HF_TOKEN)"),
            ("hf_x", 401, "{}", "wrong", "refuses the token of HF_TOKEN"),
            (None, 401, "{}", "note", "answers; no login"),
            (None, 503, "{}", "wrong", "answers with 503"),
            ("hf_x", 200, "<html>log in to this network</html>", "wrong", "does not answer as the Hub does"),
        ],
    )
    def test_its_answer_is_put_into_words(self, token, status, body, state, told, hub, monkeypatch):
        asked = hub(status, body)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        finding = doctor._hub()
        assert (finding.state, told in finding.found) == (state, True), finding
        assert asked == [("/api/whoami-v2", f"Bearer {token}" if token else None)]
        assert "hf_x" not in finding.found + finding.remedy

    def test_a_hub_that_says_nothing_is_not_waited_for(self, hub, monkeypatch):
        with http.server.HTTPServer(("127.0.0.1", 0), None) as silent:  # listens, and never accepts
            hub(200, "")
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.server_port}")
            monkeypatch.setattr(doctor, "HUB_SECONDS", 0.2)
            finding = doctor._hub()
        assert finding.state == "wrong"
        assert "Timeout" in finding.found
        assert "HF_HUB_OFFLINE=1" in finding.remedy

    def test_offline_nobody_is_asked(self, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert doctor._hub().found == "offline, because HF_HUB_OFFLINE is set; not asked"


class TestDisk:
    def test_a_full_disk_and_a_folder_without_rights_are_wrong(self, tmp_path, monkeypatch):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=10 * GIB))
        folder = tmp_path / "runs" / "new"
        assert doctor._disk("disk", folder, 3, "go") == Finding("disk", f"10.0 GiB free in {folder}")
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2.5 * GIB))
        finding = doctor._disk("disk", folder, 3, "choose another")
        assert (finding.state, finding.remedy) == ("wrong", "Make room, or choose another")
        (tmp_path / "runs").write_text("a file")
        assert "cannot be written to" in doctor._disk("disk", folder, 3, "go").found


class TestCommand:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch, tmp_path):
        monkeypatch.setattr(processes, "start_processes", lambda file: ([LAUNCHED], ""))
        monkeypatch.setattr(processes, "default_config_file", str(tmp_path / "none"))
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"{doctor.sysconfig.get_path('scripts')}/{name}")
        monkeypatch.setattr(doctor, "_accelerator", lambda torch: Finding("accelerator", "none"))
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * GIB))
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.chdir(tmp_path)

    def test_it_ends_with_0_where_nothing_is_wrong_and_with_1_else(self, capsys, monkeypatch):
        assert main(["doctor"]) == 0
        told = capsys.readouterr().out
        assert told.endswith("\nnothing is wrong\n")
        for name in ("versions", "accelerator", "CPU", "launcher", "processes", "precision", "Hub", "disk: output"):
            assert f"  {name} " in told
        assert [line for line in told.splitlines() if len(line) > 80 and " " in line[22:].strip()] == []
        monkeypatch.setattr(doctor, "_hub", lambda: Finding("Hub", "is gone", "wrong", "Wait."))
        assert main(["doctor"]) == 1
        told = capsys.readouterr().out
        assert "wrong Hub             is gone\n                      Wait.\n" in told
        assert told.endswith("\n1 of these is wrong\n")

    def test_a_library_that_does_not_load_is_a_finding(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "ptft_recipes.processes", None)
        assert main(["doctor"]) == 1
        assert "libraries" in capsys.readouterr().out

    def test_lines_are_cut_between_words(self):
        text = format_finding(Finding("processes", "word " * 40, "note", "a-b " * 30), 80)
        assert max(map(len, text.splitlines())) <= 80
        assert text.startswith("note  processes       word word")
