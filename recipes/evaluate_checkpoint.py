# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Score a trained model or adapter on any split: is it any good, where is it not, and does it know?

    python recipes/evaluate_checkpoint.py --model_name_or_path runs/finetune_cls            its own test split
    ... --slice_columns section --group_column paper                  parts of it; intervals over whole papers
    ... --fit_on_validation true                                      a temperature and thresholds, from validation
    ... --perturbations typos capitals dropped_words                  the same text as other people write it
    ... --test_file new.csv --text_column review                      other data, with the labels of the checkpoint

The task is read from the checkpoint: sequence or token classification, masked language modelling, question answering,
or an encoder-decoder or decoder that writes. Where its folder has the `config.yaml` of its run, the data options of
that run are the defaults, and the scores are those of that run. Written are results.json, the predictions, the surest
mistakes or the worst texts with a table of samples, the confusion matrix and the reliability diagram.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.checkpoint_report import (
    EvaluationArguments,
    check_evaluation,
    draw_probabilities,
    evaluate_probabilities,
    evaluate_pseudo_perplexity,
    evaluate_robustness,
    evaluate_slices,
    fit_on_validation,
    score_split_and_log,
    write_evaluation,
)
from ptft_recipes.checkpoint_tasks import TASKS
from ptft_recipes.data import DatasetArguments
from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, load_tokenizer
from ptft_recipes.trained_checkpoints import load_checkpoint, read_checkpoint, recorded_options
from ptft_recipes.training import start_run
from transformers import TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "runs/finetune_cls",
    "output_dir": "runs/evaluate_checkpoint",
    "per_device_eval_batch_size": 64,
}


@dataclass
class DataArguments(DatasetArguments):
    """The columns to read; what is not given is as in the recipe that trained the checkpoint."""

    text_column: str | None = field(default=None, metadata={"help": "the text, question, source or prompt"})
    text_pair_column: str | None = field(default=None, metadata={"help": "the second text of a pair; the context"})
    label_column: str | None = field(default=None, metadata={"help": "what was to be predicted, found or written"})
    label_separator: str | None = field(default=None, metadata={"help": "between the labels of one multi-label cell"})
    words_column: str = field(default="tokens", metadata={"help": "lists of words, where tags are predicted"})
    tags_column: str = field(default="tags", metadata={"help": "a tag per word"})
    max_length: int | None = field(default=None, metadata={"help": "tokens per example, window, block or source"})
    stride: int | None = field(default=None, metadata={"help": "tokens that two windows of one text share"})
    line_by_line: bool = field(default=False, metadata={"help": "of raw text: every line is a text of its own"})
    task_settings: list[str] = field(
        default_factory=list,
        metadata={"help": "of texts, if no config.yaml has them: source_prefix=..., n_best=..., ..."},
    )


def main(argv=None):
    # 1. Arguments: the defaults above, the data options of the checkpoint's run, then --config, then flags.
    given = sys.argv[1:] if argv is None else argv
    defaults = DEFAULTS | recorded_options(given, DEFAULTS["model_name_or_path"], DataArguments)
    model_args, data_args, evaluation_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, EvaluationArguments, TrainingArguments), defaults, argv, __doc__
    )
    checkpoint = read_checkpoint(model_args, data_args.task_settings)
    run = start_run(__file__, config, model_args, training_args)
    if run["processes"] > 1:
        raise InputError("a checkpoint is evaluated by one process; start it with python, not with accelerate launch")

    # 2. Data: the labels are numbered as the checkpoint has them; any split but the one asked for may be missing.
    tokenizer = load_tokenizer(model_args)
    task = TASKS[checkpoint.task](checkpoint, tokenizer, data_args)
    raw, run["data"] = task.load(evaluation_args.columns())
    check_evaluation(evaluation_args, task, raw)
    split, rows = evaluation_args.split, raw[evaluation_args.split]

    # 3. Model: by plain from_pretrained, an adapter by PeftModel.
    model = load_checkpoint(checkpoint, tokenizer)

    # 4. Train: no further; the trainer predicts, longest rows first, in bf16 where the hardware has it.
    trainer = task.make_trainer(model, training_args, raw)
    predicted = task.predict(trainer, rows)
    groups = rows[evaluation_args.group_column][:] if evaluation_args.group_column else predicted.groups

    # 5. Evaluate: the scores; those of parts; probabilities; the same text as others write it; mistakes.
    output_dir = Path(training_args.output_dir)
    found = {"metrics": score_split_and_log(predicted, split, groups)}
    task.write_examples(predicted, rows, output_dir)
    if found["metrics"]:
        found["slices"] = evaluate_slices(predicted, rows, evaluation_args.slice_columns, groups)
        if checkpoint.problem_type not in (None, "regression"):
            found["calibration"] = evaluate_probabilities(predicted, task.labels, groups)
            if evaluation_args.fit_on_validation:
                validation = task.predict(trainer, raw["validation"])
                found["fitted"] = fit_on_validation(validation, predicted, task.labels, groups)
            draw_probabilities(predicted, task.labels, found.get("fitted"), output_dir)
        if names := evaluation_args.perturbations:
            found["robustness"] = evaluate_robustness(
                task, trainer, rows, predicted, names, training_args.seed, groups
            )
        if count := evaluation_args.pseudo_perplexity_blocks:
            found["pseudo_perplexity"] = evaluate_pseudo_perplexity(task, trainer, rows, count, training_args.seed)

    # 6. Publish: results.json and the predictions, in the order of the data.
    return write_evaluation(trainer, split, predicted, run, found)


if __name__ == "__main__":
    run_command(main)
