"""How checkpoints that answer questions or write texts read their data, and what they predict of a split.

As their recipes do: what is not in the model stands in the `config.yaml` of its run, and is read from there.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import EvalPrediction, GenerationConfig, TrainingArguments

from ptft_recipes.answer_windows import tokenize_questions
from ptft_recipes.causal import CausalCollator, CompletionTrainer, check_decoder
from ptft_recipes.completion_scoring import (
    SCORED,
    complete,
    completion_scores,
    completion_statistics,
    generation_settings,
)
from ptft_recipes.completions import tokenize_conversations
from ptft_recipes.conversations import load_conversations, read_messages
from ptft_recipes.errors import InputError
from ptft_recipes.generation import GenerationTrainer, PairCollator, set_generation, text_lines
from ptft_recipes.languages import set_languages, writing_of
from ptft_recipes.mistakes import write_mistakes
from ptft_recipes.objectives import classification_loss, span_loss
from ptft_recipes.perplexity import STATISTICS
from ptft_recipes.perturbations import PERTURBATIONS
from ptft_recipes.question_answering import QuestionTrainer, answer_line, shared_contexts
from ptft_recipes.question_data import load_question_splits
from ptft_recipes.samples import write_samples
from ptft_recipes.text_metrics import metric_signatures, text_statistics
from ptft_recipes.text_pairs import load_text_pairs, tokenize_pairs
from ptft_recipes.trained_checkpoints import Predicted, TrainedCheckpoint
from ptft_recipes.windows import prepare_for_words

MOST = 50  # mistakes that are written
# Of a checkpoint that no run of ours made: answers as long as in transformers' own example, and no answer where that
# is more probable than the best span.
OTHERS = {"max_answer_length": 30, "no_answer_threshold": 0.0}


def with_defaults(data_args, **defaults):
    """Return data arguments in which what is not given is as the recipe of the task has it."""
    missing = {name: value for name, value in defaults.items() if getattr(data_args, name) is None}
    return dataclasses.replace(data_args, **missing)


def _question_settings(recorded: Any) -> dict[str, Any]:
    """Return how questions are read and answered, from the model's config, which a stranger may have written."""
    known: dict[str, Any] = {"max_length": 256, "stride": 96, **OTHERS}
    if isinstance(recorded, dict):
        known |= recorded
    numbers = [known[name] for name in ("max_length", "stride", "max_answer_length")]
    is_fit = isinstance(known["no_answer_threshold"], int | float | None) and isinstance(recorded, dict)
    if not is_fit or any(type(number) is not int or number < 0 for number in numbers):
        raise InputError(f"config.json: question_answering is {recorded!r:.120}, not as finetune_qa.py writes it")
    return known


class QuestionTask:
    """Extractive question answering, with the no-answer threshold that the run tuned."""

    truth, perturbations = "answers", tuple(PERTURBATIONS)  # of the question: answers are places in the context

    def __init__(self, checkpoint: TrainedCheckpoint, tokenizer, data_args):  # noqa: D107
        known = _question_settings(checkpoint.question_answering)
        lengths = {name: known[name] for name in ("max_length", "stride")}
        self.data_args = with_defaults(
            data_args, text_column="question", text_pair_column="context", label_column="answers", **lengths
        )
        self.tokenizer, self.columns = (
            prepare_for_words(tokenizer),
            [
                self.data_args.text_column,
                self.data_args.text_pair_column,
            ],
        )
        self.text_columns = self.columns[:1]
        self.is_of_a_run = bool(checkpoint.question_answering)
        self.threshold = known["no_answer_threshold"]
        self.task = {"columns": self.columns, "n_best": checkpoint.settings.n_best}
        self.task["max_answer_length"] = known["max_answer_length"]

    def load(self, more_columns: Sequence[str]):
        """Return the splits of questions, and the report of `load_question_splits`."""
        args = self.data_args
        raw, report = load_question_splits(args, *self.columns, args.label_column, more_columns, trains=False)
        if not self.is_of_a_run and not report["has_no_answers"]:
            self.threshold = None
        report["has_no_answers"] = self.task["has_no_answers"] = report["has_no_answers"] or self.threshold is not None
        report["answered_by"] = {"no_answer_threshold": self.threshold} | {
            name: self.task[name] for name in ("max_answer_length", "n_best")
        }
        return raw, report

    def make_trainer(self, model, training_args: TrainingArguments, raw) -> QuestionTrainer:
        """Return what predicts."""
        return QuestionTrainer(
            model=model, args=training_args, eval_rows=None, task=self.task, processing_class=self.tokenizer,
            compute_loss_func=span_loss,
        )  # fmt: skip

    def predict(self, trainer: QuestionTrainer, rows: Dataset) -> Predicted:
        """Answer questions, and count per question what the scores are made of."""
        lengths = {"max_length": self.data_args.max_length, "stride": self.data_args.stride}

        def preprocess(examples, numbers):
            questions, contexts = (examples[column] for column in self.columns)
            return tokenize_questions(self.tokenizer, questions, contexts, numbers, examples.get("answers"), **lengths)

        windows = rows.map(preprocess, with_indices=True, batched=True, remove_columns=rows.column_names)
        answers, output = trainer.predict_answers(windows, rows)
        predicted = trainer.texts_of(answers, rows, self.threshold)
        statistics = trainer.statistics_of(rows, predicted) if "answers" in rows.column_names else None
        questions, contexts = (rows[column][:] for column in self.columns)
        tokens = {}
        for row, first, count in zip(windows["row"], windows["first"], windows["tokens"], strict=True):
            tokens[row] = max(first + count, tokens.get(row, 0))
        return Predicted(
            EvalPrediction(statistics, statistics), trainer.answer_metrics,
            list(map(answer_line, rows, answers, predicted, questions, contexts)),
            [tokens[row] for row in range(len(rows))], output.metrics["test_runtime"], shared_contexts(contexts),
        )  # fmt: skip

    def write_examples(self, predicted: Predicted, rows: Dataset, output_dir: Path) -> None:
        """Write the answers that match no gold answer, the most probable first, with their contexts."""
        if predicted.prediction.label_ids is None:
            return
        mistakes = [
            {"id": line["id"], "question": line["question"], "gold": " | ".join(dict.fromkeys(line["gold"])),
             "predicted": line["predicted"], "f1": round(float(f1), 4),
             "probability": line["n_best"][0]["probability"] if line["predicted"] else line["no_answer_probability"],
             "context": context}
            for line, context, (exact, f1, _) in zip(
                predicted.lines, rows[self.columns[1]], predicted.prediction.predictions, strict=True
            )
            if not exact
        ]  # fmt: skip
        write_mistakes(sorted(mistakes, key=lambda mistake: -mistake["probability"])[:MOST], output_dir)


class PairTask:
    """Translation and summarization by an encoder-decoder, which writes by its own `generation_config`."""

    text_columns, truth, perturbations = ("source",), "target", tuple(PERTURBATIONS)

    def __init__(self, checkpoint: TrainedCheckpoint, tokenizer, data_args):  # noqa: D107
        self.data_args = with_defaults(data_args, text_column="source", label_column="target", max_length=128)
        self.tokenizer, self.settings = tokenizer, checkpoint.settings
        self.first_token = set_languages(tokenizer, self.settings.source_lang, self.settings.target_lang)
        self.report: dict[str, Any] = {}

    def load(self, more_columns: Sequence[str]):
        """Return the splits of pairs, and the report of `load_text_pairs`."""
        args = self.data_args
        raw, self.report = load_text_pairs(args, args.text_column, args.label_column, more_columns, trains=False)
        return raw, self.report

    def make_trainer(self, model, training_args: TrainingArguments, raw) -> GenerationTrainer:
        """Return what writes, after a check that the checkpoint can be scored by what it writes."""
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        length = plain.generation_config.max_new_tokens or self.settings.max_target_length
        generation = set_generation(plain, [], length, self.first_token)
        trainer = GenerationTrainer(
            model=model, args=training_args, task=self.settings.task, language=writing_of(self.settings.target_lang),
            data_collator=PairCollator(self.tokenizer, model=model), processing_class=self.tokenizer,
            compute_loss_func=classification_loss,
        )  # fmt: skip
        self.report |= {"text_metrics": [*trainer.metrics], "language": trainer.language, "generation": generation}
        self.report["signatures"] = metric_signatures(trainer.metrics, [""], trainer.language)
        return trainer

    def predict(self, trainer: GenerationTrainer, rows: Dataset) -> Predicted:
        """Write the texts of rows, and count per text what the scores are made of."""
        lengths = {"max_source_length": self.data_args.max_length}
        lengths["max_target_length"] = self.settings.max_target_length

        def preprocess(examples):
            sources = [self.settings.source_prefix + text for text in examples["source"]]
            return tokenize_pairs(self.tokenizer, sources, examples.get("target"), **lengths)

        unused = [name for name in rows.column_names if name != "target"]
        dataset = rows.map(preprocess, batched=True, remove_columns=unused)
        predicted, output = trainer.predict_texts(dataset)
        gold, statistics = rows["target"][:] if "target" in rows.column_names else None, None
        if gold:
            statistics = text_statistics(predicted, gold, trainer.metrics, trainer.language)
        return Predicted(
            EvalPrediction(statistics, statistics), trainer.text_metrics, text_lines(rows, predicted),
            [*map(len, dataset["input_ids"])], output.metrics["test_runtime"],
        )  # fmt: skip

    def write_examples(self, predicted: Predicted, rows: Dataset, output_dir: Path) -> None:
        """Write some texts beside their references, and those with the lowest score of their own."""
        metric = "chrf" if self.settings.task == "translation" else "rougeL"
        _write_texts(predicted, predicted.lines, metric, output_dir)


class CompletionTask:
    """Completions of prompts, and answers in chats, by a decoder, which writes by its own `generation_config`."""

    truth, perturbations = None, ()  # every row has its answer

    def __init__(self, checkpoint: TrainedCheckpoint, tokenizer, data_args):  # noqa: D107
        self.data_args = with_defaults(data_args, text_column="prompt", label_column="completion", max_length=384)
        self.tokenizer, self.settings, self.report = tokenizer, checkpoint.settings, {}

    def load(self, more_columns: Sequence[str]):
        """Return the splits of chats, and the report of `load_conversations`."""
        args, columns = self.data_args, [self.data_args.text_column, self.data_args.label_column]
        raw, self.report = load_conversations(
            args, *columns, self.settings.messages_column, more_columns, trains=False
        )
        self.report |= {"text_metrics": [*SCORED], "language": ""}
        self.report["chat_template"] = bool(self.settings.use_chat_template and self.tokenizer.chat_template)
        return raw, self.report

    def make_trainer(self, model, training_args: TrainingArguments, raw) -> CompletionTrainer:
        """Return what writes, after a check that the checkpoint can be scored by what it writes."""
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        check_decoder(plain)
        generation = self._generation(plain.generation_config)
        self.report["generation"] = generation.to_diff_dict()
        return CompletionTrainer(
            model=model, args=training_args, data_collator=CausalCollator(self.tokenizer), generation=generation,
            processing_class=self.tokenizer,
        )  # fmt: skip

    def _generation(self, found: GenerationConfig) -> GenerationConfig:
        """Return how to write: as the run did, or greedily where a stranger's settings could not be scored."""
        if found.max_new_tokens and found.pad_token_id is not None and not found.do_sample:
            return found
        ends = self.tokenizer.eos_token_id if found.eos_token_id is None else found.eos_token_id
        if ends is None:
            raise InputError(
                "neither the checkpoint's generation_config nor its tokenizer has a token that ends a text"
            )
        return generation_settings([], self.tokenizer, np.atleast_1d(ends).tolist(), self.settings.max_new_tokens)

    def predict(self, trainer: CompletionTrainer, rows: Dataset) -> Predicted:
        """Write the last answers of rows, and count per row what the scores are made of."""
        dataset = rows.map(
            lambda examples: tokenize_conversations(
                self.tokenizer, examples["messages"], examples["id"], self.data_args.max_length,
                self.settings.use_chat_template,
            ),
            batched=True,
        )  # fmt: skip
        written = complete(trainer, dataset)
        chats = [read_messages(text) for text in rows["messages"]]
        gold = [chat[-1]["content"] for chat in chats]
        lines = [
            {"id": name, "prompt": chat[:-1], "gold": right, "predicted": text}
            | dict(zip(STATISTICS, sums, strict=True))
            for name, chat, right, text, sums in zip(
                rows["id"], chats, gold, written.texts, written.statistics.tolist(), strict=True
            )
        ]
        statistics = completion_statistics(written, gold)
        return Predicted(
            EvalPrediction(statistics, statistics), completion_scores, lines, dataset["prompt_length"][:],
            written.seconds,
        )  # fmt: skip

    def write_examples(self, predicted: Predicted, rows: Dataset, output_dir: Path) -> None:
        """Write some answers beside their references, and those with the lowest score of their own."""
        lines = [line | {"source": line["prompt"][-1]["content"]} for line in predicted.lines]
        _write_texts(predicted, lines, "rougeL", output_dir)


def _write_texts(predicted: Predicted, lines: list[dict[str, Any]], metric: str, output_dir: Path) -> None:
    write_samples(output_dir / "predictions" / "samples.md", lines)
    statistics = predicted.prediction.predictions
    if statistics is None:
        return
    scores = [predicted.metrics(EvalPrediction(row[None], row[None]))[metric] for row in statistics]
    worst = np.argsort(scores, kind="stable")[:MOST].tolist()
    columns = ("id", "source", "gold", "predicted")
    mistakes = [{name: lines[i][name] for name in columns} | {metric: round(scores[i], 4)} for i in worst]
    write_mistakes(mistakes, output_dir, f"The texts with the lowest {metric}")
