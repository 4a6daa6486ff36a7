"""Transports for the run: one that counts what its reader took, one that damages what is sent, and the hellos before that."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from mutants import Mutator, frame_of

from grid.errors import GridError, LocalProtocolError, WireError
from grid.transport.base import Buffer, Transport
from grid.wire.codec import decode, encode
from grid.wire.messages import Hello, Message

HELLO = frame_of(Hello(oldest=1, newest=1, software="fuzz", greeting=None))
PATIENCE_S = 20.0


class Counting(Transport):
    """Counts the frames that were received, and lets the sender wait for that."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.received = 0
        self.closed = asyncio.Event()
        self._progress = asyncio.Event()

    async def send(self, *parts: Buffer) -> None:
        await self._inner.send(*parts)

    async def receive(self) -> Buffer:
        frame = await self._inner.receive()
        self.received += 1
        self._progress.set()
        return frame

    async def close(self, reason: str = "") -> None:
        self.closed.set()
        self._progress.set()
        await self._inner.close(reason)

    async def until(self, count: int) -> bool:
        """Until so many frames were received: True; or until the end: False."""
        async with asyncio.timeout(PATIENCE_S):
            while self.received < count and not self.closed.is_set():
                self._progress.clear()
                await self._progress.wait()
        return self.received >= count


class Damaging(Transport):
    """Damages this share of the frames that are sent, after the first `spare`. `damaged` counts them."""

    def __init__(self, inner: Transport, mutator: Mutator, rng: random.Random, spare: int, share: float = 0.5) -> None:
        self._inner = inner
        self._mutator = mutator
        self._rng = rng
        self._spare = spare
        self._share = share
        self.damaged = 0

    async def send(self, *parts: Buffer) -> None:
        frame = b"".join(parts)
        if self._spare > 0:
            self._spare -= 1
        elif self._rng.random() < self._share:
            frame = self._mutator.damaged(self._rng, frame)
            self.damaged += 1
        await self._inner.send(frame)

    async def receive(self) -> Buffer:
        return await self._inner.receive()

    async def close(self, reason: str = "") -> None:
        await self._inner.close(reason)


class Mutants:
    """Mutants one after another, as `send` in `Talk.tell` wants them: requests that can be read get the session's next number.

    Most of those that cannot be read are left out: each ends a session, and what they do there is known from the others.
    """

    def __init__(self, mutator: Mutator, unreadable: float = 0.15) -> None:
        self.number = 0
        self._mutator = mutator
        self._unreadable = unreadable

    def next(self, request_id: Callable[[], int]) -> bytes:
        """The next mutant."""
        while True:
            frame = self._mutator.mutant(self.number)
            self.number += 1
            try:
                read = decode(frame)
                return b"".join(encode(read.message, request_id())) if read.id > 0 else frame
            except WireError:
                if random.Random(self.number).random() < self._unreadable:
                    return frame
            except LocalProtocolError:
                return frame


class Talk:
    """Our end of a session whose frames we write ourselves. What comes back is read and forgotten."""

    def __init__(self, transport: Transport, there: Counting, first: int) -> None:
        self._transport = transport
        self._there = there
        self._next = first

    def request_id(self) -> int:
        """The number of our next request."""
        self._next += 2
        return self._next - 2

    async def ask(self, message: Message) -> bool:
        """Send a valid request; whether it was taken."""
        return await self.tell(frame_of(message, self.request_id()))

    async def tell(self, frame: bytes) -> bool:
        """Send a frame; whether the far end took it before it ended the session."""
        wanted = self._there.received + 1
        try:
            await self._transport.send(frame)
        except GridError:
            return False
        return await self._there.until(wanted)


async def pour(mutants: Mutants, session: Talk, left: int) -> int:
    """Send mutants until the far end has had enough, or so many have gone; how many were taken."""
    taken = 0
    while taken < left and await session.tell(mutants.next(session.request_id)):
        taken += 1
    return taken


@asynccontextmanager
async def talk(transport: Transport, there: Counting, first: int = 1) -> AsyncIterator[Talk]:
    """A session that we begin with a Hello. `first`: the number of our first request, 2 where the far end has dialed."""
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(_drain(transport))
        made = Talk(transport, there, first)
        await made.tell(HELLO)
        try:
            yield made
        finally:
            await transport.close()
            reading.cancel()


async def _drain(transport: Transport) -> None:
    try:
        while True:
            await transport.receive()
    except GridError:
        pass


async def refused(work: Awaitable[object]) -> None:
    """Await something that may fail, with a clean error only."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            await work
    except GridError:
        pass
