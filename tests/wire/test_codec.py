"""Frames: every message comes back as it was; whatever else arrives is a WireError and costs little."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from any_message import ANY_MESSAGE, plain, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grid.errors import LocalProtocolError, WireError
from grid.ids import ObjectId, PlanId
from grid.node.work import TO_WORKER
from grid.wire import args, codec
from grid.wire.codec import decode, encode
from grid.wire.messages import (
    BOUNDED_TEXT,
    MESSAGES,
    Command,
    Commands,
    DType,
    ErrorInfo,
    Failure,
    FreeObjects,
    GetObject,
    Hello,
    Inline,
    LinkData,
    MemoryFormat,
    Message,
    Ok,
    PutObject,
    PutPlan,
    Ref,
    RunPlan,
    StartSum,
    TensorFrame,
)

SLOW = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def frame_of(message: Message, request_id: int = 0, remaining_ms: int = 0) -> bytes:
    return b"".join(encode(message, request_id, remaining_ms))


def crafted(header: object, raw: bytes = b"") -> bytes:
    """A frame around a header that no encoder would write."""
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    pad = bytes(-len(packed) & 7) if raw else b""
    return struct.pack("<II", 1, len(packed)) + packed + pad + raw


def command(*arguments: Any, **keywords: Any) -> Commands:
    return Commands(first=1, commands=(Command(op="aten.add.Tensor", args=list(arguments), kwargs=keywords, outputs=(1,)),))


# ---------------------------------------------------------------- what is right


@SLOW
@given(ANY_MESSAGE, st.integers(-(2**63) + 1, 2**63 - 1), st.integers(0, 2**40))
def test_every_message_comes_back_as_it_was(message: Message, request_id: int, remaining_ms: int) -> None:
    decoded = decode(frame_of(message, request_id, remaining_ms))
    assert type(decoded.message) is type(message)
    assert plain(decoded.message) == plain(message)
    assert (decoded.id, decoded.remaining_ms) == (request_id, remaining_ms)


def test_the_strategy_reaches_every_message() -> None:
    assert len(MESSAGES) > 30
    for tag, cls in MESSAGES.items():
        assert cls.tag == tag and cls.__doc__, tag


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_tensors_are_read_without_a_copy_and_aligned(buffer: Callable[[bytes], Any]) -> None:
    frames = tuple(TensorFrame(dtype="f4", shape=(n, 3), data=random.Random(n).randbytes(12 * n)) for n in (1, 5, 2000))
    frame = buffer(frame_of(Commands(first=1, commands=(), tensors=frames)))
    decoded = decode(frame).message
    assert isinstance(decoded, Commands)
    for sent, came in zip(frames, decoded.tensors, strict=True):
        assert isinstance(came.data, memoryview) and bytes(came.data) == sent.data
        assert came.data.obj is (frame.obj if isinstance(frame, memoryview) else frame)
        offset = bytes(frame).index(bytes(sent.data))
        assert offset % 8 == 0


def test_a_large_tensor_is_sent_from_its_own_memory() -> None:
    data = bytearray(1 << 20)
    parts = encode(PutObject(object=1, tensor=TensorFrame(dtype="u1", shape=(1 << 20,), data=data)))
    assert any(isinstance(part, memoryview) and part.obj is data for part in parts)
    data[5] = 77
    assert b"".join(parts).count(77) == 1


def test_a_small_message_is_copied_at_once() -> None:
    data = bytearray(b"before")
    parts = encode(LinkData(link=1, frame=data))
    data[:] = b"after!"
    assert len(parts) == 1 and b"before" in bytes(parts[0])


def test_a_memoryview_of_wider_items_is_taken_as_bytes() -> None:
    data = memoryview(bytearray(range(16))).cast("f", (2, 2))
    decoded = decode(frame_of(PutObject(object=1, tensor=TensorFrame(dtype="f4", shape=(2, 2), data=data)))).message
    assert isinstance(decoded, PutObject) and bytes(decoded.tensor.data) == bytes(range(16))


def test_arguments_keep_their_kinds() -> None:
    arguments = [Ref(5), Inline(0), DType("f4"), MemoryFormat("preserve"), 5, True, None, 1.5, "f4", [Ref(1), [False, [Ref(2)]]]]
    decoded = decode(frame_of(command(*arguments, dtype=DType("i8"), dim=0))).message
    assert plain(decoded) == plain(command(*arguments, dtype=DType("i8"), dim=0))


def test_tuples_of_arguments_become_lists() -> None:
    decoded = decode(frame_of(command((1, (2, Ref(3)))))).message
    assert plain(decoded) == plain(command([1, [2, Ref(3)]]))


def test_fields_with_defaults_may_be_left_out_by_an_older_version() -> None:
    decoded = decode(crafted(["hello", 0, 0, 1, 1, "grid"])).message
    assert decoded == Hello(oldest=1, newest=1, software="grid")


def test_fields_that_a_newer_version_added_are_ignored() -> None:
    decoded = decode(crafted(["get-object", 3, 0, 9, "added later", [1, 2]])).message
    assert decoded == GetObject(object=9)


# ---------------------------------------------------------------- what is wrong, one by one

LONG = "x" * (BOUNDED_TEXT + 1)
BAD_HEADERS: dict[str, object] = {
    "no list": {"tag": "ok"},
    "empty": [],
    "short": ["ok", 0],
    "unknown tag": ["no-such-message", 0, 0],
    "tag is no text": [5, 0, 0],
    "tag is a list": [["ok"], 0, 0],
    "id is text": ["ok", "1", 0],
    "id is bool": ["ok", True, 0],
    "id too large": ["ok", 2**64 - 1, 0],
    "negative time": ["ok", 1, -1],
    "endless time": ["ok", 1, 2**60],
    "missing field": ["get-object", 1, 0],
    "too many fields": ["ok", 0, 0, *range(17)],
    "text for int": ["get-object", 1, 0, "9"],
    "bool for int": ["get-object", 1, 0, True],
    "float for int": ["get-object", 1, 0, 9.0],
    "int beyond 63 bits": ["get-object", 1, 0, 2**63],
    "int for text": ["hello", 0, 0, 1, 1, 1],
    "text too long": ["hello", 0, 0, 1, 1, LONG],
    "int for float": ["start-sum", 1, 0, "id", [], 1, 16, 3],
    "nan": ["start-sum", 1, 0, "id", [], 1, 16, float("nan")],
    "infinity": ["start-sum", 1, 0, "id", [], 1, 16, float("inf")],
    "text for list": ["free-objects", 0, 0, "123"],
    "map for list": ["free-objects", 0, 0, {"1": 1}],
    "nested int list": ["free-objects", 0, 0, [[1]]],
    "details of lists": ["error", -1, 0, ["x", "y", {"a": [1]}]],
    "details too many": ["error", -1, 0, ["x", "y", {str(n): 1 for n in range(65)}]],
    "record is a map": ["error", -1, 0, {"code": "x", "message": "y"}],
    "record is short": ["error", -1, 0, ["x"]],
    "tensor is no pair": ["put-object", 1, 0, 1, ["f4"]],
    "tensor without data": ["put-object", 1, 0, 1, ["f4", [2]]],
    "unknown dtype": ["put-object", 1, 0, 1, ["c8", []]],
    "dtype is a list": ["put-object", 1, 0, 1, [["f4"], []]],
    "negative dimension": ["put-object", 1, 0, 1, ["f4", [-1]]],
    "bool dimension": ["put-object", 1, 0, 1, ["f4", [True]]],
    "huge dimension": ["put-object", 1, 0, 1, ["f4", [2**62]]],
    "huge product": ["put-object", 1, 0, 1, ["f4", [2**20, 2**20, 2**20]]],
    "huge product with a zero": ["put-object", 1, 0, 1, ["f4", [0, 2**40, 2**40]]],
    "too many dimensions": ["put-object", 1, 0, 1, ["f4", [1] * 17]],
    "negative buffer": ["link-data", 0, 0, 1, -1],
    "buffer without data": ["link-data", 0, 0, 1, 10],
    "bytes in arguments": ["commands", 1, 0, 1, [["op", [b"x"], {}, []]]],
    "map in arguments": ["commands", 1, 0, 1, [["op", [{"a": 1}], {}, []]]],
    "int beyond 63 bits in arguments": ["commands", 1, 0, 1, [["op", [2**63], {}, []]]],
    "long text in arguments": ["commands", 1, 0, 1, [["op", [LONG], {}, []]]],
    "long text in keyword arguments": ["commands", 1, 0, 1, [["op", [], {LONG: 1}, []]]],
    "arguments are no list": ["commands", 1, 0, 1, [["op", 1, {}, []]]],
    "keyword arguments are a list": ["commands", 1, 0, 1, [["op", [], [], []]]],
    "timestamp": ["get-object", 1, 0, msgpack.Timestamp(0)],
    "unknown extension": ["commands", 1, 0, 1, [["op", [msgpack.ExtType(9, b"")], {}, []]]],
    "short reference": ["commands", 1, 0, 1, [["op", [msgpack.ExtType(1, b"1234")], {}, []]]],
    "reference beyond 63 bits": ["commands", 1, 0, 1, [["op", [msgpack.ExtType(1, b"\xff" * 8)], {}, []]]],
    "long dtype": ["commands", 1, 0, 1, [["op", [msgpack.ExtType(3, b"f" * 17)], {}, []]]],
    "dtype not utf-8": ["commands", 1, 0, 1, [["op", [msgpack.ExtType(3, b"\xff")], {}, []]]],
    "unknown memory format": ["commands", 1, 0, 1, [["op", [msgpack.ExtType(4, b"strided")], {}, []]]],
    "command of an unknown tag": ["commands", 1, 0, 1, [{"commands": [1, []]}]],
    "command of two tags": ["commands", 1, 0, 1, [{"run-plan": ["p", [], []], "open-dataset": ["d", "features", 1, [], "f4"]}]],
    "command without a tag": ["commands", 1, 0, 1, [{}]],
    "command with a tag of bytes": ["commands", 1, 0, 1, [{b"run-plan": ["p", [], []]}]],
    "plan call without results": ["commands", 1, 0, 1, [{"run-plan": ["p", []]}]],
    "plan call with a number for inputs": ["commands", 1, 0, 1, [{"run-plan": ["p", 1, []]}]],
    "integer keys": ["error", -1, 0, ["x", "y", {1: 1}]],
    "reference as id": ["get-object", 1, 0, msgpack.ExtType(1, bytes(8))],
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_a_bad_header_is_a_wire_error(header: object) -> None:
    with pytest.raises(WireError):
        decode(crafted(header))


BAD_FRAMES = {
    "empty": b"",
    "short prefix": b"\x01\x00\x00\x00\x00\x00\x00",
    "unknown kind": b"\x09\x00\x00\x00" + frame_of(Ok())[4:],
    "header beyond the end": struct.pack("<II", 1, 100) + b"\x90",
    "header of 4 GiB": struct.pack("<II", 1, 0xFFFFFFFF) + b"\x90",
    "no header": struct.pack("<II", 1, 0),
    "not msgpack": crafted(b"\xc1"),
    "text not utf-8": crafted(b"\x93\xa1\xff\x00\x00"),
    "two values": crafted(msgpack.packb(["ok", 0, 0]) * 2),
    "bytes after a message without buffers": frame_of(Ok()) + bytes(8),
    "bytes after the last buffer": frame_of(LinkData(link=1, frame=b"12345678")) + bytes(8),
    "buffer cut short": frame_of(LinkData(link=1, frame=b"12345678"))[:-8],
    "padding cut short": frame_of(LinkData(link=1, frame=b"1234567"))[:-1],
}


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_a_bad_frame_is_a_wire_error(frame: bytes) -> None:
    with pytest.raises(WireError):
        decode(frame)


def test_depth_of_arguments_is_bounded() -> None:
    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return value

    decode(frame_of(command(nested(args.MAX_DEPTH))))
    with pytest.raises(LocalProtocolError, match="deeper"):
        encode(command(nested(args.MAX_DEPTH + 1)))
    for levels in (args.MAX_DEPTH + 1, 100, 500):
        with pytest.raises(WireError):
            decode(crafted(["commands", 1, 0, 1, [["op", [nested(levels)], {}, []]]]))
    for levels in (1000, 2000, 100_000):
        with pytest.raises(WireError):
            decode(crafted(b"\x91" * levels + b"\xc0"))


@pytest.mark.parametrize("size", [400, 4_000, 60_000, 1 << 20])
@pytest.mark.parametrize("claim", [b"\xdd\x00\x00\xff\xff", b"\xdc\xff\xff", b"\xdc\x01\x00", b"\xdf\x00\x00\xff\xff\xa1a"])
def test_claims_of_lists_that_do_not_come_cost_no_memory(size: int, claim: bytes) -> None:
    header = (claim * 1000)[:size].ljust(size, b"\xc0")
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode(crafted(header))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * size + 1_000_000


def test_a_list_as_long_as_a_header_can_hold_is_refused() -> None:
    with pytest.raises(WireError):
        decode(crafted(["free-objects", 0, 0, [0] * (codec.MAX_LIST + 1)]))
    decode(frame_of(FreeObjects(objects=(0,) * codec.MAX_LIST)))


def test_a_header_that_is_too_long_is_refused_on_both_sides() -> None:
    message = PutPlan(plan="p", encoding=b"")
    assert decode(frame_of(message)).message.tag == "put-plan"
    failures = tuple(Command(op="x" * BOUNDED_TEXT, args=[], kwargs={}, outputs=()) for _ in range(65))
    with pytest.raises(LocalProtocolError, match="send less at once"):
        encode(Commands(first=1, commands=failures))
    with pytest.raises(WireError):
        decode(crafted(["free-objects", 0, 0, "x" * (codec.MAX_HEADER_BYTES + 1)]))


# ---------------------------------------------------------------- what is wrong, at random


@SLOW
@given(st.binary(max_size=200))
def test_random_bytes_are_a_wire_error(data: bytes) -> None:
    for frame in (data, crafted(data)):
        try:
            decode(frame)
        except WireError:
            continue
        assert data[:4] == b"\x01\x00\x00\x00" or data[:1] >= b"\x93"  # a lucky message


@SLOW
@given(ANY_MESSAGE, st.integers(0, 2**32))
def test_a_mutated_frame_is_a_message_or_a_wire_error(message: Message, seed: int) -> None:
    rng = random.Random(seed)
    whole = frame_of(message, rng.choice([0, 1, -1]), rng.choice([0, 1000]))
    for _ in range(20):
        frame = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5])):
            position = rng.randrange(len(frame) + 1)
            kind = rng.randrange(4)
            if kind == 0 and position < len(frame):
                frame[position] ^= 1 << rng.randrange(8)
            elif kind == 1:
                frame[position:position] = rng.randbytes(rng.randrange(1, 9))
            elif kind == 2:
                del frame[position : position + rng.randrange(1, 9)]
            elif position < len(frame):
                frame[position] = rng.choice([0x00, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xC6, 0xCF, 0xD9, 0xDD, 0xDF, 0xFF])
        try:
            came = decode(bytes(frame))
        except WireError:
            continue
        encode(came.message, came.id, came.remaining_ms)  # what is let in can be let out


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=10,
)


@SLOW
@given(st.sampled_from(sorted(MESSAGES)), st.lists(JSON, max_size=6), st.binary(max_size=24))
def test_fields_of_any_kind_are_a_message_or_a_wire_error(tag: str, fields: list[object], raw: bytes) -> None:
    try:
        came = decode(crafted([tag, 0, 0, *fields], raw))
    except WireError:
        return
    encode(came.message)


# ---------------------------------------------------------------- our own mistakes

UNSENDABLE: dict[str, Message] = {
    "text for int": GetObject(object="1"),
    "bool for int": GetObject(object=True),
    "reference for int": GetObject(object=Ref(1)),
    "int beyond 63 bits": GetObject(object=2**63),
    "int beyond 64 bits": GetObject(object=2**70),
    "long text": Failure(error=ErrorInfo(code="x", message=LONG)),
    "half a surrogate": Failure(error=ErrorInfo(code="x", message="\ud800")),
    "details of lists": Failure(error=ErrorInfo(code="x", message="", details={"a": [1]})),
    "not a number": StartSum(sum="s", roster=(), object=1, fraction_bits=1, deadline_s=float("nan")),
    "dtype": PutObject(object=1, tensor=TensorFrame(dtype="c8", shape=(), data=b"12345678")),
    "wrong size": PutObject(object=1, tensor=TensorFrame(dtype="f4", shape=(2,), data=b"1234")),
    "buffer with gaps": LinkData(link=1, frame=memoryview(b"12345678")[::2]),
    "no buffer": LinkData(link=1, frame="text"),
    "object in arguments": command(object()),
    "bytes in arguments": command(b"x"),
    "complex in nested arguments": command([[1j]]),
    "int beyond 63 bits in arguments": command(2**63),
    "negative reference": command(Ref(-1)),
    "long dtype": command(DType("x" * 17)),
    "unknown memory format": command(MemoryFormat("strided")),
    "tuple for a list of arguments": Commands(first=1, commands=(RunPlan(plan="p", inputs=(1,), outputs=()),)),
}


@pytest.mark.parametrize("message", UNSENDABLE.values(), ids=UNSENDABLE.keys())
def test_what_a_peer_would_not_read_is_not_sent(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)


def test_an_argument_that_contains_itself_is_not_sent() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(LocalProtocolError):
        encode(command(loop))


def test_a_class_that_is_no_message_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match="not in the table"):
        encode(ErrorInfo(code="x", message="y"))


@given(tensors())
def test_an_error_names_no_values(tensor: TensorFrame) -> None:
    broken = TensorFrame(dtype=tensor.dtype, shape=(*tensor.shape, 7), data=b"secret-value")
    with pytest.raises(LocalProtocolError) as caught:
        encode(PutObject(object=1, tensor=broken))
    assert "secret" not in str(caught.value)


def test_what_is_handed_on_keeps_the_bytes_that_it_came_in() -> None:
    """They mean the same in a process of the node's; no other message keeps any."""
    tensor = TensorFrame(dtype="f4", shape=(3,), data=bytes(range(12)))
    run = RunPlan(plan=PlanId("p"), inputs=[Ref(1), Inline(0)], outputs=(ObjectId(2),))
    sent = Commands(first=3, commands=(run,), tensors=(tensor,))
    frame = b"".join(encode(sent, 8, 100))
    came = decode(frame).message
    assert isinstance(came, Commands) and came.frame is frame and plain(came) == plain(sent) and not hasattr(sent, "frame")
    again = decode(came.frame, TO_WORKER).message
    assert plain(again) == plain(sent)
    assert not hasattr(decode(b"".join(encode(PutObject(object=ObjectId(1), tensor=tensor)))).message, "frame")
