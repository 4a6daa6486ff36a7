"""The gateway with peers over memory: joining, presence, links, and those who do not keep to the rules."""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path

import pytest

from grid.clock import SystemClock
from grid.crypto.enrolment import RootKey, Token
from grid.crypto.identity import LocalIdentity, Trust, join_statement
from grid.errors import (
    AuthenticationFailed,
    GridError,
    InvalidRequest,
    NodeUnavailable,
    NotFound,
    QuotaExceeded,
    WireError,
)
from grid.gateway.connections import STRANGER_MESSAGE_BYTES
from grid.ids import LinkId, PeerId
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.settings import GatewaySettings, SessionLimits
from grid.testing.crowd import Crowd, FakePeer, crowd, make_dataset, say_join
from grid.transport.base import Buffer, Transport
from grid.transport.memory import memory_pair
from grid.wire.messages import (
    Announce,
    Join,
    LinkCredit,
    LinkData,
    ListNodes,
    Message,
    NodeList,
    OpenLink,
    Revocations,
    Search,
)

QUICK = SessionLimits(handshake_s=0.2)
IMPATIENT = GatewaySettings(dev=True, session=SessionLimits(heartbeat_s=0.3, patience_s=1.0))


def stranger(crowd: Crowd, limits: SessionLimits | None = None, source: str = "") -> Peer:
    """A connection that has not joined; `source` is the address from which the gateway sees it come."""
    ours, theirs = memory_pair()
    crowd.tasks.create_task(crowd.gateway.serve(theirs, source))
    return Peer(
        ours,
        initiator=True,
        handlers=Handlers({}),
        context=None,
        limits=limits or SessionLimits(),
        clock=crowd.clock,
        name="stranger",
    )


async def states(peer: FakePeer) -> dict[str, str]:
    nodes = (await peer.request(ListNodes())).nodes
    return {node.name: node.state for node in nodes}


# ---------------------------------------------------------------- joining


async def test_nodes_are_listed_and_found(grid: Crowd) -> None:
    alice = await grid.peer("alice")
    client = await grid.peer("carl", "client")
    await alice.announce(make_dataset(tags=["#a", "#b"]), make_dataset("other", tags=["#a"]), address="127.0.0.1:9001")
    nodes = (await client.request(ListNodes())).nodes
    assert [(node.name, node.state, node.address) for node in nodes] == [("alice", "online", "127.0.0.1:9001")]
    found = await client.request(Search(tags=("#a", "#b")))
    assert [(one.node_name, one.dataset.name) for one in found.datasets] == [("alice", "patients")] and found.total == 1


@pytest.mark.parametrize(
    "message",
    [ListNodes(), Search(tags=()), Announce(datasets=()), OpenLink(link=LinkId(1), to=PeerId("a")), Revocations(envelope=b"")],
    ids=lambda message: message.tag,
)
async def test_strangers_may_send_nothing_but_join(grid: Crowd, message: Message) -> None:
    async with stranger(grid) as peer:
        if isinstance(message, Revocations):
            peer.notify(message)
        else:
            with pytest.raises(AuthenticationFailed, match="Join"):
                await peer.request(message)
        assert isinstance(await peer.wait_closed(), AuthenticationFailed)


async def test_strangers_who_say_nothing_are_let_go() -> None:
    async with crowd(GatewaySettings(dev=True, session=QUICK)) as grid, stranger(grid) as peer:
        error = await peer.wait_closed()
        assert isinstance(error, AuthenticationFailed) and "Join" in error.message


async def test_strangers_may_not_send_much(grid: Crowd) -> None:
    async with stranger(grid) as peer:
        me = LocalIdentity.create(name="alice", role="node", clock=grid.clock)
        with pytest.raises(GridError):
            await peer.request(Join(card=me.card, nonce=bytes(32), signature=bytes(STRANGER_MESSAGE_BYTES)))
        assert isinstance(await peer.wait_closed(), WireError)


async def test_when_strangers_are_too_many_the_oldest_goes_and_is_told_why() -> None:
    settings = GatewaySettings(dev=True, max_unauthenticated=2)
    async with crowd(settings) as grid, stranger(grid) as first, stranger(grid) as second:
        await grid.peer("alice")
        error = await first.wait_closed()
        assert isinstance(error, QuotaExceeded) and "oldest" in error.message
        assert grid.gateway.unauthenticated == 1 and not second.closed


async def test_one_address_has_a_part_of_the_places_for_strangers() -> None:
    async with crowd(GatewaySettings(dev=True, max_unauthenticated=8)) as grid:
        async with stranger(grid, source="192.0.2.1"), stranger(grid, source="192.0.2.1"):
            with pytest.raises(QuotaExceeded, match="this address"):
                async with stranger(grid, source="192.0.2.1"):
                    pass
            async with stranger(grid, source="192.0.2.2") as other:
                await say_join(other, LocalIdentity.create(name="alice", role="node", clock=grid.clock), Trust.dev())
            async with stranger(grid, source="127.0.0.1"), stranger(grid, source="127.0.0.1"), stranger(grid, source="::1"):
                assert grid.gateway.unauthenticated == 5


async def test_a_failed_join_is_the_last_thing_on_its_connection(grid: Crowd) -> None:
    async with stranger(grid) as peer:
        with pytest.raises(AuthenticationFailed):
            await peer.request(Join(card=b"", nonce=bytes(32), signature=b""))
        assert isinstance(await peer.wait_closed(), AuthenticationFailed)


async def test_those_who_may_not_join_do_not_fill_the_log(grid: Crowd, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(40):
        async with stranger(grid) as peer:
            with pytest.raises(AuthenticationFailed):
                await peer.request(Join(card=b"", nonce=bytes(32), signature=b""))
    assert 0 < sum("may not join" in record.message for record in caplog.records if record.levelno >= logging.INFO) < 30


async def test_a_node_cannot_announce_all_the_time(grid: Crowd) -> None:
    alice = await grid.peer("alice")
    with pytest.raises(QuotaExceeded, match="too often"):
        for _ in range(40):
            await alice.announce(make_dataset())


async def test_a_second_program_of_a_client_leaves_the_first_alone(grid: Crowd) -> None:
    alice = await grid.peer("alice")
    first = await grid.peer("carl", "client")
    mine, theirs = await first.open(alice)
    second = await grid.peer("carl", "client", me=first.me)
    also_mine, also_theirs = await second.open(alice)
    await second.peer.__aexit__(None, None, None)
    with pytest.raises(NodeUnavailable):
        await also_theirs.receive()
    await mine.send(b"still here")
    assert bytes(await theirs.receive()) == b"still here"
    assert await states(first) == {"alice": "online"}
    assert not first.peer.closed and also_mine is not mine


async def test_there_is_a_limit_to_connections_that_those_who_left_free() -> None:
    async with crowd(GatewaySettings(dev=True, max_connections=2)) as grid:
        alice = await grid.peer("alice")
        await grid.peer("bob")
        with pytest.raises(QuotaExceeded, match="as many connections"):
            await grid.peer("carol")
        alice.peer.close_soon()
        await grid.changed(lambda: grid.gateway.views.status(0)["nodes"]["online"] == 1)
        await grid.peer("carol")


async def test_a_join_must_be_signed_for_this_greeting(grid: Crowd) -> None:
    me = LocalIdentity.create(name="alice", role="node", clock=grid.clock)
    async with stranger(grid) as first, stranger(grid) as second:
        assert first.hello.greeting is not None
        nonce = secrets.token_bytes(32)
        replayed = Join(card=me.card, nonce=nonce, signature=me.sign(join_statement(first.hello.greeting, nonce, me.card)))
        with pytest.raises(AuthenticationFailed):
            await second.request(replayed)
        await first.request(replayed)
        with pytest.raises(InvalidRequest, match="joined already"):
            await first.request(replayed)


async def test_a_taken_name_is_refused_until_its_holder_is_gone(grid: Crowd) -> None:
    alice = await grid.peer("alice")
    with pytest.raises(InvalidRequest, match="another name"):
        await grid.peer("alice")
    alice.peer.close_soon()
    client = await grid.peer("carl", "client")
    await grid.changed(lambda: grid.gateway.views.status(0)["nodes"]["offline"] == 1)
    again = await grid.peer("alice")
    assert [node.id for node in (await client.request(ListNodes())).nodes] == [again.id]


async def test_a_second_connection_of_a_peer_replaces_the_first(grid: Crowd) -> None:
    client = await grid.peer("carl", "client")
    old = await grid.peer("alice")
    mine, _ = await client.open(old)
    new = await grid.peer("alice", me=old.me)
    await grid.changed(lambda: grid.gateway.views.status(0)["links"] == 0)
    error = await old.peer.wait_closed()
    assert isinstance(error, InvalidRequest) and not error.retryable
    with pytest.raises(NodeUnavailable):
        await mine.receive()
    assert await states(client) == {"alice": "online"}
    mine, theirs = await client.open(new)
    await mine.send(b"to the newer one")
    assert bytes(await theirs.receive()) == b"to the newer one"


async def test_a_connection_that_hangs_is_replaced_at_once(grid: Crowd) -> None:
    client = await grid.peer("carl", "client")
    old = await grid.peer("alice", wrap=Frozen)
    mine, _ = await client.open(old)
    assert isinstance(old.transport, Frozen)
    old.transport.frozen.set()
    await grid.peer("alice", me=old.me)
    async with asyncio.timeout(0.5):
        with pytest.raises(NodeUnavailable, match="newer connection"):
            await mine.receive()


# ---------------------------------------------------------------- presence


async def test_a_lost_connection_shows_at_once_and_ends_links(grid: Crowd) -> None:
    client, alice = await grid.peer("carl", "client"), await grid.peer("alice")
    mine, _ = await client.open(alice)
    await alice.transport.close("cut")
    await grid.changed(lambda: grid.gateway.views.status(0)["nodes"]["offline"] == 1)
    assert await states(client) == {"alice": "offline"}
    with pytest.raises(NodeUnavailable, match="alice"):
        await mine.receive()
    with pytest.raises(NodeUnavailable, match="offline"):
        await client.links.open(alice.id)


class Unheard(Transport):
    """A transport whose owner sends and, once told so, does not read."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.deaf = asyncio.Event()

    async def send(self, *parts: Buffer) -> None:
        await self.inner.send(*parts)

    async def receive(self) -> Buffer:
        if self.deaf.is_set():
            await asyncio.Event().wait()
        return await self.inner.receive()

    async def close(self, reason: str = "") -> None:
        await self.inner.close(reason)


class Frozen(Transport):
    """A transport whose process has stopped: nothing moves any more, and nothing is closed."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.frozen = asyncio.Event()

    async def send(self, *parts: Buffer) -> None:
        if not self.frozen.is_set():
            await self.inner.send(*parts)

    async def receive(self) -> Buffer:
        frame = await self.inner.receive()
        if self.frozen.is_set():
            await asyncio.Event().wait()
        return frame

    async def close(self, reason: str = "") -> None:
        await self.inner.close(reason)


async def test_a_node_that_hangs_is_offline_once_patience_with_it_is_over() -> None:
    async with crowd(IMPATIENT) as grid:
        await grid.peer("bob")
        alice = await grid.peer("alice", wrap=Frozen)
        assert isinstance(alice.transport, Frozen)
        alice.transport.frozen.set()
        async with asyncio.timeout(1.5):
            await grid.changed(lambda: grid.gateway.views.status(0)["nodes"]["offline"] == 1)


async def test_leaving_the_gateway_says_goodbye_to_all() -> None:
    async with crowd() as grid:
        alice = await grid.peer("alice")
        await grid.gateway.stop()
        error = await alice.peer.wait_closed()
        assert isinstance(error, NodeUnavailable) and "shutting down" in error.message
        with pytest.raises(NodeUnavailable):
            await grid.peer("bob")


# ---------------------------------------------------------------- links


async def test_a_link_carries_frames_both_ways(grid: Crowd) -> None:
    alice, client = await grid.peer("alice"), await grid.peer("carl", "client")
    mine, theirs = await client.open(alice)
    await mine.send(b"ping", b"!")
    assert bytes(await theirs.receive()) == b"ping!"
    await theirs.send(bytes(1 << 20))
    assert len(await mine.receive()) == 1 << 20


async def test_frames_that_pass_write_no_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "grid")
    async with crowd() as made:
        alice, client = await made.peer("alice"), await made.peer("carl", "client")
        mine, theirs = await client.open(alice)
        before = len(caplog.records)
        for _ in range(100):
            await mine.send(b"ping")
            assert bytes(await theirs.receive()) == b"ping"
        assert [record.getMessage() for record in caplog.records[before:]] == []
        assert any("'open-link'" in record.getMessage() for record in caplog.records)


async def test_links_to_nobody_and_to_oneself_are_refused(grid: Crowd) -> None:
    client = await grid.peer("carl", "client")
    with pytest.raises(NotFound, match="nobody"):
        await client.links.open(PeerId("nobody"))
    with pytest.raises(InvalidRequest, match="itself"):
        await client.links.open(client.id)
    assert len(client.links) == 0


async def test_the_number_of_links_is_bounded() -> None:
    async with crowd(GatewaySettings(dev=True, max_links_per_peer=3)) as grid:
        client, alice = await grid.peer("carl", "client"), await grid.peer("alice")
        for _ in range(3):
            mine, theirs = await client.open(alice)
        with pytest.raises(QuotaExceeded):
            await client.links.open(alice.id)
        await mine.close()
        with pytest.raises(NodeUnavailable):  # A link counts until its other end has heard that it is closed.
            await theirs.receive()
        await client.open(alice)


async def test_a_reader_that_stops_holds_up_its_own_link_alone(grid: Crowd) -> None:
    """The sender of a link that nobody reads waits; another link between the same two peers is as fast as ever."""
    client, alice = await grid.peer("carl", "client"), await grid.peer("alice")
    stuck, unread = await client.open(alice)
    free, read = await client.open(alice)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await stuck.send(bytes(100_000))
            sent += 100_000

    async def crossing() -> None:
        for number in range(200):
            await free.send(number.to_bytes(2, "big") * 20_000)
            assert bytes((await read.receive())[:2]) == number.to_bytes(2, "big")

    flooding = asyncio.create_task(flood())
    async with asyncio.timeout(20):
        await crossing()
    assert not flooding.done() and sent < 16 << 20
    for _ in range(sent // 100_000 + 20):
        await unread.receive()
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)


async def test_a_receiver_that_reads_nothing_at_all_holds_up_nobody_else(grid: Crowd) -> None:
    client, bob = await grid.peer("carl", "client"), await grid.peer("bob")
    deaf = await grid.peer("alice", wrap=Unheard)
    to_deaf, _ = await client.open(deaf)
    to_bob, at_bob = await client.open(bob)
    assert isinstance(deaf.transport, Unheard)
    deaf.transport.deaf.set()

    async def flood() -> None:
        while True:
            await to_deaf.send(bytes(200_000))

    flooding = asyncio.create_task(flood())
    async with asyncio.timeout(10):
        for _ in range(50):
            await to_bob.send(bytes(100_000))
            await at_bob.receive()
        assert await states(client) == {"alice": "online", "bob": "online"}
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)


async def test_a_peer_that_ignores_credit_loses_that_link_alone(grid: Crowd) -> None:
    client, alice = await grid.peer("carl", "client"), await grid.peer("alice")
    good, at_alice = await client.open(alice)
    bad, _ = await client.open(alice)
    for _ in range(20):
        client.peer.notify(LinkData(link=bad.id, frame=bytes(500_000)))  # type: ignore[attr-defined]
        await client.peer.drained()
    with pytest.raises(NodeUnavailable, match="credit"):
        await bad.receive()
    await good.send(b"still here")
    assert bytes(await at_alice.receive()) == b"still here"
    client.peer.notify(LinkCredit(link=LinkId(999), amount=5))  # A link that is gone: ignored.
    assert await states(client) == {"alice": "online"}


async def test_announcements_of_clients_are_refused_and_harm_nothing(grid: Crowd) -> None:
    client = await grid.peer("carl", "client")
    with pytest.raises(InvalidRequest, match="only nodes"):
        await client.announce(make_dataset())
    assert isinstance(await client.request(ListNodes()), NodeList)


async def test_a_peer_that_asks_and_does_not_read_gets_few_replies_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async with crowd(IMPATIENT) as grid:
        alice = await grid.peer("alice")
        await alice.announce(*(make_dataset(f"d{number}", description="x" * 9000) for number in range(50)))
        client = await grid.peer("carl", "client", wrap=Unheard)
        assert isinstance(client.transport, Unheard)
        made = 0
        cards = grid.gateway.views.registry.cards

        def counted() -> object:
            nonlocal made
            made += 1
            return cards()

        monkeypatch.setattr(grid.gateway.views.registry, "cards", counted)
        asked = [client.peer.start_request(ListNodes()) for _ in range(200)]
        client.transport.deaf.set()
        await grid.changed(lambda: grid.gateway.views.status(0)["clients"] == 0)
        await asyncio.gather(*asked, return_exceptions=True)
        assert 0 < made < 30


# ---------------------------------------------------------------- roots and revocations


class Root:
    """A root on disk, and identities that it has enrolled."""

    def __init__(self, path: Path) -> None:
        self.clock = SystemClock()
        self.key = RootKey.create(path)

    def enrolled(self, name: str, role: str) -> LocalIdentity:
        token = self.key.enroll(name=name, role=role, gateway_url="ws://127.0.0.1:1", wall=self.clock.wall())
        return LocalIdentity.create(role=role, clock=self.clock, token=Token.parse(token))

    def trust(self) -> Trust:
        return Trust.rooted(self.key.public)


async def test_a_grid_with_a_root_takes_enrolled_peers_only_and_lets_go_of_revoked_ones(tmp_path: Path) -> None:
    root = Root(tmp_path / "root.json")
    async with crowd(trust=root.trust()) as grid:
        async with stranger(grid) as mallory:
            with pytest.raises(AuthenticationFailed):
                await say_join(mallory, LocalIdentity.create(name="mallory", role="node", clock=grid.clock), root.trust())
        client = await grid.peer("carl", "client", me=root.enrolled("carl", "client"), trust=root.trust())
        alice = await grid.peer("alice", me=root.enrolled("alice", "node"), trust=root.trust())
        await alice.announce(make_dataset())
        mine, _ = await client.open(alice)
        envelope = root.key.revoke("alice", wall=grid.clock.wall())
        client.peer.notify(Revocations(envelope=envelope))
        error = await alice.peer.wait_closed()
        assert isinstance(error, AuthenticationFailed) and "revoked" in error.message
        assert await client.revocations.get() == envelope
        with pytest.raises(NodeUnavailable, match="revoked"):
            await mine.receive()
        assert await states(client) == {}
        async with stranger(grid) as again:
            with pytest.raises(AuthenticationFailed, match="revoked"):
                await say_join(again, alice.me, root.trust())
        async with stranger(grid) as late:
            welcome = await say_join(late, root.enrolled("dora", "node"), root.trust())
            assert welcome.revocations == envelope


async def test_a_list_that_the_root_did_not_sign_changes_nothing(tmp_path: Path) -> None:
    root, other = Root(tmp_path / "root.json"), Root(tmp_path / "other.json")
    async with crowd(trust=root.trust()) as grid:
        alice = await grid.peer("alice", me=root.enrolled("alice", "node"), trust=root.trust())
        other.enrolled("alice", "node")
        alice.peer.notify(Revocations(envelope=other.key.revoke("alice", wall=grid.clock.wall())))
        assert await states(alice) == {"alice": "online"}
        assert grid.gateway.trust.revocation_serial == 0
