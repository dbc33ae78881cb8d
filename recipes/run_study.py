# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Run an experiment that is written down as data: arms, each one or more recipes in a row, with several seeds.

    python recipes/run_study.py --study recipes/configs/run_study/aclsum_roles.yaml
    ... --dry_run                                                                 the commands, and how long they take
    ... --parallel 2 --accelerate_config accelerate_configs/cpu.yaml              cells side by side

Every cell is a process of `accelerate launch` with an output folder of its own. The same command goes on where it
was stopped: finished cells are kept, one that was cut off resumes from its checkpoint, failed ones are tried again. It
ends in the comparison of the arms.
"""

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.comparison import compare_arms, read_arms
from ptft_recipes.comparison_tables import markdown_of, write_comparison
from ptft_recipes.launching import Launcher, run_cells
from ptft_recipes.shipped import FOLDER
from ptft_recipes.studies import (
    FINISHED,
    Progress,
    check_cells,
    describe_left,
    estimate_seconds,
    format_seconds,
    open_study,
    plan_cells,
)
from ptft_recipes.study_files import read_study
from ptft_recipes.study_page import write_page

# What differs from the fields' own defaults.
DEFAULTS = {"study": "recipes/configs/run_study/aclsum_roles.yaml"}


@dataclass
class DataArguments:
    """The study, and how its cells are started."""

    study: str | None = field(default=None, metadata={"help": "YAML file: arms, seeds, baseline"})
    output_dir: str | None = field(default=None, metadata={"help": "instead of the one that the study names"})
    accelerate_config: str | None = field(default=None, metadata={"help": "of a cell; cpu.yaml or single_gpu.yaml"})
    parallel: int | None = field(default=None, metadata={"help": "cells side by side; one, or one per GPU"})
    dry_run: bool = field(default=False, metadata={"help": "print the commands, and start nothing"})


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags.
    data_args, _ = parse_args((DataArguments,), DEFAULTS, argv, __doc__)

    # 2. Data: the study, read strictly; every recipe checks the arguments of its cells before anything runs.
    recipes = Path(os.path.relpath(Path(__file__).parent))
    study = read_study(data_args.study, recipes, data_args.output_dir)
    cells = plan_cells(study)
    check_cells(cells)

    # 3. Model: what a cell trains is up to its recipe; here, on what it runs.
    name = "single_gpu.yaml" if torch.cuda.is_available() else "cpu.yaml"
    file = data_args.accelerate_config or os.path.relpath(FOLDER / "accelerate_configs" / name)
    launcher = Launcher(file, data_args.parallel)
    estimates = estimate_seconds(cells)
    print(f"study: {study.output_dir}, {len(cells)} cells, {len(cells) - len(estimates)} of them finished")
    if data_args.dry_run:
        for cell, seconds in estimates.items():
            print(f"# {cell.name}: {'unknown time' if seconds is None else format_seconds(seconds)}")
            print(shlex.join(launcher.command(cell)))
        print(f"# {describe_left(cells, launcher.slots)}")
        return None

    # 4. Train: every cell that is not finished, each after the stage that it starts from.
    open_study(study)
    states = run_cells(cells, launcher, study.output_dir / "logs", Progress(cells, launcher.slots))

    # 5. Evaluate: the arms, on the seeds that are finished; an arm without results is named.
    folders = {arm: [study.folder(arm, seed) for seed in study.seeds] for arm in study.arms}
    arms, left_out = read_arms(folders)
    results = compare_arms(arms, study.baseline if study.baseline in arms else None)
    results |= {"remarks": study.shared_stages(), "left_out": left_out}

    # 6. Publish: the table, and a page for who did not run it.
    print(f"\n{markdown_of(results)}\n{study.output_dir}: report.html, table.md, forest.png", flush=True)
    write_comparison(study.output_dir, results)
    write_page(study.output_dir / "report.html", study, results, arms, cells, states)
    if failed := [cell.name for cell, state in states.items() if state != FINISHED]:
        print(f"run_study.py: not finished: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)
    return results


if __name__ == "__main__":
    run_command(main)
