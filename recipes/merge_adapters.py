# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Average adapters of one base and task, or fold one of them into its base, and see whether it was worth it.

    python recipes/merge_adapters.py --adapters runs/lora_42 runs/lora_43 runs/lora_44
    ... --adapters runs/lora_42 --output_dir runs/plain                           one adapter: fold it
    ... --train_file train.csv --label_column topic                               the data that they were trained on

Adapters that are changes of weights (LoRA, IA3, ...) become a plain checkpoint: the mean of the folded models
(Wortsman et al., Model Soups, 2022). Others (bottleneck, prompts) become one adapter, the mean of their weights. Each
and the mean are scored on validation, by which to choose; the test split is scored once, for what is saved.
"""

from dataclasses import dataclass, field
from functools import partial

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.data import DatasetArguments, load_splits
from ptft_recipes.evaluation import score_split, score_test_split
from ptft_recipes.hub import publish
from ptft_recipes.merging import average_weights, check_adapters, fold_if_mergeable
from ptft_recipes.metrics import classification_metrics
from ptft_recipes.modeling import ModelArguments, load_model, load_tokenizer
from ptft_recipes.saved_adapters import load_adapter
from ptft_recipes.tokenization import count_tokens, tokenize
from ptft_recipes.training import RecipeTrainer, start_run
from transformers import AutoModelForSequenceClassification, TrainingArguments

# What differs from the defaults of transformers; --help shows all of it.
DEFAULTS = {
    "model_name_or_path": "demo/minilm",
    "dataset_name": "demo/aclsum_roles",
    "output_dir": "runs/merge_adapters",
    "per_device_eval_batch_size": 64,
}


@dataclass
class DataArguments(DatasetArguments):
    """The adapters, and the columns to score them by: as they were trained."""

    adapters: list[str] = field(default_factory=list, metadata={"help": "folders of adapters, one or more"})
    text_column: str = field(default="text", metadata={"help": "the text to classify"})
    text_pair_column: str | None = field(default=None, metadata={"help": "the second text of a pair"})
    label_column: str = field(default="label", metadata={"help": "what to predict"})
    label_separator: str | None = field(default=None, metadata={"help": "between the labels of one multi-label cell"})
    problem_type: str | None = field(default=None, metadata={"help": "as in the model's config; else inferred"})
    max_length: int = field(default=128, metadata={"help": "tokens per example; what is longer is cut, and counted"})


def preprocess(examples, tokenizer, text_columns, max_length):
    """One example, one sequence: [CLS] text [SEP], or [CLS] text [SEP] pair [SEP]."""
    return tokenize(tokenizer, *(examples[column] for column in text_columns), max_length=max_length)


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, training_args, config = parse_args(
        (ModelArguments, DataArguments, TrainingArguments), DEFAULTS, argv, __doc__
    )
    run = start_run(__file__, config, model_args, training_args)

    # 2. Data: validation to choose by, test to report; train only gives the labels their numbers.
    text_columns = [column for column in (data_args.text_column, data_args.text_pair_column) if column]
    raw, run["data"] = load_splits(
        data_args, text_columns, data_args.label_column, data_args.problem_type, data_args.label_separator
    )
    task = {name: run["data"][name] for name in ("problem_type", "label_names")}
    tokenizer = load_tokenizer(model_args)
    with training_args.main_process_first(desc="tokenization"):
        kwargs = {"tokenizer": tokenizer, "text_columns": text_columns, "max_length": data_args.max_length}
        dataset = raw.map(preprocess, batched=True, fn_kwargs=kwargs)
    run["data"]["tokens"] = count_tokens(dataset)

    # 3. Model: the base, with each adapter in turn; folded where that is possible.
    check_adapters(data_args.adapters, run["base_model"], task["label_names"])

    def load(adapter):
        model, _ = load_model(AutoModelForSequenceClassification, model_args, tokenizer, **task)
        return fold_if_mergeable(load_adapter(model, adapter), alone=len(data_args.adapters) == 1)

    # 4. Train: no further; the mean of what was trained.
    scored = partial(RecipeTrainer, args=training_args, train_dataset=dataset["train"], processing_class=tokenizer)
    trainer = scored(model=average_weights(load(adapter) for adapter in data_args.adapters))
    trainer.save_model()

    # 5. Evaluate: results.json, predictions and plots in output_dir.
    metrics = partial(classification_metrics, **task)
    run["merged"] = {
        adapter: score_split(scored(model=load(adapter)), dataset["validation"], metrics, name=adapter)
        for adapter in data_args.adapters
    }
    run["merged"]["mean"] = score_split(trainer, dataset["validation"], metrics, name="mean")
    results = score_test_split(trainer, dataset["test"], metrics, run=run, **task)

    # 6. Publish: the model card, and with --push_to_hub the checkpoint.
    publish(trainer, results, task="text-classification")
    return results


if __name__ == "__main__":
    run_command(main)
