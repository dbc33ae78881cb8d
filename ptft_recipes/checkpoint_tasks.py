"""How the checkpoint of each task reads its data, and what it predicts of a split, in the order of the data."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import DataCollatorForTokenClassification, EvalPrediction, TrainingArguments

from ptft_recipes.blocks import check_tokenizer, split_into_blocks
from ptft_recipes.checkpoint_texts import CompletionTask, PairTask, QuestionTask, with_defaults
from ptft_recipes.collators import MaskingCollator, mask_held_out
from ptft_recipes.data import load_splits
from ptft_recipes.errors import InputError
from ptft_recipes.evaluation import prediction_lines
from ptft_recipes.metrics import classification_metrics
from ptft_recipes.mistakes import confident_mistakes, write_mistakes
from ptft_recipes.objectives import masked_lm_loss
from ptft_recipes.perplexity import masked_lm_metrics, sum_by_document
from ptft_recipes.perturbations import KEEPS_WORDS, PERTURBATIONS
from ptft_recipes.pretraining import MaskedLMTrainer
from ptft_recipes.tagged_data import load_tagged_splits
from ptft_recipes.tagging import TaggingTrainer
from ptft_recipes.tokenization import tokenize
from ptft_recipes.trained_checkpoints import Predicted, TrainedCheckpoint
from ptft_recipes.training import RecipeTrainer
from ptft_recipes.windows import prepare_for_words, tokenize_words


class SequenceTask:
    """Sequence classification: one text or a pair; one label, several, or a number."""

    truth, perturbations = "labels", tuple(PERTURBATIONS)

    def __init__(self, checkpoint: TrainedCheckpoint, tokenizer, data_args):  # noqa: D107
        data_args = with_defaults(data_args, text_column="text", label_column="label", max_length=128)
        self.checkpoint, self.tokenizer, self.data_args = checkpoint, tokenizer, data_args
        self.text_columns = [name for name in (data_args.text_column, data_args.text_pair_column) if name]
        self.labels = {"problem_type": checkpoint.problem_type, "label_names": checkpoint.label_names}

    def load(self, more_columns: Sequence[str]):
        """Return the splits, labels numbered as the checkpoint has them, and the report of `load_splits`."""
        args = self.data_args
        return load_splits(
            args, self.text_columns, args.label_column, self.checkpoint.problem_type, args.label_separator,
            self.checkpoint.label_names, more_columns,
        )  # fmt: skip

    def make_trainer(self, model, training_args: TrainingArguments, raw) -> RecipeTrainer:
        """Return what predicts."""
        return RecipeTrainer(model=model, args=training_args, processing_class=self.tokenizer)

    def predict(self, trainer: RecipeTrainer, rows: Dataset) -> Predicted:
        """Predict rows, longest first, and return logits in their order."""

        def preprocess(examples):
            return tokenize(
                self.tokenizer, *(examples[c] for c in self.text_columns), max_length=self.data_args.max_length
            )

        dataset = rows.map(preprocess, batched=True)
        output = trainer.predict(dataset)
        lines = prediction_lines(rows["id"], output, **self.labels)
        return Predicted(
            EvalPrediction(output.predictions, output.label_ids), partial(classification_metrics, **self.labels),
            list(lines), dataset["length"][:], output.metrics["test_runtime"],
        )  # fmt: skip

    def write_examples(self, predicted: Predicted, rows: Dataset, output_dir: Path) -> None:
        """Write the predictions that were wrong and surest, with their text."""
        if predicted.prediction.label_ids is not None:
            texts = rows.select_columns(["id", *self.text_columns]).to_list()
            write_mistakes(confident_mistakes(predicted.prediction, texts, **self.labels), output_dir)


class TaggingTask:
    """Token classification: a tag per word, scored by sentence."""

    truth, perturbations = "labels", KEEPS_WORDS

    def __init__(self, checkpoint: TrainedCheckpoint, tokenizer, data_args):  # noqa: D107
        data_args = with_defaults(data_args, max_length=128, stride=32)
        self.checkpoint, self.tokenizer, self.data_args = checkpoint, prepare_for_words(tokenizer), data_args
        self.text_columns = [data_args.words_column]

    def load(self, more_columns: Sequence[str]):
        """Return the splits and the report of `load_tagged_splits`, whose labels must be those of the checkpoint."""
        args = self.data_args
        raw, report = load_tagged_splits(args, args.words_column, args.tags_column, more_columns)
        if report["label_names"] != self.checkpoint.label_names:
            theirs, ours = (", ".join(names) for names in (self.checkpoint.label_names, report["label_names"]))
            raise InputError(f"the checkpoint predicts the tags {theirs:.300}; the data has {ours:.300}")
        self.labels = {name: report[name] for name in ("label_names", "scheme", "default_label")}
        return raw, report

    def make_trainer(self, model, training_args: TrainingArguments, raw) -> TaggingTrainer:
        """Return what predicts."""
        return TaggingTrainer(
            model=model, args=training_args, eval_rows=raw["validation"], task=self.labels,
            data_collator=DataCollatorForTokenClassification(self.tokenizer), processing_class=self.tokenizer,
        )  # fmt: skip

    def predict(self, trainer: TaggingTrainer, rows: Dataset) -> Predicted:
        """Predict the tags of rows, and count per row what the scores are made of."""
        (column,), args = self.text_columns, self.data_args
        kwargs = {"max_length": args.max_length, "stride": args.stride}

        def preprocess(examples, numbers):
            return tokenize_words(self.tokenizer, examples[column], numbers, examples.get("labels"), **kwargs)

        windows = rows.map(preprocess, with_indices=True, batched=True, remove_columns=rows.column_names)
        tags, output = trainer.predict_tags(windows)
        names, gold, counts = self.checkpoint.label_names, None, None
        if "labels" in rows.column_names:
            gold = [[names[label] for label in row] for row in rows["labels"]]
            counts = trainer.statistics_of(gold, tags)
        words = rows[column][:]
        lines = [
            {"id": name, "words": words[i], "gold": gold and gold[i], "predicted": tags[i]}
            for i, name in enumerate(rows["id"])
        ]
        prediction = EvalPrediction(counts, counts)
        return Predicted(prediction, trainer.tag_metrics, lines, [*map(len, words)], output.metrics["test_runtime"])

    def write_examples(self, predicted: Predicted, rows: Dataset, output_dir: Path) -> None:
        """Write nothing: the file of predictions has gold and predicted tags side by side."""


class MaskedLMTask:
    """Masked language modelling: how surprising held-out documents are."""

    truth, perturbations = None, ()

    def __init__(self, checkpoint: TrainedCheckpoint, tokenizer, data_args):  # noqa: D107
        self.tokenizer, self.data_args = tokenizer, with_defaults(data_args, text_column="text", max_length=128)
        check_tokenizer(tokenizer, self.data_args.max_length)

    def load(self, more_columns: Sequence[str]):
        """Return the splits of documents, and the report of `load_splits`."""
        if more_columns:
            raise InputError("--slice_columns, --group_column: perplexity is scored by document, not by a column")
        return load_splits(self.data_args, [self.data_args.text_column], label_names=())

    def make_trainer(self, model, training_args: TrainingArguments, raw) -> MaskedLMTrainer:
        """Return what predicts."""
        return MaskedLMTrainer(
            model=model, args=training_args, data_collator=MaskingCollator(self.tokenizer, config=model.config),
            processing_class=self.tokenizer, compute_loss_func=masked_lm_loss,
        )  # fmt: skip

    def blocks(self, rows: Dataset) -> Dataset:
        """Return documents as blocks, as `pretrain_mlm` cuts them."""
        args = self.data_args

        def preprocess(examples):
            texts = examples[args.text_column], examples["id"]
            return split_into_blocks(self.tokenizer, *texts, args.max_length, args.line_by_line)

        return rows.map(preprocess, batched=True, batch_size=100, remove_columns=rows.column_names)

    def predict(self, trainer: MaskedLMTrainer, rows: Dataset) -> Predicted:
        """Hide the tokens that every run hides, and sum up by document what perplexity is made of."""
        dataset = mask_held_out(self.blocks(rows), self.tokenizer)
        output = trainer.predict(dataset)
        lines = [
            {"document": document} | dict(zip(trainer.statistics, row, strict=True))
            for document, row in zip(dataset["document"], output.predictions.tolist(), strict=True)
        ]
        sums = sum_by_document(output.predictions, dataset["document"])
        lengths = sum_by_document(np.array(dataset["length"][:], dtype=float)[:, None], dataset["document"])
        prediction = EvalPrediction(sums, sums)
        return Predicted(prediction, masked_lm_metrics, lines, lengths[:, 0].tolist(), output.metrics["test_runtime"])

    def write_examples(self, predicted: Predicted, rows: Dataset, output_dir: Path) -> None:
        """Write nothing: documents are neither right nor wrong."""


TASKS = {
    "text-classification": SequenceTask,
    "token-classification": TaggingTask,
    "fill-mask": MaskedLMTask,
    "question-answering": QuestionTask,
    "text2text-generation": PairTask,
    "text-generation": CompletionTask,
}
