"""Hypothesis strategies for every message of the table, made from the annotations of its fields."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, NewType

from hypothesis import strategies as st

from grid.wire.args import MEMORY_FORMATS
from grid.wire.codec import DTYPES, tensor_bytes
from grid.wire.messages import MESSAGES, Buffer, DType, Inline, MemoryFormat, Message, Ref, TensorFrame

INTS = st.integers(-(2**63), 2**63 - 1)
INDEXES = st.integers(0, 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    INTS,
    st.floats(allow_nan=False),
    TEXTS,
    INDEXES.map(Ref),
    INDEXES.map(Inline),
    st.sampled_from(sorted(DTYPES)).map(DType),
    st.sampled_from(sorted(MEMORY_FORMATS)).map(MemoryFormat),
)
ARGS = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=8)


@st.composite
def tensors(draw: st.DrawFn) -> TensorFrame:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = tensor_bytes(dtype, shape)
    return TensorFrame(dtype=dtype, shape=shape, data=draw(st.binary(min_size=size, max_size=size)))


PLAIN: dict[object, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: INTS,
    float: FINITE,
    str: TEXTS,
    bytes: st.binary(max_size=40),
    Buffer: st.binary(max_size=40),
    TensorFrame: tensors(),
    list[Any]: st.lists(ARGS, max_size=4),
    dict[str, Any]: st.dictionaries(TEXTS, ARGS, max_size=3),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    if hint in PLAIN:
        return PLAIN[hint]
    if isinstance(hint, NewType):
        return values(hint.__supertype__)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return st.lists(values(inner[0]), max_size=3).map(tuple)
    if origin in (typing.Union, types.UnionType) and types.NoneType in inner:
        return st.one_of(st.none(), *(values(each) for each in inner if each is not types.NoneType))
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values(each) for each in inner])
    if origin is dict:
        return st.dictionaries(TEXTS, st.one_of(TEXTS, INTS, FINITE, st.booleans()), max_size=3)
    assert dataclasses.is_dataclass(hint), hint
    return instances(hint)


def instances(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: values(hints[field.name]) for field in dataclasses.fields(cls)})


ANY_MESSAGE: st.SearchStrategy[Message] = st.one_of([st.deferred(lambda cls=cls: instances(cls)) for cls in MESSAGES.values()])


def plain(value: Any) -> Any:
    """A value in which two equal messages are equal: types of leaves kept, buffers as bytes, tensors as their parts."""
    if isinstance(value, TensorFrame):
        return ("tensor", value.dtype, value.shape, bytes(value.data))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if dataclasses.is_dataclass(value):
        return (type(value).__name__, *(plain(getattr(value, field.name)) for field in dataclasses.fields(value)))
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return (type(value), value)
