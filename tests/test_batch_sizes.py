"""A global batch is split over processes and passes, keeps its rows, and is refused where it cannot be split."""

from dataclasses import dataclass

import pytest
import yaml
from transformers import TrainingArguments

from ptft_recipes.batch_sizes import describe_batch, format_batch, keep_global_batch, split_rows
from ptft_recipes.cli import parse_args
from ptft_recipes.errors import InputError
from ptft_recipes.resuming import differences

DEFAULTS = {"per_device_train_batch_size": 16}


@dataclass
class Arguments:
    color: str = "red"


def parse(*argv):
    arguments = ["--use_cpu", "true", "--output_dir", "nowhere", *argv]
    _, training_args, config = parse_args((Arguments, TrainingArguments), DEFAULTS, arguments)
    return (training_args.per_device_train_batch_size, training_args.gradient_accumulation_steps), config


@pytest.fixture
def fails(capsys):
    def told(*argv):
        with pytest.raises(SystemExit) as stop:
            parse(*argv)
        assert stop.value.code == 2
        return capsys.readouterr().err

    return told


def test_every_split_keeps_the_rows():
    seen = 0
    for rows in range(1, 65):
        for processes in (1, 2, 4):
            for most in (1, 3, 8, 100):
                if rows % processes:
                    with pytest.raises(InputError, match=f"{processes} processes cannot have equally many rows"):
                        split_rows(rows, processes, most)
                    continue
                size, accumulation = split_rows(rows, processes, most)
                assert rows == processes * size * accumulation
                assert 1 <= size <= most
                larger = [n for n in range(size + 1, most + 1) if (rows // processes) % n == 0]
                assert not larger, "the largest that fits"
                seen += 1
    assert seen == (64 + 32 + 16) * 4


def test_what_cannot_be_divided_names_what_can():
    with pytest.raises(InputError, match=r"--global_batch_size 30: 4 processes .* give 28 or 32"):
        split_rows(30, 4, 8)
    with pytest.raises(InputError, match=r"--global_batch_size 1: 2 processes .* give 2, or"):
        split_rows(1, 2, 8)


def test_the_accumulation_follows():
    assert parse()[0] == (16, 1)
    assert parse("--global_batch_size", "64")[0] == (16, 4)
    assert parse("--global-batch-size=24")[0] == (12, 2), "lowered, so that it divides"
    assert parse("--global_batch_size", "8")[0] == (8, 1)
    split, config = parse("--global_batch_size", "64", "--per_device_train_batch_size", "8")
    assert split == (8, 8)
    assert config["global_batch_size"] == 64
    assert config["per_device_train_batch_size"] == 8, "as it was asked for, so that it also repeats the run elsewhere"
    assert "gradient_accumulation_steps" not in config


def test_the_processes_of_the_launcher_share_the_rows(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    values = {"global_batch_size": 64, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    keep_global_batch(values, [], ["--global_batch_size", "64"])
    assert (values["per_device_train_batch_size"], values["gradient_accumulation_steps"]) == (8, 4)
    with pytest.raises(InputError, match="2 processes cannot have equally many rows"):
        keep_global_batch(values | {"global_batch_size": 33}, [], [])


def test_a_configuration_repeats_the_batch(tmp_path):
    split, config = parse("--global_batch_size", "64")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert parse("--config", str(path)) == (split, config)


def test_a_second_opinion_is_refused(fails, tmp_path):
    error = fails("--global_batch_size", "64", "--gradient_accumulation_steps", "8")
    assert "--global_batch_size 64 is 1 x 16 x 4" in error
    assert "--gradient_accumulation_steps 8 says otherwise; leave it out" in error
    assert "--gradient_accumulation_steps 1 says" in fails(
        "--global_batch_size", "64", "--gradient-accumulation-steps=1"
    )
    assert parse("--global_batch_size", "64", "--gradient_accumulation_steps", "4")[0] == (16, 4), "the same opinion"
    path = tmp_path / "run.yaml"
    path.write_text("gradient_accumulation_steps: 8\n")
    assert parse("--config", str(path), "--global_batch_size", "64")[0] == (16, 4), "the last word wins"
    path.write_text("gradient_accumulation_steps: 8\nglobal_batch_size: 64\n")
    assert "says otherwise" in fails("--config", str(path))
    path.write_text("global_batch_size: 64\n")
    assert "says otherwise" in fails("--config", str(path), "--gradient_accumulation_steps", "8")


def test_no_rows_are_refused(fails):
    assert "out of range" in fails("--global_batch_size", "0")


def test_a_batch_is_described_in_numbers_and_words(tmp_path):
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=8, gradient_accumulation_steps=2
    )
    batch = describe_batch(arguments)
    assert batch == {"rows": 16, "processes": 1, "per_device": 8, "accumulated": 2}
    assert format_batch(batch) == "16 rows = 1 process x 8 rows x 2 accumulated"


def run_of(processes, size, accumulated, engine="none", **config):
    batch = {"rows": processes * size * accumulated, "processes": processes, "per_device": size}
    config = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated} | config
    return {"config": config, "batch": batch | {"accumulated": accumulated}, "processes": processes, "engine": engine}


def test_rows_may_be_split_otherwise_when_a_run_goes_on():
    then = run_of(1, 16, 1)
    assert differences(then, run_of(1, 4, 4)) == {}
    assert differences(then, run_of(1, 4, 4, global_batch_size=16)) == {}
    assert differences(then, run_of(2, 8, 1, "ddp")) == {}
    assert differences(then, run_of(1, 8, 1)) == {"per_device_train_batch_size": (16, 8)}
    assert set(differences(then, run_of(2, 16, 1, "ddp"))) == {"processes", "engine"}
    assert "learning_rate" in differences(then, run_of(1, 4, 4, learning_rate=1.0))
    sharded = run_of(2, 8, 1, "fsdp2")
    assert {"engine", "processes"} <= set(differences(then, sharded)), "it keeps its optimizer otherwise"
    assert set(differences(sharded, run_of(2, 4, 2, "fsdp2"))) == {
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    }
    del then["batch"]
    assert "per_device_train_batch_size" in differences(then, run_of(1, 4, 4)), "of a version that did not note it"
