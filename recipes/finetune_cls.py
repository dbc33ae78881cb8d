# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Fine-tune a pre-trained encoder for sequence classification: one text or a pair; one label, several, or a number.

    accelerate launch recipes/finetune_cls.py                                     the demo, offline
    ... --config recipes/configs/finetune_cls/sst2.yaml                           a data set of the Hub
    ... --train_file train.csv --test_file test.csv --label_column topic          your own files
    ... --tuning lora --tuning_kwargs r=16 lora_alpha=32 --learning_rate 1e-3     any PEFT method
    ... --from_scratch                                                            control: no pre-training

A new head reads the pooled sequence (Devlin et al., 2019, section 4.1). The epoch with the best validation score is
kept; the test split is scored once, at the end, with bootstrap intervals.
"""

from dataclasses import dataclass, field
from functools import partial

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.augmentation import AugmentationArguments, augment_rows
from ptft_recipes.data import DatasetArguments, load_splits
from ptft_recipes.evaluation import score_test_split
from ptft_recipes.features import cache_features
from ptft_recipes.hub import publish
from ptft_recipes.metrics import classification_metrics
from ptft_recipes.modeling import ModelArguments, load_model, load_tokenizer
from ptft_recipes.objectives import balanced_class_weights, classification_loss
from ptft_recipes.tokenization import count_tokens, tokenize
from ptft_recipes.training import RecipeTrainer, start_run
from ptft_recipes.tuning import TuningArguments, apply_tuning
from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback, TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "demo/minilm",
    "dataset_name": "demo/aclsum_roles",
    "output_dir": "runs/finetune_cls",
    "learning_rate": 1e-4,
    "num_train_epochs": 4.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "macro_f1",
    "logging_steps": 0.05,
    "do_predict": True,
}


@dataclass
class DataArguments(AugmentationArguments, DatasetArguments):
    """The columns to read, and what becomes of them."""

    text_column: str = field(default="text", metadata={"help": "the text to classify"})
    text_pair_column: str | None = field(default=None, metadata={"help": "the second text of a pair"})
    label_column: str = field(default="label", metadata={"help": "what to predict"})
    label_separator: str | None = field(default=None, metadata={"help": "between the labels of one multi-label cell"})
    problem_type: str | None = field(default=None, metadata={"help": "as in the model's config; else inferred"})
    max_length: int = field(default=128, metadata={"help": "tokens per example; what is longer is cut, and counted"})
    class_weights: float = field(default=0.0, metadata={"help": "0: every row counts alike; 1: every label does"})
    early_stopping_patience: int | None = field(default=None, metadata={"help": "evaluations without a new best"})


def preprocess(examples, tokenizer, text_columns, max_length):
    """One example, one sequence: [CLS] text [SEP], or [CLS] text [SEP] pair [SEP]."""
    return tokenize(tokenizer, *(examples[column] for column in text_columns), max_length=max_length)


def main(argv=None, callbacks=()):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, tuning_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TuningArguments, TrainingArguments), DEFAULTS, argv, __doc__
    )
    run = start_run(__file__, config, model_args, training_args)

    # 2. Data: train to fit, validation to choose, test to report.
    text_columns = [column for column in (data_args.text_column, data_args.text_pair_column) if column]
    labels = {name: getattr(data_args, name) for name in ("label_column", "problem_type", "label_separator")}
    raw, run["data"] = load_splits(data_args, text_columns, **labels)
    task = {name: run["data"][name] for name in ("problem_type", "label_names")}
    if task["problem_type"] == "regression" and training_args.metric_for_best_model == "macro_f1":
        training_args.metric_for_best_model = "pearson"
    tokenizer = load_tokenizer(model_args)
    with training_args.main_process_first(desc="tokenization"):
        raw["train"] = augment_rows(raw["train"], data_args.augment, text_columns, run)
        kwargs = {"tokenizer": tokenizer, "text_columns": text_columns, "max_length": data_args.max_length}
        dataset = raw.map(preprocess, batched=True, fn_kwargs=kwargs)
    run["data"]["tokens"] = count_tokens(dataset)

    # 3. Model: pre-trained body, new head, and which weights may move.
    model, new_modules = load_model(AutoModelForSequenceClassification, model_args, tokenizer, **task)
    model = apply_tuning(model, tuning_args, "SEQ_CLS", new_modules)
    dataset = cache_features(model, dataset, tokenizer, training_args, model_args.stock)

    # 4. Train.
    options = {"problem_type": task["problem_type"], "label_smoothing": training_args.label_smoothing_factor}
    weights = balanced_class_weights(dataset["train"]["labels"], data_args.class_weights, **task)
    early_stopping = [EarlyStoppingCallback(n)] if (n := data_args.early_stopping_patience) else []
    trainer = RecipeTrainer(
        model=model,
        args=training_args,
        run=run,
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"],
        processing_class=tokenizer,
        tuning_args=tuning_args,
        new_modules=new_modules,
        augment=data_args.augment,
        compute_loss_func=partial(classification_loss, class_weights=weights, **options),
        compute_metrics=partial(classification_metrics, **task),
        callbacks=[*callbacks, *early_stopping],
    )
    trainer.train()
    trainer.save_model()

    # 5. Evaluate: results.json, predictions and plots in output_dir.
    results = score_test_split(trainer, dataset["test"], trainer.compute_metrics, run=run, **task)

    # 6. Publish: the model card, and with --push_to_hub the checkpoint.
    publish(trainer, results, task="text-classification")
    return results


if __name__ == "__main__":
    run_command(main)
