"""How long one client's work may take: looked at between the steps of a plan, and told to whoever can end a step that hangs.

A plan whose time is over fails alone: its results are not kept, and the session's values are. A single step cannot be
stopped from inside; a `Pulse` in memory that the node shares with the process says what runs and until when it may, and the
node ends the process `kill_grace_s` later. A process that lies about that only gets what a client gets that sends command
after command: time in a process of its own, at low priority.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from grid.errors import NodeUnavailable, QuotaExceeded
from grid.settings import NodeSettings

PULSE = struct.Struct("=dq")
PULSE_BYTES = mmap.PAGESIZE


class Running(NamedTuple):
    """What a process does: the command of this number, which has time until then (monotonic seconds); 0.0 for nothing."""

    until: float
    command: int


class Pulse:
    """A page that a process writes and the node reads."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, PULSE_BYTES)

    def write(self, until: float, command: int) -> None:
        PULSE.pack_into(self._page, 0, until, command)

    def read(self) -> Running:
        """What was written last; a moment's mixture of two is possible."""
        return Running(*PULSE.unpack_from(self._page, 0))

    def close(self) -> None:
        self._page.close()


class Pace:
    """The clock of one workspace. `is_over` says whether the client is gone; `note` gets what `Pulse.write` takes."""

    def __init__(
        self,
        settings: NodeSettings,
        *,
        is_over: Callable[[], bool] = lambda: False,
        note: Callable[[float, int], None] = lambda until, command: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command_s = settings.max_command_s
        self._plan_s = settings.max_plan_s
        self._is_over = is_over
        self._note = note
        self._monotonic = monotonic
        self._plan_ends: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the client is gone, and nobody waits for what is not done yet."""
        return self._is_over()

    def begin(self, command: int) -> None:
        """A single operation, or anything else that is no plan, begins."""
        self._plan_ends = None
        self._note(self._monotonic() + self._command_s, command)

    def begin_plan(self, command: int) -> None:
        """A plan begins."""
        self._plan_ends = self._monotonic() + self._plan_s
        self._note(self._plan_ends, command)

    def step(self) -> None:
        """Raise `QuotaExceeded` where the running plan's time is over, `NodeUnavailable` where the client is gone."""
        if self._is_over():
            raise NodeUnavailable("the client's session is over")
        if self._plan_ends is not None and self._monotonic() > self._plan_ends:
            raise QuotaExceeded(f"the plan ran longer than {time_advice(self._plan_s, 'max_plan_s')}", limit="max_plan_s")

    def end(self) -> None:
        """Nothing runs."""
        self._plan_ends = None
        self._note(0.0, 0)


def time_advice(seconds: float, limit: str) -> str:
    """The end of a sentence about work that took too long."""
    return f"{seconds:g} s ({limit}); give it smaller batches, or ask the node's owner for a higher limit"


class TrainingLimit:
    """How long one round of local training may take: looked at between batches, and told to the node, which ends what hangs."""

    def __init__(self, seconds: float, note: Callable[[float, int], None] = lambda until, request: None) -> None:
        self._seconds = seconds
        self._note = note
        self._until = 0.0

    def begin(self) -> None:
        """It begins."""
        self._until = time.monotonic() + self._seconds
        self._note(self._until, 0)

    def end(self) -> None:
        """Nothing runs."""
        self._note(0.0, 0)

    def check(self) -> None:
        """Raise `QuotaExceeded` where the time is over."""
        if time.monotonic() > self._until:
            raise training_overran(self._seconds)


def training_overran(seconds: float) -> QuotaExceeded:
    """The error of a round that took too long."""
    return QuotaExceeded(f"local training ran longer than {time_advice(seconds, 'max_training_s')}", limit="max_training_s")
