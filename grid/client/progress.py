"""A line on the terminal while a call waits for long: how much has gone over the network, and for how many seconds.

Only where standard error is a terminal: scripts, logs and notebooks see nothing. A call that is done within `QUIET_S` shows
nothing either. What is counted are sealed bytes of all clients of this process since the call began.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

QUIET_S = 1.0
STEP_S = 0.2

Traffic = Callable[[], tuple[int, int]]
"""Bytes sent and received so far."""


_THREAD = threading.local()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Show no line for calls of this thread: it shows how far things are in another way."""
    before = getattr(_THREAD, "quiet", False)
    _THREAD.quiet = True
    try:
        yield
    finally:
        _THREAD.quiet = before


def is_shown() -> bool:
    """Whether there is a terminal to show a line on."""
    return sys.stderr is not None and sys.stderr.isatty() and not getattr(_THREAD, "quiet", False)


def watch(is_done: Callable[[float], bool], traffic: Traffic) -> None:
    """Return once a call is done, which `is_done` waits for so many seconds; show a line on the terminal meanwhile."""
    since, before = time.monotonic(), traffic()
    if is_done(QUIET_S):
        return
    from rich.console import Console  # takes a while to load, and most calls never come here
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as line:
        while not is_done(STEP_S):
            sent, received = (now - then for now, then in zip(traffic(), before, strict=True))
            line.update(waiting_line(sent, received, time.monotonic() - since), refresh=True)


def waiting_line(sent: int, received: int, seconds: float) -> str:
    """`waiting 12 s: 3.2 MB sent, 0.1 MB received`."""
    return f"waiting {seconds:.0f} s: {sent / 1e6:.1f} MB sent, {received / 1e6:.1f} MB received"
