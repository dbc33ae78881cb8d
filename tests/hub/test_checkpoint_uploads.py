"""With --hub_strategy the model of each checkpoint is pushed while training goes on; one that fails is told."""

import logging

import pytest
import torch
from hub.test_push import commits
from transformers import AutoModelForSequenceClassification

from ptft_recipes.errors import InputError, PushError

pytestmark = pytest.mark.usefixtures("login")
OPTIONS = {"push_to_hub": "true", "hub_model_id": "mine", "num_train_epochs": 2, "per_device_train_batch_size": 64,
           "save_total_limit": 1, "hub_always_push": "true"}  # fmt: skip
STEPS = [4, 8]
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin", "manifest.json")


@pytest.mark.slow
def test_at_the_end_only_unless_asked(hub, run_cls):
    run_cls(**OPTIONS)
    assert len(commits(hub)) == 2


@pytest.mark.parametrize(("strategy", "folders"), [
    pytest.param("every_save", set(), marks=pytest.mark.slow),
    pytest.param("checkpoint", {"last-checkpoint"}, marks=pytest.mark.slow),
    ("all_checkpoints", {"checkpoint-4", "checkpoint-8"}),
])  # fmt: skip
def test_each_checkpoint_is_pushed_and_told(hub, run_cls, tmp_path, strategy, folders, library_log):
    run_cls(hub_strategy=strategy, **OPTIONS)
    assert commits(hub)[1:3] == [f"training in progress, checkpoint-{step}" for step in STEPS]
    assert commits(hub)[3].startswith("finetune_cls of ptft-recipes")
    assert [f"checkpoint-{step} pushed: {hub.url}/me/mine/commit/" in library_log.text for step in STEPS] == [True] * 2
    first = list(hub.repository("me/mine").commits.values())[1].files
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {*first}, "the top of the repository is a model"
    files = {*hub.repository("me/mine").head().files}
    assert {path.rpartition("/")[0] for path in files} == {"", "plots", *folders}
    assert not [path for path in files if path.endswith(STATE)]
    assert list(tmp_path.glob("run/.*")) == [tmp_path / "run" / ".lock"], "nothing is left over"
    for folder in folders:
        found = AutoModelForSequenceClassification.from_pretrained("me/mine", subfolder=folder)
        assert found.config.num_labels == 3
    if strategy == "checkpoint":  # the last of the two; the first one was rotated away
        last = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "checkpoint-8")
        assert all(torch.equal(weight, last.state_dict()[name]) for name, weight in found.state_dict().items())


@pytest.mark.slow
def test_an_upload_that_fails_is_told_and_training_goes_on(hub, run_cls, caplog, library_log):
    hub.fail("POST", "/commit/", 403)
    run_cls(hub_strategy="every_save", **OPTIONS)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line for line in warnings if line.startswith("checkpoint-4 is not pushed: HfHubHTTPError: ")]
    assert len(commits(hub)) == 3, "the second checkpoint, and the run"


def test_a_checkpoint_that_was_to_be_kept_and_is_not_there_is_no_success(hub, run_cls, tmp_path):
    hub.fail("POST", "/commit/", 403)
    with pytest.raises(PushError, match=r"the finished run is at http\S+, but checkpoint-4 did not get there"):
        run_cls(hub_strategy="all_checkpoints", **OPTIONS)
    assert "README.md" in hub.repository("me/mine").head().files


@pytest.mark.slow
def test_training_does_not_wait_for_the_hub(hub, run_cls, caplog, library_log, monkeypatch):
    monkeypatch.setattr("ptft_recipes.hub.SILENCE", 3.0)
    hub.fail("POST", "/commit/", "stall")
    run_cls(hub_strategy="every_save", **{**OPTIONS, "hub_always_push": "false", "num_train_epochs": 3})
    lines = [record.getMessage() for record in caplog.records]
    skipped = "checkpoint-8 is not pushed: the upload of the one before still goes on"
    assert lines.index(skipped) < next(i for i, line in enumerate(lines) if line.startswith("trained for"))
    assert [line for line in lines if line.startswith("checkpoint-4 pushed: ")], "at the second try"


def test_a_branch_is_not_silently_ignored(run_cls):
    with pytest.raises(InputError, match="--hub_revision: a run is pushed to the main branch"):
        run_cls(hub_revision="v2", **OPTIONS)
