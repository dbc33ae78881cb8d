"""Checkpoints pushed to the Hub while training goes on, and a word about each of them."""

import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ptft_recipes.checkpoints import DELETING
from ptft_recipes.errors import PushError, one_line
from ptft_recipes.hub import make_repository, push_files, repository_name
from ptft_recipes.outgoing import LOADED, outgoing_files, pushed_files

logger = logging.getLogger(__name__)


class CheckpointUploads:
    """Push the model of each checkpoint in the background, one at a time; training never waits for it.

    What `from_pretrained` reads goes to the top of the repository, and with the strategies `checkpoint` and
    `all_checkpoints` also into `last-checkpoint` or `checkpoint-<step>`. Other than by Trainer, neither the state of
    the training nor a pickle leaves the machine. As there, a checkpoint is left out while the one before is still on
    its way, unless `--hub_always_push true` is given.

    Args:
        args: With `hub_strategy` and where to push; `check_login` has let it through.
    """

    def __init__(self, args: TrainingArguments):  # noqa: D107
        self.args = args
        self._thread = threading.Thread()
        self._lost: list[str] = []

    def start(self, folder: Path) -> None:
        """Begin to push a checkpoint that is written; afterwards it may be deleted.

        Args:
            folder: `checkpoint-<step>`.
        """
        before = self._thread
        if before.is_alive() and not self.args.hub_always_push:
            self._lose(folder.name, "the upload of the one before still goes on")
            return
        try:
            staged = _link(folder)
        except (OSError, PushError) as error:
            self._lose(folder.name, one_line(error))
            return
        self._thread = threading.Thread(target=self._push, args=(before, staged, folder.name), daemon=True)
        self._thread.start()

    def finish(self) -> list[str]:
        """Wait for the last upload, and return which checkpoints should have been kept at the Hub and were not."""
        if self._thread.is_alive():
            logger.info("waiting for the upload of the last checkpoint")
            self._thread.join()
        return self._lost if self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS else []

    def _push(self, before: threading.Thread, staged: Path, name: str) -> None:
        if before.ident:
            before.join()
        places = {HubStrategy.CHECKPOINT: ["", "last-checkpoint/"], HubStrategy.ALL_CHECKPOINTS: ["", f"{name}/"]}
        try:
            repo_id = make_repository(repository_name(self.args), self.args.hub_private_repo is not False)
            model = outgoing_files(staged, LOADED)
            files = {
                f"{place}{path}": content
                for place in places.get(self.args.hub_strategy, [""])
                for path, content in model.items()
            }
            logger.info("%s pushed: %s", name, push_files(repo_id, files, f"training in progress, {name}"))
        except Exception as error:  # training goes on, whatever becomes of the upload
            self._lose(name, one_line(f"{type(error).__name__}: {error}"))
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _lose(self, name: str, reason: str) -> None:
        self._lost.append(name)
        logger.warning("%s is not pushed: %s", name, reason)


def _link(folder: Path) -> Path:
    """Return a folder with the same files, which stay when the checkpoint is rotated away."""
    # By its name, what a kill leaves of it is swept away when the run goes on.
    staged = Path(tempfile.mkdtemp(prefix=f"{DELETING}pushed-", dir=folder.parent))
    for name in pushed_files(folder, LOADED):
        (staged / name).parent.mkdir(exist_ok=True)
        try:
            os.link(folder / name, staged / name)
        except OSError:  # a file system without hard links
            shutil.copyfile(folder / name, staged / name)
    return staged
