"""Runs of recipes in several processes, as torchrun would start them: each process does all of the runs."""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import load_recipe
from reliability.killing import CONTEXT


def run_rank(rank: int, world: int, port: int, jobs: list, log: str, prepare: Callable[[int], None] | None) -> None:
    """Be one process of several, as torchrun would start it, and do some runs."""
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_PORT": str(port)}
    try:
        if prepare:
            prepare(rank)
        for recipe, argv in jobs:
            load_recipe(recipe).main(argv)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of gloo would take the process with them


def run_ranks(
    world: int, jobs: list, folder: Path, name: str, prepare: Callable[[int], None] | None = None, code: int = 0
) -> str:
    """Do some runs in several processes, wait for them, and return what the first one said.

    Args:
        world: How many processes.
        jobs: `(recipe, argv)` of each run.
        folder: For the logs.
        name: Of the logs.
        prepare: Called with its rank in each process, before the runs.
        code: With which all of them must end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [str(folder / f"{name}-{world}-{rank}.log") for rank in range(world)]
    ranks = [CONTEXT.Process(target=run_rank, args=(r, world, port, jobs, logs[r], prepare)) for r in range(world)]
    try:
        for process in ranks:
            process.start()
        for process, log in zip(ranks, logs, strict=True):
            process.join(30 + 30 * len(jobs))
            assert process.exitcode == code, Path(log).read_text()[-3000:]
    finally:
        for process in ranks:
            process.kill()
    return Path(logs[0]).read_text()
