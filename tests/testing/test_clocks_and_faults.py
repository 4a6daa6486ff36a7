"""The fake clock and the faulty transport do what tests rely on."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from grid.errors import NodeUnavailable
from grid.testing.clocks import FakeClock
from grid.testing.conformance import TransportConformance, both_closed
from grid.testing.faults import Faults, FaultyTransport
from grid.transport.base import Transport
from grid.transport.memory import memory_pair

pairs = contextlib.asynccontextmanager(both_closed)


async def test_time_stands_still_until_it_is_moved() -> None:
    clock = FakeClock(monotonic=5.0, wall=100.0)
    await clock.settle()
    assert (clock.monotonic(), clock.wall()) == (5.0, 100.0)
    await clock.advance(2.5)
    assert (clock.monotonic(), clock.wall()) == (7.5, 102.5)


async def test_sleepers_wake_in_order_and_see_the_time_they_asked_for() -> None:
    clock = FakeClock(monotonic=0.0)
    seen: list[tuple[str, float]] = []

    async def every(name: str, period: float) -> None:
        while True:
            await clock.sleep(period)
            seen.append((name, clock.monotonic()))

    tasks = [asyncio.ensure_future(every("a", 2.0)), asyncio.ensure_future(every("b", 3.0))]
    await clock.advance(6.5)
    assert seen == [("a", 2.0), ("b", 3.0), ("a", 4.0), ("b", 6.0), ("a", 6.0)]
    assert clock.sleepers == 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert clock.sleepers == 0
    await clock.advance(10)
    assert len(seen) == 5


async def test_a_jump_wakes_everyone_late() -> None:
    clock = FakeClock(monotonic=0.0)
    sleeping = [asyncio.ensure_future(clock.sleep(seconds)) for seconds in (1.0, 2.0, 50.0)]
    await clock.settle()
    clock.jump(10.0)
    await clock.settle()
    assert [task.done() for task in sleeping] == [True, True, False]
    sleeping[2].cancel()


async def test_no_time_is_no_wait() -> None:
    clock = FakeClock()
    await clock.sleep(0)
    await clock.sleep(-1)


class TestWithoutFaults(TransportConformance):
    """A faulty transport with nothing to do is a transport like any other."""

    def pair(self) -> contextlib.AbstractAsyncContextManager[tuple[Transport, Transport]]:
        clock = FakeClock()
        ends = [FaultyTransport(end, seed=1, faults=Faults(), clock=clock) for end in memory_pair()]
        return pairs(ends[0], ends[1])


FRAMES = [bytes([number]) * 20 for number in range(40)]


async def through(faults: Faults, seed: int = 3) -> tuple[list[bytes], FaultyTransport]:
    left, right = memory_pair()
    faulty = FaultyTransport(left, seed=seed, faults=faults, clock=FakeClock())
    with contextlib.suppress(NodeUnavailable):
        for frame in FRAMES:
            await faulty.send(frame)
    await left.close()
    came: list[bytes] = []
    with contextlib.suppress(NodeUnavailable):
        while True:
            came.append(bytes(await right.receive()))
    return came, faulty


async def test_repeat() -> None:
    came, faulty = await through(Faults(repeat=0.5))
    assert len(came) == 40 + faulty.applied["repeat"] > 45
    assert list(dict.fromkeys(came)) == FRAMES


async def test_drop() -> None:
    came, faulty = await through(Faults(drop=0.5))
    assert len(came) == 40 - faulty.applied["drop"] < 35
    assert [frame for frame in FRAMES if frame in came] == came


async def test_truncate() -> None:
    came, faulty = await through(Faults(truncate=0.5))
    assert sum(len(frame) < 20 for frame in came) == faulty.applied["truncate"] > 5


async def test_flip() -> None:
    came, faulty = await through(Faults(flip=0.5))
    changed = [(a, b) for a, b in zip(came, FRAMES, strict=True) if a != b]
    assert len(changed) == faulty.applied["flip"] > 5
    for one, other in changed:
        assert sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True)) == 1


async def test_reorder() -> None:
    came, faulty = await through(Faults(reorder=0.3))
    assert came != FRAMES and faulty.applied["reorder"] > 5
    assert sorted(came) == [frame for frame in FRAMES if frame in came]


async def test_cut() -> None:
    came, faulty = await through(Faults(cut=0.1))
    assert faulty.applied["cut"] >= 1 and len(came) < 40
    with pytest.raises(NodeUnavailable, match="seed=3"):
        left, _right = memory_pair()
        await FaultyTransport(left, seed=3, faults=Faults(cut=1.0), clock=FakeClock()).send(b"x")


async def test_delay_keeps_order_and_takes_the_clocks_time() -> None:
    left, right = memory_pair()
    clock = FakeClock()
    faulty = FaultyTransport(left, seed=1, faults=Faults(delay=1.0, max_delay_s=2.0), clock=clock)
    sending = asyncio.ensure_future(faulty.send(b"late"))
    await clock.settle()
    assert not sending.done()
    await clock.advance(2.0)
    assert sending.done() and await right.receive() == b"late"


async def test_a_seed_repeats_itself_and_spares_the_first() -> None:
    faults = Faults(flip=0.5, drop=0.2, repeat=0.2, reorder=0.2, spare=5)
    first, second, other = [(await through(faults, seed))[0] for seed in (7, 7, 8)]
    assert first == second != other
    assert first[:5] == FRAMES[:5]
