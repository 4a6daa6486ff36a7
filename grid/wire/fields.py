"""How one value of a field travels: the forms of plain types, tensors, arguments, and what is composed of them.

A form is two functions. Its *writer* takes a value and a list to which it adds raw buffers, and returns what goes into the
msgpack header; it raises `LocalProtocolError` for a value that does not have the field's type. Its *reader* takes what msgpack
made of the header and a `Raw` cursor over the raw section; it raises `WireError`. What a writer lets out, the reader at the far
end lets in. Tensors and `Buffer` fields stand in the header as descriptions only; their bytes follow in the raw section.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from grid.errors import LocalProtocolError, WireError
from grid.wire import args
from grid.wire.dtypes import tensor_bytes
from grid.wire.messages import BOUNDED_TEXT, Buffer, TensorFrame
from grid.wire.raw import Raw, byte_view

MAX_DETAILS = 64
"""Entries of an error's details."""


Write = Callable[[Any, list[Buffer]], Any]
Read = Callable[[Any, Raw], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """How one type travels. `raw`: whether it can add to the raw section."""

    write: Write
    read: Read
    raw: bool = False


def unfit(value: object, wanted: str) -> NoReturn:
    raise LocalProtocolError(f"a field must be {wanted}, not {type(value).__name__}, or is out of bounds")


def unreadable(value: object, wanted: str) -> NoReturn:
    raise WireError(f"a field must be {wanted}, not {type(value).__name__}, or is out of bounds")


# ---------------------------------------------------------------- plain values


def _plain(wanted: str, good: Callable[[Any], bool]) -> Form:
    """A type that msgpack carries as it is, wherever `good` says so."""

    def write(value: Any, raw: list[Buffer]) -> Any:
        return value if good(value) else unfit(value, wanted)

    def read(value: Any, raw: Raw) -> Any:
        return value if good(value) else unreadable(value, wanted)

    return Form(write, read)


_BOOL = _plain("a bool", lambda value: type(value) is bool)
_BYTES = _plain("bytes", lambda value: type(value) is bytes)


# Integers and strings stand in every command: their checks are written out, which saves a call for each.


def _write_int(value: Any, raw: list[Buffer]) -> Any:
    if type(value) is int and -(1 << 63) <= value < 1 << 63:
        return value
    return unfit(value, "an integer of 64 bits")


def _read_int(value: Any, raw: Raw) -> Any:
    if type(value) is int and -(1 << 63) <= value < 1 << 63:
        return value
    return unreadable(value, "an integer of 64 bits")


def _write_str(value: Any, raw: list[Buffer]) -> Any:
    if type(value) is str and len(value) <= BOUNDED_TEXT:
        return value
    return unfit(value, "a string of bounded length")


def _read_str(value: Any, raw: Raw) -> Any:
    if type(value) is str and len(value) <= BOUNDED_TEXT:
        return value
    return unreadable(value, "a string of bounded length")


_INT = Form(_write_int, _read_int)
_STR = Form(_write_str, _read_str)


def _write_float(value: Any, raw: list[Buffer]) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        unfit(value, "a finite number")
    return float(value)


def _read_float(value: Any, raw: Raw) -> float:
    if type(value) is not float or not math.isfinite(value):
        unreadable(value, "a finite number")
    return value


_FLOAT = Form(_write_float, _read_float)


def _good_detail(value: object) -> bool:
    if type(value) is int:
        return args.MIN_INT <= value <= args.MAX_INT
    return type(value) in (bool, float) or (type(value) is str and len(value) <= BOUNDED_TEXT)


_DETAIL = _plain("a string or a number", _good_detail)


# ---------------------------------------------------------------- raw buffers


def _write_buffer(value: Any, raw: list[Buffer]) -> int:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        unfit(value, "a buffer")
    view = byte_view(value)
    raw.append(view)
    return view.nbytes


def _read_buffer(value: Any, raw: Raw) -> memoryview:
    if type(value) is not int or value < 0:
        unreadable(value, "the size of a buffer")
    return raw.take(value)


_BUFFER = Form(_write_buffer, _read_buffer, raw=True)


def _write_tensor(value: Any, raw: list[Buffer]) -> list[Any]:
    if type(value) is not TensorFrame:
        unfit(value, "a TensorFrame")
    view = byte_view(value.data)
    shape = list(value.shape)
    try:
        wanted = tensor_bytes(value.dtype, shape)
    except WireError as error:
        raise LocalProtocolError(error.message) from None
    if view.nbytes != wanted:
        raise LocalProtocolError(f"a tensor of dtype {value.dtype} and shape {shape} has {wanted} bytes, not {view.nbytes}")
    raw.append(view)
    return [value.dtype, shape]


def _read_tensor(value: Any, raw: Raw) -> TensorFrame:
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str or type(value[1]) is not list:
        unreadable(value, "a tensor's dtype and shape")
    dtype, shape = value
    return TensorFrame(dtype=dtype, shape=tuple(shape), data=raw.take(tensor_bytes(dtype, shape)))


_TENSOR = Form(_write_tensor, _read_tensor, raw=True)


# ---------------------------------------------------------------- arguments


def _write_args(value: Any, raw: list[Buffer]) -> Any:
    if type(value) is not list:
        unfit(value, "a list of arguments")
    args.check_args(value, LocalProtocolError)
    return value


def _read_args(value: Any, raw: Raw) -> Any:
    if type(value) is not list:
        unreadable(value, "a list of arguments")
    args.check_args(value, WireError)
    return value


def _write_kwargs(value: Any, raw: list[Buffer]) -> Any:
    if type(value) is not dict:
        unfit(value, "a dict of arguments")
    if value:
        args.check_kwargs(value, LocalProtocolError)
    return value


def _read_kwargs(value: Any, raw: Raw) -> Any:
    if type(value) is not dict:
        unreadable(value, "a dict of arguments")
    if value:
        args.check_kwargs(value, WireError)
    return value


_ARGS = Form(_write_args, _read_args)
_KWARGS = Form(_write_kwargs, _read_kwargs)


# ---------------------------------------------------------------- compositions


def optional(form: Form) -> Form:
    write_some, read_some = form.write, form.read

    def write(value: Any, raw: list[Buffer]) -> Any:
        return None if value is None else write_some(value, raw)

    def read(value: Any, raw: Raw) -> Any:
        return None if value is None else read_some(value, raw)

    return Form(write, read, form.raw)


def tuple_of(form: Form) -> Form:
    write_item, read_item = form.write, form.read

    def write(value: Any, raw: list[Buffer]) -> Any:
        if not isinstance(value, (tuple, list)):
            unfit(value, "a tuple")
        return [write_item(item, raw) for item in value]

    def read(value: Any, raw: Raw) -> Any:
        if type(value) is not list:
            unreadable(value, "a list")
        return tuple([read_item(item, raw) for item in value])

    return Form(write, read, form.raw)


def details() -> Form:
    def good(value: Any) -> bool:
        return type(value) is dict and len(value) <= MAX_DETAILS and all(type(key) is str for key in value)

    def write(value: Any, raw: list[Buffer]) -> Any:
        if not good(value):
            unfit(value, "a small dict of details")
        return {key: _DETAIL.write(item, raw) for key, item in value.items()}

    def read(value: Any, raw: Raw) -> Any:
        if not good(value):
            unreadable(value, "a small dict of details")
        return {key: _DETAIL.read(item, raw) for key, item in value.items()}

    return Form(write, read)


PLAIN: Mapping[object, Form] = {
    bool: _BOOL,
    int: _INT,
    float: _FLOAT,
    str: _STR,
    bytes: _BYTES,
    Buffer: _BUFFER,
    TensorFrame: _TENSOR,
    list[Any]: _ARGS,
    dict[str, Any]: _KWARGS,
}
"""Annotation -> form, for all that are not composed of others."""
