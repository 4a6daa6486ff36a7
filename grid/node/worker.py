"""The process that does one client's work: reads requests from a pipe, answers them in order, one at a time.

It has the datasets in private mappings, and no keys, no sockets but the pipe, and no say in what leaves. Answers are gathered
while more requests have been read already, and written before anything that may take long. A process never ends by itself but
when the node is gone.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Mapping
from typing import NoReturn

import numpy
import torch

from grid.confinement import confine
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
GPU_OPEN_FILES = 1024


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


def settle(settings: NodeSettings, parent: int, *, gpu: bool = False) -> None:
    """Make a process that was just forked a worker: it ends with its parent, has limits, and shares no randomness.

    With `gpu` it may map and open what a driver needs; the watch over its memory is then all that bounds it.
    """
    confine(
        parent,
        memory_bytes=None if gpu else settings.max_process_bytes,
        open_files=GPU_OPEN_FILES if gpu else OPEN_FILES,
        niceness=settings.niceness,
    )
    torch.set_num_threads(settings.process_threads)
    torch.manual_seed(int.from_bytes(os.urandom(8)))
    random.seed()
    numpy.random.seed(None)
