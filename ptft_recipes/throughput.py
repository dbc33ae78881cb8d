"""How fast a recipe trains here: a few of its real steps, their tokens and FLOP, and what the processor could do."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import TrainerCallback

from ptft_recipes.acceleration import measure_gemm, wait_for
from ptft_recipes.cli import run_command
from ptft_recipes.studies import load_main

WARM_UP = 4  # steps that are not timed; the FLOP of the last one are counted, which is slow
# What a run is measured without.
FLAGS = {
    "save_strategy": "no", "load_best_model_at_end": "false", "push_to_hub": "false", "report_to": "none",
    "eval_strategy": "steps", "eval_steps": 10**9,  # early stopping wants a strategy
    "disable_tqdm": "true",
}  # fmt: skip
# FlopCounterMode knows the fused attention of GPUs only.
FUSED_ON_CPUS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
    ),
}


class ThroughputCallback(TrainerCallback):
    """Times steps of a Trainer, writes down what they did, and ends the process.

    A step is timed from the end of the one before it, so that waiting for the loader counts. Its FLOP are those of the
    matrix products and attentions that are really computed, forward and backward, padding and recomputation included.

    Args:
        report: The file to write, as JSON: `step_seconds` and `step_tokens`, those of all processes together;
            `flop_per_token`; `gemm_flop_per_second` of all processes; `device`, `processes`, `precision`, and the
            model's `parameters` and `trainable_parameters`.
        steps: To time.
    """

    def __init__(self, report: Path, steps: int):  # noqa: D107
        self.report, self.steps, self.marks = report, steps, []
        self.counter, self._counting = None, contextlib.ExitStack()

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: D102
        args.include_num_input_tokens_seen = "non_padding"  # on a command line it is a truth value only

    def on_step_begin(self, args, state, control, **kwargs):  # noqa: D102
        if state.global_step == WARM_UP - 1:
            self.counter = FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPUS)
            self._counting.enter_context(self.counter)

    def on_step_end(self, args, state, control, model=None, **kwargs):  # noqa: D102
        self._counting.close()
        device = args.device.type
        wait_for(device)
        self.marks.append((time.perf_counter(), state.num_input_tokens_seen))
        if state.global_step == WARM_UP + self.steps:
            precision = {"no": "fp32"}.get(args.mixed_precision, args.mixed_precision)
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
            peak = measure_gemm(dtype, device)  # while the other processes do the same
            if args.process_index == 0:
                self._write(args.world_size, peak, model, device=device, precision=precision)
            sys.stdout.flush()
            os._exit(0)  # neither saves nor evaluates

    def _write(self, processes: int, peak: float, model: torch.nn.Module, **known: str) -> None:
        seconds, tokens = zip(*self.marks, strict=True)
        timed = range(WARM_UP, len(self.marks))
        counted = tokens[WARM_UP - 1] - tokens[WARM_UP - 2]
        sizes = {"parameters": sum(p.numel() for p in model.parameters())}
        sizes["trainable_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        report = known | sizes | {
            "processes": processes,
            "step_seconds": [seconds[i] - seconds[i - 1] for i in timed],
            "step_tokens": [tokens[i] - tokens[i - 1] for i in timed],
            "flop_per_token": self.counter.get_total_flops() * processes / counted,
            "gemm_flop_per_second": peak * processes,
        }  # fmt: skip
        self.report.write_text(json.dumps(report))


def main() -> None:
    """Run `<report> <steps> <recipe> [flags]`: the recipe as a command, until its steps are timed."""
    report, steps, recipe, *flags = sys.argv[1:]
    transformers.trainer.DEFAULT_CALLBACKS.append(ThroughputCallback(Path(report), int(steps)))
    given = {flag.partition("=")[0] for flag in flags}
    own = FLAGS | {"max_steps": WARM_UP + int(steps), "output_dir": str(Path(report).parent / "run")}
    if "--max_eval_samples" not in given:
        own["max_eval_samples"] = 8  # some recipes score the model before training
    sys.argv = [recipe, *flags, *(f"--{name}={value}" for name, value in own.items())]
    run_command(lambda: load_main(Path(recipe))())


if __name__ == "__main__":
    main()
