# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Fine-tune a pre-trained encoder for extractive question answering: which part of a text answers a question?

    accelerate launch recipes/finetune_qa.py                                      the demo, offline
    ... --config recipes/configs/finetune_qa/squad_v2.yaml                        a data set of the Hub
    ... --train_file train-v2.0.json --test_file dev-v2.0.json                    SQuAD's files; .jsonl, .parquet
    ... --tuning lora --tuning_kwargs r=16 lora_alpha=32 --learning_rate 1e-3     any PEFT method

A new head scores each token of the context as the answer's first and last; [CLS] is no answer (Devlin et al., 2019,
sections 4.2 and 4.3). Long contexts are read in overlapping windows. The epoch with the best validation score is kept,
with a no-answer threshold tuned for it; the test split is scored once, at the end, with bootstrap intervals. The demo
asks NLP papers for their problem, approach and outcome.
"""

from dataclasses import dataclass, field
from functools import partial

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.answer_windows import count_answer_windows, tokenize_questions
from ptft_recipes.data import DatasetArguments
from ptft_recipes.hub import publish
from ptft_recipes.modeling import ModelArguments, load_model, load_tokenizer
from ptft_recipes.objectives import span_loss
from ptft_recipes.question_answering import QuestionTrainer, score_answers
from ptft_recipes.question_data import load_question_splits
from ptft_recipes.training import start_run
from ptft_recipes.tuning import TuningArguments, apply_tuning
from ptft_recipes.windows import prepare_for_words
from transformers import AutoModelForQuestionAnswering, EarlyStoppingCallback, TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "demo/minilm",
    "dataset_name": "demo/aclsum_questions",
    "output_dir": "runs/finetune_qa",
    "learning_rate": 2e-4,
    "num_train_epochs": 4.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "f1",
    "logging_steps": 0.05,
    "do_predict": True,
}


@dataclass
class DataArguments(DatasetArguments):
    """The columns to read, and what becomes of them."""

    question_column: str = field(default="question", metadata={"help": "the question"})
    context_column: str = field(default="context", metadata={"help": "the text that may answer it"})
    answers_column: str = field(default="answers", metadata={"help": "{text: [...], answer_start: [...]}"})
    max_length: int = field(default=256, metadata={"help": "tokens per window, question included"})
    stride: int = field(default=96, metadata={"help": "tokens of the context that two windows share"})
    max_answer_length: int | None = field(default=None, metadata={"help": "tokens; the longest of train if not given"})
    n_best: int = field(default=20, metadata={"help": "spans per question in the file of predictions"})
    early_stopping_patience: int | None = field(default=None, metadata={"help": "evaluations without a new best"})


def preprocess(examples, row_numbers, tokenizer, columns, **kwargs):
    """[CLS] question [SEP] a part of the context [SEP], with the answer's first and last token."""
    questions, contexts = (examples[column] for column in columns)
    return tokenize_questions(tokenizer, questions, contexts, row_numbers, examples.get("answers"), **kwargs)


def main(argv=None, callbacks=()):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, tuning_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TuningArguments, TrainingArguments), DEFAULTS, argv, __doc__
    )
    run = start_run(__file__, config, model_args, training_args)

    # 2. Data: train to fit, validation to choose, test to report.
    columns = [data_args.question_column, data_args.context_column]
    raw, run["data"] = load_question_splits(data_args, *columns, data_args.answers_column)
    tokenizer = prepare_for_words(load_tokenizer(model_args))
    lengths = {"max_length": data_args.max_length, "stride": data_args.stride}
    kwargs = {
        "fn_kwargs": {"tokenizer": tokenizer, "columns": columns} | lengths,
        "with_indices": True,
        "batched": True,
    }
    with training_args.main_process_first(desc="tokenization"):
        dataset = {n: rows.map(preprocess, remove_columns=rows.column_names, **kwargs) for n, rows in raw.items()}
    run["data"] |= lengths | {"tokens": count_answer_windows(dataset, raw)}
    task = {"columns": columns, "n_best": data_args.n_best, "has_no_answers": run["data"]["has_no_answers"]}
    task["max_answer_length"] = data_args.max_answer_length or run["data"]["tokens"]["train"]["longest_answer"]

    # 3. Model: pre-trained body, new head, and which weights may move.
    model, new_modules = load_model(AutoModelForQuestionAnswering, model_args, tokenizer)
    model = apply_tuning(model, tuning_args, "QUESTION_ANS", new_modules)

    # 4. Train.
    early_stopping = [EarlyStoppingCallback(n)] if (n := data_args.early_stopping_patience) else []
    trainer = QuestionTrainer(
        model=model,
        args=training_args,
        run=run,
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"],
        eval_rows=raw["validation"],
        task=task,
        processing_class=tokenizer,
        tuning_args=tuning_args,
        new_modules=new_modules,
        compute_loss_func=partial(span_loss, label_smoothing=training_args.label_smoothing_factor),
        callbacks=[*callbacks, *early_stopping],
    )
    trainer.train()
    trainer.save_model()

    # 5. Evaluate: results.json, predictions and plots in output_dir.
    results = score_answers(trainer, dataset, raw, run)

    # 6. Publish: the model card, and with --push_to_hub the checkpoint.
    publish(trainer, results, task="question-answering")
    return results


if __name__ == "__main__":
    run_command(main)
