"""Pushing a run to the Hub: checked before compute is spent, repeated where that is safe, and compared afterwards."""

import hashlib
import io
import json
import logging
import shlex
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from ptft_recipes.card import write_model_card
from ptft_recipes.errors import InputError, PushError, one_line
from ptft_recipes.hub_client import hide_bars, limit_waiting
from ptft_recipes.outgoing import LOADED, WEIGHTS, outgoing_files

logger = logging.getLogger(__name__)

TAG = "ptft-recipes"  # of the cards that `write_model_card` writes
NO_LOGIN = "no login at the Hub; `hf auth login`, or set HF_TOKEN"
PUBLIC = "is public already; to push there, pass --hub_private_repo false to the recipe, or --public to `ptft push`"
# Seconds after which a request that gets no answer counts as failed; the client tries some again, 5 times.
SILENCE = 60.0
# Seconds before something is tried again, by us; no more once five silences have passed.
PAUSES = (2.0, 8.0, 30.0)
TRY_AGAIN = (408, 409, 412, 429)  # of the 4xx: slow, busy, somebody else has just committed, too often


def publish(trainer, results: dict[str, Any], task: str) -> None:
    """Write the model card, and with `--push_to_hub` push the run as `push_run` does.

    The repository is private unless `--hub_private_repo false` is given.

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
    lost = trainer.checkpoint_uploads.finish() if trainer.checkpoint_uploads else []
    url = _push(output_dir, repository_name(args), args.hub_private_repo is not False)
    if lost:
        raise PushError(f"the finished run is at {url}, but {', '.join(lost)} did not get there")


def push_run(output_dir: str | Path, repo_id: str | None = None, private: bool = True) -> str:
    """Push a finished run: weights or adapter, tokenizer, card, results, plots and configuration, and nothing else.

    Pushing again what is there already makes no commit. The card is written anew, for the repository; one without the
    tag `ptft-recipes` is sent as it is.

    Args:
        output_dir: The folder that a recipe left.
        repo_id: Where to; a name alone is one of the user's own. The name of the folder when None.
        private: The repository is made private, and a public one is refused.

    Returns:
        The address of the commit.

    Raises:
        InputError: There is nothing to push, no login, or no right to push there.
        PushError: The upload failed, for whatever reason.
    """
    output_dir = Path(output_dir)
    if not (output_dir / "results.json").exists():
        raise InputError(f"{output_dir} has no results.json; it is no finished run")
    if not any(path for pattern in LOADED for path in output_dir.glob(pattern)):
        raise InputError(f"{output_dir} has neither a model nor a tokenizer; there is nothing to push")
    name = repo_id or output_dir.absolute().name
    return _push(output_dir, check_login(name, private), private)


def check_login(repo_id: str | None = None, private: bool = True, repo_type: str = "model") -> str | None:
    """Raise an InputError unless the Hub answers and lets the user push there: before compute is spent.

    Args:
        repo_id: Where is to be pushed; a name alone is one of the user's own. None asks for the login alone.
        private: It must not be public.
        repo_type: `model` or `dataset`.

    Returns:
        The id with its owner.
    """
    limit_waiting(SILENCE)
    api = HfApi()
    try:
        user = api.whoami()
        token = user.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise InputError("the token of the Hub may only read; `hf auth login` with one that may write")
        if repo_id is None:
            return None
        repo_id = repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
        validate_repo_id(repo_id)
        try:
            is_public = not api.repo_info(repo_id, repo_type=repo_type, timeout=SILENCE).private
            api.auth_check(repo_id, repo_type=repo_type, write=True)
        except RepositoryNotFoundError:  # it will be made
            _check_owner(repo_id, user, token)
            is_public = False
    except InputError:
        raise
    except HFValidationError as error:
        what = "choose one with --hub_model_id (`ptft push`: --repo_id)"
        raise InputError(f"{repo_id} cannot be the name of a repository; {what} ({one_line(error)})") from error
    except OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE is set, and nothing can be pushed; unset it") from error
    except Exception as error:  # the client raises many kinds
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 403:
            raise InputError(f"you may not write to {repo_id} ({_reason(error)})") from error
        raise InputError(f"{NO_LOGIN} ({_reason(error)})") from error
    if private and is_public:
        raise InputError(f"{repo_id} {PUBLIC}")
    return repo_id


def repository_name(training_args) -> str:
    """Return where a run is to be pushed: `--hub_model_id`, or else the name of its folder."""
    return training_args.hub_model_id or Path(training_args.output_dir).absolute().name


def make_repository(repo_id: str, private: bool, repo_type: str = "model") -> str:
    """Make a repository unless it is there, and return its id with the owner.

    Raises:
        PushError: It must be private, and there is a public one.
        Exception: Of the client.
    """

    def make() -> tuple[str, bool]:
        found = HfApi().create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True).repo_id
        # One that existed is taken as it is. Without `timeout` this request has none, whatever that of the client.
        return found, HfApi().repo_info(found, repo_type=repo_type, timeout=SILENCE).private

    found, is_private = _persistently(make)
    if private and not is_private:
        raise PushError(f"{found} {PUBLIC}; nothing was pushed")
    return found


def push_files(repo_id: str, files: dict[str, bytes | Path], message: str, repo_type: str = "model") -> str:
    """Commit files to the main branch of a repository that exists, and compare their checksums afterwards.

    Each try begins with a look at what is there, and builds on the commit that it has seen: where the answer to a
    commit was lost, none is made twice. The client by itself repeats no commit (LFS), or repeats it blindly (Xet).

    Args:
        repo_id: With its owner.
        files: By their path in the repository.
        message: Of the commit.
        repo_type: `model` or `dataset`.

    Returns:
        The address of the commit that has them all.

    Raises:
        Exception: Of the client; a RuntimeError if something else arrived than was sent.
    """
    hide_bars()
    api, sums = HfApi(), {name: _checksums(content) for name, content in files.items()}
    kind = {"repo_id": repo_id, "repo_type": repo_type}

    def push() -> str:
        head = api.repo_info(**kind, timeout=SILENCE)
        commit = head.sha
        # Of an earlier run: whole weights are taken before shards, and an adapter before a model.
        stale = _weights(sibling.rfilename for sibling in head.siblings or ()) - _weights(files)
        stale = sorted(stale) if _weights(files) else []
        if stale or _differing(api, kind, commit, sums):
            operations = [CommitOperationAdd(name, content) for name, content in files.items()]
            operations += [CommitOperationDelete(name) for name in stale]
            commit = api.create_commit(**kind, operations=operations, commit_message=message, parent_commit=commit).oid
            if wrong := _differing(api, kind, commit, sums):
                raise RuntimeError(f"{', '.join(wrong)} arrived otherwise than sent")
        return f"{api.endpoint}/{'datasets/' * (repo_type == 'dataset')}{repo_id}/commit/{commit}"

    return _persistently(push)


def _persistently(attempt: Callable[[], Any]) -> Any:
    """Return what an attempt returns that is safe to repeat, after others that failed for reasons that may pass."""
    start = time.monotonic()
    for pause in (*PAUSES, None):
        try:
            return attempt()
        except Exception as error:
            if pause is None or not _may_pass(error) or time.monotonic() - start > 5 * SILENCE:
                raise
            logger.warning("the Hub: %s; once more in %.0f s", _reason(error), pause)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _push(output_dir: Path, repo_id: str, private: bool) -> str:
    """Push what of a run may leave the machine, and say how to try again if that fails."""
    limit_waiting(SILENCE)
    try:
        repo_id = make_repository(repo_id, private)
        results = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
        if (output_dir / "README.md").exists():
            card = ModelCard.load(output_dir / "README.md").data
            if TAG in (card.tags or ()):  # else somebody has written another one
                write_model_card(output_dir, results, card.pipeline_tag, repo_id)
        files = outgoing_files(output_dir)
        run = results["run"]
        message = f"{run['recipe']} of ptft-recipes {run['versions']['ptft-recipes']}, seed {run['seed']}"
        url = push_files(repo_id, files, message)
    except PushError:
        raise
    except Exception as error:  # the client raises many kinds, and none of them may look like success
        retry = ["ptft", "push", str(output_dir), "--repo_id", repo_id, *([] if private else ["--public"])]
        what = f"the push to {repo_id} failed ({_reason(error)}); everything is in {output_dir}"
        raise PushError(f"{what}. Retry: {shlex.join(retry)}") from error
    logger.info("pushed %d files, whose checksums agree: %s", len(files), url)
    return url


def _check_owner(repo_id: str, user: dict[str, Any], token: dict[str, Any]) -> None:
    """Raise an InputError unless the user may make a repository of that name."""
    owners = [user["name"], *(org["name"] for org in user.get("orgs", []) if org.get("roleInOrg") != "read")]
    if (owner := repo_id.partition("/")[0]) not in owners:
        raise InputError(f"{repo_id}: you can push to {', '.join(owners)}, not to {owner}")
    scopes = token.get("fineGrained", {}).get("scoped", [])
    may = {right for scope in scopes if scope["entity"].get("name") == owner for right in scope["permissions"]}
    if token.get("role") == "fineGrained" and "repo.write" not in may:
        raise InputError(
            f"{repo_id}: the token may not make repositories of {owner}; give it the right to, at the Hub"
        )


def _checksums(content: bytes | Path) -> tuple[str, str]:
    """Return the sha256, by which the Hub knows large files, and the sha1 of git, by which it knows small ones."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while part := file.read(2**20):
            sha256.update(part)
            sha1.update(part)
    return sha256.hexdigest(), sha1.hexdigest()


def _weights(names: Iterable[str]) -> set[str]:
    return {name for name in filter_repo_objects(names, allow_patterns=list(WEIGHTS)) if "/" not in name}


def _differing(api: HfApi, kind: dict[str, str], revision: str, sums: dict[str, tuple[str, str]]) -> list[str]:
    """Return which files are not in a commit as they should be."""
    found = {file.path: file for file in api.get_paths_info(**kind, paths=list(sums), revision=revision)}
    remote = {name: (file.lfs.sha256, None) if file.lfs else (None, file.blob_id) for name, file in found.items()}
    return [name for name, known in sums.items() if not set(known) & set(remote.get(name, ()))]


def _may_pass(error: BaseException | None) -> bool:
    """Tell whether what failed may go well in a moment: not where the Hub has said no."""
    while error is not None:  # the client wraps what happens to a large file
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            return status >= 500 or status in TRY_AGAIN
        if isinstance(error, PushError | ValueError | FileNotFoundError | OfflineModeIsEnabled):
            return False
        error = error.__cause__
    return True


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")


def _name_base_model(output_dir: Path, base_model: str) -> None:
    """Let an adapter name its base as others know it, where PEFT wrote a path of this machine."""
    path = output_dir / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": base_model}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
