import re
from pathlib import Path

import pytest
from conftest import ROOT

from ptft_recipes.errors import InputError
from ptft_recipes.studies import plan_cells
from ptft_recipes.study_files import read_study

STUDY = """\
seeds: [1, 2]
baseline: plain
common:
  finetune_cls: {learning_rate: 1e-3, max_steps: 2}
arms:
  plain:
    recipe: finetune_cls
  slow:
    recipe: finetune_cls
    learning_rate: 1e-5
    tuning_kwargs: [r=4, "modules_to_save=[pooler]"]
  papers:
    - {recipe: pretrain_mlm, seed: 7}
    - {recipe: finetune_cls, model_name_or_path: <previous>}
  papers-slow:
    - {recipe: pretrain_mlm, seed: 7}
    - {recipe: finetune_cls, model_name_or_path: <previous>, learning_rate: 1e-5}
  twice:
    - {recipe: finetune_cls}
    - {recipe: finetune_cls, model_name_or_path: <previous>}
"""


def read(tmp_path, text=STUDY, **kwargs):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return read_study(path, ROOT / "recipes", **kwargs)


def test_a_study_is_arms_times_seeds_and_shared_stages_run_once(tmp_path):
    study = read(tmp_path)
    assert study.output_dir == Path("runs/mine")
    cells = plan_cells(study)
    names = [cell.name for cell in cells]
    # Seed by seed; pre-training once, with its own seed; the first stage of `twice` once per seed.
    shared = [cell for cell in cells if cell.arm is None]
    assert [(cell.recipe.stem, cell.seed) for cell in shared] == [
        ("pretrain_mlm", 7), ("finetune_cls", 1), ("finetune_cls", 2),
    ]  # fmt: skip
    assert len(set(names)) == len(names) == 5 * 2 + 3
    assert [cell.seed for cell in cells if cell.arm] == [1] * 5 + [2] * 5
    assert all(cells.index(cell.needs) < cells.index(cell) for cell in cells if cell.needs)
    papers = [cell for cell in cells if cell.arm == "papers"]
    assert [cell.needs for cell in papers] == [shared[0]] * 2
    assert f"--model_name_or_path={shared[0].output_dir}" in papers[0].arguments
    assert [str(cell.output_dir) for cell in papers] == [f"runs/mine/arms/papers/seed-{seed}" for seed in (1, 2)]


def test_a_stage_overrides_what_is_common_to_its_recipe(tmp_path):
    slow = next(cell for cell in plan_cells(read(tmp_path)) if cell.name == "slow-seed2")
    assert slow.arguments == [
        "--seed=2", "--learning_rate=1e-5", "--max_steps=2", "--tuning_kwargs", "r=4", "modules_to_save=[pooler]",
    ]  # fmt: skip


def test_the_folder_of_a_shared_stage_does_not_depend_on_where_the_study_lies(tmp_path):
    here, there = (plan_cells(read(tmp_path, output_dir=folder)) for folder in ("a", tmp_path / "b"))
    stages = [[cell.output_dir.name for cell in cells if cell.arm is None] for cells in (here, there)]
    assert stages[0] == stages[1]
    assert len(stages[0]) == 3


@pytest.mark.parametrize(("old", "new", "message"), [
    ("seeds: [1, 2]", "seed: [1, 2]", "mine.yaml:1: unknown key 'seed'; did you mean 'seeds'?"),
    ("seeds: [1, 2]", "seeds: [1, 1]", "mine.yaml:1: seeds must be a list of different whole numbers"),
    ("seeds: [1, 2]", "seeds: 5", "mine.yaml:1: seeds must be a list"),
    ("seeds: [1, 2]\n", "", "the key 'seeds' is missing"),
    ("baseline: plain", "baseline: plian", "no arm 'plian', the baseline; did you mean 'plain'?"),
    ("  plain:\n", "  a/b:\n", "the arm 'a/b' names a folder"),
    ("  slow:\n", "  plain:\n", "'plain' stands here a second time"),
    ("_cls\n  slow", "_cl\n  slow", "mine.yaml:7: no recipe 'finetune_cl'; did you mean 'finetune_cls'?"),
    ("_cls\n  slow", "_cls/../x\n  slow", "the recipe 'finetune_cls/../x' is no name"),
    ("slow:\n    recipe: finetune_cls\n", "slow:\n    recpie: x\n", "a stage needs a `recipe`; did you mean"),
    ("    learning_rate: 1e-5\n", "    learning_rate:\n", "'learning_rate' has no value"),
    ("    learning_rate: 1e-5\n", "    seed: 5\n", "the seeds of an arm's last stage are those under `seeds`"),
    ("seed: 7}", "seed: x}", "'x' is no whole number"),
    ("[r=4,", "[--push_to_hub,", "the item '--push_to_hub' would be read as a flag"),
    ("    learning_rate: 1e-5\n", "    output_dir: x\n", "'output_dir' does not belong into a study"),
    ("    learning_rate: 1e-5\n", "    trust_remote_code: true\n", "it runs the code of others"),
    ("    learning_rate: 1e-5\n", "    hub_token: hf_x\n", "a token is never read from a file"),
    ("    learning_rate: 1e-5\n", "    model_name_or_path: <previous>\n", "<previous> in the first stage of an arm"),
    (", model_name_or_path: <previous>}\n", "}\n", "this stage does not use the one before it"),
    ("common:\n", "common:\n  finetune_token_cls: {seed: 1}\n", "no arm has the recipe 'finetune_token_cls'"),
    ("    learning_rate: 1e-5\n", "    learning_rate: !!python/object:os.system x\n", "must be a plain value"),
    ("seeds: [1, 2]", "seeds: [1, 2", "not valid YAML"),
    (STUDY, "", "mine.yaml: empty"),
    (STUDY, "- 1", "expected lines of the form `key: value`"),
])  # fmt: skip
def test_a_mistake_in_a_study_is_named_with_its_line(tmp_path, old, new, message):
    assert old in STUDY
    with pytest.raises(InputError, match=re.escape(message)):
        read(tmp_path, STUDY.replace(old, new, 1))


def test_two_arms_that_are_the_same_are_refused(tmp_path):
    with pytest.raises(InputError, match="the arms 'plain' and 'slow' are the same"):
        plan_cells(read(tmp_path, re.sub(r"    learning_rate: 1e-5\n    tuning_kwargs.*\n", "", STUDY)))


def test_a_study_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        read_study(tmp_path / "none.yaml", ROOT / "recipes")
