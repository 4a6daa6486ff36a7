"""What a fuzzed process must not do: leave anything behind, take much memory, or say that something went wrong inside it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
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
        self._tasks, self._files = asyncio.all_tasks(), open_files()
        self._resident = resident()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        logging.getLogger("grid").removeHandler(self)
        self._asked.removeHandler(self)
        if error is None:
            await self.check()

    def _left(self) -> tuple[list[str], list[str]]:
        """Tasks and open files, sockets among them, that were not there at the start; of standing tasks as many as then."""
        tasks = asyncio.all_tasks() - self._tasks
        more = len(asyncio.all_tasks()) > len(self._tasks)
        before, files = list(self._files), []
        for name in open_files():
            before.remove(name) if name in before else files.append(name)
        return sorted(str(task.get_coro()) for task in tasks) if more else [], files

    async def settle(self) -> None:
        """Let what has ended be tidied up."""
        gc.collect()
        for _ in range(20):
            await asyncio.sleep(0)

    async def check(self) -> None:
        """Nothing is left, nothing went wrong inside, and memory is as it was."""
        assert not self.internal, f"{self._what}: {len(self.internal)} errors inside, the first: {self.internal[0]}"
        for look in range(1000):
            if self._left() == ([], []):
                break
            await asyncio.sleep(0.01)  # what ends by itself, such as a wait for a transfer that has run into its deadline
            if look % 100 == 0:
                gc.collect()
        assert self._left() == ([], []), f"{self._what}: left are {self._left()}"
        grown = resident() - self._resident
        assert grown < MAX_GROWTH, f"{self._what}: the process grew by {grown >> 20} MiB"
