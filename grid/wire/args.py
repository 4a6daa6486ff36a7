"""Argument trees of commands and plan calls: how `Ref`, `Inline`, `DType` and `MemoryFormat` travel inside msgpack.

Plain leaves (None, bool, int, float, str) and lists are what msgpack makes of them. The four special leaves are extension
types, made by `pack_special` and read back by `unpack_special`; each is checked there, so a tree that was read holds only
good ones. `check_args` looks at the rest: kinds of leaves, size of integers, length of text, depth.

Both directions keep one rule: a tree that `check_args` lets out is a tree that the far end lets in.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

import msgpack

from grid.errors import GridError
from grid.wire.messages import BOUNDED_TEXT, DType, Inline, MemoryFormat, Ref

MAX_DEPTH = 8
"""Levels of lists in one argument."""

MAX_INT = (1 << 63) - 1
MIN_INT = -(1 << 63)

MEMORY_FORMATS = frozenset({"contiguous", "preserve", "channels_last"})

_NAME_BYTES = 16
_REF, _INLINE, _DTYPE, _MEMORY_FORMAT = 1, 2, 3, 4

_FREE = frozenset({NoneType, bool, float, Ref, Inline, DType, MemoryFormat})
"""Leaves that need no further look once they have their type."""


def pack_special(value: object) -> object:
    """What msgpack should write in place of a value that it does not know. Raises `TypeError` for all but our own kinds."""
    kind = type(value)
    if kind is Ref or kind is Inline:
        assert isinstance(value, int)
        if not 0 <= value <= MAX_INT:
            raise TypeError(f"a {kind.__name__} must lie between 0 and 2**63 - 1")
        return _extension(_REF if kind is Ref else _INLINE, value.to_bytes(8, "little"))
    if kind is DType or kind is MemoryFormat:
        assert isinstance(value, str)
        name = value.encode()
        if len(name) > _NAME_BYTES or (kind is MemoryFormat and value not in MEMORY_FORMATS):
            raise TypeError(f"{value[:_NAME_BYTES]!r} is no {kind.__name__}")
        return _extension(_DTYPE if kind is DType else _MEMORY_FORMAT, name)
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"a value of type {kind.__name__} cannot travel in a message")


def _extension(code: int, data: bytes) -> object:
    """An `ExtType` without its constructor's checks, which cost more than the rest of a reference together."""
    return tuple.__new__(msgpack.ExtType, (code, data))


def unpack_special(code: int, data: bytes) -> object:
    """The value of one extension; msgpack calls this. Raises `ValueError` for anything that `pack_special` does not write."""
    if code == _REF or code == _INLINE:
        number = int.from_bytes(data, "little")
        if len(data) != 8 or number > MAX_INT:
            raise ValueError("a reference must be 8 bytes below 2**63")
        return Ref(number) if code == _REF else Inline(number)
    if code == _DTYPE or code == _MEMORY_FORMAT:
        if len(data) > _NAME_BYTES:
            raise ValueError("a dtype or memory format has too long a name")
        name = data.decode()
        if code == _DTYPE:
            return DType(name)
        if name not in MEMORY_FORMATS:
            raise ValueError("unknown memory format")
        return MemoryFormat(name)
    raise ValueError(f"unknown extension type {code}")


def check_args(values: list[Any], error: type[GridError], depth: int = MAX_DEPTH) -> None:
    """Raise `error` unless every item of `values` is an `Arg` of at most `depth` levels of lists."""
    for item in values:
        if type(item) not in _FREE:
            _check_arg(item, error, depth)


def check_kwargs(values: Mapping[str, Any], error: type[GridError]) -> None:
    """Raise `error` unless all keys are strings of bounded length and all values are `Arg`s."""
    for key in values:
        if type(key) is not str or len(key) > BOUNDED_TEXT:
            raise error("the name of a keyword argument must be a string of bounded length")
    check_args(list(values.values()), error)


def _check_arg(item: object, error: type[GridError], depth: int) -> None:
    kind = type(item)
    if kind is int:
        assert isinstance(item, int)
        if not MIN_INT <= item <= MAX_INT:
            raise error("an integer argument does not fit 64 bits")
    elif kind is str:
        assert isinstance(item, str)
        if len(item) > BOUNDED_TEXT:
            raise error(f"a text argument is longer than {BOUNDED_TEXT} characters")
    elif isinstance(item, (list, tuple)):
        if depth == 0:
            raise error(f"arguments nest deeper than {MAX_DEPTH} levels")
        check_args(item, error, depth - 1)  # type: ignore[arg-type]
    elif kind not in _FREE:
        raise error(f"a value of type {kind.__name__} is no argument of a command")
