# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Put finished runs of finetune_cls together, e.g. the seeds of one arm, and see what that gains over a single one.

    python recipes/ensemble_runs.py --runs runs/seed_42 runs/seed_43 runs/seed_44
    ... --metric accuracy                                                         another score
    ... --soups false                                                             outputs only: no model is loaded

Outputs: the mean of the logits (the geometric mean of the probabilities, normalised), the mean of the probabilities,
and the majority vote; they cost as many passes as there are runs. Soups (Wortsman et al., Model Soups, 2022) cost one:
the mean of all weights, and of those that a greedy choice on validation keeps. Each is scored on test, once, beside
the mean of the runs and the run that is best on validation, with paired intervals over the test rows.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.data import DatasetArguments, load_splits
from ptft_recipes.ensembles import combine_outputs, log_systems, read_members, score_systems, with_arguments_of
from ptft_recipes.metrics import classification_metrics
from ptft_recipes.modeling import ModelArguments, load_tokenizer
from ptft_recipes.soups import cook_soups, finish_soups, load_member
from ptft_recipes.tokenization import tokenize
from ptft_recipes.training import RecipeTrainer, start_run
from transformers import TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {"output_dir": "runs/ensemble_runs", "per_device_eval_batch_size": 64}


@dataclass
class DataArguments(DatasetArguments):
    """The runs; where their data is, and its columns, are read from them."""

    runs: list[str] = field(default_factory=list, metadata={"help": "folders of finished runs, two or more"})
    metric: str | None = field(
        default=None, metadata={"help": "to score by; that by which the runs chose their epoch"}
    )
    soups: bool = field(default=True, metadata={"help": "average the weights too"})
    text_column: str = field(default="text", metadata={"help": "of the runs, like the following"})
    text_pair_column: str | None = field(default=None, metadata={"help": "the second text of a pair"})
    label_column: str = field(default="label", metadata={"help": "what to predict"})
    label_separator: str | None = field(default=None, metadata={"help": "between the labels of one multi-label cell"})
    problem_type: str | None = field(default=None, metadata={"help": "as in the model's config; else inferred"})
    max_length: int = field(default=128, metadata={"help": "tokens per example; what is longer is cut, and counted"})


def preprocess(examples, tokenizer, text_columns, max_length):
    """One example, one sequence: [CLS] text [SEP], or [CLS] text [SEP] pair [SEP]."""
    return tokenize(tokenizer, *(examples[column] for column in text_columns), max_length=max_length)


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags; what the data is, the runs say.
    model_args, data_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TrainingArguments), DEFAULTS, argv, __doc__
    )
    members = read_members(data_args.runs, data_args.metric)
    model_args = replace(model_args, model_name_or_path=data_args.runs[0])
    data_args = with_arguments_of(members[0], data_args)
    run = start_run(__file__, config, model_args, training_args)

    # 2. Data: validation to choose by, test to report; train only gives the labels their numbers.
    text_columns = [column for column in (data_args.text_column, data_args.text_pair_column) if column]
    labels = {name: getattr(data_args, name) for name in ("label_column", "problem_type", "label_separator")}
    raw, run["data"] = load_splits(data_args, text_columns, **labels)
    task = {name: run["data"][name] for name in ("problem_type", "label_names")}
    tokenizer = load_tokenizer(model_args)
    kwargs = {"tokenizer": tokenizer, "text_columns": text_columns, "max_length": data_args.max_length}
    dataset = raw.map(preprocess, batched=True, fn_kwargs=kwargs)

    # 3. Model: those of the runs.
    load = partial(load_member, model_args=model_args, tokenizer=tokenizer)
    systems = combine_outputs(members)

    # 4. Train: no further; the mean of what was trained.
    trainer = partial(RecipeTrainer, args=training_args, train_dataset=dataset["train"], processing_class=tokenizer)
    if data_args.soups:
        systems |= cook_soups(members, load, trainer, dataset, partial(classification_metrics, **task))

    # 5. Evaluate: predictions, ensembles.json and ensembles.md in output_dir.
    results = score_systems(systems, members, Path(training_args.output_dir))

    # 6. Publish: each soup becomes a finished run in a folder of its own, for `ptft push`.
    log_systems(results)
    if data_args.soups:
        finish_soups(results, members, run, data_args, Path(training_args.output_dir))
    return results


if __name__ == "__main__":
    run_command(main)
