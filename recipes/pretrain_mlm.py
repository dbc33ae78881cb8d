# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Go on pre-training an encoder on the raw text of your domain, by masked language modelling.

    accelerate launch recipes/pretrain_mlm.py                                     the demo, offline
    ... --train_file reports.txt --mix general.txt=0.2                            your own text, general text replayed
    ... --train_file papers/ --streaming --max_steps 50000                        more text than memory
    ... --masking_unit span --mlm_probability 0.3                                 gaps of whole words instead of tokens
    accelerate launch recipes/finetune_cls.py --model_name_or_path runs/pretrain_mlm      then

15 % of the tokens are hidden and predicted (Devlin et al., 2019, section 3.1). Perplexity of held-out documents is
reported before and after, with intervals over the documents.
"""

from dataclasses import dataclass, field

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.blocks import check_tokenizer, count_blocks, split_into_blocks
from ptft_recipes.collators import MaskingCollator, mask_held_out
from ptft_recipes.corpora import load_corpora, training_rows
from ptft_recipes.data import DatasetArguments
from ptft_recipes.evaluation import score_held_out_text
from ptft_recipes.hub import publish
from ptft_recipes.modeling import ModelArguments, load_model, load_tokenizer
from ptft_recipes.objectives import masked_lm_loss
from ptft_recipes.pretraining import MaskedLMTrainer, check_saved_model, prepare_masked_lm
from ptft_recipes.training import start_run
from ptft_recipes.tuning import TuningArguments
from transformers import AutoModelForMaskedLM, TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "demo/minilm",
    "dataset_name": "demo/aclsum_papers",
    "output_dir": "runs/pretrain_mlm",
    "learning_rate": 3e-4,
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "perplexity",
    "logging_steps": 0.05,
}


@dataclass
class DataArguments(DatasetArguments):
    """The text to read, and what is hidden of it."""

    text_column: str = field(default="text", metadata={"help": "a document"})
    max_length: int = field(default=128, metadata={"help": "tokens per block; a document becomes several"})
    line_by_line: bool = field(default=False, metadata={"help": "every line is a text of its own"})
    packing: bool = field(default=False, metadata={"help": "train on blocks side by side, attention kept apart"})
    masking_unit: str = field(default="token", metadata={"help": "token, word, or span (of words)"})
    mlm_probability: float = field(default=0.15, metadata={"help": "share of the tokens that is hidden in training"})
    mlm_probability_end: float | None = field(default=None, metadata={"help": "that share at the end; linear"})
    mix: list[str] = field(default_factory=list, metadata={"help": "other corpora to mix in: general.txt=0.2 ..."})
    streaming: bool = field(default=False, metadata={"help": "do not load the training documents into memory"})
    shuffle_buffer_size: int = field(default=10_000, metadata={"help": "blocks of a stream that are shuffled at once"})


def preprocess(examples, tokenizer, args):
    """A document becomes blocks inside its borders: [CLS] tokens [SEP], the last as short as what remains."""
    return split_into_blocks(tokenizer, examples[args.text_column], examples["id"], args.max_length, args.line_by_line)


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, tuning_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TuningArguments, TrainingArguments), DEFAULTS, argv, __doc__
    )
    run = start_run(__file__, config, model_args, training_args)

    # 2. Data: train to learn from, validation to choose, test to report; no document is in two of them.
    tokenizer = load_tokenizer(model_args)
    check_tokenizer(tokenizer, data_args.max_length)
    raw, run["data"] = load_corpora(data_args, data_args.text_column, data_args.mix, data_args.streaming)
    kwargs = {"batched": True, "batch_size": 100, "remove_columns": ["id", data_args.text_column]}
    kwargs["fn_kwargs"] = {"tokenizer": tokenizer, "args": data_args}
    with training_args.main_process_first(desc="tokenization"):
        dataset = {split: text.map(preprocess, **kwargs) for split, text in raw.items()}
    run["data"]["tokens"] = count_blocks(dataset, tokenizer, data_args.max_length, training_args.max_steps <= 0)
    held_out = {split: mask_held_out(rows, tokenizer) for split, rows in dataset.items() if "train" not in split}
    pack_to = data_args.max_length if data_args.packing else None
    dataset["train"] = training_rows(dataset, run["data"], training_args, pack_to, data_args.shuffle_buffer_size)

    # 3. Model: body, vocabulary head, and which weights may move.
    model, new_modules = load_model(AutoModelForMaskedLM, model_args, tokenizer)
    model = prepare_masked_lm(model, model_args, tuning_args, new_modules, data_args.packing)

    # 4. Train.
    rates = data_args.mlm_probability, data_args.mlm_probability_end
    trainer = MaskedLMTrainer(
        model=model,
        args=training_args,
        run=run,
        train_dataset=dataset["train"],
        shares=run["data"]["mix"].values(),
        eval_dataset=held_out.pop("validation"),
        data_collator=MaskingCollator(tokenizer, data_args.masking_unit, *rates, training_args.seed, model.config),
        processing_class=tokenizer,
        tuning_args=tuning_args,
        new_modules=new_modules,
        compute_loss_func=masked_lm_loss,
    )
    before = {name: trainer.predict(text).predictions for name, text in held_out.items()}
    trainer.train()
    trainer.save_model()
    check_saved_model(trainer)

    # 5. Evaluate: results.json, losses per block and plots in output_dir.
    results = score_held_out_text(trainer, held_out, before, run=run)

    # 6. Publish: the model card, and with --push_to_hub the checkpoint.
    publish(trainer, results, task="fill-mask")
    return results


if __name__ == "__main__":
    run_command(main)
