"""Run folders that are broken at random, and what may be gone on from all the same."""

import json
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments

from ptft_recipes.checkpoints import seal_checkpoint
from ptft_recipes.resuming import claim_output_dir, identify

RUN = {"recipe": "finetune_cls", "processes": 1, "precision": "fp32", "device": "cpu", "hardware": "a CPU",
       "versions": {"torch": "2.13.0"}, "config": {"learning_rate": 1e-4, "num_train_epochs": 4.0}}  # fmt: skip
DATA = {"fingerprint": {"train": "aa", "validation": "bb", "test": "cc"}}
STEPS = (5, 10, 15)
OTHERS = ("README.md", "results.json", "config.yaml", "model.safetensors", "checkpoint-x", "checkpoint-20", ".lock")


@dataclass
class Case:
    """A folder, what was done to it, and the files that each of its checkpoints had."""

    path: Path
    files: dict[str, dict[str, bytes]]
    done: list[str] = field(default_factory=list)
    valid: bool = True


def make_run(seed: int, folder: Path) -> Case:
    """Make the folder of a run that was cut off after three checkpoints, and break it in up to four places."""
    generator = random.Random(f"run {seed}")
    files = {}
    for step in STEPS:
        path = folder / f"checkpoint-{step}"
        (path / "part").mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt", "rng_state.pth", "part/more.json"):
            (path / name).write_bytes(generator.randbytes(generator.randint(1, 300)))
        state = {"global_step": step, "best_model_checkpoint": f"gone/checkpoint-{generator.choice(STEPS[:2])}"}
        (path / "trainer_state.json").write_text(json.dumps(state if step > 5 else {"best_model_checkpoint": None}))
        seal_checkpoint(path, identify(RUN | {"id": "first", "data": DATA}))
        files[path.name] = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    case = Case(folder, files)
    for _ in range(generator.randint(1, 4) if seed % 8 else 0):
        case.valid = False
        case.done.append(_break(generator, folder))
    return case


def _break(generator: random.Random, folder: Path) -> str:
    """Do one thing to a folder, and say what."""
    if generator.random() < 0.2:
        path = folder / generator.choice(OTHERS)
        if not path.exists():
            path.mkdir() if generator.random() < 0.3 else path.write_bytes(generator.randbytes(9))
        return f"something under the name {path.name}"
    checkpoints = sorted(path for path in folder.glob("checkpoint-*") if path.is_dir())
    if not checkpoints:
        return "nothing left to break"
    checkpoint = generator.choice(checkpoints)
    if generator.random() < 0.1:
        shutil.rmtree(checkpoint)
        return f"{checkpoint.name} deleted"
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file() and not path.is_symlink())
    if not paths:
        return "an empty checkpoint"
    path = generator.choice([*paths, *(path for path in paths if path.name == "manifest.json")])
    what = generator.choice(["bit", "cut", "grow", "delete", "folder", "link", "pipe", "extra"])
    data = path.read_bytes() or b"0"
    if what == "extra":
        (checkpoint / generator.choice(["scaler.pt", "pytorch_model.bin", "notes.txt"])).write_bytes(b"x")
    elif what in ("bit", "cut", "grow"):
        place = generator.randrange(len(data))
        flipped = data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :]
        path.write_bytes({"bit": flipped, "cut": data[:place], "grow": data + generator.randbytes(3)}[what])
    else:
        path.unlink()
        if what == "folder":
            path.mkdir()
        elif what == "link":
            path.symlink_to(generator.choice(["/dev/null", "nowhere", path.name, "/proc/self/mem"]))
        elif what == "pipe":
            os.mkfifo(path)
    return f"{what}: {path.relative_to(folder)}"


def compare_run(case: Case, seed: int) -> str:
    """Claim the folder, and return what is wrong with what the run would go on from."""
    arguments = TrainingArguments(str(case.path), use_cpu=True)
    arguments.load_best_model_at_end = seed % 2 == 1
    arguments.resume_from_checkpoint = [None, None, "last", str(case.path / "checkpoint-10")][seed % 4]
    claim_output_dir(arguments, dict(RUN), [])
    if arguments.resume_from_checkpoint is None:
        sealed = [path for path in case.path.glob("checkpoint-*") if _as_it_was(path, case.files.get(path.name))]
        return f"starts again beside {sealed[0].name}, which is intact" if sealed else ""
    chosen = Path(arguments.resume_from_checkpoint)
    newer = [f"checkpoint-{step}" for step in STEPS if step > int(chosen.name.split("-")[1])]
    if passed_over := [name for name in newer if _as_it_was(case.path / name, case.files[name])]:
        return f"{passed_over[0]} is intact and was passed over"
    return "" if _as_it_was(chosen, case.files[chosen.name]) else f"{chosen.name} is not what was sealed"


def _as_it_was(folder: Path, files: dict[str, bytes] | None) -> bool:
    """Tell whether a folder has all of its files, and no other that Trainer would read."""
    if files is None or any((folder / name).exists() for name in ("scaler.pt", "pytorch_model.bin")):
        return False
    try:
        return all((folder / name).is_file() and (folder / name).read_bytes() == data for name, data in files.items())
    except OSError:
        return False
