"""Pipes between processes: whole frames in order, memory as bytes arrive, nothing waits on the loop's end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.errors import WireError
from grid.transport.pipes import PREFIX, READ_BYTES, BlockingPipe, End, Frames, LoopPipe, pipe, receive_files, send_files
from grid.wire.memory import LARGE_BYTES

MAX = 8 << 20


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    left, right = pipe()
    yield left, right
    left.close()
    right.close()


def fed(frames: Frames, data: bytes, pieces: list[int]) -> list[bytes]:
    """What comes out of a stream that arrives in pieces of these sizes, again and again."""
    found: list[bytes] = []
    turn = 0
    while data:
        room = frames.room()
        count = min(len(room), len(data), pieces[turn % len(pieces)])
        assert count, "there is always room for more"
        room[:count] = data[:count]
        frames.added(count)
        data, turn = data[count:], turn + 1
        while (frame := frames.next()) is not None:
            found.append(bytes(frame))
    return found


HALF = READ_BYTES // 2
SIZES = st.sampled_from([0, 1, 7, 8, 100, HALF, HALF + 1, READ_BYTES - 8, READ_BYTES, READ_BYTES + 1, 700_001])


@settings(deadline=None, max_examples=40)
@given(st.lists(SIZES, max_size=8), st.lists(st.sampled_from([1 << 10, 4097, 65_536, READ_BYTES]), min_size=1, max_size=4))
def test_frames_come_out_whole_however_they_arrive(sizes: list[int], pieces: list[int]) -> None:
    sent = [bytes([index]) * size for index, size in enumerate(sizes)]
    stream = b"".join(PREFIX.pack(len(frame)) + frame for frame in sent)
    assert fed(Frames(MAX), stream, pieces) == sent


@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_very_large_frame_takes_its_own_bytes_and_no_others(after: int) -> None:
    large, small = bytes(range(256)) * ((LARGE_BYTES >> 8) + 1), b"s" * after
    stream = PREFIX.pack(3) + b"abc" + PREFIX.pack(len(large)) + large + PREFIX.pack(after) + small
    assert fed(Frames(MAX), stream, [1 << 20, 12, 4 << 20]) == [b"abc", large, small]


def test_every_split_of_two_short_frames() -> None:
    stream = PREFIX.pack(3) + b"abc" + PREFIX.pack(0) + PREFIX.pack(1) + b"d"
    for cut in range(1, len(stream)):
        assert fed(Frames(MAX), stream, [cut, len(stream)]) == [b"abc", b"", b"d"]


def test_a_frame_that_is_too_long_is_refused_before_it_has_come() -> None:
    frames = Frames(100)
    with pytest.raises(WireError, match="101 bytes"):
        fed(frames, PREFIX.pack(101), [8])


def test_frames_lie_in_memory_that_may_be_written(ends: tuple[End, End]) -> None:
    left, right = BlockingPipe(ends[0], MAX), BlockingPipe(ends[1], MAX)
    large = bytes(5 << 20)
    sending = threading.Thread(target=left.send, args=([[b"head", large], [b"small"]],), name="grid-test")
    sending.start()
    first, second = right.receive(), right.waiting() or right.receive()
    sending.join()
    assert bytes(first) == b"head" + large and bytes(second) == b"small"
    for frame in (first, second):
        assert not memoryview(frame).readonly


def test_a_blocking_end_says_when_the_other_is_gone(ends: tuple[End, End]) -> None:
    left = BlockingPipe(ends[0], MAX)
    ends[1].close()
    with pytest.raises(EOFError):
        left.receive()
    with pytest.raises(EOFError):
        left.send([[bytes(1 << 20)]] * 4)


def test_open_files_come_with_their_frame(ends: tuple[End, End]) -> None:
    read, write = os.pipe()
    send_files(ends[0], [b"one"], [write])
    send_files(ends[0], [b"two ", b"parts"], [])
    os.close(write)
    received = receive_files(ends[1], MAX)
    assert received is not None and received[0] == b"one" and len(received[1]) == 1
    os.write(received[1][0], b"through it")
    os.close(received[1][0])
    assert os.read(read, 100) == b"through it"
    os.close(read)
    assert receive_files(ends[1], MAX) == (b"two parts", [])
    ends[0].close()
    assert receive_files(ends[1], MAX) is None


class Loop:
    """A loop's end that keeps what comes; `came` is set at each frame and at the end."""

    def __init__(self, end: End, max_bytes: int = MAX) -> None:
        self.frames: list[bytes] = []
        self.over: list[str] = []
        self.came = asyncio.Event()
        self.pipe = LoopPipe(end, max_bytes=max_bytes, on_frame=self.on_frame, on_end=self.on_end)

    def on_frame(self, frame: object) -> None:
        self.frames.append(bytes(frame))  # type: ignore[call-overload]
        self.came.set()

    def on_end(self, wrong: str) -> None:
        self.over.append(wrong)
        self.came.set()

    async def until(self, frames: int = 0, over: int = 0) -> None:
        async with asyncio.timeout(20):
            while len(self.frames) < frames or len(self.over) < over:
                self.came.clear()
                await self.came.wait()


async def test_a_loops_end_never_waits_and_sends_everything_in_order(ends: tuple[End, End]) -> None:
    loop, far = Loop(ends[0]), BlockingPipe(ends[1], MAX)
    sent = [bytes([index]) * (100_000 * index) for index in range(30)]
    for frame in sent:
        loop.pipe.send([b"", frame])
    assert loop.pipe.queued_bytes > 10 << 20  # the other end has read nothing yet

    def receive() -> list[bytes]:
        return [bytes(far.receive()) for _ in sent]

    assert await asyncio.to_thread(receive) == sent
    async with asyncio.timeout(20):
        while loop.pipe.queued_bytes:  # noqa: ASYNC110
            await asyncio.sleep(0)
    loop.pipe.close()


async def test_no_frame_comes_while_a_loops_end_pauses(ends: tuple[End, End]) -> None:
    loop, far = Loop(ends[0]), BlockingPipe(ends[1], MAX)
    far.send([[b"1"], [b"2"], [b"3"]])
    loop.on_frame = lambda frame: None  # type: ignore[method-assign]
    first = Loop.on_frame

    def pausing(frame: object) -> None:
        first(loop, frame)
        loop.pipe.pause()

    loop.pipe._on_frame = pausing
    for count in (1, 2, 3):
        await loop.until(frames=count)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(loop.frames) == count
        loop.pipe.resume()
    far.send([[b"4"]])
    await loop.until(frames=4)
    assert loop.frames == [b"1", b"2", b"3", b"4"]
    loop.pipe.close()


async def test_a_loops_end_hears_once_of_the_others_end(ends: tuple[End, End]) -> None:
    loop = Loop(ends[0])
    BlockingPipe(ends[1], MAX).send([[b"last"]])
    ends[1].close()
    await loop.until(over=1)
    assert loop.frames == [b"last"] and loop.over == [""]
    loop.pipe.send([b"too late"])
    loop.pipe.close()
    assert loop.over == [""]


async def test_what_is_no_frame_ends_a_loops_end_with_the_reason(ends: tuple[End, End]) -> None:
    loop = Loop(ends[0], 1000)
    ends[1].sendall(PREFIX.pack(1001))
    await loop.until(over=1)
    assert "1001" in loop.over[0]
