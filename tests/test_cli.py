"""Defaults < YAML < flags, each checked alike; mistakes are told in one line with the nearest right name."""

import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import yaml
from transformers import TrainingArguments

from ptft_recipes import cli
from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.errors import InputError, PushError, ResourceError, StoppedBySignal
from ptft_recipes.modeling import ModelArguments

DEFAULTS = {"learning_rate": 1e-4, "color": "red"}


@dataclass
class Arguments:
    color: str | None = field(default=None, metadata={"help": "of the bicycle shed"})
    size: int = 3
    tags: list[str] = field(default_factory=list)
    deep: bool = False


def parse(*argv, defaults=DEFAULTS):
    return parse_args((Arguments, TrainingArguments), defaults, ["--use_cpu", "true", *argv])


def test_what_was_imported_is_not_searched_for_garbage():
    code = "import gc, ptft_recipes.cli; assert gc.isenabled(); print(gc.get_freeze_count())"
    assert int(subprocess.check_output([sys.executable, "-c", code])) > 100_000


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def fails(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, "an error is one line"
    return error


def test_the_last_word_wins(config):
    path = config("learning_rate: 2e-4\nsize: 5\ncolor: blue\n")
    arguments, training, _ = parse("--config", path, "--size", "6")
    assert (training.learning_rate, arguments.size, arguments.color) == (2e-4, 6, "blue")
    assert parse()[0].color == "red"


def test_yaml_scalars_reach_the_parser_as_they_were_written(config):
    path = config("color: 007\nlearning_rate: 1e-3\ndeep: true\ntags: [on, 1e-3, 'no']\n")
    arguments, training, _ = parse("--config", path)
    assert arguments == Arguments(color="007", size=3, tags=["on", "1e-3", "no"], deep=True)
    assert training.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size: 3\nlearning_rte: 1\n", "run.yaml:2: unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        ("\n\nsize: three\n", "run.yaml:3: argument --size: invalid int value: 'three'"),
        ("size: 1\nsize: 2\n", "run.yaml:2: 'size' stands here a second time"),
        ("size:\n", "run.yaml:1: 'size' has no value"),
        ("size: null\n", "run.yaml:1: 'size' has no value"),
        ("training: {size: 3}\n", "run.yaml:1: unknown key 'training'"),
        ("tags: {a: 3}\n", "run.yaml:1: 'tags' must be a value or a list of values"),
        ("deep: maybe\n", "run.yaml:1: argument --deep: Truthy value expected"),
        ("lr_scheduler_type: sawtooth\n", "invalid choice: 'sawtooth'"),
        ("- size\n", "expected lines of the form `key: value`"),
        ("a: [1\n", "not valid YAML"),
        ("on: 3\n", "run.yaml:1: unknown key 'on'"),
        ("deep: []\n", "run.yaml:1: 'deep' must be a single value, not a list"),  # `--deep` alone is true
        ("size: [3]\n", "run.yaml:1: 'size' must be a single value, not a list"),
        ("tags: [a, --size=9]\n", "run.yaml:1: 'tags': the item '--size=9' would be read as a flag"),
        ("tags: [-h]\n", "run.yaml:1: 'tags': the item '-h' would be read as a flag"),
        ("size: 010\n", "run.yaml:1: 'size': 010 is octal to some readers"),
        ("learning_rate: 010\n", "run.yaml:1: 'learning_rate': 010 is octal to some readers"),
        ("learning_rate: nan\n", "run.yaml:1: argument --learning_rate: nan is no finite number"),
        ("learning_rate: 1e999\n", "run.yaml:1: argument --learning_rate: inf is no finite number"),
        ("color: !!python/object/apply:os.system [ls]\n", "run.yaml:1: 'color': the tag 'tag:yaml.org,2002:python"),
        ("color: !!python/name:os.system\n", "asks for an object; only plain values are read"),
        ("tags: [!!binary aGk=]\n", "run.yaml:1: 'tags': the tag"),
        ("!!python/object:os.system {}\n", "expected lines of the form `key: value`"),
        ("? [a, b]\n: 1\n", "run.yaml:1: unknown key 'a list or mapping'"),
        ("[" * 5000, "nested too deeply"),
        ("accelerator_config: nowhere.json\n", "FileNotFoundError: [Errno 2] No such file"),
        ("size: 1\n---\nsize: 2\n", "expected a single document"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n", "run.yaml:1: unknown key 'a'"),
    ],
)
def test_a_mistake_in_the_yaml_names_file_and_line(config, capsys, text, message):
    assert message in fails(capsys, "--config", config(text))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rte", "1"], "unknown argument --learning_rte; did you mean '--learning_rate'?"),
        (["--learning_rte=1"], "unknown argument --learning_rte; did you mean '--learning_rate'?"),
        (["--learn", "1"], "unknown argument --learn"),
        (["stray"], "unexpected value 'stray'"),
        (["--size", "x"], "argument --size: invalid int value: 'x'"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml"),
        (["--eval_strategy", "weekly"], "weekly"),
        (["--load_best_model_at_end", "true"], "requires the save and eval strategy to match"),
        (["--fp16", "true", "--bf16", "true"], "fp16 and bf16"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(capsys, flags, message):
    assert message in fails(capsys, *flags)


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_a_config_that_is_no_regular_file_is_refused_at_once(tmp_path, capsys, kind):
    path = tmp_path / "run.yaml"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    assert f"--config {path}: not a regular file" in fails(capsys, "--config", str(path))


@pytest.mark.parametrize("text", [f"size: {'x' * 10**6}\n", f"{'x' * 10**6}: 1\n", f"deep: {'9' * 10**6}\n"])
def test_a_value_that_is_a_file_is_not_echoed(config, capsys, text):
    assert len(fails(capsys, "--config", config(text))) < 2000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train_epochs", "-1"),  # trains on nothing
        ("gradient_accumulation_steps", "0"),
        ("gradient_accumulation_steps", "-1"),
        ("per_device_train_batch_size", "0"),
        ("per_device_eval_batch_size", "-8"),
        ("dataloader_num_workers", "-1"),
        ("dataloader_num_workers", "1000000"),
        ("learning_rate", "-0.1"),
        ("adam_beta1", "1.5"),
        ("neftune_noise_alpha", "-1"),
        ("max_steps", "-2"),
        ("label_smoothing_factor", "1.5"),
        ("seed", "-1"),
        ("seed", str(2**32)),
    ],
)
def test_a_number_out_of_range_is_refused_before_the_data_is_read(config, capsys, name, value):
    said = fails(capsys, f"--{name}", value)
    assert f"argument --{name}: {value}" in said
    assert "is out of range; it must be at least" in said
    assert f"run.yaml:1: argument --{name}: " in fails(capsys, "--config", config(f"{name}: {value}\n"))


def test_an_empty_config_changes_nothing(config):
    assert parse("--config", config("# nothing yet\n"))[0] == parse()[0]


def test_the_configuration_repeats_the_run(tmp_path):
    flags = ["--size", "9", "--tags", "x", "007", "--per_device_train_batch_size", "8", "--bf16", "false", "--deep"]
    first = parse(*flags, defaults=DEFAULTS | {"per_device_train_batch_size": 32})
    # The batch size is TrainingArguments' own default, and not the recipe's: it must be in there.
    assert first[-1]["per_device_train_batch_size"] == 8
    assert first[-1]["bf16"] is False
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(first[-1]))
    again = parse("--config", str(path), defaults={"learning_rate": 7.0, "per_device_train_batch_size": 64})
    assert again[0] == first[0]
    assert again[1].learning_rate == 1e-4
    assert again[1].per_device_train_batch_size == 8
    assert again[-1] == first[-1]


def test_the_configuration_is_printed_when_it_is_asked_for(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--size", "4", "--tags", "a", "b: c", "--print_config")
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == parse("--size", "4", "--tags", "a", "b: c")[-1]
    assert "--learning_rate: -1.0 is out of range" in fails(capsys, "--print_config", "--learning_rate", "-1")


def test_weights_that_can_only_be_new_are_recorded_as_new(tmp_path):
    config = parse_args((ModelArguments,), {"model_name_or_path": "demo/electra"}, [])[-1]
    assert config == {"model_name_or_path": "demo/electra", "from_scratch": True}


def test_the_configuration_holds_nothing_that_was_not_asked_for():
    assert parse()[-1] == {"color": "red", "learning_rate": 1e-4, "use_cpu": True}


@pytest.mark.parametrize(("native", "flags", "expected"), [
    (True, [], True),
    (False, [], False),
    (True, ["--bf16", "false"], False),
    (False, ["--bf16", "true"], True),
    (True, ["--fp16", "true"], False),
])  # fmt: skip
def test_bf16_is_on_where_the_hardware_has_it_unless_told_otherwise(monkeypatch, native, flags, expected):
    monkeypatch.setattr(cli, "has_native_bf16", lambda use_cpu: native)
    assert parse(*flags)[1].bf16 is expected


def test_defaults_that_name_no_argument_are_a_bug():
    with pytest.raises(KeyError, match=r"learning_rat.*did you mean 'learning_rate'"):
        parse(defaults={"learning_rat": 1})


def test_help_shows_the_recipes_defaults_and_hides_what_it_does_not_set(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "(default: 0.0001)" in shown
    assert "(default: red)" in shown
    assert "--adam_beta1" not in shown
    assert "--learning-rate" not in shown
    assert "default: None" not in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_help_all_shows_every_field(capsys):
    with pytest.raises(SystemExit):
        parse("--help_all")
    assert "--adam_beta1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no column 'x'"), 2, "error: no column 'x'"),
        (FloatingPointError("loss nan at step 3"), 3, "diverged: loss nan at step 3"),
        (ResourceError("disk full"), 4, "error: disk full"),
        (PushError("no answer"), 5, "error: no answer"),
        (StoppedBySignal("saved"), 75, "stopped: saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(capsys, error, code, message):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == code
    assert capsys.readouterr().err.strip().endswith(message)


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)
