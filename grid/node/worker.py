"""The process that does one client's work: reads requests from a pipe, answers them in order, one at a time.

It has the datasets in private mappings, and no keys, no sockets but the pipe, and no say in what leaves. Answers are gathered
while more requests have been read already, and written before anything that may take long. A process never ends by itself but
when the node is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import random
import resource
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy
import torch

from grid.errors import GridError
from grid.node.dataset_views import DatasetView
from grid.node.pace import Pace, Pulse
from grid.node.work import FROM_WORKER, TO_WORKER, Done
from grid.node.workspace import DONE, Workspace
from grid.rpc.dispatch import public_error
from grid.settings import NodeSettings
from grid.transport.pipes import BlockingPipe
from grid.wire.codec import decode, encode
from grid.wire.messages import Buffer, CommandFailed, Commands, ErrorInfo, Failure, Message

log = logging.getLogger(__name__)

GATHER_S = 0.005
"""How long answers may wait for others to be written with them."""

OPEN_FILES = 64

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38


class Worker:
    """The loop of the process."""

    def __init__(
        self, pipe: BlockingPipe, pulse: Pulse, sources: Mapping[str, DatasetView], settings: NodeSettings, lost: GridError | None
    ) -> None:
        self._pipe = pipe
        self._frames: list[list[Buffer]] = []
        self._done = 0
        self._written = time.monotonic()
        self._workspace = Workspace(
            sources=sources, settings=settings, pace=Pace(settings, note=pulse.write), on_failed=self._failed, lost=lost
        )

    def run(self) -> NoReturn:
        """Until the node is gone, which raises `EOFError`."""
        while True:
            frame = self._pipe.waiting()
            if frame is None:
                self._flush()
                frame = self._pipe.receive()
            message = decode(frame, TO_WORKER).message
            if isinstance(message, Commands):  # it may take long, and nobody is to wait for that who asked before
                self._flush()
            answer = self._answer(message)
            if answer is DONE:
                self._done += 1
            else:
                self._add(answer)
            if time.monotonic() - self._written > GATHER_S:
                self._flush()

    def _answer(self, message: Message) -> Message:
        try:
            return self._workspace.handle(message)
        except Exception as error:
            return Failure(error=ErrorInfo.of(public_error(error, message)))

    def _failed(self, command: int, error: GridError) -> None:
        self._add(CommandFailed(command=command, error=ErrorInfo.of(error)))

    def _add(self, message: Message) -> None:
        self._count_done()
        parts = encode(message, table=FROM_WORKER)
        self._frames.append(parts)
        if len(parts) > 1:  # it lies in memory that the next request may change
            self._flush()

    def _count_done(self) -> None:
        if self._done:
            self._frames.append(encode(Done(count=self._done), table=FROM_WORKER))
            self._done = 0

    def _flush(self) -> None:
        self._count_done()
        if self._frames:
            self._pipe.send(self._frames)
            self._frames.clear()
        self._written = time.monotonic()


def settle(settings: NodeSettings, parent: int) -> None:
    """Make a process that was just forked a worker: it ends with its parent, has limits, and shares no randomness.

    Memory is limited from what is mapped now. Core files would hold rows, so there are none.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        raise EOFError("the nursery is gone")
    os.nice(settings.niceness)
    with contextlib.suppress(OSError):  # where memory runs out, the kernel is to end this process and not the node
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    torch.set_num_threads(settings.process_threads)
    torch.manual_seed(int.from_bytes(os.urandom(8)))
    random.seed()
    numpy.random.seed(None)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _limit(resource.RLIMIT_DATA, mapped_bytes() + settings.max_process_bytes)


def _limit(which: int, value: int) -> None:
    _, most = resource.getrlimit(which)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(which, (value, value))


def mapped_bytes() -> int:
    """What counts against RLIMIT_DATA at present."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0
