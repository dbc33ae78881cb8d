"""Arguments of a recipe: its own defaults, then a flat YAML file, then flags. The last word wins."""

# ruff: noqa: E402
import argparse
import dataclasses
import gc
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Recipes import this module first. Left on, the collector would search millions of imported objects, which all stay,
# again and again: a third of the start-up. Frozen, it passes over them from here on.
gc.disable()
import datasets  # noqa: F401
import torch
import transformers.trainer  # noqa: F401
from transformers import HfArgumentParser

gc.enable()
gc.freeze()

from ptft_recipes.acceleration import check_processes, has_native_bf16
from ptft_recipes.batch_sizes import OPTION, keep_global_batch
from ptft_recipes.config_files import read_config
from ptft_recipes.connections import LINGER, as_lost_process
from ptft_recipes.errors import EXIT_CODES, InputError, nearest, one_line, tell_why
from ptft_recipes.interruption import follow_launcher, remember_ctrl_c
from ptft_recipes.reporting import dump_yaml

# Fields of TrainingArguments that --help shows besides the ones that the recipe sets; --help_all shows every field.
COMMON_TRAINING_ARGUMENTS = [
    "output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "bf16",
    "fp16",
    "use_cpu",
    "seed",
    "report_to",
    "resume_from_checkpoint",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
]

OWN_HELP = {
    "bf16": "bfloat16 autocast; on where the hardware computes in it natively, unless given",
    "push_to_hub": "upload model, tokenizer, card, results and plots at the end, to a private repository",
    "hub_model_id": "repository to push to; the name of output_dir when not given",
    "hub_strategy": "push at the end, or the model of each checkpoint too: every_save, checkpoint, all_checkpoints",
    "resume_from_checkpoint": "a checkpoint; not needed where the same run was cut off in output_dir",
    "seed": "of new weights, data order and dropout",
}
# They say how a run goes on, not what it is; in a configuration they would keep it from being repeated.
NOT_RECORDED = {"resume_from_checkpoint", "allow_changes"}
# Lowest and highest values of what transformers checks after the data is read, or never: with -1 epochs it trains on
# nothing, with a billion workers it starts them.
RANGES = {
    "per_device_train_batch_size": (1, 10**6),
    "per_device_eval_batch_size": (1, 10**6),
    "gradient_accumulation_steps": (1, 10**6),
    OPTION: (1, 10**9),
    "num_train_epochs": (0, math.inf),
    "dataloader_num_workers": (0, 1024),
    "learning_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, math.inf),
    "neftune_noise_alpha": (0, math.inf),
    "max_steps": (-1, math.inf),
    "eval_steps": (0, math.inf),
    "save_steps": (0, math.inf),
    "logging_steps": (0, math.inf),
    "early_stopping_patience": (1, math.inf),
    "head_learning_rate": (0, math.inf),
    "label_smoothing_factor": (0, 1),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling per option (HfArgumentParser registers `--a_b` and `--a-b`), no `(default: None)`."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return " ".join(filter(None, (action.option_strings[0], action.metavar)))

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default in (None, [], argparse.SUPPRESS) else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text  # the recipe's docstring is laid out already


class _RecipeParser(HfArgumentParser):
    """HfArgumentParser without abbreviations, with errors of one line and a `where` that names the YAML line."""

    where = ""

    def error(self, message: str):
        message = one_line(message, limit=10**6)
        if len(message) > 1600:  # a value that is a file; what was expected stands at the end
            message = f"{message[:600]} … {message[-1000:]}"
        self.exit(EXIT_CODES[InputError][0], f"{self.prog}: error: {self.where}{message}\n")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        namespace, unknown = self.parse_known_args(argv)
        for argument in unknown:
            if argument.startswith("--"):
                flag = argument.split("=")[0]
                self.error(f"unknown argument {flag}{nearest(flag, self._option_string_actions)}")
        if unknown:
            self.error(f"unexpected value {unknown[0]!r}; options start with --")
        for name, value in vars(namespace).items():
            if isinstance(value, float) and not math.isfinite(value):
                self.error(f"argument --{name}: {value} is no finite number")
            lowest, highest = RANGES.get(name, (-math.inf, math.inf))
            if name == "max_steps" and value == 0:  # to Trainer neither none nor any
                self.error("argument --max_steps: give 1 or more, or -1 for whole epochs")
            if isinstance(value, int | float) and not lowest <= value <= highest:
                upper = f" and at most {highest}" * (highest < math.inf)
                self.error(f"argument --{name}: {value} is out of range; it must be at least {lowest}{upper}")
        return namespace


def build_parser(
    dataclass_types: Sequence[type], defaults: dict[str, Any], description: str | None = None, show_all: bool = False
) -> _RecipeParser:
    """Return the parser of a recipe's arguments.

    Args:
        dataclass_types: As for `parse_args`.
        defaults: Likewise.
        description: Likewise.
        show_all: Let `--help` show every field of `TrainingArguments`.

    Raises:
        KeyError: `defaults` names an argument that no dataclass has.
    """
    parser = _RecipeParser(
        dataclass_types, description=description, formatter_class=_HelpFormatter, allow_abbrev=False, usage="%(prog)s"
    )
    parser._optionals.title = "training (transformers.TrainingArguments)"
    names = {field.name for dataclass_type in dataclass_types for field in dataclasses.fields(dataclass_type)}
    if "per_device_train_batch_size" in names:
        # A field would be one option more in every recipe, also in those that train nothing.
        help_text = (
            "rows per optimizer step, of all processes; the accumulation follows, and the batch size may shrink"
        )
        parser._optionals.add_argument(f"--{OPTION}", f"--{OPTION.replace('_', '-')}", type=int, help=help_text)
        names.add(OPTION)
    for name in defaults:
        if name not in names:
            raise KeyError(f"DEFAULTS names {name!r}, which is no argument{nearest(name, names)}")
    if "bf16" in names:
        parser.set_defaults(bf16=None)  # stands for "where the hardware has it", decided after parsing
    if "hub_strategy" in names:
        parser.set_defaults(hub_strategy="end")  # transformers uploads every checkpoint unless told otherwise
    parser.plain_defaults = vars(parser.parse_known_args([])[0])  # argparse converts defaults that are text
    parser.set_defaults(**defaults)
    parser.add_argument("--config", metavar="FILE", help="flat YAML file of arguments; flags override it")
    parser.add_argument("--print_config", action="store_true", help="print the configuration, checked, and stop")
    parser.add_argument("--help_all", action="help", help="show every field of TrainingArguments too")
    shown = {*defaults, *COMMON_TRAINING_ARGUMENTS, OPTION, "config", "print_config", "help", "help_all"}
    for action in parser._actions:
        kind = getattr(action.type, "__name__", "").removeprefix("string_to_").upper()
        action.metavar = action.metavar or (
            "" if action.nargs == 0 else kind if kind in ("INT", "FLOAT", "BOOL") else "X"
        )
        if action.container is parser._optionals and not show_all and action.dest not in shown:
            action.help = argparse.SUPPRESS
        if any(flag.startswith("--no_") for flag in action.option_strings):
            action.help = argparse.SUPPRESS
        action.help = OWN_HELP.get(action.dest, action.help) if action.help != argparse.SUPPRESS else action.help
    return parser


def parse_args(
    dataclass_types: Sequence[type],
    defaults: dict[str, Any],
    argv: Sequence[str] | None = None,
    description: str | None = None,
) -> tuple:
    """Parse a recipe's arguments: `defaults`, then the file that `--config` names, then `argv`.

    A key or flag that does not exist, a wrong type or choice, and a number out of range end the process with exit
    code 2 and one line that names the nearest right name. Abbreviated flags are refused, and so is a wrong number of
    processes.

    Args:
        dataclass_types: The dataclasses to fill, `TrainingArguments` among them.
        defaults: What the recipe wants to be different from the dataclasses' own defaults.
        argv: The command line without the program's name; `sys.argv[1:]` when None.
        description: Shown on top of `--help`, as it is.

    Returns:
        One instance per dataclass, in the given order; and last the configuration, every argument that was given or
        that `defaults` names. Written to a file and given as `--config`, it repeats the run, also after a recipe's
        defaults have changed.

    Raises:
        KeyError: `defaults` names an argument that no dataclass has.
        SystemExit: For `--help` and `--print_config` (code 0), and for wrong arguments (code 2).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(dataclass_types, defaults, description, show_all="--help_all" in argv)
    names = {field.name for dataclass_type in dataclass_types for field in dataclasses.fields(dataclass_type)}
    names |= {OPTION} & parser.plain_defaults.keys()
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(argv)[0].config
    from_file = read_config(path, parser, names) if path else []
    namespace = parser.parse([*from_file, *argv])
    if getattr(namespace, "trust_remote_code", False) and not parser.parse(argv).trust_remote_code:
        # Who passes a file on must not decide it for who runs it.
        parser.error(f"--config {path}: trust_remote_code runs the code of others; give it on the command line")
    config = {
        name: value
        for name, value in vars(namespace).items()
        if name in names - NOT_RECORDED
        and value is not None
        and (name in defaults or value != parser.plain_defaults[name])
    }
    if "use_cpu" in names:
        # Without a GPU the CPU must be asked for by name: else TrainingArguments refuses bf16, and accelerate lets
        # every process of torchrun train on its own.
        launched_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        namespace.use_cpu = namespace.use_cpu or launched_for_cpu or not _has_accelerator()
        stock = getattr(namespace, "stock", False)
        launched_with = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if namespace.bf16 is None and not namespace.fp16 and launched_with != "no":
            namespace.bf16, namespace.fp16 = launched_with == "bf16", launched_with == "fp16"
        elif namespace.bf16 is None:
            namespace.bf16 = not (namespace.fp16 or stock) and has_native_bf16(namespace.use_cpu)
        if stock and namespace.train_sampling_strategy == "group_by_length":
            namespace.train_sampling_strategy = "random"
    values = vars(namespace)
    try:
        check_processes(values.get("use_cpu", False))
        if OPTION in names:
            keep_global_batch(values, from_file, argv)
        instances = [
            dataclass_type(**{f.name: values[f.name] for f in dataclasses.fields(dataclass_type) if f.init})
            for dataclass_type in dataclass_types
        ]
    except (ValueError, ImportError) as error:  # raised by the dataclasses' own checks
        parser.error(str(error))
    except (OSError, TypeError, KeyError, AttributeError, RuntimeError) as error:  # of JSON that is not as expected
        parser.error(f"the training arguments do not go together: {type(error).__name__}: {one_line(error)}")
    if any(getattr(instance, "from_scratch", False) for instance in instances):
        config["from_scratch"] = True  # also where there are no other weights than new ones
    if namespace.print_config:
        print(dump_yaml(config), end="")
        parser.exit()
    return *instances, config


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def run_command(main: Callable[[], Any]) -> None:
    """Run a recipe's `main` as a command.

    Exit codes: 0 finished; 1 an unexpected error, with its traceback; 2 a mistake in the input; 3 training stopped at
    a loss, gradient or weight that is not finite; 4 memory or disk space ran out; 5 all is finished but the push; 6
    another process of the run is gone; 75 stopped by SIGTERM or Ctrl-C after a checkpoint was saved; 130 left at once,
    by Ctrl-C.
    """
    follow_launcher()
    remember_ctrl_c()
    try:
        main()
    except SystemExit as stop:  # --help or a wrong argument: nothing has started
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code or 0)  # without the second that Python takes to tear down what it imported
    except tuple(EXIT_CODES) as error:
        sys.exit(tell_why(error, Path(sys.argv[0]).name))
    except RuntimeError as error:
        if not (lost := as_lost_process(error)):
            raise
        code = tell_why(lost, Path(sys.argv[0]).name)
        sys.stdout.flush()
        time.sleep(LINGER)
        os._exit(code)  # what is left of the process group would wait for the others
    # A thread of gloo that is still there when Python tears itself down takes the whole process with it (SIGABRT).
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
