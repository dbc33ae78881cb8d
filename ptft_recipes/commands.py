"""The command `ptft`: recipes and configurations to copy, an installation to check, finished runs to publish."""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import ptft_recipes
from ptft_recipes.errors import EXIT_CODES, InputError, nearest, tell_why
from ptft_recipes.shipped import KINDS, copy_shipped, shipped_files, summary

# Nothing heavy is imported above: `ptft ls` is to be as quick as ls. What needs torch is imported by who needs it.

NAME_WIDTH = 24
EXIT_CODES_IN_WORDS = """\
exit codes:
  0    done
  1    `ptft doctor` found something wrong; else an unexpected error
  2    a mistake in what was given; one line says which
  5    the push failed; the message has the command that tries again
  130  Ctrl-C
"""


class _Parser(argparse.ArgumentParser):
    """Errors of one line, as the recipes have them."""

    def error(self, message: str):
        self.exit(EXIT_CODES[InputError][0], f"{self.prog}: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `ptft` and its commands."""
    parser = _Parser(
        prog="ptft",
        description="Recipes to pre-train and fine-tune encoders: list, copy, check, plan, publish.",
        epilog=EXIT_CODES_IN_WORDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ptft-recipes {ptft_recipes.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(run, name: str, words: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=words, description=f"{words[0].upper()}{words[1:]}.", allow_abbrev=False
        )
        command.set_defaults(run=run)
        return command

    def add_kinds(command: argparse.ArgumentParser, words: str) -> None:
        command.set_defaults(kind="recipe")
        kinds = command.add_mutually_exclusive_group()
        for kind, of in {"config": "of a recipe", "accelerate": "of Accelerate, or the script for SLURM"}.items():
            kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help=f"{words} {of}")

    ls = add(_list, "ls", "list the recipes, or configurations")
    add_kinds(ls, "configurations")

    cp = add(_copy, "cp", "copy a recipe of the installed version, to be changed and run")
    add_kinds(cp, "NAME is a configuration")
    cp.add_argument("name", metavar="NAME", help="e.g. finetune_cls")
    cp.add_argument("destination", metavar="DEST", nargs="?", help="file or folder; by default NAME, here")

    doctor = add(_doctor, "doctor", "say what is installed, what it will run on, and what is wrong with it")
    doctor.add_argument(
        "--accelerate_config", metavar="FILE", help="that is meant for accelerate launch --config_file"
    )
    doctor.add_argument("--output_dir", metavar="DIR", default="runs", help="whose disk is looked at (default: runs)")

    push = add(_push, "push", "push a finished run to the Hub, into a private repository")
    push.add_argument("folder", metavar="RUN", help="its output folder, e.g. runs/finetune_cls")
    push.add_argument("--repo_id", metavar="NAME", help="repository; by default the name of the folder")
    push.add_argument("--public", action="store_true", help="anybody may read it")

    data = add(_push_dataset, "push-dataset", "push data to the Hub as a recipe would train on it, privately")
    data.add_argument("source", metavar="SOURCE", help="file, folder, Hub id or demo/..., as for --dataset_name")
    data.add_argument("repo_id", metavar="REPO", help="repository; a name alone is one of your own")
    data.add_argument(
        "--task", default="text-classification", choices=["text-classification", "token-classification", "fill-mask"],
        help="text-classification (default), token-classification or fill-mask", metavar="TASK",
    )  # fmt: skip
    data.add_argument("--text_column", metavar="NAME", help="default: text; tokens for token-classification")
    data.add_argument("--text_pair_column", metavar="NAME", help="the second text of a pair")
    data.add_argument("--label_column", metavar="NAME", help="default: label; tags for token-classification")
    data.add_argument("--label_separator", metavar="TEXT", help="between the labels of one multi-label cell")
    data.add_argument("--validation_file", metavar="FILE", help="beside a SOURCE that is a file; else cut from it")
    data.add_argument("--test_file", metavar="FILE", help="likewise")
    data.add_argument("--dataset_config", metavar="NAME", help="configuration of a Hub data set")
    data.add_argument("--dataset_revision", metavar="NAME", help="its branch, tag or commit")
    data.add_argument("--drop_bad_rows", action="store_true", help="leave out rows without text or label")
    data.add_argument("--public", action="store_true", help="anybody may read it")

    space = add(_space, "space", "write a Gradio demo of a finished classifier or tagger; nothing is pushed")
    space.add_argument("folder", metavar="RUN", help="its output folder, e.g. runs/finetune_cls")
    space.add_argument("destination", metavar="DEST", nargs="?", help="new folder; by default RUN-space")
    space.add_argument("--repo_id", metavar="NAME", help="load the pushed model from there, instead of a copy of it")

    plan = add(_plan, "plan", "say what a long training will take, from a few measured steps of a recipe")
    plan.add_argument("--tokens", metavar="N", type=_number, help="to train on, those of all epochs, e.g. 1e10")
    plan.add_argument("--devices", metavar="N,N", type=_counts, default=[1], help="e.g. 1,8,64 (default: 1)")
    plan.add_argument("--price_per_hour", metavar="X", type=_number, help="of one device")
    plan.add_argument(
        "--efficiency", metavar="X", type=_share, default=1.0, help="of a device beside others, assumed (default: 1)"
    )
    plan.add_argument("--peak_tflops", metavar="X", type=_number, help="of a device that is not here")
    plan.add_argument("--utilisation", metavar="X", type=_share, help="share of its peak, assumed; with --peak_tflops")
    plan.add_argument("--steps", metavar="N", type=int, default=20, help="to time (default: 20)")
    plan.add_argument("--accelerate_config", metavar="FILE", help="to measure with; a device is one of its processes")
    plan.add_argument("--check", metavar="RUN", help="measure the recipe of this finished run, and compare with it")
    plan.add_argument("--output", metavar="FILE", help="write the figures there too, as JSON")
    plan.add_argument("name", metavar="NAME", nargs="?", help="recipe, e.g. pretrain_mlm, or a file")
    plan.add_argument("flags", metavar="...", nargs=argparse.REMAINDER, help="flags of the recipe")

    completion = add(_completion, "completion", "print the script that lets a shell complete ptft")
    completion.add_argument("shell", metavar="SHELL", choices=["bash", "zsh", "tcsh"], help="bash, zsh or tcsh")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ptft`.

    Args:
        argv: The command line without the program's name; `sys.argv[1:]` when None.

    Returns:
        The exit code, as `ptft --help` explains it.

    Raises:
        SystemExit: For `--help` and `--version` (code 0), and for wrong arguments (code 2).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    known = next(action.choices for action in parser._actions if action.dest == "command")
    if argv and not argv[0].startswith("-") and argv[0] not in known:
        parser.error(f"no command {argv[0]!r:.60}{nearest(argv[0], known) or '; there are ' + ', '.join(known)}")
    args = parser.parse_args(argv, argparse.Namespace(argv=argv))
    try:
        code = args.run(args)
        print(end="", flush=True)
    except BrokenPipeError:  # of `ptft ls | head`; Python would say so once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell has it: 128 + SIGPIPE
    except tuple(EXIT_CODES) as error:
        return tell_why(error, "ptft")
    return code or 0


def _list(args: argparse.Namespace) -> None:
    width = min(shutil.get_terminal_size().columns, 100)
    for name, path in shipped_files(args.kind).items():
        lines = textwrap.wrap(summary(path), max(width - NAME_WIDTH, 20))
        first = f"{name:<{NAME_WIDTH - 1}} {lines.pop(0)}" if len(name) < NAME_WIDTH else name
        print("\n".join([first, *(" " * NAME_WIDTH + line for line in lines)]))
    if args.kind == "recipe":
        print("\nTo copy one: ptft cp NAME [DEST]. Also: ptft ls --config, ptft ls --accelerate")
    else:
        print(f"\nTo copy one: ptft cp --{args.kind} NAME [DEST]")


def _copy(args: argparse.Namespace) -> None:
    path, commands = copy_shipped(args.name, args.destination, args.kind)
    print(f"{path}: as in ptft-recipes {ptft_recipes.__version__}. To run it:\n")
    print("\n".join(f"    {command}" for command in commands))


def _doctor(args: argparse.Namespace) -> int:
    from ptft_recipes.doctor import examine, format_finding

    findings = []
    for finding in examine(args.accelerate_config, args.output_dir):
        findings.append(finding)
        print(format_finding(finding, min(shutil.get_terminal_size().columns, 100)), flush=True)
    wrong = sum(finding.state == "wrong" for finding in findings)
    print(f"\n{wrong} of these {'is' if wrong == 1 else 'are'} wrong" if wrong else "\nnothing is wrong")
    return int(wrong > 0)


def _push(args: argparse.Namespace) -> None:
    folder = _finished_run(args.folder)
    from ptft_recipes.hub import push_run

    print(push_run(folder, args.repo_id, private=not args.public))


def _push_dataset(args: argparse.Namespace) -> None:
    from ptft_recipes.data import DatasetArguments
    from ptft_recipes.dataset_push import prepare_splits, push_dataset
    from ptft_recipes.hub import check_login
    from ptft_recipes.hub_client import hide_bars

    hide_bars()
    check_login(args.repo_id, not args.public, "dataset")  # before all of it is read
    is_file = os.path.isfile(args.source)
    source = {"train_file" if is_file else "dataset_name": args.source}
    names = ("validation_file", "test_file", "dataset_config", "dataset_revision", "drop_bad_rows")
    data_args = DatasetArguments(**source, **{name: getattr(args, name) for name in names})
    if not is_file and (data_args.validation_file or data_args.test_file):
        raise InputError(f"{args.source} is no file; --validation_file and --test_file go with one")
    columns = (args.text_column, args.text_pair_column, args.label_column, args.label_separator)
    raw, report = prepare_splits(data_args, args.task, *columns)
    retry = shlex.join(["ptft", *args.argv])
    print(push_dataset(raw, report, args.repo_id, private=not args.public, retry=retry))


def _space(args: argparse.Namespace) -> None:
    folder = _finished_run(args.folder)
    from ptft_recipes.spaces import write_space

    destination = Path(args.destination or f"{folder}-space")
    print(write_space(folder, destination, args.repo_id))


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def _share(text: str) -> float:
    if (number := _number(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text} is no share, at most 1")
    return number


def _counts(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"{text}: give numbers from 1 on, with commas between them")
    return [int(count) for count in text.split(",")]


def _plan(args: argparse.Namespace) -> None:
    if (args.peak_tflops is None) != (args.utilisation is None):
        raise InputError("--peak_tflops and --utilisation go together: the speed of a device that is not here")
    if args.steps < 2:
        raise InputError(f"--steps {args.steps}: at least 2 are needed, to tell how much they differ")
    if not (args.tokens or args.check) or not (args.name or args.check):
        raise InputError("give --tokens and the NAME of a recipe, or --check with a finished run")
    if args.accelerate_config and not os.path.isfile(args.accelerate_config):
        raise InputError(
            f"--accelerate_config {args.accelerate_config}: no such file; `ptft ls --accelerate` lists some"
        )
    if args.output and not Path(args.output).parent.is_dir():
        raise InputError(f"--output {args.output}: there is no such folder")
    from ptft_recipes import planning

    name, flags = args.name, args.flags
    if args.check and not name:
        run = planning.read_results(Path(args.check, "results.json"))["run"]
        name, flags = run["recipe"], ["--config", str(Path(args.check, "config.yaml"))]
    print(f"{name}: {args.steps} steps are timed, after some to warm up", flush=True)
    speed = planning.measure_throughput(name, flags, args.steps, args.accelerate_config)
    print(planning.format_speed(speed), flush=True)
    found = {"measured": speed}
    if args.check:
        found["check"] = planning.check_plan(args.check, speed)
        print(planning.format_check(args.check, found["check"]))
    if args.tokens:
        rate, of = speed["tokens_per_second"] / speed["processes"], "as measured here"
        if args.peak_tflops:
            rate = args.peak_tflops * 1e12 * args.utilisation / speed["flop_per_token"]
            of = f"assumed, not measured: {args.peak_tflops:g} TFLOP/s at {args.utilisation:.0%}"
        found["plan"] = planning.make_plan(args.tokens, args.devices, rate, args.price_per_hour, args.efficiency)
        beside = f", {args.efficiency:.0%} of it beside others (assumed)" if max(args.devices) > 1 else ""
        print(f"\n{args.tokens:,.0f} tokens; a device: {rate:,.0f} tokens per second, {of}{beside}\n")
        print(planning.format_plan(found["plan"]))
    if args.output:
        Path(args.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _finished_run(name: str) -> Path:
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"{name}: no such folder; give the output folder of a run")
    if not (folder / "results.json").is_file():
        raise InputError(f"{name}: there is no results.json, so no run has come to its end here")
    return folder


def _completion(args: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError:
        raise InputError("completion needs shtab: python -m pip install 'ptft-recipes[completion]'") from None
    parser = build_parser()
    commands = next(action.choices for action in parser._actions if action.dest == "command")
    for command in commands.values():
        for action in command._actions:
            if action.metavar in ("RUN", "DIR"):
                action.complete = shtab.DIRECTORY
            elif action.metavar in ("DEST", "FILE", "SOURCE"):
                action.complete = shtab.FILE
            elif action.dest == "name":
                action.choices = [name for kind in KINDS for name in shipped_files(kind)]
    print(shtab.complete(parser, shell=args.shell))


if __name__ == "__main__":
    sys.exit(main())
