"""Frames: bytes <-> messages.

    u32 kind = 1 | u32 header size | header (msgpack) | zeros to a multiple of 8 | buffers, each padded to a multiple of 8

All integers are little-endian. The header is the list [tag, id, remaining_ms, field, field, ...]. `id` is 0 for a one-way
message, the request's id for a request, and minus the request's id for a reply. `remaining_ms` is the time that a request's
sender still waits, 0 for none.

`decode` is total: it returns a message or raises `WireError`. It reads with no copy: `TensorFrame.data` and `Buffer` fields
are slices of the frame. Before msgpack builds anything from a header that could claim more than it holds, one pass that
builds nothing checks that all of it is there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack

from grid.errors import LocalProtocolError, WireError
from grid.ids import RequestId
from grid.wire import jobs as jobs  # its messages enter the table
from grid.wire.args import MAX_INT, pack_special, unpack_special
from grid.wire.dtypes import DTYPES, MAX_DIMS, MAX_ELEMENTS, tensor_bytes
from grid.wire.fields import Form
from grid.wire.messages import MESSAGES, Buffer, Forwarded, Message
from grid.wire.raw import Raw
from grid.wire.records import compile_record

__all__ = ["DTYPES", "MAX_DIMS", "MAX_ELEMENTS", "PEERS", "Decoded", "Table", "decode", "encode", "tensor_bytes"]

WHOLE = 1
"""Kind of a frame that holds one message."""

PREFIX = struct.Struct("<II")

MAX_HEADER_BYTES = 4 << 20
"""No header is longer: descriptions and commands only; data travels in the raw section."""

MAX_LIST = 1 << 18
"""No list in a header has more items."""

MAX_MAP = 4096
"""No map in a header has more entries."""

MAX_REMAINING_MS = 1 << 40

_MAX_STR_BYTES = 4 * 65536
_TRUSTED_HEADER_BYTES = 512
"""Below this, what nested lists could claim stays under a megabyte, and the pass that builds nothing is not worth its time."""

_JOIN_BYTES = 16 << 10
"""Frames up to this size become one buffer: a copy is cheaper than carrying parts through every layer."""


class Decoded(NamedTuple):
    """A message and what its header says about it."""

    message: Message
    id: RequestId
    remaining_ms: int


class Table:
    """The messages that one kind of conversation may hold, by tag."""

    def __init__(self, messages: Mapping[str, type[Message]]) -> None:
        self.writers: Mapping[type[Message], Form] = {cls: compile_record(cls) for cls in messages.values()}
        self.readers: Mapping[str, Form] = {tag: self.writers[cls] for tag, cls in messages.items()}


PEERS = Table(MESSAGES)
"""What peers say to each other."""


def encode(message: Message, request_id: int = 0, remaining_ms: int = 0, table: Table = PEERS) -> list[Buffer]:
    """One frame as parts to be sent one after another. Parts that hold a large tensor's data are the tensor's own memory.

    Raises `LocalProtocolError` for a message that a peer would not read.
    """
    form = table.writers.get(type(message))
    if form is None:
        raise LocalProtocolError(f"{type(message).__name__} is not in the table of messages")
    raw: list[Buffer] = []
    fields = form.write(message, raw)
    packer = msgpack.Packer(default=pack_special, strict_types=True, buf_size=512)
    try:
        header = packer.pack([type(message).tag, request_id, remaining_ms, *fields])
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{type(message).__name__} cannot be encoded: {error}") from None
    if len(header) > MAX_HEADER_BYTES:
        raise LocalProtocolError(
            f"the header of {type(message).__name__} has {len(header)} bytes, more than {MAX_HEADER_BYTES}; send less at once"
        )
    return _assemble(header, raw)


def _assemble(header: bytes, raw: list[Buffer]) -> list[Buffer]:
    parts: list[Buffer] = [PREFIX.pack(WHOLE, len(header)) + header]
    if not raw:
        return parts
    parts[0] = b"".join((parts[0], bytes(-len(header) & 7)))
    total = len(parts[0])
    for data in raw:
        size = len(data)
        if size:
            parts.append(data)
        if size & 7:
            parts.append(bytes(-size & 7))
        total += size
    return [b"".join(parts)] if total <= _JOIN_BYTES else parts


def decode(frame: Buffer, table: Table = PEERS) -> Decoded:
    """The message in one whole frame. Raises `WireError` for anything else."""
    view = memoryview(frame)
    size = len(view)
    if size < 8:
        raise WireError("a frame is shorter than its prefix")
    kind, header_size = PREFIX.unpack_from(view)
    if kind != WHOLE or header_size > MAX_HEADER_BYTES or 8 + header_size > size:
        raise WireError("a frame's prefix does not describe a message")
    header = _unpack(view[8 : 8 + header_size])
    if type(header) is not list or len(header) < 3:
        raise WireError("a frame's header is not a list of tag, id, time and fields")
    tag, request_id, remaining_ms = header[0], header[1], header[2]
    form = table.readers.get(tag) if type(tag) is str else None
    if form is None:
        raise WireError("a message's tag is unknown; the peer may speak a newer version")
    if type(request_id) is not int or not -MAX_INT <= request_id <= MAX_INT:
        raise WireError("a request id is not an integer of 64 bits")
    if type(remaining_ms) is not int or not 0 <= remaining_ms <= MAX_REMAINING_MS:
        raise WireError("a request's remaining time is out of bounds")
    del header[:3]
    raw = Raw(view, 8 + header_size + (-header_size & 7 if form.raw and size > 8 + header_size else 0))
    message = form.read(header, raw)
    raw.finish()
    if isinstance(message, Forwarded):
        object.__setattr__(message, "frame", frame)
    return Decoded(message, RequestId(request_id), remaining_ms)


def _unpack(header: memoryview) -> Any:
    """What msgpack makes of a header. Raises `WireError`.

    A list of msgpack claims its length before its items come, and msgpack allocates for the claim at once; nested claims
    multiply. `skip` walks the header without building, so a header that passes has an item for every place claimed.
    """
    try:
        if len(header) > _TRUSTED_HEADER_BYTES:
            walker = msgpack.Unpacker(max_buffer_size=len(header), read_size=len(header))
            walker.feed(header)
            walker.skip()
        return msgpack.unpackb(
            header,
            ext_hook=unpack_special,
            strict_map_key=True,
            max_str_len=_MAX_STR_BYTES,
            max_bin_len=MAX_HEADER_BYTES,
            max_array_len=min(len(header), MAX_LIST),
            max_map_len=min(len(header), MAX_MAP),
            max_ext_len=min(len(header), 64),
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"a header is not valid msgpack ({type(error).__name__})") from None
