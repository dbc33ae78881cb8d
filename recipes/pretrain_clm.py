# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Go on pre-training a decoder on the raw text of your domain, by predicting the next token.

    accelerate launch recipes/pretrain_clm.py                                     the demo, offline
    ... --train_file reports.txt --mix general.txt=0.2                            your own text, general text replayed
    ... --train_file code.jsonl --text_column content --fim_rate 0.5              fill in the middle, too
    ... --tuning lora --learning_rate 1e-3                                        any PEFT method
    ... --from_scratch                                                            new weights

Documents are packed into rows of `max_length` tokens, and no document sees another. A document ends in the
end-of-text token, and begins as the tokenizer begins a text. Perplexity of held-out documents, end-of-text token
included, is reported before and after, with intervals over the documents.
"""

from dataclasses import dataclass, field

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.blocks import count_blocks
from ptft_recipes.causal import CausalCollator, CausalLMTrainer, prepare_causal_lm
from ptft_recipes.causal_blocks import block_size, split_for_next_token
from ptft_recipes.corpora import load_corpora, training_rows
from ptft_recipes.data import DatasetArguments
from ptft_recipes.evaluation import score_held_out_text
from ptft_recipes.hub import publish
from ptft_recipes.infilling import ROOM, FillInTheMiddle, add_sentinels
from ptft_recipes.modeling import ModelArguments, load_model, load_tokenizer
from ptft_recipes.pretraining import check_saved_model
from ptft_recipes.training import start_run
from ptft_recipes.tuning import TuningArguments
from transformers import AutoModelForCausalLM, TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "demo/smollm2",
    "dataset_name": "demo/aclsum_papers",
    "output_dir": "runs/pretrain_clm",
    "learning_rate": 1e-4,
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 4,
    "warmup_steps": 0.1,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "perplexity",
    "logging_steps": 0.05,
}


@dataclass
class DataArguments(DatasetArguments):
    """The text to read, and what becomes of it."""

    text_column: str = field(default="text", metadata={"help": "a document"})
    max_length: int = field(default=512, metadata={"help": "tokens per row; a longer document becomes several blocks"})
    packing: bool = field(default=True, metadata={"help": "train on blocks side by side, attention kept apart"})
    fim_rate: float = field(default=0.0, metadata={"help": "share of the blocks whose middle is to be filled in"})
    fim_spm_rate: float = field(default=0.5, metadata={"help": "share of these in which the suffix comes first"})
    mix: list[str] = field(default_factory=list, metadata={"help": "other corpora to mix in: general.txt=0.2 ..."})
    streaming: bool = field(default=False, metadata={"help": "do not load the training documents into memory"})
    shuffle_buffer_size: int = field(default=10_000, metadata={"help": "blocks of a stream that are shuffled at once"})


def preprocess(examples, tokenizer, text_column, size):
    """A document becomes blocks inside its borders: tokens and end of text, the last as short as what remains."""
    return split_for_next_token(tokenizer, examples[text_column], examples["id"], size)


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, tuning_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TuningArguments, TrainingArguments), DEFAULTS, argv, __doc__
    )
    run = start_run(__file__, config, model_args, training_args)

    # 2. Data: train to learn from, validation to choose, test to report; no document is in two of them.
    tokenizer = load_tokenizer(model_args)
    size = block_size(tokenizer, data_args.max_length, ROOM * (data_args.fim_rate > 0))
    raw, run["data"] = load_corpora(data_args, data_args.text_column, data_args.mix, data_args.streaming)
    kwargs = {"batched": True, "batch_size": 100, "remove_columns": ["id", data_args.text_column]}
    kwargs["fn_kwargs"] = {"tokenizer": tokenizer, "text_column": data_args.text_column, "size": size}
    with training_args.main_process_first(desc="tokenization"):
        dataset = {split: text.map(preprocess, **kwargs) for split, text in raw.items()}
    run["data"]["tokens"] = count_blocks(dataset, tokenizer, size, training_args.max_steps <= 0)
    held_out = {split: rows for split, rows in dataset.items() if "train" not in split}
    pack_to = data_args.max_length if data_args.packing else None
    dataset["train"] = training_rows(dataset, run["data"], training_args, pack_to, data_args.shuffle_buffer_size)

    # 3. Model: a decoder, perhaps with new tokens around a middle to fill in, and which weights may move.
    model, new_modules = load_model(AutoModelForCausalLM, model_args, tokenizer)
    rates = data_args.fim_rate, data_args.fim_spm_rate, training_args.seed
    infill = (
        FillInTheMiddle(tokenizer, add_sentinels(tokenizer, model, tuning_args), *rates)
        if data_args.fim_rate
        else None
    )
    model = prepare_causal_lm(model, tuning_args, new_modules, data_args.packing)

    # 4. Train.
    trainer = CausalLMTrainer(
        model=model,
        args=training_args,
        run=run,
        train_dataset=dataset["train"],
        shares=run["data"]["mix"].values(),
        eval_dataset=held_out.pop("validation"),
        data_collator=CausalCollator(tokenizer, infill),
        processing_class=tokenizer,
        tuning_args=tuning_args,
        new_modules=new_modules,
    )
    before = {name: trainer.predict(text).predictions for name, text in held_out.items()}
    trainer.train()
    trainer.save_model()
    check_saved_model(trainer)

    # 5. Evaluate: results.json, losses per block and plots in output_dir.
    results = score_held_out_text(trainer, held_out, before, run=run)

    # 6. Publish: the model card, and with --push_to_hub the checkpoint.
    publish(trainer, results, task="text-generation")
    return results


if __name__ == "__main__":
    run_command(main)
