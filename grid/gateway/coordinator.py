"""The coordinator of federated jobs: meets clients and nodes on job channels, and drives the rounds of each job.

A job belongs to the client that signed it and outlives its session. All of it is in the gateway's store, so one that was
killed goes on where it was. The coordinator sees a job's model and sums over nodes; of a single node's update it sees masks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from grid.clock import Clock
from grid.crypto.cards import NODE, Card
from grid.crypto.identity import Trust
from grid.errors import InvalidRequest, NotFound, QuotaExceeded
from grid.federated.coordination import Coordination
from grid.federated.progress import OVER, Progress
from grid.federated.spec import JobSpec
from grid.gateway.job_keeping import Kept, read_kept, read_reports, read_weights, start_part
from grid.gateway.job_order import check_sums, read_model, read_order, read_strategy
from grid.gateway.job_sessions import ClientSession, NodeSession
from grid.gateway.running_job import RunningJob
from grid.ids import JobId, PeerId
from grid.rpc.peer import Peer
from grid.settings import GatewaySettings
from grid.store.base import Store
from grid.store.memory import MemoryStore
from grid.wire.jobs import EndJob, JobCard, JobWeights, RoundReport, StartJob

log = logging.getLogger(__name__)

WORKERS = 32
ANSWER_ROOM = 4 << 20
"""Bytes of a node's answer beside its vector."""

GROWTH = 16
"""By how much the most rows of a node may grow while a job goes on: a node that announces more spoils no sum with it."""

TICK_S = 0.25
SWEEP_S = 60.0


class Coordinator:
    """All jobs of one gateway. Enter it on the gateway's loop.

    `call` asks a node that has joined to open a job channel. `rows` says how many rows a node has announced for a dataset, None
    where it is not known to have one of that name. `name` is how a peer is called. `told` hears of each change of a job.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        trust: Trust,
        clock: Clock,
        store: Store | None,
        call: Callable[[PeerId], None],
        rows: Callable[[PeerId, str], int | None],
        name: Callable[[PeerId], str],
        told: Callable[[JobCard], None] = lambda card: None,
    ) -> None:
        self.settings = settings
        self.trust = trust
        self.clock = clock
        self.store = store if store is not None else MemoryStore()
        # A user's own strategy may take its time, and others' sums must not wait for it.
        self.workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="grid-gateway-jobs")
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="grid-gateway-job-store")
        self.tasks = asyncio.TaskGroup()
        self.stopping = False
        self.call = call
        self._rows, self._name, self._told = rows, name, told
        self._nodes: dict[PeerId, Peer] = {}
        self._longest: dict[PeerId, int] = {}
        self._jobs: dict[JobId, RunningJob] = {}
        self._starting: dict[JobId, PeerId] = {}
        self._over: dict[JobId, Kept] = {}
        self._changes: dict[JobId, asyncio.Event] = {}
        self._unsaid: set[JobId] = set()
        self._owed: dict[PeerId, set[JobId]] = {}
        self._swept = 0.0
        self._past_rounds = self._past_rounds_lost = 0
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._open.callback(self.writer.shutdown)
        self._open.callback(self.workers.shutdown)
        self._open.push_async_callback(self._close_strategies)
        await self._open.enter_async_context(self.tasks)
        for kept in await asyncio.get_running_loop().run_in_executor(self.writer, read_kept, self.store):
            self._restore(kept)
        self._ticking = self.tasks.create_task(self._tick(), name="jobs of the gateway")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._ticking.cancel()
        await self._open.aclose()

    async def _close_strategies(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self.workers, job.machine.close) for job in self._jobs.values()))

    def stop(self) -> None:
        """Do nothing more; jobs go on with the next gateway on the same store."""
        self.stopping = True
        for event in list(self._changes.values()):
            event.set()

    # ------------------------------------------------------------ sessions

    def receive(self, card: Card) -> NodeSession | ClientSession:
        """A node or a client has come."""
        return NodeSession(self, card) if card.role == NODE else ClientSession(self, card)

    def node_came(self, node: PeerId, peer: Peer) -> None:
        """A node has opened a channel; an older one is not used any more."""
        older = self._nodes.get(node)
        self._nodes[node] = peer
        for job_id in self._owed.pop(node, ()):
            peer.notify(EndJob(job=job_id))
        self._longest[node] = 0
        self._limit(node)
        for job in self._jobs_of(node):
            if older is not None:
                job.tell(lambda machine, now: machine.left(node, now))
            job.tell(lambda machine, now: machine.came(node, now))
        if older is not None:
            older.close_soon(InvalidRequest("a newer job channel of this node took the place of this one"))

    def _limit(self, node: PeerId) -> None:
        """Take no longer answers in a node's session than its largest job may have needed: a ring vector of 64 bits."""
        sizes = [job.machine.model.weights.size for job in self._jobs_of(node)]
        self._longest[node] = max(8 * max(sizes, default=0) + ANSWER_ROOM, self._longest[node])
        self._nodes[node].limit_messages(self._longest[node])

    def node_went(self, node: PeerId, peer: Peer) -> None:
        """A channel of a node has ended."""
        if self._nodes.get(node) is not peer:
            return
        del self._nodes[node], self._longest[node]
        for job in self._jobs_of(node):
            job.tell(lambda machine, now: machine.left(node, now))

    def node_joined(self, node: PeerId) -> None:
        """A node has joined the grid: call it, if a job waits for it, or it has not heard of the end of one."""
        if node not in self._nodes and (node in self._owed or self._jobs_of(node)):
            self.call(node)

    def peer_of(self, node: PeerId) -> Peer | None:
        """The session of a node."""
        return self._nodes.get(node)

    def owe(self, node: PeerId, job: JobId) -> None:
        """A node that is away has to be told that a job is over."""
        self._owed.setdefault(node, set()).add(job)

    def _jobs_of(self, node: PeerId) -> list[RunningJob]:
        return [job for job in self._jobs.values() if not job.machine.over and node in job.machine.spec.nodes]

    # ------------------------------------------------------------ starting

    async def begin(self, message: StartJob, client: Card) -> JobCard:
        """A client's new job; it is kept when this returns."""
        card = self.trust.verify_card(message.card, wall=self.clock.wall())
        loop = asyncio.get_running_loop()
        most = self.settings.max_job_bytes
        order = await loop.run_in_executor(self.workers, read_order, message, card, self.clock.wall(), most)
        spec = order.spec
        if spec.client != client.id:
            raise InvalidRequest("a job is started by the client that signed it, and another one has signed this")
        self._check_room(spec)
        self._check_nodes(spec)
        self._starting[spec.job] = spec.client
        try:
            check_sums(spec, message.weights.shape, self._largest(spec))
            strategy = read_strategy(spec, message.strategy)
            try:
                model = await loop.run_in_executor(self.workers, read_model, message, strategy, order.envelope)
            except BaseException:
                self.workers.submit(strategy.close)
                raise
            job = RunningJob(self._machine(Kept(order, strategy, model, Progress(), ())), self)
            self._jobs[spec.job] = job
            for node in filter(self._nodes.__contains__, spec.nodes):
                self._limit(node)
        finally:
            del self._starting[spec.job]
        job.tell(lambda machine, now: machine.start(now, start_part(message)))
        job.tell(lambda machine, now: [effect for node in self._nodes for effect in machine.came(node, now)])
        self.changed(job)
        await asyncio.shield(job.started)
        log.info("job %s of %s begins: %d rounds, %d nodes", spec.job, client, spec.rounds, len(spec.nodes))
        return job.machine.card()

    def _machine(self, kept: Kept) -> Coordination:
        assert kept.order is not None and kept.strategy is not None and kept.model is not None
        spec = kept.order.spec
        most = GROWTH * self._largest(spec)
        return Coordination(
            kept.order,
            kept.strategy,
            kept.model,
            progress=kept.progress,
            reports=kept.reports or (),
            largest=lambda: min(self._largest(spec), most),
            name=self._name,
            wall=self.clock.wall,
        )

    def _largest(self, spec: JobSpec) -> int:
        """The most rows that any node has for a job, as far as they have announced."""
        rows: Counter[PeerId] = Counter()
        for node, dataset in spec.datasets:
            rows[node] += self._rows(node, dataset) or 0
        return max(1, *rows.values())

    def _check_room(self, spec: JobSpec) -> None:
        if spec.job in self._jobs or spec.job in self._over or spec.job in self._starting:
            raise InvalidRequest("there has been a job of this id; each job has a new one")
        owners = [job.machine.spec.client for job in self._jobs.values()] + list(self._starting.values())
        if len(owners) >= self.settings.max_jobs or owners.count(spec.client) >= self.settings.max_jobs_per_client:
            raise QuotaExceeded(
                f"as many jobs are under way as this gateway takes: {self.settings.max_jobs} at once,"
                f" {self.settings.max_jobs_per_client} of one client; wait for one, or cancel it"
            )

    def _check_nodes(self, spec: JobSpec) -> None:
        for node, dataset in spec.datasets:
            if self._rows(node, dataset) is None:
                raise NotFound(f"node {self._name(node)} is not known here, or has no dataset {dataset!r}")

    def _restore(self, kept: Kept) -> None:
        if kept.progress.state in OVER:
            self._over[kept.spec.job] = kept
            return
        job = RunningJob(self._machine(kept), self)
        job.started.set_result(None)
        self._jobs[kept.spec.job] = job
        job.tell(lambda machine, now: machine.resume(now, kept.parts))

    # ------------------------------------------------------------ what is asked

    def _find(self, job: JobId, client: Card) -> JobSpec:
        running, over = self._jobs.get(job), self._over.get(job)
        spec = running.machine.spec if running is not None else over.spec if over is not None else None
        if spec is None or not (self.trust.is_dev or spec.client == client.id):
            raise NotFound("there is no job of this id, or it is another client's")
        return spec

    def card_of(self, job: JobId, client: Card | None = None) -> JobCard:
        """What is known of a job. Raises `NotFound`, also for a job of another client."""
        if client is not None:
            self._find(job, client)
        running, over = self._jobs.get(job), self._over.get(job)
        if running is not None:
            return running.machine.card()
        if over is None:
            raise NotFound("there is no job of this id")
        return over.progress.card(over.spec)

    def story(self, job: JobId) -> list[str]:
        """What happened last in a job that is under way, the newest first; [] for others."""
        running = self._jobs.get(job)
        if running is None:
            return []
        now = running.machine.story.lines()
        return [f"{line.now - self.clock.monotonic():.1f} s [{line.number}] {line.text}" for line in reversed(now)]

    @property
    def rounds(self) -> int:
        """Rounds that came to an end since the gateway started."""
        return self._past_rounds + sum(job.machine.rounds for job in self._jobs.values())

    @property
    def rounds_lost(self) -> int:
        """Rounds that were lost since the gateway started."""
        return self._past_rounds_lost + sum(job.machine.rounds_lost for job in self._jobs.values())

    def cancel(self, job: JobId, client: Card) -> JobCard:
        """End a job."""
        self._find(job, client)
        running = self._jobs.get(job)
        if running is not None:
            running.tell(lambda machine, now: machine.cancel(now))
        return self.card_of(job)

    def cards(self, client: Card | None = None) -> list[JobCard]:
        """All jobs that a client may see, or all, the newest first."""
        found = [job.machine.card() for job in self._jobs.values()]
        found += [kept.progress.card(kept.spec) for kept in self._over.values()]
        if client is not None and not self.trust.is_dev:
            found = [card for card in found if card.client == client.id]
        return sorted(found, key=lambda card: -card.started)

    async def weights(self, job: JobId, which: str, client: Card) -> JobWeights:
        """The model of a job, the last or the best. Raises `NotFound`."""
        spec = self._find(job, client)
        if which not in ("last", "best"):
            raise InvalidRequest("a job has a model 'last' and a model 'best'")
        running, over = self._jobs.get(job), self._over.get(job)
        progress = running.machine.progress if running is not None else over.progress if over is not None else Progress()
        best = which == "best" and progress.best >= 0
        if running is not None and (not best or progress.best == progress.done):
            return JobWeights(round=progress.done, weights=running.machine.model.frame)
        found = progress.best if best else progress.done
        frame = await asyncio.get_running_loop().run_in_executor(self.writer, read_weights, self.store, spec.job, found)
        return JobWeights(round=found, weights=frame)

    # ------------------------------------------------------------ watching

    async def reports(self, job: JobId) -> Sequence[RoundReport]:
        """All reports of a job so far."""
        running = self._jobs.get(job)
        if running is not None:
            return running.machine.reports
        kept = self._over.get(job)
        if kept is None:
            raise NotFound("there is no job of this id")
        if kept.reports is not None:
            return kept.reports
        return await asyncio.get_running_loop().run_in_executor(self.writer, read_reports, self.store, job)

    def change_of(self, job: JobId) -> asyncio.Event:
        """Set at the next change of a job: take it before looking."""
        return self._changes.setdefault(job, asyncio.Event())

    def changed(self, job: RunningJob) -> None:
        """What is told of a job has changed."""
        machine = job.machine
        spec = machine.spec
        card = machine.card()
        if machine.settled and self._jobs.get(spec.job) is job:
            del self._jobs[spec.job]
            self.workers.submit(machine.close)
            self._past_rounds += machine.rounds
            self._past_rounds_lost += machine.rounds_lost
            self._over[spec.job] = Kept(None, None, None, machine.progress, None, given=spec)
            log.info("job %s is over after %d rounds: %s %s", spec.job, card.round, card.state, card.text)
        event = self._changes.pop(spec.job, None)
        if event is not None:
            event.set()
        self._unsaid.add(spec.job)

    # ------------------------------------------------------------ time

    async def _tick(self) -> None:
        while True:
            await self.clock.sleep(TICK_S)
            for job in list(self._jobs.values()):
                job.tell(lambda machine, now: machine.tick(now))
            try:
                self._say()
                if self.clock.monotonic() >= self._swept + SWEEP_S:
                    self._swept = self.clock.monotonic()
                    await self._sweep()
            except Exception:
                log.exception("what jobs have done could not be told, or old ones not be forgotten")  # and the grid goes on

    def _say(self) -> None:
        """Tell what has changed, for each job once in a tick: rounds may be many in a second."""
        unsaid, self._unsaid = self._unsaid, set()
        for job in unsaid:
            if job in self._jobs or job in self._over:
                self._told(self.card_of(job))

    async def _sweep(self) -> None:
        """Forget jobs that have been over for long, or are too many."""
        newest = sorted(self._over.values(), key=lambda kept: -kept.progress.ended)
        limit = self.clock.wall() - self.settings.keep_jobs_s
        most = self.settings.max_kept_jobs
        own: Counter[PeerId] = Counter()
        turns = []
        for kept in newest:
            own[kept.spec.client] += 1
            turns.append((own[kept.spec.client], -kept.progress.ended, kept))
        turns.sort(key=lambda turn: turn[:2])  # of the client that has most, the oldest go first
        for place, (_, _, kept) in enumerate(turns):
            if place >= most or kept.progress.ended < limit:
                await asyncio.get_running_loop().run_in_executor(self.writer, self.store.forget_job, kept.spec.job)
                self._over.pop(kept.spec.job, None)
                for node in kept.spec.nodes:
                    if node in self._owed:
                        self._owed[node].discard(kept.spec.job)
                        if not self._owed[node]:
                            del self._owed[node]
