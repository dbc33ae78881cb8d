# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Make one score of the folds of a cross-validation: for small data, where every row should be tested on once.

    accelerate launch recipes/finetune_cls.py --train_file notes.csv --fold 0/5 --output_dir runs/cv_0      and 1 to 4
    python recipes/pool_folds.py --runs runs/cv_0 runs/cv_1 runs/cv_2 runs/cv_3 runs/cv_4

With `--fold 0/5/patient` the rows of a patient are all in one fold. A study may have the folds as arms. Each row was
predicted by a model that had not seen it; together they are scored as one test set, with a bootstrap interval over the
rows. The output folder is a finished run, which compare_runs.py compares with another, row by row.
"""

from dataclasses import dataclass, field

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.errors import InputError
from ptft_recipes.pooling import pool_folds, table_of_folds, write_pooled

# What differs from the fields' own defaults.
DEFAULTS = {"output_dir": "runs/pool_folds"}


@dataclass
class DataArguments:
    """The runs of the folds."""

    runs: list[str] = field(default_factory=list, metadata={"help": "folders, one for each fold"})
    output_dir: str | None = field(default=None, metadata={"help": "for results.json and the predictions"})


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags.
    data_args, _ = parse_args((DataArguments,), DEFAULTS, argv, __doc__)

    # 2. Data: finished runs, one for each fold.
    if len(data_args.runs) < 2:
        raise InputError("--runs: give the folders of all folds")

    # 3. Model: none; the runs have predicted already.

    # 4. Train: nothing.

    # 5. Evaluate: all rows as one test set.
    results, lines = pool_folds(data_args.runs)

    # 6. Publish: the table, and a folder as of one run.
    print(table_of_folds(results), end="")
    write_pooled(data_args.output_dir, results, lines)
    return results


if __name__ == "__main__":
    run_command(main)
