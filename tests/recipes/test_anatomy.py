"""A recipe is a page: the same sections in the same order, the same local names, few imports, few options.

Most recipes train a model. One that does not keeps the sections, has no trainer to name, no
TrainingArguments to depart from and no rows to preprocess, and may have a function of its own before `main`. Those
that start other recipes, or read what these left behind, have none of the local names either.
"""

import ast
import dataclasses
import re
import sys

import pytest
from conftest import ROOT, argument_types, load_recipe

from ptft_recipes.data import DatasetArguments

RECIPES = sorted((ROOT / "recipes").glob("*.py"))
SECTIONS = ["1. Arguments", "2. Data", "3. Model", "4. Train", "5. Evaluate", "6. Publish"]
TRAINING = [path for path in RECIPES if "trainer.train()" in path.read_text()]
ABOVE = ["compare_runs", "pool_folds", "run_study", "search_hyperparameters"]
LOCAL_NAMES = ["run", "raw", "tokenizer", "dataset", "model", "trainer", "results"]
MAX_LINES, MAX_IMPORTS, MAX_NESTING, MAX_OPTIONS = 126, 15, 3, 42


def depth(node: ast.AST) -> int:
    """Return how deep loops, conditions and with blocks are nested."""
    blocks = (ast.For, ast.While, ast.If, ast.With, ast.Try)
    return max((depth(child) + isinstance(child, blocks) for child in ast.iter_child_nodes(node)), default=0)


def test_there_are_recipes_to_test():
    assert [path.stem for path in RECIPES if path not in TRAINING] == [
        "compare_runs", "ensemble_runs", "evaluate_checkpoint", "merge_adapters", "pool_folds", "run_study",
        "search_hyperparameters", "train_tokenizer",
    ]  # fmt: skip
    assert len(TRAINING) >= 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestAnatomy:
    def test_it_is_a_page(self, path):
        text = path.read_text()
        tree = ast.parse(text)
        assert len(text.split("# ///\n", 1)[1].splitlines()) <= MAX_LINES, "below the PEP 723 header"
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert len(imports) <= MAX_IMPORTS
        assert depth(tree) <= MAX_NESTING
        modules = [getattr(node, "module", node.names[0].name) for node in imports]
        heavy = [name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names | {"torch"}]
        assert heavy[0] == "ptft_recipes.cli", "it imports the heavy libraries quickly"

    def test_the_order_is_the_same_everywhere(self, path):
        text = path.read_text()
        assert text.startswith('# /// script\n# requires-python = ">=3.11"\n# dependencies = ["ptft-recipes')
        tree = ast.parse(text)
        defined = [getattr(node, "name", None) or node.targets[0].id for node in tree.body
                   if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign)]  # fmt: skip
        if path in TRAINING:
            assert defined == ["DEFAULTS", "DataArguments", "preprocess", "main"]
        else:
            assert defined[:2] == ["DEFAULTS", "DataArguments"]
            assert defined[-1] == "main"
            assert len(defined) <= 4
        assert re.findall(r"^    # (\d\. \w+)[.:]", text, re.M) == SECTIONS
        launcher = "accelerate launch" if path in TRAINING else "python"
        assert f"    {launcher} recipes/{path.name} " in ast.get_docstring(tree)

    def test_the_local_names_are_the_same_everywhere(self, path):
        main = next(node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "main")
        assigned = [
            node.id for node in ast.walk(main) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        names = LOCAL_NAMES if path in TRAINING else [] if path.stem in ABOVE else ["run", "raw", "tokenizer"]
        assert {*names} <= {*assigned}

    def test_its_options_are_few(self, path):
        recipe = load_recipe(path.stem)
        fields = [
            field.name
            for owner in argument_types(recipe)
            if owner.__name__ != "TrainingArguments"
            for field in dataclasses.fields(owner)
        ]
        own = set(recipe.DataArguments.__annotations__) - {
            field.name for field in dataclasses.fields(DatasetArguments)
        }
        assert len(fields) == len(set(fields)) <= MAX_OPTIONS, "a new option is a decision"
        assert len(own) <= 10
        assert all(field.metadata.get("help") for field in dataclasses.fields(recipe.DataArguments))

    def test_its_defaults_depart_from_those_of_the_dataclasses(self, path):
        recipe = load_recipe(path.stem)
        plain = {field.name: field.default for owner in argument_types(recipe) for field in dataclasses.fields(owner)}
        assert recipe.DEFAULTS
        assert [name for name, value in recipe.DEFAULTS.items() if plain.get(name, object()) == value] == []
