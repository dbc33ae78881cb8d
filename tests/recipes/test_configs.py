"""Every YAML parses with its recipe; every Accelerate config is one that accelerate reads."""

import os
import re
import shlex
import subprocess
import sys
from functools import partial

import accelerate.commands.launch
import pytest
import yaml
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from conftest import ROOT, argument_types, load_recipe

from ptft_recipes.acceleration import check_processes, engine_name
from ptft_recipes.cli import parse_args
from ptft_recipes.search_space import read_search
from ptft_recipes.studies import check_cells, plan_cells
from ptft_recipes.study_files import read_study

ALL_CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
STUDIES = [path for path in ALL_CONFIGS if path.parent.name == "run_study"]
SEARCHES = [path for path in ALL_CONFIGS if path.parent.name == "search_hyperparameters"]
CONFIGS = [path for path in ALL_CONFIGS if path not in STUDIES + SEARCHES]
ACCELERATE_CONFIGS = sorted((ROOT / "accelerate_configs").rglob("*.yaml"))


def test_there_are_configs_to_test():
    assert len(CONFIGS) >= 3
    assert len(STUDIES) >= 1
    assert len(SEARCHES) >= 1
    engines = ["deepspeed_zero2", "deepspeed_zero3", "fsdp2"]
    whole = ["cpu", "multi_cpu", "multi_gpu", "multi_node", "single_gpu"]
    assert [path.stem for path in ACCELERATE_CONFIGS] == sorted([*engines, *whole])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_parses_with_its_recipe(path):
    recipe = load_recipe(path.parent.name)
    *arguments, config = parse_args(argument_types(recipe), recipe.DEFAULTS, ["--config", str(path)])
    assert config["output_dir"] == f"runs/{path.stem}"
    assert arguments[3].learning_rate == float(yaml.safe_load(path.read_text())["learning_rate"])
    header = path.read_text().split("\nmodel_name", 1)[0]
    assert f"accelerate launch recipes/{path.parent.name}.py --config {path.relative_to(ROOT)}" in header


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_cell_of_a_study_parses_with_its_recipe(path, tmp_path):
    study = read_study(path, ROOT / "recipes")
    assert study.output_dir.parent.name == "runs"
    assert f"python recipes/run_study.py --study {path.relative_to(ROOT)}" in path.read_text().split("\nseeds")[0]
    assert len(study.seeds) >= 5
    cells = plan_cells(read_study(path, ROOT / "recipes", tmp_path))
    assert len([cell for cell in cells if cell.arm]) == len(study.arms) * len(study.seeds)
    check_cells(cells)
    assert all(cell.config.get("seed", 42) == cell.seed and cell.config["model_name_or_path"] for cell in cells)


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_a_search_is_one_that_its_recipe_can_run(path):
    search = read_search(path, ROOT / "recipes")
    assert search.resolve(
        {name: value.choices[0] if hasattr(value, "choices") else value.low for name, value in search.space.items()}
    )
    assert f"python recipes/search_hyperparameters.py --search {path.relative_to(ROOT)}" in path.read_text()


def test_the_slurm_script_starts_a_launcher_per_machine(tmp_path):
    """`srun` and `scontrol` are stand-ins: what is tested is the command that each machine would run."""
    for name, text in {
        "scontrol": "echo one; echo two",
        "srun": 'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "accelerate": 'echo "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "x", "SLURM_JOB_NUM_NODES": "2"}
    command = ["bash", str(ROOT / "accelerate_configs" / "slurm.sbatch"), "my.py", "--output_dir", "a b"]
    printed = subprocess.check_output(command, env=environment | {"SLURM_GPUS_PER_NODE": "4"}, text=True).splitlines()
    assert len(printed) == 2
    for rank, line in enumerate(printed):
        args = launch_command_parser().parse_args(line.partition("launch ")[2].replace("a b", "a_b").split())
        assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 8, rank)
        assert (args.main_process_ip, args.main_process_port, args.rdzv_backend) == ("one", 29500, "static")
        assert args.multi_gpu
        assert args.same_network
        assert [args.training_script, *args.training_script_args] == ["my.py", "--output_dir", "a_b"]


LAUNCHERS = ("simple_launcher", "multi_gpu_launcher", "deepspeed_launcher")


def launched_as(name, monkeypatch):
    """Return which launcher `accelerate launch` chooses for the line in the header of a file, and what it is given."""
    path, chosen = ROOT / "accelerate_configs" / f"{name}.yaml", []
    (line,) = re.findall(
        rf"^#   (accelerate launch --config_file accelerate_configs/{name}.yaml .*)$", path.read_text(), re.M
    )
    monkeypatch.chdir(ROOT)
    for launcher in LAUNCHERS:
        monkeypatch.setattr(accelerate.commands.launch, launcher, partial(lambda *told: chosen.append(told), launcher))
    launch_command(launch_command_parser().parse_args(shlex.split(line)[2:]))
    ((launcher, args),) = chosen
    args.main_process_port = 0
    return launcher, args


@pytest.mark.parametrize("path", ACCELERATE_CONFIGS, ids=lambda path: path.stem)
def test_an_accelerate_config_is_read_by_accelerate(path, monkeypatch):
    config = load_config_from_file(str(path))
    assert (config.num_processes > 1) == (path.stem not in ("cpu", "single_gpu"))
    assert config.use_cpu == path.stem.endswith("cpu")
    launcher, args = launched_as(path.stem, monkeypatch)
    own = {"cpu": "simple", "single_gpu": "simple", "deepspeed_zero2": "deepspeed", "deepspeed_zero3": "deepspeed"}
    assert launcher == f"{own.get(path.stem, 'multi_gpu')}_launcher"
    assert args.use_fsdp == (path.stem == "fsdp2")
    assert args.training_script == "recipes/finetune_cls.py"
    assert args.mixed_precision == "no", "it is the recipe's"
    assert args.num_machines == (2 if path.stem == "multi_node" else 1)


def test_fsdp2_comes_to_the_processes_as_it_is_written(monkeypatch):
    _, args = launched_as("fsdp2", monkeypatch)
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    assert engine_name() == "fsdp2"
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    check_processes()
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.activation_checkpointing) == (2, True, False)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap is None, "else they would have to be in every model"
    assert not plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_comes_to_the_processes_as_it_is_written(stage, monkeypatch):
    _, args = launched_as(f"deepspeed_zero{stage}", monkeypatch)
    for name, value in prepare_deepspeed_cmd_env(args)[1].items():
        monkeypatch.setenv(name, value)
    assert engine_name() == f"zero{stage}"
    check_processes()
    config = DeepSpeedPlugin().deepspeed_config
    assert config["zero_optimization"]["stage"] == stage
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] == (stage == 3)
    assert config["gradient_accumulation_steps"] == config["gradient_clipping"] == "auto", "they are the recipe's"


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_takes_its_configuration_by_its_own_schema(stage, monkeypatch):
    schema = pytest.importorskip("deepspeed.runtime.zero.config")
    _, args = launched_as(f"deepspeed_zero{stage}", monkeypatch)
    for name, value in prepare_deepspeed_cmd_env(args)[1].items():
        monkeypatch.setenv(name, value)
    config = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    checked = schema.DeepSpeedZeroConfig(**config)
    assert (int(checked.stage), checked.gather_16bit_weights_on_model_save) == (stage, stage == 3)
    with pytest.raises(ValueError, match="stag3"):
        schema.DeepSpeedZeroConfig(**config, stag3=1)


def launch(config, tmp_path, checkpoint, topics, *flags, recipe=ROOT / "recipes" / "finetune_cls.py"):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--main_process_port", "0", *flags, str(recipe)]
    command += ["--model_name_or_path", checkpoint, "--output_dir", str(tmp_path / "run"), "--max_length", "32"]
    command += ["--max_steps", "8", "--per_device_train_batch_size", "4", "--bf16", "false"]
    for split, path in topics.items():
        command += [f"--{split}_file", path]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)


def test_multi_cpu_trains_with_two_processes_and_scores_every_row_once(tmp_path, checkpoint, topics, run_cls):
    done = launch(ROOT / "accelerate_configs" / "multi_cpu.yaml", tmp_path, checkpoint, topics)
    assert done.returncode == 0, done.stderr[-3000:]
    two = yaml.safe_load((tmp_path / "run" / "results.json").read_text())
    assert two["run"]["processes"] == 2
    assert two["metrics"]["accuracy"]["n"] == 64
    assert done.stdout.count("labels: markets") == 1, "one process speaks"
    one = run_cls(max_steps=8, learning_rate=1e-4, per_device_train_batch_size=8, output_dir=tmp_path / "one")
    assert one["run"]["steps"] == two["run"]["steps"]
    assert len((tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()) == 64


def test_processes_that_would_compute_in_different_precisions_are_refused(tmp_path, checkpoint, topics):
    recipe = tmp_path / "mixed.py"  # as on two machines, one of which is faster in bf16
    recipe.write_text(
        "import os, runpy, sys\n"
        "sys.argv[sys.argv.index('--bf16') + 1] = str(os.environ['RANK'] == '1')\n"
        f"runpy.run_path({str(ROOT / 'recipes' / 'finetune_cls.py')!r}, run_name='__main__')\n"
    )
    done = launch(ROOT / "accelerate_configs" / "multi_cpu.yaml", tmp_path, checkpoint, topics, recipe=recipe)
    assert done.returncode != 0
    assert "the processes found different precisions faster, bf16 and fp32: --bf16 true or false" in done.stderr
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [("cpu", 1), ("multi_cpu", 4)])
def test_one_and_four_processes_score_every_row_once_too(name, processes, tmp_path, checkpoint, topics):
    config = ROOT / "accelerate_configs" / f"{name}.yaml"
    done = launch(config, tmp_path, checkpoint, topics, "--num_processes", str(processes))
    assert done.returncode == 0, done.stderr[-3000:]
    results = yaml.safe_load((tmp_path / "run" / "results.json").read_text())
    assert (results["run"]["processes"], results["metrics"]["accuracy"]["n"]) == (processes, 64)
    assert results["run"]["engine"] == ("none" if processes == 1 else "ddp")
    assert len((tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()) == 64


def test_asking_for_processes_that_do_not_start_is_refused(tmp_path, checkpoint, topics):
    config = tmp_path / "wrong.yaml"
    text = (ROOT / "accelerate_configs" / "multi_cpu.yaml").read_text()
    config.write_text(text.replace("distributed_type: MULTI_GPU", "distributed_type: MULTI_CPU"))
    done = launch(config, tmp_path, checkpoint, topics)
    assert done.returncode != 0
    assert "asked for several processes and started one" in done.stderr
    assert not (tmp_path / "run").exists()
