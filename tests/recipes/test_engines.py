"""FSDP2 and DeepSpeed cut a model over two CPU processes: trained, saved and resumed, it ends as whole copies do."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
ON_CPUS = str(ROOT / "tests" / "fsdp_on_cpus.py")
ENGINES = [
    "fsdp2",
    *(
        pytest.param(name, marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="no DeepSpeed"))
        for name in ("deepspeed_zero2", "deepspeed_zero3")
    ),
]
# Steps in which the gradient is clipped, accumulated and of several learning rates; a best checkpoint before the last.
COMMON = ["--max_steps", "12", "--per_device_train_batch_size", "4", "--bf16", "false", "--learning_rate", "5e-3"]
COMMON += ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "4", "--save_steps", "4"]
COMMON += ["--save_total_limit", "5", "--max_grad_norm", "0.1", "--gradient_accumulation_steps", "2"]
KINDS = {
    "full": ("finetune_cls", "bert", "topics", ["--layer_wise_decay", "0.9"]),
    "lora": ("finetune_cls", "modernbert", "topics", ["--tuning", "lora", "--tuning_kwargs", "lora_dropout=0.1"]),
    "tied": ("pretrain_mlm", "bert", "corpus", []),
}


@pytest.fixture(scope="module")
def launch(checkpoints, topics, corpus):
    """Return a function that trains a kind with an engine in a folder, and returns what it printed and its code."""

    def launched(kind, engine, folder, *flags):
        recipe, family, data, more = KINDS[kind]
        files = {"topics": topics, "corpus": corpus}[data]
        command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
        command += ["--config_file", str(ROOT / "accelerate_configs" / f"{engine}.yaml")]
        command += [ON_CPUS] if engine == "fsdp2" else []
        command += [
            str(ROOT / "recipes" / f"{recipe}.py"),
            "--model_name_or_path",
            checkpoints[family],
            *COMMON,
            *more,
        ]
        command += [token for split, path in files.items() for token in (f"--{split}_file", path)]
        command += ["--max_length", "32", "--output_dir", str(folder), *flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
        return done.returncode, done.stdout + done.stderr

    return launched


def assert_same_end(folder, expected):
    ends = [json.loads((path / "results.json").read_text()) for path in (folder, expected)]
    assert ends[0]["run"]["steps"] == 12
    assert ends[0]["metrics"].keys() == ends[1]["metrics"].keys()
    for name, score in ends[1]["metrics"].items():
        assert ends[0]["metrics"][name]["value"] == pytest.approx(score["value"], rel=1e-4, abs=1e-6, nan_ok=True)
        assert ends[0]["metrics"][name]["n"] == score["n"]
    (file,) = [path.name for path in expected.glob("*.safetensors")]
    weights, right = load_file(folder / file), load_file(expected / file)
    assert weights.keys() >= right.keys()  # a tied weight may stand there twice
    for name, tensor in right.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def by_engine(launch, tmp_path_factory):
    """Return a function that trains a kind with an engine, once, and returns the folder."""
    folders = {}

    def trained(kind, engine):
        if (kind, engine) not in folders:
            folders[kind, engine] = tmp_path_factory.mktemp(kind) / engine
            code, told = launch(kind, engine, folders[kind, engine])
            assert code == 0, told[-3000:]
        return folders[kind, engine]

    return trained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_ends_in_the_weights_of_whole_copies(engine, kind, by_engine):
    folder = by_engine(kind, engine)
    results = json.loads((folder / "results.json").read_text())
    assert (results["run"]["engine"], results["run"]["processes"]) == (engine.removeprefix("deepspeed_"), 2)
    assert (folder / "README.md").exists()
    assert_same_end(folder, by_engine(kind, "multi_cpu"))


@pytest.mark.parametrize("engine", ENGINES)
def test_it_goes_on_from_its_newest_intact_checkpoint_and_with_no_other_engine(engine, launch, by_engine, tmp_path):
    folder, name = tmp_path / "run", engine.removeprefix("deepspeed_")
    shutil.copytree(by_engine("full", engine), folder)
    for path in folder.iterdir():  # what is written after training
        if path.is_file() and path.name != "config.yaml":
            path.unlink()
    damaged = max((folder / "checkpoint-12").rglob("*opti*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    code, told = launch("full", "multi_cpu", folder)
    assert code != 0
    assert f"engine: {name} then, now ddp" in told, "its optimizer is in files that Trainer would not look for"

    code, told = launch("full", engine, folder)
    assert code == 0, told[-3000:]
    assert f"checkpoint-12 is not used: {damaged.relative_to(folder / 'checkpoint-12')} has changed" in told
    assert "step 9/12" in told
    assert "step 8/12" not in told
    assert_same_end(folder, by_engine("full", "multi_cpu"))
