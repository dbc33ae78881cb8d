# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Compare finished runs: scores with intervals, differences to a baseline with tests, and what each arm costs.

    python recipes/compare_runs.py --runs runs/full_42 runs/full_43 runs/lora_42 runs/lora_43
    ... --runs full=runs/full_* 'lora=runs/lora_*' --baseline full                arms by name
    ... --runs runs/aclsum_roles_study --output_dir runs/table                    a study; table.md, .csv, .json, plot

Runs that differ in nothing but their seed are one arm. All are scored again from what they predicted of each test
example, so that differences are paired; runs on other test data are left out, and the output says how they differ.
"""

from dataclasses import dataclass, field

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.comparison import compare_arms, find_arms, read_arms
from ptft_recipes.comparison_tables import markdown_of, write_comparison

# What differs from the fields' own defaults.
DEFAULTS = {"runs": ["runs/aclsum_roles_study"]}


@dataclass
class DataArguments:
    """The runs, and what is compared."""

    runs: list[str] = field(default_factory=list, metadata={"help": "folders of runs, name=pattern, or of a study"})
    output_dir: str | None = field(default=None, metadata={"help": "for table.md, table.csv, table.json, forest.png"})
    baseline: str | None = field(default=None, metadata={"help": "an arm; the study's, or the first one"})
    metric: str | None = field(default=None, metadata={"help": "the one by which the runs chose their epoch"})
    resamples: int = field(default=1000, metadata={"help": "bootstrap samples of the test rows"})
    confidence: float = field(default=0.95, metadata={"help": "coverage of the intervals"})


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags.
    data_args, _ = parse_args((DataArguments,), DEFAULTS, argv, __doc__)

    # 2. Data: finished runs, by arm; what cannot be compared is named, and the rest goes on.
    folders, baseline, remarks = find_arms(data_args.runs)
    arms, left_out = read_arms(folders)

    # 3. Model: none; the runs have predicted already.

    # 4. Train: nothing.

    # 5. Evaluate: means over seeds, and differences paired by test example and seed.
    baseline = data_args.baseline or baseline
    results = compare_arms(arms, baseline, data_args.metric, data_args.resamples, data_args.confidence)
    results |= {"remarks": remarks, "left_out": left_out}

    # 6. Publish: the table.
    print(markdown_of(results), end="")
    if data_args.output_dir:
        write_comparison(data_args.output_dir, results)
    return results


if __name__ == "__main__":
    run_command(main)
