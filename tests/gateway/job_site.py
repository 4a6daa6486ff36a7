"""A coordinator with real job channels in memory, nodes that follow a script (with the real secure aggregation), and a client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np

from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import GridError, NotFound
from grid.federated.secagg.party import Party
from grid.federated.secagg.statements import Terms
from grid.federated.spec import JobSpec, Stop, model_digest, read_job
from grid.gateway.coordinator import Coordinator
from grid.gateway.job_door import JobDoor
from grid.ids import GridId, JobId, PeerId, PlanId, random_id
from grid.rpc.dispatch import Handlers
from grid.rpc.job_channel import job_channel
from grid.rpc.peer import Peer
from grid.settings import GatewaySettings, SessionLimits
from grid.store.base import Store
from grid.store.memory import MemoryStore
from grid.transport.base import Transport
from grid.transport.memory import memory_pair
from grid.wire.jobs import (
    BeginRound,
    EndJob,
    JobCard,
    JobProgress,
    MaskedInput,
    OfferJob,
    RoundConsent,
    RoundKeys,
    RoundReport,
    RoundReveal,
    RoundRoster,
    RoundShares,
    RoundSurvivors,
    RoundUnmask,
    Sealed,
    SealedShares,
    SingleUpdate,
    StartJob,
    WatchJob,
)
from grid.wire.messages import Message, Ok, TensorFrame

CLOCK = SystemClock()
TRAIN, EVALUATE = b"the train plan", b"the evaluate plan"
LIMITS = SessionLimits()


def frame_of(vector: Any) -> TensorFrame:
    kind = {"f": "f", "u": "i", "i": "i"}[vector.dtype.kind] + str(vector.itemsize)
    return TensorFrame(dtype=kind, shape=vector.shape, data=vector.tobytes())


class ClaimedNames:
    def __init__(self) -> None:
        self.names: set[str] = set()

    def claim(self, name: str) -> bool:
        fresh = name not in self.names
        self.names.add(name)
        return fresh

    def claimed(self, name: str) -> bool:
        return name in self.names


class ScriptedNode:
    """Trains as `update` says: (weights, round) -> update. `before` is called with each request, and may raise or die."""

    def __init__(self, name: str, update: Callable[[Any, int], Any], examples: int) -> None:
        self.me = LocalIdentity.create(name=name, role="node", clock=CLOCK)
        self.update, self.examples = update, examples
        self.before: Callable[[ScriptedNode, Message], None] = lambda node, message: None
        self.memory = ClaimedNames()
        self.job: JobSpec | None = None
        self.envelope = b""
        self.ended: list[str] = []
        self.asked: list[tuple[str, int, int]] = []
        self.parties: dict[tuple[int, int], Party] = {}
        self.weights: dict[int, Any] = {}
        self.begun: dict[tuple[int, int], BeginRound] = {}
        self.peer: Peer | None = None
        self.here = True

    @property
    def id(self) -> PeerId:
        return self.me.id

    def forget(self) -> None:
        """As a process that was killed: only what is on disk is left."""
        self.parties.clear()
        self.weights.clear()
        self.begun.clear()

    def lose(self) -> None:
        """The connection is gone."""
        if self.peer is not None:
            self.peer.close_soon()

    def heard(self, message: Any) -> None:
        self.asked.append((message.tag, getattr(message, "round", 0), getattr(message, "attempt", 0)))
        self.before(self, message)

    def offer(self, message: OfferJob) -> Ok:
        self.heard(message)
        card = Trust.dev().verify_card(message.card, wall=CLOCK.wall())
        self.job, self.envelope = read_job(message.envelope, card, CLOCK.wall()), message.envelope
        return Ok()

    def begin(self, message: BeginRound) -> RoundKeys | SingleUpdate:
        self.heard(message)
        if self.job is None:
            raise NotFound("no such job")
        if message.weights is not None:
            self.weights[message.round] = np.frombuffer(message.weights.data, f"<{message.weights.dtype}")
        if message.round not in self.weights:
            raise NotFound("no weights")
        key = (message.round, message.attempt)
        self.begun[key] = message
        if not message.terms:
            update = None if message.evaluate_only else self._update(message.round)
            sums = tuple(self._sums(message.round).tolist())
            return SingleUpdate(examples=self.examples, metrics=sums, update=None if update is None else frame_of(update))
        if key not in self.parties:
            terms = Terms.decode(message.terms)
            assert terms.model == model_digest(self.envelope, self.weights[message.round].tobytes())
            self.parties[key] = Party(
                me=self.me,
                card=self.me.card,
                terms=terms,
                minimum=3,
                verify=lambda card: Trust.dev().verify_card(card, wall=CLOCK.wall()),
                memory=self.memory,
            )
        return RoundKeys(envelope=self.parties[key].keys())

    def _update(self, number: int) -> Any:
        return self.update(self.weights[number], number).astype(self.weights[number].dtype)

    def _sums(self, number: int) -> Any:
        """The loss is the mean square of the weights."""
        loss = float(np.mean(np.square(self.weights[number])))
        return np.array([loss * self.examples, self.examples])

    def party(self, message: Any) -> Party:
        self.heard(message)
        if (message.round, message.attempt) not in self.parties:
            raise NotFound("no such attempt")
        return self.parties[message.round, message.attempt]

    def share(self, message: RoundRoster) -> SealedShares:
        found = self.party(message).share(message.keys)
        return SealedShares(shares=tuple(Sealed(peer=peer, data=data) for peer, data in found.items()))

    def mask(self, message: RoundShares) -> MaskedInput:
        party = self.party(message)
        begun = self.begun[message.round, message.attempt]
        quantiser = party.terms.quantiser
        update = np.zeros(0, "f4") if begun.evaluate_only else self._update(message.round)
        assert self.job is not None
        weight = 1 if self.job.weighting == "equal" else self.examples
        vector = quantiser.encode(update, weight, self._sums(message.round))
        return MaskedInput(vector=frame_of(party.masked({one.peer: one.data for one in message.shares}, vector)))

    def consent(self, message: RoundSurvivors) -> RoundConsent:
        return RoundConsent(signature=self.party(message).consent(message.survivors))

    def reveal(self, message: RoundUnmask) -> RoundReveal:
        found = self.party(message).reveal({one.peer: one.data for one in message.consents})
        return RoundReveal(shares=tuple(Sealed(peer=peer, data=data) for peer, data in found.items()))

    def end(self, message: EndJob) -> None:
        self.ended.append(message.text)


NODE_HANDLERS = Handlers(
    {
        OfferJob: ScriptedNode.offer,
        BeginRound: ScriptedNode.begin,
        RoundRoster: ScriptedNode.share,
        RoundShares: ScriptedNode.mask,
        RoundSurvivors: ScriptedNode.consent,
        RoundUnmask: ScriptedNode.reveal,
        EndJob: ScriptedNode.end,
    }
)


class Watcher:
    """Collects what a client is told."""

    def __init__(self) -> None:
        self.reports: list[RoundReport] = []
        self.cards: list[JobCard] = []
        self.changed = asyncio.Event()

    def progress(self, message: JobProgress) -> None:
        assert message.first == len(self.reports)
        self.reports += message.reports
        self.cards.append(message.card)
        self.changed.set()

    async def until(self, fits: Callable[[JobCard], bool]) -> JobCard:
        while not (self.cards and fits(self.cards[-1])):
            self.changed.clear()
            await self.changed.wait()
        return self.cards[-1]


WATCHER_HANDLERS = Handlers({JobProgress: Watcher.progress})


class JobSite:
    """A coordinator that can be killed and started again on the same store, and nodes that it calls."""

    def __init__(self, nodes: Sequence[ScriptedNode], store: Store | None = None, **settings: Any) -> None:
        self.store = store or MemoryStore()
        self.nodes = {node.id: node for node in nodes}
        self.settings = GatewaySettings(dev=True, **settings)
        self.me = LocalIdentity.create(name="gateway", role="gateway", clock=CLOCK)
        self.client = LocalIdentity.create(name="ann", role="client", clock=CLOCK)
        self._tasks = asyncio.TaskGroup()
        self._calls: dict[PeerId, asyncio.Task[None]] = {}

    async def __aenter__(self) -> JobSite:
        await self._tasks.__aenter__()
        await self.start()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.stop()
        await self._tasks.__aexit__(None, None, None)

    async def start(self) -> None:
        self.coordinator = Coordinator(
            self.settings,
            trust=Trust.dev(),
            clock=CLOCK,
            store=self.store,
            call=self.call,
            rows=lambda node, dataset: self.nodes[node].examples if node in self.nodes else None,
            name=lambda peer: self.nodes[peer].me.name if peer in self.nodes else peer[:8],
        )
        self.door = JobDoor(
            self.coordinator, me=self.me, trust=Trust.dev(), grid=GridId(self.me.id), limits=LIMITS, clock=CLOCK, most=100
        )
        await self.coordinator.__aenter__()

    async def stop(self) -> None:
        """As far as the store is concerned, a kill: nothing more is written than what is under way."""
        self.coordinator.stop()
        await self.door.close(GridError("killed"))
        await self.coordinator.__aexit__(None, None, None)
        while self._calls:
            await asyncio.wait(list(self._calls.values()))

    async def dial(self) -> Transport:
        ours, theirs = memory_pair()
        self._tasks.create_task(self.door.serve(theirs))
        return ours

    def call(self, peer: PeerId) -> None:
        node = self.nodes.get(peer)
        if node is None or not node.here or peer in self._calls:
            return
        self._calls[peer] = task = self._tasks.create_task(self._live(node))
        task.add_done_callback(lambda _: self._calls.pop(peer, None))

    async def _live(self, node: ScriptedNode) -> None:
        with contextlib.suppress(GridError):
            async with self.channel(node.me, NODE_HANDLERS, node) as node.peer:
                await node.peer.wait_closed()

    @contextlib.asynccontextmanager
    async def channel(self, me: LocalIdentity, handlers: Handlers, context: object) -> AsyncIterator[Peer]:
        async with job_channel(
            self.dial,
            me=me,
            trust=Trust.dev(),
            grid=GridId(self.me.id),
            gateway=self.me.id,
            handlers=handlers,
            context=context,
            limits=LIMITS,
            clock=CLOCK,
        ) as peer:
            yield peer

    def spec(self, **changes: Any) -> JobSpec:
        now = CLOCK.wall()
        given: dict[str, Any] = {
            "job": JobId(random_id()),
            "name": "a job",
            "client": self.client.id,
            "train": PlanId(hashlib.sha256(TRAIN).hexdigest()),
            "evaluate": PlanId(hashlib.sha256(EVALUATE).hexdigest()),
            "datasets": tuple((node, "rows") for node in self.nodes),
            "rounds": 2,
            "local": {},
            "strategy": {"kind": "fedavg", "lr": 1.0},
            "min_nodes": min(3, len(self.nodes)),
            "deadline_s": 20.0,
            "stop": Stop(),
            "created": now,
            "expires": now + 3600,
        }
        return JobSpec(**{**given, **changes})

    def start_message(self, spec: JobSpec, weights: Any) -> StartJob:
        return StartJob(
            envelope=spec.sign(self.client),
            card=self.client.card,
            train=TRAIN,
            evaluate=EVALUATE,
            weights=frame_of(weights),
        )

    async def run(self, spec: JobSpec, weights: Any) -> tuple[Watcher, JobCard]:
        """Start a job and watch it to its end."""
        watcher = Watcher()
        async with self.channel(self.client, WATCHER_HANDLERS, watcher) as peer:
            await peer.request(self.start_message(spec, weights))
            await peer.request(WatchJob(job=spec.job))
            card = await watcher.until(lambda card: card.ended > 0)
        return watcher, card


def constant(value: float) -> Callable[[Any, int], Any]:
    """Each round moves the weights by this."""
    return lambda weights, number: np.full_like(weights, value)


def some_nodes(count: int) -> list[ScriptedNode]:
    """Node i has i + 1 examples and moves by i."""
    return [ScriptedNode(f"node-{index}", constant(float(index)), index + 1) for index in range(count)]


def mean_step(nodes: Sequence[ScriptedNode]) -> float:
    """What FedAvg of `some_nodes` adds in each round."""
    total = sum(node.examples for node in nodes)
    return sum(node.examples * (node.examples - 1) for node in nodes) / total
