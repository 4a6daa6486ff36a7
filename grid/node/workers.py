"""The processes that a node's sessions work in, as the node has them: starts the nursery, asks it for workers, ends them.

A worker is ended for good reason only: its session is over, one operation overran its limit, or it takes more memory than it
may. The watch looks at those that work, a few times a second. When the nursery itself is gone its workers go with it, and the
next session gets a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from grid.confinement import environment_for
from grid.errors import DatasetError, GridError, NodeUnavailable, QuotaExceeded, WireError
from grid.node.dataset_views import DatasetView
from grid.node.nursery_messages import (
    CANNOT_FORK,
    MAX_BYTES,
    MAX_FILES,
    OUT_OF_MEMORY,
    SESSIONS,
    TABLE,
    Ended,
    Fork,
    Forked,
    Household,
    Prepare,
    Ready,
    Share,
)
from grid.node.pace import PULSE_BYTES, Pulse, Running
from grid.node.sharing import SharedData
from grid.settings import NodeSettings
from grid.tensors.mapped import TensorFile
from grid.transport.pipes import End, LoopPipe, pipe, receive_files, send_files
from grid.wire.codec import decode, encode
from grid.wire.messages import Buffer, ErrorInfo, Message

log = logging.getLogger(__name__)

WATCH_S = 0.1
"""How often workers that work are looked at."""

STATUS_S = 2.0
"""How long an end waits for the word of how it came about."""

ENDING_S = 5.0
"""Time for a process that was told to end."""

CONTROL_S = 5.0
"""The nursery answers at once; one that does not is gone."""

ROOM = 1 << 20
"""Bytes of a frame from a worker beside the message that the session's limit bounds."""

SLACK_BYTES = 64 << 20
"""Memory over the limit after which a worker is ended: the limit itself makes single allocations fail before."""

Spawn = Callable[[Coroutine[Any, Any, None], str], None]


class Worker:
    """One process. `ended` is its exit code, minus the signal that ended it, or None where nobody can tell.

    `cause`: why this node ended it, if it did.
    """

    def __init__(
        self, number: int, end: End, pulse: Pulse, max_bytes: int, user: WorkerUser, trains: bool = False
    ) -> None:
        self.number = number
        self.trains = trains
        self.cause: GridError | None = None
        self.ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.pid = 0
        self._inherited = 0
        self._pulse = pulse
        self._process = -1
        self._killed = False
        self._last: Running | None = None
        self.user = user
        self.pipe = LoopPipe(end, max_bytes=max_bytes, on_frame=user.on_frame, on_end=user.on_end)

    @property
    def running(self) -> Running:
        """What it says that it does, or did last."""
        return self._last or self._pulse.read()

    def has_begun(self, pid: int, process: int) -> None:
        """It runs; `process` is a descriptor of it."""
        self.pid, self._process = pid, process
        self._inherited = self._private_bytes()
        if self._killed:
            self.kill()

    def kill(self, cause: GridError | None = None) -> None:
        """End it now."""
        self._killed = True
        self.cause = self.cause or cause
        if self._process >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def has_ended(self, status: int | None) -> None:
        """It is gone."""
        if not self.ended.done():
            self.ended.set_result(status)
        if self._process >= 0:
            os.close(self._process)
            self._process = -1
        if self._last is None:
            self._last = self._pulse.read()
            self._pulse.close()

    async def explained(self) -> GridError:
        """The error for its end, once that is known or for `STATUS_S` was not; then it is killed. The pipe has ended before."""
        await asyncio.wait([self.ended], timeout=STATUS_S)
        self.kill()
        if self.cause is not None:
            return self.cause
        status = self.ended.result() if self.ended.done() else None
        if status == OUT_OF_MEMORY:
            return self.user.overate(self.running)
        if status == CANNOT_FORK:
            return NodeUnavailable("the node's machine has no room for a further process; try again later")
        if status == -signal.SIGKILL:
            return self.user.lost("was killed from outside, perhaps because the machine ran out of memory")
        return self.user.lost(f"was ended by signal {-status}" if status is not None and status < 0 else "ended")

    def taken_bytes(self) -> int:
        """Memory of its own that it has taken since it began; neither modules nor datasets are part of it."""
        return self._private_bytes() - self._inherited

    def _private_bytes(self) -> int:
        if not self.pid:
            return 0
        try:
            with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
                _, resident, shared, *_ = file.read().split()
        except OSError:  # it is gone
            return 0
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")


class WorkerUser(Protocol):
    """What a worker's session does with it. `is_busy`: whether it waits for something from the worker.

    `overran`, `overate` and `lost` make the error for an end: for its limits, or for nothing that the node did; `how` it ended
    is "was killed ..." or the like.
    """

    def on_frame(self, frame: Buffer) -> None: ...
    def on_end(self, wrong: str) -> None: ...
    def is_busy(self) -> bool: ...
    def overran(self, running: Running) -> GridError: ...
    def overate(self, running: Running) -> GridError: ...
    def lost(self, how: str) -> GridError: ...


class Workers:
    """All workers of one node, of one kind. Use with `async with`: no process is left after."""

    def __init__(
        self, sources: Mapping[str, DatasetView], settings: NodeSettings, spawn: Spawn, kind: str = SESSIONS
    ) -> None:
        self._kind = kind
        self._sources = sources
        self._settings = settings
        self._spawn = spawn
        self._data: SharedData | None = None
        self._nursery: Nursery | None = None
        self._workers: dict[int, Worker] = {}
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        try:
            self._data = await asyncio.to_thread(SharedData, self._sources)
            self._nursery = Nursery(self._kind, self._data, self._settings, self._heard, self._lost)
        except OSError as error:
            raise DatasetError(f"the datasets cannot be shared with the processes of sessions: {error.strerror}") from error
        self._spawn(self._watch(), "watch over workers")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            await nursery.close()
        for worker in list(self._workers.values()):
            self._forget(worker, None)
        if self._data is not None:
            self._data.close()
            self._data = None

    def __len__(self) -> int:
        return len(self._workers)

    def start(
        self, user: WorkerUser, lost: GridError | None, files: Sequence[int] = (), *, trains: bool = False
    ) -> Worker:
        """A new worker, given copies of these open files; what it is sent waits until it runs. `trains`: it is for a federated
        job, whose number is bounded elsewhere. Raises `QuotaExceeded` where too many sessions have one already."""
        if self._data is None:
            raise NodeUnavailable("the node is closing")
        sessions = sum(not worker.trains for worker in self._workers.values())
        if self._kind == SESSIONS and not trains and sessions >= self._settings.max_processes:
            raise QuotaExceeded(
                f"{sessions} sessions of clients work at this node already (max_processes); try again later"
            )
        if self._nursery is None:
            self._nursery = Nursery(self._kind, self._data, self._settings, self._heard, self._lost)
        page = os.memfd_create("grid-pulse", os.MFD_CLOEXEC)
        ours, theirs = pipe()
        try:
            os.ftruncate(page, PULSE_BYTES)
            pulse = Pulse(page)
            number = next(self._numbers)
            self._nursery.say(
                Fork(number=number, lost=None if lost is None else ErrorInfo.of(lost), trains=trains),
                theirs.fileno(),
                page,
                *files,
            )
        except OSError as error:
            ours.close()
            raise NodeUnavailable("the node cannot start a process for this work") from error
        finally:
            os.close(page)
            theirs.close()
        worker = Worker(number, ours, pulse, self._settings.session.max_message_bytes + ROOM, user, trains)
        self._workers[number] = worker
        return worker

    def _heard(self, message: Message, files: Sequence[int]) -> None:
        """From the nursery."""
        worker = self._workers.get(message.number) if isinstance(message, Forked | Ended) else None
        match message:
            case Forked() if worker is not None and len(files) == 1:
                worker.has_begun(message.pid, files[0])
                return
            case Ended() if worker is not None:
                self._forget(worker, message.status)
        for fd in files:
            os.close(fd)

    def _forget(self, worker: Worker, status: int | None) -> None:
        self._workers.pop(worker.number, None)
        worker.has_ended(status)

    def _lost(self) -> None:
        """The nursery is gone, and its workers with it."""
        if self._nursery is not None:
            log.error("the process that workers are forked from has ended; %s in progress lose their values", self._kind)
            self._spawn(self._nursery.close(), "clearing up a nursery")
            self._nursery = None
        for worker in list(self._workers.values()):
            self._forget(worker, None)

    # ------------------------------------------------------------ the watch

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for worker in list(self._workers.values()):
                if worker.cause is None and worker.user.is_busy():
                    self._look_at(worker, now)

    def _look_at(self, worker: Worker, now: float) -> None:
        running = worker.running
        if 0 < running.until < now - self._settings.kill_grace_s:
            log.warning("worker %d is ended: it overran its limit of time", worker.number)
            worker.kill(worker.user.overran(running))
        elif worker.taken_bytes() > self._settings.max_process_bytes + SLACK_BYTES:
            log.warning("worker %d is ended: it takes more memory than it may", worker.number)
            worker.kill(worker.user.overate(running))


def memory_advice(settings: NodeSettings) -> str:
    """What to say of work that took too much memory."""
    return (
        f"took more memory than the {settings.max_process_bytes} bytes that a session's process may (max_process_bytes); free"
        " values, give it smaller batches, or ask the node's owner for a higher limit"
    )


class Nursery:
    """The process that workers are forked from, and the pipe to it, which only this object writes to.

    Raises `OSError` where it cannot be started. `on_lost` is called once, when it is gone before `close`.
    """

    def __init__(
        self,
        kind: str,
        data: SharedData,
        settings: NodeSettings,
        on_message: Callable[[Message, Sequence[int]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._ready = False
        self._loop = asyncio.get_running_loop()
        self._control, theirs = pipe()
        self._control.settimeout(CONTROL_S)
        try:
            self._process = subprocess.Popen(
                # -P: no module comes from the working folder.
                [sys.executable, "-P", "-m", "grid.node.nursery", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment_for(os.environ),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # signals of the terminal are for the node, which ends its workers itself
            )
        except OSError:
            self._control.close()
            raise
        finally:
            theirs.close()
        self._loop.add_reader(self._control.fileno(), self._readable)
        for first in range(0, len(data.files), MAX_FILES):
            some = slice(first, first + MAX_FILES)
            self.say(Share(sizes=tuple(data.sizes[some])), *data.files[some])
        household = b"".join(encode(Household(kind=kind, sources=data.sources, settings=_as_json(settings)), table=TABLE))
        file = TensorFile.of(torch.frombuffer(bytearray(household), dtype=torch.uint8))
        try:
            self.say(Prepare(size=len(household)), file.fd)
        finally:
            file.close()

    def say(self, message: Message, *files: int) -> None:
        """Send a message. Raises `OSError` once the nursery is gone."""
        send_files(self._control, encode(message, table=TABLE), files)

    def _readable(self) -> None:
        try:
            received = receive_files(self._control, MAX_BYTES)
        except (OSError, EOFError, WireError):
            received = None
        if received is None:
            self._loop.remove_reader(self._control.fileno())
            self._on_lost()
            return
        frame, files = received
        message = decode(frame, TABLE).message
        self._ready = self._ready or isinstance(message, Ready)
        self._on_message(message, files)

    async def close(self) -> None:
        """End it, and with it all that it forked."""
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        if not self._ready:  # it has no workers, and would import to the end before it looks
            self._process.kill()
        try:
            await asyncio.to_thread(self._process.wait, ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)


def _as_json(settings: NodeSettings) -> str:
    """The settings as a table that `grid.settings.load` reads."""
    plain = dataclasses.asdict(settings)
    texts = {key: str(value) if isinstance(value, Path) else value for key, value in plain.items()}
    return json.dumps({key: value for key, value in texts.items() if value is not None})
