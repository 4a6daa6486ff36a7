"""Plans <-> bytes, one way only: equal plans have equal bytes, on any machine and in any process.

The encoding is one msgpack list in the order of `Program`'s fields, behind a format name and version:

    ["grid-plan", 1, name, parameters, takes, inputs, ranges, constants, steps, outputs, gives]
    input    = [dtype, [size or name, ...]]              range = [least, most or nil]
    constant = [dtype, [size, ...], bytes]               step = [op, [arg, ...], [[keyword, arg], ...], [output, ...]]

A plan's id is the hash of its encoding, so an encoding is never changed by reading it, and what it means never changes
(docs/adr/0008-plans-that-stay.md). Another version of the format gets another number; every later version of grid reads it.

`unpack` is total and bounded: a `Program` or `PlanRejected`. It checks all that can be checked without the op table: sizes,
depths, names, numbering, that nothing is used before it is there; and last, that the plan's encoding is what came.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

from grid.errors import PlanRejected, WireError
from grid.plans.program import Constant, InputSpec, Program, Range, Step, with_frees
from grid.plans.trees import from_plain, to_plain
from grid.wire.args import check_args, pack_special, unpack_special
from grid.wire.dtypes import DTYPES, MAX_DIMS, tensor_bytes
from grid.wire.messages import Arg, Inline, Ref

FORMAT = "grid-plan"
VERSION = 1

MAX_PLAN_BYTES = 64 << 20
"""Bytes of one encoded plan, constants included."""

MAX_STEPS = 20_000
MAX_INPUTS = 4096
MAX_OUTPUTS = 4096
MAX_CONSTANTS = 4096
MAX_VALUES = 100_000
MAX_STEP_OUTPUTS = 1024
MAX_LIST = 1 << 17
"""Items of any list, those inside a step included."""

MAX_ARG_DEPTH = 4
"""Levels of lists in an argument of a step; the op table's schemas have two at most."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z")
_OP = re.compile(r"(aten|sym)\.[A-Za-z0-9_]{1,80}(\.[A-Za-z0-9_]{1,80})?\Z")
_MAX_SIZE = 1 << 40

T = TypeVar("T")


def pack(program: Program) -> bytes:
    """The canonical encoding. Raises `PlanRejected` for a program that is too large or holds what cannot be written."""
    rows = [
        FORMAT,
        VERSION,
        program.name,
        list(program.parameters),
        to_plain(program.takes),
        [[spec.dtype, list(spec.sizes)] for spec in program.inputs],
        [[span.least, span.most] for span in program.ranges],
        [[constant.dtype, list(constant.shape), constant.data] for constant in program.constants],
        [[step.op, step.args, [list(pair) for pair in step.kwargs], list(step.outputs)] for step in program.steps],
        list(program.outputs),
        to_plain(program.gives),
    ]
    try:
        data = msgpack.Packer(default=pack_special, strict_types=True).pack(rows)
    except (TypeError, ValueError, OverflowError) as error:
        raise PlanRejected(f"a plan holds what cannot be written down: {error}") from None
    assert isinstance(data, bytes)
    if len(data) > MAX_PLAN_BYTES:
        raise PlanRejected(
            f"the plan takes {len(data) >> 20} MiB, more than {MAX_PLAN_BYTES >> 20}; "
            "pass large tensors as arguments instead of closing over them"
        )
    return data


def unpack(data: bytes | bytearray | memoryview, max_bytes: int = MAX_PLAN_BYTES) -> Program:
    """The program in an encoding. Raises `PlanRejected` for anything that `pack` does not write."""
    if len(data) > max_bytes:
        raise PlanRejected(f"a plan of {len(data)} bytes is larger than the limit of {max_bytes}")
    rows = _unpack(data, max_bytes)
    if not (isinstance(rows, list) and len(rows) == 11 and rows[0] == FORMAT and type(rows[1]) is int):
        raise PlanRejected("these bytes are not a plan")
    if isinstance(rows[1], bool) or rows[1] < 1:
        raise PlanRejected("these bytes are not a plan")
    if rows[1] > VERSION:
        raise PlanRejected(
            f"the plan was made by a newer version of grid (plan format {rows[1]}, and this side reads up to {VERSION}); "
            "install the newer version here, or trace the function with this one"
        )
    constants = tuple(_items(rows[7], MAX_CONSTANTS, "constants", _constant))
    steps = tuple(_items(rows[8], MAX_STEPS, "steps", _step))
    inputs = tuple(_items(rows[5], MAX_INPUTS, "inputs", _input))
    outputs = tuple(_items(rows[9], MAX_OUTPUTS, "outputs", _number))
    first = len(inputs) + len(constants)
    program = Program(
        name=_name(rows[2]),
        parameters=tuple(_items(rows[3], MAX_INPUTS, "parameters", _name)),
        takes=from_plain(rows[4]),
        inputs=inputs,
        ranges=tuple(_items(rows[6], MAX_INPUTS * MAX_DIMS, "ranges", _range)),
        constants=constants,
        steps=with_frees(steps, outputs, range(len(inputs), first)),
        outputs=outputs,
        gives=from_plain(rows[10]),
    )
    check_form(program)
    if pack(program) != data:
        raise PlanRejected("a plan is not in its canonical encoding")
    return program


def _unpack(data: bytes | bytearray | memoryview, max_bytes: int) -> Any:
    try:
        # A list claims its length before its items are there; walking first keeps a claim from becoming an allocation.
        walker = msgpack.Unpacker(max_buffer_size=max(len(data), 1), read_size=max(len(data), 1))
        walker.feed(data)
        walker.skip()
        return msgpack.unpackb(
            data,
            ext_hook=unpack_special,
            max_str_len=1 << 16,
            max_bin_len=max_bytes,
            max_array_len=min(len(data), MAX_LIST),
            max_map_len=0,
            max_ext_len=16,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise PlanRejected(f"a plan is not valid msgpack ({type(error).__name__})") from None


def check_form(program: Program) -> None:
    """Raise `PlanRejected` unless numbering, names of dimensions and structures fit together."""
    if len(program.parameters) != len(program.takes.children) or program.takes.kind != "tuple":
        raise PlanRejected("a plan's parameters and argument structure do not fit")
    if program.takes.leaves() != len(program.inputs) or program.gives.leaves() != len(program.outputs):
        raise PlanRejected("a plan's structures and its numbers of inputs or outputs do not fit")
    _check_dimensions(program)
    next_value = program.first_step_value
    for index, step in enumerate(program.steps):
        for ref in step.refs():
            if ref >= next_value:
                raise _at(index, step, f"uses value {ref} before it is there")
        for output in step.outputs:
            if output < next_value:
                raise _at(index, step, f"defines value {output} a second time")
            if output > next_value:
                raise _at(index, step, f"defines value {output}, and {next_value} is the next one")
            next_value += 1
        if next_value > MAX_VALUES:
            raise _at(index, step, f"takes the plan over the limit of {MAX_VALUES} values")
    for output in program.outputs:
        if output >= next_value:
            raise PlanRejected(f"a plan gives back value {output}, which nothing defines")


def _at(index: int, step: Step, what: str) -> PlanRejected:
    return PlanRejected(f"step {index} ({step.op}) {what}", step=index, op=step.op)


def _check_dimensions(program: Program) -> None:
    names: dict[str, None] = {}
    for spec in program.inputs:
        for size in spec.sizes:
            if isinstance(size, str) and size not in names:
                if size != f"n{len(names)}":
                    raise PlanRejected("a plan's free dimensions are not named n0, n1, ... in order")
                names[size] = None
    if len(names) != len(program.ranges):
        raise PlanRejected("a plan has not one range for each free dimension")


def _items(value: object, limit: int, what: str, read: Callable[[Any], T]) -> list[T]:
    if not isinstance(value, list):
        raise PlanRejected(f"a plan's {what} are not a list")
    if len(value) > limit:
        raise PlanRejected(f"a plan has {len(value)} {what}; at most {limit} are allowed")
    return [read(item) for item in value]


def _name(value: object) -> str:
    if not (isinstance(value, str) and _NAME.match(value)):
        raise PlanRejected("a name in a plan is not an identifier of at most 100 ASCII characters")
    return value


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < MAX_VALUES:
        raise PlanRejected(f"a value's number is not an integer from 0 to {MAX_VALUES - 1}")
    return value


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_SIZE:
        raise PlanRejected("a size in a plan is not an integer from 0 to 2**40")
    return value


def _dtype(value: object) -> str:
    if not (type(value) is str and value in DTYPES):
        raise PlanRejected(f"a plan names an unknown dtype; known are {', '.join(DTYPES)}")
    return value


def _input(value: object) -> InputSpec:
    match value:
        case [dtype, list(sizes)] if len(sizes) <= MAX_DIMS:
            named = tuple(size if isinstance(size, str) and len(size) < 16 else _size(size) for size in sizes)
            return InputSpec(_dtype(dtype), named)
    raise PlanRejected("an input of a plan is malformed")


def _range(value: object) -> Range:
    match value:
        case [least, most]:
            span = Range(_size(least), None if most is None else _size(most))
            if span.most is None or span.least <= span.most:
                return span
    raise PlanRejected("a range of a plan's free dimension is malformed")


def _constant(value: object) -> Constant:
    match value:
        case [dtype, list(sizes), bytes(data)]:
            shape = tuple(_size(size) for size in sizes)
            try:
                expected = tensor_bytes(_dtype(dtype), shape)
            except WireError as error:
                raise PlanRejected(f"a constant of a plan is malformed: {error.message}") from None
            if len(data) != expected:
                raise PlanRejected(f"a constant of a plan has {len(data)} bytes where its shape asks for {expected}")
            return Constant(_dtype(dtype), shape, data)
    raise PlanRejected("a constant of a plan is malformed")


def _step(value: object) -> Step:
    match value:
        case [str(op), list(args), list(pairs), list(outputs)]:
            if not _OP.match(op):
                raise PlanRejected("a step of a plan names something that is no operation")
            check_args([args], PlanRejected, MAX_ARG_DEPTH)
            numbers = tuple(_items(outputs, MAX_STEP_OUTPUTS, "outputs of one step", _number))
            return Step(op, _frozen(args), _pairs(pairs), numbers)
    raise PlanRejected("a step of a plan is malformed")


def _pairs(pairs: list[Any]) -> tuple[tuple[str, Arg], ...]:
    kwargs: list[tuple[str, Arg]] = []
    for pair in pairs:
        match pair:
            case [str(name), value] if _NAME.match(name) and (not kwargs or kwargs[-1][0] < name):
                check_args([value], PlanRejected, MAX_ARG_DEPTH)
                kwargs.append((name, _frozen(value)))
            case _:
                raise PlanRejected("keyword arguments of a plan's step are malformed or not in order")
    return tuple(kwargs)


def _frozen(arg: Any) -> Any:
    """The same argument tree with tuples for lists. What no plan may refer to is refused here."""
    if type(arg) is list:
        return tuple(_frozen(item) for item in arg)
    if type(arg) is Inline:
        raise PlanRejected("a plan's step refers to a tensor of a message; plans have constants instead")
    if type(arg) is Ref and arg >= MAX_VALUES:
        raise PlanRejected("a plan's step refers to a value beyond any plan's numbers")
    return arg
