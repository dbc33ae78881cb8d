"""The client of the Hub, which waits for an answer only so long."""

import os
import sys
import time
from collections.abc import Iterator
from functools import partial

import datasets
import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils._http import default_client_factory

# Bytes per second; an answer that stays below this counts as none, though something of it always comes.
SLOWEST = 1000.0


def limit_waiting(seconds: float) -> None:
    """Give the client timeouts: in Python it has none, and in Rust many minutes of tries; it reads these once.

    Args:
        seconds: After which a request without an answer has failed, or one whose answer drips.
    """
    set_client_factory(partial(_client_with_timeout, seconds))
    for name, value in {
        "READ_TIMEOUT": f"{seconds:.0f}s", "RETRY_MAX_DURATION": f"{seconds:.0f}s", "RETRY_MAX_ATTEMPTS": "2",
    }.items():  # fmt: skip
        os.environ.setdefault(f"HF_XET_CLIENT_{name}", value)


def hide_bars() -> None:
    """Show no progress bars where nobody sees them move: in a log they are many lines, with codes for a terminal."""
    if not sys.stderr.isatty():
        if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:  # else somebody has decided
            disable_progress_bars()
        datasets.disable_progress_bars()


def _client_with_timeout(seconds: float) -> httpx2.Client:
    client = default_client_factory()
    client.timeout = seconds

    def hurry(response: httpx2.Response) -> None:
        response.stream = _InTime(response.stream, seconds)

    client.event_hooks["response"].append(hurry)
    return client


class _InTime(httpx2.SyncByteStream):
    """The body of an answer, which must not drip: a timeout of the client begins anew with each byte."""

    def __init__(self, stream: httpx2.SyncByteStream, seconds: float):
        self._stream, self._seconds = stream, seconds

    def __iter__(self) -> Iterator[bytes]:
        waited, received, parts = 0.0, 0, iter(self._stream)
        while True:
            start = time.monotonic()
            part = next(parts, None)
            waited += time.monotonic() - start  # whoever reads may take their time
            if part is None:
                return
            received += len(part)
            if waited > self._seconds + received / SLOWEST:
                raise httpx2.ReadTimeout(f"the answer drips: {received} bytes in {waited:.0f} s")
            yield part

    def close(self) -> None:
        self._stream.close()
