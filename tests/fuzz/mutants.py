"""Valid frames of every type of message, and damaged ones made of them.

`Mutator.mutant(n)` depends on the seed and `n` alone, so a failure that prints both can be had again. A mutant is made either of
bytes (flips, cuts, insertions, pieces of other frames, lengths and types of msgpack written over) or of the parsed header: then
one value anywhere in it is replaced by something else that msgpack can say, and the frame around it is put right, so that it
gets past the outer checks and reaches the fields.
"""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
from any_message import instances
from hypothesis import HealthCheck, Phase, given, settings

from grid.errors import LocalProtocolError
from grid.wire.codec import PREFIX, WHOLE, encode
from grid.wire.frames import CHUNK, CHUNK_PREFIX, MAX_FRAME_BYTES
from grid.wire.messages import MESSAGES, Message

EXAMPLES = 12
"""Valid messages of each type."""

MARKERS = bytes([0x80, 0x90, 0xA0, 0xC0, 0xC1, *range(0xC4, 0xE0), 0xFF])
"""First bytes of msgpack's values that claim a length, and some others."""

BIG = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x10\x00\x00", b"\xff\xff", b"\x80\x00", b"\x00\x00\x00\x00"]


@functools.cache
def frames_of_every_type() -> Mapping[str, list[bytes]]:
    """Tag -> some valid frames, the same in each run. Requests, replies and one-way messages of each type."""
    return {tag: [_frame(message, number) for number, message in enumerate(_examples(cls))] for tag, cls in MESSAGES.items()}


def _examples(cls: type[Message]) -> list[Message]:
    found: list[Message] = []

    @settings(
        max_examples=EXAMPLES,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(instances(cls))
    def collect(message: Message) -> None:
        found.append(message)

    collect()
    return [message for message in found if _sendable(message)]


def _sendable(message: Message) -> bool:
    try:
        encode(message)
    except LocalProtocolError:
        return False
    return True


def _frame(message: Message, number: int) -> bytes:
    return frame_of(message, (0, 2 * number + 1, -(2 * number + 1))[number % 3])


def frame_of(message: Message, request_id: int = 0) -> bytes:
    """The frame of one message."""
    return b"".join(encode(message, request_id))


def mutated(seeds: Mapping[str, Sequence[bytes]], sensible: Sequence[Message], seed: int) -> Mutator:
    """Mutants of frames of every type in `seeds`, mostly of sensible ones where there are some."""
    chosen: dict[str, Sequence[bytes]] = dict(seeds)
    for message in sensible:
        chosen[message.tag] = [*seeds[message.tag][:2], *(frame_of(one, 1) for one in sensible if one.tag == message.tag)]
    return Mutator(chosen, seed)


class Mutator:
    """Mutants of frames. `seeds` are valid frames by type; each type is used as often as any other."""

    def __init__(self, seeds: Mapping[str, Sequence[bytes]], seed: int) -> None:
        self._seeds = seeds
        self._tags = sorted(seeds)
        self._seed = seed

    def mutant(self, number: int) -> bytes:
        """The mutant of this number; of the type `number` modulo the number of types."""
        rng = random.Random(f"{self._seed}/{number}")
        return self.damaged(rng, rng.choice(self._seeds[self._tags[number % len(self._tags)]]))

    def damaged(self, rng: random.Random, frame: bytes) -> bytes:
        """A mutant of this frame, which holds one whole message."""
        if rng.random() < 0.5:
            return self.of_header(rng, frame)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            frame = rng.choice(BYTES)(rng, frame, self._any(rng))
        return frame[:MAX_FRAME_BYTES]

    def of_header(self, rng: random.Random, frame: bytes) -> bytes:
        """A frame with one value of its header replaced."""
        kind, size = PREFIX.unpack_from(frame)
        if kind != WHOLE:  # a piece of a longer message
            return _flip(rng, frame, b"")
        header = msgpack.unpackb(frame[8 : 8 + size], ext_hook=msgpack.ExtType, strict_map_key=False)
        raw = frame[8 + size + (-size & 7) :]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            header = replaced(rng, header)
        packed = msgpack.packb(header)
        pad = bytes(-len(packed) & 7) if raw else b""
        return (struct.pack("<II", WHOLE, len(packed)) + packed + pad + raw)[:MAX_FRAME_BYTES]

    def _any(self, rng: random.Random) -> bytes:
        return rng.choice(self._seeds[rng.choice(self._tags)])

    def __str__(self) -> str:
        return f"seed {self._seed}"


# ------------------------------------------------------------ bytes


def _flip(rng: random.Random, frame: bytes, other: bytes) -> bytes:
    changed = bytearray(frame)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, frame: bytes, other: bytes) -> bytes:
    return frame[: rng.randrange(len(frame) + 1)]


def _insert(rng: random.Random, frame: bytes, other: bytes) -> bytes:
    at = rng.randrange(len(frame) + 1)
    return frame[:at] + rng.randbytes(rng.choice((1, 2, 7, 8, 64))) + frame[at:]


def _drop(rng: random.Random, frame: bytes, other: bytes) -> bytes:
    at = rng.randrange(len(frame) + 1)
    return frame[:at] + frame[at + rng.choice((1, 2, 8, 30)) :]


def _splice(rng: random.Random, frame: bytes, other: bytes) -> bytes:
    return frame[: rng.randrange(len(frame) + 1)] + other[rng.randrange(len(other) + 1) :]


def _repeat(rng: random.Random, frame: bytes, other: bytes) -> bytes:
    at, length = rng.randrange(len(frame) + 1), rng.choice((1, 4, 40))
    return frame[:at] + frame[at : at + length] * rng.choice((2, 3, 50)) + frame[at + length :]


def _claim(rng: random.Random, frame: bytes, other: bytes) -> bytes:
    """Write a msgpack marker and a large length over something."""
    at = rng.randrange(len(frame) + 1)
    claim = bytes([rng.choice(MARKERS)]) + rng.choice(BIG)
    return frame[:at] + claim + frame[at + rng.choice((0, len(claim))) :]


def _nest(rng: random.Random, frame: bytes, other: bytes) -> bytes:
    """Lists in lists, each of which claims more than there is."""
    depth = rng.choice((10, 600, 5000))
    header = rng.choice((b"\x91", b"\xdc\xff\xff", b"\xdd\x00\x04\x00\x00", b"\x81\xa1a")) * depth
    return struct.pack("<II", WHOLE, len(header)) + header


def _prefix(rng: random.Random, frame: bytes, other: bytes) -> bytes:
    """Another kind, or another size of the header."""
    kind = rng.choice((WHOLE, CHUNK, 0, 3, 1 << 31, 0xFFFFFFFF))
    return struct.pack("<I", kind) + rng.choice((frame[4:8], rng.choice(BIG), rng.randbytes(4)))[:4].ljust(4, b"\0") + frame[8:]


def _chunk(rng: random.Random, frame: bytes, other: bytes) -> bytes:
    """A piece of a message that says of itself what it likes."""
    totals = (len(frame), max(0, len(frame) - 1), 0, 1 << 20, 1 << 29, 1 << 40, (1 << 64) - 1)
    total, offset = rng.choice(totals), rng.choice((0, 0, 0, 1, len(frame), 1 << 63))
    return CHUNK_PREFIX.pack(CHUNK, rng.choice((0, 0, 0, 1, 0xFFFFFFFF)), offset, total) + frame


BYTES: Sequence[Callable[[random.Random, bytes, bytes], bytes]] = (
    *(_flip, _cut, _insert, _drop, _splice, _repeat, _claim, _nest, _prefix, _chunk),
)


# ------------------------------------------------------------ headers


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside a header."""
    yield path
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _places(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))


def replaced(rng: random.Random, header: Any) -> Any:
    """The header, or another value that msgpack can say, with one value anywhere in it replaced."""
    places = list(_places(header))
    return _with(header, rng.choice(places[1:] or places), lambda value: _other(rng, value))


def _with(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    copy: Any = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = _with(value[path[0]], path[1:], change)
    return copy


STRANGE: Sequence[Any] = (
    *(None, True, 0, -1, 1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, float("nan"), float("inf")),
    *("", "a", "\x00\x1b[31m", "é" * 50, "x" * 70_000, b"", b"\x00" * 40),
    *([], {}, [0] * 3000, [[[[[]]]]], {"a": 1}, {str(number): number for number in range(50)}),
    *("aten.mul.Tensor", "aten.mm.default", "f4", "i8", "features", "__class__", "os.system", "../../x"),
)


def _other(rng: random.Random, value: Any) -> Any:
    """Something in place of a value: near it, at a limit, or of another type."""
    near = [*STRANGE, msgpack.ExtType(rng.choice((0, 1, 2, 3, 4, 127)), rng.randbytes(rng.choice((0, 1, 8, 9))))]
    if isinstance(value, bool):
        near += [not value] * 5
    elif isinstance(value, int):
        near += [value + 1, value - 1, -value, value * 2, value ^ (1 << rng.randrange(60))]
        near += [rng.randrange(10), rng.randrange(10), rng.randrange(1 << 40)]
        near = [item for item in near if not isinstance(item, int) or -(2**63) <= item < 2**64]
    elif isinstance(value, str):
        near += [value + "x", value[:-1], value.upper(), value * 3]
    elif isinstance(value, bytes):
        near += [value + b"x", value[:-1], _flip(rng, value, b""), value * 2]
    elif isinstance(value, list):
        near += [value[:-1], value + value, value[::-1], [*value, None], [value]] * 2
    return rng.choice(near)
