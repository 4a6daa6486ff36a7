"""Relayed links: the transport suite through a real gateway, then the peer's side alone against a hop that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from grid.errors import GridError, NodeUnavailable, NotFound, QuotaExceeded
from grid.ids import LinkId, PeerId
from grid.rpc.links import Link, Links
from grid.testing.conformance import TransportConformance, both_closed
from grid.testing.crowd import crowd
from grid.transport.base import Transport
from grid.wire.messages import (
    LINK_FRAME_COST,
    LINK_START,
    LINK_WINDOW,
    CloseLink,
    ErrorInfo,
    LinkCredit,
    LinkData,
    LinkOffer,
    Message,
    Ok,
    OpenLink,
)

NODE = PeerId("node")


class TestRelayed(TransportConformance):
    """Two peers at one gateway."""

    @contextlib.asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Transport, Transport]]:  # type: ignore[override]
        async with crowd() as grid:
            client, alice = await grid.peer("carl", "client"), await grid.peer("alice")
            async for both in both_closed(*await client.open(alice)):
                yield both


class FakeHop:
    """A gateway that answers as the test says, and keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.answer: GridError | None = None
        self.holds = asyncio.Event()
        self.holds.set()
        self.room = asyncio.Event()
        self.room.set()
        self.gone: asyncio.Future[GridError | None] = asyncio.get_running_loop().create_future()

    async def request(self, message: Message, *, timeout_s: float | None = None) -> Message:
        self.sent.append(message)
        await self.holds.wait()
        if self.answer is not None:
            raise self.answer
        return Ok()

    def notify(self, message: Message) -> None:
        if self.gone.done():
            raise NodeUnavailable("gone")
        self.sent.append(message)

    async def drained(self) -> None:
        await self.room.wait()

    async def wait_closed(self) -> GridError | None:
        return await asyncio.shield(self.gone)

    def take(self) -> list[Message]:
        sent, self.sent = self.sent, []
        return sent


class Bench:
    """Links over a fake hop."""

    def __init__(self, links: Links, hop: FakeHop, offered: list[tuple[Transport, PeerId]]) -> None:
        self.links = links
        self.hop = hop
        self.offered = offered

    def say(self, message: Message) -> None:
        """The gateway sends this."""
        handlers: Any = self.links.handlers()
        handlers[type(message)](None, message)

    async def open(self) -> Link:
        link = await self.links.open(NODE)
        assert isinstance(link, Link)
        return link


@contextlib.asynccontextmanager
async def bench(*, accepts: bool = True, max_links: int = 4) -> AsyncIterator[Bench]:
    offered: list[tuple[Transport, PeerId]] = []

    def offer(transport: Transport, sender: PeerId) -> None:
        offered.append((transport, sender))

    links = Links(on_offer=offer if accepts else None, max_links=max_links)
    hop = FakeHop()
    async with links.over(hop):
        yield Bench(links, hop, offered)


async def test_open_numbers_links_and_gives_the_rest_of_the_window() -> None:
    async with bench() as made:
        first, second = await made.open(), await made.open()
        assert (first.id, second.id) == (1, 3)
        more = LINK_WINDOW - LINK_START
        assert made.hop.take() == [
            OpenLink(link=LinkId(1), to=NODE),
            LinkCredit(link=LinkId(1), amount=more),
            OpenLink(link=LinkId(3), to=NODE),
            LinkCredit(link=LinkId(3), amount=more),
        ]


async def test_a_refused_link_raises_what_the_gateway_said() -> None:
    async with bench() as made:
        made.hop.answer = NotFound("no such peer")
        with pytest.raises(NotFound, match="no such peer"):
            await made.open()
        assert len(made.links) == 0


async def test_a_cancelled_open_leaves_no_link_behind() -> None:
    async with bench() as made:
        made.hop.holds.clear()
        opening = asyncio.create_task(made.open())
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert len(made.links) == 0
        assert made.hop.take()[-1] == CloseLink(link=LinkId(1))


async def test_frames_that_come_before_the_answer_to_open_are_kept() -> None:
    async with bench() as made:
        made.hop.holds.clear()
        opening = asyncio.create_task(made.open())
        await asyncio.sleep(0)
        made.say(LinkData(link=LinkId(1), frame=b"early"))
        made.hop.holds.set()
        assert bytes(await (await opening).receive()) == b"early"


async def test_send_waits_for_credit_and_spends_it() -> None:
    async with bench() as made:
        link = await made.open()
        await link.send(bytes(LINK_START))
        waiting = asyncio.create_task(link.send(b"next"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        made.say(LinkCredit(link=link.id, amount=LINK_FRAME_COST))
        await asyncio.sleep(0)
        assert not waiting.done()
        made.say(LinkCredit(link=link.id, amount=1))
        await waiting
        assert made.hop.take()[-1] == LinkData(link=link.id, frame=b"next")


async def test_a_cancelled_send_sends_nothing_and_costs_nothing() -> None:
    async with bench() as made:
        link = await made.open()
        await link.send(bytes(LINK_START))
        waiting = asyncio.create_task(link.send(b"never"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        made.hop.take()
        made.say(LinkCredit(link=link.id, amount=LINK_FRAME_COST + 1))
        await link.send(b"x")
        assert made.hop.take() == [LinkData(link=link.id, frame=b"x")]


async def test_send_waits_while_the_connection_itself_is_full() -> None:
    async with bench() as made:
        link = await made.open()
        made.hop.take()
        made.hop.room.clear()
        waiting = asyncio.create_task(link.send(b"later"))
        await asyncio.sleep(0)
        assert made.hop.take() == [] and not waiting.done()
        made.hop.room.set()
        await waiting
        assert made.hop.take() == [LinkData(link=link.id, frame=b"later")]


async def test_reading_gives_credit_back_in_large_steps() -> None:
    async with bench() as made:
        link = await made.open()
        made.hop.take()
        for _ in range(100):
            made.say(LinkData(link=link.id, frame=bytes(10_000)))
        for _ in range(100):
            await link.receive()
        credits = [message for message in made.hop.take() if isinstance(message, LinkCredit)]
        assert 1 <= len(credits) <= 3
        assert sum(message.amount for message in credits) <= 100 * (10_000 + LINK_FRAME_COST)


async def test_a_gateway_that_overruns_its_credit_loses_the_link_alone() -> None:
    async with bench() as made:
        link, other = await made.open(), await made.open()
        for _ in range(5):
            made.say(LinkData(link=link.id, frame=bytes(1 << 20)))
        assert [type(message) for message in made.hop.take()][-1] is CloseLink
        for _ in range(4):
            await link.receive()
        with pytest.raises(NodeUnavailable, match="credit"):
            await link.receive()
        made.say(LinkData(link=other.id, frame=b"fine"))
        assert bytes(await other.receive()) == b"fine"


async def test_a_flood_of_tiny_frames_is_bounded() -> None:
    async with bench() as made:
        link = await made.open()
        for _ in range(LINK_WINDOW // LINK_FRAME_COST + 1):
            made.say(LinkData(link=link.id, frame=b""))
        assert len(made.links) == 0


@pytest.mark.parametrize("amount", [0, -1, LINK_WINDOW, 1 << 60])
async def test_impossible_credit_ends_the_link(amount: int) -> None:
    async with bench() as made:
        link = await made.open()
        made.say(LinkCredit(link=link.id, amount=amount))
        with pytest.raises(NodeUnavailable, match="not possible"):
            await link.send(b"x")


async def test_offers_are_passed_on_with_their_sender() -> None:
    async with bench() as made:
        made.say(LinkOffer(link=LinkId(2), sender=PeerId("carl")))
        ((transport, sender),) = made.offered
        assert sender == "carl"
        made.say(LinkData(link=LinkId(2), frame=b"hello"))
        assert bytes(await transport.receive()) == b"hello"


async def test_offers_that_cannot_be_right_are_ignored() -> None:
    async with bench() as made:
        for link in (1, 0, -2):
            made.say(LinkOffer(link=LinkId(link), sender=PeerId("carl")))
        made.say(LinkOffer(link=LinkId(2), sender=PeerId("carl")))
        made.say(LinkOffer(link=LinkId(2), sender=PeerId("mallory")))
        assert [sender for _, sender in made.offered] == ["carl"]


async def test_links_are_bounded_and_unwanted_ones_are_refused() -> None:
    async with bench(max_links=1) as made:
        await made.open()
        with pytest.raises(QuotaExceeded):
            await made.open()
        made.say(LinkOffer(link=LinkId(2), sender=PeerId("carl")))
        refusal = made.hop.take()[-1]
        assert isinstance(refusal, CloseLink) and refusal.error is not None and refusal.error.code == "quota"
    async with bench(accepts=False) as made:
        made.say(LinkOffer(link=LinkId(2), sender=PeerId("carl")))
        assert [type(message) for message in made.hop.take()] == [CloseLink]


async def test_the_far_ends_reason_reaches_the_reader_after_the_frames() -> None:
    async with bench() as made:
        link = await made.open()
        made.say(LinkData(link=link.id, frame=b"last"))
        made.say(CloseLink(link=link.id, error=ErrorInfo(code="unavailable", message="node alice is gone")))
        assert bytes(await link.receive()) == b"last"
        with pytest.raises(NodeUnavailable, match="alice is gone"):
            await link.receive()
        with pytest.raises(NodeUnavailable, match="alice is gone"):
            await link.send(b"x")
        await link.close()
        assert not any(isinstance(message, CloseLink) for message in made.hop.take())


async def test_all_links_fail_when_the_gateway_is_gone() -> None:
    async with bench() as made:
        link = await made.open()
        await link.send(bytes(LINK_START))
        stuck = [asyncio.create_task(link.receive()), asyncio.create_task(link.send(b"x"))]
        await asyncio.sleep(0)
        made.hop.gone.set_result(NodeUnavailable("the gateway was lost"))
        for error in await asyncio.gather(*stuck, return_exceptions=True):
            assert isinstance(error, NodeUnavailable) and "the gateway was lost" in error.message
        with pytest.raises(NodeUnavailable):
            await made.open()
        await link.close()


async def test_leaving_ends_the_links() -> None:
    async with bench() as made:
        link = await made.open()
    with pytest.raises(NodeUnavailable):
        await link.receive()
    with pytest.raises(NodeUnavailable, match="no connection"):
        await made.links.open(NODE)
