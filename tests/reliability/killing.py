"""Recipes in processes of their own, which end where a test wants them to."""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import psutil
from conftest import load_recipe

# A server that has imported everything forks for each run: half a second instead of six.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [f"ptft_recipes.{name}" for name in ("cli", "data", "evaluation", "hub", "metrics", "pretraining", "training")]
)
WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


def die() -> None:
    """Be killed, without a chance to tidy up."""
    os.kill(os.getpid(), signal.SIGKILL)


class Writes:
    """Count the writes below a folder that Python does itself, and die at one of them.

    Args:
        folder: The output folder.
        die_at: At which write to die, from 1 on; 0 to live.
    """

    def __init__(self, folder: str, die_at: int):
        self.folder, self.die_at, self.count, self.saves = folder, die_at, 0, []
        sys.addaudithook(self)

    def note_saves(self) -> None:
        """Keep at which write each checkpoint begins."""
        from ptft_recipes.sealed_trainer import SealedTrainer

        save = SealedTrainer._save_checkpoint

        def note_and_save(trainer, model, trial):
            self.saves.append(self.count + 1)
            return save(trainer, model, trial)

        SealedTrainer._save_checkpoint = note_and_save

    def __call__(self, event: str, args) -> None:
        writes = event in WRITES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and isinstance(args[0], (str, os.PathLike)) and str(args[0]).startswith(self.folder):
            self.count += 1
            if self.count == self.die_at:
                die()


def die_in_save(number: int, seconds: float) -> None:
    """Die some time after a checkpoint has begun to be written, wherever the process is then."""
    from ptft_recipes.sealed_trainer import SealedTrainer

    save, saves = SealedTrainer._save_checkpoint, []

    def save_and_die(self, model, trial):
        saves.append(self.state.global_step)
        if len(saves) == number:
            threading.Timer(seconds, die).start()
        return save(self, model, trial)

    SealedTrainer._save_checkpoint = save_and_die


def signal_at_step(step: int, number: int, times: int = 1, children: bool = False) -> None:
    """Send a signal to this process in the middle of a step; first to its children too, as schedulers do."""
    from ptft_recipes.training import RecipeTrainer

    train = RecipeTrainer.training_step

    def train_and_signal(self, *args, **kwargs):
        if self.state.global_step + 1 == step:
            for child in psutil.Process().children() if children else ():
                child.send_signal(number)
            for _ in range(times):
                os.kill(os.getpid(), number)
        return train(self, *args, **kwargs)

    RecipeTrainer.training_step = train_and_signal


def poison_at_step(step: int) -> None:
    """Make a weight infinite that no forward pass of the rest of the run reads: the embedding of padding."""
    from ptft_recipes.training import RecipeTrainer

    train = RecipeTrainer.training_step

    def train_and_poison(self, model, *args, **kwargs):
        loss = train(self, model, *args, **kwargs)
        if self.state.global_step + 1 == step:
            model.get_input_embeddings().weight.data[1] = float("inf")
        return loss

    RecipeTrainer.training_step = train_and_poison


def run_in_process(recipe: str, argv: list[str], log: str, prepare=None, die_at: int = 0) -> None:
    """Run a recipe as a command; the last line of the log says how many writes there were, and where saves began."""
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from ptft_recipes.cli import run_command

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers: as where a run is not a test
    if prepare:
        prepare()
    writes = Writes(argv[argv.index("--output_dir") + 1], die_at)
    writes.note_saves()
    try:
        run_command(partial(load_recipe(recipe).main, argv))
    finally:
        with contextlib.suppress(OSError):
            print(json.dumps({"count": writes.count, "saves": writes.saves}), flush=True)


def run(recipe: str, argv: list[str], log: Path, prepare=None, die_at: int = 0, timeout: float = 120) -> int:
    """Run a recipe in a process of its own and return its exit code; -9 if it was killed."""
    process = CONTEXT.Process(target=run_in_process, args=(recipe, argv, str(log), prepare, die_at))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{recipe} hangs: {log.read_text()[-2000:]}")
    return process.exitcode
