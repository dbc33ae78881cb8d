"""Every documented path exists, every documented command parses, and the two commands are one line each."""

import re
import shlex

import pytest
from conftest import ROOT, argument_types, load_recipe

from ptft_recipes.cli import parse_args
from ptft_recipes.commands import build_parser
from ptft_recipes.shipped import find_shipped

DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "recipes/README.md")]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS += GUIDES

# What the reader of CONTRIBUTING.md makes.
EXAMPLES = {"recipes/finetune_similarity.py", "tests/recipes/test_finetune_similarity.py"}


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.M | re.S)


def commands() -> list[list[str]]:
    found = []
    for document in DOCUMENTS:
        for block in code_blocks(document.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                found += [shlex.split(part, comments=True) for part in line.split("&&")]
    return [command for command in found if command]


LAUNCHED = [command for command in commands() if command[0] in ("accelerate", "python")]
RECIPE_COMMANDS = [command for command in LAUNCHED if any(re.fullmatch(r"recipes/\w+\.py", word) for word in command)]


def test_there_is_something_to_test():
    assert len(RECIPE_COMMANDS) >= 4


@pytest.mark.parametrize("command", RECIPE_COMMANDS, ids=" ".join)
def test_a_documented_command_parses(command):
    script = next(i for i, word in enumerate(command) if word.startswith("recipes/"))
    launcher, arguments = command[:script], command[script + 1 :]
    for word in launcher:
        assert not word.startswith("accelerate_configs/") or (ROOT / word).exists(), word
    if arguments in (["--help"], ["--help_all"]):
        return
    recipe = load_recipe(command[script].removeprefix("recipes/").removesuffix(".py"))
    arguments = [str(ROOT / word) if word.startswith("recipes/configs/") else word for word in arguments]
    parse_args(argument_types(recipe), recipe.DEFAULTS, arguments)


PTFT_COMMANDS = [command for command in commands() if command[0] == "ptft"]


def test_there_are_commands_of_ptft_to_test():
    assert {command[1] for command in PTFT_COMMANDS} >= {"ls", "cp", "doctor", "space"}


@pytest.mark.parametrize("command", PTFT_COMMANDS, ids=" ".join)
def test_a_documented_command_of_ptft_parses(command):
    arguments = command[1 : command.index(">") if ">" in command else None]
    args = build_parser().parse_args(arguments)
    if args.command == "cp":
        assert find_shipped(args.name, args.kind)
    assert not getattr(args, "accelerate_config", None) or (ROOT / args.accelerate_config).exists()


def test_documented_paths_exist():
    paths = set()
    for document in DOCUMENTS:
        text = document.read_text()
        paths |= set(
            re.findall(r"\b((?:recipes|ptft_recipes|accelerate_configs|tests|benchmarks|docs)/[\w./-]*\w)", text)
        )
    assert len(paths) > 10
    assert paths > EXAMPLES
    missing = [path for path in sorted(paths - EXAMPLES) if not (ROOT / path).exists() and not path.endswith("_")]
    assert missing == []


def headings(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    lines = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", line.strip().lower()).replace(" ", "-") for line in lines}


def test_documented_links_lead_somewhere():
    links = [(page, link) for page in DOCUMENTS for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    links = [(page, link) for page, link in links if not link.startswith("http")]
    broken = []
    for page, link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in headings(target.read_text())):
            broken.append(f"{page.name}: {link}")
    assert len(links) > 50
    assert broken == []


def test_the_readme_leads_to_every_guide():
    text = (ROOT / "README.md").read_text()
    assert len(GUIDES) > 5
    assert [page.name for page in GUIDES if f"](docs/{page.name}" not in text] == []


def test_the_file_tree_names_every_module():
    text = (ROOT / "docs" / "files.md").read_text()
    paths = [
        path for folder in ("ptft_recipes", "recipes", "accelerate_configs") for path in (ROOT / folder).iterdir()
    ]
    files = [path.name for path in paths if path.suffix in (".py", ".yaml") and path.stem != "__init__"]
    assert len(files) > 20
    assert [name for name in files if name not in text] == []


def test_ci_runs_the_test_command_of_the_readme():
    blocks = [line for block in code_blocks((ROOT / "README.md").read_text()) for line in block.splitlines()]
    tests = [line for line in blocks if "pytest" in line]
    assert len(tests) == 1
    assert "grep" in (ROOT / ".ci" / "run").read_text()
    assert tests[0].startswith("python -m pip install -c constraints.txt")


def test_nothing_of_one_machine_is_committed():
    texts = {path: path.read_text() for path in [*DOCUMENTS, *(ROOT / "recipes").rglob("*.yaml")]}
    assert not [path for path, text in texts.items() if re.search(r"/(root|home|tmp)/", text)]
