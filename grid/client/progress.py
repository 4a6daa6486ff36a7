"""A line on the terminal while a call waits for long: how much has gone over the network, and for how many seconds.

Only where standard error is a terminal: scripts, logs and notebooks see nothing. A call that is done within `QUIET_S` shows
nothing either. What is counted are sealed bytes of all clients of this process since the call began.
"""

from __future__ import annotations

import concurrent.futures
import sys
import time
from collections.abc import Callable
from typing import Any

QUIET_S = 1.0
STEP_S = 0.2

Traffic = Callable[[], tuple[int, int]]
"""Bytes sent and received so far."""


def watch(waiting: concurrent.futures.Future[Any], traffic: Traffic) -> None:
    """Return once the call is done; show a line meanwhile if it takes long and there is a terminal."""
    if not (sys.stderr is not None and sys.stderr.isatty()):
        return
    since, before = time.monotonic(), traffic()
    if _is_done(waiting, QUIET_S):
        return
    from rich.console import Console  # takes a while to load, and most calls never come here

    with Console(stderr=True).status("", spinner="line") as line:
        while not _is_done(waiting, STEP_S):
            sent, received = (now - then for now, then in zip(traffic(), before, strict=True))
            line.update(waiting_line(sent, received, time.monotonic() - since))


def waiting_line(sent: int, received: int, seconds: float) -> str:
    """`waiting 12 s: 3.2 MB sent, 0.1 MB received`."""
    return f"waiting {seconds:.0f} s: {sent / 1e6:.1f} MB sent, {received / 1e6:.1f} MB received"


def _is_done(waiting: concurrent.futures.Future[Any], seconds: float) -> bool:
    return not concurrent.futures.wait([waiting], timeout=seconds).not_done
