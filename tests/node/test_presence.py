"""A node at a real gateway: joined, announced, relayed, dialled directly, and back after the gateway was gone."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import torch
from node_mesh import CLOCK, LIMITS, Mesh, clients, dataset, secure_sum

from grid.clock import Clock, SystemClock
from grid.crypto.identity import LocalIdentity, RootKey, Token, Trust
from grid.errors import AuthenticationFailed, GridError, InvalidRequest, NodeUnavailable, QuotaExceeded
from grid.gateway.app import Gateway
from grid.ids import GridId, PeerId
from grid.node.app import MAX_HANDSHAKES, Node
from grid.node.places import MIN_MESSAGE_BYTES, Places
from grid.node.reach import DIRECT_DIAL_S
from grid.node.strangers import DIRECT, Strangers
from grid.rpc.reconnect import Backoff
from grid.settings import GatewaySettings, NodeSettings
from grid.store.memory import MemoryStore
from grid.transport.base import Transport
from grid.transport.memory import memory_pair


class Place:
    """Where a gateway is dialled. `gateway` None: nobody is there."""

    def __init__(self, settings: GatewaySettings, me: LocalIdentity, trust: Callable[[], Trust]) -> None:
        self.settings, self.me, self.trust = settings, me, trust
        self.gateway: Gateway | None = None
        self.dialled: asyncio.Queue[None] = asyncio.Queue()
        self.tasks: asyncio.TaskGroup

    async def dial(self) -> Transport:
        self.dialled.put_nowait(None)
        if self.gateway is None:
            raise NodeUnavailable("nobody answers")
        near, far = memory_pair()
        self.tasks.create_task(self.gateway.serve(far))
        return near

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Gateway]:
        async with Gateway(self.settings, me=self.me, trust=self.trust(), clock=CLOCK, token="t") as self.gateway:
            try:
                yield self.gateway
            finally:
                self.gateway = None


@contextlib.asynccontextmanager
async def place(dev: bool = True, trust: Callable[[], Trust] = Trust.dev, **settings: Any) -> AsyncIterator[Place]:
    me = LocalIdentity.create(name="gateway", role="gateway", clock=CLOCK)
    made = Place(GatewaySettings(dev=dev, **settings), me, trust)
    async with asyncio.TaskGroup() as made.tasks:
        yield made


def node(
    at: Place,
    name: str = "alice",
    *,
    trust: Trust | None = None,
    me: LocalIdentity | None = None,
    direct: Callable[[str], Awaitable[Transport]] | None = None,
    clock: Clock = CLOCK,
) -> Node:
    return Node(
        NodeSettings(name=name, dev=True, session=LIMITS),
        me=me or LocalIdentity.create(name=name, role="node", clock=CLOCK),
        trust=trust or Trust.dev(),
        datasets=[dataset(seed=len(name))],
        store=MemoryStore(),
        clock=clock,
        dial=at.dial,
        dial_direct=direct,
    )


async def known(at: Node) -> dict[str, Any]:
    assert at._presence is not None
    return {card.name: card for card in (await at._presence.nodes()).values()}


async def test_a_node_joins_and_others_see_its_datasets_and_address() -> None:
    async with place() as at, at.open(), node(at) as alice, node(at, "bob") as bob:
        await asyncio.gather(alice.ready(), bob.ready())
        cards = await known(bob)
        assert set(cards) == {"alice", "bob"} and cards["alice"].id == alice.id
        assert [card.name for card in cards["alice"].datasets] == ["d"] and cards["alice"].address == ""
        await alice.announce_at("127.0.0.1:9001")
        assert (await known(bob))["alice"].address == "127.0.0.1:9001"


async def test_a_node_without_a_gateway_waits_for_one() -> None:
    async with place() as at, node(at) as alice:
        ready = asyncio.ensure_future(alice.ready())
        for _ in range(2):
            await asyncio.wait_for(at.dialled.get(), 20)
        assert not ready.done()
        async with at.open():
            await asyncio.wait_for(ready, 20)


async def test_a_node_comes_back_when_the_gateway_does_with_what_it_has_become() -> None:
    async with place() as at, node(at) as alice, node(at, "bob") as bob:
        async with at.open():
            await asyncio.gather(alice.ready(), bob.ready())
        await alice.announce_at("127.0.0.1:9001")  # nobody to tell: the next connection does
        with pytest.raises(NodeUnavailable):
            await alice.neighbours.session(bob.id)
        async with at.open(), asyncio.timeout(20):
            while "alice" not in (now := await known(bob)) or not now["alice"].address:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_nodes_sum_over_relayed_links() -> None:
    async with place() as at, at.open(), node(at) as alice, node(at, "bob") as bob, node(at, "carol") as carol:
        nodes = {"alice": alice, "bob": bob, "carol": carol}
        await asyncio.gather(*(one.ready() for one in nodes.values()))
        async with clients(Mesh(GridId(at.me.id), nodes)) as raw:
            refs = {name: await one.put(torch.full((2,), float(len(name)))) for name, one in raw.items()}
            result, errors = await secure_sum(raw, refs)
            assert not errors and result is not None and result.tolist() == [13, 13]
        offline = PeerId("a" * 26)
        with pytest.raises(GridError):
            await alice.neighbours.session(offline)


async def test_nodes_dial_directly_where_that_works_and_through_the_gateway_otherwise() -> None:
    dialled: list[str] = []
    listening: dict[str, Node] = {}

    async def direct(address: str) -> Transport:
        dialled.append(address)
        if address not in listening:
            raise NodeUnavailable("nobody listens there")
        near, far = memory_pair()
        listening[address].accept(far)
        return near

    async with place() as at, at.open(), node(at, direct=direct) as alice, node(at, "bob") as bob:
        async with node(at, "carol") as carol:
            await asyncio.gather(alice.ready(), bob.ready(), carol.ready())
            listening["bob:1"] = bob
            await bob.announce_at("bob:1")
            await carol.announce_at("carol:1")
            for other in (bob, carol):
                neighbour = await alice.neighbours.session(other.id)
                assert neighbour.card.name == other.name
                assert await alice.neighbours.session(other.id) is neighbour  # and it is used again
            assert dialled == ["bob:1", "carol:1"]


async def test_a_gateway_of_another_grid_is_not_joined() -> None:
    async with place() as at, at.open(), node(at, trust=Trust.rooted(b"\x01" * 32)) as alice:
        with pytest.raises(AuthenticationFailed):
            await asyncio.wait_for(alice.ready(), 20)


async def test_an_enrolled_node_joins_its_grid(tmp_path: Any) -> None:
    root = RootKey.create(tmp_path / "root.json")
    token = Token.parse(root.enroll(name="alice", role="node", gateway_url="ws://x", wall=CLOCK.wall()))
    me = LocalIdentity.create(role="node", clock=CLOCK, token=token)
    async with place(dev=False, trust=lambda: Trust.rooted(root.public)) as at, at.open():
        async with node(at, trust=Trust.rooted(root.public), me=me) as alice:
            await asyncio.wait_for(alice.ready(), 20)
        async with node(at, "bob") as stranger:
            with pytest.raises(AuthenticationFailed):
                await asyncio.wait_for(stranger.ready(), 20)


async def test_a_node_that_has_no_gateway_says_so() -> None:
    alone = Node(
        NodeSettings(name="alice"),
        me=LocalIdentity.create(name="alice", role="node", clock=CLOCK),
        trust=Trust.dev(),
        datasets=[],
        store=MemoryStore(),
        clock=CLOCK,
    )
    async with alone:
        with pytest.raises(InvalidRequest):
            await alone.ready()
        with pytest.raises(NodeUnavailable):
            await alone.neighbours.session(PeerId("x"))
        near, far = memory_pair()
        alone.accept(far)  # it does not know which grid it belongs to
        with pytest.raises(NodeUnavailable):
            await near.receive()


async def test_an_address_where_another_peer_answers_or_none_falls_back_to_the_gateway() -> None:
    """What a node announces is its word alone: a dial that connects proves nothing until the channel is open."""
    dialled: list[str] = []

    async with place() as at, at.open(), node(at, "mallory") as mallory:

        async def direct(address: str) -> Transport:
            dialled.append(address)
            near, far = memory_pair()
            if address == "wrong:1":
                mallory.accept(far)
            return near  # at silent:1 nobody ever says a word

        clock = _Hasty()
        async with node(at, direct=direct, clock=clock) as alice, node(at, "bob") as bob, node(at, "carol") as carol:
            await asyncio.gather(alice.ready(), bob.ready(), carol.ready(), mallory.ready())
            await bob.announce_at("wrong:1")
            await carol.announce_at("silent:1")
            for other in (bob, carol):
                neighbour = await asyncio.wait_for(alice.neighbours.session(other.id), 20)
                assert neighbour.card.name == other.name
            assert dialled == ["wrong:1", "silent:1"]


async def test_what_is_no_address_is_never_dialled() -> None:
    async def direct(address: str) -> Transport:
        raise AssertionError(address)

    async with place() as at, at.open(), node(at, direct=direct) as alice, node(at, "bob") as bob:
        await asyncio.gather(alice.ready(), bob.ready())
        assert alice._presence is not None
        for address in ("127.0.0.1:80/admin/delete?all=1", "ws://user:pw@host:1/x", "0.0.0.0:80"):
            (card,) = [card for card in (await alice._presence.nodes()).values() if card.name == "bob"]
            alice._presence.nodes = _answer({bob.id: dataclasses.replace(card, address=address)})  # type: ignore[method-assign]
            await (await alice._reach.channel(bob.id)).close()
            del alice._presence.nodes


def _answer(value: Any) -> Callable[[], Awaitable[Any]]:
    async def answer() -> Any:
        return value

    return answer


class _Hasty(SystemClock):
    """A clock on which the time for a direct connection is over at once."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(0.2 if seconds == DIRECT_DIAL_S else seconds)


async def test_an_announcement_that_the_gateway_refuses_ends_the_node() -> None:
    async with place(max_datasets_per_node=0) as at, at.open(), node(at) as alice:
        with pytest.raises(InvalidRequest, match="0"):
            await asyncio.wait_for(alice.ready(), 20)
        assert isinstance(await asyncio.wait_for(alice.ended(), 20), InvalidRequest)


async def test_a_revoked_node_gives_up(tmp_path: Any) -> None:
    root = RootKey.create(tmp_path / "root.json")
    token = Token.parse(root.enroll(name="alice", role="node", gateway_url="ws://x", wall=CLOCK.wall()))
    me = LocalIdentity.create(role="node", clock=CLOCK, token=token)
    async with place(dev=False, trust=lambda: Trust.rooted(root.public)) as at, at.open() as gateway:
        async with node(at, trust=Trust.rooted(root.public), me=me, clock=_Short()) as alice:
            await asyncio.wait_for(alice.ready(), 20)
            gateway.trust.merge_revocations(root.revoke("alice", wall=CLOCK.wall()))
            assert isinstance(await asyncio.wait_for(alice.ended(), 20), AuthenticationFailed)


class _Short(SystemClock):
    """A clock without long waits."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(min(seconds, 0.05))


async def test_the_wait_grows_while_connections_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    started_over: list[None] = []
    monkeypatch.setattr(Backoff, "settled", lambda self: started_over.append(None))
    async with place() as at, node(at) as alice:
        assert alice._presence is not None
        for _ in range(2):
            async with at.open():
                alice._presence._settled.clear()
                await asyncio.wait_for(alice._presence._settled.wait(), 20)
        assert not started_over


async def test_idle_strangers_make_room_for_newcomers() -> None:
    async with place() as at, at.open(), node(at) as alice, node(at, "bob") as bob:
        await asyncio.gather(alice.ready(), bob.ready())
        idle = []
        for _ in range(MAX_HANDSHAKES):
            near, far = memory_pair()
            alice.accept(far)
            idle.append(near)
        neighbour = await asyncio.wait_for(bob.neighbours.session(alice.id), 10)
        assert neighbour.card.name == "alice"
        with pytest.raises(NodeUnavailable, match="proving who they are"):
            await asyncio.wait_for(idle[0].receive(), 10)
        assert len(alice._strangers) == MAX_HANDSHAKES - 1


def test_the_sender_with_the_most_strangers_pushes_out_its_own() -> None:
    gone: list[Transport] = []
    strangers = Strangers(3, gone.append)
    transports = [memory_pair()[0] for _ in range(5)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(strangers.entered(transports[0], DIRECT))
        for transport in transports[1:]:
            stack.enter_context(strangers.entered(transport, PeerId("pest")))
        assert gone == transports[1:3] and len(strangers) == 3
    assert len(strangers) == 0


def test_the_sessions_of_a_client_share_the_memory_of_unfinished_messages() -> None:
    settings, client = NodeSettings(), PeerId("c")
    quota, places = settings.max_bytes_per_client, Places(settings)
    with contextlib.ExitStack() as stack:
        longest = [stack.enter_context(places.taken(client, processes=False)) for _ in range(16)]
        assert longest[0] == quota // 2 and sum(longest) <= quota + 16 * MIN_MESSAGE_BYTES
        with pytest.raises(QuotaExceeded):
            stack.enter_context(places.taken(client, processes=False))
    with places.taken(client, processes=False) as again:
        assert again == quota // 2
