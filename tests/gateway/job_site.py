"""A coordinator with real job channels in memory, nodes that follow a script (with the real secure aggregation), and a client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import GridError
from grid.federated.spec import JobSpec
from grid.gateway.coordinator import Coordinator
from grid.gateway.job_door import JobDoor
from grid.ids import GridId, PeerId
from grid.rpc.dispatch import Handlers
from grid.rpc.job_channel import job_channel
from grid.rpc.peer import Peer
from grid.settings import GatewaySettings, SessionLimits
from grid.store.base import Store
from grid.store.memory import MemoryStore
from grid.transport.base import Transport
from grid.transport.memory import memory_pair
from grid.wire.jobs import (
    JobCard,
    JobProgress,
    RoundReport,
    WatchJob,
)
from tests.federated.scripted_nodes import CLOCK, NODE_HANDLERS, ScriptedNode, spec_of, start_message

LIMITS = SessionLimits()


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
        self.trust = Trust.dev()
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
            trust=self.trust,
            clock=CLOCK,
            store=self.store,
            call=self.call,
            rows=lambda node, dataset: self.nodes[node].examples if node in self.nodes else None,
            name=lambda peer: self.nodes[peer].me.name if peer in self.nodes else peer[:8],
        )
        self.door = JobDoor(
            self.coordinator, me=self.me, trust=self.trust, grid=GridId(self.me.id), limits=LIMITS, clock=CLOCK, most=100
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
        return spec_of(self.client, tuple(self.nodes), **changes)

    async def run(self, spec: JobSpec, weights: Any) -> tuple[Watcher, JobCard]:
        """Start a job and watch it to its end."""
        watcher = Watcher()
        async with self.channel(self.client, WATCHER_HANDLERS, watcher) as peer:
            await peer.request(start_message(self.client, spec, weights))
            await peer.request(WatchJob(job=spec.job))
            card = await watcher.until(lambda card: card.ended > 0)
        return watcher, card
