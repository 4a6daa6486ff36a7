"""What every `Transport` must do, as a test class to inherit from.

    class TestMine(TransportConformance):
        @contextlib.asynccontextmanager
        async def pair(self):
            ...
            yield left, right

Run by pytest with pytest-asyncio; uses nothing of either.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager

from grid.errors import GridError, LocalProtocolError, NodeUnavailable
from grid.transport.base import MAX_FRAME_BYTES, Transport


@contextlib.contextmanager
def refused(error: type[GridError]) -> Iterator[None]:
    """The block must raise `error`."""
    try:
        yield
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")


async def eventually_full(sender: Transport, frame: bytes, limit: int) -> int:
    """Send until `send` waits, and return how many frames went; fails where `limit` frames all go."""
    for count in range(limit):
        sending = asyncio.ensure_future(sender.send(frame))
        done, _ = await asyncio.wait([sending], timeout=1.0)
        if not done:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            return count
        sending.result()
    raise AssertionError(f"{limit} frames of {len(frame)} bytes went to a far end that reads nothing")


class TransportConformance(abc.ABC):
    """The suite. `largest` is the longest frame that the transport takes; `holds` bounds what waits for a slow reader."""

    largest = MAX_FRAME_BYTES
    holds = 64 << 20

    @abc.abstractmethod
    def pair(self) -> AbstractAsyncContextManager[tuple[Transport, Transport]]:
        """Two connected ends, closed at the end of the context."""

    async def test_frames_keep_content_order_and_boundaries(self) -> None:
        frames = [b"", b"a", bytes(range(256)), b"x" * 70_000, b"", b"y" * self.largest, b"end"]
        async with self.pair() as (left, right):
            for sender, receiver in ((left, right), (right, left)):
                sending = asyncio.ensure_future(send_all(sender, frames))
                received = [bytes(await receiver.receive()) for _ in frames]
                await sending
                assert received == frames

    async def test_parts_of_any_kind_make_one_frame(self) -> None:
        async with self.pair() as (left, right):
            await left.send(b"one ", bytearray(b"two "), memoryview(b"-three-")[1:6], b"")
            assert bytes(await right.receive()) == b"one two three"

    async def test_a_buffer_may_change_once_send_has_returned(self) -> None:
        async with self.pair() as (left, right):
            buffer = bytearray(b"before")
            await left.send(buffer)
            buffer[:] = b"after!"
            assert bytes(await right.receive()) == b"before"

    async def test_a_frame_that_is_too_large_is_our_own_mistake(self) -> None:
        async with self.pair() as (left, right):
            with refused(LocalProtocolError):
                await left.send(bytes(self.largest), b"x")
            await left.send(b"still open")
            assert bytes(await right.receive()) == b"still open"

    async def test_both_directions_at_once(self) -> None:
        frames = [bytes([index]) * 50_000 for index in range(100)]
        async with self.pair() as (left, right):
            results = await asyncio.gather(
                send_all(left, frames), send_all(right, frames), receive_all(left, 100), receive_all(right, 100)
            )
            assert results[2] == results[3] == frames

    async def test_a_slow_reader_holds_up_its_writer_and_loses_nothing(self) -> None:
        frame = bytes(200_000)
        async with self.pair() as (left, right):
            sent = await eventually_full(left, frame, self.holds // len(frame))
            reading = asyncio.ensure_future(receive_all(right, sent))
            assert await reading == [frame] * sent

    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        async with self.pair() as (left, right):
            for number in range(20):
                waiting = asyncio.ensure_future(right.receive())
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                await left.send(b"%d" % number)
                assert bytes(await right.receive()) == b"%d" % number

    async def test_close_is_seen_at_both_ends(self) -> None:
        async with self.pair() as (left, right):
            waiting = asyncio.ensure_future(right.receive())
            await asyncio.sleep(0)
            await left.close("done")
            with refused(NodeUnavailable):
                await waiting
            with refused(NodeUnavailable):
                await right.receive()
            with refused(NodeUnavailable):
                await left.receive()
            with refused(NodeUnavailable):
                await left.send(b"too late")

    async def test_sending_to_a_closed_end_fails_in_the_end(self) -> None:
        async with self.pair() as (left, right):
            await right.close()
            with refused(NodeUnavailable):
                for _ in range(1000):
                    await left.send(b"anybody there?")
                    await asyncio.sleep(0)

    async def test_what_was_sent_before_close_arrives(self) -> None:
        frames = [b"%d" % number for number in range(50)]
        async with self.pair() as (left, right):
            await send_all(left, frames)
            closing = asyncio.ensure_future(left.close())
            assert await receive_all(right, 50) == frames
            with refused(NodeUnavailable):
                await right.receive()
            await closing

    async def test_close_ends_though_nobody_reads(self) -> None:
        async with self.pair() as (left, _right):
            await eventually_full(left, bytes(200_000), self.holds // 200_000)
            async with asyncio.timeout(10):
                await left.close("giving up")
                await left.close("twice")


async def send_all(sender: Transport, frames: list[bytes]) -> None:
    """Send frames one after another."""
    for frame in frames:
        await sender.send(frame)


async def receive_all(receiver: Transport, count: int) -> list[bytes]:
    """The next `count` frames."""
    return [bytes(await receiver.receive()) for _ in range(count)]


async def both_closed(left: Transport, right: Transport) -> AsyncIterator[tuple[Transport, Transport]]:
    """For `pair`: yield both ends and close them after."""
    try:
        yield left, right
    finally:
        await asyncio.gather(left.close(), right.close())
