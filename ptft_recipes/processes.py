"""What `accelerate launch` makes of a configuration: the processes that it really starts."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from accelerate.commands.config.config_args import default_config_file, load_config_from_file

from ptft_recipes.errors import InputError, one_line
from ptft_recipes.launching import LAUNCH, why_it_failed

LAUNCH_SECONDS = 120
# Each process that a launcher starts writes down how it was started, and ends.
PROBE = """\
import json, os, sys
names = ("WORLD_SIZE", "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION")
with open(os.path.join(sys.argv[1], f"process-{os.getpid()}.json"), "w") as file:
    json.dump({name: os.environ.get(name, "") for name in names}, file)
"""


def read_accelerate_config(file: str | None) -> tuple[str | None, Any]:
    """Return which configuration `accelerate launch` reads, and what it says.

    Args:
        file: That is given to it; None for its default, which `accelerate config` writes.

    Returns:
        Path and configuration; None and None where there is neither.

    Raises:
        InputError: Accelerate cannot read it.
    """
    if file is None and not os.path.isfile(default_config_file):
        return None, None
    path = file or default_config_file
    try:
        return path, load_config_from_file(path)
    except Exception as error:  # of YAML or JSON, or accelerate's own
        raise InputError(f"{path}: {one_line(error)}; `accelerate config` writes a new one") from error


def reaches_other_machines(config) -> str:
    """Say why starting a configuration would do more than start processes here; an empty string if it would not.

    Args:
        config: As `read_accelerate_config` returned it.
    """
    if getattr(config.compute_environment, "value", config.compute_environment) != "LOCAL_MACHINE":
        return "starts a job in the cloud"
    if config.tpu_use_cluster:
        return "starts a cluster of TPUs"
    if config.mpirun_config:
        return "starts processes on the hosts of mpirun"
    if config.num_machines > 1:
        here, machines = config.num_processes // config.num_machines, config.num_machines
        return f"waits for {machines} machines; {here} of {config.num_processes} processes are for this one"
    return ""


def start_processes(file: str | None) -> tuple[list[dict[str, str]], str]:
    """Start a configuration with a script that ends at once, and count who has come.

    What a launcher makes of a configuration is decided in many places of accelerate, and some of them ignore the
    number of processes without a word (`distributed_type: MULTI_CPU`, 1.15.0). So it is tried, not read.

    Args:
        file: For `accelerate launch --config_file`; None for its default.

    Returns:
        Of every process that was started, what its environment tells a recipe; and what the launcher said if there
        is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        probe, log = Path(folder, "probe.py"), Path(folder, "log")
        probe.write_text(PROBE, encoding="utf-8")
        flags = [] if file is None else ["--config_file", str(file)]
        command = [*LAUNCH, *flags, "--main_process_port", "0", str(probe), folder]
        with log.open("w", encoding="utf-8") as output:
            try:
                subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=LAUNCH_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return [], f"nothing came for {LAUNCH_SECONDS} s"
        started = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("process-*.json")]
        return started, "" if started else why_it_failed(log)
