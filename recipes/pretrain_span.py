# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Pre-train an encoder-decoder on the raw text of your domain, by filling gaps.

    accelerate launch recipes/pretrain_span.py                       the demo, offline: new weights, a small T5
    ... --model_name_or_path google-t5/t5-small --train_file reports.txt            go on with a T5 on your own text
    ... --model_name_or_path facebook/bart-base --objective denoising               a BART: infilling, sentences mixed
    ... --mix general.txt=0.2 --streaming --max_steps 50000                         as in pretrain_mlm.py

Span corruption hides 15 % of the tokens in spans of 3, and the decoder writes what each sentinel stands for (Raffel et
al., T5, 2020). Infilling hides 30 % of the words, a mask token for each span, and the decoder writes the whole text
(Lewis et al., BART, 2020). Perplexity of held-out gaps is reported before and after, with intervals over documents.
"""

from dataclasses import dataclass, field

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.blocks import count_blocks
from ptft_recipes.corpora import load_corpora, training_rows
from ptft_recipes.data import DatasetArguments
from ptft_recipes.evaluation import score_held_out_text
from ptft_recipes.gap_filling import GapCollator, GapFillingTrainer, corrupt_held_out, load_gap_filler
from ptft_recipes.gap_tokens import load_gap_tokenizer, split_literally
from ptft_recipes.gaps import Gaps
from ptft_recipes.hub import publish
from ptft_recipes.modeling import ModelArguments
from ptft_recipes.pretraining import check_saved_model
from ptft_recipes.training import start_run
from ptft_recipes.tuning import TuningArguments
from transformers import TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "demo/t5",
    "dataset_name": "demo/aclsum_papers",
    "output_dir": "runs/pretrain_span",
    "learning_rate": 1e-3,
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
    """The text to read, and what is hidden of it."""

    text_column: str = field(default="text", metadata={"help": "a document"})
    max_length: int = field(
        default=128, metadata={"help": "tokens that the encoder reads; a document becomes several"}
    )
    line_by_line: bool = field(default=False, metadata={"help": "every line is a text of its own"})
    objective: str = field(default="span_corruption", metadata={"help": "span_corruption, infilling, or denoising"})
    noise_density: float | None = field(default=None, metadata={"help": "share that is hidden; 0.15, or 0.3 of words"})
    mean_span_length: float = field(default=3.0, metadata={"help": "of a gap, in tokens, or in words"})
    mix: list[str] = field(default_factory=list, metadata={"help": "other corpora to mix in: general.txt=0.2 ..."})
    streaming: bool = field(default=False, metadata={"help": "do not load the training documents into memory"})


def preprocess(examples, tokenizer, args, length):
    """A document becomes blocks inside its borders, so long that with gaps they fill the encoder."""
    return split_literally(tokenizer, examples[args.text_column], examples["id"], length, args.line_by_line)


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, tuning_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TuningArguments, TrainingArguments), DEFAULTS, argv, __doc__
    )
    run = start_run(__file__, config, model_args, training_args)

    # 2. Data: train to learn from, validation to choose, test to report; no document is in two of them.
    tokenizer = load_gap_tokenizer(model_args, data_args.objective)
    noise = data_args.noise_density, data_args.mean_span_length
    gaps = Gaps(tokenizer, data_args.objective, *noise, training_args.seed)
    lengths = [each.block_length(data_args.max_length) for each in (Gaps(tokenizer, data_args.objective), gaps)]
    raw, run["data"] = load_corpora(data_args, data_args.text_column, data_args.mix, data_args.streaming)
    run["data"]["gap"] = gaps.token
    kwargs = {"batched": True, "batch_size": 100, "remove_columns": ["id", data_args.text_column]}
    dataset = {}
    with training_args.main_process_first(desc="tokenization"):
        for split, text in raw.items():  # held-out gaps are the same in every run
            length = {"tokenizer": tokenizer, "args": data_args, "length": lengths[split.startswith("train")]}
            dataset[split] = text.map(preprocess, **kwargs, fn_kwargs=length)
    run["data"]["tokens"] = count_blocks(dataset, tokenizer, lengths[1], training_args.max_steps <= 0)
    held_out = corrupt_held_out(dataset, tokenizer, data_args.objective)
    dataset["train"] = training_rows(dataset, run["data"], training_args)

    # 3. Model: encoder and decoder, and which weights may move.
    model, new_modules = load_gap_filler(model_args, tuning_args, tokenizer, gaps)

    # 4. Train.
    trainer = GapFillingTrainer(
        model=model,
        args=training_args,
        run=run,
        train_dataset=dataset["train"],
        shares=run["data"]["mix"].values(),
        eval_dataset=held_out.pop("validation"),
        data_collator=GapCollator(gaps, model.config),
        processing_class=tokenizer,
        tuning_args=tuning_args,
        new_modules=new_modules,
    )
    before = {name: trainer.predict(text).predictions for name, text in held_out.items()}
    trainer.train()
    trainer.save_model()
    check_saved_model(trainer)

    # 5. Evaluate: results.json, sums per block and plots in output_dir.
    results = score_held_out_text(trainer, held_out, before, run=run)

    # 6. Publish: the model card, and with --push_to_hub the checkpoint.
    publish(trainer, results, task="text2text-generation")
    return results


if __name__ == "__main__":
    run_command(main)
