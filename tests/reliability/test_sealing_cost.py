"""What a seal costs, measured side by side: runs that seal their checkpoints and runs that do not, in turns."""

import shutil
import statistics
import time

import pytest
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainingArguments

from ptft_recipes.training import RecipeTrainer

ROUNDS, SAVES, STEPS_PER_SAVE = 4, 5, 4


class TimedTrainer(RecipeTrainer):
    """RecipeTrainer that keeps, in seconds, what each save took, and each save with the steps up to the next."""

    def __init__(self, *args, sealed, **kwargs):
        super().__init__(*args, **kwargs)
        self.sealed, self.saves, self.starts = sealed, [], []

    def _save_checkpoint(self, model, trial):
        self.starts.append(time.perf_counter())
        super()._save_checkpoint(model, trial)
        self.saves.append(time.perf_counter() - self.starts[-1])

    def _seal_and_rotate(self, folder, best):
        if self.sealed:
            super()._seal_and_rotate(folder, best)
        else:
            for path in folder.parent.glob("checkpoint-*"):  # as Trainer rotates
                if path != folder:
                    shutil.rmtree(path)


@pytest.mark.slow
def test_a_seal_adds_at_most_a_third_to_a_save_of_a_hundred_million_weights(tmp_path):
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert"))
    assert model.num_parameters() > 100e6
    count = 4 * STEPS_PER_SAVE * SAVES
    rows = {"input_ids": [[2, 5, 6, 3]] * count, "attention_mask": [[1] * 4] * count, "labels": [0, 1] * (count // 2)}
    saves, cycles = {True: [], False: []}, {True: [], False: []}
    for turn in range(2 * ROUNDS):
        sealed = turn % 2 == 0
        folder = tmp_path / str(turn)
        arguments = TrainingArguments(
            str(folder), max_steps=STEPS_PER_SAVE * SAVES, save_steps=STEPS_PER_SAVE, save_total_limit=1,
            logging_strategy="no", disable_tqdm=True, per_device_train_batch_size=4, use_cpu=True,
        )  # fmt: skip
        trainer = TimedTrainer(model, arguments, train_dataset=Dataset.from_dict(rows), sealed=sealed)
        trainer.train()
        saves[sealed] += trainer.saves[1:]
        cycles[sealed] += [end - start for start, end in zip(trainer.starts[1:], trainer.starts[2:], strict=False)]
        shutil.rmtree(folder)
    save = {sealed: statistics.median(times) for sealed, times in saves.items()}
    cycle = {sealed: statistics.median(times) for sealed, times in cycles.items()}
    print(f"save: {save[True]:.2f} s sealed, {save[False]:.2f} s not, ratio {save[True] / save[False]:.2f}")
    print(f"with {STEPS_PER_SAVE} steps: {cycle[True]:.2f} s, {cycle[False]:.2f} s", end=", ")
    print(f"more by {(cycle[True] - cycle[False]) / save[False]:.2f} of a save")
    assert save[True] < 4 / 3 * save[False]
