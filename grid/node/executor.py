"""Where a node's work for its clients runs: off the event loop, each client's in order, clients side by side.

An `Executor` owns the threads. Each client has a `Lane`, a first-in-first-out queue; one job of a lane runs at a time, so
what belongs to a client (objects, labels) needs no locks. After `SLICE_S` a lane goes to the back, so that a client with a
long queue does not starve the others. The event loop only ever appends to a lane.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from grid.errors import NodeUnavailable, QuotaExceeded

SLICE_S = 0.02

T = TypeVar("T")


class Executor:
    """A bounded number of threads. Use with `async with`: on leaving, running jobs end and no thread is left."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="grid-compute")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)

    def lane(self, name: str, max_queued: int) -> Lane:
        """A new queue, for the running event loop."""
        return Lane(self._pool, name, max_queued, asyncio.get_running_loop())


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Job:
    function: Callable[[], Any]
    done: asyncio.Future[Any]
    weight: int
    context: contextvars.Context  # of whoever submitted it: its log lines say for whom it works


class Lane:
    """One client's queue. All methods are for the event loop; the jobs run in the executor's threads."""

    def __init__(self, pool: ThreadPoolExecutor, name: str, max_queued: int, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._name = name
        self._max_queued = max_queued
        self._loop = loop
        self._lock = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._queued = 0
        self._active = False  # a thread drains this lane, or is about to
        self._held: asyncio.Future[Any] | None = None
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def closed(self) -> bool:
        """Whether the client is gone; long jobs look at it between steps. Safe from any thread."""
        return self._closed

    def submit(self, function: Callable[[], T], weight: int = 1) -> asyncio.Future[T]:
        """Run `function` after everything submitted before; the future has its result. `weight`: commands it stands for.

        Raises `QuotaExceeded` when too many commands wait, `NodeUnavailable` once the lane is closed.
        """
        done: asyncio.Future[T] = self._loop.create_future()
        with self._lock:
            if self._closed:
                raise NodeUnavailable("this session is over")
            if self._queued + weight > self._max_queued:
                raise QuotaExceeded(f"more than {self._max_queued} commands wait here; wait for some before sending more")
            self._jobs.append(_Job(function, done, weight, contextvars.copy_context()))
            self._queued += weight
            self._start()
        return done

    def submit_first(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run `function` before everything that waits, such as what the lane is on hold for, however much that is."""
        done: asyncio.Future[T] = self._loop.create_future()
        with self._lock:
            if self._closed:
                raise NodeUnavailable("this session is over")
            self._jobs.appendleft(_Job(function, done, 0, contextvars.copy_context()))
            self._start()
        return done

    def hold(self, until: asyncio.Future[Any]) -> asyncio.Future[None]:
        """Let nothing after this run before `until` is done, however it ends. The result is done when the hold begins."""
        return self.submit(lambda: self.pause(until))

    def pause(self, until: asyncio.Future[Any]) -> None:
        """For a job of this lane: after it, nothing runs before `until` is done, however it ends."""
        with self._lock:
            self._held = until
        self._tell(until.add_done_callback, self._resume)

    def _resume(self, until: asyncio.Future[Any]) -> None:
        with self._lock:
            self._held = None
            self._start()

    def _start(self) -> None:
        """Have a thread drain the lane, if there is something to drain. The lock is held."""
        if self._active or self._held is not None or not self._jobs:
            return
        self._pool.submit(self._drain)
        self._active = True

    def _drain(self) -> None:
        ends = time.monotonic() + SLICE_S
        while True:
            with self._lock:
                if self._held is not None or not self._jobs or time.monotonic() > ends:
                    self._active = False
                    with contextlib.suppress(RuntimeError):  # the pool is shutting down: the lane is closing, too
                        self._start()
                    if not self._active:
                        self._tell(self._note_idle)
                    return
                job = self._jobs.popleft()
                self._queued -= job.weight
            self._run(job)

    def _run(self, job: _Job) -> None:
        if job.done.cancelled():
            return
        try:
            result = job.context.run(job.function)
        except Exception as error:  # every error of a job belongs to the one who waits for it
            self._tell(_settle, job.done, None, error)
        else:
            self._tell(_settle, job.done, result, None)

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *args)

    def _note_idle(self) -> None:
        with self._lock:
            if not self._active:
                self._idle.set()

    async def close(self) -> None:
        """Drop what waits, and return when the running job has ended."""
        with self._lock:
            self._closed = True
            if self._active:
                self._idle.clear()
            else:
                self._idle.set()
            dropped = list(self._jobs)
            self._jobs.clear()
            self._queued = 0
            self._held = None
        for job in dropped:
            _settle(job.done, None, NodeUnavailable("this session is over"))
        await self._idle.wait()


def _settle(done: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
        return
    done.set_exception(error)
    done.exception()  # marks it as seen: a client may be gone before anybody looks
