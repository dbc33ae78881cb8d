"""Two machines, each a network namespace with an address of its own: they train as one, and outlive a cut link."""

import contextlib
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from ptft_recipes.checkpoints import checkpoints_in, find_damage

ADDRESSES = ["10.77.0.1", "10.77.0.2"]
CONFIG = ROOT / "accelerate_configs" / "multi_node.yaml"
pytestmark = pytest.mark.slow


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def machines():
    """Two namespaces that a cable joins; skipped where there is no right to make them."""
    names = [f"ptft-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no right to make network namespaces")
    try:
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


def start(subject, machines, name: str, *flags: str) -> list[subprocess.Popen]:
    """Start the same command on both machines; each has a log of its own."""
    processes = []
    for rank, machine in enumerate(machines):
        command = ["ip", "netns", "exec", machine, sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(CONFIG), "--machine_rank", str(rank), "--main_process_ip", ADDRESSES[0]]
        command += [str(ROOT / "recipes" / f"{subject.recipe}.py"), *subject.argv, *flags]
        command += ["--output_dir", str(subject.output_dir(name))]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1"}
        with open(subject.folder / f"{name} {rank}.log", "a", encoding="utf-8") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    return processes


def logs(subject, name: str) -> list[str]:
    return [subject.log(f"{name} {rank}") for rank in range(2)]


def codes(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    return [process.wait(timeout=max(end - time.monotonic(), 0.1)) for process in processes]


@pytest.mark.parametrize("kind", ["full", "mlm"])
def test_a_cut_link_ends_both_and_the_same_commands_go_on(subjects, machines, kind):
    subject = subjects(kind)
    launcher = subject.launch("one machine", 2)
    assert launcher.wait(timeout=300) == 0, subject.log("one machine")
    whole = subject.end("one machine")

    assert codes(start(subject, machines, "two"), 300) == [0, 0], logs(subject, "two")
    assert subject.end("two") == whole, "two machines train as two processes of one"

    processes = start(subject, machines, "cut", "--logging_steps", "1")
    deadline = time.monotonic() + 120
    while not [path for path in checkpoints_in(subject.output_dir("cut")) if not find_damage(path)]:
        assert time.monotonic() < deadline, logs(subject, "cut")
        time.sleep(0.05)
    try:
        ip("-n", machines[0], "link", "set", "cable", "down")
        assert codes(processes, 60) == [1, 1], "accelerate's code, within a minute"
    finally:
        ip("-n", machines[0], "link", "set", "cable", "up")
    for rank, log in enumerate(logs(subject, "cut")):
        assert f"{subject.recipe}.py, rank {rank}: lost: another process of this run is gone" in log
    assert [path for path in checkpoints_in(subject.output_dir("cut")) if not find_damage(path)]
    assert codes(start(subject, machines, "cut", "--logging_steps", "1"), 300) == [0, 0], logs(subject, "cut")
    assert "going on from" in logs(subject, "cut")[0]
    assert subject.end("cut") == whole
