# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Fine-tune a decoder on prompts and completions, or on chats: supervised fine-tuning, with LoRA by default.

    accelerate launch recipes/finetune_clm.py                                     the demo, offline
    ... --train_file train.jsonl --prompt_column question --completion_column answer        your own files
    ... --train_file chats.jsonl --messages_column messages                       chats of several turns
    ... --tuning_kwargs r=16 lora_alpha=32 target_modules=all-linear              a larger LoRA
    ... --tuning full --learning_rate 2e-5                                        every weight
    ... --num_beams 4 --generation_kwargs length_penalty=0.8                      how the test answers are written

The loss is on what the assistant says and on nothing else; which tokens these are follows from the chat template and
is checked. The epoch with the lowest validation perplexity is kept. The answers of the test split are written before
training and after, and scored by ROUGE with bootstrap intervals. The demo answers questions on papers.
"""

from dataclasses import dataclass, field

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.causal import CausalCollator, CompletionTrainer, prepare_causal_lm
from ptft_recipes.completion_scoring import generation_settings, score_completions, write_completions
from ptft_recipes.completions import end_tokens, tokenize_conversations
from ptft_recipes.conversations import load_conversations
from ptft_recipes.data import DatasetArguments
from ptft_recipes.hub import publish
from ptft_recipes.modeling import ModelArguments, load_model, load_tokenizer
from ptft_recipes.tokenization import count_tokens
from ptft_recipes.training import start_run
from ptft_recipes.tuning import TuningArguments
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "demo/smollm2",
    "dataset_name": "demo/aclsum_summaries",
    "output_dir": "runs/finetune_clm",
    "tuning": "lora",
    "learning_rate": 5e-4,
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "perplexity",
    "logging_steps": 0.05,
    "do_predict": True,
}


@dataclass
class DataArguments(DatasetArguments):
    """The columns to read, what becomes of them, and how answers are written."""

    prompt_column: str = field(default="prompt", metadata={"help": "a text to go on from"})
    completion_column: str = field(default="completion", metadata={"help": "how it goes on"})
    messages_column: str | None = field(
        default=None, metadata={"help": "chats, in the place of both: lists of messages"}
    )
    use_chat_template: bool = field(default=True, metadata={"help": "that of the tokenizer, where it has one"})
    max_length: int = field(default=384, metadata={"help": "tokens per row; first turns are cut, then prompts"})
    max_new_tokens: int = field(default=64, metadata={"help": "of an answer that does not end by itself"})
    num_beams: int = field(default=1, metadata={"help": "1 writes the most probable token, more searches"})
    generation_kwargs: list[str] = field(default_factory=list, metadata={"help": "further fields of GenerationConfig"})
    early_stopping_patience: int | None = field(default=None, metadata={"help": "evaluations without a new best"})


def preprocess(examples, tokenizer, max_length, use_chat_template):
    """One chat, one row: what the chat template makes of it, with labels on the assistant's tokens."""
    return tokenize_conversations(tokenizer, examples["messages"], examples["id"], max_length, use_chat_template)


def main(argv=None, callbacks=()):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, tuning_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TuningArguments, TrainingArguments), DEFAULTS, argv, __doc__
    )
    run = start_run(__file__, config, model_args, training_args)

    # 2. Data: train to fit, validation to choose, test to report.
    columns = data_args.prompt_column, data_args.completion_column, data_args.messages_column
    raw, run["data"] = load_conversations(data_args, *columns)
    tokenizer = load_tokenizer(model_args)
    run["data"]["chat_template"] = bool(data_args.use_chat_template and tokenizer.chat_template)
    kwargs = {name: getattr(data_args, name) for name in ("max_length", "use_chat_template")}
    with training_args.main_process_first(desc="tokenization"):
        dataset = raw.map(preprocess, batched=True, fn_kwargs={"tokenizer": tokenizer} | kwargs)
    run["data"]["tokens"] = count_tokens(dataset)
    settings = [f"num_beams={data_args.num_beams}", *data_args.generation_kwargs]
    generation = generation_settings(settings, tokenizer, end_tokens(dataset, tokenizer), data_args.max_new_tokens)

    # 3. Model: a pre-trained decoder, and which weights may move.
    model, new_modules = load_model(AutoModelForCausalLM, model_args, tokenizer)
    model = prepare_causal_lm(model, tuning_args, new_modules)

    # 4. Train.
    early_stopping = [EarlyStoppingCallback(n)] if (n := data_args.early_stopping_patience) else []
    trainer = CompletionTrainer(
        model=model,
        args=training_args,
        run=run,
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"],
        data_collator=CausalCollator(tokenizer),
        generation=generation,
        processing_class=tokenizer,
        tuning_args=tuning_args,
        new_modules=new_modules,
        callbacks=[*callbacks, *early_stopping],
    )
    before = write_completions(trainer, dataset["test"], run)
    trainer.train()
    trainer.save_model()

    # 5. Evaluate: results.json, what was written and plots in output_dir.
    after = write_completions(trainer, dataset["test"], run)
    results = score_completions(trainer, raw["test"], before, after, run)

    # 6. Publish: the model card, and with --push_to_hub the checkpoint.
    publish(trainer, results, task="text-generation")
    return results


if __name__ == "__main__":
    run_command(main)
