"""One optimizer step of every family, as a function and as a script for torchrun: `optimizer_step.py <folder>`."""

import sys
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from ptft_recipes.objectives import classification_loss
from ptft_recipes.training import RecipeTrainer

CLASSES = {"sequence": AutoModelForSequenceClassification, "token": AutoModelForMaskedLM}
NO_DROPOUT = dict.fromkeys(
    ["hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "seq_classif_dropout"], 0.0
)


class KeepGradients(TrainerCallback):
    """Copies the gradients just before the optimizer uses them."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def rows(task: str, count: int = 8) -> Dataset:
    """Rows of equal length; token rows have 1 to 8 labels each, so that a mean of means would be wrong."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 30, (count, 10), generator=generator)
    if task == "sequence":
        labels = [i % 3 for i in range(count)]
    else:
        labels = [[int(ids[i, k]) if k <= i % 8 else -100 for k in range(10)] for i in range(count)]
    return Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": [[1] * 10] * count, "labels": labels})


def build_trainer(path: str, task: str, output_dir: str, batch_size: int, accumulation: int, **kwargs):
    """Build a trainer of a model without dropout whose weights depend on the checkpoint and seed 0 alone."""
    config = AutoConfig.from_pretrained(path)
    for name, value in NO_DROPOUT.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if task == "sequence":
        config.num_labels = 3
    torch.manual_seed(0)
    model = CLASSES[task].from_pretrained(path, config=config)
    arguments = TrainingArguments(
        output_dir, max_steps=1, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=batch_size, train_sampling_strategy="sequential", max_grad_norm=0, use_cpu=True,
        logging_steps=1, save_strategy="no", disable_tqdm=True, ddp_find_unused_parameters=True,
    )  # fmt: skip
    keep = KeepGradients()
    defaults = {
        "train_dataset": rows(task),
        "eval_dataset": rows(task, 13),
        "compute_loss_func": partial(classification_loss, problem_type="single_label_classification"),
    }
    trainer = RecipeTrainer(model, arguments, callbacks=[keep], **defaults | kwargs)
    return trainer, keep


def one_step(*args, **kwargs) -> dict:
    """Train for one step; return the logged loss, the validation loss before it, and the gradients."""
    trainer, keep = build_trainer(*args, **kwargs)
    validation = trainer.evaluate()["eval_loss"]
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return {"loss": loss, "eval_loss": validation, "gradients": keep.gradients}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = {}
    for path in sorted((folder / "checkpoints").iterdir()):
        for task in CLASSES:
            found[path.name, task] = one_step(str(path), task, str(folder / "out"), 4, 1)
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "two_processes.pt")
