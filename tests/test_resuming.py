"""Who may use an output folder, from which checkpoint a run goes on, and what may differ then."""

import multiprocessing
import os

import pytest
import yaml
from filelock import FileLock
from transformers import TrainingArguments

from ptft_recipes import resuming
from ptft_recipes.checkpoints import seal_checkpoint
from ptft_recipes.errors import InputError
from ptft_recipes.reporting import write_yaml
from ptft_recipes.resuming import check_same_run, claim_output_dir, differences, identify, is_finished

DATA = {"fingerprint": {"train": "aa", "validation": "bb", "test": "cc"}}


def describe(**config):
    run = {"recipe": "finetune_cls", "processes": 1, "precision": "fp32", "device": "cpu", "hardware": "a CPU"}
    config = {"learning_rate": 1e-4, "num_train_epochs": 4.0, "per_device_train_batch_size": 32} | config
    return run | {"versions": {"torch": "2.13.0"}, "config": config}


def seal(folder, step, best=None, weights=None, **config):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "rng_state.pth").touch()
    (path / "trainer_state.json").write_text('{"best_model_checkpoint": %s}' % (f'"{best}"' if best else "null"))
    seal_checkpoint(path, identify(describe(**config) | {"id": "first", "data": DATA, "initial_weights": weights}))
    return path


def claim(folder, resume=None, allow=(), load_best=False, **config):
    arguments = TrainingArguments(str(folder), use_cpu=True, resume_from_checkpoint=resume)
    arguments.load_best_model_at_end = load_best
    run = describe(**config)
    claim_output_dir(arguments, run, allow)
    return arguments.resume_from_checkpoint, run


def test_a_free_folder_is_taken_and_its_configuration_written(tmp_path):
    checkpoint, run = claim(tmp_path / "new")
    assert checkpoint is None
    assert "resumed" not in run
    assert yaml.safe_load((tmp_path / "new" / "config.yaml").read_text()) == run["config"]
    claim(tmp_path / "new", learning_rate=9.0)  # nothing was lost: a corrected mistake before the first checkpoint


def test_the_same_command_goes_on_from_the_newest_checkpoint(tmp_path):
    for step in (9, 10, 2):
        seal(tmp_path, step)
    checkpoint, run = claim(tmp_path)
    assert checkpoint == str(tmp_path / "checkpoint-10")
    assert run["id"] == "first", "so that its checkpoints are rotated with the later ones"
    assert run["resumed"] == {"from": "checkpoint-10", "changed": {}, "allowed": []}
    assert claim(tmp_path, "last")[0] == checkpoint


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, library_log):
    for step in (1, 2, 3, 4):
        seal(tmp_path, step)
    (tmp_path / "checkpoint-4" / "manifest.json").unlink()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    assert claim(tmp_path)[0] == str(tmp_path / "checkpoint-2")
    warnings = [record.getMessage() for record in library_log.records if record.levelname == "WARNING"]
    assert "checkpoint-4 is not used: it has no manifest.json: the save was cut off" in warnings[0]
    assert "checkpoint-3 is not used: trainer_state.json has 2 bytes instead of" in warnings[1]
    with pytest.raises(InputError, match=r"checkpoint-3: trainer_state.json has 2 bytes.*--model_name_or_path"):
        claim(tmp_path, str(tmp_path / "checkpoint-3"))


def test_without_an_intact_checkpoint_the_same_run_starts_again_and_another_is_refused(tmp_path, library_log):
    claim(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "model.safetensors").touch()
    assert claim(tmp_path)[0] is None
    assert "cut off before its first checkpoint was sealed; it begins again" in library_log.text
    with pytest.raises(InputError, match=r"has checkpoint-5, model\.safetensors, which the run would overwrite"):
        claim(tmp_path, learning_rate=9.0)
    with pytest.raises(InputError, match="has no intact checkpoint"):
        claim(tmp_path, "last")
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(InputError, match="which the run would overwrite"):
        claim(tmp_path)


def test_a_finished_run_is_never_gone_on_with_in_place(tmp_path):
    seal(tmp_path, 3)
    (tmp_path / "results.json").touch()
    assert claim(tmp_path)[0], "killed before the card was written"
    (tmp_path / "README.md").touch()
    for resume in (None, "last"):
        with pytest.raises(InputError, match="holds a finished run; choose another --output_dir"):
            claim(tmp_path, resume)
    checkpoint, run = claim(tmp_path / "further", str(tmp_path / "checkpoint-3"), num_train_epochs=8.0)
    assert checkpoint == str(tmp_path / "checkpoint-3")
    assert run["id"] != "first", "it never rotates the checkpoints of the first"


def test_a_run_that_went_on_in_another_folder_goes_on_there_when_it_is_cut_off(tmp_path):
    start = seal(tmp_path / "first", 10, best="first/checkpoint-5")
    seal(tmp_path / "first", 5)
    checkpoint, run = claim(tmp_path / "second", str(start))
    assert checkpoint == str(start)
    path = tmp_path / "second" / "checkpoint-15"
    path.mkdir()
    (path / "rng_state.pth").touch()
    (path / "trainer_state.json").write_text(f'{{"best_model_checkpoint": "{tmp_path}/first/checkpoint-5"}}')
    seal_checkpoint(path, identify(run | {"data": DATA}))
    again, same = claim(tmp_path / "second", str(start), load_best=True)
    assert again == str(path)
    assert same["id"] == run["id"] != "first"


def test_a_run_from_elsewhere_that_was_cut_off_in_its_first_save_begins_from_there_again(tmp_path):
    start = seal(tmp_path / "first", 10)
    assert claim(tmp_path / "second", str(start))[0] == str(start)
    (tmp_path / "second" / "checkpoint-15").mkdir()
    write_yaml(tmp_path / "second" / "config.yaml", describe()["config"])
    assert claim(tmp_path / "second", str(start))[0] == str(start), "and not from the very beginning"


def test_going_on_from_elsewhere_does_not_overwrite_another_run(tmp_path):
    start = seal(tmp_path / "first", 10)
    seal(tmp_path / "second", 5, seed=7)
    with pytest.raises(InputError, match=r"second/checkpoint-5 is of a run that differs \(seed: 7 then"):
        claim(tmp_path / "second", str(start))
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"third has model\.safetensors, which the run would overwrite"):
        claim(tmp_path / "third", str(start))
    seal(tmp_path / "kept", 1).rename(tmp_path / "kept" / "mine")
    assert claim(tmp_path / "kept", str(tmp_path / "kept" / "mine"))[0], "a name of one's own"


def test_a_configuration_that_no_run_wrote_is_not_overwritten(tmp_path):
    (tmp_path / "config.yaml").write_text("# mine\nseed: 1\n")
    with pytest.raises(InputError, match=r"has config\.yaml, which the run would overwrite"):
        claim(tmp_path)
    assert (tmp_path / "config.yaml").read_text().startswith("# mine")


def test_checkpoints_that_were_whole_once_are_not_trained_over(tmp_path):
    claim(tmp_path)
    (seal(tmp_path, 5) / "trainer_state.json").write_text("{}")
    with pytest.raises(InputError, match=r"is intact, though checkpoint-5 was once \(trainer_state"):
        claim(tmp_path)


def test_another_base_model_is_refused(tmp_path):
    path = seal(tmp_path, 3, weights="aa")
    assert check_same_run(path, describe() | {"initial_weights": "aa"}, []) == {}
    with pytest.raises(InputError, match="initial_weights: aa then, now bb"):
        check_same_run(path, describe() | {"initial_weights": "bb"}, [])


def test_a_finished_run_may_be_pushed_again(tmp_path):
    seal(tmp_path, 3)
    for name in ("results.json", "README.md"):
        (tmp_path / name).touch()
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, push_to_hub=True)
    claim_output_dir(arguments, describe(), [])
    assert arguments.resume_from_checkpoint == str(tmp_path / "checkpoint-3")


def test_newer_checkpoints_are_not_overwritten(tmp_path):
    seal(tmp_path, 3)
    seal(tmp_path, 6)
    with pytest.raises(InputError, match="has checkpoint-6, newer than checkpoint-3, which the run would overwrite"):
        claim(tmp_path, str(tmp_path / "checkpoint-3"))
    assert claim(tmp_path, str(tmp_path / "checkpoint-6"))[0]


@pytest.mark.parametrize(
    "config",
    [
        {"logging_steps": 1},
        {"save_steps": 7},
        {"save_total_limit": 3},
        {"num_train_epochs": 6.0},
        {"report_to": "tensorboard"},
        {"dataloader_num_workers": 2},
        {"per_device_eval_batch_size": 4},
        {"train_file": "moved/train.csv"},
        {"push_to_hub": True},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_leaves_the_weights_as_they_are_may_change(tmp_path, config):
    seal(tmp_path, 3)
    assert claim(tmp_path, **config)[1]["resumed"]["changed"] == {}


@pytest.mark.parametrize(
    "config",
    [
        {"learning_rate": 2e-4},
        {"per_device_train_batch_size": 16},
        {"num_train_epochs": 2.0},
        {"seed": 1},
        {"tuning": "lora"},
        {"max_steps": 5},
        {"text_column": "body"},
        {"eval_steps": 9},
        {"early_stopping_patience": 2},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_makes_another_run_of_it_is_named_and_must_be_allowed(tmp_path, config):
    seal(tmp_path, 3)
    (name, now), then = next(iter(config.items())), describe()["config"].get(next(iter(config)))
    for resume in (None, "last"):
        with pytest.raises(
            InputError, match=rf"\({name}: {then or 'the default'} then, now {now}\)\. .* --allow_changes {name}"
        ):
            claim(tmp_path, resume, **config)
    assert claim(tmp_path, allow=[name], **config)[1]["resumed"]["changed"] == {name: (then, now)}


def test_data_precision_and_processes_are_compared_too(tmp_path):
    path = seal(tmp_path, 3)
    for change in ({"precision": "bf16"}, {"processes": 2}, {"device": "cuda"}, {"recipe": "pretrain_mlm"}):
        with pytest.raises(InputError, match=f"{next(iter(change))}: .* then, now {next(iter(change.values()))}"):
            check_same_run(path, describe() | change, [])
    other = {"fingerprint": DATA["fingerprint"] | {"train": "zz"}}
    assert check_same_run(path, describe() | {"data": DATA}, []) == {}
    with pytest.raises(InputError, match="data: train aa then, now train zz"):
        check_same_run(path, describe() | {"data": other}, [])
    assert "data" in check_same_run(path, describe() | {"data": other}, ["data"])


def test_another_version_is_said_and_not_refused(tmp_path, library_log):
    seal(tmp_path, 3)
    arguments, run = TrainingArguments(str(tmp_path), use_cpu=True), describe() | {"versions": {"torch": "3.0"}}
    claim_output_dir(arguments, run, [])
    assert "versions: {'torch': '2.13.0'} then, now {'torch': '3.0'}" in library_log.text


def test_weights_alone_cannot_be_gone_on_from(tmp_path):
    path = seal(tmp_path, 3)
    (path / "rng_state.pth").unlink()
    seal_checkpoint(path, identify(describe() | {"id": "first", "data": DATA}))
    with pytest.raises(InputError, match=r"checkpoint-3 has the model and not the state of its training"):
        claim(tmp_path)


def test_the_best_checkpoint_must_be_intact_too_where_the_run_will_end_with_it(tmp_path):
    seal(tmp_path, 3)
    seal(tmp_path, 6, best="/moved/since/checkpoint-3")
    assert claim(tmp_path, load_best=True)[0]
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    assert claim(tmp_path)[0] == str(tmp_path / "checkpoint-6")
    with pytest.raises(InputError, match=r"checkpoint-3, the best .*: trainer_state.json is missing.*Delete"):
        claim(tmp_path, load_best=True)


def _claim_in_another_process(folder, answers):
    try:
        claim(folder)
        answers.put("claimed")
    except InputError as error:
        answers.put(str(error))


def test_two_runs_cannot_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "LOCK_SECONDS", 0)
    lock = FileLock(tmp_path / ".lock")
    context = multiprocessing.get_context("fork")
    with lock:
        answers = context.Queue()
        process = context.Process(target=_claim_in_another_process, args=(tmp_path, answers))
        process.start()
        assert answers.get(timeout=60).startswith(f"another process is running in {tmp_path}")
        process.join()
    assert claim(tmp_path)[0] is None, "free again"


def test_an_output_dir_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is no folder that can be written to"):
        claim(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="is no folder that can be written to"):
        claim(tmp_path / "run")


def test_a_run_is_finished_when_its_card_is_written(tmp_path):
    assert not is_finished(tmp_path)
    (tmp_path / "results.json").touch()
    assert is_finished(tmp_path), "what trains nothing has no card"
    (tmp_path / "checkpoint-5").mkdir()
    assert not is_finished(tmp_path)
    (tmp_path / "README.md").touch()
    assert is_finished(tmp_path)


def test_more_epochs_are_a_difference_to_a_finished_run():
    then, now = ({"config": {"num_train_epochs": epochs, "logging_steps": epochs}} for epochs in (2.0, 3.0))
    assert differences(then, now) == {}
    assert differences(then, now, may_grow=False) == {"num_train_epochs": (2.0, 3.0)}
