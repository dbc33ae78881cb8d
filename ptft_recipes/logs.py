"""What a run says: progress bars on a terminal, one readable line per event everywhere."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from transformers import ProgressCallback, TrainingArguments
from transformers import logging as transformers_logging

logger = logging.getLogger(__name__)


def log_to_stdout() -> logging.Logger:
    """Let the library's own lines reach standard output, once, and return its logger."""
    library = logging.getLogger("ptft_recipes")
    if not library.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        library.addHandler(handler)
        library.propagate = False
    library.setLevel(logging.INFO)
    return library


@contextlib.contextmanager
def log_into(path: Path) -> Iterator[None]:
    """Let the library's own lines go to the end of a file instead: those of a run within another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    library = logging.getLogger("ptft_recipes")
    before, library.handlers = library.handlers, [logging.FileHandler(path, encoding="utf-8")]
    try:
        yield
    finally:
        library.handlers[0].close()
        library.handlers = before


def configure_logging(training_args: TrainingArguments) -> None:
    """Let the library's own lines reach standard output from one process, and quiet what would repeat them."""
    library = log_to_stdout()
    library.setLevel(logging.INFO if training_args.should_log else logging.WARNING)
    # PEFT 0.21 asks transformers by the old name, in every run with an adapter.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    if training_args.log_level == "passive":
        transformers_logging.set_verbosity_error()  # its warnings on missing heads: load_model says it in one line
    if not sys.stderr.isatty() or training_args.disable_tqdm or not training_args.should_log:
        import datasets

        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
        training_args.disable_tqdm = True


class LogCallback(ProgressCallback):
    """Progress bars on a terminal, and one readable line per log entry everywhere."""

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: D102
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, **kwargs):  # noqa: D102
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):  # noqa: D102
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):  # noqa: D102
        line = format_log(logs or {}, state.global_step, state.max_steps)
        if line and state.is_world_process_zero:
            if self.training_bar is not None:
                self.training_bar.write(line)
            else:
                logger.info(line)


def format_log(logs: dict[str, float], step: int, max_steps: int) -> str:
    """Format a log entry of Trainer as one line; an empty string for one that says nothing new.

    >>> format_log({"loss": 0.51234, "learning_rate": 1e-4, "epoch": 0.5}, 60, 480)
    'step 60/480 | epoch 0.50 | loss 0.5123 | learning_rate 0.0001'
    """
    if "train_samples_per_second" in logs:  # not its runtime, which the count of tokens brings into every entry
        return f"trained for {logs['train_runtime']:.0f} s, {logs['train_samples_per_second']:.0f} samples/s"
    hidden = ("epoch", "total_flos")
    values = {
        name.removeprefix("eval_"): value
        for name, value in logs.items()
        if name not in hidden and "/" not in name and not name.endswith(("_runtime", "_per_second", "_time"))
    }
    if not values:
        return ""
    where = f"step {step}/{max_steps} | epoch {logs.get('epoch', 0):.2f} | "
    kind = "validation: " if any(name.startswith("eval_") for name in logs) else ""
    shown = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
    return where + kind + " | ".join(shown)
