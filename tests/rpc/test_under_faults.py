"""Sealed sessions over transports that go wrong: every answer is right or a `GridError`, and each fault is noticed in time.

One suite, over memory and over WebSockets, with and without another connection to go on with.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from channel_rig import Grid

from grid.clock import SystemClock
from grid.crypto.identity import Expected
from grid.errors import GridError
from grid.ids import ObjectId
from grid.rpc.channel import accept_channel, open_channel
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.rpc.resumable import Resumable, Sessions, patient
from grid.rpc.resume import is_ask
from grid.settings import SessionLimits
from grid.testing.faults import Faults, FaultyTransport
from grid.transport.base import Transport
from grid.transport.memory import memory_pair
from grid.transport.websocket import dial_websocket, serve_websocket
from grid.wire.messages import ObjectValue, PutObject, TensorFrame

CLOCK = SystemClock()
QUESTIONS = 12
HANDSHAKE_FRAMES = 3


class RealTime(SystemClock):
    """Time passes as it does, on the day on which the identities of these tests count."""

    def __init__(self, wall: float) -> None:
        self._wall = wall

    def wall(self) -> float:
        return self._wall


OnTransport = Callable[[Transport], Awaitable[None]]

FAULTS = {
    "delay": Faults(delay=0.5, max_delay_s=0.02, spare=HANDSHAKE_FRAMES),
    "cut": Faults(cut=0.2, spare=HANDSHAKE_FRAMES),
    "repeat": Faults(repeat=0.3, spare=HANDSHAKE_FRAMES),
    "truncate": Faults(truncate=0.3, spare=HANDSHAKE_FRAMES),
    "flip": Faults(flip=0.3, spare=HANDSHAKE_FRAMES),
    "reorder": Faults(reorder=0.3, spare=HANDSHAKE_FRAMES),
    "drop": Faults(drop=0.2, spare=HANDSHAKE_FRAMES),
    "half open": Faults(drop=1.0, spare=HANDSHAKE_FRAMES + 5),
    "in the handshake": Faults(cut=0.1, flip=0.2, truncate=0.1, repeat=0.1, reorder=0.1),
}


class SuiteUnderFaults(abc.ABC):
    """The suite. `serving` gives a way to dial and has `on_transport` called with the other end of each connection."""

    @abc.abstractmethod
    def serving(self, on_transport: OnTransport) -> contextlib.AbstractAsyncContextManager[Callable[[], Awaitable[Transport]]]:
        """Listen for as long as the context lasts."""

    @pytest.mark.parametrize("lease_s", [0.0, 5.0], ids=["", "resumable"])
    async def test_every_answer_is_right_or_an_error_in_time(self, tmp_path: Path, lease_s: float) -> None:
        grid = Grid(tmp_path)
        async with asyncio.timeout(60):
            await asyncio.gather(*(self.meet(grid, fault, lease_s) for fault in FAULTS))

    async def meet(self, grid: Grid, fault: str, lease_s: float) -> None:
        """Questions over connections with this fault."""
        all_right = fault == "delay" or (fault == "cut" and lease_s > 0)
        run = Run(grid, FAULTS[fault], lease_s, handshake_s=0.3 if fault == "in the handshake" else 20.0)
        run.timeout_s = 20.0 if all_right else 0.7
        async with self.serving(run.serve) as dial:
            outcomes = await run.ask(dial)
        told = (fault, outcomes, run.applied)
        assert run.applied.total() > 0 and outcomes["wrong"] == 0 and outcomes.total() == QUESTIONS, told
        if all_right:
            assert outcomes["right"] == QUESTIONS, told
        if fault == "half open":  # each connection carries a few frames and then none
            assert outcomes["right"] > 0 and outcomes["error"] > 0, told


class Run:
    """Questions and answers over a channel whose initiator has a bad network; `applied` is what that did."""

    def __init__(self, grid: Grid, faults: Faults, lease_s: float, *, handshake_s: float) -> None:
        self.grid = grid
        self.clock = RealTime(grid.clock.wall())
        self.faults = faults
        self.limits = SessionLimits(heartbeat_s=0.1, patience_s=0.5, handshake_s=handshake_s, lease_s=lease_s)
        self.sessions = Sessions(limits=self.limits, clock=CLOCK)
        self.applied: Counter[str] = Counter()
        self.timeout_s = 20.0
        self._seed = 0

    def bad(self, transport: Transport) -> Transport:
        self._seed += 1
        faulty = FaultyTransport(transport, seed=self._seed, faults=self.faults, clock=CLOCK)
        faulty.applied = self.applied
        return faulty

    async def serve(self, transport: Transport) -> None:
        """The responder: gives every number back, one higher."""
        with contextlib.suppress(GridError):
            first = await transport.receive()
            if is_ask(first):
                await self.sessions.resume(first, transport)
                return
            channel = await accept_channel(
                transport, me=self.grid.alice, trust=self.grid.trust(), grid=self.grid.id, limits=self.limits,
                clock=self.clock, first=first, wrap=self.sessions.wrap if self.limits.lease_s else None,
            )  # fmt: skip

            def answer(context: object, message: PutObject) -> ObjectValue:
                data = bytes(byte ^ 255 for byte in bytes(message.tensor.data))
                return ObjectValue(tensor=TensorFrame(dtype="u1", shape=(len(data),), data=data))

            async with self.peer(channel, Handlers({PutObject: answer}), initiator=False) as peer:
                await peer.wait_closed()

    def peer(self, channel: Transport, handlers: Handlers, *, initiator: bool) -> Peer:
        limits = patient(self.limits) if self.limits.lease_s else self.limits
        return Peer(channel, initiator=initiator, handlers=handlers, context=None, limits=limits, clock=CLOCK, name="peer")

    async def ask(self, dial: Callable[[], Awaitable[Transport]]) -> Counter[str]:
        """Each question is asked once; a session that has ended is opened anew for the next."""
        outcomes: Counter[str] = Counter()

        async def dial_badly() -> Transport:
            return self.bad(await dial())

        def wrap(transport: Transport, secret: bytes) -> Transport:
            return Resumable(transport, secret, limits=self.limits, clock=CLOCK, dial=dial_badly)

        asked = 0
        while asked < QUESTIONS:
            try:
                channel = await open_channel(
                    await dial_badly(), me=self.grid.carol, trust=self.grid.trust(), grid=self.grid.id, limits=self.limits,
                    expect=Expected(id=self.grid.alice.id, name="alice", role="node"), clock=self.clock,
                    wrap=wrap if self.limits.lease_s else None,
                )  # fmt: skip
                async with self.peer(channel, Handlers({}), initiator=True) as peer:
                    while asked < QUESTIONS and not peer.closed:
                        asked += 1
                        outcomes[await self.question(peer, asked)] += 1
            except GridError:
                asked += 1
                outcomes["error"] += 1
        return outcomes

    async def question(self, peer: Peer, number: int) -> str:
        data = bytes([number]) * 3
        message = PutObject(object=ObjectId(number), tensor=TensorFrame(dtype="u1", shape=(3,), data=data))
        try:
            answer = await peer.request(message, timeout_s=self.timeout_s)
        except GridError:
            return "error"
        right = isinstance(answer, ObjectValue) and bytes(answer.tensor.data) == bytes([number ^ 255]) * 3
        return "right" if right else "wrong"


class TestMemory(SuiteUnderFaults):
    @contextlib.asynccontextmanager
    async def serving(self, on_transport: OnTransport) -> AsyncIterator[Callable[[], Awaitable[Transport]]]:
        async def serve(far: Transport) -> None:
            await on_transport(far)
            await far.close()

        async with asyncio.TaskGroup() as tasks:

            async def dial() -> Transport:
                near, far = memory_pair()
                served.add(tasks.create_task(serve(far)))
                return near

            served: set[asyncio.Task[None]] = set()
            yield dial
            for task in served:
                task.cancel()


class TestWebSocket(SuiteUnderFaults):
    @contextlib.asynccontextmanager
    async def serving(self, on_transport: OnTransport) -> AsyncIterator[Callable[[], Awaitable[Transport]]]:
        async with serve_websocket("127.0.0.1", 0, on_transport) as server:
            yield lambda: dial_websocket(f"ws://127.0.0.1:{server.port}")


