# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Fine-tune a pre-trained encoder for token classification: entities (NER), parts of speech, any tag per word.

    accelerate launch recipes/finetune_token_cls.py                               the demo, offline: punctuation
    ... --config recipes/configs/finetune_token_cls/conll2003.yaml                a data set of the Hub
    ... --train_file train.conll --test_file test.conll --tags_column 3           your own files; .conllu, .jsonl, ...
    ... --tuning lora --tuning_kwargs r=16 lora_alpha=32 --learning_rate 1e-3     any PEFT method

A new head reads the first token of every word (Devlin et al., 2019, section 5.3), long texts in overlapping windows.
The epoch with the best validation score is kept; the test split is scored once, at the end, with bootstrap intervals.
"""

from dataclasses import dataclass, field
from functools import partial

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.augmentation import AugmentationArguments, augment_rows
from ptft_recipes.data import DatasetArguments
from ptft_recipes.hub import publish
from ptft_recipes.modeling import ModelArguments, load_model, load_tokenizer
from ptft_recipes.objectives import classification_loss
from ptft_recipes.tagged_data import load_tagged_splits
from ptft_recipes.tagging import TaggingTrainer, score_tags
from ptft_recipes.training import start_run
from ptft_recipes.tuning import TuningArguments, apply_tuning
from ptft_recipes.windows import continuation_labels, count_windows, prepare_for_words, tokenize_words
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EarlyStoppingCallback,
    TrainingArguments,
)

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "demo/minilm",
    "dataset_name": "demo/aclsum_punctuation",
    "output_dir": "runs/finetune_token_cls",
    "learning_rate": 1e-4,
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
class DataArguments(AugmentationArguments, DatasetArguments):
    """The columns to read, and what becomes of them."""

    words_column: str = field(default="tokens", metadata={"help": "lists of words; in CoNLL files the first column"})
    tags_column: str = field(default="tags", metadata={"help": "a tag per word; in CoNLL files the last, or UPOS"})
    max_length: int = field(default=128, metadata={"help": "tokens per window; what is longer becomes several"})
    stride: int = field(default=32, metadata={"help": "tokens that a window shares with the one before it"})
    label_all_tokens: bool = field(default=False, metadata={"help": "train on every token of a word, not the first"})
    early_stopping_patience: int | None = field(default=None, metadata={"help": "evaluations without a new best"})


def preprocess(examples, row_numbers, tokenizer, words_column, **kwargs):
    """One sentence, one window; of a longer one several: [CLS] words [SEP], labels at the first token of each word."""
    return tokenize_words(tokenizer, examples[words_column], row_numbers, examples.get("labels"), **kwargs)


def main(argv=None, callbacks=()):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, tuning_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TuningArguments, TrainingArguments), DEFAULTS, argv, __doc__
    )
    run = start_run(__file__, config, model_args, training_args)

    # 2. Data: train to fit, validation to choose, test to report.
    raw, run["data"] = load_tagged_splits(data_args, data_args.words_column, data_args.tags_column)
    task = {name: run["data"][name] for name in ("label_names", "scheme", "default_label")}
    if task["scheme"] == "plain" and training_args.metric_for_best_model == "f1":
        training_args.metric_for_best_model = "macro_f1"
    tokenizer = prepare_for_words(load_tokenizer(model_args))
    kwargs = {name: getattr(data_args, name) for name in ("words_column", "max_length", "stride")}
    kwargs["continuations"] = continuation_labels(task["label_names"]) if data_args.label_all_tokens else None
    with training_args.main_process_first(desc="tokenization"):
        raw["train"] = augment_rows(raw["train"], data_args.augment, [data_args.words_column], run)
        kwargs = {"fn_kwargs": {"tokenizer": tokenizer} | kwargs, "with_indices": True, "batched": True}
        dataset = raw.map(preprocess, remove_columns=["id", data_args.words_column], **kwargs)
    run["data"]["tokens"] = count_windows(dataset)

    # 3. Model: pre-trained body, new head, and which weights may move.
    model, new_modules = load_model(AutoModelForTokenClassification, model_args, tokenizer, task["label_names"])
    model = apply_tuning(model, tuning_args, "TOKEN_CLS", new_modules)

    # 4. Train.
    early_stopping = [EarlyStoppingCallback(n)] if (n := data_args.early_stopping_patience) else []
    trainer = TaggingTrainer(
        model=model,
        args=training_args,
        run=run,
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"],
        eval_rows=raw["validation"],
        task=task,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        tuning_args=tuning_args,
        new_modules=new_modules,
        augment=data_args.augment,
        compute_loss_func=partial(classification_loss, label_smoothing=training_args.label_smoothing_factor),
        callbacks=[*callbacks, *early_stopping],
    )
    trainer.train()
    trainer.save_model()

    # 5. Evaluate: results.json, predictions and plots in output_dir.
    results = score_tags(trainer, dataset["test"], raw["test"], data_args.words_column, run)

    # 6. Publish: the model card, and with --push_to_hub the checkpoint.
    publish(trainer, results, task="token-classification")
    return results


if __name__ == "__main__":
    run_command(main)
