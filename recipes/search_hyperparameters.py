# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes[search]>=0.1,<0.2"]
# ///
"""Search the hyper-parameters of a fine-tuning recipe by validation scores, and only then score the best on test.

    python recipes/search_hyperparameters.py                                      the demo, offline
    ... --search my_search.yaml --output_dir runs/my_search                       a search of your own
    ... --trials 40                                                               more trials: what is done stays done

The YAML file names the recipe, its arguments, and for each option that is searched its range or its choices. Points
are chosen by TPE (Bergstra et al., 2011), at random (Bergstra and Bengio, 2012) or on a grid; a trial that is worse
than the median of the others at the same epoch is cut short. Killed, the same command goes on.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.hyperparameter_search import open_study, run_trials, run_winner
from ptft_recipes.logs import log_to_stdout
from ptft_recipes.search_report import plot_study
from ptft_recipes.search_space import read_search

# What differs from the fields' own defaults.
DEFAULTS = {
    "search": "recipes/configs/search_hyperparameters/aclsum_roles.yaml",
    "output_dir": "runs/search_hyperparameters",
}


@dataclass
class DataArguments:
    """The search, and where it is kept."""

    search: str | None = field(default=None, metadata={"help": "YAML: recipe, arguments, space, sampler, trials"})
    output_dir: str | None = field(default=None, metadata={"help": "study.db, trials, best.yaml, the winner's runs"})
    trials: int | None = field(default=None, metadata={"help": "instead of those in the file"})


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags; and the search, checked by its recipe.
    data_args, _ = parse_args((DataArguments,), DEFAULTS, argv, __doc__)
    log = log_to_stdout()
    search = read_search(data_args.search, Path(__file__).parent, data_args.trials)

    # 2. Data: the recipe's own; validation to choose, and test stays closed until there is nothing left to choose.
    log.info("search: %s", search.summary())

    # 3. Model: the recipe's own, anew in every trial, which is a row of study.db.
    study = open_study(search, data_args.output_dir)

    # 4. Train: the trials that are missing.
    run_trials(study, search, data_args.output_dir)

    # 5. Evaluate: the recipe once more per seed with the winner's arguments, and now with its test split.
    results = run_winner(study, search, data_args.output_dir)

    # 6. Publish: history and importance as plots, beside trials.csv and best.yaml.
    for name, share in plot_study(study, search, Path(data_args.output_dir, "plots")).items():
        log.info("importance %.2f: %s", share, name)
    return results


if __name__ == "__main__":
    run_command(main)
