"""The command ptft: what it lists and copies, and how it ends."""

import ast
import resource
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, argument_types, load_recipe

from ptft_recipes import hub, shipped
from ptft_recipes.cli import parse_args
from ptft_recipes.commands import main
from ptft_recipes.errors import InputError, PushError
from ptft_recipes.search_space import read_search
from ptft_recipes.study_files import read_study

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
CONFIGS = {f"{path.parent.name}/{path.stem}": path for path in (ROOT / "recipes" / "configs").rglob("*.yaml")}
ENGINES = {path.stem: path for path in (ROOT / "accelerate_configs").iterdir()}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def commands_in(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]


class TestLs:
    def test_it_names_every_recipe_in_its_own_words(self, capsys):
        assert main(["ls"]) == 0
        told = capsys.readouterr().out
        assert [line.split()[0] for line in told.splitlines() if line[:1].isalpha()][:-1] == RECIPES
        words = " ".join(told.split())
        for name in RECIPES:
            docstring = ast.get_docstring(ast.parse((ROOT / "recipes" / f"{name}.py").read_text()))
            first = docstring.splitlines()[0].partition(":")[0].rstrip(".")
            assert f"{name} {first}" in words

    def test_it_names_every_configuration(self, capsys):
        assert main(["ls", "--config"]) == 0
        told = capsys.readouterr().out
        assert len(CONFIGS) > 15
        assert [line.split()[0] for line in told.splitlines() if "/" in line[:25] and line[0] != " "] == sorted(
            CONFIGS
        )
        assert "SST-2, sentiment of film reviews, from the Hub" in " ".join(told.split())

    def test_it_names_every_configuration_of_accelerate_and_the_script_for_slurm(self, capsys):
        assert main(["ls", "--accelerate"]) == 0
        *told, empty, how = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in told if line[0] != " "] == sorted(ENGINES)
        assert {"multi_cpu", "fsdp2", "slurm"} < ENGINES.keys()
        assert "slurm                   Several machines under SLURM" in "\n".join(told)
        assert (empty, how) == ("", "To copy one: ptft cp --accelerate NAME [DEST]")

    @pytest.mark.parametrize(
        "command",
        [
            ["ls"],
            ["ls", "--config"],
            ["ls", "--accelerate"],
            ["--help"],
            *([name, "--help"] for name in ("cp", "doctor", "push-dataset")),
        ],
    )
    def test_it_reads_well_at_80_columns_and_without_colour(self, command, capsys):
        if "--help" in command:
            with pytest.raises(SystemExit) as stop:
                main(command)
            assert stop.value.code == 0
        else:
            main(command)
        told = capsys.readouterr().out
        assert max(map(len, told.splitlines())) <= 80
        assert "\x1b" not in told


class TestCp:
    @pytest.mark.parametrize("name", RECIPES)
    def test_a_copy_is_the_recipe_and_the_command_parses(self, name, capsys, empty_folder):
        assert main(["cp", name, "mine.py"]) == 0
        assert (empty_folder / "mine.py").read_bytes() == (ROOT / "recipes" / f"{name}.py").read_bytes()
        *before, command = commands_in(capsys.readouterr().out)
        for earlier in before:
            assert earlier[0] == "ptft"
            assert main(earlier[1:]) == 0
        arguments = command[command.index("mine.py") + 1 :]
        recipe = load_recipe("mine", empty_folder)
        *_, config = parse_args(argument_types(recipe), recipe.DEFAULTS, arguments)
        if "study" in config:
            assert read_study(config["study"], empty_folder).arms
        if "search" in config:
            assert read_search(config["search"], empty_folder).space
        else:
            assert not [value for value in config.values() if str(value).startswith("recipes/")]

    @pytest.mark.parametrize("name", CONFIGS)
    def test_a_copied_configuration_runs_with_a_copied_recipe(self, name, capsys, empty_folder):
        assert main(["cp", "--config", name]) == 0
        file = CONFIGS[name].name
        assert (empty_folder / file).read_bytes() == CONFIGS[name].read_bytes()
        (first, command) = commands_in(capsys.readouterr().out)
        assert main(first[1:]) == 0, "the recipe, which is not here yet"
        script = next(word for word in command if word.endswith(".py"))
        assert (empty_folder / script).exists()
        assert file in command
        assert not [word for word in command if "/" in word]

    @pytest.mark.parametrize("name", ENGINES)
    def test_a_copied_configuration_of_accelerate_is_told_with_its_launch_line(self, name, capsys, empty_folder):
        file = ENGINES[name].name
        assert main(["cp", "--accelerate", name]) == 0
        assert (empty_folder / file).read_bytes() == ENGINES[name].read_bytes()
        first, command = commands_in(capsys.readouterr().out)
        assert first == ["ptft", "cp", "finetune_cls"]
        assert command[:2] == (["sbatch", file] if name == "slurm" else ["accelerate", "launch"])
        assert file in command
        assert command[-1] == "finetune_cls.py"
        assert main(["cp", "--accelerate", file, f"other{ENGINES[name].suffix}"]) == 0, "with its suffix too"

    def test_nothing_is_overwritten(self, capsys, empty_folder):
        (empty_folder / "mine.py").write_text("# mine")
        (empty_folder / "link.py").symlink_to(empty_folder / "nowhere")
        (empty_folder / "sst2.yaml").write_text("# mine")
        for argv in (["finetune_cls", "mine.py"], ["finetune_cls", "link.py"], ["--config", "sst2"]):
            assert main(["cp", *argv]) == 2
            assert "exists and is left as it is; choose another name" in capsys.readouterr().err
        assert (empty_folder / "mine.py").read_text() == "# mine"
        assert not (empty_folder / "nowhere").exists()

    def test_a_full_disk_leaves_no_half_of_a_copy(self, capsys, empty_folder):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            assert main(["cp", "finetune_cls"]) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "finetune_cls.py: cannot be written: File too large" in capsys.readouterr().err
        assert list(empty_folder.iterdir()) == []

    def test_a_folder_and_a_name_with_a_space_are_places_too(self, capsys, empty_folder):
        (empty_folder / "sub folder").mkdir()
        assert main(["cp", "finetune_cls", "sub folder"]) == 0
        assert (empty_folder / "sub folder" / "finetune_cls.py").exists()
        assert "accelerate launch 'sub folder/finetune_cls.py'" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("argv", "told"),
        [
            (["finetune_cl"], "no recipe 'finetune_cl'; did you mean 'finetune_cls'?"),
            (["xyz"], "no recipe 'xyz'; `ptft ls` lists them"),
            (["../conftest"], "no recipe '../conftest'; `ptft ls` lists them"),
            (["--config", "sst"], "no configuration 'sst'; did you mean 'sst2'?"),
            (["--config", "finetune_cls/sst"], "did you mean 'finetune_cls/sst2'?"),
            (["--config", "xyz"], "no configuration 'xyz'; `ptft ls --config` lists them"),
            (
                ["--config", "aclsum_roles"],
                "'aclsum_roles' is the name of several configurations; give one of finetune_cls/aclsum_roles, "
                "run_study/aclsum_roles, search_hyperparameters/aclsum_roles",
            ),
            (["--accelerate", "multi_gp"], "no Accelerate configuration 'multi_gp'; did you mean 'multi_gpu'?"),
            (["--accelerate", "xyz"], "no Accelerate configuration 'xyz'; `ptft ls --accelerate` lists them"),
            (["--accelerate", "slurm.yaml"], "no Accelerate configuration 'slurm.yaml'; `ptft ls --accelerate` lists"),
            (["--accelerate", "cpu", "mine.sbatch"], "mine.sbatch: the name must end in .yaml"),
            (["finetune_cls", "mine"], "mine: the name must end in .py"),
            (["finetune_cls", "none/mine.py"], "none/mine.py: cannot be written: No such file or directory"),
            (["evaluate_checkpoint", "evaluate.py"], "evaluate.py: there is a module 'evaluate', which this file"),
            (["finetune_cls", "random.py"], "random.py: there is a module 'random', which this file would hide"),
        ],
    )
    def test_a_mistake_is_one_line_that_names_the_remedy(self, argv, told, capsys, empty_folder):
        assert main(["cp", *argv]) == 2
        error = capsys.readouterr().err
        assert error.startswith("ptft: error: ")
        assert told in error
        assert error.count("\n") == 1
        assert list(empty_folder.iterdir()) == []


class TestStudiesOfACopy:
    def test_a_recipe_beside_the_copy_comes_before_the_installed_one(self, empty_folder):
        assert shipped.find_recipe("finetune_cls", empty_folder).resolve() == ROOT / "recipes" / "finetune_cls.py"
        main(["cp", "finetune_cls"])
        assert shipped.find_recipe("finetune_cls", empty_folder) == empty_folder / "finetune_cls.py"

    def test_a_recipe_that_is_nowhere_is_named_with_the_nearest(self, empty_folder):
        (empty_folder / "study.yaml").write_text("seeds: [1]\narms:\n  a: {recipe: finetune_clz}\n")
        with pytest.raises(InputError, match=r"no recipe 'finetune_clz'; did you mean 'finetune_cls'"):
            read_study(empty_folder / "study.yaml", empty_folder)


class TestEnds:
    def test_the_version_is_that_of_the_library(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["--version"])
        assert stop.value.code == 0
        assert capsys.readouterr().out == "ptft-recipes 0.1.0\n"

    @pytest.mark.parametrize(
        ("argv", "told"),
        [
            (["psuh"], "no command 'psuh'; did you mean 'push'?"),
            (["xyz"], "no command 'xyz'; there are ls, cp, doctor, push, push-dataset, space, plan, completion"),
            ([], "required: COMMAND"),
            (["cp"], "required: NAME"),
            (["cp", "--config", "--accelerate", "cpu"], "--accelerate: not allowed with argument --config"),
            (["completion", "fish"], "invalid choice: 'fish'"),
        ],
    )
    def test_a_wrong_command_line_is_one_line_and_code_2(self, argv, told, capsys):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1

    def test_it_is_quick_and_survives_a_reader_that_leaves(self):
        command = [sys.executable, "-m", "ptft_recipes.commands", "ls"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
            process.stdout.close()
            assert process.wait(timeout=30) == 141
            assert process.stderr.read() == b""


class TestPush:
    def run_folder(self, empty_folder):
        (empty_folder / "run").mkdir()
        (empty_folder / "run" / "results.json").write_text("{}")

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [([], (None, True)), (["--repo_id", "me/x"], ("me/x", True)), (["--public"], (None, False))],
    )
    def test_it_is_private_unless_asked_otherwise(self, flags, expected, monkeypatch, capsys, empty_folder):
        self.run_folder(empty_folder)
        asked = []

        def push_run(output_dir, repo_id, private):
            asked.append((output_dir.name, repo_id, private))
            return "https://hub/me/run"

        monkeypatch.setattr(hub, "push_run", push_run, raising=False)
        assert main(["push", "run", *flags]) == 0
        assert asked == [("run", *expected)]
        assert capsys.readouterr().out == "https://hub/me/run\n"

    def test_a_failed_push_has_its_own_code(self, monkeypatch, capsys, empty_folder):
        self.run_folder(empty_folder)

        def push_run(output_dir, repo_id, private):
            raise PushError("the push failed. Retry: ptft push run")

        monkeypatch.setattr(hub, "push_run", push_run, raising=False)
        assert main(["push", "run"]) == 5
        assert capsys.readouterr().err == "ptft: error: the push failed. Retry: ptft push run\n"

    @pytest.mark.parametrize("command", ["push", "space"])
    def test_what_is_no_finished_run_is_refused(self, command, capsys, empty_folder):
        assert main([command, "nowhere"]) == 2
        assert "nowhere: no such folder; give the output folder of a run" in capsys.readouterr().err
        (empty_folder / "half").mkdir()
        assert main([command, "half"]) == 2
        assert "half: there is no results.json, so no run has come to its end here" in capsys.readouterr().err


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh"])
    def test_a_shell_is_told_commands_recipes_and_configurations(self, shell, capsys):
        pytest.importorskip("shtab")
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        for word in ("doctor", "finetune_cls", "finetune_cls/sst2", "fsdp2", "--accelerate", "--accelerate_config"):
            assert word in script

    def test_bash_completes_with_it(self, capsys):
        pytest.importorskip("shtab")
        main(["completion", "bash"])
        asked = [["pu"], ["cp", "finetune_t"], ["cp", "--config", "finetune_cls/ss"], ["cp", "--accelerate", "slu"]]
        asked += [["push-dataset", "x", "--ta"]]
        lines = [f"COMP_WORDS=(ptft {' '.join(words)}) COMP_CWORD={len(words)}; tell" for words in asked]
        tell = 'tell() { COMPREPLY=(); _shtab_ptft; (IFS=,; echo "${COMPREPLY[*]}"); }; complete -p ptft'
        script = "\n".join([capsys.readouterr().out, tell, *lines])
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        first, *told = done.stdout.splitlines()
        assert first.endswith("-F _shtab_ptft ptft")
        assert told[0] == "push,push-dataset"
        assert told[1].split(",")[0] == "finetune_token_cls"
        assert told[2:] == ["finetune_cls/sst2", "slurm", "--task"]

    def test_without_the_library_it_says_how_to_get_it(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "shtab", None)
        assert main(["completion", "bash"]) == 2
        assert "python -m pip install 'ptft-recipes[completion]'" in capsys.readouterr().err
