"""An estimate of energy is hours times watts, and no number where the watts are not known."""

import doctest

import pytest

from ptft_recipes import energy
from ptft_recipes.energy import BOARD_WATTS, estimate_energy


@pytest.mark.parametrize(
    ("hardware", "device", "units", "hours", "expected"),
    [
        ("AMD EPYC, 64 cores", "cpu", 16, 2.0, 0.384),
        ("NVIDIA H200 x 8", "cuda", 8, 1.5, 8.4),
        ("NVIDIA H200 NVL x 1", "cuda", 1, 1.0, 0.6),
        ("NVIDIA A100-SXM4-80GB x 2", "cuda", 2, 1.0, 0.8),
        ("NVIDIA A100 80GB PCIe x 1", "cuda", 1, 1.0, 0.3),
        ("Tesla T4 x 1", "cuda", 1, 10.0, 0.7),
        ("NVIDIA GeForce RTX 4090 x 1", "cuda", 1, 1.0, 0.45),
        ("NVIDIA GeForce RTX 4090 Laptop GPU x 1", "cuda", 1, 1.0, None),
        ("NVIDIA L4 x 1", "cuda", 1, 1.0, 0.072),
        ("NVIDIA GB200 x 1", "cuda", 1, 1.0, None),
        ("Apple M3, 8 cores", "mps", 1, 1.0, None),
    ],
)
def test_hours_times_watts(hardware, device, units, hours, expected):
    found = estimate_energy(hardware, device, units, hours * 3600)
    assert found["kilowatt_hours"] == (None if expected is None else pytest.approx(expected))
    if expected is None:
        assert found["assumed"].startswith("nothing is known of what")
    else:
        assert found["assumed"].startswith(f"{units} ")


def test_the_watts_of_every_board_are_those_of_a_card_or_a_module():
    assert all(50 < watts <= 1000 for watts in BOARD_WATTS.values())


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(energy).failed == 0
    assert doctest.testmod(energy).attempted > 0
