"""Starts a recipe with FSDP over CPUs: `fsdp_on_cpus.py RECIPE FLAGS`.

accelerate chooses FSDP among GPUs only, though torch's own `fully_shard` works over gloo. With `use_configured_state`
Trainer takes the processes as they are declared here.
"""

import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from ptft_recipes import cli

state = PartialState(cpu=True)
state.distributed_type = DistributedType.MULTI_GPU
cli.check_processes = lambda *args: None
_, recipe, *flags = sys.argv
sys.argv = [recipe, *flags, "--accelerator_config", '{"use_configured_state": true}']
runpy.run_path(recipe, run_name="__main__")
