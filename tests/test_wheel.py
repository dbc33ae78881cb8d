"""What is built holds what `ptft cp` copies, and what it copies runs with nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, load_recipe

pytest.importorskip("hatchling")
# One of every kind; a copy is called `mine.py`.
RUNS = ["finetune_cls", "finetune_qa", "finetune_token_cls", "pretrain_mlm", "train_tokenizer"]


def build(root: Path, target: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl" if target == "wheel" else "*.tar.gz"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, "wheel", tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel unpacked into a folder, as pip does it; everything else comes from this environment."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def python(installed: Path, *arguments, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=600, check=False)


def test_the_wheel_holds_the_library_the_recipes_and_their_configurations_and_nothing_else(wheel):
    found = {name: text for name, text in contents(wheel).items() if ".dist-info/" not in name}
    expected = {f"ptft_recipes/{path.name}": path for path in (ROOT / "ptft_recipes").glob("*.py")}
    for path in [
        *(ROOT / "recipes").glob("*.py"),
        *(ROOT / "recipes" / "configs").rglob("*.yaml"),
        *(ROOT / "accelerate_configs").glob("*.*"),
    ]:
        expected[f"ptft_recipes/{path.relative_to(ROOT).as_posix()}"] = path
    assert len(expected) > 100
    assert sorted(found) == sorted(expected)
    assert [name for name, path in expected.items() if found[name] != path.read_bytes()] == []
    entry = next(text for name, text in contents(wheel).items() if name.endswith("entry_points.txt"))
    assert b"ptft = ptft_recipes.commands:main" in entry


def test_an_sdist_makes_the_same_wheel(wheel, tmp_path):
    with tarfile.open(build(ROOT, "sdist", tmp_path / "sdist")) as file:
        file.extractall(tmp_path, filter="data")
    again = build(next(tmp_path.glob("ptft_recipes-*")), "wheel", tmp_path / "wheel")
    assert contents(again) == contents(wheel)


def test_an_editable_install_reads_the_clone_and_no_copy_of_it(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    (editable,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["editable"])
    files = {name: text for name, text in contents(Path(editable)).items() if ".dist-info/" not in name}
    assert files == {"_ptft_recipes.pth": str(ROOT).encode()}


def test_the_installed_command_copies_the_installed_recipe(installed, tmp_path):
    listed = python(installed, "-m", "ptft_recipes.commands", "ls", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "finetune_cls " in listed.stdout
    for argv in (["finetune_cls", "mine.py"], ["--config", "finetune_cls/sst2"], ["--accelerate", "multi_cpu"]):
        done = python(installed, "-m", "ptft_recipes.commands", "cp", *argv, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.py").read_bytes() == (ROOT / "recipes" / "finetune_cls.py").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.py", "sst2.yaml", "multi_cpu.yaml"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "recipes").glob("*.py")))
def test_a_copy_finds_all_that_it_imports_in_the_wheel(name, installed, tmp_path):
    assert python(installed, "-m", "ptft_recipes.commands", "cp", name, "mine.py", cwd=tmp_path).returncode == 0
    done = python(installed, "mine.py", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: mine.py" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_copy_runs_from_an_empty_folder_and_equals_the_recipe(name, installed, tmp_path, request):
    files, model = ("topics", "checkpoint") if name == "finetune_cls" else ("corpus", "checkpoint")
    files = request.getfixturevalue({"finetune_token_cls": "tagged", "finetune_qa": "questions"}.get(name, files))
    model = request.getfixturevalue(model)
    flags = ["--model_name_or_path", model, *(t for s, path in files.items() for t in (f"--{s}_file", path))]
    flags += ["--max_steps", "8", "--max_length", "32", "--bf16", "false"]
    flags += ["--stride", "4"] if name in ("finetune_token_cls", "finetune_qa") else []
    flags = flags if name != "train_tokenizer" else []  # the demo: the tiny tokenizer cannot grow
    empty = tmp_path / "empty"
    empty.mkdir()
    assert python(installed, "-m", "ptft_recipes.commands", "cp", name, "mine.py", cwd=empty).returncode == 0
    done = python(installed, "mine.py", *flags, "--output_dir", "run", cwd=empty)
    assert done.returncode == 0, done.stderr[-3000:]
    copied = json.loads((empty / "run" / "results.json").read_text())
    results = load_recipe(name).main([*flags, "--output_dir", str(tmp_path / "run")])
    assert copied["metrics"] == json.loads(json.dumps(results["metrics"]))
    assert copied["run"]["recipe"] == "mine"


@pytest.fixture(scope="module")
def light_wheel(tmp_path_factory):
    """The wheel without dependencies; what it needs is this environment's, to which it leads by a .pth file.

    So nothing is downloaded: of an index uv and pipx would take the newest torch, gigabytes of it.
    """
    root = tmp_path_factory.mktemp("light")
    for name in ("ptft_recipes", "recipes", "accelerate_configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    text = re.sub(r"(?ms)^dependencies = \[$.*?^\]$", "dependencies = []", (ROOT / "pyproject.toml").read_text())
    included = '\n[tool.hatch.build.targets.wheel.force-include]\n"stack.pth" = "stack.pth"\n'
    (root / "pyproject.toml").write_text(text + included)
    (root / "stack.pth").write_text(sysconfig.get_paths()["purelib"])
    return build(root, "wheel", tmp_path_factory.mktemp("light_dist"))


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["uv", "pipx"])
def test_uv_and_pipx_run_a_copy_by_its_header(tool, light_wheel, installed, topics, checkpoint, tmp_path):
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    assert (
        python(installed, "-m", "ptft_recipes.commands", "cp", "finetune_cls", "mine.py", cwd=tmp_path).returncode == 0
    )
    command = {
        "uv": ["uv", "run", "--offline", "--no-index", "--find-links", str(light_wheel.parent), "mine.py"],
        "pipx": ["pipx", "run", "--backend", "pip", "--skip-maintenance", "--path", "mine.py"],
    }[tool]
    files = (token for split, path in topics.items() for token in (f"--{split}_file", path))
    flags = ["--model_name_or_path", checkpoint, *files, "--max_steps", "2", "--max_length", "32", "--bf16", "false"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "PIPX_HOME": str(tmp_path / "pipx"),
        "UV_PYTHON": sys.executable,
    }
    environment |= {
        "PIPX_DEFAULT_PYTHON": sys.executable,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(light_wheel.parent),
    }
    command = [*command, *flags, "--output_dir", "run"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["run"]["recipe"] == "mine"


@pytest.mark.slow
def test_a_copied_study_starts_installed_recipes(installed, tmp_path, checkpoint, topics):
    for argv in (["run_study", "mine.py"], ["--config", "cpu"]):
        assert python(installed, "-m", "ptft_recipes.commands", "cp", *argv, cwd=tmp_path).returncode == 0
    files = ", ".join(f"{split}_file: {path}" for split, path in topics.items())
    stage = f"{{recipe: finetune_cls, model_name_or_path: {checkpoint}, {files}, max_steps: 4, max_length: 32}}"
    (tmp_path / "study.yaml").write_text(f"seeds: [1, 2]\narms:\n  a: {stage}\n")
    done = python(installed, "mine.py", "--study", "study.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert (tmp_path / "runs" / "study" / "report.html").exists()
