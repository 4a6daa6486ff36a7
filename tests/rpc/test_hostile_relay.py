"""A gateway that does its worst: in each way, nothing is believed that should not be, and nobody waits for ever.

The relay sees every frame and may pass on whatever it likes. It also has an identity of its own, mallory, properly
enrolled, and knows every peer's card.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgpack
import pytest
from channel_rig import Grid, Outcome, Relay, Tamper, both, outcomes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grid.crypto.cards import CARD_LIFE_S, DAY_S
from grid.crypto.identity import Expected, LocalIdentity
from grid.crypto.keys import AgreementKey
from grid.crypto.noise import Handshake
from grid.errors import AuthenticationFailed, GridError, NodeUnavailable, WireError
from grid.ids import GridId, PeerId
from grid.rpc.channel import CHANNEL_VERSION, HANDSHAKE, MAGIC, REFUSAL, Prologue, SecureChannel
from grid.transport.base import MAX_FRAME_BYTES, Transport
from grid.transport.memory import memory_pair

SECRET = b"the rows of my patients, which nobody else may read"


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(tmp_path)


def failed(outcome: Outcome, *words: str) -> None:
    """The handshake ended in a clear error of one of the kinds that mean interference."""
    assert isinstance(outcome, (AuthenticationFailed, WireError, NodeUnavailable)), outcome
    assert len(outcome.message) > 20
    for word in words:
        assert word in outcome.message, outcome.message


async def handshake_through(grid: Grid, tamper: Tamper) -> tuple[Outcome, Outcome]:
    async with Relay(tamper) as relay:
        return await outcomes(grid.open(relay.near), grid.accept(relay.far))


def replacing(direction: str, number: int, change: Callable[[bytes], bytes | None]) -> Tamper:
    """Change the frame of that number in that direction; drop it where `change` gives None."""

    def tamper(way: str, count: int, frame: bytes) -> Sequence[bytes]:
        if (way, count) != (direction, number):
            return [frame]
        changed = change(frame)
        return [] if changed is None else [changed]

    return tamper


# ---------------------------------------------------------------- an honest relay


async def test_a_relay_sees_nothing(grid: Grid) -> None:
    async with Relay() as relay:
        carols, alices = await both(grid.open(relay.near), grid.accept(relay.far))
        await carols.send(SECRET)
        assert await alices.receive() == SECRET
        await alices.send(SECRET[::-1])
        assert await carols.receive() == SECRET[::-1]
        seen = relay.everything
        cards = grid.carol.card + grid.alice.card
        for secret in (SECRET, SECRET[::-1], cards):
            assert not any(secret[start : start + 16] in seen for start in range(len(secret) - 15) if _is_telling(secret, start))
        assert grid.alice.noise.public not in seen and grid.carol.noise.public not in seen


def _is_telling(text: bytes, start: int) -> bool:
    return len(set(text[start : start + 16])) >= 8


# ---------------------------------------------------------------- swapped keys


async def impersonate_node(grid: Grid, end: Transport, card: bytes, static: AgreementKey) -> None:
    """Answer carol's opening as responder, with whatever card and key."""
    frame = bytes(await end.receive())
    prologue, first = frame[2 : 2 + frame[1]], frame[2 + frame[1] :]
    handshake = Handshake(initiator=False, static=static, prologue=prologue)
    handshake.read(first)
    await end.send(bytes([HANDSHAKE]), handshake.write(msgpack.packb([card, b""])))


async def opened_against(grid: Grid, card: bytes, static: AgreementKey, expect: Expected | None = None) -> Outcome:
    near, far = memory_pair()

    async def opening() -> Outcome:
        try:
            return await grid.open(near, expect=expect)
        except GridError as error:
            return error

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(opening())
        tasks.create_task(impersonate_node(grid, far, card, static))
    return task.result()


async def test_a_man_in_the_middle_with_its_own_valid_card_is_not_the_node(grid: Grid) -> None:
    failed(await opened_against(grid, grid.mallory.card, grid.mallory.noise), "reached node mallory", "wrong peer")


async def test_a_man_in_the_middle_with_the_nodes_card_does_not_hold_its_key(grid: Grid) -> None:
    failed(await opened_against(grid, grid.alice.card, grid.mallory.noise), "holds another channel key")


async def test_a_gateway_that_lists_its_own_node_under_anothers_name_is_found_out(grid: Grid) -> None:
    expect = Expected(id=grid.mallory.id, name="alice", role="node")
    failed(await opened_against(grid, grid.mallory.card, grid.mallory.noise, expect), "'alice'", "reached node mallory")


async def test_a_card_with_the_nodes_name_that_nobody_enrolled_is_refused(grid: Grid) -> None:
    fake = LocalIdentity.create(name="alice", role="node", clock=grid.clock)
    expect = Expected(id=fake.id, name="alice", role="node")
    failed(await opened_against(grid, fake.card, fake.noise, expect), "not enrolled under this grid's root")


async def test_a_stripped_card_is_refused(grid: Grid) -> None:
    failed(await opened_against(grid, b"", grid.mallory.noise), "shows no card")


async def accepted_against(grid: Grid, claimed: LocalIdentity, card: bytes, static: AgreementKey) -> tuple[Outcome, str]:
    """Open a channel to alice as `claimed`, with whatever card and key: her outcome, and what she says sealed."""
    near, far = memory_pair()

    async def intrude() -> str:
        prologue = Prologue(CHANNEL_VERSION, grid.id, claimed.id, grid.alice.id).encode()
        handshake = Handshake(initiator=True, static=static, prologue=prologue)
        await near.send(bytes([HANDSHAKE, len(prologue)]), prologue, handshake.write())
        handshake.read(bytes(await near.receive())[1:])
        await near.send(bytes([HANDSHAKE]), handshake.write(msgpack.packb([card, b""])))
        _, receiving = handshake.split()
        return str(msgpack.unpackb(receiving.open(await near.receive()))[1])

    async def accepting() -> Outcome:
        try:
            return await grid.accept(far)
        except GridError as error:
            return error

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        words, outcome = tasks.create_task(intrude()), tasks.create_task(accepting())
    return outcome.result(), words.result()


async def test_a_man_in_the_middle_cannot_pass_for_the_client_either(grid: Grid) -> None:
    mallory = grid.mallory
    for claimed, card, word in (
        (grid.carol, mallory.card, "reached node mallory"),
        (grid.carol, grid.carol.card, "holds another channel key"),
        (mallory, grid.carol.card, "reached client carol"),
        (mallory, b"", "shows no card"),
    ):
        outcome, words = await accepted_against(grid, claimed, card, mallory.noise)
        failed(outcome, word)
        assert word in words


async def test_swapped_ephemeral_keys_fail_at_both_ends(grid: Grid) -> None:
    def with_key(position: int) -> Callable[[bytes], bytes]:
        key = AgreementKey.generate().public
        return lambda frame: frame[:position] + key + frame[position + 32 :]

    prologue_end = 2 + len(Prologue(CHANNEL_VERSION, grid.id, grid.carol.id, grid.alice.id).encode())
    for direction, position in (("->", prologue_end), ("<-", 1)):
        opened, accepted = await handshake_through(grid, replacing(direction, 0, with_key(position)))
        failed(opened, "the handshake with alice failed")
        failed(accepted)


# ---------------------------------------------------------------- another node, another version


async def test_a_channel_routed_to_another_valid_node_is_refused_there(grid: Grid) -> None:
    async with Relay() as relay:
        opened, accepted = await outcomes(grid.open(relay.near), grid.accept(relay.far, me=grid.bob))
    failed(opened, "refused the channel", "meant for")
    failed(accepted, grid.alice.id, grid.bob.id)


@pytest.mark.parametrize("field", ["version", "grid", "initiator", "responder"])
async def test_a_changed_prologue_makes_the_handshake_fail(grid: Grid, field: str) -> None:
    changes = {"version": CHANNEL_VERSION - 1, "grid": "b" * 26, "initiator": grid.mallory.id, "responder": grid.bob.id}

    def change(frame: bytes) -> bytes:
        parts = msgpack.unpackb(frame[2 : 2 + frame[1]])
        parts[1 + list(changes).index(field)] = changes[field]
        prologue = msgpack.packb(parts)
        return bytes([HANDSHAKE, len(prologue)]) + prologue + frame[2 + frame[1] :]

    async with Relay(replacing("->", 0, change)) as relay:
        # The changed responder is the one who answers: routed there, and told that it was meant.
        answering = grid.bob if field == "responder" else grid.alice
        opened, accepted = await outcomes(grid.open(relay.near), grid.accept(relay.far, me=answering))
    failed(opened)
    failed(accepted, *(["version 0"] if field == "version" else []))
    if field in ("initiator", "responder"):
        failed(opened, "the handshake with alice failed")


# ---------------------------------------------------------------- replay


async def test_a_recorded_session_replayed_to_the_node_fails(grid: Grid) -> None:
    async with Relay() as relay:
        carols, alices = await both(grid.open(relay.near), grid.accept(relay.far))
        await carols.send(SECRET)
        assert await alices.receive() == SECRET
        recorded = list(relay.seen["->"])
    near, far = memory_pair()
    for frame in recorded:
        await near.send(frame)
    with pytest.raises(AuthenticationFailed, match=r"the handshake with .* failed"):
        await grid.accept(far)


async def test_a_recorded_answer_replayed_to_the_client_fails(grid: Grid) -> None:
    async with Relay() as relay:
        await both(grid.open(relay.near), grid.accept(relay.far))
        recorded = list(relay.seen["<-"])
    near, far = memory_pair()
    for frame in recorded:
        await far.send(frame)
    with pytest.raises(AuthenticationFailed, match="the handshake with alice failed"):
        await grid.open(near)


async def test_an_old_card_is_refused(grid: Grid) -> None:
    old = grid.alice.card
    await grid.clock.advance(CARD_LIFE_S + DAY_S)
    assert grid.alice.card_for(grid.clock) != old
    failed(await opened_against(grid, old, grid.alice.noise), "expired")


async def test_frames_of_an_earlier_channel_do_not_open_in_a_later_one(grid: Grid) -> None:
    async with Relay() as relay:
        carols, alices = await both(grid.open(relay.near), grid.accept(relay.far))
        await carols.send(SECRET)
        assert await alices.receive() == SECRET
        old = relay.seen["->"][-1]
    async with Relay() as relay:
        _, alices = await both(grid.open(relay.near), grid.accept(relay.far))
        await relay.inject("->", old)
        with pytest.raises(AuthenticationFailed, match="frame 0 from client carol"):
            await alices.receive()


# ---------------------------------------------------------------- frames of a live channel


FRAMES_BEFORE = {"->": 2, "<-": 2}
"""Frames of the handshake in each direction: what comes after is sealed and carries data."""


class Swap:
    """Passes frame 1 of the data on before frame 0."""

    def __init__(self) -> None:
        self.held: bytes | None = None

    def __call__(self, direction: str, number: int, frame: bytes) -> Sequence[bytes]:
        if direction == "->" and number == FRAMES_BEFORE["->"]:
            self.held = frame
            return []
        if self.held is not None and direction == "->":
            held, self.held = self.held, None
            return [frame, held]
        return [frame]


def on_data(number: int, change: Callable[[bytes], Sequence[bytes]]) -> Tamper:
    """Change the data frame of that number from the client to the node."""
    return lambda way, count, frame: change(frame) if (way, count) == ("->", FRAMES_BEFORE["->"] + number) else [frame]


INTERFERENCE: dict[str, tuple[int, Callable[[], Tamper]]] = {
    # name -> (data frames that come through before it, what the relay does)
    "reorder": (0, Swap),
    "drop": (1, lambda: on_data(1, lambda frame: [])),
    "repeat": (2, lambda: on_data(1, lambda frame: [frame, frame])),
    "cut the end": (1, lambda: on_data(1, lambda frame: [frame[:-1]])),
    "cut to nothing": (1, lambda: on_data(1, lambda frame: [b""])),
    "cut to a tag": (1, lambda: on_data(1, lambda frame: [frame[:16]])),
    "lengthen": (1, lambda: on_data(1, lambda frame: [frame + b"\0"])),
    "join two halves wrongly": (1, lambda: on_data(1, lambda frame: [frame[:20], frame[20:]])),
    "flip the first bit": (1, lambda: on_data(1, lambda frame: [bytes([frame[0] ^ 1]) + frame[1:]])),
    "flip the last bit": (1, lambda: on_data(1, lambda frame: [frame[:-1] + bytes([frame[-1] ^ 128])])),
    "put in a frame of its own": (1, lambda: on_data(1, lambda frame: [bytes(64), frame])),
    "forge a refusal": (1, lambda: on_data(1, lambda frame: [bytes([REFUSAL]) + b"go away", frame])),
    "restart the handshake": (1, lambda: on_data(1, lambda frame: [bytes([HANDSHAKE]) + bytes(100), frame])),
}


@pytest.mark.parametrize("name", INTERFERENCE)
async def test_interference_with_frames_ends_the_channel_and_gives_nothing_away(grid: Grid, name: str) -> None:
    expected, make = INTERFERENCE[name]
    async with Relay(make()) as relay:
        carols, alices = await both(grid.open(relay.near), grid.accept(relay.far))
        for number in range(4):
            await carols.send(b"%d: " % number, SECRET)
        got = []
        with pytest.raises(AuthenticationFailed, match=r"frame \d from client carol .* does not open"):
            while True:
                got.append(bytes(await alices.receive()))
        # Every frame from before comes through, in order, and none after, even though some would open.
        assert got == [b"%d: " % number + SECRET for number in range(expected)]
        for call in (alices.receive(), alices.send(b"x")):
            with pytest.raises(AuthenticationFailed, match="does not open"):
                await call
        # The client learns of it, too: its connection ends.
        with pytest.raises(NodeUnavailable):
            await carols.receive()


async def test_a_frame_sent_back_to_its_sender_does_not_open(grid: Grid) -> None:
    async with Relay() as relay:
        carols, alices = await both(grid.open(relay.near), grid.accept(relay.far))
        await carols.send(SECRET)
        assert await alices.receive() == SECRET
        await relay.inject("<-", relay.seen["->"][-1])
        with pytest.raises(AuthenticationFailed, match="from node alice"):
            await carols.receive()


async def test_a_cut_connection_is_told_from_an_end(grid: Grid) -> None:
    async with Relay() as relay:
        carols, alices = await both(grid.open(relay.near), grid.accept(relay.far))
        await carols.send(b"one")
        assert await alices.receive() == b"one"
        await relay._there.close("cut")
        with pytest.raises(NodeUnavailable):
            await alices.receive()


async def test_the_largest_frame_may_be_flipped_anywhere(grid: Grid) -> None:
    size = MAX_FRAME_BYTES - 16
    for position in (0, 15, 16, size // 2, size - 1, size, MAX_FRAME_BYTES - 1):

        def flip(frame: bytes, position: int = position) -> Sequence[bytes]:
            changed = bytearray(frame)
            changed[position] ^= 4
            return [changed]

        async with Relay(on_data(0, flip)) as relay:
            carols, alices = await both(grid.open(relay.near), grid.accept(relay.far))
            await carols.send(bytes(size))
            with pytest.raises(AuthenticationFailed, match="does not open"):
                await alices.receive()


# ---------------------------------------------------------------- the handshake, fuzzed


def _packed(parts: list[object]) -> bytes:
    """msgpack, or nothing where it has no room for a number."""
    try:
        packed: bytes = msgpack.packb(parts)
    except OverflowError:
        return b""
    return packed


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=100), st.lists(st.integers() | st.text() | st.just(MAGIC), max_size=6).map(_packed)))
def test_reading_a_prologue_is_total(garbage: bytes) -> None:
    with pytest.raises(WireError):
        Prologue.decode(garbage)


def test_a_prologue_has_one_encoding() -> None:
    prologue = Prologue(CHANNEL_VERSION, GridId("g" * 26), PeerId("a" * 26), PeerId("b" * 26))
    assert Prologue.decode(prologue.encode()) == prologue
    parts = msgpack.unpackb(prologue.encode())
    wider = msgpack.Packer().pack_array_header(5) + b"".join(
        msgpack.packb(part) if part != CHANNEL_VERSION else b"\xcd\x00\x01" for part in parts
    )
    assert msgpack.unpackb(wider) == parts
    with pytest.raises(WireError):
        Prologue.decode(wider)


def _never_a_channel_on_both_sides(opened: Outcome, accepted: Outcome) -> None:
    for outcome in (opened, accepted):
        assert isinstance(outcome, SecureChannel) or isinstance(outcome, GridError)
    assert not (isinstance(opened, SecureChannel) and isinstance(accepted, SecureChannel))


FRAME = st.sampled_from([("->", 0), ("->", 1), ("<-", 0), ("<-", 1)])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frame=FRAME, garbage=st.binary(max_size=400))
async def test_any_handshake_frame_may_be_garbage(grid: Grid, frame: tuple[str, int], garbage: bytes) -> None:
    opened, accepted = await handshake_through(grid, replacing(*frame, lambda _: garbage))
    _never_a_channel_on_both_sides(opened, accepted)
    assert isinstance(opened, GridError)  # the initiator's side never believes it
    if frame != ("<-", 1):
        failed(accepted)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frame=FRAME, data=st.data())
async def test_any_byte_of_the_handshake_may_be_changed(grid: Grid, frame: tuple[str, int], data: st.DataObject) -> None:
    def change(original: bytes) -> bytes:
        changed = bytearray(original)
        changed[data.draw(st.integers(0, len(changed) - 1), label="byte")] ^= data.draw(st.integers(1, 255), label="change")
        return bytes(changed)

    opened, accepted = await handshake_through(grid, replacing(*frame, change))
    _never_a_channel_on_both_sides(opened, accepted)
    failed(opened)


@pytest.mark.parametrize("frame", [("->", 0), ("->", 1), ("<-", 0), ("<-", 1)])
@pytest.mark.parametrize("size", [0, 1, 70_000, MAX_FRAME_BYTES])
async def test_handshake_frames_are_bounded(grid: Grid, frame: tuple[str, int], size: int) -> None:
    opened, accepted = await handshake_through(grid, replacing(*frame, lambda _: bytes([HANDSHAKE]) * size))
    failed(opened)
    _never_a_channel_on_both_sides(opened, accepted)


async def test_a_forged_refusal_is_only_words(grid: Grid) -> None:
    words = bytes([REFUSAL]) + b"\x1b[2Jyour card\x00 was revoked \xff" + b"x" * 10_000
    opened, _ = await handshake_through(grid, replacing("<-", 0, lambda _: words))
    failed(opened, "the far end, or somebody between us, refused the channel", "your card was revoked")
    assert isinstance(opened, GridError)
    assert opened.message.isprintable() and len(opened.message) < 500


# ---------------------------------------------------------------- a withheld revocation


async def test_a_withheld_revocation_works_until_a_handshake_with_an_informed_peer(grid: Grid) -> None:
    # The gateway has the list that revokes mallory and passes it on to bob alone.
    carols_trust, bobs_trust = grid.trust(), grid.trust()
    revoking = grid.root.revoke("mallory", wall=grid.clock.wall())
    bobs_trust.merge_revocations(revoking)
    to_mallory, to_bob = memory_pair(), memory_pair()
    expect = Expected(id=grid.mallory.id, name="mallory")
    carols, _ = await both(
        grid.open(to_mallory[0], trust=carols_trust, expect=expect), grid.accept(to_mallory[1], me=grid.mallory)
    )
    await carols.send(b"not yet known to be bad")
    # Carol meets bob, over a channel that the gateway can cut and cannot change: now she knows.
    await both(
        grid.open(to_bob[0], trust=carols_trust, expect=Expected(id=grid.bob.id)),
        grid.accept(to_bob[1], me=grid.bob, trust=bobs_trust),
    )
    with pytest.raises(AuthenticationFailed, match=r"mallory .* was revoked"):
        await carols.send(b"x")


async def test_a_withheld_revocation_ends_with_the_card(grid: Grid) -> None:
    relay = Relay()
    async with relay:
        carols, alices = await both(grid.open(relay.near), grid.accept(relay.far))
        grid.root.revoke("carol", wall=grid.clock.wall())
        await carols.send(b"withheld")
        assert await alices.receive() == b"withheld"
        await grid.clock.advance(CARD_LIFE_S + 301)
        await carols.send(b"x")
        with pytest.raises(AuthenticationFailed, match="expired"):
            await alices.receive()


async def test_a_forged_revocation_list_is_refused(grid: Grid, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    forged = Grid(folder).root.revoke("alice", wall=grid.clock.wall())
    with pytest.raises(AuthenticationFailed, match="revocation"):
        grid.trust().merge_revocations(forged)
