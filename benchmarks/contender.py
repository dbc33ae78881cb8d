"""One contender of `run.py`: it trains or predicts a bounded number of steps each time that it is told to.

    python benchmarks/contender.py <file of pipe> '<json: who, task, model, data, ...>'

`recipe` is a recipe of this project as it is. `defaults` is a plain Trainer as the well-known scripts set it up (rows
padded to the full length, float32), and `flags` the same with the best of Trainer's own flags (padding to the longest
row of a batch, batches by length, bfloat16 where it is native and faster).
"""

import importlib.util
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments

from ptft_recipes.acceleration import measure_gemm

ROOT = Path(__file__).parents[1]


class Pace(TrainerCallback):
    """Waits for the word to go on, and reports what was done since."""

    def __init__(self, pipe):  # noqa: D107
        self.pipe, self.start = pipe, time.perf_counter()
        self.left = self.tokens = self.rows = 0

    def wait(self) -> None:
        """Report, and wait for the number of steps to do next."""
        seconds = time.perf_counter() - self.start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        report = {"seconds": seconds, "tokens": self.tokens, "rows": self.rows, "peak_gib": memory}
        report["since_start"] = time.time() - psutil.Process().create_time()
        print(json.dumps(report), file=self.pipe, flush=True)
        word = sys.stdin.readline().strip()
        if not word or word == "stop":
            os._exit(0)
        self.left, self.tokens, self.rows, self.start = int(word), 0, 0, time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):  # noqa: D102
        if self.left == 0:
            self.wait()

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102
        self.left -= 1
        if self.left == 0:
            self.wait()

    def count(self, inputs: dict) -> None:
        """Add a batch to what is reported."""
        rows = next(iter(inputs.values()))
        self.rows += len(rows)
        self.tokens += int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else 0


def main() -> None:
    """Run the contender that the command line names."""
    pace = Pace(open(sys.argv[1], "w"))  # noqa: SIM115
    job = json.loads(sys.argv[2])
    transformers.trainer.DEFAULT_CALLBACKS.append(pace)
    training_step, prediction_step = Trainer.training_step, Trainer.prediction_step

    def counted_training_step(self, model, inputs, *args, **kwargs):
        pace.count(inputs)
        return training_step(self, model, inputs, *args, **kwargs)

    def counted_prediction_step(self, model, inputs, *args, **kwargs):
        pace.count(inputs)
        return prediction_step(self, model, inputs, *args, **kwargs)

    Trainer.training_step, Trainer.prediction_step = counted_training_step, counted_prediction_step
    if job["who"] == "gemm":
        run_gemm(pace)
    elif job["who"] == "recipe":
        run_recipe(job, pace)
    else:
        run_plain(job, pace)


def run_gemm(pace: Pace) -> None:
    """Multiply matrices; the FLOP per second are reported as tokens in bfloat16 and as rows in float32."""
    while True:
        pace.left = 0
        pace.wait()
        pace.tokens, pace.rows = (measure_gemm(dtype) for dtype in (torch.bfloat16, torch.float32))


def run_recipe(job: dict, pace: Pace) -> None:
    """Run a recipe's `main`; where it is to be timed on prediction, its test split is predicted again and again."""
    name = {"cls": "finetune_cls", "mlm": "pretrain_mlm"}[job["task"]]
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[name] = recipe
    spec.loader.exec_module(recipe)
    flags = {"model_name_or_path": job["model"], "max_length": job["length"], "learning_rate": 1e-5} | job["files"]
    flags |= {"per_device_train_batch_size": job["batch"], "save_strategy": "no", "load_best_model_at_end": "false"}
    flags |= {"num_train_epochs": 1000, "eval_strategy": "no", "logging_steps": 10**6, "disable_tqdm": "true"}
    flags |= {"output_dir": tempfile.mkdtemp()}
    if job.get("evaluate"):
        flags["max_steps"] = pace.left = 1
        predict = recipe.RecipeTrainer.predict

        def predict_again(self, dataset, *args, **kwargs):
            while True:
                pace.left = 0
                pace.wait()
                predict(self, dataset)

        recipe.RecipeTrainer.predict = predict_again
        pace.on_step_end = pace.on_step_begin = lambda *args, **kwargs: None
    recipe.main([f"--{key}={value}" for key, value in flags.items()] + job.get("flags", []))


def run_plain(job: dict, pace: Pace) -> None:
    """Train or predict with a plain Trainer."""
    from datasets import load_dataset
    from transformers import (
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        DataCollatorWithPadding,
        default_data_collator,
    )

    from ptft_recipes.demo import model_path

    best, length = job["who"] == "flags", job["length"]
    source = str(model_path(job["model"])) if job["model"].startswith("demo/") else job["model"]
    tokenizer = AutoTokenizer.from_pretrained(source)
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=job["batch"],
        per_device_eval_batch_size=64 if best else 8,
        num_train_epochs=1000,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10**6,
        use_cpu=not torch.cuda.is_available(),
        bf16=best and job["bf16"],
        train_sampling_strategy="group_by_length" if best and job["task"] == "cls" else "random",
    )
    data = load_dataset(job["files"]["train_file"].rsplit(".")[-1].replace("jsonl", "json").replace("txt", "text"),
                        data_files=job["files"]["train_file"], split="train")  # fmt: skip
    if job["task"] == "cls":
        padding = False if best else "max_length"
        data = data.map(
            lambda rows: dict(tokenizer(rows["text"], padding=padding, truncation=True, max_length=length)),
            batched=True,
            remove_columns=["text"],
        )
        labels = {name: number for number, name in enumerate(sorted(set(data["label"])))}
        data = data.map(lambda row: {"label": labels[row["label"]], "length": len(row["input_ids"])})
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(labels))
        collator = DataCollatorWithPadding(tokenizer) if best else default_data_collator
    else:
        data = data.map(
            lambda rows: tokenizer(rows["text"], return_special_tokens_mask=True),
            batched=True,
            remove_columns=["text"],
        ).map(lambda rows: group_texts(rows, length), batched=True)
        model = AutoModelForMaskedLM.from_pretrained(source)
        collator = DataCollatorForLanguageModeling(tokenizer)
    if "linear_probe" in job.get("flags", []):
        model.base_model.requires_grad_(False)
    if "lora" in job.get("flags", []):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig("SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear"))
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=data, processing_class=tokenizer)
    while job.get("evaluate"):
        pace.left = 0
        pace.wait()
        trainer.predict(data)
    trainer.train()


def group_texts(rows: dict, length: int) -> dict:
    """Concatenate texts and cut them into blocks, as the transformers script for masked language modelling does."""
    joined = {name: list(itertools.chain(*values)) for name, values in rows.items()}
    total = len(joined["input_ids"]) // length * length
    return {name: [values[i : i + length] for i in range(0, total, length)] for name, values in joined.items()}


if __name__ == "__main__":
    main()
