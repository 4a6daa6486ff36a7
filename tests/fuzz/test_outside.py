"""Mutated frames before anybody has proved who they are: the codec, the session, the gateway's door, the channel's handshake."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from channel_rig import Grid, Relay, outcomes
from mutants import BYTES, Mutator, frames_of_every_type
from watch import Watch
from wires import HELLO, Counting, talk

from grid.errors import GridError, WireError
from grid.rpc.channel import SecureChannel
from grid.settings import SessionLimits
from grid.testing.crowd import crowd
from grid.transport.memory import memory_pair
from grid.wire.codec import decode
from grid.wire.effects import Closed, Deliver, Opened
from grid.wire.messages import MESSAGES, ListNodes
from grid.wire.session import Session

LIMITS = SessionLimits()
BATCH = 500
"""Frames made before memory is watched while they are read: watching costs time."""


def allowance(frame: bytes) -> int:
    """Bytes that may be taken while a frame is read: in proportion to it, and a constant."""
    return 20 * len(frame) + 1_000_000


@pytest.mark.fuzz("decoding")
@pytest.mark.timeout(1500)
def test_a_mutated_frame_is_a_message_or_a_wire_error(count: int, seed: int) -> None:
    valid = frames_of_every_type()
    assert set(valid) == set(MESSAGES) and all(valid.values())
    mutator = Mutator(valid, seed)
    readable = 0
    for first in range(0, count, BATCH):
        frames = [mutator.mutant(number) for number in range(first, min(count, first + BATCH))]
        tracemalloc.start()
        try:
            for number, frame in enumerate(frames, first):
                readable += _read(mutator, number, frame)
        finally:
            tracemalloc.stop()
    assert count / 20 < readable < count  # neither all noise nor all harmless


def _read(mutator: Mutator, number: int, frame: bytes) -> bool:
    """Give a frame to the codec and to sessions; whether it is a message."""
    base = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    readable = True
    try:
        decode(frame)
    except WireError:
        readable = False
    except Exception as error:
        raise AssertionError(f"{mutator}, mutant {number}: {type(error).__name__}") from error
    _sessions(mutator, number, frame)
    taken = tracemalloc.get_traced_memory()[1] - base
    assert taken < allowance(frame), f"{mutator}, mutant {number}: {taken} bytes for a frame of {len(frame)}"
    return readable


def _sessions(mutator: Mutator, number: int, frame: bytes) -> None:
    """A session that waits for a Hello, one that dials, and one that is open: each takes the frame or ends with `WireError`."""
    for initiator, is_open in ((False, False), (True, False), (False, True)):
        session = Session(initiator=initiator, limits=LIMITS)
        session.start(0.0)
        if is_open:
            session.receive(HELLO, 0.0)
        try:
            effects = session.receive(frame, 0.0)
            while session.next_frame(0.0) is not None:
                pass
        except Exception as error:
            raise AssertionError(f"{mutator}, mutant {number}: a session raised {type(error).__name__}") from error
        for effect in effects:
            assert type(effect) in (Closed, Opened, Deliver) or is_open, effect
            assert not isinstance(effect, Closed) or effect.error is None or isinstance(effect.error, GridError)


@pytest.mark.fuzz("strangers")
@pytest.mark.timeout(1500)
async def test_the_gateway_takes_strangers_frames_or_ends_their_connections(count: int, seed: int) -> None:
    mutator = Mutator(frames_of_every_type(), seed + 1)
    async with crowd() as grid:
        member = await grid.peer("member")
        await member.request(ListNodes())
        async with Watch(f"strangers, {mutator}"):
            taken = number = 0
            while taken < count:
                ours, theirs = memory_pair()
                there = Counting(theirs)
                served = grid.tasks.create_task(grid.gateway.serve(there))
                async with talk(ours, there) as session:
                    for _ in range(4):
                        if not await session.tell(mutator.mutant(number)):
                            break
                        number, taken = number + 1, taken + 1
                number += 1
                await served
                if number % 50 == 0:
                    await member.request(ListNodes())
            assert grid.gateway.unauthenticated == 0
        await member.request(ListNodes())


@pytest.mark.fuzz("handshakes")
@pytest.mark.timeout(1500)
async def test_a_handshake_with_a_mutated_frame_fails_on_both_sides(count: int, seed: int, tmp_path: Path) -> None:
    grid = Grid(tmp_path)
    async with Watch(f"handshakes, seed {seed}"):
        for number in range(count):
            rng = random.Random(f"{seed}/{number}")
            way, which = rng.choice((("->", 0), ("<-", 0), ("->", 1), ("<-", 1)))

            def tamper(direction: str, place: int, frame: bytes) -> list[bytes]:
                if (direction, place) != (way, which):  # noqa: B023 - used up before the next round
                    return [frame]
                changed = rng.choice(BYTES)(rng, frame, frame)  # noqa: B023
                return [changed[:1_000_000]]

            async with Relay(tamper) as relay:
                opened, accepted = await outcomes(grid.open(relay.near), grid.accept(relay.far))
                tampered = relay.seen[way][which:]
            for outcome in (opened, accepted):
                if isinstance(outcome, SecureChannel):
                    await outcome.close()
            unchanged = not tampered or (isinstance(opened, SecureChannel) and isinstance(accepted, SecureChannel))
            assert unchanged or isinstance(opened, GridError) or (way, which) == ("<-", 1), f"seed {seed}, handshake {number}"
    first, second = await grid.connect()
    await first.send(b"still there")
    assert await second.receive() == b"still there"
    await first.close()
    await second.close()
