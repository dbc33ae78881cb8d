"""Encoder-decoders with Trainer: evaluated by what they write, and scored against the whole texts."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, EvalPrediction, GenerationConfig, PreTrainedModel
from transformers.trainer_utils import PredictionOutput

from ptft_recipes.errors import InputError, nearest, one_line
from ptft_recipes.evaluation import predicts_test_split, report_test_split
from ptft_recipes.samples import write_samples
from ptft_recipes.text_metrics import (
    BLEU,
    CHRF,
    ROUGE,
    check_metrics,
    metric_signatures,
    text_metrics,
    text_statistics,
)
from ptft_recipes.training import RecipeTrainer

METRICS = {"translation": (BLEU, CHRF), "summarization": ROUGE}  # by the Hub's name of the task


class PairCollator(DataCollatorForSeq2Seq):
    """Pads both sides, the labels with -100, and gives the decoder its input.

    The loss is not the model's own, so that the model never sees the labels; BART would then take the *source* for
    what the decoder has written so far, and M2M100, which has no method to shift labels, stops.
    """

    def __call__(self, features, return_tensors=None):
        """Return a batch, without `labels` where the rows have none."""
        batch = super().__call__(features, return_tensors)
        if batch["labels"] is None:
            del batch["labels"]
        elif "decoder_input_ids" not in batch:
            batch["decoder_input_ids"] = shift_right(batch["labels"], self.model.config)
        return batch


def shift_right(labels: torch.Tensor, config) -> torch.Tensor:
    """Return what the decoder reads to write `labels` `[batch, length]`: a start token, and all but the last."""
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == -100, config.pad_token_id)


def set_generation(
    model: PreTrainedModel, generation_kwargs: Sequence[str], max_new_tokens: int, first_token: int | None = None
) -> dict[str, Any]:
    """Choose how a model writes, in its `generation_config`, which is saved with it.

    Args:
        model: An encoder-decoder.
        generation_kwargs: `name=value`, fields of transformers' GenerationConfig, such as `num_beams=4`,
            `length_penalty=0.6`, `no_repeat_ngram_size=3`; what is not named stays as the checkpoint has it.
        max_new_tokens: The longest text, unless `generation_kwargs` say so.
        first_token: Every text begins with it: the language of a multilingual model.

    Returns:
        The settings that differ from transformers' own.

    Raises:
        InputError: No encoder-decoder, no such setting, or settings that do not go together.
    """
    if not model.config.is_encoder_decoder or not model.can_generate():
        raise InputError(f"a {model.config.model_type} model is no encoder-decoder (T5, BART, Marian, NLLB, ...)")
    if model.config.decoder_start_token_id is None or model.config.pad_token_id is None:
        raise InputError(
            "the model's config has no decoder_start_token_id or no pad_token_id; its decoder cannot begin"
        )
    config, known, was_training = model.generation_config, GenerationConfig().to_dict(), model.training
    config.max_length, config.max_new_tokens = None, max_new_tokens
    if first_token is not None:
        config.forced_bos_token_id = first_token
    for pair in generation_kwargs:
        name, equals, value = pair.partition("=")
        if not equals or name not in known:
            hint = nearest(name, known) if equals else "; expected name=value"
            raise InputError(f"--generation_kwargs {pair}: no such setting of GenerationConfig{hint}")
        setattr(config, name, yaml.safe_load(value))
    if config.do_sample:
        raise InputError("--generation_kwargs do_sample: scores of samples depend on chance; use beams")
    for name in ("num_beams", "max_new_tokens"):
        if (value := getattr(config, name)) is not None and (type(value) is not int or value < 1):
            raise InputError(f"--generation_kwargs {name}={value}: must be a whole number of at least 1")
    try:
        config.validate(strict=True)  # else saving the trained model is what fails
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # two tokens are fewer than a min_length
            # What else cannot be is to fail here, not when the training is over.
            model.eval().generate(torch.ones((1, 4), dtype=torch.long, device=model.device), max_new_tokens=2)
    except Exception as error:  # of many kinds
        raise InputError(f"--generation_kwargs: {one_line(error)}") from error
    model.train(was_training)
    chosen = config.to_diff_dict()
    return {name: value for name, value in chosen.items() if not name.startswith(("_", "output_", "transformers_"))}


class GenerationTrainer(RecipeTrainer):
    """RecipeTrainer whose predictions are texts, generated by the settings of the model's `generation_config`.

    Validation is scored by its loss alone, unless a text metric chooses the best model: generation takes far longer
    than a loss. Texts are scored against whole references, not against labels, which may be cut.

    Args:
        args: As for RecipeTrainer. The data sets keep `target`, the text of the reference.
        task: `translation` or `summarization`.
        language: As for `text_statistics`.
        kwargs: As for RecipeTrainer.
    """

    def __init__(self, *args, task: str, language: str = "", **kwargs):  # noqa: D107
        super().__init__(*args, **kwargs)
        self.metrics, self.language, self.references = METRICS[task], language, []
        check_metrics(self.metrics)
        self.text_metrics = partial(text_metrics, metrics=self.metrics, language=language)
        best = self.args.metric_for_best_model or "loss"
        if best.removeprefix("eval_") != "loss":
            self.compute_metrics = self._score_validation

    def get_eval_dataloader(self, eval_dataset=None):
        """Return the loader, and remember the references: Trainer takes all that is no input out of the rows."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        self.references = rows["target"][:]
        return super().get_eval_dataloader(eval_dataset)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Compute the loss, and unless it is all that is asked for, generate."""
        inputs = self._prepare_inputs(inputs)
        loss, labels = None, inputs.get("labels")
        if labels is not None:
            loss, *_ = super().prediction_step(model, dict(inputs), True, ignore_keys)
        if prediction_loss_only:
            return loss, None, None
        texts = {name: value for name, value in inputs.items() if name not in ("labels", "decoder_input_ids")}
        # One autocast for the whole text: its casts of the weights are kept that long.
        with torch.no_grad(), self.compute_loss_context_manager():
            written = self.accelerator.unwrap_model(model).generate(**texts)
        return loss, written, labels

    def predict_texts(self, dataset: Dataset) -> tuple[list[str], PredictionOutput]:
        """Generate, and return the texts in the order of the data set, and what `predict` returned."""
        scoring, self.compute_metrics = self.compute_metrics, None  # it is of validation
        try:
            output = self.predict(dataset)
        finally:
            self.compute_metrics = scoring
        return self.decode(output.predictions), output

    def decode(self, tokens: np.ndarray) -> list[str]:
        """Return the texts of generated tokens `[rows, length]`, padded with -100."""
        tokenizer = self.processing_class
        return tokenizer.batch_decode(np.where(tokens < 0, tokenizer.pad_token_id, tokens), skip_special_tokens=True)

    def save_model(self, output_dir=None, _internal_call=False):
        """Save the model, and how it writes, which PEFT does not save beside an adapter."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).generation_config.save_pretrained(
                output_dir or self.args.output_dir
            )

    def _score_validation(self, prediction: EvalPrediction) -> dict[str, float]:
        texts = self.decode(prediction.predictions)
        references = self.references[: len(texts)]  # the check before training has the first rows only
        statistics = text_statistics(texts, references, self.metrics, self.language)
        return self.text_metrics(EvalPrediction(statistics, statistics))


def score_texts(trainer: GenerationTrainer, dataset: Dataset, rows: Dataset, run: dict[str, Any]) -> dict[str, Any]:
    """Write the texts of the test split once, score them with 95 % intervals, and write what a reader needs.

    Writes what `score_test_split` writes; `predictions/test.jsonl` has source, gold and predicted text,
    `predictions/samples.md` some of them as a table. A test split without targets is predicted and not scored.

    Args:
        trainer: Trained; all processes call this together.
        dataset: The tokenized test split.
        rows: Its rows, with `id`, `source`, and `target` where it is known.
        run: What `start_run` returned, and what the recipe added.

    Returns:
        As `score_test_split`.
    """
    run["data"] |= {"text_metrics": [*trainer.metrics], "language": trainer.language}
    if not predicts_test_split(run):
        return report_test_split(trainer, None, trainer.text_metrics, [], run)
    predicted, output = trainer.predict_texts(dataset)
    gold = rows["target"][:] if "target" in rows.column_names else None
    statistics = None
    if gold:
        statistics = text_statistics(predicted, gold, trainer.metrics, trainer.language)
        run["signatures"] = metric_signatures(trainer.metrics, gold, trainer.language)
    lines = [
        {"id": row["id"], "source": row["source"], "gold": gold and gold[i], "predicted": predicted[i]}
        for i, row in enumerate(rows)
    ]
    if trainer.is_world_process_zero():
        write_samples(Path(trainer.args.output_dir) / "predictions" / "samples.md", lines)
    prediction = output._replace(predictions=statistics, label_ids=statistics)
    return report_test_split(trainer, prediction, trainer.text_metrics, lines, run)
