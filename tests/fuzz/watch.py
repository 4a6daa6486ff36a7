"""What a fuzzed process must not do: leave anything behind, take much memory, or say that something went wrong inside it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from types import TracebackType
from typing import Self

MAX_GROWTH = 256 << 20
"""Bytes by which a part of the run may make the process larger, whatever it was sent."""


def open_files() -> list[str]:
    """What each open descriptor of this process is."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            pass  # the listing's own
    return sorted(found)


def resident() -> int:
    """Bytes of memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch(logging.Handler):
    """`async with Watch("what")` around a part of the run. It notes the errors that logs tell of: a handler's end there."""

    def __init__(self, what: str) -> None:
        super().__init__(logging.ERROR)
        self._what = what
        self.internal: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.internal.append(self.format(record))

    async def __aenter__(self) -> Self:
        logging.getLogger("grid").addHandler(self)
        self._asked = logging.getLogger("asyncio")
        self._asked.addHandler(self)
        await self.settle()
        self._tasks, self._files, self._threads = self._counts()
        self._resident = resident()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        logging.getLogger("grid").removeHandler(self)
        self._asked.removeHandler(self)
        if error is None:
            await self.check()

    def _counts(self) -> tuple[int, list[str], int]:
        return len(asyncio.all_tasks()), open_files(), threading.active_count()

    async def settle(self) -> None:
        """Let what has ended be tidied up."""
        gc.collect()
        for _ in range(20):
            await asyncio.sleep(0)

    async def check(self) -> None:
        """Nothing is left, nothing went wrong inside, and memory is as it was."""
        assert not self.internal, f"{self._what}: {len(self.internal)} errors inside, the first: {self.internal[0]}"
        async with asyncio.timeout(20):
            while (now := self._counts())[0] > self._tasks or now[1] != self._files:
                await asyncio.sleep(0.01)  # what ends by itself, such as a thread that closes its file
                gc.collect()
        grown = resident() - self._resident
        assert grown < MAX_GROWTH, f"{self._what}: the process grew by {grown >> 20} MiB"
