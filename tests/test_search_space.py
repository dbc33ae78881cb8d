"""A search is read strictly: what is wrong is named before anything is trained, with its line and the nearest name."""

import pytest
from conftest import ROOT
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ptft_recipes.errors import InputError
from ptft_recipes.search_space import read_search

HEAD = "recipe: finetune_cls\n"
SPACE = "space:\n  learning_rate: {low: 1e-5, high: 1e-3, log: true}\n"


def read(tmp_path, text, **options):
    path = tmp_path / "search.yaml"
    path.write_text(text)
    return read_search(path, ROOT / "recipes", **options)


def test_values_are_those_that_the_recipe_would_parse(tmp_path):
    search = read(
        tmp_path,
        HEAD
        + "arguments:\n  tuning: lora\n  learning_rate: 1e-4\n"
        + SPACE
        + "  num_train_epochs: {low: 1, high: 4}\n"
        + "  max_length: {low: 32, high: 64}\n"
        + "  gradient_accumulation_steps: {choices: [1, 2]}\n"
        + "  tuning_kwargs: {choices: [[r=4], [r=8, lora_alpha=16]]}\n"
        + "trials: 7\nseeds: [1, 2]\n",
    )
    assert search.space == {
        "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
        "num_train_epochs": FloatDistribution(1, 4),
        "max_length": IntDistribution(32, 64),
        "gradient_accumulation_steps": CategoricalDistribution(["1", "2"]),
        "tuning_kwargs": CategoricalDistribution(["r=4", "r=8 lora_alpha=16"]),
    }
    assert (search.trials, search.seeds, search.sampler, search.pruner) == (7, (1, 2), "tpe", "median")
    assert (search.metric, search.maximize) == ("macro_f1", True)
    point = {"learning_rate": 0.1 + 0.2, "num_train_epochs": 2.0, "max_length": 48}
    point |= {"gradient_accumulation_steps": "2", "tuning_kwargs": "r=8 lora_alpha=16"}
    assert search.flags(point)[-3:] == ["--tuning_kwargs", "r=8", "lora_alpha=16"]
    config = search.resolve(point)
    assert config["learning_rate"] == 0.1 + 0.2, "to the last bit"
    assert config["tuning_kwargs"] == ["r=8", "lora_alpha=16"]
    assert config["gradient_accumulation_steps"] == 2
    assert not {"output_dir", "do_predict"} & config.keys()
    assert "learning_rate: 1e-05 to 0.001, log scale" in search.summary()
    assert "tuning_kwargs: r=4, r=8 lora_alpha=16" in search.summary()


def test_the_metric_says_what_is_better(tmp_path):
    for metric, better in (("loss", False), ("eval_loss", False), ("mae", False), ("accuracy", True)):
        search = read(tmp_path, HEAD + f"arguments: {{metric_for_best_model: {metric}}}\n" + SPACE)
        assert (search.metric, search.maximize) == (metric.removeprefix("eval_"), better)


def test_a_grid_has_as_many_trials_as_points(tmp_path):
    grid = "sampler: grid\nspace:\n  max_length: {low: 8, high: 10}\n  class_weights: {choices: [0.0, 1.0]}\n"
    search = read(tmp_path, HEAD + grid)
    assert search.trials == len(search.grid()) == 6
    with pytest.raises(InputError, match=r"search\.yaml:6: a grid has as many trials as points"):
        read(tmp_path, HEAD + grid + "trials: 3\n")
    with pytest.raises(InputError, match="as many trials as points"):
        read(tmp_path, HEAD + grid, trials=3)
    with pytest.raises(InputError, match=r"search\.yaml:4: learning_rate: a grid needs `choices`, not a range"):
        read(tmp_path, HEAD + "sampler: grid\n" + SPACE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "search.yaml: empty"),
        ("- a\n", ":1: expected lines of"),
        ("recipe: [\n", ":2: not valid YAML"),
        (SPACE, "the key 'recipe' is missing"),
        (HEAD, "the key 'space' is missing"),
        (HEAD + "space: {}\n", ":2: the space is empty"),
        (HEAD + HEAD + SPACE, ":2: 'recipe' stands here a second time"),
        (HEAD + SPACE + "trails: 3\n", ":4: unknown key 'trails'; did you mean 'trials'"),
        (HEAD + SPACE + "trials: 0\n", ":4: '0' is no whole number of at least 1"),
        (HEAD + SPACE + "trials:\n", ":4: 'trials' has no value"),
        (HEAD + SPACE + "trials: 2.5\n", ":4: '2.5' is no whole number"),
        (HEAD + SPACE + "sampler: tpee\n", ":4: 'tpee' is unknown; did you mean 'tpe'"),
        (HEAD + SPACE + "pruner: hyperband\n", ":4: 'hyperband' is unknown; there are median, none"),
        (HEAD + SPACE + "seeds: [1, x]\n", ":4: 'x' is no whole number"),
        ("recipe: finetune_clss\n" + SPACE, ":1: no recipe 'finetune_clss' .*; did you mean 'finetune_cls'"),
        ("recipe: ../recipes/finetune_cls\n" + SPACE, ":1: no recipe"),
        ("recipe: pretrain_mlm\n" + SPACE, ":1: pretrain_mlm has no validation scores to search by; there are fine"),
        (HEAD + "arguments: {eval_strategy: 'no', save_strategy: 'no', load_best_model_at_end: false}\n" + SPACE,
         "needs an eval_strategy"),
        (HEAD + "arguments: {lerning_rate: 1}\n" + SPACE,
         ":2: finetune_cls has no option 'lerning_rate'; did you mean 'learning_rate'"),
        (HEAD + "arguments: {learning_rate: fast}\n" + SPACE, ":2: argument --learning_rate.*: invalid float value"),
        (HEAD + "arguments: {tuning_kwargs: [r=4, --seed]}\n" + SPACE, ":2: 'tuning_kwargs': the item '--seed' would"),
        (HEAD + "arguments: {output_dir: runs}\n" + SPACE, ":2: 'output_dir' does not belong here: every trial has"),
        (HEAD + "arguments: {do_predict: true}\n" + SPACE, ":2: 'do_predict' does not belong here: the test split"),
        (HEAD + "arguments: {trust_remote_code: true}\n" + SPACE, ":2: 'trust_remote_code' does not belong here"),
        (HEAD + "arguments: {hub_token: hf_x}\n" + SPACE, ":2: 'hub_token' does not belong here"),
        (HEAD + "arguments: {push_to_hub: true}\n" + SPACE, ":2: 'push_to_hub' does not belong here"),
        (HEAD + "arguments: {seed: !!python/object/apply:os.mkdir [x]}\n" + SPACE, ":2: 'seed' must be a list"),
        (HEAD + "space: {lerning_rate: {low: 1, high: 2}}\n",
         ":2: finetune_cls has no option 'lerning_rate'; did you mean 'learning_rate'"),
        (HEAD + "space: {seed: {low: 1, high: 9}}\n", ":2: 'seed' does not belong here: a seed is luck"),
        (HEAD + "space: {test_file: {choices: [a, b]}}\n", ":2: 'test_file' .*: it decides what is measured"),
        (HEAD + "space: {metric_for_best_model: {choices: [a, b]}}\n", "it decides what is measured"),
        (HEAD + "space: {learning_rate: 3}\n", ":2: expected lines of"),
        (HEAD + "space: {learning_rate: {low: 1, hihg: 2}}\n", ":2: unknown key 'hihg'; did you mean 'high'"),
        (HEAD + "space: {learning_rate: {low: 1}}\n", ":2: learning_rate: high is missing"),
        (HEAD + "space: {learning_rate: {low: 1, high: x}}\n", ":2: argument --learning_rate.*: invalid float value"),
        (HEAD + "space: {learning_rate: {low: 2, high: 1}}\n", ":2: learning_rate: low, 2.0, must be below high, 1.0"),
        (HEAD + "space: {learning_rate: {low: -1, high: 1}}\n", ":2: argument --learning_rate.*: .*out of range"),
        (HEAD + "space: {learning_rate: {low: 0, high: 1, log: true}}\n", ":2: .* on a log scale low must be above 0"),
        (HEAD + "space: {learning_rate: {low: 1, high: 2, log: 3}}\n", ":2: '3' is unknown; there are true, false"),
        (HEAD + "space: {learning_rate: {low: 1, high: 2, choices: [1, 2]}}\n", ":2: .*either choices, or low"),
        (HEAD + "space: {learning_rate: {choices: [1e-4, 0.0001]}}\n", ":2: .*0.0001 stands here a second time"),
        (HEAD + "space: {learning_rate: {choices: [1e-4]}}\n", ":2: .*choices must be a list of two or more"),
        (HEAD + "space: {max_length: {low: 8.5, high: 9}}\n", ":2: argument --max_length.*: invalid int value"),
        (HEAD + "space: {lr_scheduler_type: {low: 1, high: 2}}\n", ":2: lr_scheduler_type is no number; give choices"),
        (HEAD + "space: {lr_scheduler_type: {choices: [linear, cosin]}}\n", ":2: argument --lr_scheduler_type.*: inv"),
        (HEAD + "space: {bf16: {low: 0, high: 1}}\n", ":2: bf16 is no number; give choices"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        read_search(tmp_path / "none.yaml", ROOT / "recipes")
    with pytest.raises(InputError, match="not a regular file"):
        read_search(tmp_path, ROOT / "recipes")
    path = tmp_path / "latin1.yaml"
    path.write_bytes("recipe: \xe9\n".encode("latin1"))
    with pytest.raises(InputError, match="latin1"):
        read_search(path, ROOT / "recipes")


def test_arguments_that_do_not_go_together_are_told_by_the_recipe(tmp_path, capsys):
    with pytest.raises(SystemExit):
        read(tmp_path, HEAD + "arguments: {save_strategy: steps}\n" + SPACE)
    assert "load_best_model_at_end" in capsys.readouterr().err
