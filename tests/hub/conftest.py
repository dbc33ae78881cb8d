"""A Hub on this machine, the genuine client of this process turned to it, and finished runs to push."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from conftest import load_recipe
from hub.server import LoopbackHub
from huggingface_hub import constants
from huggingface_hub.utils import _xet
from huggingface_hub.utils._http import default_client_factory

# Between the client's own tries; nothing else may sleep less, the server among it.
NO_SLEEP = SimpleNamespace(sleep=lambda seconds: None)


@pytest.fixture
def hub(tmp_path):
    """A Hub where `hf_write` is the token of `me`; see `LoopbackHub` for the others."""
    (tmp_path / "xet").mkdir()
    with LoopbackHub(tmp_path / "xet") as hub:
        yield hub


@pytest.fixture
def protocol():
    """How large files travel: `lfs`, or `xet` where a test is parametrized with it."""
    return "lfs"


@pytest.fixture
def login(hub, protocol, tmp_path, monkeypatch):
    """Turn the client of this process, which has read its variables when it was imported, to the Hub; as `me`.

    Returns a function that logs in with another token.
    """
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_URL_HOSTS": frozenset({"127.0.0.1"}),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": protocol == "lfs",
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)  # of the functions, e.g. `file_exists`
    for name, value in {
        "HF_TOKEN": "hf_write",
        "HF_XET_CACHE": str(tmp_path / "xet_cache"),
        "HF_XET_CLIENT_READ_TIMEOUT": "1s",
        "HF_XET_CLIENT_RETRY_MAX_DURATION": "1s",
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.utils._http.time", NO_SLEEP)
    monkeypatch.setattr("ptft_recipes.hub.PAUSES", (0.01, 0.02, 0.03))
    yield lambda token: monkeypatch.setenv("HF_TOKEN", token)
    huggingface_hub.set_client_factory(default_client_factory)
    _xet.abort_xet_session()  # the next test has other variables


def train(recipe: str, model: str, files: dict[str, str], folder: Path, *flags: str) -> Path:
    """Run a recipe for two steps, and return the folder that it leaves."""
    argv = ["--model_name_or_path", model, "--output_dir", str(folder), "--max_length", "32", "--max_steps", "2"]
    argv += ["--per_device_train_batch_size", "8", "--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true"]
    argv += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    argv += [token for split, path in files.items() for token in (f"--{split}_file", path)]
    load_recipe(recipe).main([*argv, *flags])
    return folder


@pytest.fixture(scope="session")
def finished(checkpoint, topics, tmp_path_factory):
    """The folder of a classifier."""
    return train("finetune_cls", checkpoint, topics, tmp_path_factory.mktemp("finished") / "mine")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be pushed and damaged."""
    return Path(shutil.copytree(finished, tmp_path / "mine"))
