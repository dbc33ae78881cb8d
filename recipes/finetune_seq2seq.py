# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes[text]>=0.1,<0.2"]
# ///
"""Train an encoder-decoder to write a text for a text: translation, summarization.

    accelerate launch recipes/finetune_seq2seq.py                                 the demo, offline: from new weights
    ... --config recipes/configs/finetune_seq2seq/opus_books.yaml                 a data set of the Hub
    ... --train_file train.en --source_column en --target_column de               two aligned files; .jsonl, .csv, ...
    ... --task summarization --generation_kwargs num_beams=4 length_penalty=2     scored by ROUGE
    ... --tuning lora --tuning_kwargs r=16 lora_alpha=32 --learning_rate 1e-3     any PEFT method

The decoder learns to write the target token by token (Sutskever et al., 2014; Vaswani et al., 2017). The epoch with
the best validation loss is kept; the test split is written once, at the end, and scored with bootstrap intervals over
its texts. The demo translates the interface of Home Assistant into German.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.data import DatasetArguments
from ptft_recipes.generation import GenerationTrainer, PairCollator, score_texts, set_generation
from ptft_recipes.hub import publish
from ptft_recipes.languages import set_languages, writing_of
from ptft_recipes.modeling import ModelArguments, load_model, load_tokenizer
from ptft_recipes.objectives import classification_loss
from ptft_recipes.text_pairs import count_pairs, load_text_pairs, tokenize_pairs
from ptft_recipes.training import start_run
from ptft_recipes.tuning import TuningArguments, apply_tuning
from transformers import AutoModelForSeq2SeqLM, EarlyStoppingCallback, TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "demo/translator",
    "dataset_name": "demo/home_assistant",
    "output_dir": "runs/finetune_seq2seq",
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.2,
    "label_smoothing_factor": 0.1,
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "logging_steps": 0.05,
    "do_predict": True,
}


@dataclass
class DataArguments(DatasetArguments):
    """The columns to read, what becomes of them, and how texts are written."""

    task: Literal["translation", "summarization"] = field(default="translation", metadata={"help": "BLEU, or ROUGE"})
    source_column: str = field(default="source", metadata={"help": "to read; of nested ones e.g. translation.en"})
    target_column: str = field(default="target", metadata={"help": "to write; of nested ones e.g. translation.de"})
    source_prefix: str = field(default="", metadata={"help": "put before each source; T5 knows its tasks by it"})
    source_lang: str | None = field(default=None, metadata={"help": "code of the tokenizer: eng_Latn, en, en_XX"})
    target_lang: str | None = field(default=None, metadata={"help": "likewise; zh, ja, ko also tell BLEU its words"})
    max_source_length: int = field(default=128, metadata={"help": "tokens; what is longer is cut, and counted"})
    max_target_length: int = field(default=128, metadata={"help": "tokens, of labels and of what is written"})
    generation_kwargs: list[str] = field(default_factory=list, metadata={"help": "num_beams=4 length_penalty=0.6 ..."})
    early_stopping_patience: int | None = field(default=None, metadata={"help": "evaluations without a new best"})


def preprocess(examples, tokenizer, source_prefix, **lengths):
    """One pair, one row: the source with its prefix, and its target in the labels."""
    sources = [source_prefix + text for text in examples["source"]]
    return tokenize_pairs(tokenizer, sources, examples.get("target"), **lengths)


def main(argv=None, callbacks=()):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, tuning_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TuningArguments, TrainingArguments), DEFAULTS, argv, __doc__
    )
    run = start_run(__file__, config, model_args, training_args)

    # 2. Data: train to fit, validation to choose, test to report.
    raw, run["data"] = load_text_pairs(data_args, data_args.source_column, data_args.target_column)
    tokenizer = load_tokenizer(model_args)
    first_token = set_languages(tokenizer, data_args.source_lang, data_args.target_lang)
    kwargs = {name: getattr(data_args, name) for name in ("source_prefix", "max_source_length", "max_target_length")}
    with training_args.main_process_first(desc="tokenization"):
        kwargs = {"fn_kwargs": {"tokenizer": tokenizer} | kwargs, "batched": True}
        dataset = raw.map(preprocess, remove_columns=["id", "source"], **kwargs)
    run["data"]["tokens"] = count_pairs(dataset)

    # 3. Model: encoder and decoder, how they write, and which weights may move.
    model, new_modules = load_model(AutoModelForSeq2SeqLM, model_args, tokenizer)
    run["generation"] = set_generation(model, data_args.generation_kwargs, data_args.max_target_length, first_token)
    model = apply_tuning(model, tuning_args, "SEQ_2_SEQ_LM", new_modules)

    # 4. Train.
    early_stopping = [EarlyStoppingCallback(n)] if (n := data_args.early_stopping_patience) else []
    trainer = GenerationTrainer(
        model=model,
        args=training_args,
        run=run,
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"],
        task=data_args.task,
        language=writing_of(data_args.target_lang),
        data_collator=PairCollator(tokenizer, model=model),
        processing_class=tokenizer,
        tuning_args=tuning_args,
        new_modules=new_modules,
        compute_loss_func=partial(classification_loss, label_smoothing=training_args.label_smoothing_factor),
        callbacks=[*callbacks, *early_stopping],
    )
    trainer.train()
    trainer.save_model()

    # 5. Evaluate: results.json, predictions and plots in output_dir.
    results = score_texts(trainer, dataset["test"], raw["test"], run)

    # 6. Publish: the model card, and with --push_to_hub the checkpoint.
    publish(trainer, results, task=data_args.task)
    return results


if __name__ == "__main__":
    run_command(main)
