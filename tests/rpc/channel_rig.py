"""A grid of a few identities for channel tests, and a relay between two of them that can be told to misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from grid.crypto.enrolment import RootKey, Token
from grid.crypto.identity import Expected, LocalIdentity, Trust
from grid.errors import GridError
from grid.rpc.channel import SecureChannel, accept_channel, open_channel
from grid.settings import SessionLimits
from grid.testing.clocks import FakeClock
from grid.transport.base import Buffer, Transport
from grid.transport.memory import memory_pair

Outcome = SecureChannel | GridError


class Grid:
    """A root, and the nodes alice and bob, the client carol and the node mallory, who are all properly enrolled."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.root = RootKey.create(folder / "root.json")
        self.id = self.root.grid
        self.alice, self.bob, self.mallory = (self.enroll(name, "node") for name in ("alice", "bob", "mallory"))
        self.carol = self.enroll("carol", "client")

    def enroll(self, name: str, role: str, *, valid_s: float = 10_000_000, clock: FakeClock | None = None) -> LocalIdentity:
        """A new member, whose own clock may be another."""
        text = self.root.enroll(name=name, role=role, gateway_url="ws://g", wall=self.clock.wall(), valid_s=valid_s)
        return LocalIdentity.create(role=role, clock=clock or self.clock, token=Token.parse(text))

    def trust(self) -> Trust:
        return Trust.rooted(self.root.public)

    def open(
        self, end: Transport, *, me: LocalIdentity | None = None, trust: Trust | None = None, expect: Expected | None = None
    ) -> Awaitable[SecureChannel]:
        """Carol (or `me`) asks for alice (or `expect`)."""
        return open_channel(
            end,
            me=me or self.carol,
            trust=trust or self.trust(),
            expect=expect or Expected(id=self.alice.id, name="alice", role="node"),
            grid=self.id,
            limits=SessionLimits(),
            clock=self.clock,
        )

    def accept(
        self,
        end: Transport,
        *,
        me: LocalIdentity | None = None,
        trust: Trust | None = None,
        roles: Sequence[str] = ("client", "node"),
    ) -> Awaitable[SecureChannel]:
        """Alice (or `me`) answers."""
        return accept_channel(
            end,
            me=me or self.alice,
            trust=trust or self.trust(),
            grid=self.id,
            limits=SessionLimits(),
            clock=self.clock,
            roles=roles,
        )

    async def connect(self) -> tuple[SecureChannel, SecureChannel]:
        """A channel of carol's to alice: both ends."""
        ends = memory_pair()
        return await both(self.open(ends[0]), self.accept(ends[1]))


async def both(opening: Awaitable[SecureChannel], accepting: Awaitable[SecureChannel]) -> tuple[SecureChannel, SecureChannel]:
    """Both ends of a handshake that is to succeed."""
    first, second = await outcomes(opening, accepting)
    assert isinstance(first, SecureChannel), first
    assert isinstance(second, SecureChannel), second
    return first, second


async def outcomes(opening: Awaitable[SecureChannel], accepting: Awaitable[SecureChannel]) -> tuple[Outcome, Outcome]:
    """What each end of a handshake comes to; any error but a GridError fails the test."""

    async def outcome(side: Awaitable[SecureChannel]) -> Outcome:
        try:
            return await side
        except GridError as error:
            return error

    async with asyncio.TaskGroup() as tasks, asyncio.timeout(20):
        first, second = tasks.create_task(outcome(opening)), tasks.create_task(outcome(accepting))
        await asyncio.wait([first, second])
    return first.result(), second.result()


Tamper = Callable[[str, int, bytes], Sequence[bytes]]
"""(direction "->" or "<-", number of the frame in that direction, frame) -> the frames to pass on instead."""


def faithful(direction: str, number: int, frame: bytes) -> Sequence[bytes]:
    return [frame]


class Relay:
    """What a gateway is to a channel: it passes on frames between `near` (the initiator) and `far`. It keeps all it saw."""

    def __init__(self, tamper: Tamper = faithful) -> None:
        self.near, self._here = memory_pair()
        self._there, self.far = memory_pair()
        self.tamper = tamper
        self.seen: dict[str, list[bytes]] = {"->": [], "<-": []}
        self._tasks = asyncio.TaskGroup()
        self._pumps: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        for direction, source, sink in (("->", self._here, self._there), ("<-", self._there, self._here)):
            self._pumps.append(self._tasks.create_task(self._pump(direction, source, sink)))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pump in self._pumps:
            pump.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def _pump(self, direction: str, source: Transport, sink: Transport) -> None:
        try:
            while True:
                frame = bytes(await source.receive())
                number = len(self.seen[direction])
                self.seen[direction].append(frame)
                for changed in self.tamper(direction, number, frame):
                    await sink.send(changed)
        except GridError as error:
            await sink.close(error.message)

    async def inject(self, direction: str, frame: Buffer) -> None:
        """Put a frame of our own on the way."""
        await (self._there if direction == "->" else self._here).send(frame)

    @property
    def everything(self) -> bytes:
        return b"|".join(frame for frames in self.seen.values() for frame in frames)
