"""Running a program: step by step with any meaning of an operation, or as generated code on this machine.

`run` is the whole interpreter. What an operation does is decided by the `apply` passed in: plain torch, or torch under
labels at a node. Values are dropped after their last use.

`compiled` makes one straight-line function of a program, a line for each step. Only names made here occur in it; operations
and constants of every kind are bound as objects, so nothing that came with a plan is ever printed into source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import Any, Protocol

import torch
from torch import Tensor

from grid.errors import Detail, ExecutionFailed, GridError, PlanRejected
from grid.plans.checks import check_inputs, compute_size, resolve
from grid.plans.program import SYM_OPS, Program, Step, refs_in
from grid.tensors.buffers import from_frame, torch_dtype
from grid.tensors.ops import MEMORY_FORMATS, Op, bind, flatten, lookup
from grid.wire.messages import DType, MemoryFormat, Ref, TensorFrame


class Apply(Protocol):
    """The meaning of an operation. `where` tells a reader which step of which plan asked."""

    def __call__(self, op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[Tensor]:
        """Run `op` on tensors and plain values, dtypes and memory formats by name; the tensors it gives, in order."""


def local_apply(op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[Tensor]:
    """Plain torch, here."""
    results = flatten(bind(op, args, kwargs).run())
    return [result.zero_() for result in results] if op.unfilled else results


def constants_of(program: Program) -> list[Tensor]:
    """The program's constants as tensors, for `run` to be given again and again. Nobody may write to them."""
    return [from_frame(TensorFrame(dtype=one.dtype, shape=one.shape, data=one.data)) for one in program.constants]


def run(
    program: Program, inputs: Sequence[Tensor], apply: Apply = local_apply, constants: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Run a validated program. Raises `InvalidRequest` for inputs that do not fit, and otherwise what `apply` raises.

    A `GridError` of `apply` keeps its class, and tells step and op; anything else becomes `ExecutionFailed` with a fixed
    text, its cause attached for this machine alone: what torch says may hold values.
    """
    check_inputs(program, inputs)
    constants = constants_of(program) if constants is None else constants
    env: dict[int, Any] = dict(enumerate((*(_dense(tensor, apply) for tensor in inputs), *constants)))
    for index, step in enumerate(program.steps):
        try:
            for output, value in zip(step.outputs, _step(step, env, apply, index), strict=True):
                env[output] = value
        except GridError as error:
            raise _located(error, index, step.op) from None
        except Exception as error:
            raise ExecutionFailed(f"step {index} ({step.op}) failed", step=index, op=step.op) from error
        for value in step.frees:
            del env[value]
    return _unaliased([env[output] for output in program.outputs], _memory_of(constants), apply)


def _located(error: GridError, index: int, op: str) -> GridError:
    """An error of the same class that tells the step."""
    details: dict[str, Detail] = {"step": index, "op": op}
    return type(error)(f"step {index} ({op}): {error.message}", **(details | error.details))


def _step(step: Step, env: dict[int, Any], apply: Apply, index: int) -> Sequence[Any]:
    args = [resolve(arg, env) for arg in step.args]
    if step.op in SYM_OPS:
        return [compute_size(step.op, args)]
    kwargs = {name: resolve(arg, env) for name, arg in step.kwargs}
    results = apply(lookup(step.op), args, kwargs, f"step {index} ({step.op})")
    if len(results) != len(step.outputs):
        raise PlanRejected(f"the operation gave {len(results)} tensors where the plan names {len(step.outputs)}")
    return results


def _dense(tensor: Tensor, apply: Apply) -> Tensor:
    """Programs are recorded on row-major inputs, so that a view in them is possible; others are copied first."""
    if tensor.is_contiguous():
        return tensor
    return apply(lookup("aten.clone.default"), [tensor], {"memory_format": MemoryFormat("contiguous")}, "input")[0]


def _memory_of(constants: Sequence[Tensor]) -> frozenset[int]:
    return frozenset(constant.untyped_storage().data_ptr() for constant in constants)


def _unaliased(outputs: Sequence[Tensor], shared: frozenset[int], apply: Apply) -> list[Tensor]:
    """Copies in place of results that are a constant's memory: whoever gets a result may write to it."""
    if not shared:
        return list(outputs)
    clone = lookup("aten.clone.default")
    return [
        apply(clone, [tensor], {}, "result")[0] if tensor.untyped_storage().data_ptr() in shared else tensor for tensor in outputs
    ]


# ---------------------------------------------------------------- generated code


LOOK_EACH = 8

Prepare = Callable[[Op, Callable[..., Any]], Callable[..., Any]]
"""What generated code calls for an operation, given what it would call by itself."""


class Compiled:
    """A program as one Python function on this machine, to be used again and again, from any thread.

    `prepare` may put something around operations. `between` is called before every `LOOK_EACH` steps, and may raise.
    """

    def __init__(
        self,
        program: Program,
        constants: Sequence[Tensor] | None = None,
        *,
        prepare: Prepare | None = None,
        between: Callable[[], None] | None = None,
    ) -> None:
        self._program = program
        self._constants = constants_of(program) if constants is None else constants
        self._shared = _memory_of(self._constants)
        self._function, self._code = _generate(program, self._constants, prepare, between)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run on local tensors that fit the program, without recording gradients.

        Errors as in `run`, except that here their text says what torch said.
        """
        try:
            with torch.no_grad():
                return self.plainly([_dense(tensor, local_apply) for tensor in inputs])
        except Exception as error:
            raise self._explained(error) from error

    def plainly(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """`__call__` for dense inputs without a gradient. Raises whatever an operation raises."""
        return _unaliased(self._function(*inputs), self._shared, local_apply)

    def _explained(self, error: Exception) -> Exception:
        """The same failure with the step that it happened in, which is the line of the generated code."""
        index = self.failed_step(error)
        if index is None:
            return ExecutionFailed(f"the plan {self._program.name} failed: {error}")
        op = self._program.steps[index].op
        if isinstance(error, GridError):
            return _located(error, index, op)
        return ExecutionFailed(f"step {index} ({op}) failed: {str(error).strip()[:500]}", step=index, op=op)

    def failed_step(self, error: Exception) -> int | None:
        """The step of the program that raised this error, where one did."""
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code is self._code:
                index = trace.tb_lineno - 2
                return index if 0 <= index < len(self._program.steps) else None
            trace = trace.tb_next
        return None


class _Names:
    """Objects that generated code uses, under names made here."""

    def __init__(self, prepare: Prepare | None) -> None:
        self.objects: dict[str, Any] = {}
        self._known: dict[int, str] = {}
        self._prepare = prepare

    def prepared(self, op: Op, call: Callable[..., Any]) -> Callable[..., Any]:
        """What is to be called for an operation."""
        return call if self._prepare is None else self._prepare(op, call)

    def of(self, thing: Any) -> str:
        """The name of an object; the same one every time."""
        name = self._known.get(id(thing))
        if name is None:
            name = self._known[id(thing)] = f"c{len(self.objects)}"
            self.objects[name] = thing
        return name


def _generate(
    program: Program, constants: Sequence[Tensor], prepare: Prepare | None, between: Callable[[], None] | None
) -> tuple[Callable[..., Sequence[Tensor]], CodeType]:
    """Source of line 1 + number of steps + 1 lines: step k is line k + 2, which is how errors find their step."""
    names = _Names(prepare)
    look = "" if between is None else f"{names.of(between)}(); "
    values = {index: f"v{index}" for index in range(len(program.inputs))}
    for index, constant in enumerate(constants):
        values[len(program.inputs) + index] = names.of(constant)
    lines = [f"def program({', '.join(values[index] for index in range(len(program.inputs)))}):"]
    for index, step in enumerate(program.steps):
        lines.append(f" {'' if index % LOOK_EACH else look}{_line(step, values, names)}")
    lines.append(f" return ({''.join(f'{values[output]}, ' for output in program.outputs)})")
    namespace = dict(names.objects)
    exec(compile("\n".join(lines), f"<plan {program.name}>", "exec"), namespace)
    function = namespace["program"]
    return function, function.__code__


def _line(step: Step, values: dict[int, str], names: _Names) -> str:
    for output in step.outputs:
        values[output] = f"v{output}"
    outputs = [values[output] for output in step.outputs]
    written = [_write(arg, values, names) for arg in step.args]
    drop = f"; del {', '.join(values[value] for value in step.frees)}" if step.frees else ""
    if step.op in SYM_OPS:
        return f"{outputs[0]} = {names.of(compute_size)}({names.of(step.op)}, [{', '.join(written)}]){drop}"
    op = lookup(step.op)
    written += [f"**{{{', '.join(_pairs(step, values, names))}}}"] if step.kwargs else []
    call = f"{names.of(names.prepared(op, _callable(op, len(outputs))))}({', '.join(written)})"
    if _gives_one(op):
        return f"{outputs[0]} = {call}{drop}"
    return f"[{', '.join(outputs)}] = {call}{drop}"


def _pairs(step: Step, values: dict[int, str], names: _Names) -> Iterator[str]:
    for name, value in step.kwargs:
        yield f"{names.of(name)}: {_write(value, values, names)}"


def _write(arg: Any, values: dict[int, str], names: _Names) -> str:
    """How generated code writes an argument. Lists that hold no value are made once, as objects."""
    if type(arg) is Ref:
        return values[arg]
    if arg is None or arg is True or arg is False:
        return repr(arg)
    if next(refs_in(arg), None) is not None:
        return f"[{', '.join(_write(item, values, names) for item in arg)}]"
    return names.of(_plain(arg))


def _plain(arg: Any) -> Any:
    if isinstance(arg, DType):
        return torch_dtype(arg)
    if isinstance(arg, MemoryFormat):
        return MEMORY_FORMATS[arg]
    return [_plain(item) for item in arg] if type(arg) is tuple else arg


def _gives_one(op: Op) -> bool:
    returns = op.call._schema.returns
    return len(returns) == 1 and str(returns[0].type) == "Tensor"


def _callable(op: Op, outputs: int) -> Callable[..., Any]:
    """What the generated code calls: torch's operation itself wherever its results are what the plan names."""
    call = op.run
    if op.unfilled:
        return _Zeroed(call)
    returns = op.call._schema.returns
    if _gives_one(op) or len(returns) == 1 or len(returns) == outputs:
        return call
    return _Flattened(call)


class _Zeroed:
    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs).zero_()


class _Flattened:
    """An operation some of whose results were not asked for: torch gives None there, and a plan leaves them out."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return flatten(self._call(*args, **kwargs))
