"""Federated jobs at this node: the channel to the gateway's coordinator, and what is offered there.

The gateway calls on the hop when a job waits. A channel is opened then, made again after a loss for as long as there are jobs,
and closed once there have been none for a while. Whose job it is and what it does is the client's signed word, checked here;
the gateway only carries it and says when. A job ends by `EndJob`, its time, its client's revocation, or silence.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from grid.clock import Clock
from grid.crypto.cards import CLIENT, Card
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import AuthenticationFailed, GridError, InvalidRequest, NodeUnavailable, NotFound, PlanRejected, QuotaExceeded
from grid.federated.local import local_from_plain
from grid.federated.loss_plans import metric_names
from grid.federated.spec import JobSpec, read_job
from grid.federated.strategies import strategy_from_plain
from grid.ids import GridId, JobId, PeerId, PlanId
from grid.node.assignment import Assignment
from grid.node.custody import Custody
from grid.node.executor import Lane
from grid.node.job_rounds import forget_expired
from grid.node.job_rules import check_datasets
from grid.node.trainers import Trainers
from grid.plans import ir
from grid.plans.ir import Plan
from grid.rpc.dispatch import Handlers
from grid.rpc.job_channel import job_channel
from grid.rpc.peer import Peer
from grid.rpc.reconnect import SETTLED_S, Backoff
from grid.settings import NodeSettings
from grid.store.base import Store
from grid.transport.base import Dial
from grid.wire.jobs import (
    BeginRound,
    EndJob,
    OfferJob,
    RoundRoster,
    RoundShares,
    RoundSurvivors,
    RoundUnmask,
)
from grid.wire.messages import Buffer, Message, Ok

log = logging.getLogger(__name__)

LINGER_S = 5.0
"""A channel without a job is closed after so long."""

SILENCE_S = 600.0
"""A job of which nothing is heard for so much longer than its rounds last is forgotten; the gateway may offer it again."""

CALLS = 10
"""Attempts to follow one call of the gateway, where no job is here yet. It calls again."""

MAX_LANE = 256
"""Legs of one job that may wait for their turn."""

VECTORS = 6
"""What a job holds at once, in vectors of its model: weights, update, trainer's copies, and a ring vector of twice the width."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Which gateway this node has joined, and of which grid."""

    grid: GridId
    gateway: PeerId


class Jobs:
    """See the module. `run` keeps the channel; `called` may be called at any time. `home` is None while it is not known."""

    def __init__(
        self,
        *,
        me: LocalIdentity,
        trust: Trust,
        clock: Clock,
        settings: NodeSettings,
        custody: Custody,
        store: Store,
        trainers: Trainers,
        dial: Dial,
        home: Callable[[], Home | None],
        lane: Callable[[str, int], Lane],
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._me, self._trust, self._clock, self._settings = me, trust, clock, settings
        self._custody, self._store, self._trainers = custody, store, trainers
        self._dial, self._home, self._lane, self._spawn = dial, home, lane, spawn
        self._jobs: dict[JobId, Assignment] = {}
        self._ending: dict[JobId, asyncio.Event] = {}
        self._offering = asyncio.Lock()
        self._call = asyncio.Event()
        self._heard_at = 0.0
        self._backoff = Backoff(clock, random.Random())

    # ------------------------------------------------------------ the channel

    def called(self) -> None:
        """The gateway has a job for this node."""
        self._heard_at = self._clock.monotonic()
        self._call.set()

    async def run(self) -> None:
        """Follow calls, until cancelled."""
        try:
            await asyncio.to_thread(forget_expired, self._store, self._clock.wall())
            while True:
                await self._call.wait()
                self._call.clear()
                await self._follow()
        finally:
            for job in list(self._jobs):
                await self._end(job, over=False)

    async def _follow(self) -> None:
        """Be there while there are jobs; `CALLS` attempts to be there at all."""
        left = CALLS
        while left or self._jobs:
            try:
                await self._channel()
                if not self._jobs:
                    return
            except GridError as error:
                log.info("the gateway's coordinator of jobs is not reachable: %s", error)
            left = max(0, left - 1)
            self._forget_silent()
            await self._backoff.wait()

    async def _channel(self) -> None:
        """One channel, until it ends or has been without a job for a while."""
        home = self._home()
        if home is None:
            raise NodeUnavailable("this node has not joined its gateway yet")
        async with job_channel(
            self._dial,
            me=self._me,
            trust=self._trust,
            grid=home.grid,
            gateway=home.gateway,
            handlers=Handlers(HANDLERS),
            context=self,
            limits=self._settings.session,
            clock=self._clock,
        ) as peer:
            peer.limit_messages(self._settings.max_bytes_per_client)
            since = self._heard_at = self._clock.monotonic()
            async with asyncio.TaskGroup() as tasks:
                idle = tasks.create_task(self._close_when_idle(peer), name="idle job channel")
                await peer.wait_closed()
                idle.cancel()
            if self._clock.monotonic() - since >= SETTLED_S:
                self._backoff.settled()

    async def _close_when_idle(self, peer: Peer) -> None:
        while self._jobs or self._clock.monotonic() - self._heard_at < LINGER_S:
            await self._clock.sleep(LINGER_S)
            self._forget_silent()
        peer.close_soon()

    def _forget_silent(self) -> None:
        now, wall = self._clock.monotonic(), self._clock.wall()
        for job, one in list(self._jobs.items()):
            if now - one.touched > one.spec.deadline_s + SILENCE_S or wall > one.spec.expires:
                log.info("job %s is forgotten: nothing has been heard of it, or its time is over", job)
                self._spawn(self._end(job, over=wall > one.spec.expires), "end of a job")

    # ------------------------------------------------------------ offers

    async def offer(self, message: OfferJob) -> Ok:
        """Take part in a job, if its client's word and this node's rules let it."""
        self._heard_at = self._clock.monotonic()
        while message.job in self._ending:  # it ended here a moment ago, and its training is still to be closed
            await self._ending[message.job].wait()
        async with self._offering:
            known = self._jobs.get(message.job)
            if known is not None:
                if known.envelope != message.envelope:
                    raise InvalidRequest("another job of this id is here already")
                return Ok()
            await self._accept(message)
        return Ok()

    async def _accept(self, message: OfferJob) -> None:
        wall = self._clock.wall()
        client = self._trust.verify_card(message.card, wall=wall)
        if client.role != CLIENT:
            raise AuthenticationFailed(f"{client} can't ask for jobs: only clients do")
        spec = read_job(message.envelope, client, wall)
        if spec.job != message.job:
            raise AuthenticationFailed("the job that the client has signed has another id than the gateway says")
        names = spec.datasets_of(self._me.id)
        if not names:
            raise InvalidRequest(f"the client's job names no dataset of {self._me.name}")
        self._custody.gate.check_errors(client.id)
        check_datasets(spec, names, self._custody.datasets, self._me.name)
        if spec.secure and len(spec.nodes) < self._custody.smallest_cohort:
            raise InvalidRequest(f"a secure sum needs {self._custody.smallest_cohort} nodes, and the job has {len(spec.nodes)}")
        self._check_room(client)
        lane = self._lane(f"job {spec.job}", MAX_LANE)
        try:
            await self._open(spec, message, client, lane)
        except BaseException:
            await lane.close()
            raise
        log.info("job %s of %s is taken on", spec.job, client)

    async def _open(self, spec: JobSpec, message: OfferJob, client: Card, lane: Lane) -> None:
        most = self._settings.max_plan_bytes
        train = await lane.submit(partial(_plan, message.train, spec.train, most))
        evaluate = await lane.submit(partial(_plan, message.evaluate, spec.evaluate, most))
        if metric_names(evaluate) != spec.metrics:
            raise InvalidRequest("the job's metrics are not those of its plan for evaluation")
        training = await self._trainers.open(
            spec.job,
            train=train,
            evaluate=evaluate,
            local=local_from_plain(spec.local),
            datasets=spec.datasets_of(self._me.id),
        )
        try:
            if training.layout.size * training.layout.dtype.itemsize * VECTORS > self._settings.max_bytes_per_client:
                raise QuotaExceeded(
                    f"the job's model has {training.layout.size} numbers, more than this node trains (max_bytes_per_client)",
                    limit="max_bytes_per_client",
                )
            self._jobs[spec.job] = Assignment(
                spec,
                message.envelope,
                client=client,
                training=training,
                proximal=strategy_from_plain(spec.strategy).proximal,
                me=self._me,
                trust=self._trust,
                clock=self._clock,
                store=self._store,
                datasets=self._custody.datasets,
                minimum=self._custody.smallest_cohort,
                gate=self._custody.gate,
                lane=lane,
                spawn=self._spawn,
            )
        except BaseException:
            await training.close()
            raise

    def _check_room(self, client: Card) -> None:
        """One client may have half of the jobs that train here at once, rounded up."""
        most = (self._settings.max_trainings + 1) // 2
        if sum(one.client.id == client.id for one in self._jobs.values()) >= most:
            told = f"this client has {most} jobs here, as many as one client may; wait for one, or cancel it"
            raise QuotaExceeded(told, limit="max_trainings")

    # ------------------------------------------------------------ the rest

    def of(self, job: JobId) -> Assignment:
        """The job of this id. Raises `NotFound` for one that was not offered since this node started."""
        self._heard_at = self._clock.monotonic()
        found = self._jobs.get(job)
        if found is None:
            raise NotFound(f"job {job[:40]} is not at this node: it was restarted, or the job has not been offered to it")
        return found

    def end(self, message: EndJob) -> None:
        """The job is over, or goes on without this node. The node closes it, since the channel may end before that is done."""
        self._spawn(self._end(message.job), "end of a job")

    async def _end(self, job: JobId, *, over: bool = True) -> None:
        self._heard_at = self._clock.monotonic()
        async with self._offering:  # one that is being offered ends once it is here
            found = self._jobs.pop(job, None)
            if found is None:
                return
            ended = self._ending[job] = asyncio.Event()
        log.info("job %s is over here", job)
        try:
            await found.close(over=over)
        finally:
            del self._ending[job]
            ended.set()


def _plan(encoding: Buffer, wanted: PlanId, most: int) -> Plan:
    """The plan in an encoding, if it is the one that the client has signed. Raises `PlanRejected`."""
    if len(encoding) > most:
        raise PlanRejected(f"the job's plan has {len(encoding)} bytes, more than max_plan_bytes = {most}")
    if hashlib.sha256(encoding).hexdigest() != wanted:
        raise PlanRejected("the plan that came with the job is not the one that its client has signed")
    return ir.decode(encoding, most)


async def _leg(leg: Callable[[Assignment, Any], Coroutine[Any, Any, Message]], jobs: Jobs, message: Any) -> Message:
    return await leg(jobs.of(message.job), message)


HANDLERS: Mapping[type[Message], Callable[[Any, Any], Any]] = {
    OfferJob: Jobs.offer,
    EndJob: Jobs.end,
    BeginRound: partial(_leg, Assignment.begin),
    RoundRoster: partial(_leg, Assignment.roster),
    RoundShares: partial(_leg, Assignment.shares),
    RoundSurvivors: partial(_leg, Assignment.survivors),
    RoundUnmask: partial(_leg, Assignment.unmask),
}
