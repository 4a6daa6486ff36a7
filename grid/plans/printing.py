"""A program as text that a person can judge before letting it run.

    def step(
        params_weight: f4[2, 4],    # params['weight']
        x: f4[n0, 4],
    ):
        t = aten.t(params_weight)
        mm = aten.mm(x, t)
        ...
        return {'loss': mean}

It is meant for reading: names are made from operations, sizes are `n0`, `n1`,
constants show their shape, small ones their values. The id stands for the plan; this text does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from grid.plans.checks import leaf_names
from grid.plans.interpret import constants_of
from grid.plans.program import InputSpec, Program, Step
from grid.plans.trees import unflatten
from grid.wire.messages import DType, MemoryFormat, Ref

_SHOWN_CONSTANT = 16
"""Elements of a constant that is written out."""

_INFIX = {"sym.add": "+", "sym.sub": "-", "sym.mul": "*", "sym.floordiv": "//", "sym.mod": "%", "sym.truediv": "/"}


class _Name(str):
    """Text that `repr` gives as it is, so that structures of values print as code."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def to_code(program: Program) -> str:
    """The program's text, ending in a newline."""
    names = _Names()
    written = leaf_names(program)
    lines = [f"def {program.name}("]
    for index, (spec, where) in enumerate(zip(program.inputs, written, strict=True)):
        name = names.give(index, re.sub(r"\W+", "_", where).strip("_"))
        lines.append(f"    {name}: {_spec(spec)}," + (f"  # {where}" if name != where else ""))
    lines.append("):")
    lines += [f"    # n{index} {limit}" for index, limit in _limits(program)]
    for index, tensor in enumerate(constants_of(program)):
        constant = program.constants[index]
        name = names.give(len(program.inputs) + index, "const")
        shown = f"{tensor.tolist()}, " if tensor.numel() <= _SHOWN_CONSTANT else ""
        lines.append(f"    {name} = constant({shown}{constant.dtype}[{', '.join(map(str, constant.shape))}])")
    lines += [f"    {_step(program, step, names)}" for step in program.steps]
    result = unflatten(program.gives, (_Name(names[output]) for output in program.outputs))
    lines.append(f"    return {result!r}")
    return "\n".join(lines) + "\n"


def _limits(program: Program) -> Iterator[tuple[int, str]]:
    for index, span in enumerate(program.ranges):
        limits = [f">= {span.least}"] if span.least else []
        limits += [f"<= {span.most}"] if span.most is not None else []
        if limits:
            yield index, " and ".join(limits)


def _spec(spec: InputSpec) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.sizes))}]"


class _Names:
    """A readable name for each value, no name twice."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._used: dict[str, int] = {}

    def give(self, value: int, wish: str) -> str:
        """Name a value, with a number appended where the name is taken."""
        wish = wish if re.match(r"[A-Za-z_]", wish) else f"v_{wish}"
        name = wish
        while name in self._used:
            self._used[wish] += 1
            name = f"{wish}_{self._used[wish]}"
        self._used[name] = 0
        self._names[value] = name
        return name

    def __getitem__(self, value: int) -> str:
        return self._names[value]


def _step(program: Program, step: Step, names: _Names) -> str:
    args = [_arg(arg, names) for arg in step.args] + [f"{name}={_arg(arg, names)}" for name, arg in step.kwargs]
    if step.op in _INFIX:
        expression = f" {_INFIX[step.op]} ".join(args)
    elif step.op == "sym.size":
        expression = f"{args[0]}.shape[{args[1]}]"
    else:
        expression = f"{step.op.removeprefix('sym.').removesuffix('.default')}({', '.join(args)})"
    outputs = [names.give(output, _wish(program, step)) for output in step.outputs]
    return f"{', '.join(outputs)} = {expression}" if outputs else expression


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
    return repr(arg)
