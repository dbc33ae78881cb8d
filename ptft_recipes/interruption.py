"""SIGTERM and Ctrl-C, as schedulers and people send them: finish the step, save, stop."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import torch
from transformers import TrainerCallback

from ptft_recipes.errors import StoppedBySignal

PR_SET_PDEATHSIG = 1  # prctl(2)
LAUNCHERS = ("accelerate", "torchrun", "torch.distributed", "deepspeed")
ECHO_SECONDS = 1.0  # within which torchrun repeats the Ctrl-C that the terminal has sent to every process


def follow_launcher() -> None:
    """Let Linux send SIGTERM to this process when its launcher ends.

    `accelerate launch` with one process dies of SIGTERM and leaves the training running behind.
    """
    if sys.platform != "linux" or not ("ACCELERATE_MIXED_PRECISION" in os.environ or _is_under_torchrun()):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # If it died while this process was importing, the parent is now whoever adopts orphans, of another session.
    parent, adopted = os.getppid(), os.getsid(os.getppid()) != os.getsid(0) != os.getpid()
    if adopted and not any(launcher in " ".join(psutil.Process(parent).cmdline()) for launcher in LAUNCHERS):
        signal.raise_signal(signal.SIGTERM)


def remember_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, as it does anyway, and not be forgotten where a library swallows that.

    A bare `except:` in the hashing of `datasets` does.
    """

    def interrupt(number, frame):
        interrupt.told = True
        raise KeyboardInterrupt

    interrupt.told = False
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, interrupt)


def _is_under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def outlive_signals(worker: int, init) -> None:
    """Let a loader worker go on serving when a scheduler sends SIGTERM, or a terminal Ctrl-C, to every process.

    Args:
        worker: Its number.
        init: What else it does when it starts.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()
    init(worker)


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class StopCallback(TrainerCallback):
    """Save and stop at the first step boundary after SIGTERM or Ctrl-C, in all processes at the same step.

    As a context manager it takes the signals over and gives them back. A second Ctrl-C is a KeyboardInterrupt at once.

    At the end of an epoch every checkpoint is taken after the evaluation that is due there, not before: a resumed run
    would not make up for it. And training is left by an exception, because Trainer evaluates after
    `should_training_stop`, in the middle of an epoch too, and could take the result for the best.
    """

    def __init__(self):  # noqa: D107
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self._before = {}
        self._save_at_epoch_end = False

    def __enter__(self):  # noqa: D105
        if getattr(signal.getsignal(signal.SIGINT), "told", False):
            raise KeyboardInterrupt
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread, e.g. of a notebook server
                break
        return self

    def __exit__(self, *error):  # noqa: D105
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.signal is not None and number == signal.SIGINT:
            if _is_under_torchrun() and time.monotonic() - self._since < ECHO_SECONDS:
                return
            raise KeyboardInterrupt
        self.signal, self._since = signal.Signals(number), time.monotonic()
        if os.environ.get("LOCAL_RANK", "0") == "0":  # not by print, which may be interrupted in mid-write
            name = "Ctrl-C" if number == signal.SIGINT else self.signal.name
            os.write(2, f"\n{name}: finishing the step, then saving; Ctrl-C once more leaves at once\n".encode())

    def _agreed(self, args) -> bool:
        """Tell whether any process was told to stop; all processes call this together."""
        if args.world_size == 1:
            return self.signal is not None
        told = torch.tensor(float(self.signal is not None), device=args.device)
        torch.distributed.all_reduce(told)
        if told and self.signal is None:
            self.signal = signal.SIGTERM
        return bool(told)

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102
        if state.epoch % 1 and not control.should_training_stop:  # after the last step too Trainer evaluates an epoch
            control.should_save |= self._agreed(args)
        else:
            self._save_at_epoch_end, control.should_save = control.should_save, False

    def on_epoch_end(self, args, state, control, **kwargs):  # noqa: D102
        control.should_save |= self._agreed(args) or self._save_at_epoch_end
        self._save_at_epoch_end = False

    def on_evaluate(self, args, state, control, **kwargs):  # noqa: D102
        control.should_save |= self._agreed(args)

    def on_save(self, args, state, control, **kwargs):
        """Stop.

        Raises:
            StoppedBySignal: A signal has come; the checkpoint is saved, and being sealed.
        """
        if self._agreed(args):
            raise StoppedBySignal(
                f"{self.signal.name} at step {state.global_step} of {state.max_steps}; saved "
                f"{args.output_dir}/checkpoint-{state.global_step}, the same command goes on from there"
            )

    def stop_after_training(self, args, state) -> None:
        """Stop before what comes after training, if a signal came too late to stop within.

        Raises:
            StoppedBySignal: It came, and the last step is saved.
        """
        if self._agreed(args) and Path(args.output_dir, f"checkpoint-{state.global_step}").exists():
            raise StoppedBySignal(f"{self.signal.name} after the last step; the same command goes on with the scores")
