"""A job under way at this gateway: carries out what its state machine (`federated.coordination`) asks for."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from grid.clock import Clock
from grid.errors import GridError, NodeUnavailable
from grid.federated.coordination import Coordination
from grid.federated.effects import Ask, Call, Dismiss, Effect, Keep, Tell, Work
from grid.ids import JobId, PeerId
from grid.logs import tags
from grid.rpc.dispatch import INTERNAL
from grid.rpc.peer import Peer
from grid.store.base import Store
from grid.tasks import start
from grid.wire.jobs import EndJob
from grid.wire.messages import Message

log = logging.getLogger(__name__)

TURN_S = 0.005
"""How long one job's effects are carried out before others on this loop have their turn."""

FAULT = "something went wrong inside the gateway; its log says what"


class Site(Protocol):
    """What a job needs of the gateway that drives it. `workers` compute, `writer` is one thread."""

    clock: Clock
    store: Store
    workers: ThreadPoolExecutor
    writer: ThreadPoolExecutor
    tasks: asyncio.TaskGroup
    stopping: bool

    def peer_of(self, node: PeerId) -> Peer | None:
        """The session of a node."""
        ...

    def call(self, node: PeerId) -> None:
        """Ask a node to open a session."""
        ...

    def owe(self, node: PeerId, job: JobId) -> None:
        """A node that is away has to be told that a job is over."""
        ...

    def changed(self, job: RunningJob) -> None:
        """What is told of a job has changed."""
        ...


def _nothing(machine: Coordination, now: float) -> list[Effect]:
    """What to tell a machine so that its effects go on."""
    return []


class RunningJob:
    """One job; all methods are called on the loop."""

    def __init__(self, machine: Coordination, site: Site) -> None:
        self.machine = machine
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the job is in the store."""
        self._site = site
        self._queue: deque[Effect] = deque()
        self._performing = False
        self._in_order = asyncio.Lock()
        self._writes_in_order = asyncio.Lock()

    def tell(self, step: Callable[[Coordination, float], Iterable[Effect]]) -> None:
        """Tell the machine something, and carry out what follows. A fault of ours ends this job, and nothing else."""
        if self._site.stopping:
            return
        with tags(job=self.machine.spec.job):
            try:
                self._queue.extend(step(self.machine, self._site.clock.monotonic()))
                if not self._performing:
                    self._perform_all()
            except Exception:
                log.exception("the job is ended by a fault of the gateway's own; the story: %s", self.machine.story.lines()[-20:])
                self._queue.clear()
                self._queue.extend(self.machine.not_kept(GridError(FAULT), self._site.clock.monotonic()))
                self._perform_all()

    def _perform_all(self) -> None:
        """In order, and with pauses for others: a thousand nodes are asked in one stroke."""
        self._performing = True
        loop = asyncio.get_running_loop()
        turn_ends = loop.time() + TURN_S
        try:
            while self._queue:
                if loop.time() >= turn_ends:
                    loop.call_soon(self.tell, _nothing)
                    break
                self._perform(self._queue.popleft())
        finally:
            self._performing = False

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Ask):
            self._ask(effect)
        elif isinstance(effect, Work):
            self._start(self._work(effect), "work")
        elif isinstance(effect, Keep):
            self._start(self._keep(effect), "keep")
        elif isinstance(effect, Call):
            self._site.call(effect.peer)
        elif isinstance(effect, Dismiss):
            self._dismiss(effect)
        else:
            assert isinstance(effect, Tell)
            self._site.changed(self)

    def _start(self, work: Any, what: str) -> None:
        try:
            start(self._site.tasks, work, name=f"{what} of job {self.machine.spec.job}", owner="the coordinator")
        except NodeUnavailable:
            log.debug("the gateway ends, and the job goes on with the next one")

    # ------------------------------------------------------------ nodes

    def _ask(self, ask: Ask) -> None:
        peer = self._site.peer_of(ask.peer)
        if peer is None or peer.closed:
            return  # `left` has told, or will
        try:
            future = peer.start_request(ask.message, timeout_s=ask.timeout_s)
        except GridError as error:
            self._refused(peer, ask, error)
            return
        future.add_done_callback(partial(self._answered, peer, ask))

    def _answered(self, peer: Peer, ask: Ask, future: asyncio.Future[Message]) -> None:
        if future.cancelled() or self._site.peer_of(ask.peer) is not peer:
            return
        error = future.exception()
        if error is None:
            self.tell(lambda machine, now: machine.answered(ask.peer, ask.key, future.result(), now))
        else:
            self._refused(peer, ask, error if isinstance(error, GridError) else GridError(INTERNAL))

    def _refused(self, peer: Peer, ask: Ask, error: GridError) -> None:
        if not peer.closed:  # `left` tells of those that are
            self.tell(lambda machine, now: machine.refused(ask.peer, ask.key, error, now))

    def _dismiss(self, effect: Dismiss) -> None:
        peer = self._site.peer_of(effect.peer)
        job = self.machine.spec.job
        try:
            if peer is None:
                raise NodeUnavailable("it is away")
            peer.notify(EndJob(job=job, text=effect.text[:500]))
        except GridError as error:
            log.info("node %s hears later that a job is over: %s", effect.peer, error)
            self._site.owe(effect.peer, job)

    # ------------------------------------------------------------ threads

    async def _work(self, work: Work) -> None:
        async with self._in_order:
            result = await self._run(self._site.workers, work.run)
        self.tell(lambda machine, now: machine.worked(work.name, result, now))

    async def _keep(self, keep: Keep) -> None:
        async with self._writes_in_order:
            result = await self._run(self._site.writer, partial(self._write, keep))
        if isinstance(result, GridError):
            if not self.started.done():
                self.started.set_exception(result)
                self.started.exception()
            self.tell(lambda machine, now: machine.not_kept(result, now))
        elif not self.started.done():
            self.started.set_result(None)
        self.tell(lambda machine, now: machine.kept(keep.name, now))

    def _write(self, keep: Keep) -> None:
        parts = {name: part() if callable(part) else part for name, part in keep.parts.items()}
        self._site.store.keep_job(self.machine.spec.job, parts)

    async def _run(self, executor: Executor, function: Callable[[], Any]) -> Any:
        """What the function gives, or a `GridError`."""
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function)
        except GridError as error:
            return error
        except Exception:
            log.exception("a job's work failed")
            return GridError(FAULT)
