"""Starts `grid` processes for the demo, waits until they are ready, and ends every one of them whatever happens.

Each child watches its standard input, which is a pipe that this process holds: should this process be killed without a
chance to clean up, the pipe closes and the children stop by themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from grid.errors import DeadlineExceeded, NodeUnavailable

READY_S = 45.0
"""A first start reads torch from a cold disk, on a machine where the other processes do the same."""

STOP_S = 5.0
LOG_LINES = 15


class Processes:
    """`grid` commands as child processes. Their stderr goes to `NAME.log` in `folder`. Used by one thread."""

    def __init__(self, folder: Path, stop_s: float) -> None:
        self._folder = folder
        self._stop_s = stop_s
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, arguments: Sequence[str], *, prefix: Sequence[str] = ()) -> None:
        """Start `grid ARGUMENTS --json`; `ready` waits for it. `prefix` is a command that runs it, as `ip netns exec` does."""
        log = self._folder / f"{name}.log"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as errors:
            self._running[name] = subprocess.Popen(
                [*prefix, sys.executable, "-m", "grid", "--with-parent", *arguments, "--json"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,  # Ctrl-C at the terminal is for this process, which then stops the others in order
            )

    def ready(self, name: str) -> dict[str, Any]:
        """What the process says once it is ready. `NodeUnavailable` with the end of its log where it ended instead."""
        process = self._running[name]
        assert process.stdout is not None
        line = _read_line(process.stdout, READY_S)
        if line is None:
            raise DeadlineExceeded(f"{name} was not ready after {READY_S:.0f} s; it last said:\n{self._log_end(name)}")
        if not line:
            raise NodeUnavailable(f"{name} ended before it was ready (exit code {process.wait()}):\n{self._log_end(name)}")
        event: dict[str, Any] = json.loads(line)
        return event

    def __getitem__(self, name: str) -> subprocess.Popen[bytes]:
        return self._running[name]

    def kill(self, name: str) -> None:
        """SIGKILL, as a crash or a power cut would end it. Its name may be used again."""
        process = self._running.pop(name)
        _signal(process, signal.SIGKILL)
        _end(process, time.monotonic())

    def stop(self) -> None:
        """SIGTERM to all but the first, then to that one, which the others need; SIGKILL to what has not ended in time."""
        first, *others = self._running.values() if self._running else (None,)
        end = time.monotonic() + self._stop_s
        for group in (others, [first] if first is not None else []):
            for process in group:
                _signal(process, signal.SIGTERM)
            for process in group:
                _end(process, end)
        self._running.clear()

    def _log_end(self, name: str) -> str:
        lines = (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])


@contextlib.contextmanager
def processes(folder: Path, *, stop_s: float = STOP_S) -> Iterator[Processes]:
    """`Processes` that are gone at the end of the block, where each has `stop_s` to end by itself. SIGTERM ends the block as
    Ctrl-C does."""
    started = Processes(folder, stop_s)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield started
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing may cut the clean-up short
        try:
            started.stop()
        finally:
            signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself
        os.killpg(process.pid, number)


def _end(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait for a process until the deadline, then kill it; close its pipes."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _read_line(stream: IO[bytes], seconds: float) -> bytes | None:
    """The next line; b"" where the stream ended without one, None where nothing complete came in time."""
    end = time.monotonic() + seconds
    line = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, end - time.monotonic())):
                return None
            piece = os.read(stream.fileno(), 4096)
            if not piece:
                return b""
            line += piece
    return bytes(line)
