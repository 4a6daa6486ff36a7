"""Sessions of nodes and clients at the coordinator."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Protocol

from grid.crypto.cards import Card
from grid.errors import GridError, NodeUnavailable, QuotaExceeded
from grid.ids import JobId, PeerId
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.settings import GatewaySettings
from grid.tasks import start
from grid.wire.jobs import (
    CancelJob,
    FetchWeights,
    JobCard,
    JobList,
    JobProgress,
    JobStatus,
    JobWeights,
    ListJobs,
    RoundReport,
    StartJob,
    WatchJob,
)

log = logging.getLogger(__name__)

REPORTS_AT_ONCE = 500
MAX_LISTED = 200
"""Jobs in one answer, the newest."""

MAX_WATCHED = 64
"""Jobs that one session may watch at once."""


class Jobs(Protocol):
    """The coordinator, as sessions know it."""

    tasks: asyncio.TaskGroup
    settings: GatewaySettings
    stopping: bool

    def node_came(self, node: PeerId, peer: Peer) -> None: ...

    def node_went(self, node: PeerId, peer: Peer) -> None: ...

    async def begin(self, message: StartJob, client: Card) -> JobCard: ...

    def card_of(self, job: JobId, client: Card | None = None) -> JobCard: ...

    def cards(self, client: Card | None = None) -> list[JobCard]: ...

    def cancel(self, job: JobId, client: Card) -> JobCard: ...

    async def weights(self, job: JobId, which: str, client: Card) -> JobWeights: ...

    async def reports(self, job: JobId) -> Sequence[RoundReport]: ...

    def change_of(self, job: JobId) -> asyncio.Event: ...


class NodeSession:
    """A node: it is asked, and asks for nothing."""

    handlers = Handlers({})

    def __init__(self, jobs: Jobs, card: Card) -> None:
        self._jobs = jobs
        self._card = card
        self._peer: Peer | None = None

    def came(self, peer: Peer) -> None:
        """The session is open."""
        self._peer = peer
        self._jobs.node_came(self._card.id, peer)

    def went(self) -> None:
        """The session is over."""
        if self._peer is not None:
            self._jobs.node_went(self._card.id, self._peer)


class ClientSession:
    """A client: it starts jobs and looks at them."""

    def __init__(self, jobs: Jobs, card: Card) -> None:
        self.handlers = HANDLERS
        self._jobs = jobs
        self._card = card
        self._peer: Peer | None = None
        self._open = asyncio.Event()
        self._starting = asyncio.Lock()
        self._watched: dict[JobId, asyncio.Task[None]] = {}

    def came(self, peer: Peer) -> None:
        """The session is open."""
        self._peer = peer
        peer.limit_messages(6 * self._jobs.settings.max_job_bytes + (1 << 20))  # a model, its strategy's state, plans
        self._open.set()

    def went(self) -> None:
        """The session is over; its jobs go on."""
        for task in self._watched.values():
            task.cancel()

    async def start_job(self, message: StartJob) -> JobStatus:
        """A new job. One at a time: each has a model that is hashed and copied."""
        async with self._starting:
            return JobStatus(card=await self._jobs.begin(message, self._card))

    def watch_job(self, message: WatchJob) -> JobStatus:
        """Tell of a job from now on."""
        card = self._jobs.card_of(message.job, self._card)
        older = self._watched.pop(message.job, None)
        if older is not None:
            older.cancel()
        if len(self._watched) >= MAX_WATCHED:
            raise QuotaExceeded(f"one session watches {MAX_WATCHED} jobs at most")
        work = self._watch(message.job, max(0, message.after))
        self._watched[message.job] = start(self._jobs.tasks, work, name=f"watching job {message.job}", owner="the coordinator")
        return JobStatus(card=card)

    def cancel_job(self, message: CancelJob) -> JobStatus:
        """End a job."""
        return JobStatus(card=self._jobs.cancel(message.job, self._card))

    def fetch_weights(self, message: FetchWeights) -> Awaitable[JobWeights]:
        """The model of a job."""
        return self._fetch(message)

    async def _fetch(self, message: FetchWeights) -> JobWeights:
        await self._open.wait()
        assert self._peer is not None
        await self._peer.drained()  # one that does not read costs one model, not many
        return await self._jobs.weights(message.job, message.which, self._card)

    def list_jobs(self, message: ListJobs) -> JobList:
        """The jobs of a client."""
        return JobList(jobs=tuple(self._jobs.cards(self._card)[:MAX_LISTED]))

    async def _watch(self, job: JobId, first: int) -> None:
        """Send what is new each time that something has changed, as fast as the client reads, until the job is over."""
        await self._open.wait()
        peer = self._peer
        assert peer is not None
        try:
            while not peer.closed and not self._jobs.stopping:
                change = self._jobs.change_of(job)
                card = self._jobs.card_of(job)
                reports = (await self._jobs.reports(job))[first : first + REPORTS_AT_ONCE]
                more = len(reports) == REPORTS_AT_ONCE
                peer.notify(JobProgress(card=card, first=first, reports=tuple(reports), more=more))
                first += len(reports)
                await peer.drained()
                if more:
                    continue
                if card.ended:
                    break
                await change.wait()
        except NodeUnavailable:
            log.debug("a client that watched job %s is gone", job)
        except GridError as error:
            log.info("job %s is not told of any more: %s", job, error)
        except Exception:
            log.exception("job %s cannot be told of", job)
            peer.close_soon(GridError("the gateway cannot read this job; its log says why"))
        finally:
            if self._watched.get(job) is asyncio.current_task():
                del self._watched[job]


HANDLERS = Handlers(
    {
        StartJob: ClientSession.start_job,
        WatchJob: ClientSession.watch_job,
        CancelJob: ClientSession.cancel_job,
        FetchWeights: ClientSession.fetch_weights,
        ListJobs: ClientSession.list_jobs,
    }
)
