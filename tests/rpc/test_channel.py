"""The sealed channel where nobody interferes: who may talk to whom, what passes, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from channel_rig import Grid, both, outcomes

from grid.crypto.cards import CARD_LIFE_S
from grid.crypto.identity import Expected, LocalIdentity, Trust
from grid.errors import (
    AuthenticationFailed,
    ClockSkew,
    DeadlineExceeded,
    GridError,
    LocalProtocolError,
    NodeUnavailable,
)
from grid.ids import GridId
from grid.rpc.channel import MAX_PAYLOAD_BYTES, SecureChannel, accept_channel, open_channel
from grid.settings import SessionLimits
from grid.testing.clocks import FakeClock
from grid.testing.conformance import TransportConformance
from grid.transport.base import Transport
from grid.transport.memory import memory_pair


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(tmp_path)


class TestConformance(TransportConformance):
    """A channel does what every transport does."""

    largest = MAX_PAYLOAD_BYTES

    @pytest.fixture(autouse=True)
    def _grid(self, grid: Grid) -> None:
        self.grid = grid

    @contextlib.asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Transport, Transport]]:
        carols, alices = await self.grid.connect()
        async with carols, alices:
            yield carols, alices


async def test_each_side_knows_who_the_other_is(grid: Grid) -> None:
    carols, alices = await grid.connect()
    assert (carols.peer.id, carols.peer.name, carols.peer.role) == (grid.alice.id, "alice", "node")
    assert (alices.peer.id, alices.peer.name, alices.peer.role) == (grid.carol.id, "carol", "client")


async def test_frames_pass_whole_and_in_order_in_both_directions(grid: Grid) -> None:
    carols, alices = await grid.connect()
    for sender, receiver in ((carols, alices), (alices, carols)):
        for number in range(50):
            await sender.send(b"frame ", b"%d" % number, memoryview(b"!"))
        assert [bytes(await receiver.receive()) for _ in range(50)] == [b"frame %d!" % number for number in range(50)]


@pytest.mark.parametrize("size", [0, 1, 15, 16, 4096, 300_000, MAX_PAYLOAD_BYTES])
async def test_frames_of_any_size_up_to_the_limit(grid: Grid, size: int) -> None:
    carols, alices = await grid.connect()
    data = bytes(range(256)) * (size // 256 + 1)
    await carols.send(data[:size])
    got = await alices.receive()
    assert bytes(got) == data[:size]
    assert carols.max_payload == MAX_PAYLOAD_BYTES


async def test_what_comes_may_be_written_to(grid: Grid) -> None:
    carols, alices = await grid.connect()
    await carols.send(b"abc")
    got = memoryview(await alices.receive())
    got[0] = ord("x")
    assert bytes(got) == b"xbc"


async def test_a_frame_over_the_limit_is_our_own_mistake_and_harms_nothing(grid: Grid) -> None:
    carols, alices = await grid.connect()
    with pytest.raises(LocalProtocolError, match="at most"):
        await carols.send(bytes(MAX_PAYLOAD_BYTES), b"x")
    await carols.send(b"still there")
    assert await alices.receive() == b"still there"


async def test_parts_of_wider_items_count_in_bytes(grid: Grid) -> None:
    carols, alices = await grid.connect()
    wide = memoryview(bytes(MAX_PAYLOAD_BYTES // 8 * 8)).cast("q")
    await carols.send(wide)
    assert len(await alices.receive()) == wide.nbytes
    with pytest.raises(LocalProtocolError, match="at most"):
        await carols.send(wide, bytes(8))


async def test_a_cancelled_receive_loses_nothing(grid: Grid) -> None:
    carols, alices = await grid.connect()
    waiting = asyncio.ensure_future(alices.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await carols.send(b"after")
    assert await alices.receive() == b"after"


async def test_a_send_given_up_in_the_middle_ends_the_channel(grid: Grid) -> None:
    ends = memory_pair(capacity_bytes=1000)
    carols, _ = await both(grid.open(ends[0]), grid.accept(ends[1]))
    await carols.send(bytes(2000))
    stuck = asyncio.ensure_future(carols.send(bytes(2000)))
    await asyncio.sleep(0)
    stuck.cancel()
    await asyncio.wait([stuck])
    assert stuck.cancelled()
    for call in (carols.send(b"x"), carols.receive()):
        with pytest.raises(NodeUnavailable, match="given up in the middle"):
            await call


async def test_closing_is_seen_after_what_was_sent(grid: Grid) -> None:
    carols, alices = await grid.connect()
    await carols.send(b"last words")
    await carols.close("done")
    await carols.close("done")
    assert await alices.receive() == b"last words"
    with pytest.raises(NodeUnavailable):
        await alices.receive()
    with pytest.raises(NodeUnavailable):
        await carols.send(b"x")


# ---------------------------------------------------------------- who may


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"name": "bob"}, "asked for the peer with name 'bob'"), ({"role": "client"}, "asked for the peer with role 'client'")],
)
async def test_the_initiator_gets_whom_it_asked_for_or_nobody(grid: Grid, wrong: dict[str, str], reason: str) -> None:
    ends = memory_pair()
    opened, accepted = await outcomes(grid.open(ends[0], expect=Expected(id=grid.alice.id, **wrong)), grid.accept(ends[1]))
    assert isinstance(opened, AuthenticationFailed) and reason in opened.message
    assert isinstance(accepted, AuthenticationFailed) and reason in accepted.message


async def test_an_initiator_must_know_the_id(grid: Grid) -> None:
    with pytest.raises(LocalProtocolError, match="id is known"):
        await grid.open(memory_pair()[0], expect=Expected(name="alice"))


async def test_roles_that_may_not_open_are_told_so(grid: Grid) -> None:
    ends = memory_pair()
    opened, accepted = await outcomes(grid.open(ends[0]), grid.accept(ends[1], roles=("node",)))
    assert isinstance(opened, AuthenticationFailed) and "refused us" in opened.message and "only a node may" in opened.message
    assert isinstance(accepted, AuthenticationFailed) and "carol" in accepted.message


async def test_a_peer_of_another_grid_is_told_so(grid: Grid) -> None:
    ends = memory_pair()
    other = GridId("b" * 26)
    opening = open_channel(
        ends[0],
        me=grid.carol,
        trust=grid.trust(),
        expect=Expected(id=grid.alice.id),
        grid=other,
        limits=SessionLimits(),
        clock=grid.clock,
    )
    opened, accepted = await outcomes(opening, grid.accept(ends[1]))
    assert isinstance(opened, AuthenticationFailed) and "belongs to the grid" in opened.message
    assert isinstance(accepted, AuthenticationFailed) and str(other) in accepted.message


async def test_a_peer_whose_clock_is_ahead_is_told_by_how_much(grid: Grid) -> None:
    ends = memory_pair()
    dave = grid.enroll("dave", "client", clock=FakeClock(wall=grid.clock.wall() + 3600))
    opened, accepted = await outcomes(grid.open(ends[0], me=_frozen(dave)), grid.accept(ends[1]))
    for outcome in (opened, accepted):
        assert isinstance(outcome, ClockSkew) and "60 minutes in our future" in outcome.message


def _frozen(identity: LocalIdentity) -> LocalIdentity:
    """An identity that shows its card as it is, as one does whose clock is wrong."""
    card = identity.card
    identity.card_for = lambda clock: card  # type: ignore[method-assign]
    return identity


async def test_dev_peers_pin_each_other_by_name(grid: Grid) -> None:
    alice, other = (LocalIdentity.create(name="alice", role="node", clock=grid.clock) for _ in range(2))
    carol = LocalIdentity.create(name="carol", role="client", clock=grid.clock)
    carols_trust = Trust.dev()
    outcome_of = []
    for node in (alice, alice, other):
        ends = memory_pair()
        expect = Expected(id=node.id, name="alice", role="node")
        opening = grid.open(ends[0], me=carol, trust=carols_trust, expect=expect)
        outcome_of.append((await outcomes(opening, grid.accept(ends[1], me=node, trust=Trust.dev())))[0])
    assert isinstance(outcome_of[0], SecureChannel) and isinstance(outcome_of[1], SecureChannel)
    assert isinstance(outcome_of[2], AuthenticationFailed) and "first seen" in outcome_of[2].message


# ---------------------------------------------------------------- revocations, expiry, time


@pytest.mark.parametrize("informed", ["initiator", "responder"])
async def test_a_handshake_brings_the_newer_revocation_list_to_the_other_side(grid: Grid, informed: str) -> None:
    trusts = {"initiator": grid.trust(), "responder": grid.trust()}
    trusts[informed].merge_revocations(grid.root.revoke("mallory", wall=grid.clock.wall()))
    ends = memory_pair()
    await both(grid.open(ends[0], trust=trusts["initiator"]), grid.accept(ends[1], trust=trusts["responder"]))
    for trust in trusts.values():
        assert trust.revoked(grid.mallory.parsed_card)


async def test_a_revoked_initiator_learns_it_from_the_node(grid: Grid) -> None:
    ends, trust = memory_pair(), grid.trust()
    trust.merge_revocations(grid.root.revoke("carol", wall=grid.clock.wall()))
    carols_trust = grid.trust()
    opened, accepted = await outcomes(grid.open(ends[0], trust=carols_trust), grid.accept(ends[1], trust=trust))
    assert isinstance(opened, AuthenticationFailed) and "was revoked" in opened.message
    assert isinstance(accepted, AuthenticationFailed) and "was revoked" in accepted.message


async def test_live_channels_of_a_revoked_key_close_at_once(grid: Grid) -> None:
    ends, trust = memory_pair(), grid.trust()
    carols, _ = await both(grid.open(ends[0], trust=trust), grid.accept(ends[1]))
    waiting = asyncio.ensure_future(carols.receive())
    await asyncio.sleep(0)
    trust.merge_revocations(grid.root.revoke("bob", wall=grid.clock.wall()))
    await asyncio.sleep(0)
    assert not waiting.done()
    trust.merge_revocations(grid.root.revoke("alice", wall=grid.clock.wall()))
    with pytest.raises(AuthenticationFailed, match=r"alice.* was revoked"):
        await waiting
    for call in (carols.send(b"x"), carols.receive()):
        with pytest.raises(AuthenticationFailed, match="was revoked"):
            await call


async def test_a_channel_that_everybody_forgot_listens_no_more(grid: Grid) -> None:
    ends, trust = memory_pair(), grid.trust()
    channels = await both(grid.open(ends[0], trust=trust), grid.accept(ends[1], trust=trust))
    assert len(trust._listeners) == 2
    del channels
    gc.collect()
    assert not trust._listeners


async def test_a_closed_channel_listens_no_more(grid: Grid) -> None:
    ends, trust = memory_pair(), grid.trust()
    carols, alices = await both(grid.open(ends[0], trust=trust), grid.accept(ends[1], trust=trust))
    await carols.close()
    await alices.close()
    assert not trust._listeners


async def test_a_channel_ends_when_the_peers_card_has_expired(grid: Grid) -> None:
    carols, alices = await grid.connect()
    await grid.clock.advance(CARD_LIFE_S)
    await carols.send(b"in the five minutes")
    assert await alices.receive() == b"in the five minutes"
    await grid.clock.advance(301)
    await carols.send(b"too late")
    with pytest.raises(AuthenticationFailed, match=r"card of client carol .* has expired"):
        await alices.receive()


@pytest.mark.parametrize("silent", ["initiator", "responder"])
async def test_a_silent_peer_costs_handshake_s(grid: Grid, silent: str) -> None:
    ends = memory_pair()
    side = grid.open(ends[0]) if silent == "responder" else grid.accept(ends[1])
    waiting = asyncio.ensure_future(side)
    await grid.clock.settle()
    await grid.clock.advance(9.9)
    assert not waiting.done()
    await grid.clock.advance(0.2)
    with pytest.raises(DeadlineExceeded, match="handshake of a channel took longer than 10 s"):
        await waiting
    far = ends[1] if silent == "responder" else ends[0]
    with pytest.raises(NodeUnavailable):
        while True:
            await far.receive()


async def test_a_peer_that_leaves_in_the_middle_is_unavailable(grid: Grid) -> None:
    for leave in (0, 1):
        ends = memory_pair()
        await ends[leave].close("gone")
        with pytest.raises(NodeUnavailable):
            await (grid.accept(ends[1]) if leave == 0 else grid.open(ends[0]))


async def test_a_cancelled_handshake_closes_the_transport(grid: Grid) -> None:
    ends = memory_pair()
    waiting = asyncio.ensure_future(grid.accept(ends[1]))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    with pytest.raises(NodeUnavailable):
        await ends[0].receive()


async def test_many_channels_at_once(grid: Grid) -> None:
    trust = grid.trust()

    async def talk(number: int) -> bytes:
        ends = memory_pair()
        carols, alices = await both(grid.open(ends[0]), grid.accept(ends[1], trust=trust))
        async with carols, alices:
            await carols.send(b"%d" % number)
            return bytes(await alices.receive())

    async with asyncio.TaskGroup() as tasks:
        talks = [tasks.create_task(talk(number)) for number in range(20)]
    assert [one.result() for one in talks] == [b"%d" % number for number in range(20)]
    assert not trust._listeners


async def test_an_expired_enrolment_is_said_at_once(grid: Grid) -> None:
    dave = grid.enroll("dave", "client", valid_s=1000)
    await grid.clock.advance(2000)
    ends = memory_pair()
    opened, accepted = await outcomes(grid.open(ends[0], me=dave), grid.accept(ends[1]))
    assert isinstance(opened, AuthenticationFailed) and "enrolment of dave expired" in opened.message
    assert isinstance(accepted, GridError) and "enrolment of dave expired" in accepted.message


async def test_accepting_takes_only_peers_that_speak_first(grid: Grid) -> None:
    ends = memory_pair()
    waiting = asyncio.ensure_future(
        accept_channel(
            ends[1], me=grid.alice, trust=grid.trust(), grid=grid.id, limits=SessionLimits(handshake_s=5), clock=grid.clock
        )
    )
    await grid.clock.settle()
    await grid.clock.advance(5)
    with pytest.raises(DeadlineExceeded, match="5 s"):
        await waiting
