"""The connections between the processes of a run: a peer that is gone is noticed, and told in one line."""

import os
import socket
import sys

import psutil
from torch.distributed import DistBackendError, DistNetworkError

from ptft_recipes.errors import LostProcessError, one_line

# Seconds: asked after IDLE of silence, then every INTERVAL; given up after SILENCE without an answer.
IDLE, INTERVAL, SILENCE = 10, 5, 30
# Seconds that a process which has lost another one waits: torchrun calls the first to end the root cause, and one that
# fails closes its connections before it ends.
LINGER = 5


def keep_connections_alive() -> int:
    """Let the kernel notice a machine that is gone within half a minute, on every TCP connection of this process.

    Without it a process that waits for another machine's gradients waits for `--ddp_timeout`, 30 minutes. A shorter
    timeout would end the waiting that is in order too: for one process to tokenize, or to write a large checkpoint.

    Returns:
        How many connections there are.
    """
    if sys.platform != "linux":
        return 0
    connections = [entry for entry in psutil.Process().net_connections("tcp") if entry.status == "ESTABLISHED"]
    for connection in connections:
        with socket.socket(fileno=os.dup(connection.fd)) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, (SILENCE - IDLE) // INTERVAL)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE)  # of what was sent
    return len(connections)


def as_lost_process(error: RuntimeError) -> LostProcessError | None:
    """Return what a broken connection to another process means; None for any other error.

    Args:
        error: gloo raises plain RuntimeErrors that name the file they come from; NCCL and the store their own kinds.
    """
    is_lost = isinstance(error, DistBackendError | DistNetworkError) or "gloo/transport" in str(error)
    if not is_lost:
        return None
    # After the place in gloo's source, and before its advice.
    reason = one_line((str(error).partition("] ")[2] or str(error)).partition(". ")[0], 120)
    return LostProcessError(
        f"another process of this run is gone, or its machine cannot be reached ({reason}); its own log says why. "
        "The newest sealed checkpoint is intact, and the same command goes on from there"
    )
