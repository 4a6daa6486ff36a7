"""A program as text that a person can judge before letting it run.

    def step(
        params_weight: f4[4, 2],  # params['weight']
        x: f4[n0, 4],
    ):
        mm = mm(x, params_weight)  # f4[n0, 2]
        ...
        return {'loss': mean}

It is meant for reading: names are made from operations, and for results from where they stand in what is returned; arguments
have the names of the op table, sizes are `n0`, `n1`. Constants of up to `SHOWN_CONSTANT` elements show all their values, larger
ones a digest of them, and a last line counts what is not shown. Numbers have the digits that tell them from all others of
their dtype. The id stands for the plan; this text does not.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grid.display import counted
from grid.errors import GridError
from grid.plans.checks import leaf_names
from grid.plans.interpret import constants_of
from grid.plans.program import SYM_OPS, InputSpec, Program, Step
from grid.plans.shapes import dry_run
from grid.plans.trees import paths, unflatten
from grid.tensors.buffers import short_dtype
from grid.tensors.ops import OPS
from grid.wire.messages import DType, MemoryFormat, Ref

SHOWN_CONSTANT = 64
"""Elements of a constant that is written out."""

DIGEST_DIGITS = 16
"""Hexadecimal digits of the SHA-256 of a larger constant's bytes."""

SHOWN_KINDS = 5000
"""Steps up to which a program's text tells dtypes and sizes, which takes two dry runs to find out."""

WIDTH = 110
"""Characters of what is returned, beyond which it takes a line for each entry."""

_ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARISONS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
_INFIX = {
    **{f"aten.{op}.{kind}": sign for kind in ("Tensor", "Scalar") for op, sign in {**_ARITHMETIC, **_COMPARISONS}.items()},
    **{f"aten.pow.{kind}": "**" for kind in ("Tensor_Scalar", "Tensor_Tensor", "Scalar")},
    **{"sym.add": "+", "sym.sub": "-", "sym.mul": "*", "sym.floordiv": "//", "sym.mod": "%", "sym.truediv": "/"},
}
"""Operations of two arguments that are written between them."""


class _Name(str):
    """Text that `repr` gives as it is, so that structures of values print as code."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def to_code(program: Program) -> str:
    """The program's text, ending in a newline."""
    names = _Names(_wished(program))
    written = leaf_names(program)
    lines = [f"def {program.name}("]
    for index, (spec, where) in enumerate(zip(program.inputs, written, strict=True)):
        name = names.give(index, _identifier(where))
        lines.append(f"    {name}: {_spec(spec)}," + (f"  # {where}" if name != where else ""))
    lines.append("):")
    lines += [f"    # n{index} {limit}" for index, limit in _limits(program)]
    hidden = 0
    for name, tensor, constant in zip(_constants(program, names), constants_of(program), program.constants, strict=True):
        kind = f"{constant.dtype}[{', '.join(map(str, constant.shape))}]"
        if tensor.numel() <= SHOWN_CONSTANT:
            lines.append(f"    {name} = constant({values_text(tensor)}, {kind})")
        else:
            hidden += tensor.numel()
            found = hashlib.sha256(constant.data).hexdigest()[:DIGEST_DIGITS]
            lines.append(f"    {name} = constant({kind}, sha256={found!r})")
    kinds = _kinds(program)
    for step in program.steps:
        kind = ", ".join(kinds[value] for value in step.outputs if value in kinds)
        lines.append(f"    {_step(program, step, names)}" + (f"  # {kind}" if kind else ""))
    result = unflatten(program.gives, (_Name(names[output]) for output in program.outputs))
    lines.append(f"    return {_structure(result, '    ')}")
    if hidden:
        lines.append(f"# {counted(hidden, 'value')} of constants are not shown; plan.constant_tensors has them")
    return "\n".join(lines) + "\n"


def constant_tensors(program: Program) -> dict[str, Tensor]:
    """The program's constants, in full, by the names that they have in `to_code`. Each is the caller's own."""
    names = _Names(_wished(program))
    for index, where in enumerate(leaf_names(program)):
        names.give(index, _identifier(where))
    return {name: tensor.clone() for name, tensor in zip(_constants(program, names), constants_of(program), strict=True)}


def _constants(program: Program, names: _Names) -> list[str]:
    """Name the constants, after the inputs."""
    return [names.give(len(program.inputs) + index, "const") for index in range(len(program.constants))]


def _limits(program: Program) -> Iterator[tuple[int, str]]:
    for index, span in enumerate(program.ranges):
        limits = [f">= {span.least}"] if span.least else []
        limits += [f"<= {span.most}"] if span.most is not None else []
        if limits:
            yield index, " and ".join(limits)


def _spec(spec: InputSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.sizes))}]"


def values_text(tensor: Tensor) -> str:
    """A tensor's elements, floats with the fewest digits, from seven on, that give the same value again."""
    double = tensor.dtype in (torch.float64, torch.complex128)

    def shown(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(shown, value))}]"
        return _float(value, double) if isinstance(value, float) and value != _whole(value) else repr(value)

    return shown(tensor.tolist())


def _float(value: float, double: bool) -> str:
    texts = (f"{value:.{digits}g}" for digits in (7, 8, 9))
    return next((text for text in texts if _same(float(text), value, double)), repr(value))


def _same(text: float, value: float, double: bool) -> bool:
    if double or math.isinf(text) or math.isinf(value):
        return text == value
    try:
        return struct.pack("<f", text) == struct.pack("<f", value)
    except OverflowError:  # rounded up, beyond the largest float of 32 bits
        return False


def _whole(value: float) -> int | None:
    """The whole number that a float is, if it is one."""
    return int(value) if value == value and abs(value) < 1e15 and value == int(value) else None


def _structure(value: Any, indent: str) -> str:
    """What is returned, on one line or with a line for each entry."""
    flat = repr(value)
    if len(flat) + len(indent) <= WIDTH or not value or not isinstance(value, (dict, list, tuple)):
        return flat
    inner = indent + "    "
    if isinstance(value, dict):
        parts = [f"{key!r}: {_structure(item, inner)}" for key, item in value.items()]
    else:
        parts = [_structure(item, inner) for item in value]
    first, last = {dict: ("{", "}"), list: ("[", "]"), tuple: ("(", ")")}[type(value)]
    return "\n".join([first, *(f"{inner}{part}," for part in parts), indent + last])


# ---------------------------------------------------------------- names


class _Names:
    """A readable name for each value, no name twice. `wished` has names of results, which come before others."""

    def __init__(self, wished: Mapping[int, str]) -> None:
        self._wished = wished
        self._names: dict[int, str] = {}
        self._used: dict[str, int] = {}

    def give(self, value: int, wish: str) -> str:
        """Name a value, with a number appended where the name is taken."""
        wish = self._wished.get(value, wish)
        name = wish
        while name in self._used:
            self._used[wish] += 1
            name = f"{wish}_{self._used[wish]}"
        self._used[name] = 0
        self._names[value] = name
        return name

    def __getitem__(self, value: int) -> str:
        return self._names[value]


def _identifier(text: str) -> str:
    clean = re.sub(r"\W+", "_", text).strip("_")
    return clean if re.match(r"[A-Za-z_]", clean) else f"v_{clean}"


def _wished(program: Program) -> dict[int, str]:
    """Names for results by the keys under which they are returned; `new_` before those that an argument has as well."""
    came = {_keys(where) for where in leaf_names(program)}
    taken = {_identifier(where) for where in leaf_names(program)}
    wished: dict[int, str] = {}
    for where, value in zip(paths(program.gives, ""), program.outputs, strict=True):
        keys = _keys(where)
        if keys and value >= program.first_step_value:
            wish = _identifier("_".join(keys))
            wished.setdefault(value, f"new_{wish.removeprefix('v_')}" if keys in came or wish in taken else wish)
    return wished


def _keys(where: str) -> tuple[str, ...]:
    """The text keys in how a leaf is written: `params['0.weight']` has one."""
    return tuple(re.findall(r"\['(.*?)'\]", where))


# ---------------------------------------------------------------- sizes


def _kinds(program: Program) -> dict[int, str]:
    """Dtype and sizes of the values that steps give, in terms of the free dimensions, found by two dry runs."""
    if len(program.steps) > SHOWN_KINDS:
        return {}
    free = list(dict.fromkeys(size for spec in program.inputs for size in spec.sizes if isinstance(size, str)))
    runs = []
    for first in (11, 23):
        sizes: dict[str, int] = {}
        for at, (name, span) in enumerate(zip(free, program.ranges, strict=True)):
            wanted = max(span.least, first + 6 * at)
            sizes[name] = wanted if span.most is None else min(wanted, span.most)
        seen: dict[int, Tensor] = {}
        shapes = [tuple(sizes[size] if isinstance(size, str) else size for size in spec.sizes) for spec in program.inputs]
        try:
            dry_run(program, shapes, seen)
        except GridError:
            return {}
        runs.append((sizes, seen))
    (one, tensors), (other, others) = runs
    kinds: dict[int, str] = {}
    for value, tensor in tensors.items():
        told = [_size(a, b, one, other) for a, b in zip(tensor.shape, others[value].shape, strict=True)]
        kinds[value] = f"{short_dtype(tensor.dtype)}[{', '.join(told)}]"
    return kinds


def _size(a: int, b: int, one: Mapping[str, int], other: Mapping[str, int]) -> str:
    if a == b:
        return str(a)
    for name, size in one.items():
        times, rest = divmod(a, size)
        if not rest and b == times * other[name]:
            return name if times == 1 else f"{times}*{name}"
    return "?"


# ---------------------------------------------------------------- steps


def _step(program: Program, step: Step, names: _Names) -> str:
    expression = _expression(step, names)
    outputs = [names.give(output, _wish(program, step)) for output in step.outputs]
    return f"{', '.join(outputs)} = {expression}" if outputs else expression


def _expression(step: Step, names: _Names) -> str:
    args = [_arg(arg, names) for arg in step.args]
    if step.op in _INFIX and len(args) == 2 and not step.kwargs:
        return f"{args[0]} {_INFIX[step.op]} {args[1]}"
    if step.op == "sym.size":
        return f"{args[0]}.shape[{args[1]}]"
    if step.op == "aten.rsub.Scalar" and len(args) == 2 and not step.kwargs:
        return f"{args[1]} - {args[0]}"
    if step.op not in SYM_OPS:
        args = _labelled(step, args)
    args += [f"{name}={_arg(arg, names)}" for name, arg in step.kwargs]
    return f"{step.op.split('.')[1]}({', '.join(args)})"


def _labelled(step: Step, args: Sequence[str]) -> list[str]:
    """Arguments that are no tensors get their names, from the first such one on."""
    parameters = OPS[step.op].parameters
    first = next((at for at, arg in enumerate(step.args) if at and not _holds_value(arg) and arg is not None), len(args))
    return [text if at < first else f"{parameters[at].name}={text}" for at, text in enumerate(args)]


def _holds_value(arg: Any) -> bool:
    return type(arg) is Ref or (isinstance(arg, tuple) and any(map(_holds_value, arg)))


def _wish(program: Program, step: Step) -> str:
    if step.op == "sym.size" and step.args[1] == 0 and type(step.args[0]) is Ref and step.args[0] < len(program.inputs):
        size = program.inputs[step.args[0]].sizes[0]
        return size if isinstance(size, str) else "size"
    return step.op.split(".")[1].strip("_")


def _arg(arg: Any, names: _Names) -> str:
    if type(arg) is Ref:
        return names[arg]
    if isinstance(arg, tuple):
        return f"[{', '.join(_arg(item, names) for item in arg)}]"
    if isinstance(arg, (DType, MemoryFormat)):
        return str(arg)
    if type(arg) is float:
        short = f"{arg:.12g}"
        return short if _whole(arg) is None and float(short) == arg else repr(arg)
    return repr(arg)
