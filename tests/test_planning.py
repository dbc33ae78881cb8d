"""What a training will take: rates, FLOP and days against numbers worked out by hand, and real steps of a recipe."""

import json

import numpy as np
import pytest
import torch
from conftest import write_csv
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from ptft_recipes import planning
from ptft_recipes.acceleration import measure_gemm
from ptft_recipes.commands import main
from ptft_recipes.errors import InputError
from ptft_recipes.throughput import FUSED_ON_CPUS

WORDS = ["the", "team", "won", "a", "goal", "in", "one", "big", "game", "of", "the", "new", "cell"]


def test_a_rate_is_of_all_steps_and_its_interval_of_their_spread():
    rng = np.random.default_rng(1)
    seconds, tokens = rng.uniform(0.9, 1.1, 30), rng.integers(80, 120, 30)
    report = {"step_seconds": seconds.tolist(), "step_tokens": tokens.tolist(), "flop_per_token": 2e9}
    speed = planning.describe_speed(report | {"gemm_flop_per_second": 4e11})
    assert speed["tokens_per_second"] == pytest.approx(tokens.sum() / seconds.sum())
    assert speed["utilisation"] == pytest.approx(speed["tokens_per_second"] / 200)
    low, high = speed["interval"]
    error = np.std(tokens / seconds, ddof=1) / np.sqrt(30)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.25)
    same = planning.describe_speed({"step_seconds": [2.0] * 4, "step_tokens": [10] * 4, "flop_per_token": 1,
                                    "gemm_flop_per_second": 10})  # fmt: skip
    assert same["interval"] == [5, 5]


def test_days_hours_and_cost():
    one, eight = planning.make_plan(10e9, [1, 8], 50_000, price_per_hour=3, efficiency=0.9)
    assert one["days"] == pytest.approx(10e9 / (50_000 * 86_400))
    assert one["device_hours"] == pytest.approx(10e9 / 50_000 / 3600), "nothing is taken of a device alone"
    assert eight["device_hours"] == pytest.approx(one["device_hours"] / 0.9)
    assert eight["days"] == pytest.approx(one["days"] / 8 / 0.9)
    assert eight["cost"] == pytest.approx(3 * eight["device_hours"])
    table = planning.format_plan([one, eight]).splitlines()
    assert table[0] == "| devices | tokens per day | days | device-hours | cost |"
    assert table[3] == "| 8 | 3.11e+10 | 0.32 | 62 | 185 |"
    assert "cost" not in planning.format_plan(planning.make_plan(1e9, [1], 1000))


def test_attention_that_cpus_compute_in_one_piece_is_counted():
    batch, heads, length, size = 2, 3, 16, 8
    states = [torch.randn(batch, heads, length, size, requires_grad=True) for _ in range(3)]
    with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPUS) as counter:
        torch.nn.functional.scaled_dot_product_attention(*states).sum().backward()
    forward = 2 * 2 * batch * heads * length**2 * size
    assert counter.get_total_flops() == forward * 3.5, "the backward pass computes the scores once more"


def test_the_peak_is_of_this_machine():
    assert 1e8 < measure_gemm(torch.float32, seconds=0.05) < 1e14


def finished(folder, **run) -> str:
    folder.mkdir()
    run = {
        "recipe": "finetune_cls", "config": {}, "seed": 42, "data": {"fingerprint": {}}, "versions": {},
        "seconds": {"train": 60.0, "total": 70.0}, "tokens_per_second": 900,
    } | run  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"metrics": {}, "run": run}))
    return str(folder)


def test_a_run_is_compared_with_what_its_steps_promised(tmp_path):
    check = planning.check_plan(finished(tmp_path / "run"), {"tokens_per_second": 1000})
    assert check == {"tokens": 54_000, "seconds": 60, "planned_seconds": 54, "ratio": pytest.approx(1.111, abs=1e-3)}
    assert "it took 1.11 times that" in planning.format_check("run", check)
    for name, lacks in (("stream", {"tokens_per_second": None}), ("evaluation", {"seconds": {"total": 5.0}})):
        with pytest.raises(InputError, match=r"results\.json has no tokens per second of a training; a stream"):
            planning.check_plan(finished(tmp_path / name, **lacks), {"tokens_per_second": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "1e9"], "give --tokens and the NAME of a recipe, or --check with a finished run"),
        (["pretrain_mlm"], "give --tokens and the NAME of a recipe"),
        (["--tokens", "-1", "pretrain_mlm"], "argument --tokens: -1 is no number above 0"),
        (["--tokens", "many", "pretrain_mlm"], "argument --tokens: many is no number above 0"),
        (["--tokens", "1e9", "--efficiency", "1.2", "pretrain_mlm"], "1.2 is no share, at most 1"),
        (["--tokens", "1e9", "--devices", "0", "pretrain_mlm"], "argument --devices: 0: give numbers from 1 on"),
        (["--tokens", "1e9", "--peak_tflops", "900", "pretrain_mlm"], "--peak_tflops and --utilisation go together"),
        (["--tokens", "1e9", "--output", "no/where.json", "pretrain_mlm"], "--output no/where.json: there is no such"),
        (["--tokens", "1e9", "--accelerate_config", "no.yaml", "pretrain_mlm"], "no.yaml: no such file"),
        (["--tokens", "1e9", "pretrain_mml"], "no recipe 'pretrain_mml'; did you mean 'pretrain_mlm'?"),
        (["--tokens", "1e9", "--steps", "1", "pretrain_mlm"], "--steps 1: at least 2 are needed"),
        (["--check", "nowhere"], "nowhere/results.json: cannot be read: "),
    ],
)
def test_what_makes_no_sense_is_one_line_before_anything_is_measured(arguments, message, capsys):
    try:
        code = main(["plan", *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_real_steps_of_a_recipe_are_measured(tmp_path, checkpoint, capsys):
    rows = [{"text": " ".join(WORDS), "label": str(i % 2)} for i in range(80)]  # of one length: no padding
    files = [
        f"--{split}_file={write_csv(tmp_path / f'{split}.csv', rows)}" for split in ("train", "validation", "test")
    ]
    output = tmp_path / "plan.json"
    plan = ["plan", "--tokens", "1e6", "--devices", "1,4", "--price_per_hour", "2", "--steps", "3"]
    plan += ["--output", str(output)]
    recipe = ["finetune_cls", "--model_name_or_path", checkpoint, "--bf16", "false", "--use_cpu", "true", *files]
    recipe += ["--max_length", "32", "--per_device_train_batch_size", "4", "--early_stopping_patience", "2"]
    assert main([*plan, *recipe]) == 0
    said = capsys.readouterr().out
    assert "measured: " in said
    assert "| 4 | " in said
    found = json.loads(output.read_text())
    speed, config = found["measured"], AutoConfig.from_pretrained(checkpoint)
    length = len(WORDS) + 2
    assert speed["step_tokens"] == [4 * length] * 3
    hidden, layers = config.hidden_size, config.num_hidden_layers
    matrices = layers * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    heads = (hidden**2 + 2 * hidden) / length  # pooler and classifier, for one token of a row
    assert speed["flop_per_token"] == pytest.approx(6 * (matrices + heads) + 12 * layers * hidden * length, rel=0.01)
    assert (speed["processes"], speed["device"], speed["precision"]) == (1, "cpu", "fp32")
    assert 0 < speed["utilisation"] < 1
    assert found["plan"][1]["cost"] == pytest.approx(2 * found["plan"][1]["device_hours"])
    assert not (tmp_path / "runs").exists()


def test_what_the_recipe_says_against_its_flags_is_passed_on(capsys):
    assert main(["plan", "--tokens", "1e6", "finetune_cls", "--learning_rat", "1"]) == 2
    said = capsys.readouterr().err
    assert "finetune_cls could not be measured: finetune_cls.py: error: unknown argument --learning_rat" in said
    assert said.count("\n") == 1
