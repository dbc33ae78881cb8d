"""The random generators of a process: as they were, after something that nobody is to notice."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def generator_states() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy and PyTorch, those of every GPU included."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def restore_generators(states: dict[str, Any]) -> None:
    """Put the generators back.

    Args:
        states: As `generator_states` returned them.
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


@contextlib.contextmanager
def same_draws_afterwards() -> Iterator[None]:
    """Let what is done inside draw as it likes, and what comes after it draw as if that had not been."""
    states = generator_states()
    try:
        yield
    finally:
        restore_generators(states)
