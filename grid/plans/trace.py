"""Plans from Python functions: `trace` for one, `plan` for a function that is traced when it is first called.

The function is traced with the first dimension of its data free, so one plan serves any batch. Parameters have fixed sizes:
tensors inside dicts and `nn.Parameter`s. Where the function itself fixes a size (`x @ w`, `len(x)`), the plan has it fixed;
where two sizes must agree, the plan says so.

What PyTorch took for granted about a batch while it recorded (a choice of kernel, mostly) may not hold for another batch. So
the function is recorded once more at a size where it does not hold, and the two programs are compared, as text and, if that
differs, by their results. Only if both differ is the plan limited to the sizes for which the assumption holds.
"""

from __future__ import annotations

import functools
import inspect
import keyword
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, overload

import sympy
import torch
from torch import Tensor

from grid.display import counted, html
from grid.errors import InvalidRequest, PlanRejected
from grid.plans.capture import Captured, Leaf, capture, is_recording, no_ambient_modes
from grid.plans.ir import Plan, PlanTarget, is_tensor
from grid.plans.lower import Lowering
from grid.plans.program import Program
from grid.plans.ranges import limited
from grid.plans.surroundings import surroundings_kept
from grid.plans.trees import Tree, flatten, unflatten
from grid.tensors.buffers import short_dtype

OTHER_SIZE = 97
"""Added to a size that the function fixed, to see whether only the example's size made it do so."""

MAX_PLANS = 64
"""Plans that one traced function keeps; the oldest goes."""

F = TypeVar("F", bound=Callable[..., Any])


def trace(function: Callable[..., Any], *examples: Any) -> Plan:
    """The plan of a function, recorded on arguments like `examples`.

    Examples are tensors, here or remote, in dicts, lists and tuples; only shapes and dtypes are read. Numbers and text become
    part of the plan. Tensors and modules that the function closes over become constants, and stay as they were.

    Raises `PlanRejected` that names the line which keeps the function from being a plan, and what to write instead.
    """
    return _Tracer(function, examples).plan()


def trace_differentiable(function: Callable[..., Any], *examples: Any) -> Plan:
    """`trace` for a plan of which whoever runs it takes gradients: `detach` stays in it."""
    return _Tracer(function, examples, keeps_detach=True).plan()


class _Tracer:
    """One function and its examples, on the way to a plan."""

    def __init__(self, function: Callable[..., Any], examples: Sequence[Any], *, keeps_detach: bool = False) -> None:
        self._function = function
        self._keeps_detach = keeps_detach
        if any(isinstance(example, torch.nn.Module) for example in examples):
            raise InvalidRequest(
                "a module is no argument of a plan; pass dict(module.named_parameters()) and call it with "
                "torch.func.functional_call, or close over the module: its parameters become constants"
            )
        tensors, takes = flatten(tuple(examples), is_tensor)
        self._takes = takes
        self._name = _identifier(getattr(function, "__name__", type(function).__name__), "plan")
        self._parameters = _parameters(function, len(examples))
        self._leaves = [_leaf(tensor, free) for tensor, free in zip(tensors, _free(takes, tensors), strict=True)]
        self.seen: Sequence[Tensor] = ()

    def plan(self) -> Plan:
        """Trace, and check against other sizes what only held for these."""
        with no_ambient_modes(), surroundings_kept(self._function):
            captured, leaves = self._generalised()
            self.seen = captured.seen
            program = self._lower(captured, leaves)
            return Plan.of(limited(program, captured, leaves, self._fixed_program), [leaf.shape for leaf in self._leaves])

    def _capture(self, leaves: Sequence[Leaf]) -> Captured:
        return capture(self._function, lambda tensors: unflatten(self._takes, iter(tensors)), leaves)

    def _lower(self, captured: Captured, leaves: Sequence[Leaf]) -> Program:
        lowering = Lowering(captured, list(leaves), keeps_detach=self._keeps_detach)
        return lowering.program(self._name, self._parameters, self._takes)

    def _fixed_program(self, shapes: Sequence[tuple[int, ...]]) -> Program:
        """The function's program for inputs of exactly these shapes."""
        leaves = [replace(leaf, shape=shape, free=False) for leaf, shape in zip(self._leaves, shapes, strict=True)]
        return self._lower(self._capture(leaves), leaves)

    def _generalised(self) -> tuple[Captured, list[Leaf]]:
        """Capture with as many free dimensions as the function allows."""
        leaves = self._leaves
        try:
            captured = self._capture(leaves)
        except PlanRejected:
            if not any(leaf.free for leaf in leaves):
                raise
            leaves = [replace(leaf, free=False) for leaf in leaves]
            return self._capture(leaves), leaves
        fixed = _fixed(captured, leaves)
        for size in sorted({leaves[index].shape[0] for index in fixed}):
            captured, leaves = self._retried(captured, leaves, size)
        fixed = _fixed(captured, leaves)
        if any(captured.simplify_symbol(index).free_symbols for index in fixed):
            leaves = [replace(leaf, free=leaf.free and index not in fixed) for index, leaf in enumerate(self._leaves)]
            captured = self._capture(leaves)
        return captured, leaves

    def _retried(self, captured: Captured, leaves: list[Leaf], size: int) -> tuple[Captured, list[Leaf]]:
        """Try once more with another number for all free dimensions of this size: a batch of 8 is not a height of 8.

        The new record counts if it has fewer fixed dimensions.
        """
        other = OTHER_SIZE + size
        moved = [
            replace(leaf, shape=(other, *leaf.shape[1:])) if leaf.free and leaf.shape[0] == size else leaf for leaf in leaves
        ]
        try:
            again = self._capture(moved)
        except PlanRejected:
            return captured, leaves
        if len(_fixed(again, moved)) < len(_fixed(captured, leaves)):
            return again, moved
        return captured, leaves


def _fixed(captured: Captured, leaves: Sequence[Leaf]) -> list[int]:
    """Inputs whose free dimension turned out to be a number, or a formula of others."""
    return [
        index for index, leaf in enumerate(leaves) if leaf.free and not isinstance(captured.simplify_symbol(index), sympy.Symbol)
    ]


def _leaf(tensor: Any, free: bool) -> Leaf:
    shape = tuple(int(size) for size in tensor.shape)
    short_dtype(tensor.dtype)
    if isinstance(tensor, Tensor) and not isinstance(tensor, PlanTarget) and tensor.layout != torch.strided:
        raise InvalidRequest(f"a plan takes dense tensors, not {tensor.layout}; use .to_dense()")
    return Leaf(shape, tensor.dtype, bool(getattr(tensor, "requires_grad", False)), free and bool(shape))


def _free(tree: Tree, tensors: Sequence[Any]) -> Iterable[bool]:
    """For each leaf, whether its first dimension may be free: not for parameters."""
    inside = _inside_dict(tree, False)
    return [not (held or isinstance(tensor, torch.nn.Parameter)) for held, tensor in zip(inside, tensors, strict=True)]


def _inside_dict(tree: Tree, held: bool) -> list[bool]:
    if tree.kind == "leaf":
        return [held]
    return [flag for child in tree.children for flag in _inside_dict(child, held or tree.kind == "dict")]


def _parameters(function: Callable[..., Any], count: int) -> tuple[str, ...]:
    """Names for the arguments: the function's own where it tells them."""
    try:
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):
        names = []
    wished = [*names, *(f"arg{index}" for index in range(len(names), count))][:count]
    return tuple(_identifier(name, f"arg{index}") for index, name in enumerate(wished))


def _identifier(name: str, otherwise: str) -> str:
    clean = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[:100]
    return clean if clean.isidentifier() and not keyword.iskeyword(clean) else otherwise


# ---------------------------------------------------------------- traced when called


@overload
def plan(function: F) -> TracedFunction: ...
@overload
def plan() -> Callable[[F], TracedFunction]: ...
def plan(function: Any = None) -> Any:
    """Decorate a function so that its calls run as plans, traced once for each kind of arguments.

    With remote tensors among the arguments a call runs where they are, and its results stay there.
    """
    return TracedFunction if function is None else TracedFunction(function)


@dataclass(frozen=True, slots=True)
class _Known:
    """A plan, and the tensors that became its constants with the number of writes that each had seen."""

    plan: Plan
    constants: tuple[tuple[Tensor, int], ...]

    def accepts(self, args: tuple[Any, ...]) -> list[Any] | None:
        """The leaves of a call that this plan can run; None where it is another plan's."""
        if any(_version(tensor) != version for tensor, version in self.constants):
            return None
        try:
            return self.plan.leaves_of(args)
        except InvalidRequest:
            return None


class TracedFunction:
    """A function whose calls run as plans. A call with other structures, dtypes or fixed sizes traces again.

    So does a call after a tensor that the function closes over was written to: it is a constant of the plan.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._signature = _signature(function)
        self._known: tuple[_Known, ...] = ()
        self._lock = threading.Lock()
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function as a plan. Inside another function's trace it becomes part of that one."""
        args = self._positional(args, kwargs)
        if is_recording():
            return self.function(*args)
        known, leaves = self._find(args)
        return known.plan.run_on(leaves)

    def trace_for(self, *args: Any, **kwargs: Any) -> Plan:
        """The plan that a call with these arguments runs; traced now if there is none yet."""
        return self._find(self._positional(args, kwargs))[0].plan

    def _find(self, args: tuple[Any, ...]) -> tuple[_Known, list[Any]]:
        for known in self._known:
            leaves = known.accepts(args)
            if leaves is not None:
                return known, leaves
        tracer = _Tracer(self.function, args)
        made = tracer.plan()
        found = _Known(made, tuple((tensor, _version(tensor)) for tensor in tracer.seen))
        with self._lock:
            self._known = (found, *self._known)[:MAX_PLANS]
        return found, made.leaves_of(args)

    def _positional(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        if not kwargs:
            return args
        if self._signature is None:
            raise InvalidRequest("this function's arguments can only be given by position")
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.kwargs:
            raise InvalidRequest(f"a plan's arguments are positional; {', '.join(bound.kwargs)} can only be given by keyword")
        return bound.args

    @property
    def _title(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __repr__(self) -> str:
        return f"<grid.plan {self._title}: {counted(len(self._known), 'plan')} traced>"

    def _repr_html_(self) -> str:
        rows = [(known.plan.id[:12], ", ".join(_described(known.plan)), str(len(known.plan.steps))) for known in self._known]
        note = "" if rows else "nothing is traced before the first call"
        columns = ("plan", "inputs", "steps")
        return html(self._title, "function whose calls run as plans", columns=columns, rows=rows, note=note)


def _described(plan: Plan) -> list[str]:
    return [f"{spec.dtype}[{', '.join(map(str, spec.sizes))}]" for spec in plan.inputs]


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
