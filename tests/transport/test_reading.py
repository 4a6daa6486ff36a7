"""The reader of WebSocket frames: any cut of the stream, fragments, control frames between, and what breaks the rules."""

from __future__ import annotations

import random

import pytest
from websockets.frames import Close, Frame, Opcode

from grid.transport.reading import Reader


def stream(*frames: Frame, mask: bool) -> bytes:
    return b"".join(frame.serialize(mask=mask) for frame in frames)


def binary(data: bytes, fin: bool = True) -> Frame:
    return Frame(Opcode.BINARY, data, fin)


def reader(masked: bool = True, max_bytes: int = 1 << 20) -> Reader:
    return Reader(masked=masked, max_bytes=max_bytes)


@pytest.mark.parametrize("mask", [True, False])
def test_messages_come_out_whole_whatever_the_cuts(mask: bool) -> None:
    sizes = [0, 1, 125, 126, 127, 65535, 65536, 70000]
    sent = [random.Random(size).randbytes(size) for size in sizes]
    data = stream(*map(binary, sent), mask=mask)
    for seed in range(40):
        rng, read, at = random.Random(seed), reader(mask), 0
        while at < len(data):
            step = rng.choice([1, 2, 3, 7, 1000, 50_000, 300_000])
            assert read.feed(data[at : at + step]) == []
            at += step
        assert [bytes(message) for message in read.messages if message is not None] == sent


def test_every_single_cut_of_small_frames() -> None:
    data = stream(binary(b"one"), Frame(Opcode.PING, b"?"), binary(b"two"), mask=True)
    ping = None
    for cut in range(len(data) + 1):
        read = reader()
        given = read.feed(data[:cut]) + read.feed(data[cut:])
        assert [bytes(message or b"") for message in read.messages] == [b"one", b"two"] and len(given) == 1
        assert ping in (None, given[0])
        ping = given[0]


def test_fragments_are_put_together_and_control_frames_come_between() -> None:
    frames = [binary(b"a", fin=False), Frame(Opcode.PONG, b""), Frame(Opcode.CONT, b"b", False), Frame(Opcode.CONT, b"c")]
    read = reader()
    assert len(read.feed(stream(*frames, binary(b"next"), mask=True))) == 1
    assert list(map(bytes, filter(None, read.messages))) == [b"abc", b"next"]


def test_text_is_told_apart_and_closing_is_given_back() -> None:
    read = reader()
    closing = Frame(Opcode.CLOSE, Close(1000, "").serialize())
    given = read.feed(stream(Frame(Opcode.TEXT, b"hello"), Frame(Opcode.TEXT, b"x", False), Frame(Opcode.CONT, b"y"), mask=True))
    assert list(read.messages) == [None, None] and given == []
    assert len(read.feed(stream(closing, mask=True))) == 1 and not read.broken


BROKEN = {
    "no mask": stream(binary(b"x"), mask=False),
    "a reserved bit": bytes([0xC2, 0x80, 0, 0, 0, 0]),
    "a reserved opcode": bytes([0x83, 0x80, 0, 0, 0, 0]),
    "a continuation of nothing": stream(Frame(Opcode.CONT, b"x"), mask=True),
    "a message within a message": stream(binary(b"x", fin=False), binary(b"y"), mask=True),
    "a long control frame": bytes([0x89, 0xFE, 0, 126, 0, 0, 0, 0]),
    "too long a frame": stream(binary(bytes(101)), mask=True),
    "too long a message": stream(binary(bytes(60), fin=False), Frame(Opcode.CONT, bytes(60)), mask=True),
    "a length beyond all bounds": bytes([0x82, 0xFF]) + b"\xff" * 8,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_rules_is_given_back_and_nothing_is_read_after_it(name: str) -> None:
    for cut in range(len(BROKEN[name]) + 1):
        read = reader(max_bytes=100)
        given = read.feed(BROKEN[name][:cut]) + read.feed(BROKEN[name][cut:])
        given += read.feed(stream(binary(b"later"), mask=True))
        assert read.broken and not read.messages and len(b"".join(given)) > 1


def test_memory_is_taken_as_bytes_come_and_not_as_a_length_claims() -> None:
    read = reader(masked=False)
    read.feed(bytes([0x82, 127]) + (1 << 20).to_bytes(8, "big") + b"x")
    assert len(read._part) == 11
