"""Runs as processes of `accelerate launch`, one after another or side by side, that end with whoever started them."""

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from accelerate.commands.config.config_args import load_config_from_file

from ptft_recipes.errors import InputError, StoppedBySignal, one_line
from ptft_recipes.interruption import PR_SET_PDEATHSIG
from ptft_recipes.studies import FAILED, FINISHED, NOT_RUN, Cell

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]  # `accelerate launch` of this environment
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: not in a child that is being forked
POLL_SECONDS = 0.2
TOLD_BY_A_RECIPE = r"\S+\.py(, rank \d+)?: (error|diverged|lost|stopped|interrupted)\b.*"


class Launcher:
    """Starts the recipe of a cell.

    Args:
        accelerate_config: File for `accelerate launch --config_file`.
        parallel: Cells side by side; by default one per GPU if the file is for one process on a GPU, and else one.

    Raises:
        InputError: The file cannot be read, or several cells of several processes each would run side by side.
    """

    def __init__(self, accelerate_config: str | Path, parallel: int | None = None):  # noqa: D107
        if not Path(accelerate_config).is_file():
            raise InputError(f"--accelerate_config {accelerate_config}: no such file")
        try:
            config = load_config_from_file(str(accelerate_config))
        except Exception as error:  # of YAML or JSON, or accelerate's own
            raise InputError(f"--accelerate_config {accelerate_config}: {one_line(error)}") from error
        self.file, self.on_cpu = str(accelerate_config), config.use_cpu or not torch.cuda.is_available()
        self.gpus = [] if self.on_cpu or config.num_processes > 1 else _visible_gpus()
        self.slots = parallel or max(len(self.gpus), 1)
        if self.slots < 1:
            raise InputError(f"--parallel {parallel}: give 1 or more")
        if self.slots > 1 and config.num_processes > 1:
            raise InputError(
                f"--parallel {self.slots}: {accelerate_config} starts {config.num_processes} processes per cell; use "
                "a file for one process, or --parallel 1"
            )

    def command(self, cell: Cell, slot: int = 0) -> list[str]:
        """Return the words of `accelerate launch ...` for a cell.

        Args:
            cell: To run.
            slot: Which of the cells that run side by side it is; decides the GPU.
        """
        flags = ["--config_file", self.file]
        if self.gpus:
            flags += ["--gpu_ids", self.gpus[slot % len(self.gpus)]]
        if self.slots > 1:
            flags += ["--main_process_port", "0"]  # else all take the same
        flags += [str(cell.recipe), *cell.arguments, f"--output_dir={cell.output_dir}"]
        return ["accelerate", "launch", *flags]

    def start(self, cell: Cell, slot: int, log: Path) -> subprocess.Popen:
        """Start a cell; what it says goes to the end of a file.

        Args:
            cell: To run.
            slot: As for `command`.
            log: The file.
        """
        environment = os.environ.copy()
        if self.slots > 1 and self.on_cpu:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            environment["OMP_NUM_THREADS"] = str(max(cores // self.slots, 1))
        command = self.command(cell, slot)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {shlex.join(command)}\n")
            file.flush()
            return subprocess.Popen(
                [*LAUNCH, *command[2:]],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C in a terminal reaches a whole session: here it is handed on once, as SIGTERM.
                start_new_session=True,
                preexec_fn=DIE_WITH_PARENT,
            )


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [gpu.strip() for gpu in named.split(",")] if named else [str(i) for i in range(torch.cuda.device_count())]


def _die_with_parent() -> None:
    # The launcher ends when this process does, however that ends; the recipe then saves, by `follow_launcher`.
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


DIE_WITH_PARENT = _die_with_parent if sys.platform == "linux" else None  # for `preexec_fn`


def run_cells(
    cells: list[Cell], launcher: Launcher, logs: Path, tell: Callable[[Cell, str, float, str], None]
) -> dict[Cell, str]:
    """Run the cells that are not finished, each after what it needs; one that fails does not stop the rest.

    Args:
        cells: Of a study, in the order in which to start them.
        launcher: That starts them.
        logs: Folder for a log per cell.
        tell: Called with a cell, its state, its seconds and the reason when it has come to its end.

    Returns:
        The state of every cell: finished, failed, or not run because what it needs has failed.

    Raises:
        StoppedBySignal: By SIGTERM or Ctrl-C; the cells that ran were told, have saved and ended.
    """
    states = {cell: FINISHED for cell in cells if cell.is_finished()}
    running: dict[int, tuple[Cell, subprocess.Popen, float, int]] = {}
    with _Signals() as signals:
        while len(states) < len(cells):
            for slot in sorted(set(range(launcher.slots)) - running.keys()):
                if (cell := _next(cells, states, running)) is not None:
                    log = logs / f"{cell.name}.log"
                    size = log.stat().st_size if log.exists() else 0
                    running[slot] = cell, launcher.start(cell, slot, log), time.monotonic(), size
            for cell in [cell for cell in cells if cell not in states and states.get(cell.needs) in (FAILED, NOT_RUN)]:
                states[cell] = NOT_RUN
                tell(cell, NOT_RUN, 0.0, f"{cell.needs.name} did not finish")
            time.sleep(POLL_SECONDS if running else 0)
            for slot, (cell, process, started, size) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                if signals.received:
                    continue  # told to stop by the one who told us
                states[cell] = FINISHED if process.returncode == 0 and cell.is_finished() else FAILED
                reason = "" if states[cell] == FINISHED else why_it_failed(logs / f"{cell.name}.log", size)
                tell(cell, states[cell], time.monotonic() - started, reason)
            if signals.received:
                _stop([process for _, process, _, _ in running.values()])
                done = sum(cell.is_finished() for cell in cells)
                raise StoppedBySignal(
                    f"{signals.received.name}; {done} of {len(cells)} cells are finished, the same command goes on"
                )
    return states


def _next(cells: list[Cell], states: dict[Cell, str], running: dict) -> Cell | None:
    busy = {cell for cell, *_ in running.values()}
    ready = (cell for cell in cells if cell not in states and cell not in busy)
    return next((cell for cell in ready if cell.needs is None or states.get(cell.needs) == FINISHED), None)


def _stop(processes: list[subprocess.Popen]) -> None:
    """Send SIGTERM to launchers and to all that they have started, and wait until these have saved."""
    told = []
    for process in processes:
        try:
            launcher = psutil.Process(process.pid)
            told += [launcher, *launcher.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    for process in told:
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(told)


def why_it_failed(log: Path, start: int = 0) -> str:
    """Return the line in which a recipe, or the last traceback, says why it ended.

    Args:
        log: What the process said.
        start: Bytes that are of earlier tries.
    """
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    if told := [match.group() for match in re.finditer(rf"^{TOLD_BY_A_RECIPE}", text, re.M)]:
        # The process that ended the others, not one of them.
        return one_line(([line for line in told if ": lost: " not in line] or told)[-1])
    # Of accelerate's own traceback only the first line of ours is of interest.
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*", text, re.M)
    own = [line for line in errors if "CalledProcessError" not in line and "ChildFailedError" not in line]
    lines = text.strip().splitlines()
    return one_line(own[-1] if own else lines[-1] if lines else "it said nothing")


class _Signals:
    """Remembers SIGTERM or Ctrl-C while it is entered; a second Ctrl-C is a KeyboardInterrupt."""

    def __init__(self):
        self.received: signal.Signals | None = None
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        os.write(2, b"\nstopping: the cells that run save a checkpoint; Ctrl-C once more leaves them to it\n")
