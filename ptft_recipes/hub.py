"""The upload of what may leave the machine, and nothing else."""

import json
import logging
import os
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils._http import default_client_factory

from ptft_recipes.card import write_model_card
from ptft_recipes.errors import InputError, PushError, one_line

logger = logging.getLogger(__name__)

# What a stranger needs, and nothing else: no data, no predictions with text, no optimizer, no pickle, no token. A
# pattern that starts with * would also match in the folders of the checkpoints.
ALLOWED = (
    "README.md", "results.json", "config.yaml", "plots/*.png",
    "model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors",
    "config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja",
    "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    "generator/model.safetensors", "generator/config.json", "generator/tokenizer.json",
    "generator/tokenizer_config.json",
)  # fmt: skip

NO_LOGIN = "no login at the Hub; `hf auth login`, or set HF_TOKEN"
PUBLIC = "is public already; pass --hub_private_repo false to push there"
# Seconds after which a request that gets no answer counts as failed; the client tries some again, 5 times.
SILENCE = 60.0


def publish(trainer, results: dict[str, Any], task: str) -> None:
    """Write the model card, and with `--push_to_hub` upload model, tokenizer, card, results and plots.

    The repository is private unless `--hub_private_repo false` is given. Only files that match `ALLOWED` are uploaded.

    Args:
        trainer: The `RecipeTrainer`.
        results: As `score_test_split` returned them.
        task: The Hub's name of the task, e.g. `text-classification`.

    Raises:
        PushError: The upload failed, for whatever reason; everything is in `output_dir`.
    """
    if not trainer.is_world_process_zero():
        return
    args, output_dir = trainer.args, Path(trainer.args.output_dir)
    if (output_dir / "adapter_config.json").exists():
        _name_base_model(output_dir, results["run"]["base_model"])
    write_model_card(output_dir, results, task, str(output_dir))
    if not trainer.push_at_end:
        return
    repo_id, private = args.hub_model_id or output_dir.absolute().name, args.hub_private_repo is not False
    files = pushed_files(output_dir)
    _limit_waiting()
    try:
        repo_id = HfApi().create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not HfApi().repo_info(repo_id, timeout=SILENCE).private:
            raise PushError(f"{repo_id} {PUBLIC}; nothing was pushed, everything is in {output_dir}")
        write_model_card(output_dir, results, task, repo_id)
        url = HfApi().upload_folder(repo_id=repo_id, folder_path=output_dir, allow_patterns=files)
    except PushError:
        raise
    except Exception as error:  # the client raises many kinds, and none of them may look like success
        retry = ["hf", "upload", repo_id, str(output_dir), ".", "--private" if private else "--no-private"]
        retry += [token for name in files for token in ("--include", name)]
        what = f"the push to {repo_id} failed ({_reason(error)}); everything is in {output_dir}"
        raise PushError(f"{what}. Retry: {shlex.join(retry)}") from error
    logger.info("pushed to %s", url)


def pushed_files(output_dir: Path) -> list[str]:
    """Return which files of a run may leave the machine: those of `ALLOWED`, and never what a link leads to.

    Raises:
        PushError: One of them is a link, or lies behind one.
    """
    files = {path for pattern in ALLOWED for path in output_dir.glob(pattern) if path.is_file()}
    names = sorted(path.relative_to(output_dir) for path in files)
    if links := [name for name in names if (output_dir / name).resolve() != output_dir.resolve() / name]:
        raise PushError(f"{output_dir / links[0]} is a link, and could lead to anything; nothing was pushed")
    return [name.as_posix() for name in names]


def check_login(repo_id: str | None = None, private: bool = True) -> None:
    """Raise an InputError unless the Hub answers and lets the user write there: before compute is spent.

    Args:
        repo_id: Where is to be pushed; a name alone is one of the user's own. None asks for the login alone.
        private: It must not be public.
    """
    _limit_waiting()
    try:
        user = HfApi().whoami()
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise InputError("--push_to_hub: the token may only read; `hf auth login` with one that may write")
        if repo_id is None:
            return
        owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
        repo_id = repo_id if "/" in repo_id else f"{owners[0]}/{repo_id}"
        if (owner := repo_id.partition("/")[0]) not in owners:
            raise InputError(f"--hub_model_id {repo_id}: you can push to {', '.join(owners)}, not to {owner}")
        if private and not HfApi().repo_info(repo_id, timeout=SILENCE).private:
            raise InputError(f"--hub_model_id: {repo_id} {PUBLIC}")
    except InputError:
        raise
    except RepositoryNotFoundError:
        return  # it will be made
    except Exception as error:  # as above
        raise InputError(f"--push_to_hub: {NO_LOGIN} ({_reason(error)})") from error


def _client_with_timeout():
    client = default_client_factory()
    client.timeout = SILENCE
    return client


def _limit_waiting() -> None:
    """Give the client timeouts: in Python it has none, and in Rust many minutes of tries."""
    set_client_factory(_client_with_timeout)
    os.environ.setdefault("HF_XET_CLIENT_READ_TIMEOUT", f"{SILENCE:.0f}s")
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_DURATION", f"{SILENCE:.0f}s")


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")


def _name_base_model(output_dir: Path, base_model: str) -> None:
    """Let an adapter name its base as others know it, where PEFT wrote a path of this machine."""
    path = output_dir / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": base_model}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
