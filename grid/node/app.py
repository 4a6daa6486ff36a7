"""A node: datasets, the gate before them, and sessions with clients and other nodes.

`Node` puts the parts together and owns every task and thread among them. Each connection, relayed or direct, first becomes
a channel (`accept_channel`), so that everything behind it knows whom it talks to; clients then get a session with a lane
and a workspace of their own, nodes one for sums and moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from grid.clock import Clock
from grid.crypto.cards import NODE
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import GridError, InvalidRequest, NodeUnavailable, QuotaExceeded
from grid.ids import GridId, PeerId
from grid.logs import tags
from grid.node.committees import Committees
from grid.node.copies import Copies
from grid.node.custody import Custody
from grid.node.datasets import Dataset
from grid.node.desk import Desk
from grid.node.executor import Executor
from grid.node.handlers import CLIENT_HANDLERS, NODE_HANDLERS, NodeContext
from grid.node.jobs import Home, Jobs
from grid.node.neighbours import Neighbour, Neighbours
from grid.node.openings import Openings
from grid.node.party import LocalParties, Parties
from grid.node.party_links import DialParty, Doors
from grid.node.permits import Permits
from grid.node.places import Places
from grid.node.presence import Presence
from grid.node.reach import DialAddress, DialNode, Reach
from grid.node.results import Results
from grid.node.runtime import Runtime
from grid.node.session import ClientSession
from grid.node.strangers import DIRECT, EVICTED, Strangers
from grid.node.sums import Sums
from grid.node.threads import ThreadRuntime
from grid.node.trainers import Trainers
from grid.node.transfers import Transfers
from grid.policy.approvals import Approvals
from grid.rpc.channel import SecureChannel, accept_channel, time_limit
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.rpc.resumable import Sessions, patient
from grid.rpc.resume import is_ask
from grid.settings import NodeSettings
from grid.store.base import Store
from grid.transport.base import Dial, Transport
from grid.wire.messages import Announce

if TYPE_CHECKING:
    from grid.node.workers import Workers

log = logging.getLogger(__name__)

MAX_HANDSHAKES = 64
"""Connections at once that have not proved who they are."""

MAX_OWNER_JOBS = 4096
"""Decisions on permits that may wait at once."""


class Node:
    """One node. Use with `async with`; `await node.ready()` returns once the gateway has registered it.

    `dial` reaches the gateway; without it the node lives on `accept` and `serve` alone. `dial_direct` reaches other nodes
    at the addresses that they announce; without it all links are relayed. `dial_node` takes the place of both, for grids
    that have no gateway, which in dev also need to be told their `grid`. `dial_party` reaches parties at the addresses that
    their nodes name; without it they are relayed. `dial_jobs` reaches the gateway's coordinator of jobs.
    The store belongs to the caller, who closes it after the node.
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        me: LocalIdentity,
        trust: Trust,
        datasets: Sequence[Dataset],
        store: Store,
        clock: Clock,
        dial: Dial | None = None,
        dial_direct: DialAddress | None = None,
        dial_node: DialNode | None = None,
        dial_party: DialParty | None = None,
        dial_jobs: Dial | None = None,
        grid: GridId | None = None,
    ) -> None:
        self.settings = settings
        self.me = me
        self.trust = trust
        self.clock = clock
        self._given_grid = grid
        self._address = ""
        self._names: dict[PeerId, str] = {me.id: me.name}
        self._strangers = Strangers(MAX_HANDSHAKES, self._evict)
        self._places = Places(settings)
        self._reach = Reach(
            me=me,
            trust=trust,
            clock=clock,
            limits=settings.session,
            dial_direct=dial_direct,
            dial_node=dial_node,
            presence=lambda: self._presence,
            grid=lambda: self._grid,
            names=self._names,
        )
        self._resumable = Sessions(limits=settings.session, clock=clock)
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._executor = Executor(settings.compute_threads)
        self._workers: Workers | None = None
        self._custody = Custody(datasets, store=store, settings=settings, dev=trust.is_dev, clock=clock, owner=me.public_key)
        self._neighbours = Neighbours(me=me.id, open_session=self._open_neighbour, spawn=self.spawn, on_lost=self._node_lost)
        self._copies = Copies(settings.max_bytes_per_client)
        self._transfers = Transfers(clock=clock, wait_s=settings.session.request_s)
        self._sums = Sums(
            me=me,
            minimum=self._custody.smallest_cohort,
            clock=clock,
            neighbours=self._neighbours,
            spawn=self.spawn,
            claim=store.claim,
            names=self._names,
            copies=self._copies,
        )
        self._results = Results(settings.state, me=me.id, clock=clock)
        self._permits = Permits(
            me=me,
            clock=clock,
            gate=self._custody.gate,
            neighbours=self._neighbours,
            submit=lambda work: self._owner_lane.submit(work),
            spawn=self.spawn,
            wait_s=settings.session.request_s,
        )
        openings = Openings(
            me=me,
            clock=clock,
            neighbours=self._neighbours,
            permits=self._permits,
            transfers=self._transfers,
            copies=self._copies,
            names=self._names,
        )
        self._doors = Doors()
        self._parties = self._make_parties()
        self._committees = Committees(
            me=me,
            clock=clock,
            neighbours=self._neighbours,
            settings=settings,
            spawn=self.spawn,
            claim=store.claim,
            names=self._names,
            permits=self._permits,
            openings=openings,
            parties=self._parties,
            doors=self._doors,
            dial=dial_party,
            address=lambda: self._address,
        )
        self._trainers = Trainers(settings, self._custody.sources, lambda: self._workers)
        self._jobs = None if dial_jobs is None else self._make_jobs(dial_jobs, store)
        self._presence = None if dial is None else self._make_presence(dial)
        self._client_handlers = Handlers(CLIENT_HANDLERS)
        self._node_handlers = Handlers(NODE_HANDLERS)

    def _make_parties(self) -> Parties:
        if not self.settings.processes or not can_fork():
            return LocalParties(self.settings, self.clock)
        from grid.node.party_process import ProcessParties  # imports what other systems do not have

        return ProcessParties(self.settings, self.spawn)

    def _make_presence(self, dial: Dial) -> Presence:
        return Presence(
            me=self.me,
            trust=self.trust,
            clock=self.clock,
            limits=self.settings.session,
            dial=dial,
            announcement=lambda: Announce(datasets=self._custody.cards(), address=self._address),
            on_link=self.accept,
            on_call=lambda: None if self._jobs is None else self._jobs.called(),
        )

    def _make_jobs(self, dial: Dial, store: Store) -> Jobs:
        return Jobs(
            me=self.me,
            trust=self.trust,
            clock=self.clock,
            settings=self.settings,
            custody=self._custody,
            store=store,
            trainers=self._trainers,
            dial=dial,
            home=self._home,
            lane=self._executor.lane,
            spawn=self.spawn,
        )

    def _home(self) -> Home | None:
        found = self._presence
        if found is None or found.grid is None or found.gateway is None:
            return None
        return Home(grid=found.grid, gateway=found.gateway)

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        await self._executor.__aenter__()
        self._owner_lane = self._executor.lane("owner", MAX_OWNER_JOBS)
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        if self.settings.processes:
            try:
                await self._start_workers()
            except BaseException:
                await self.__aexit__(None, None, None)
                raise
        if self._presence is not None:
            self.spawn(self._presence.run(), "presence")
        if self._jobs is not None:
            self.spawn(self._jobs.run(), "jobs")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._group is not None
        group, self._group = self._group, None
        for task in tuple(self._tasks):
            task.cancel()
        try:
            await group.__aexit__(None, None, None)
        finally:
            try:
                await self._parties.close()
                await self._trainers.close()
            finally:
                if self._workers is not None:
                    await self._workers.__aexit__(None, None, None)
                await self._executor.__aexit__(None, None, None)

    async def _start_workers(self) -> None:
        """Get ready to run each session in a process, where this system can do that."""
        if not can_fork():
            log.warning(
                "this system has no fork, files in memory or descriptors of processes: clients' work runs in threads of the"
                " node, where limits on memory and on the time of a single operation cannot be enforced"
            )
            return
        from grid.node.workers import Workers  # imports what other systems do not have

        workers = Workers(self._custody.sources, self.settings, self.spawn)
        self._workers = await workers.__aenter__()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Start a task that ends with the node. What it raises is logged and ends nothing else."""
        if self._group is None:
            work.close()
            raise NodeUnavailable("the node is closing")
        task = self._group.create_task(_logged(work, name), name=f"{self.me.name}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # a task cancelled before its first step never awaits it

    async def ready(self) -> None:
        """Return once the gateway has registered this node. Raises `AuthenticationFailed` where it refuses to."""
        if self._presence is None:
            raise InvalidRequest("this node has no gateway")
        await self._presence.ready()

    async def ended(self) -> GridError:
        """Return why the gateway will never have this node (any more), once that is so."""
        if self._presence is None:
            raise InvalidRequest("this node has no gateway")
        return await self._presence.ended()

    async def announce_at(self, address: str) -> None:
        """Tell others, through the gateway, that this node also listens for direct connections, at HOST:PORT."""
        self._address = address
        if self._presence is not None:
            await self._presence.announce()

    @property
    def id(self) -> PeerId:
        """This node's id."""
        return self.me.id

    @property
    def name(self) -> str:
        """This node's name."""
        return self.me.name

    @property
    def connected(self) -> bool:
        """Whether the gateway has this node at present."""
        return self._presence is not None and self._presence.connected

    @property
    def _grid(self) -> GridId | None:
        return self._given_grid or (self.trust.grid if self._presence is None else self._presence.grid)

    # ------------------------------------------------------------ connections that come in

    def accept(self, transport: Transport, sender: PeerId = DIRECT) -> None:
        """Take over a transport that somebody opened to this node; `sender` as the gateway names who asked for a link."""
        self.spawn(self.serve(transport, sender), "connection")

    async def end_sessions(self) -> None:
        """End all sessions, those whose client may still come back among them."""
        await self._resumable.close("the node is closing")

    async def serve(self, transport: Transport, sender: PeerId = DIRECT) -> None:
        """The life of a transport that somebody opened to this node."""
        with tags(link=getattr(transport, "id", None)):
            try:
                channel = await self._accept_channel(transport, sender)
                if channel is None:
                    return
                with tags(**_about(channel)):
                    await (self._serve_node(channel) if channel.peer.role == NODE else self._serve_client(channel))
            except GridError as error:
                log.info("a connection was refused or ended: %s", error)
            finally:
                await transport.close()

    async def _accept_channel(self, transport: Transport, sender: PeerId) -> SecureChannel | None:
        """A channel to whoever opened the transport; None where it carried on a session of before, and is done with that."""
        grid, limits = self._grid, self.settings.session
        if grid is None:
            raise NodeUnavailable("this node does not know its grid yet")
        with self._strangers.entered(transport, sender):
            async with time_limit(self.clock, limits.handshake_s, "the first frame of a connection"):
                first = await transport.receive()
            if not is_ask(first):
                return await accept_channel(
                    transport,
                    me=self.me,
                    trust=self.trust,
                    grid=grid,
                    limits=limits,
                    clock=self.clock,
                    first=first,
                    wrap=self._resumable.wrap if limits.lease_s else None,
                )
        await self._resumable.resume(first, transport)
        return None

    async def serve_party(self, transport: Transport) -> None:
        """A connection to `party_links.PARTY_PATH`: it becomes that of a party, or is refused."""
        with self._strangers.entered(transport, DIRECT):
            async with time_limit(self.clock, self.settings.session.handshake_s, "the first frame of a connection"):
                await self._doors.serve(transport)

    def _evict(self, transport: Transport) -> None:
        self.spawn(transport.close(EVICTED), "eviction")

    async def _serve_client(self, channel: SecureChannel) -> None:
        client = channel.peer
        with contextlib.ExitStack() as place:
            try:
                longest = place.enter_context(self._places.taken(client.id, processes=self._workers is not None))
            except QuotaExceeded as error:
                return await self._turn_away(channel, error)
            desk = Desk(gate=self._custody.gate, client=client.id, settings=self.settings, name=client.name)
            session = ClientSession(
                card=client,
                runtime=self._runtime(client.id, desk),
                desk=desk,
                services=self,
                max_plan_bytes=self.settings.max_plan_bytes,
            )
            try:
                session.peer = self._peer(channel, self._client_handlers, session, initiator=False)
                session.peer.limit_messages(longest)
                async with session.peer:
                    log.info("a client's session begins")
                    await session.peer.wait_closed()
            finally:
                await session.close()

    async def _turn_away(self, channel: SecureChannel, error: GridError) -> None:
        """Tell a peer why it gets no session, without waiting for anything from it. Raises `error`."""
        peer = self._peer(channel, Handlers({}), None, initiator=False)
        asyncio.get_running_loop().call_soon(peer.close_soon, error)  # as soon as the peer waits for the far end's Hello
        async with peer:
            pass

    def _runtime(self, client: PeerId, desk: Desk) -> Runtime:
        """Where a session's values are to live."""
        lane = self._executor.lane(str(client), self.settings.max_queued_per_client)
        if self._workers is None:
            return ThreadRuntime(lane=lane, desk=desk, sources=self._custody.sources, settings=self.settings)
        from grid.node.processes import ProcessRuntime

        return ProcessRuntime(
            workers=self._workers, lane=lane, desk=desk, settings=self.settings, client=client, spawn=self.spawn
        )

    async def _serve_node(self, channel: SecureChannel) -> None:
        neighbour = Neighbour(channel.peer)
        neighbour.peer = self._peer(channel, self._node_handlers, NodeContext(neighbour, self), initiator=False)
        async with neighbour.peer, self._neighbours.entered(neighbour):
            self._names[neighbour.id] = neighbour.card.name
            await neighbour.peer.wait_closed()

    def _peer(self, channel: SecureChannel, handlers: Handlers, context: object, *, initiator: bool) -> Peer:
        return Peer(
            channel,
            initiator=initiator,
            handlers=handlers,
            context=context,
            limits=patient(self.settings.session) if channel.resumable else self.settings.session,
            clock=self.clock,
            name=str(channel.peer),
            about=_about(channel),
        )

    # ------------------------------------------------------------ connections to other nodes

    @contextlib.asynccontextmanager
    async def _open_neighbour(self, node: PeerId) -> AsyncIterator[Neighbour]:
        channel = await self._reach.channel(node)
        neighbour = Neighbour(channel.peer)
        neighbour.peer = self._peer(channel, self._node_handlers, NodeContext(neighbour, self), initiator=True)
        async with neighbour.peer:
            self._names[node] = neighbour.card.name
            yield neighbour

    def _node_lost(self, node: PeerId) -> None:
        self._sums.lost(node)
        self._committees.lost(node)

    # ------------------------------------------------------------ what sessions use

    @property
    def sums(self) -> Sums:
        """Secure sums that this node takes part in."""
        return self._sums

    @property
    def committees(self) -> Committees:
        """Committees that this node is a party of."""
        return self._committees

    @property
    def transfers(self) -> Transfers:
        """Values that are on their way here."""
        return self._transfers

    @property
    def neighbours(self) -> Neighbours:
        """Sessions with other nodes."""
        return self._neighbours

    @property
    def copies(self) -> Copies:
        """What moves and sums hold of clients' values."""
        return self._copies

    @property
    def permits(self) -> Permits:
        """The owner's word on results of committees."""
        return self._permits

    @property
    def results(self) -> Results:
        """Results that committees opened to this node, for its owner."""
        return self._results

    @property
    def names(self) -> Mapping[PeerId, str]:
        """What nodes are called, as far as that is known."""
        return self._names

    @property
    def approvals(self) -> Approvals:
        """Releases that wait for the owner's word."""
        return self._custody.approvals

    @property
    def datasets(self) -> Mapping[str, Dataset]:
        """The datasets of this node, by name."""
        return self._custody.datasets


def _about(channel: SecureChannel) -> Mapping[str, object]:
    """The tags of a channel's log lines."""
    return {"peer": channel.peer.name, "peer_id": channel.peer.id, "session": channel.session}


def can_fork() -> bool:
    """Whether this system has what workers need: forks, files in memory, and descriptors of processes."""
    return sys.platform == "linux" and hasattr(os, "memfd_create") and hasattr(os, "pidfd_open")


async def _logged(work: Coroutine[Any, Any, None], name: str) -> None:
    try:
        await work
    except GridError as error:
        log.warning("%s: %s", name, error)
    except Exception:
        log.exception("%s failed", name)
