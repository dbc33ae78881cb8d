"""What a resumed run must know again, and Trainer forgets."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import cut_off
from safetensors.torch import load_file, save_file
from transformers import Trainer

from ptft_recipes.checkpoints import checkpoints_in, find_damage
from ptft_recipes.errors import InputError

STEPS = {"save_strategy": "steps", "eval_strategy": "steps", "save_total_limit": 9, "max_train_samples": 96}


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_no_step_is_trained_beyond_max_steps(run_cls, tmp_path):
    options = STEPS | {"max_steps": 14, "save_steps": 7, "eval_steps": 7}  # in the middle of the second epoch
    whole = run_cls(**options, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", 14, tmp_path / "run")
    resumed = run_cls(**options)
    assert resumed["run"]["steps"] == whole["run"]["steps"] == 14
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert [path.name for path in checkpoints_in(tmp_path / "run")] == ["checkpoint-7", "checkpoint-14"]


@pytest.mark.parametrize("after", [12, 36, 48])
def test_early_stopping_counts_on_and_does_not_begin_again(run_cls, tmp_path, after):
    # The learning rate is next to 0: no evaluation is better than the first.
    options = {"num_train_epochs": 9, "early_stopping_patience": 3, "learning_rate": 1e-12, "max_train_samples": 96}
    options["save_total_limit"] = 9
    whole = run_cls(**options, output_dir=tmp_path / "whole")
    assert whole["run"]["steps"] == 48, "stopped after 4 epochs of 12 steps"
    cut_off(tmp_path / "whole", after, tmp_path / "run")
    assert run_cls(**options)["run"]["steps"] == 48
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_the_best_checkpoint_is_found_where_the_folder_was_moved_to(run_cls, tmp_path):
    options = {"num_train_epochs": 4, "max_train_samples": 96, "lr_scheduler_type": "constant"}
    options["learning_rate"] = 0.3  # far too high: an early epoch is best
    whole = run_cls(**options, output_dir=tmp_path / "whole")
    best = whole["run"]["best_step"]
    assert best < 48
    cut_off(tmp_path / "whole", 48, tmp_path / "run")
    (tmp_path / "whole").rename(tmp_path / "gone")
    resumed = run_cls(**options)
    assert resumed["run"]["best_step"] == best
    assert weights(tmp_path / "run") == weights(tmp_path / "gone" / f"checkpoint-{best}") == weights(tmp_path / "gone")


def test_new_intervals_hold_in_a_resumed_run(run_cls, tmp_path):
    options = STEPS | {"num_train_epochs": 2, "load_best_model_at_end": "false"}
    run_cls(**options, save_steps=6, eval_steps=24, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", 6, tmp_path / "run")
    run_cls(**options, save_steps=4, eval_steps=24, logging_steps=1)
    steps = [int(path.name.split("-")[1]) for path in checkpoints_in(tmp_path / "run")]
    assert steps == [6, 8, 12, 16, 20, 24]
    state = json.loads((tmp_path / "run" / "checkpoint-24" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry][-3:] == [22, 23, 24]
    assert weights(tmp_path / "run" / "checkpoint-24") == weights(tmp_path / "whole" / "checkpoint-24")


def test_more_epochs_go_on_in_another_folder(run_cls, tmp_path):
    run_cls(num_train_epochs=1, max_train_samples=96)
    longer = run_cls(
        num_train_epochs=2,
        max_train_samples=96,
        resume_from_checkpoint=tmp_path / "run" / "checkpoint-12",
        output_dir=tmp_path / "longer",
    )
    assert longer["run"]["steps"] == 24
    assert longer["run"]["resumed"] == {"from": "checkpoint-12", "changed": {}, "allowed": []}
    assert (tmp_path / "run" / "checkpoint-12").exists(), "of another run, so not rotated"


def test_an_allowed_change_takes_effect(run_cls, tmp_path):
    options = {"num_train_epochs": 2, "max_train_samples": 96, "lr_scheduler_type": "constant", "save_total_limit": 9}
    run_cls(**options, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", 12, tmp_path / "run")
    with pytest.raises(InputError, match=r"learning_rate: 0\.005 then, now 0\.0"):
        run_cls(**options, learning_rate=0.0)
    results = run_cls("--allow_changes", "learning_rate", **options, learning_rate=0.0, weight_decay=0.0)
    assert results["run"]["resumed"]["changed"] == {"learning_rate": (0.005, 0.0)}
    before, after = (load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors") for step in (12, 24))
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "at a rate of 0 nothing moves"


def test_early_stopping_may_be_added(run_cls, tmp_path):
    options = {"num_train_epochs": 4, "max_train_samples": 96, "save_total_limit": 9, "learning_rate": 1e-12}
    run_cls(**options, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", 12, tmp_path / "run")
    results = run_cls("--allow_changes", "early_stopping_patience", **options, early_stopping_patience=1)
    assert results["run"]["steps"] < 48


def test_a_change_that_is_allowed_leaves_the_rate_of_a_plateau_alone(run_cls, tmp_path):
    options = STEPS | {"num_train_epochs": 2, "save_steps": 6, "eval_steps": 6, "logging_steps": 1}
    options |= {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": '{"patience": 0}'}
    run_cls(**options, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", 18, tmp_path / "run")
    run_cls("--allow_changes", "weight_decay", **options, weight_decay=0.1)
    rates = []
    for folder in ("whole", "run"):
        state = json.loads((tmp_path / folder / "checkpoint-24" / "trainer_state.json").read_text())
        rates.append([entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry])
    assert rates[0] == rates[1]


def test_another_base_under_the_same_name_is_refused(run_cls, tmp_path, checkpoint):
    base = shutil.copytree(checkpoint, tmp_path / "base")
    options = {"model_name_or_path": base, "tuning": "lora", "num_train_epochs": 2, "max_train_samples": 96}
    options["save_total_limit"] = 9
    run_cls(**options, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", 12, tmp_path / "run")
    weights = {name: 1.5 * value for name, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"initial_weights: \w+ then, now \w+"):
        run_cls(**options)


def test_the_best_is_saved_wherever_it_is_found(run_cls, tmp_path):
    options = STEPS | {"save_steps": 12, "eval_steps": 4, "num_train_epochs": 2, "lr_scheduler_type": "constant"}
    results = run_cls(**options, learning_rate=0.3)
    best = results["run"]["best_step"]
    assert weights(tmp_path / "run") == weights(tmp_path / "run" / f"checkpoint-{best}")


def test_other_data_is_refused_before_training(run_cls, tmp_path, topics):
    options = {"num_train_epochs": 2, "max_train_samples": 96, "save_total_limit": 9}
    run_cls(**options, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", 12, tmp_path / "run")
    (tmp_path / "train.csv").write_text(Path(topics["train"]).read_text().replace("match", "goal"))
    with pytest.raises(InputError, match=r"data: .* Choose another --output_dir, or .*--allow_changes data"):
        run_cls("--train_file", str(tmp_path / "train.csv"), **options)


def test_trainer_itself_still_trains_one_step_too_many(run_cls, tmp_path, monkeypatch):
    """The trap that is stepped around; if this fails, `_init_training_state` may be simpler."""
    from ptft_recipes.sealed_trainer import SealedTrainer

    options = STEPS | {"max_steps": 14, "save_steps": 7, "eval_steps": 7, "load_best_model_at_end": "false"}
    run_cls(**options, output_dir=tmp_path / "whole")
    cut_off(tmp_path / "whole", 14, tmp_path / "run")
    monkeypatch.setattr(SealedTrainer, "_init_training_state", Trainer._init_training_state)
    assert run_cls(**options)["run"]["steps"] == 15


def test_every_checkpoint_that_is_left_is_sealed(run_cls, tmp_path):
    run_cls(**STEPS, save_steps=5, eval_steps=5, num_train_epochs=1)
    assert [find_damage(path) for path in checkpoints_in(tmp_path / "run")] == ["", "", ""]
