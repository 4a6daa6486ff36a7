"""What is checked of a plan against the op table, and of a call against the plan.

`validate` is for a plan that came from somewhere else: it runs nothing and allocates nothing. What only shows with sizes in
hand (shapes that do not fit, results that are too large) is found by the dry run in `grid.plans.shapes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from grid.errors import GridError, InvalidRequest, OpNotSupported, PlanRejected
from grid.plans.encoding import check_form
from grid.plans.program import SYM_OPS, Program, Range, Step
from grid.plans.trees import paths
from grid.tensors.buffers import SHORT_DTYPES
from grid.tensors.ops import Op, bind, lookup
from grid.wire.messages import Ref

Number = int | float

LARGEST_SIZE = 1 << 62
"""Steps on sizes may not go beyond: every size of a real tensor lies far below."""


class Shaped(Protocol):
    """All that a check of inputs reads of a tensor."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> torch.dtype: ...


def validate(program: Program) -> None:
    """Raise `PlanRejected` unless every step is a plannable operation of the table whose arguments can be what it takes.

    A value's kind (tensor, integer, float) is known from the step that makes it, so an argument of the wrong kind is found
    here. Unused inputs and steps are no fault.
    """
    check_form(program)
    tensor = torch.empty(0, device="meta")
    stand_ins: list[Any] = [tensor] * program.first_step_value
    for index, step in enumerate(program.steps):
        try:
            if step.op in SYM_OPS:
                stand_ins.append(_check_sym(step, stand_ins))
            else:
                _check_op(step, stand_ins)
                stand_ins.extend([tensor] * len(step.outputs))
        except GridError as error:
            raise PlanRejected(f"step {index} ({step.op}): {error.message}", step=index, op=step.op) from None
    for output in program.outputs:
        if stand_ins[output] is not tensor:
            raise PlanRejected(f"the plan gives back value {output}, which is a size and no tensor")


def _check_op(step: Step, stand_ins: Sequence[Any]) -> None:
    op = lookup(step.op)
    if not op.plannable:
        raise OpNotSupported(f"{op.name} cannot be part of a plan, since it writes to a tensor or draws random numbers")
    bind(op, [resolve(arg, stand_ins) for arg in step.args], {name: resolve(arg, stand_ins) for name, arg in step.kwargs})
    least, most = output_counts(op)
    if not least <= len(step.outputs) <= most:
        raise InvalidRequest(f"{op.name} gives {least} to {most} tensors, and the step names {len(step.outputs)}")


def output_counts(op: Op) -> tuple[int, int]:
    """The least and the most tensors that an operation gives; one that returns a list can give any number."""
    returns = op.call._schema.returns
    if any("List" in str(value.type) for value in returns):
        return 0, 1 << 20
    tensors = sum(str(value.type) == "Tensor" for value in returns)
    return (tensors, tensors) if tensors <= 1 else (1, tensors)


def _check_sym(step: Step, stand_ins: Sequence[Any]) -> Number:
    """Check a step on sizes; returns a stand-in for its result."""
    args = [resolve(arg, stand_ins) for arg in step.args]
    if step.kwargs or len(step.outputs) != 1:
        raise InvalidRequest("a step on sizes has one result and no keyword arguments")
    if step.op == "sym.size":
        if len(args) != 2 or not isinstance(args[0], torch.Tensor) or type(args[1]) is not int:
            raise InvalidRequest("takes a tensor and a dimension")
        return 1
    if len(args) != (1 if step.op == "sym.float" else 2) or any(type(arg) not in (int, float) for arg in args):
        raise InvalidRequest("takes numbers")
    if step.op in ("sym.float", "sym.truediv") or any(type(arg) is float for arg in args):
        return 1.0
    return 1


def compute_size(op: str, args: Sequence[Any]) -> Number:
    """Run one step of `SYM_OPS`. Raises `InvalidRequest` where the numbers do not allow it."""
    if op == "sym.size":
        shape, dim = args[0].shape, args[1]
        if not -len(shape) <= dim < len(shape):
            raise InvalidRequest(f"a tensor of {len(shape)} dimensions has no dimension {dim}")
        return int(shape[dim])
    one = args[0]
    other = args[1] if len(args) > 1 else 1
    if op in ("sym.floordiv", "sym.mod", "sym.truediv") and other == 0:
        raise InvalidRequest("a size is divided by zero")
    result = _arithmetic(op, one, other)
    if not -LARGEST_SIZE <= result <= LARGEST_SIZE:
        raise InvalidRequest("a size grows beyond any tensor's")
    return result


def _arithmetic(op: str, one: Number, other: Number) -> Number:
    match op:
        case "sym.add":
            return one + other
        case "sym.sub":
            return one - other
        case "sym.mul":
            return one * other
        case "sym.floordiv":
            return one // other
        case "sym.mod":
            return one % other
        case "sym.truediv":
            return one / other
        case "sym.max":
            return max(one, other)
        case "sym.min":
            return min(one, other)
        case "sym.float":
            return float(one)
    raise PlanRejected(f"{op} is no step on sizes")


def resolve(arg: Any, values: Any) -> Any:
    """The argument tree with values in place of references; tuples become lists, which torch takes everywhere."""
    if type(arg) is Ref:
        return values[arg]
    if type(arg) is tuple:
        return [resolve(item, values) for item in arg]
    return arg


def check_inputs(program: Program, leaves: Sequence[Shaped]) -> None:
    """Raise `InvalidRequest` that names the first input which the plan does not fit, and why."""
    if len(leaves) != len(program.inputs):
        raise InvalidRequest(f"the plan {program.name} takes {len(program.inputs)} tensors, {len(leaves)} came")
    named: dict[str, tuple[int, int]] = {}
    for index, (spec, leaf) in enumerate(zip(program.inputs, leaves, strict=True)):
        shape = leaf.shape
        if SHORT_DTYPES.get(leaf.dtype) != spec.dtype:
            came = str(leaf.dtype).removeprefix("torch.")
            raise _misfit(program, index, f"must have the dtype {spec.dtype}, not {came}; convert it with .to(), or trace again")
        if len(shape) != len(spec.sizes):
            raise _misfit(program, index, f"must have {len(spec.sizes)} dimensions, not {len(shape)}")
        for dim, (size, expected) in enumerate(zip(shape, spec.sizes, strict=True)):
            if isinstance(expected, int):
                if size != expected:
                    wrong = f"must have size {expected} in dimension {dim}, not {size}; trace again for other sizes"
                    raise _misfit(program, index, wrong)
            elif expected in named:
                other, wanted = named[expected]
                if size != wanted:
                    first = leaf_names(program)[other]
                    raise _misfit(program, index, f"must have as many rows as {first}, which has {wanted}, not {size}")
            else:
                named[expected] = (index, size)
                _check_range(program, index, size, program.ranges[len(named) - 1])


def _check_range(program: Program, index: int, size: int, span: Range) -> None:
    if size not in span:
        limit = f"at least {span.least}" + (f" and at most {span.most}" if span.most is not None else "")
        raise _misfit(program, index, f"must have {limit} rows, not {size}, or the function does something else; trace again")


def _misfit(program: Program, index: int, what: str) -> InvalidRequest:
    return InvalidRequest(f"{leaf_names(program)[index]} {what} (plan {program.name})", input=index)


def leaf_names(program: Program) -> list[str]:
    """How a reader would write each input: `x`, `params['0.weight']`."""
    pairs = zip(program.parameters, program.takes.children, strict=True)
    return [name for parameter, child in pairs for name in paths(child, parameter)]
