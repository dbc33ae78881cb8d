# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Pre-train an ELECTRA on the raw text of your domain, by replaced-token detection.

    accelerate launch recipes/pretrain_rtd.py                     the demo, offline: new weights, a small ELECTRA
    ... --model_name_or_path google/electra-small-discriminator --generator_name_or_path google/electra-small-generator
                                                                  go on with both, on your own --train_file
    ... --model_name_or_path google/electra-base-discriminator    beside it a new generator, see --generator_size
    accelerate launch recipes/finetune_cls.py --model_name_or_path runs/pretrain_rtd      then

A small generator fills masked tokens by sampling, and the discriminator says of every token whether it was replaced
(Clark et al., 2020). output_dir is the discriminator; its folder `generator` is a masked language model.
"""

from dataclasses import dataclass, field

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.blocks import check_tokenizer, count_blocks, split_into_blocks
from ptft_recipes.collators import mask_held_out
from ptft_recipes.corpora import load_corpora, training_rows
from ptft_recipes.data import DatasetArguments
from ptft_recipes.electra import load_generator_and_discriminator
from ptft_recipes.evaluation import score_held_out_text
from ptft_recipes.hub import publish
from ptft_recipes.modeling import ModelArguments, load_tokenizer
from ptft_recipes.replaced_tokens import ReplacedTokenCollator, ReplacedTokenTrainer, check_saved_models
from ptft_recipes.training import start_run
from transformers import TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "demo/electra",
    "dataset_name": "demo/aclsum_papers",
    "output_dir": "runs/pretrain_rtd",
    "learning_rate": 5e-4,
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "logging_steps": 0.05,
}


@dataclass
class DataArguments(DatasetArguments):
    """The text to read, what is hidden of it, and who fills it in."""

    text_column: str = field(default="text", metadata={"help": "a document"})
    max_length: int = field(default=128, metadata={"help": "tokens per block; a document becomes several"})
    line_by_line: bool = field(default=False, metadata={"help": "every line is a text of its own"})
    masking_unit: str = field(default="token", metadata={"help": "token, word, or span (of words)"})
    mlm_probability: float = field(default=0.15, metadata={"help": "share of the tokens that the generator fills in"})
    mix: list[str] = field(default_factory=list, metadata={"help": "other corpora to mix in: general.txt=0.2 ..."})
    streaming: bool = field(default=False, metadata={"help": "do not load the training documents into memory"})
    generator_name_or_path: str | None = field(default=None, metadata={"help": "Hub id or folder; else a new one"})
    generator_size: float = field(default=0.25, metadata={"help": "of a new one: share of heads and widths"})
    detection_weight: float = field(default=50.0, metadata={"help": "of the discriminator's loss beside the other"})


def preprocess(examples, tokenizer, args):
    """A document becomes blocks inside its borders: [CLS] tokens [SEP], the last as short as what remains."""
    return split_into_blocks(tokenizer, examples[args.text_column], examples["id"], args.max_length, args.line_by_line)


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TrainingArguments), DEFAULTS, argv, __doc__
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
    dataset["train"] = training_rows(dataset, run["data"], training_args)

    # 3. Model: generator and discriminator, whose word and position embeddings are shared.
    generator = data_args.generator_name_or_path, data_args.generator_size
    model = load_generator_and_discriminator(model_args, tokenizer, *generator)

    # 4. Train.
    masking = data_args.masking_unit, data_args.mlm_probability, None, training_args.seed
    trainer = ReplacedTokenTrainer(
        model=model,
        args=training_args,
        run=run,
        train_dataset=dataset["train"],
        shares=run["data"]["mix"].values(),
        eval_dataset=held_out.pop("validation"),
        data_collator=ReplacedTokenCollator(tokenizer, *masking),
        processing_class=tokenizer,
        detection_weight=data_args.detection_weight,
    )
    before = {name: trainer.predict(text).predictions for name, text in held_out.items()}
    trainer.train()
    trainer.save_model()
    check_saved_models(trainer)

    # 5. Evaluate: results.json, sums per block and plots in output_dir.
    results = score_held_out_text(trainer, held_out, before, run=run)

    # 6. Publish: the model card, and with --push_to_hub the checkpoint.
    publish(trainer, results, task="feature-extraction")
    return results


if __name__ == "__main__":
    run_command(main)
