"""Recipes as processes of their own, which push to the Hub, are killed while they do, and find no Hub at all."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from huggingface_hub import hf_hub_download
from transformers import AutoModelForSequenceClassification

from ptft_recipes.outgoing import pushed_files

pytestmark = pytest.mark.slow
PUSH = "import sys; from ptft_recipes.hub import push_run; push_run(sys.argv[1], *sys.argv[2:])"
STRANGER = (
    "import sys; from transformers import pipeline; print(pipeline('text-classification', sys.argv[1])('a cell'))"
)


def environment(hub, home, protocol="lfs") -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    variables |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_write", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return variables | ({"HF_HUB_DISABLE_XET": "1"} if protocol == "lfs" else {})


def start(code, *arguments, env, silence=None, **kwargs) -> subprocess.Popen:
    """Start code, or a script, whose Hub may be silent for so many seconds: 60 are too long for a test."""
    if isinstance(code, Path):
        arguments = (str(code), *arguments)
        code = "import sys, runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    if silence:
        code = f"from ptft_recipes import hub; hub.SILENCE, hub.PAUSES = {silence}, (0.1, 0.1, 0.1); {code}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=env, **pipes, **kwargs)


def finish(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def small_run(checkpoint, topics, output_dir) -> list[str]:
    flags = ["--model_name_or_path", checkpoint, "--output_dir", output_dir, "--max_length", 32, "--max_steps", 2]
    flags += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    flags += ["--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true", "--push_to_hub", "true"]
    return [*flags, *(token for split, path in topics.items() for token in (f"--{split}_file", path))]


RECIPE = ROOT / "recipes" / "finetune_cls.py"


@pytest.mark.parametrize("protocol", ["lfs", "xet"])
def test_a_recipe_pushes_and_a_stranger_loads(hub, protocol, checkpoint, topics, tmp_path):
    env = environment(hub, tmp_path / "home", protocol)
    code, out, err = finish(start(RECIPE, *small_run(checkpoint, topics, tmp_path / "mine"), env=env))
    assert code == 0, err
    assert f"pushed {len(pushed_files(tmp_path / 'mine'))} files, whose checksums agree: {hub.url}/me/mine" in out
    assert bool(hub.requests("xet-write-token")) == (protocol == "xet")
    shutil.rmtree(tmp_path / "mine")
    code, out, err = finish(start(STRANGER, "me/mine", env=environment(hub, tmp_path / "other", protocol)))
    assert code == 0, err
    assert re.search(r"'label': '(markets|science|sports)'", out)


def test_two_processes_push_once(hub, checkpoint, topics, tmp_path):
    launcher = "import runpy; runpy.run_module('torch.distributed.run', run_name='__main__', alter_sys=True)"
    flags = ["--standalone", "--nproc_per_node", 2, RECIPE, *small_run(checkpoint, topics, tmp_path / "mine")]
    code, out, err = finish(start(launcher, *flags, env=environment(hub, tmp_path / "home")))
    assert code == 0, err
    assert out.count("pushed ") == 1
    assert len(hub.requests("/commit/", "POST")) == 1
    assert sorted(hub.repository("me/mine").head().files) == [".gitattributes", *pushed_files(tmp_path / "mine")]


@pytest.mark.parametrize(("how", "at", "protocol"), [
    (500, "/commit/", "lfs"), (500, "/preupload/", "lfs"), ("drop", "/commit/", "lfs"), ("stall", "/commit/", "lfs"),
    (500, "xet-write-token", "xet"), ("stall", "xet-write-token", "xet"),
])  # fmt: skip
def test_a_push_that_fails_exits_with_5(hub, how, at, protocol, checkpoint, topics, tmp_path):
    hub.fail("*", at, how, times=99)
    env = environment(hub, tmp_path / "home", protocol)
    code, _, err = finish(start(RECIPE, *small_run(checkpoint, topics, tmp_path / "mine"), env=env, silence=2))
    assert code == 5, err
    retry = f"Retry: ptft push {tmp_path / 'mine'} --repo_id me/mine"
    assert re.search(rf"finetune_cls.py: error: the push to me/mine failed .* {retry}\n", err)
    assert "Traceback" not in err
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "mine")


@pytest.mark.parametrize("trouble", ["read", "unplugged"])
def test_no_rights_and_no_hub_exit_with_2_before_compute(hub, trouble, checkpoint, topics, tmp_path):
    env = environment(hub, tmp_path / "home") | ({"HF_TOKEN": "hf_read"} if trouble == "read" else {})
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9"} if trouble == "unplugged" else {}
    code, _, err = finish(start(RECIPE, *small_run(checkpoint, topics, tmp_path / "mine"), env=env))
    assert code == 2
    assert ("the token of the Hub may only read" if trouble == "read" else "no login at the Hub") in err
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("protocol", ["lfs", "xet"])
@pytest.mark.parametrize("at", ["/repos/create", "/preupload/", "/commit/", "after /commit/"])
def test_a_push_that_is_killed_is_made_whole_by_the_next(hub, protocol, at, run, tmp_path):
    hub.fail("*", at.removeprefix("after "), "stall", after=at.startswith("after"))
    env = environment(hub, tmp_path / "home", protocol)
    process = start(PUSH, run, env=env)
    while not hub.requests(at.removeprefix("after ")):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    code, _, err = finish(start(PUSH, run, env=env))
    assert code == 0, err
    assert len(hub.repository("me/mine").commits) == 2
    assert {*pushed_files(run)} <= {*hub.repository("me/mine").head().files}


@pytest.mark.parametrize("protocol", ["lfs", "xet"])
def test_no_cache_can_be_written(hub, protocol, run, login):
    code, _, err = finish(start(PUSH, run, env=environment(hub, "/dev/full/home", protocol)))
    assert code == 0, err
    with open(hf_hub_download("me/mine", "model.safetensors"), "rb") as file:
        assert file.read() == (run / "model.safetensors").read_bytes()
