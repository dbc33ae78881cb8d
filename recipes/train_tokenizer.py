# /// script
# requires-python = ">=3.11"
# dependencies = ["ptft-recipes>=0.1,<0.2"]
# ///
"""Give a tokenizer the words of a domain: extend that of a checkpoint, or train a new one.

    python recipes/train_tokenizer.py                                             the demo, offline: extend
    ... --train_file notes.txt --max_new_words 2000 --general_file news.txt       your own text, and what it costs
    ... --train_file large.jsonl --streaming                                      more text than memory
    ... --algorithm wordpiece --vocab_size 8000                                   a new one, for --from_scratch

The words whose pieces cost the corpus the most tokens become tokens, and start as the mean of these pieces
(Sachidananda et al., 2021). What is written is what the next recipe takes as --model_name_or_path. How many tokens a
word costs, before and after, is measured on held-out documents, with bootstrap intervals.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from ptft_recipes.cli import parse_args, run_command
from ptft_recipes.corpora import load_corpora
from ptft_recipes.data import DatasetArguments
from ptft_recipes.embeddings import check_extended, extend_checkpoint, find_weights, write_config
from ptft_recipes.errors import InputError
from ptft_recipes.fertility import compare_tokenizers, write_tokenizer_results
from ptft_recipes.hub import push_run
from ptft_recipes.modeling import ModelArguments, load_tokenizer
from ptft_recipes.provenance import describe_stage
from ptft_recipes.training import start_run
from ptft_recipes.vocabulary import choose_words, extend_tokenizer, train_tokenizer, write_words
from transformers import TrainingArguments

# What differs from the fields' own defaults.
DEFAULTS = {
    "model_name_or_path": "demo/minilm",
    "dataset_name": "demo/aclsum_papers",
    "output_dir": "runs/train_tokenizer",
}


@dataclass
class DataArguments(DatasetArguments):
    """The corpus, and what its words become."""

    output_dir: str | None = field(default=None, metadata={"help": "tokenizer, model and results.json"})
    text_column: str = field(default="text", metadata={"help": "a document"})
    general_file: str | None = field(default=None, metadata={"help": "text of no domain: its test part is measured"})
    streaming: bool = field(default=False, metadata={"help": "do not load the training documents into memory"})
    max_new_words: int = field(default=1000, metadata={"help": "to extend by, at most"})
    min_count: int = field(default=10, metadata={"help": "how often a new word must stand in the corpus"})
    algorithm: Literal["wordpiece", "bpe", "unigram"] | None = field(
        default=None, metadata={"help": "train a new one instead"}
    )
    vocab_size: int = field(default=8000, metadata={"help": "of a tokenizer that is trained anew"})
    lowercase: bool = field(default=True, metadata={"help": "of a tokenizer that is trained anew"})
    push_to_hub: bool = field(default=False, metadata={"help": "to a private repository named like output_dir"})


def keep_word(word):
    """Which words may enter an existing vocabulary: letters only, at least three."""
    return len(word) > 2 and word.isalpha()


def main(argv=None):
    # 1. Arguments: the defaults above, then --config, then flags.
    model_args, data_args, config = parse_args((ModelArguments, DataArguments), DEFAULTS, argv, __doc__)
    training_args = TrainingArguments(data_args.output_dir, use_cpu=True, push_to_hub=data_args.push_to_hub)
    run = start_run(__file__, config, model_args, training_args)
    if run["processes"] > 1:
        raise InputError("a tokenizer is trained by one process; start it with python, not with accelerate launch")

    # 2. Data: train to learn from, test to measure on; pretrain_mlm holds the same documents out.
    general = [f"{data_args.general_file}=0"] if data_args.general_file else []
    raw, run["data"] = load_corpora(data_args, data_args.text_column, general, data_args.streaming)
    texts = {split: documents[data_args.text_column] for split, documents in raw.items()}

    # 3. Model: whose tokenizer it is, and whose embeddings.
    base = load_tokenizer(model_args)
    weights = None if data_args.algorithm else find_weights(model_args)

    # 4. Train: a new vocabulary, or the most useful new words.
    if data_args.algorithm:
        size, lowercase = data_args.vocab_size, data_args.lowercase
        tokenizer = train_tokenizer(texts["train"], base, data_args.algorithm, size, lowercase)
        write_config(model_args, tokenizer, data_args.output_dir)
    else:
        words = choose_words(base, texts["train"], keep_word, data_args.max_new_words, data_args.min_count)
        tokenizer, pieces = extend_tokenizer(base, words)
        stage = describe_stage(run, steps=0)
        run["lineage"] = extend_checkpoint(model_args, weights, pieces, data_args.output_dir, stage)
        check_extended(model_args, base, pieces, data_args.output_dir, texts["test"][0])
        write_words(words, data_args.output_dir)
    tokenizer.save_pretrained(data_args.output_dir)

    # 5. Evaluate: tokens per word, before and after, with the tokenizer that the next recipe will load.
    tokenizer = load_tokenizer(replace(model_args, model_name_or_path=data_args.output_dir))
    metrics = compare_tokenizers(base, tokenizer, {name: text for name, text in texts.items() if "test" in name})
    run["vocabulary"] = {"before": len(base), "after": len(tokenizer)}

    # 6. Publish: results.json, beside what the next recipe loads; and with --push_to_hub the folder.
    results = write_tokenizer_results(data_args.output_dir, metrics, run)
    if data_args.push_to_hub:
        push_run(data_args.output_dir)
    return results


if __name__ == "__main__":
    run_command(main)
