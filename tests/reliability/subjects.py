"""What is interrupted: every kind of training, each on a tiny model, and how the end of a run is compared."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from conftest import ROOT
from reliability.killing import run

COMMON = ["--learning_rate", "5e-3", "--per_device_train_batch_size", "8", "--bf16", "false"]
COMMON += ["--use_cpu", "true", "--disable_tqdm", "true", "--num_train_epochs", "2", "--save_total_limit", "2"]
COMMON += ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "5", "--save_steps", "5"]
CLS = ["--max_train_samples", "96"]  # 12 steps an epoch: checkpoints in mid-epoch, and one at step 24
MLM = ["--max_train_samples", "30"]
DATA = {
    "finetune_cls": "topics", "finetune_token_cls": "tagged", "finetune_seq2seq": "pairs", "finetune_qa": "questions",
    "finetune_clm": "prompts",
}  # fmt: skip
LENGTHS = {"finetune_seq2seq": ["--max_source_length", "16", "--max_target_length", "12"]}
SUBJECTS = {
    "full": ("finetune_cls", "bert", CLS),
    "random batches": ("finetune_cls", "bert", [*CLS, "--train_sampling_strategy", "random"]),
    "lora": ("finetune_cls", "bert", [*CLS, "--tuning", "lora", "--tuning_kwargs", "lora_dropout=0.1"]),
    "bottleneck": ("finetune_cls", "bert", [*CLS, "--tuning", "bottleneck", "--tuning_kwargs", "reduction_factor=4"]),
    "gradient accumulation": ("finetune_cls", "bert", [
        *CLS, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"]),
    "loader workers": ("finetune_cls", "bert", [*CLS, "--dataloader_num_workers", "2"]),
    "epochs": ("finetune_cls", "bert", [
        *CLS, "--eval_strategy", "epoch", "--save_strategy", "epoch", "--num_train_epochs", "4",
        "--early_stopping_patience", "2"]),
    "token classification": ("finetune_token_cls", "bert", [*CLS, "--max_length", "16", "--stride", "4"]),
    "sequence to sequence": ("finetune_seq2seq", "seq2seq", [*CLS, "--metric_for_best_model", "chrf"]),
    "question answering": ("finetune_qa", "bert", [*CLS, "--stride", "8"]),
    "max_steps": ("finetune_cls", "bert", [
        *CLS, "--eval_strategy", "epoch", "--save_strategy", "epoch", "--max_steps", "20"]),
    "mlm": ("pretrain_mlm", "bert", MLM),
    "mlm, packed": ("pretrain_mlm", "bert", [*MLM, "--packing", "true"]),
    "mlm, streamed": ("pretrain_mlm", "bert", ["--streaming", "true", "--max_steps", "24"]),
    "mlm, max_steps": ("pretrain_mlm", "bert", [*MLM, "--max_steps", "13"]),
    "replaced tokens": ("pretrain_rtd", "electra", [*MLM, "--generator_size", "0.5"]),
    "next token, packed": ("pretrain_clm", "llama", [*MLM, "--fim_rate", "0.5"]),
    "completions": ("finetune_clm", "llama", CLS),
    "sentence order": ("pretrain_sentences", "bert", MLM),
    # 24 rows with 3 copies each; the batches of "augmentation" are changed anew at every step, too.
    "augmentation": ("finetune_cls", "bert", [
        "--max_train_samples", "24", "--augment", "random_deletion=0.2", "random_swap=0.2", "typos=0.5", "copies=3",
        "span_cutoff=0.2", "mixup=0.4"]),
    "augmentation of tags": ("finetune_token_cls", "bert", [
        "--max_train_samples", "24", "--max_length", "16", "--stride", "4", "--augment", "random_deletion=0.2",
        "random_swap=0.3", "copies=3", "span_cutoff=0.2"]),
    "gap filling": ("pretrain_span", "t5", [*MLM, "--dataloader_num_workers", "2"]),
}  # fmt: skip


class Subject:
    """One kind of training: its command line, and the end that every run of it must have."""

    def __init__(self, name, checkpoints, files, folder):
        self.recipe, family, flags = SUBJECTS[name]
        data = files[DATA.get(self.recipe, "corpus")]
        self.argv = ["--model_name_or_path", checkpoints[family], *COMMON]
        self.argv += LENGTHS.get(self.recipe, ["--max_length", "32"])
        self.argv += [token for split, path in data.items() for token in (f"--{split}_file", path)] + flags
        self.folder = folder
        assert self.run("whole") == 0, self.log("whole")
        self.whole = self.end("whole")
        writes = json.loads(self.log("whole").splitlines()[-1])
        self.writes, self.saves = writes["count"], writes["saves"]

    def output_dir(self, name: str) -> Path:
        return self.folder / name

    def run(self, name: str, *flags: str, **kwargs) -> int:
        argv = [*self.argv, "--output_dir", str(self.output_dir(name)), *flags]
        return run(self.recipe, argv, self.folder / f"{name}.log", **kwargs)

    def launch(self, name: str, processes: int, *flags: str, before: Sequence[str] = ()) -> subprocess.Popen:
        """Start a run under `accelerate launch`, in a process group of its own as a scheduler does it.

        `before` is a script that starts the recipe.
        """
        config = ROOT / "accelerate_configs" / ("cpu.yaml" if processes == 1 else "multi_cpu.yaml")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        command += ["--main_process_port", "0"] * (processes > 1)
        command += [*before, str(ROOT / "recipes" / f"{self.recipe}.py"), *self.argv]
        command += ["--output_dir", str(self.output_dir(name)), *flags]
        with open(self.folder / f"{name}.log", "a", encoding="utf-8") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def end(self, name: str) -> dict:
        """Return all that a run ends with and that an interruption must not change: weights, scores, predictions."""
        folder = self.output_dir(name)
        files = [*folder.glob("*.safetensors"), *folder.glob("generator/*.safetensors"), *folder.glob("predictions/*")]
        end = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        results = json.loads((folder / "results.json").read_text())
        kept = ("steps", "best_step", "validation", "lineage")
        return end | {"metrics": results["metrics"]} | {name: results["run"][name] for name in kept}
