"""Resumable transports: the shared suite, then what happens when connections are lost at every position."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from channel_rig import Grid

from grid.clock import Clock, SystemClock
from grid.crypto.identity import Expected
from grid.errors import AuthenticationFailed, DeadlineExceeded, GridError, NodeUnavailable, NotFound, WireError
from grid.rpc.channel import SecureChannel, accept_channel, open_channel
from grid.rpc.resumable import Resumable, Sessions
from grid.rpc.resume import ASK, is_ack, is_ask
from grid.settings import SessionLimits
from grid.testing.clocks import FakeClock
from grid.testing.conformance import TransportConformance, receive_all, send_all
from grid.transport.base import Buffer, Transport
from grid.transport.memory import memory_pair

SECRET = bytes(32)
LIMITS = SessionLimits(lease_s=5.0, patience_s=2.0)


class Cut(Transport):
    """Passes frames on in both directions until `left` of them have passed; then the connection is gone."""

    def __init__(self, inner: Transport, left: int) -> None:
        self.inner = inner
        self.left = left

    async def _pass(self) -> None:
        if self.left <= 0:
            await self.inner.close("cut")
            raise NodeUnavailable("cut")
        self.left -= 1

    async def send(self, *parts: Buffer) -> None:
        await self._pass()
        await self.inner.send(*parts)

    async def receive(self) -> Buffer:
        frame = await self.inner.receive()
        await self._pass()
        return frame

    async def close(self, reason: str = "") -> None:
        await self.inner.close(reason)


class Two:
    """Two ends, and a network between them whose n-th connection breaks after `cuts[n]` frames; later ones never do."""

    def __init__(self, cuts: list[int], clock: Clock, limits: SessionLimits = LIMITS) -> None:
        self.cuts = cuts
        self.sessions = Sessions(limits=limits, clock=clock)
        self.dialed = 0
        self.reachable = True
        self.asks: list[bytes] = []
        self.serving: set[asyncio.Task[None]] = set()
        near, far = self.connection()
        self.far = self.sessions.wrap(far, SECRET)
        self.near = Resumable(near, SECRET, limits=limits, clock=clock, dial=self.dial)

    def connection(self) -> tuple[Transport, Transport]:
        near, far = memory_pair()
        if self.cuts:
            near = Cut(near, self.cuts.pop(0))
        return near, far

    async def dial(self) -> Transport:
        self.dialed += 1
        if not self.reachable:
            raise NodeUnavailable("nobody there")
        near, far = self.connection()
        task = asyncio.get_running_loop().create_task(self.serve(far))
        self.serving.add(task)
        return near

    async def serve(self, far: Transport) -> None:
        with contextlib.suppress(GridError):
            ask = await far.receive()
            assert is_ask(ask)
            self.asks.append(bytes(ask))
            await self.sessions.resume(ask, far)
        await far.close()


@contextlib.asynccontextmanager
async def two(cuts: list[int] | None = None, clock: Clock | None = None, limits: SessionLimits = LIMITS) -> AsyncIterator[Two]:
    made = Two(cuts or [], clock or SystemClock(), limits)
    try:
        yield made
    finally:
        await asyncio.gather(made.near.close(), made.far.close())
        if made.serving:
            await asyncio.wait(made.serving)


class TestInitiatorFirst(TransportConformance):
    """A resumable link that nobody cuts is a transport like any other."""

    @contextlib.asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Transport, Transport]]:
        async with two(limits=SessionLimits(lease_s=0.2)) as made:
            yield _Sealed(made.near), _Sealed(made.far)

    async def test_sending_to_a_closed_end_fails_in_the_end(self) -> None:
        """That the far end is gone for good is learned by asking it to go on, which takes a moment."""
        async with asyncio.timeout(20), self.pair() as (left, right):
            await right.close()
            with pytest.raises(NodeUnavailable):
                while True:
                    await left.send(b"anybody there?")
                    await asyncio.sleep(0.001)


class _Sealed(Transport):
    """Makes every frame as long as a sealed one at least, as the channel above does."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner

    async def send(self, *parts: Buffer) -> None:
        await self.inner.send(*parts, bytes(16)) if sum(memoryview(part).nbytes for part in parts) < 1 << 20 else (
            await self.inner.send(*parts)
        )

    async def receive(self) -> Buffer:
        frame = await self.inner.receive()
        return bytes(frame)[:-16] if len(frame) < 1 << 20 else frame

    async def close(self, reason: str = "") -> None:
        await self.inner.close(reason)


def frames(what: bytes, count: int) -> list[bytes]:
    return [b"%s frame number %04d" % (what, number) for number in range(count)]


async def test_nothing_is_missing_wherever_the_connection_is_cut() -> None:
    """Forty frames each way, with acknowledgements among them; the next connection is cut as well, in its own handshake."""
    await asyncio.gather(*(exchange_over_a_cut(cut) for cut in range(90)))


async def exchange_over_a_cut(cut: int) -> None:
    there, back = frames(b"there", 40), frames(b"back", 40)
    async with asyncio.timeout(30), two([cut, cut % 4]) as made:
        results = await asyncio.gather(
            send_all(made.near, there), send_all(made.far, back), receive_all(made.far, 40), receive_all(made.near, 40)
        )
        assert results[2:] == [there, back]
        assert made.dialed >= (1 if cut < 80 else 0)


async def test_large_frames_and_many_cuts() -> None:
    there = [bytes([number]) * 300_000 for number in range(60)]
    async with asyncio.timeout(30), two([7, 11, 5, 13, 2, 9]) as made:
        results = await asyncio.gather(send_all(made.near, there), receive_all(made.far, 60))
        assert results[1] == there and made.dialed >= 6


async def test_a_send_goes_through_while_the_connection_is_lost() -> None:
    async with asyncio.timeout(20), two([1]) as made:
        await made.near.send(b"the first of the frames")
        await made.near.send(b"the second, which is cut")
        assert await receive_all(made.far, 2) == [b"the first of the frames", b"the second, which is cut"]


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 - each turn of the loop may make it true
            await asyncio.sleep(0)


async def test_both_ends_give_up_when_the_lease_is_over() -> None:
    clock = FakeClock()
    async with two([0], clock) as made:
        made.reachable = False
        reading = [asyncio.ensure_future(made.near.receive()), asyncio.ensure_future(made.far.receive())]
        await made.near.send(b"a frame that finds no way")
        await clock.advance(LIMITS.lease_s - 0.5)
        assert not any(task.done() for task in reading) and len(made.sessions) == 1
        await clock.advance(LIMITS.lease_s + 15)
        for task in reading:
            with pytest.raises(NodeUnavailable, match="5 s"):
                await task
        assert len(made.sessions) == 0
        for end in (made.near, made.far):
            with pytest.raises(NodeUnavailable):
                await end.send(b"too late, whoever sends it")


async def test_a_far_end_that_does_not_know_the_session_ends_it_at_once() -> None:
    async with asyncio.timeout(20), two([3]) as made:
        made.sessions._known.clear()  # it was restarted
        with pytest.raises(NodeUnavailable, match="no such session"):
            for frame in frames(b"a", 100):
                await made.near.send(frame)
                await asyncio.sleep(0.01)


async def test_a_far_end_that_is_said_to_be_gone_is_not_waited_for() -> None:
    async with asyncio.timeout(3), two([3]) as made:  # the lease is longer

        async def gone() -> Transport:
            raise NotFound("it has left for good")

        made.near._dial = gone
        with pytest.raises(NodeUnavailable, match="left for good"):
            for frame in frames(b"a", 100):
                await made.near.send(frame)
                await asyncio.sleep(0.01)


async def test_a_silent_connection_counts_as_lost() -> None:
    clock = FakeClock()
    async with two(clock=clock) as made:
        reading = asyncio.ensure_future(made.near.receive())
        await clock.advance(LIMITS.patience_s + 1.0)  # nobody says anything: half open, as far as either end can tell
        await clock.advance(1.0)
        await until(lambda: made.asks)
        await made.far.send(b"over the new connection")
        assert await reading == b"over the new connection"


async def test_a_repeated_ask_takes_no_session_over() -> None:
    async with asyncio.timeout(20), two([2]) as made:
        await send_all(made.near, frames(b"a", 3))
        assert await receive_all(made.far, 3) == frames(b"a", 3)
        await until(lambda: made.asks)
        ours, theirs = memory_pair()
        await ours.send(made.asks[0])
        with pytest.raises(AuthenticationFailed):
            await made.sessions.resume(await theirs.receive(), theirs)
        assert bytes(await ours.receive())[:1] == b"\x00"  # a refusal, and nothing of the session
        await made.near.send(b"the session goes on as before")
        assert await made.far.receive() == b"the session goes on as before"


class _Stuck(Transport):
    """A connection whose far end takes nothing."""

    async def send(self, *parts: Buffer) -> None:
        await asyncio.Event().wait()

    async def receive(self) -> Buffer:
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self, reason: str = "") -> None:
        return None


async def test_who_asks_to_go_on_and_takes_no_reply_is_given_up_and_so_is_the_session_in_time() -> None:
    clock, (near, far) = FakeClock(), memory_pair()
    sessions = Sessions(limits=LIMITS, clock=clock)
    session = sessions.wrap(far, SECRET)
    asker = Resumable(near, SECRET, limits=LIMITS, clock=clock)
    reading = asyncio.ensure_future(session.receive())
    for ask in (asker._state.ask(), bytes([ASK]) + asker.session + bytes(32)):
        resuming = asyncio.ensure_future(sessions.resume(ask, _Stuck()))
        await clock.advance(LIMITS.handshake_s + 1.0)
        assert resuming.done() and isinstance(resuming.exception(), DeadlineExceeded | AuthenticationFailed)
    await clock.advance(LIMITS.lease_s)
    assert reading.done() and isinstance(reading.exception(), NodeUnavailable) and not len(sessions)
    await asyncio.gather(asker.close(), session.close())


async def test_an_ask_with_another_key_is_refused() -> None:
    async with two() as made:
        ours, theirs = memory_pair()
        known = next(iter(made.sessions._known))
        with pytest.raises(AuthenticationFailed):
            await made.sessions.resume(bytes([ASK]) + known + bytes(32), theirs)
        assert bytes(await ours.receive())[:1] == b"\x00"
        await made.near.send(b"the session goes on as before")
        assert await made.far.receive() == b"the session goes on as before"


async def test_a_forged_acknowledgement_ends_the_session_and_nothing_else() -> None:
    near, relay = memory_pair()
    end = Resumable(near, SECRET, limits=LIMITS, clock=SystemClock())
    await relay.send((5).to_bytes(8, "little"))
    with pytest.raises(WireError, match="acknowledged"):
        await end.receive()
    with pytest.raises(WireError):
        await end.send(b"over a session that has ended")
    await end.close()


async def test_a_far_end_that_reads_nothing_holds_its_writer_up_in_time() -> None:
    async with two() as made:
        frame, sent = bytes(1 << 20), 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while sent < 100:
                    await made.near.send(frame)
                    sent += 1
        assert sent < 20
        assert await receive_all(made.far, sent) == [frame] * sent


# ---------------------------------------------------------------- under a channel


class Relayed:
    """Connections between an initiator and a responder, and all that a relay between them sees."""

    def __init__(self, grid: Grid, cuts: list[int]) -> None:
        self.grid = grid
        self.cuts = cuts
        self.clock = SystemClock()
        self.seen: list[bytes] = []
        self.sessions = Sessions(limits=LIMITS, clock=self.clock)
        self.accepted: asyncio.Future[SecureChannel] = asyncio.get_running_loop().create_future()
        self.tasks: set[asyncio.Task[None]] = set()

    async def dial(self) -> Transport:
        near, far = memory_pair()
        self.tasks.add(asyncio.get_running_loop().create_task(self.serve(far)))
        return _Seen(Cut(near, self.cuts.pop(0) if self.cuts else 10**9), self.seen)

    async def serve(self, far: Transport) -> None:
        with contextlib.suppress(GridError):
            first = await far.receive()
            if is_ask(first):
                await self.sessions.resume(first, far)
            else:
                channel = await accept_channel(
                    far, me=self.grid.alice, trust=self.grid.trust(), grid=self.grid.id, limits=LIMITS, clock=self.grid.clock,
                    first=first, wrap=self.sessions.wrap,
                )  # fmt: skip
                self.accepted.set_result(channel)
                return
        await far.close()

    async def open(self) -> tuple[SecureChannel, SecureChannel]:
        def wrap(transport: Transport, secret: bytes) -> Transport:
            return Resumable(transport, secret, limits=LIMITS, clock=self.clock, dial=self.dial)

        opened = await open_channel(
            await self.dial(), me=self.grid.carol, trust=self.grid.trust(), grid=self.grid.id, limits=LIMITS,
            expect=Expected(id=self.grid.alice.id, name="alice", role="node"), clock=self.grid.clock, wrap=wrap,
        )  # fmt: skip
        return opened, await self.accepted


class _Seen(Transport):
    """Notes every frame, as a relay can."""

    def __init__(self, inner: Transport, seen: list[bytes]) -> None:
        self.inner, self.seen = inner, seen

    async def send(self, *parts: Buffer) -> None:
        self.seen.append(b"".join(parts))
        await self.inner.send(*parts)

    async def receive(self) -> Buffer:
        frame = await self.inner.receive()
        self.seen.append(bytes(frame))
        return frame

    async def close(self, reason: str = "") -> None:
        await self.inner.close(reason)


HANDSHAKE_FRAMES = 4


async def test_a_channel_outlives_its_connections_wherever_they_are_cut(tmp_path: Path) -> None:
    grid = Grid(tmp_path)
    await asyncio.gather(*(channel_over_a_cut(grid, HANDSHAKE_FRAMES + cut) for cut in range(24)))


async def channel_over_a_cut(grid: Grid, cut: int) -> None:
    relay = Relayed(grid, [cut, 3, 5])
    there, back = frames(b"there", 12), frames(b"back", 12)
    async with asyncio.timeout(30):
        near, far = await relay.open()
        assert near.resumable and far.resumable
        results = await asyncio.gather(send_all(near, there), send_all(far, back), receive_all(far, 12), receive_all(near, 12))
        assert results[2:] == [there, back]
        await asyncio.gather(near.close(), far.close())
        await asyncio.wait(relay.tasks)
    everything = b"|".join(relay.seen)
    assert b"frame number" not in everything
    # The same number is never sealed twice with other words: a sealed frame is one of 24, however often it is seen.
    sealed = [frame for frame in relay.seen[HANDSHAKE_FRAMES:] if not is_ask(frame) and not is_ack(frame)]
    assert len({frame for frame in sealed if len(frame) in (16 + len(there[0]), 16 + len(back[0]))}) == 24


async def test_a_changed_frame_ends_a_resumable_channel_for_good(tmp_path: Path) -> None:
    relay = Relayed(Grid(tmp_path), [])
    near, far = await relay.open()
    await near.send(b"as it was sent")
    assert await far.receive() == b"as it was sent"
    carrier = far._transport
    assert isinstance(carrier, Resumable) and carrier._link is not None
    forged = asyncio.ensure_future(far.receive())
    await asyncio.sleep(0)
    assert near._transport._link is not None  # type: ignore[attr-defined]
    await near._transport._link.send(bytes(40))  # type: ignore[attr-defined]
    with pytest.raises(AuthenticationFailed, match="does not open"):
        await forged
    with pytest.raises(AuthenticationFailed):
        await far.send(b"nothing more")
    assert len(relay.sessions) == 0
    await asyncio.gather(near.close(), far.close())
    await asyncio.wait(relay.tasks)


async def test_a_revoked_client_does_not_come_back(tmp_path: Path) -> None:
    relay = Relayed(Grid(tmp_path), [HANDSHAKE_FRAMES])
    near, far = await relay.open()
    far._trust.merge_revocations(relay.grid.root.revoke("carol", wall=relay.grid.clock.wall()))
    with pytest.raises(AuthenticationFailed, match="revoked"):
        await far.receive()
    await far.close()
    await near.send(b"a frame that is cut")
    with pytest.raises(NodeUnavailable, match="no such session"):
        await near.receive()
    await near.close()
    await asyncio.wait(relay.tasks)
