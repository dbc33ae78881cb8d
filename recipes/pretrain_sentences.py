# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Go on pre-training BERT or ALBERT on your own text with both of its objectives: hidden tokens, pairs of sentences.

    accelerate launch recipes/pretrain_sentences.py                                       the demo, offline
    ... --model_name_or_path google-bert/bert-base-uncased --train_file reports.txt       next-sentence prediction
    ... --model_name_or_path albert/albert-base-v2 --train_file reports.txt               sentence-order prediction
    accelerate launch recipes/finetune_cls.py --model_name_or_path runs/pretrain_sentences      then

The model's head decides: BERT's says whether the second segment is of another document (Devlin et al., 2019, section
3.1), ALBERT's whether the two are swapped (Lan et al., 2020, section 3.1). The pooler is trained with it.
"""

from dataclasses import dataclass, field

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.blocks import check_tokenizer, count_blocks
from ptft_recipes.corpora import load_corpora, training_rows
from ptft_recipes.data import DatasetArguments
from ptft_recipes.evaluation import score_held_out_text
from ptft_recipes.hub import publish
from ptft_recipes.modeling import ModelArguments, load_model, load_tokenizer
from ptft_recipes.pretraining import check_saved_model
from ptft_recipes.sentence_pairs import SentencePairCollator, finish_held_out, split_into_pairs
from ptft_recipes.sentence_prediction import SentencePairTrainer, sentence_objective
from ptft_recipes.training import start_run
from transformers import AutoModelForPreTraining, TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "demo/minilm",
    "dataset_name": "demo/aclsum_papers",
    "output_dir": "runs/pretrain_sentences",
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
    "metric_for_best_model": "loss",
    "logging_steps": 0.05,
}


@dataclass
class DataArguments(DatasetArguments):
    """The text to read, and what is hidden of it."""

    text_column: str = field(default="text", metadata={"help": "a document"})
    max_length: int = field(default=128, metadata={"help": "tokens per pair; a document becomes several"})
    masking_unit: str = field(default="token", metadata={"help": "token, word, or span (of words)"})
    mlm_probability: float = field(default=0.15, metadata={"help": "share of the tokens that is hidden in training"})


def preprocess(examples, tokenizer, args):
    """A document becomes pairs of whole sentences inside its borders: [CLS] first [SEP] second [SEP]."""
    return split_into_pairs(tokenizer, examples[args.text_column], examples["id"], args.max_length)


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TrainingArguments), DEFAULTS, argv, __doc__
    )
    run = start_run(__file__, config, model_args, training_args)

    # 2. Data: train to learn from, validation to choose, test to report; no document is in two of them.
    tokenizer = load_tokenizer(model_args)
    check_tokenizer(tokenizer, data_args.max_length)
    raw, run["data"] = load_corpora(data_args, data_args.text_column)
    kwargs = {"batched": True, "batch_size": 100, "remove_columns": ["id", data_args.text_column]}
    kwargs["fn_kwargs"] = {"tokenizer": tokenizer, "args": data_args}
    with training_args.main_process_first(desc="tokenization"):
        dataset = {split: text.map(preprocess, **kwargs) for split, text in raw.items()}
    run["data"]["tokens"] = count_blocks(dataset, tokenizer, data_args.max_length)
    dataset["train"] = training_rows(dataset, run["data"], training_args)

    # 3. Model: body, vocabulary head and sentence head.
    model, _ = load_model(AutoModelForPreTraining, model_args, tokenizer, num_labels=2)
    objective = sentence_objective(model)
    pairs = tokenizer, objective, dataset["train"], data_args.max_length
    masking = data_args.masking_unit, data_args.mlm_probability, None, training_args.seed
    held_out = {
        split: finish_held_out(dataset[split], tokenizer, objective, data_args.max_length)
        for split in ("validation", "test")
    }

    # 4. Train.
    trainer = SentencePairTrainer(
        model=model,
        args=training_args,
        run=run,
        train_dataset=dataset["train"],
        eval_dataset=held_out.pop("validation"),
        data_collator=SentencePairCollator(*pairs, *masking),
        processing_class=tokenizer,
    )
    before = {name: trainer.predict(text).predictions for name, text in held_out.items()}
    trainer.train()
    trainer.save_model()
    check_saved_model(trainer)

    # 5. Evaluate: results.json, sums per block and plots in output_dir.
    results = score_held_out_text(trainer, held_out, before, run=run)

    # 6. Publish: the model card, and with --push_to_hub the checkpoint.
    publish(trainer, results, task="fill-mask")
    return results


if __name__ == "__main__":
    run_command(main)
