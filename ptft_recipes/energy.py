"""How much electricity a run took, estimated from its hours and from what its hardware draws at full load."""

import re
from typing import Any

# Of a CPU of any make, by Lannelongue et al., Green Algorithms (Advanced Science, 2021), TDP_cpu.csv.
WATTS_PER_CORE = 12
# What a board draws at most, by the data sheets of NVIDIA, by the name that CUDA gives it; the first that fits counts.
BOARD_WATTS = {
    r"\bB200": 1000, r"H200 NVL": 600, r"H200|H100 80GB HBM3": 700, r"H100 NVL": 400, r"H100 PCIe": 350,
    r"A100.SXM": 400, r"A100 80GB PCIe": 300, r"A100.PCIE": 250, r"V100.SXM": 300, r"V100.PCIE|P100.PCIE": 250,
    r"L40S": 350, r"L40$|A40$|A10G|RTX A6000|RTX 6000 Ada": 300, r"A10$": 150, r"L4$": 72, r"Tesla T4": 70,
    r"RTX 5090$": 575, r"RTX 4090$": 450, r"RTX 3090$": 350, r"RTX 4080$|RTX 3080$": 320,
}  # fmt: skip


def estimate_energy(hardware: str, device: str, units: int, seconds: float) -> dict[str, Any]:
    """Estimate the electricity of a run: its hours, times what its processor draws at full load.

    The rest of the machine, memory, disks and cooling, is not in it. A processor that waits draws less, a shared one
    also works for others.

    Args:
        hardware: As `describe_environment` names it.
        device: The type of the device: `cpu`, `cuda`, ...
        units: Cores of the CPU that computed, or GPUs.
        seconds: Of the whole run.

    Returns:
        `{"kilowatt_hours", "assumed"}`; the number is None where nothing is known of the hardware.

    Source: Lannelongue et al., Green Algorithms: Quantifying the Carbon Footprint of Computation (Advanced Science,
    2021), section 2, without its terms for memory and for the data centre.

    >>> estimate_energy("AMD EPYC, 2 cores", "cpu", units=2, seconds=3600)
    {'kilowatt_hours': 0.024, 'assumed': '2 cores at 12 W'}
    """
    name = hardware.rpartition(" x ")[0] if device == "cuda" else device
    watts = next((watts for pattern, watts in BOARD_WATTS.items() if re.search(pattern, name)), None)
    kind = "GPU" if device == "cuda" else "core"
    watts = WATTS_PER_CORE if device == "cpu" else watts
    if watts is None:
        return {"kilowatt_hours": None, "assumed": f"nothing is known of what {name} draws"}
    assumed = f"{units} {kind}{'s' * (units > 1)} at {watts} W"
    return {"kilowatt_hours": round(units * watts * seconds / 3.6e6, 6), "assumed": assumed}
