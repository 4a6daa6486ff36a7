"""A client's channel to the gateway's coordinator of jobs: open while there is something to ask or a job to watch.

After a loss it is made again, what was asked is asked again (each request of a job may come twice), and each watched job is told
from the report after the last one that came. Everything here runs on the client's loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from grid.client.absence import Absence
from grid.clock import Clock
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import DeadlineExceeded, GridError, InvalidRequest, LocalProtocolError, NodeUnavailable, NotFound, WireError
from grid.ids import JobId
from grid.rpc.channel import time_limit
from grid.rpc.dispatch import Handlers
from grid.rpc.hop import Hop
from grid.rpc.job_channel import job_channel
from grid.rpc.peer import Peer
from grid.rpc.reconnect import SETTLED_S, Backoff
from grid.settings import ClientSettings
from grid.tasks import start
from grid.transport.base import Dial
from grid.wire.jobs import JobProgress, JobStatus, StartJob, WatchJob
from grid.wire.messages import Message

log = logging.getLogger(__name__)

Reply = TypeVar("Reply", bound=Message)

LINGER_S = 2.0
"""A channel on which nothing is watched and nothing was asked for so long is closed."""

WATCHING_S = 60.0


class Watcher(Protocol):
    """What is told of a job; `jobs.Job` is one."""

    @property
    def count(self) -> int:
        """How many reports it has."""
        ...

    @property
    def ended(self) -> bool: ...

    def told(self, message: JobProgress) -> None: ...

    def answered(self, message: JobStatus) -> None: ...

    def lost(self, error: GridError) -> None:
        """Nothing more will be told."""


class JobLine:
    """See the module. `hop` gives the client's connection to the gateway, which says who the coordinator is.

    `gateway` is how the gateway is called. `absence` is not None while there is no channel and somebody wants one.
    """

    def __init__(
        self,
        *,
        dial: Dial | None,
        hop: Callable[[], Awaitable[Hop]],
        me: LocalIdentity,
        trust: Trust,
        settings: ClientSettings,
        clock: Clock,
        tasks: asyncio.TaskGroup,
        gateway: str = "the gateway",
    ) -> None:
        self._dial, self._hop, self._gateway = dial, hop, gateway
        self._me, self._trust, self._settings, self._clock, self._tasks = me, trust, settings, clock, tasks
        self.absence: Absence | None = None
        self._turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watched: weakref.WeakValueDictionary[JobId, Watcher] = weakref.WeakValueDictionary()
        self._peer: Peer | None = None
        self._ready: asyncio.Future[Peer] | None = None
        self._keeping = False
        self._asking = 0
        self._used_at = 0.0

    async def ask(self, message: Message, kind: type[Reply], *, again: bool = True) -> Reply:
        """The coordinator's answer; asked `again` where the channel is lost in between.

        Raises what it refuses by, `NodeUnavailable`, `DeadlineExceeded`, and what a join raises.
        """
        deadline = self._clock.monotonic() + self._settings.timeout_s
        self._asking += 1
        try:
            while True:
                peer = await self._open()
                try:
                    return await self._asked(peer, message, kind, max(0.0, deadline - self._clock.monotonic()))
                except NodeUnavailable:
                    if not again or not peer.closed or self._clock.monotonic() >= deadline:
                        raise
        finally:
            self._asking -= 1
            self._used_at = self._clock.monotonic()

    async def _asked(self, peer: Peer, message: Message, kind: type[Reply], timeout_s: float) -> Reply:
        reply = await peer.request(message, timeout_s=timeout_s)
        if not isinstance(reply, kind):
            raise WireError(f"the gateway answered {message.tag!r} with {reply.tag!r}")
        return reply

    async def begin(self, message: StartJob, job: JobId) -> JobStatus:
        """Start a job. Where the channel is lost in between, the gateway may have it already."""
        try:
            return await self.ask(message, JobStatus, again=False)
        except NodeUnavailable as lost:
            log.info("whether the gateway has taken job %s is asked, since the channel was lost: %s", job, lost)
        try:
            return await self.ask(WatchJob(job=job), JobStatus)
        except NotFound:
            return await self.ask(message, JobStatus)

    def watch(self, job: JobId, watcher: Watcher) -> None:
        """Have a job told from now on, and after each loss of the gateway, until it ends or nobody holds the watcher."""
        self._watched[job] = watcher
        if self._peer is not None and not self._peer.closed:
            self._start(self._watch(self._peer, job), "grid job")
        else:
            self._keep()

    async def attach(self, job: JobId, watcher: Watcher) -> None:
        """As `watch`, and return once the gateway has said that there is such a job. Raises `NotFound`, and as `ask`."""
        self._watched[job] = watcher
        try:
            watcher.answered(await self.ask(WatchJob(job=job, after=watcher.count), JobStatus))
        except BaseException:
            self._watched.pop(job, None)
            raise

    # ------------------------------------------------------------ patience

    def moment(self, timeout_s: float | None) -> float:
        """When a wait of so many seconds from now ends, for `wait` and `reached`; None: never."""
        return math.inf if timeout_s is None else self._clock.monotonic() + timeout_s

    async def wait(self, news: asyncio.Future[Any], until: float = math.inf) -> None:
        """Return once `news` is there. While the gateway is away says so, once.

        Raises `DeadlineExceeded` at the moment `until`, `NodeUnavailable` after `job_patience_s` without the gateway.
        """
        began = self._clock.monotonic()
        while not news.done():
            now, moment = self._clock.monotonic(), until
            if now >= until:
                raise DeadlineExceeded("the job has not ended in time; it goes on, and may be waited for again")
            if self.absence is not None:
                patience = max(began, self.absence.since) + self._settings.job_patience_s
                moment = min(until, self.absence.watch(patience))
            awaited: set[asyncio.Future[Any]] = {news, self._turn}
            timer = asyncio.ensure_future(self._clock.sleep(moment - now)) if moment < math.inf else None
            try:
                await asyncio.wait(awaited if timer is None else awaited | {timer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if timer is not None:
                    timer.cancel()

    async def reached(self, until: float) -> None:
        """Return once there is a channel; raises as `wait`."""
        if self._peer is not None and not self._peer.closed:
            return
        ready = self._wish()
        self._asking += 1
        try:
            await self.wait(ready, until)
            ready.result()
        finally:
            self._asking -= 1
            self._used_at = self._clock.monotonic()

    def _missed(self) -> None:
        if self.absence is None:
            self._turned(Absence(self._gateway, self._clock.monotonic(), self._clock))

    def _turned(self, absence: Absence | None) -> None:
        """The gateway has gone, or is back."""
        self.absence = absence
        self._turn.set_result(None)
        self._turn = asyncio.get_running_loop().create_future()

    # ------------------------------------------------------------ the channel

    def _wish(self) -> asyncio.Future[Peer]:
        """The channel, as soon as there is one."""
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
        self._keep()
        return self._ready

    async def _open(self) -> Peer:
        if self._peer is not None and not self._peer.closed:
            return self._peer
        ready = self._wish()
        limit = self._settings.reconnect_s
        try:
            async with time_limit(self._clock, limit, "waiting for the gateway"):
                return await asyncio.shield(ready)
        except DeadlineExceeded:
            why = f": {self.absence.why.message}" if self.absence is not None and self.absence.why is not None else ""
            raise NodeUnavailable(f"the gateway's coordinator of jobs was not reached within {limit:g} s{why}") from None

    def _keep(self) -> None:
        if not self._keeping:
            self._start(self._kept(), "grid jobs")
            self._keeping = True

    def _start(self, work: Awaitable[None], name: str) -> None:
        start(self._tasks, work, name=name, owner="the client")  # type: ignore[arg-type]

    async def _kept(self) -> None:
        backoff = Backoff(self._clock, random.Random())
        self._missed()
        try:
            while True:
                since = self._clock.monotonic()
                try:
                    await self._connected()
                except (NodeUnavailable, DeadlineExceeded) as error:
                    if self.absence is not None:
                        self.absence.why = error
                    log.info("the gateway's coordinator of jobs is not reachable: %s", error)
                if not self._wanted():
                    break
                self._missed()
                if self._clock.monotonic() - since >= SETTLED_S:
                    backoff.settled()
                await backoff.wait()
        except GridError as error:
            self._failed(error)
        except Exception:
            log.exception("the channel to the coordinator ended in an unexpected way")
            self._failed(LocalProtocolError("the channel to the coordinator failed by a fault of this program"))
        except asyncio.CancelledError:
            self._failed(NodeUnavailable("the client was closed; the job goes on, and g.job(id) finds it again"))
            raise
        finally:
            self._keeping = False
            self._turned(None)

    def _wanted(self) -> bool:
        return self._asking > 0 or any(not one.ended for one in list(self._watched.values()))

    async def _connected(self) -> None:
        """One channel, until it ends or is not needed."""
        if self._dial is None:
            raise InvalidRequest("this client was made without a way to the coordinator of jobs (dial_jobs)")
        hop = await self._hop()
        async with job_channel(
            self._dial,
            me=self._me,
            trust=self._trust,
            grid=hop.grid,
            gateway=hop.gateway,
            handlers=Handlers({JobProgress: JobLine._told}),
            context=self,
            limits=self._settings.session,
            clock=self._clock,
        ) as peer:
            self._peer = peer
            self._turned(None)
            self._used_at = self._clock.monotonic()
            if self._ready is not None:
                self._ready.set_result(peer)
                self._ready = None
            try:
                async with asyncio.TaskGroup() as tasks:
                    for job, watcher in list(self._watched.items()):
                        if not watcher.ended:
                            tasks.create_task(self._watch(peer, job), name="grid job")
                    idle = tasks.create_task(self._close_when_idle(peer), name="grid jobs idle")
                    await peer.wait_closed()
                    idle.cancel()
            finally:
                self._peer = None

    async def _close_when_idle(self, peer: Peer) -> None:
        while self._wanted() or self._clock.monotonic() - self._used_at < LINGER_S:
            await self._clock.sleep(LINGER_S)
        peer.close_soon()

    async def _watch(self, peer: Peer, job: JobId) -> None:
        watcher = self._watched.get(job)
        if watcher is None:
            return
        try:
            reply = await self._asked(peer, WatchJob(job=job, after=watcher.count), JobStatus, WATCHING_S)
        except (NodeUnavailable, DeadlineExceeded) as error:
            log.info("job %s is watched again as soon as the gateway is back: %s", job, error)
            peer.close_soon()
        except GridError as error:
            watcher.lost(error)
        else:
            watcher.answered(reply)

    def _told(self, message: JobProgress) -> None:
        watcher = self._watched.get(message.card.id)
        if watcher is not None:
            watcher.told(message)

    def _failed(self, error: GridError) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.set_exception(error)
            ready.exception()  # somebody may have stopped waiting
        for watcher in list(self._watched.values()):
            if not watcher.ended:
                watcher.lost(error)
