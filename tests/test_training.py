"""What start_run refuses, how logs read, and that predictions come back in the order of the data set."""

import numpy as np
import pytest
import torch
from conftest import nothing_written
from datasets import Dataset
from numerics.optimizer_step import build_trainer, rows
from transformers import TrainingArguments

from ptft_recipes.logs import format_log
from ptft_recipes.modeling import ModelArguments
from ptft_recipes.training import start_run


def test_a_run_is_described_before_it_starts(tmp_path):
    arguments = TrainingArguments(str(tmp_path / "out"), seed=7, use_cpu=True)
    run = start_run(__file__, {"seed": 7}, ModelArguments("demo/minilm"), arguments)
    assert run["recipe"] == "test_training"
    assert run["seed"] == 7
    assert run["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert run["config"] == {"seed": 7}
    assert run["device"] == "cpu"
    assert run["processes"] == 1
    assert run["versions"]["transformers"]
    assert nothing_written(tmp_path / "out")


def test_every_generator_is_seeded(tmp_path):
    draws = []
    for _ in range(2):
        start_run(__file__, {}, ModelArguments("x"), TrainingArguments(str(tmp_path), seed=3, use_cpu=True))
        draws.append((torch.rand(1).item(), np.random.rand()))
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (
            {"loss": 0.5, "grad_norm": 1.23456, "learning_rate": 1e-4, "epoch": 1.5},
            "step 3/8 | epoch 1.50 | loss 0.5 | grad_norm 1.235 | learning_rate 0.0001",
        ),
        (
            {"eval_loss": 0.25, "eval_f1": 0.5, "eval_f1/none": 0.1, "eval_runtime": 3.0, "epoch": 2},
            "step 3/8 | epoch 2.00 | validation: loss 0.25 | f1 0.5",
        ),
        ({"train_runtime": 12.3, "train_samples_per_second": 45.6}, "trained for 12 s, 46 samples/s"),
        ({"epoch": 1.0, "total_flos": 3.0}, ""),
        # with --include_num_input_tokens_seen
        ({"loss": 0.5, "train_runtime": 3.0, "train_tokens_per_second": 9.0}, "step 3/8 | epoch 0.00 | loss 0.5"),
    ],
)
def test_logs_read_as_one_line(logs, line):
    assert format_log(logs, 3, 8) == line


def uneven_rows(count: int) -> Dataset:
    """Rows of different lengths whose first token is the row's number."""
    ids = [[5 + i % 25] * (1 + (7 * i) % 13) for i in range(count)]
    labels = [i % 3 for i in range(count)]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": labels,
            "length": list(map(len, ids)),
        }
    )


def test_predictions_come_in_the_order_of_the_data_set(checkpoint, tokenizer, tmp_path):
    trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 4, 1, processing_class=tokenizer)
    trainer.args.train_sampling_strategy = "group_by_length"
    dataset = uneven_rows(23)
    prediction = trainer.predict(dataset)
    assert prediction.label_ids.tolist() == dataset["labels"]
    with torch.no_grad():
        alone = [trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in dataset]
    np.testing.assert_allclose(prediction.predictions, torch.stack(alone).numpy(), atol=1e-5)


def test_evaluation_gives_the_same_in_any_batch_size(checkpoint, tokenizer, tmp_path):
    losses = []
    for batch_size in (1, 4, 64):
        trainer, _ = build_trainer(
            checkpoint,
            "sequence",
            str(tmp_path),
            batch_size,
            1,
            processing_class=tokenizer,
            eval_dataset=uneven_rows(13),
        )
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_weights_change(checkpoint, tmp_path, where):
    def loss(outputs, labels, num_items_in_batch=None):
        value = torch.nn.functional.cross_entropy(outputs.logits, labels)
        # sqrt has an infinite gradient at 0: the loss itself stays finite
        return value * float("inf") if where == "loss" else value + (outputs.logits.sum() * 0).abs().sqrt()

    trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 8, 1, compute_loss_func=loss)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="at step 1; stopped before the weights were changed"):
        trainer.train()
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_validation_loss_that_is_not_finite_is_reported_as_such(checkpoint, tmp_path):
    trainer, _ = build_trainer(checkpoint, "sequence", str(tmp_path), 8, 1, eval_dataset=rows("sequence", 4))
    torch.nn.init.constant_(trainer.model.classifier.bias, float("nan"))
    assert np.isnan(trainer.evaluate()["eval_loss"])


def test_every_epoch_has_its_own_order_of_similar_lengths(checkpoint, tokenizer, tmp_path):
    trainer, _ = build_trainer(
        checkpoint, "sequence", str(tmp_path), 4, 1, processing_class=tokenizer, train_dataset=uneven_rows(24)
    )
    trainer.args.train_sampling_strategy = "group_by_length"
    trainer.args.max_steps, trainer.args.num_train_epochs = -1, 3
    seen, step = [], trainer.training_step

    def watch(model, inputs, num_items_in_batch=None):
        seen.append(tuple(inputs["attention_mask"].sum(dim=1).tolist()))
        return step(model, inputs, num_items_in_batch)

    trainer.training_step = watch
    trainer.train()
    epochs = [seen[i : i + 6] for i in (0, 6, 12)]
    assert len(seen) == 18
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert all(sorted(sum(epoch, ())) == sorted(uneven_rows(24)["length"]) for epoch in epochs)
    assert sum(max(batch) - min(batch) for batch in seen) / len(seen) < 4
