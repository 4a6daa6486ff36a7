"""The gateway: meeting point and relay, for any transport. `http.py` puts it on a port.

It knows who is connected and what they say they have, and moves sealed frames between them. It is trusted with neither data
nor identity: peers check each other over channels that it cannot open. `registry` and `router` decide; here their
decisions meet sessions and time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from grid.clock import Clock
from grid.crypto.cards import NODE, Card
from grid.crypto.identity import LocalIdentity, Trust, verify_join, welcome_statement
from grid.display import printable
from grid.errors import AuthenticationFailed, GridError, InvalidRequest, NodeUnavailable, NotFound, QuotaExceeded, from_wire
from grid.gateway.connections import STRANGER_MESSAGE_BYTES, Connection, hop_limits, refusal, refuse
from grid.gateway.coordinator import Coordinator
from grid.gateway.index import words_of
from grid.gateway.job_door import JobDoor
from grid.gateway.job_views import JobViews
from grid.gateway.keeper import Keeper
from grid.gateway.limits import Allowance, Strangers
from grid.gateway.news import News
from grid.gateway.registry import ConnectionId, Registry
from grid.gateway.router import Effect, Router, Tell
from grid.gateway.views import Views
from grid.ids import GridId, PeerId
from grid.logs import session_of, tags
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.settings import GatewaySettings
from grid.store.base import Store
from grid.telemetry import Metrics
from grid.transport.base import Transport
from grid.wire.jobs import CallIn
from grid.wire.messages import (
    Announce,
    CloseLink,
    Found,
    Greeting,
    Join,
    LinkCredit,
    LinkData,
    ListNodes,
    Message,
    NodeList,
    Ok,
    OpenLink,
    Revocations,
    Search,
    Welcome,
)

log = logging.getLogger(__name__)


class Gateway:
    """A gateway. Enter it, then call `serve` with each transport that connects; leaving says goodbye to all of them.

    `store` keeps the nodes that it has known over a restart; it belongs to the caller, who closes it after the gateway.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        me: LocalIdentity,
        trust: Trust,
        clock: Clock,
        token: str,
        metrics: Metrics | None = None,
        store: Store | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.token = token
        self.trust = trust
        self.metrics = metrics if metrics is not None else Metrics()
        self.grid = trust.grid or GridId(me.id)
        self.stopping = False
        self._me = me
        self._limits = hop_limits(settings.session)
        self._numbers = itertools.count(1)
        self._connections: dict[ConnectionId, Connection] = {}
        self._strangers = Strangers(settings.max_unauthenticated)
        self._complaints = Allowance(burst=20, per_s=1)
        self._emptied = asyncio.Event()
        self._registry = Registry(max_datasets=settings.max_datasets_per_node)
        self._router = Router(max_links_per_peer=settings.max_links_per_peer, buffer_bytes=settings.link_buffer_bytes)
        self._keeper = Keeper(store)
        self._registry.restore(self._keeper.restore(trust, max_datasets=settings.max_datasets_per_node, now=clock.wall()))
        self._news = News(clock=clock, registry=self._registry, router=self._router, name=self._name_of)
        self.feed, self.events, self.changes = self._news.feed, self._news.events, self._news.changes
        self._handlers = self._table()
        self.coordinator = Coordinator(
            settings,
            trust=trust,
            clock=clock,
            store=store,
            call=self._call_in,
            rows=self._registry.rows_of,
            name=self._name_of,
            told=self._news.job,
        )
        self.jobs = JobViews(self.coordinator)
        self._job_door = JobDoor(
            self.coordinator,
            me=me,
            trust=trust,
            grid=self.grid,
            limits=settings.session,
            clock=clock,
            most=settings.max_unauthenticated,
        )
        self._open = contextlib.AsyncExitStack()
        self.views = Views(
            grid=self.grid,
            dev=trust.is_dev,
            started=clock.wall(),
            registry=self._registry,
            router=self._router,
            meter=self._news.meter,
            events=self.events,
        )

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self._keeper)
        self._open.enter_context(self.trust.on_revocations(self._spread_revocations))
        await self._open.enter_async_context(self.coordinator)
        tasks = await self._open.enter_async_context(asyncio.TaskGroup())
        sampling = tasks.create_task(self._news.sample(lambda: len(self._connections)), name="gateway traffic")
        self._open.callback(sampling.cancel)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self.stop()
        finally:
            await self._open.aclose()

    async def stop(self) -> None:
        """Say goodbye to every peer and wait until their connections have ended. May be called twice."""
        self.stopping = True
        self._changed()
        for connection in list(self._connections.values()):
            connection.close_soon(NodeUnavailable("the gateway is shutting down"))
        self.coordinator.stop()
        await self._job_door.close(NodeUnavailable("the gateway is shutting down"))
        while self._connections:
            self._emptied.clear()
            await self._emptied.wait()

    # ------------------------------------------------------------ connections

    async def serve_jobs(self, transport: Transport, source: str = "") -> None:
        """The life of a job channel, as `serve` for other connections."""
        if self.stopping:
            await transport.close("the gateway is shutting down")
            return
        await self._job_door.serve(transport, source)

    async def serve(self, transport: Transport, source: str = "") -> None:
        """The life of one connection; owns the transport. Ends when the peer is gone, or as soon as it breaks the rules.

        `source` is the network address that it comes from, "" where there is none.
        """
        verdict = self._strangers.judge(source)
        reason = self._full() or verdict.refused
        if reason is not None:
            self.metrics.count("grid_connections_refused_total", reason=reason)
            self._complain("a connection was refused: %s", reason)
            self.events.add("refused", f"a connection: {refusal(reason).message}")
            await refuse(transport, self._greeting(), self._limits, self.clock, refusal(reason))
            return
        if verdict.evict is not None:
            self._evict(verdict.evict)
        connection = self._greet(source)
        with tags(connection=connection.id, session=session_of(connection.greeting.nonce)):
            await self._serve(connection, transport)

    async def _serve(self, connection: Connection, transport: Transport) -> None:
        self.metrics.count("grid_connections_total")
        why = "its connection ended"
        try:
            connection.peer = Peer(
                transport,
                initiator=False,
                handlers=self._handlers,
                context=connection,
                limits=self._limits,
                clock=self.clock,
                name=f"connection {connection.id}",
                greeting=connection.greeting,
                about={"peer": ""},
            )
            connection.peer.limit_messages(STRANGER_MESSAGE_BYTES)
            async with connection.peer as peer:
                error = await self._live(connection, peer)
                why = error.message if error is not None else why
        except GridError as error:
            why = error.message
            log.info("the connection ended: %s", printable(why))
        finally:
            self._gone(connection, why)
            await transport.close()

    def _full(self) -> str | None:
        if self.stopping:
            return "stopping"
        return "connections" if len(self._connections) >= self.settings.max_connections else None

    def _complain(self, text: str, *args: object) -> None:
        """Log what strangers did, as often as that is of use: they could fill the disk with it."""
        level = logging.WARNING if self._complaints.take(self.clock.monotonic()) else logging.DEBUG
        log.log(level, text, *args)

    def _evict(self, oldest: ConnectionId) -> None:
        self._strangers.discard(oldest)
        self.metrics.count("grid_connections_refused_total", reason="unauthenticated")
        self._complain("connection %s has to go: too many have not joined", oldest)
        self.events.add("refused", f"a connection: {refusal('unauthenticated').message}")
        self._connections[oldest].close_soon(refusal("unauthenticated"))

    @property
    def unauthenticated(self) -> int:
        """Connections that have not proved who they are."""
        return len(self._strangers)

    def _greeting(self) -> Greeting:
        return Greeting(
            grid=self.grid,
            dev=self.trust.is_dev,
            gateway_key=self._me.public_key,
            nonce=secrets.token_bytes(32),
            wall=self.clock.wall(),
        )

    def _greet(self, source: str) -> Connection:
        connection = Connection(id=ConnectionId(next(self._numbers)), greeting=self._greeting())
        self._connections[connection.id] = connection
        self._strangers.add(connection.id, source)
        return connection

    async def _live(self, connection: Connection, peer: Peer) -> GridError | None:
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(self._pump(connection, peer), name=f"relay to connection {connection.id}"),
                tasks.create_task(self._expect_join(connection), name=f"patience with connection {connection.id}"),
            ]
            error = await peer.wait_closed()
            for task in beside:
                task.cancel()
        return error

    async def _expect_join(self, connection: Connection) -> None:
        await self.clock.sleep(self._limits.handshake_s)
        if connection.card is None:
            connection.close_soon(AuthenticationFailed(f"no Join came within {self._limits.handshake_s:g} s"))

    async def _pump(self, connection: Connection, peer: Peer) -> None:
        """Move frames to one receiver as fast as it takes them."""
        while not connection.leaving:
            message, effects = self._router.take(connection.id)
            self._perform(effects)
            if message is None:
                connection.due.clear()
                await connection.due.wait()
            else:
                connection.tell(message)
                await peer.drained()

    def _gone(self, connection: Connection, why: str) -> None:
        del self._connections[connection.id]
        self._strangers.discard(connection.id)
        self._emptied.set()
        card = connection.card
        if card is None:
            return
        with tags(peer=card.name, peer_id=card.id):
            log.info("%s left: %s", card.role, printable(why))
        self._perform(self._router.leave(connection.id, f"{card.role} {card.name} is gone: {why[:200]}"))
        if self._registry.leave(connection.id, card.id, self.clock.wall()):
            self._news.note("left", card, why)
            self._news.presence(card, "offline")
        self._changed()

    # ------------------------------------------------------------ what peers ask for

    def _table(self) -> Handlers:
        joined: dict[type[Message], Callable[[Connection, Any], Any]] = {
            Announce: self._announce,
            ListNodes: self._list_nodes,
            Search: self._search,
            OpenLink: self._open_link,
            LinkData: self._link_data,
            LinkCredit: self._link_credit,
            CloseLink: self._close_link,
            Revocations: self._revocations,
        }
        guarded: dict[type[Message], Callable[[Any, Any], Any]] = {kind: self._joined(step) for kind, step in joined.items()}
        return Handlers({Join: self._counted(self._join), **guarded})

    def _joined(self, step: Callable[[Connection, Any], Any]) -> Callable[[Connection, Any], Any]:
        """Only for those who have proved who they are: others may send nothing but `Join`."""

        def guarded(connection: Connection, message: Message) -> Any:
            if connection.card is None:
                error = AuthenticationFailed(f"the first message to a gateway is Join, and {type(message).__name__} came")
                connection.close_soon(error)
                raise error
            if connection.leaving:
                raise NodeUnavailable("this connection is being closed")
            return step(connection, message)

        return self._counted(guarded)

    def _counted(self, step: Callable[[Connection, Any], Any]) -> Callable[[Connection, Any], Any]:
        def counted(connection: Connection, message: Message) -> Any:
            try:
                return step(connection, message)
            except GridError as error:
                self.metrics.count("grid_failures_total", code=error.code)
                if connection.card is not None:
                    self._news.note("error", connection.card, f"{error.code}: {error.message}")
                raise

        return counted

    def _join(self, connection: Connection, message: Join) -> Welcome:
        if connection.leaving:
            raise NodeUnavailable("this connection is being closed")
        if connection.card is not None:
            raise InvalidRequest(f"this connection has joined already, as {connection.card}")
        try:
            card = verify_join(self.trust, connection.greeting, message, self.clock.wall())
            older = self._registry.enter(
                connection.id,
                peer=card.id,
                name=card.name,
                organisation=card.organisation,
                role=card.role,
                card=card.envelope,
                now=self.clock.wall(),
            )
        except GridError as error:
            self.metrics.count("grid_connections_refused_total", reason=error.code)
            self._complain("the peer may not join: %s", printable(error.message))
            self.events.add("refused", error.message)
            connection.close_soon(error)  # Signatures are dear to check, and whoever has a good one needs one attempt.
            raise
        connection.card = card
        connection.known()
        self._strangers.discard(connection.id)
        self._router.join(connection.id, card.id)
        if older is not None:
            self._replace(self._connections[older], card)
        assert connection.peer is not None
        connection.peer.tag(peer=card.name, peer_id=card.id)
        log.info("%s joined", card.role)
        entry = self._registry.get(card.id)
        if entry is not None and not entry.others:  # Of several programs of one person the first has joined.
            self._news.note("joined", card, "")
        self._news.presence(card, "online")
        self._changed()
        if card.role == NODE:
            self.coordinator.node_joined(card.id)
        statement = welcome_statement(connection.greeting, message.nonce, card.id)
        return Welcome(peer=card.id, signature=self._me.sign(statement), revocations=self.trust.revocations)

    def _replace(self, older: Connection, card: Card) -> None:
        """A peer has come back before its old connection was seen to end, or its keys are in use twice: the newer one counts."""
        why = f"a newer connection of {card.role} {card.name} took the place of this one; each process needs its own identity"
        older.close_soon(InvalidRequest(why))
        self._perform(self._router.leave(older.id, why))

    def _announce(self, connection: Connection, message: Announce) -> Awaitable[Message]:
        if not connection.announcements.take(self.clock.monotonic()):
            raise QuotaExceeded("this node announces its datasets too often; announce changes together, once a second at most")
        card = _card(connection)
        self._registry.announce(card.id, message)
        kept = self._changed()
        self._news.announced(card, len(message.datasets))
        return self._acknowledge(kept)

    async def _acknowledge(self, kept: asyncio.Future[None]) -> Ok:
        await asyncio.shield(kept)  # others wait for the same write
        return Ok()

    def _list_nodes(self, connection: Connection, message: ListNodes) -> Awaitable[Message]:
        return self._answer(connection, lambda: NodeList(nodes=self._registry.cards()))

    def _search(self, connection: Connection, message: Search) -> Awaitable[Message]:
        def found() -> Found:
            page, total = self._registry.search(
                message.tags, message.offset, message.limit, words_of(message.text), offline=message.offline
            )
            return Found(datasets=tuple(page), total=total)

        return self._answer(connection, found)

    async def _answer(self, connection: Connection, make: Callable[[], Message]) -> Message:
        """A reply that may be large: made when the ones before it have left, so a peer that does not read costs one of them."""
        assert connection.peer is not None
        async with connection.answering:
            await connection.peer.drained()
            return make()

    def _open_link(self, connection: Connection, message: OpenLink) -> Ok:
        entry = self._registry.get(message.to)
        if entry is None:
            raise NotFound(f"no peer with the id {printable(message.to[:64])} has joined this grid")
        if entry.connection is None:
            raise NodeUnavailable(f"{entry.role} {entry.name} is offline; it is listed again as online when it has come back")
        self._perform(self._router.open(connection.id, message.link, entry.connection, self.clock.wall()))
        log.debug("link %s to %s %s opens, on its connection %s", message.link, entry.role, entry.name, entry.connection)
        return Ok()

    def _link_data(self, connection: Connection, message: LinkData) -> None:
        self._perform(self._router.data(connection.id, message.link, message.frame))

    def _link_credit(self, connection: Connection, message: LinkCredit) -> None:
        self._perform(self._router.credit(connection.id, message.link, message.amount))

    def _close_link(self, connection: Connection, message: CloseLink) -> None:
        error = from_wire(message.error.code, message.error.message[:500], {}) if message.error is not None else None
        self._perform(self._router.close(connection.id, message.link, error))

    def _revocations(self, connection: Connection, message: Revocations) -> None:
        self.trust.merge_revocations(message.envelope)  # Newer ones spread through `_spread_revocations`.

    # ------------------------------------------------------------ what follows

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            connection = self._connections.get(effect.connection)
            if connection is None:
                continue
            if isinstance(effect, Tell):
                connection.tell(effect.message)
            else:
                self._forward(connection)

    def _forward(self, connection: Connection) -> None:
        """Hand a receiver what is due to it, as far as it takes that at once; the rest is for `_pump`."""
        peer = connection.peer
        while peer is not None and peer.is_drained() and not connection.leaving:
            message, effects = self._router.take(connection.id)
            if message is None:
                return
            connection.tell(message)
            self._perform(effects)
        connection.due.set()

    def _spread_revocations(self) -> None:
        """A newer list is in force: tell everybody, and let those go whom it names."""
        newest = Revocations(envelope=self.trust.revocations)
        for connection in list(self._connections.values()):
            if connection.card is None:
                continue
            connection.tell(newest)
            if self.trust.revoked(connection.card):
                error = AuthenticationFailed(f"{connection.card} was revoked by the grid's root")
                self._perform(self._router.leave(connection.id, error.message))
                self._registry.forget(connection.card.id)
                self._news.note("revoked", connection.card, "its identity was taken back by the grid's root")
                self._news.presence(connection.card, "revoked")
                connection.close_soon(error)
        self._job_door.end_revoked()
        self._changed()

    def _changed(self) -> asyncio.Future[None]:
        """Something has changed: readers hear of it at once, and the result is done when it is on disk."""
        self.changes.mark()
        return self._keeper.keep(self._registry.take_changes())

    # ------------------------------------------------------------ jobs

    def _call_in(self, node: PeerId) -> None:
        """Ask a node to open a job channel, if it is here; otherwise it is asked when it joins."""
        entry = self._registry.get(node)
        connection = self._connections.get(entry.connection) if entry is not None and entry.connection is not None else None
        if connection is not None:
            connection.tell(CallIn())

    def _name_of(self, peer: PeerId) -> str:
        return self.views.name_of(peer)


def _card(connection: Connection) -> Card:
    assert connection.card is not None  # `_joined` has seen to it
    return connection.card
