"""From a recorded graph to a program: the operations of the op table, numbered values, and integer steps for sizes.

Sizes are not copied node by node. Each is an expression of the free dimensions, so its steps are made from the expression
where it is first needed; a size that turns out to be fixed becomes a plain integer.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy
import torch
from sympy import default_sort_key
from torch import Tensor, fx

from grid.errors import InvalidRequest, OpNotSupported, PlanRejected
from grid.plans.capture import Captured, Leaf
from grid.plans.lines import at_line
from grid.plans.program import Constant, InputSpec, Program, Range, Step, with_frees
from grid.plans.trees import Tree
from grid.tensors.buffers import short_dtype, to_frame
from grid.tensors.ops import portable
from grid.wire.messages import Arg, Ref

aten = torch.ops.aten

_IDENTITIES = frozenset(
    {aten.detach.default, aten.alias.default, aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.detach_.default}
)
"""Operations that give their argument. A plan has neither gradients nor writes, so they need no step; but for `detach` in a plan
that gradients are taken of."""

_SAME = {
    aten._unsafe_view.default: aten.view.default,
    aten._unsafe_index.Tensor: aten.index.Tensor,
    aten._unsafe_index_put.default: aten.index_put.default,
}
"""Operations that differ from another one only in what they do not check."""

_BINARY: Mapping[str, str] = {
    "FloorDiv": "sym.floordiv",
    "CleanDiv": "sym.floordiv",
    "Mod": "sym.mod",
    "PythonMod": "sym.mod",
    "Max": "sym.max",
    "Min": "sym.min",
    "IntTrueDiv": "sym.truediv",
    "FloatTrueDiv": "sym.truediv",
}
"""Class of an expression -> step of two arguments."""

MAX_CONSTANT_BYTES = 32 << 20
"""Bytes of all tensors that a plan may close over."""


class Lowering:
    """Builds one program. Values have provisional numbers until the number of constants is known."""

    def __init__(self, captured: Captured, leaves: list[Leaf], *, keeps_detach: bool = False) -> None:
        self._identities = _IDENTITIES - {aten.detach.default} if keeps_detach else _IDENTITIES
        self._captured = captured
        self._leaves = leaves
        self._steps: list[Step] = []
        self._next = len(leaves)
        self._values: dict[fx.Node, Any] = {}
        self._sizes: dict[Any, Ref | int | float] = {}
        self._constants: list[Constant] = []
        self._constant_refs: dict[int, Ref] = {}
        self._bytes = 0
        self._line = ""
        self._symbol_inputs = {captured.simplify_symbol(index): index for index in reversed(captured.symbols)}

    def program(self, name: str, parameters: tuple[str, ...], takes: Tree) -> Program:
        """The finished program. Raises `PlanRejected` that names operation and line for what a plan cannot hold."""
        inputs, _ = self.input_specs()
        outputs: list[int] = []
        placeholders = 0
        for node in self._captured.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = Ref(placeholders)
                placeholders += 1
            elif node.op == "get_attr":
                self._values[node] = node
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                outputs = [int(self._arg(result)) for result in node.args[0]]
        names = {size for spec in inputs for size in spec.sizes if isinstance(size, str)}
        ranges = (Range(),) * len(names)
        gives = self._captured.gives
        return self._numbered(Program(name, parameters, takes, inputs, ranges, (), tuple(self._steps), tuple(outputs), gives))

    def input_specs(self) -> tuple[tuple[InputSpec, ...], list[int]]:
        """What each input must be, and the inputs whose free dimension is bound to others in a way that specs cannot say."""
        names: dict[sympy.Symbol, str] = {}
        specs: list[InputSpec] = []
        entangled: list[int] = []
        for index, leaf in enumerate(self._leaves):
            sizes: list[int | str] = list(leaf.shape)
            if leaf.free:
                expression = self._captured.simplify_symbol(index)
                if isinstance(expression, sympy.Symbol):
                    sizes[0] = names.setdefault(expression, f"n{len(names)}")
                elif expression.free_symbols:
                    entangled.append(index)
                else:
                    sizes[0] = int(expression)
            specs.append(InputSpec(short_dtype(leaf.dtype), tuple(sizes)))
        return tuple(specs), entangled

    def _call(self, node: fx.Node) -> None:
        target = node.target
        if target is operator.getitem:
            of, index = node.args
            assert isinstance(of, fx.Node) and isinstance(index, int)
            self._values[node] = self._values[of][index] if of in self._values else None
        elif target in self._identities or (target is aten.slice.Tensor and _is_whole(node.args[1:], node.kwargs)):
            self._values[node] = self._arg(node.args[0])
        elif target is aten.slice_scatter.default and _is_whole(node.args[2:], node.kwargs):
            self._values[node] = self._arg(node.args[1])
        elif target is aten.t.default and (inner := _transposed(node.args[0])) is not None:
            self._values[node] = self._arg(inner)
        elif target is aten.copy.default and self._fits(node.args[0], node.args[1]):
            self._values[node] = self._arg(node.args[1])
        elif isinstance(target, torch._ops.OpOverload) and isinstance(node.meta.get("val"), (Tensor, tuple, list)):
            self._operation(node, target)

    def _fits(self, one: Any, other: Any) -> bool:
        """Whether two values have the same shape and dtype, so that a copy of one over the other is the one."""
        metas = [node.meta.get("val") for node in (one, other) if isinstance(node, fx.Node)]
        simplify = self._captured.simplify
        kinds = [(meta.dtype, [simplify(size) for size in meta.shape]) for meta in metas if isinstance(meta, Tensor)]
        return len(kinds) == 2 and kinds[0] == kinds[1]

    def _operation(self, node: fx.Node, target: Any) -> None:
        target, args, kwargs = _rewritten(target, node.args, dict(node.kwargs), self._captured.constants)
        self._line = node.meta.get("line", "")
        at = at_line(self._line)
        _refuse_device(target, kwargs, at)
        try:
            op, plain_args, plain_kwargs = portable(target, args, kwargs)
        except (OpNotSupported, InvalidRequest) as error:
            raise PlanRejected(f"{_why_not(target, error.message)}{at}", op=str(target)[:64]) from None
        if not op.plannable:
            raise PlanRejected(f"{_why_not(target, f'{op.name} cannot be part of a plan')}{at}", op=op.name)
        given = tuple(self._arg(arg) for arg in plain_args)
        pairs = tuple(sorted((key, self._arg(arg)) for key, arg in plain_kwargs.items()))
        made = node.meta["val"]
        if isinstance(made, Tensor):
            self._values[node] = self._emit(op.name, given, pairs, 1)[0]
        else:
            refs = iter(self._emit(op.name, given, pairs, sum(item is not None for item in made)))
            self._values[node] = [None if item is None else next(refs) for item in made]

    def _emit(self, op: str, args: tuple[Arg, ...], kwargs: tuple[tuple[str, Arg], ...], count: int) -> list[Ref]:
        refs = [Ref(self._next + index) for index in range(count)]
        self._next += count
        self._steps.append(Step(op, args, kwargs, tuple(int(ref) for ref in refs), line=self._line))
        return refs

    def _arg(self, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            size = arg.meta.get("val")
            if isinstance(size, (torch.SymInt, torch.SymFloat, int, float)):
                return self._size(self._captured.simplify(size))
            value = self._values[arg]
            return self._constant(arg) if isinstance(value, fx.Node) else value
        if isinstance(arg, (torch.SymInt, torch.SymFloat)):
            return self._size(self._captured.simplify(arg))
        if isinstance(arg, (list, tuple)):
            return tuple(self._arg(item) for item in arg)
        return arg

    def _constant(self, node: fx.Node) -> Ref:
        """A provisional reference, below zero, to a tensor of the program; the same tensor twice is one constant."""
        tensor = self._captured.constants[str(node.target)]
        known = self._constant_refs.get(id(tensor))
        if known is None:
            known = self._constant_refs[id(tensor)] = Ref(-1 - len(self._constants))
            self._bytes += tensor.numel() * tensor.element_size()
            if self._bytes > MAX_CONSTANT_BYTES:
                raise PlanRejected(
                    f"the function closes over more than {MAX_CONSTANT_BYTES >> 20} MiB of tensors; pass large ones as arguments"
                )
            frame = to_frame(tensor)
            self._constants.append(Constant(frame.dtype, frame.shape, bytes(frame.data)))
        return known

    def _size(self, expression: Any) -> Ref | int | float:
        """The value of an expression of free dimensions: a number, or a reference to steps that compute it."""
        if isinstance(expression, (bool, int, float)):
            return expression
        if not expression.free_symbols:
            return int(expression) if expression.is_integer else float(expression)
        known = self._sizes.get(expression)
        if known is None:
            known = self._sizes[expression] = self._computed(expression)
        return known

    def _computed(self, expression: Any) -> Ref | int | float:
        kind = type(expression).__name__
        if isinstance(expression, sympy.Symbol):
            return self._sym("sym.size", Ref(self._symbol_inputs[expression]), 0)
        if isinstance(expression, sympy.Add):
            return self._sum(expression)
        if isinstance(expression, sympy.Mul):
            return self._fold("sym.mul", sorted(expression.args, key=default_sort_key))
        if isinstance(expression, sympy.Pow) and expression.exp.is_Integer and 1 < int(expression.exp) <= 8:
            return self._fold("sym.mul", [expression.base] * int(expression.exp))
        if kind == "ToFloat":
            return self._sym("sym.float", self._size(expression.args[0]))
        if kind in _BINARY:
            return self._fold(_BINARY[kind], list(expression.args))
        raise PlanRejected(f"the function computes a size that a plan cannot express: {str(expression)[:200]}")

    def _sum(self, expression: sympy.Add) -> Ref | int | float:
        """Terms with a minus sign are subtracted, which reads better than adding their product with -1."""
        terms = sorted(expression.args, key=default_sort_key)
        minus = [-term for term in terms if term.could_extract_minus_sign()]
        plus = [term for term in terms if not term.could_extract_minus_sign()]
        total = self._fold("sym.add", plus) if plus else 0
        for term in minus:
            total = self._sym("sym.sub", total, self._size(term))
        return total

    def _fold(self, op: str, terms: list[Any]) -> Ref | int | float:
        total = self._size(terms[0])
        for term in terms[1:]:
            total = self._sym(op, total, self._size(term))
        return total

    def _sym(self, op: str, *args: Arg) -> Ref:
        return self._emit(op, args, (), 1)[0]

    def _numbered(self, program: Program) -> Program:
        """Drop steps that nothing needs, and give all values their final numbers."""
        needed = set(program.outputs)
        kept: list[Step] = []
        for step in reversed(program.steps):
            if needed.intersection(step.outputs):
                needed.update(step.refs())
                kept.append(step)
        kept.reverse()
        numbers = {index: index for index in range(len(program.inputs))}
        used = [provisional for provisional in range(-1, -1 - len(self._constants), -1) if provisional in needed]
        for value in (*used, *(output for step in kept for output in step.outputs)):
            numbers[value] = len(numbers)
        steps = tuple(_renumbered(step, numbers) for step in kept)
        outputs = tuple(numbers[output] for output in program.outputs)
        constants = tuple(self._constants[-1 - provisional] for provisional in used)
        first = len(program.inputs)
        steps = with_frees(steps, outputs, range(first, first + len(constants)))
        return replace(program, constants=constants, steps=steps, outputs=outputs)


def _renumbered(step: Step, numbers: Mapping[int, int]) -> Step:
    def fix(arg: Any) -> Any:
        if type(arg) is Ref:
            return Ref(numbers[arg])
        return tuple(fix(item) for item in arg) if isinstance(arg, tuple) else arg

    kwargs = tuple((key, fix(value)) for key, value in step.kwargs)
    outputs = tuple(numbers[output] for output in step.outputs)
    return replace(step, args=fix(step.args), kwargs=kwargs, outputs=outputs)


def _rewritten(
    target: Any, args: Any, kwargs: dict[str, Any], constants: Mapping[str, Tensor]
) -> tuple[Any, Any, dict[str, Any]]:
    """A few operations in terms of ones that the op table has."""
    if target in _SAME:
        return _SAME[target], args, kwargs
    if target is aten.fill.Tensor:
        value = args[1]
        while isinstance(value, fx.Node) and value.target in _IDENTITIES:
            value = value.args[0]
        if isinstance(value, fx.Node) and value.op == "get_attr":
            return aten.fill.Scalar, (args[0], constants[str(value.target)].item()), kwargs
        return aten.copy.default, args, kwargs
    return target, args, kwargs


def _transposed(value: Any) -> Any:
    """What a value is the transpose of, where that is how it was made: gradients of linear layers transpose twice."""
    return value.args[0] if isinstance(value, fx.Node) and value.target is aten.t.default else None


def _is_whole(cut: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether (dim, start, end, step) mean `x[:]`, which indexing writes for each dimension that it leaves alone."""
    rest: tuple[Any, ...] = (0, None, None, 1)
    _, start, end, step = cut + rest[len(cut) :]
    return not kwargs and start in (0, None) and end in (None, sys.maxsize) and bool(step == 1)


def _refuse_device(target: Any, kwargs: Mapping[str, Any], at: str) -> None:
    device = kwargs.get("device")
    if device is not None and torch.device(device).type != "cpu":
        raise PlanRejected(f"{target} asks for the device {device}; whoever runs a plan decides on that, so leave it out{at}")


def _why_not(target: Any, reason: str) -> str:
    if torch.Tag.nondeterministic_seeded in target.tags:
        return (
            f"{target} draws random numbers, which a plan cannot hold; pass them as an argument "
            "(for dropout, torch.nn.functional.dropout works: the mask is drawn where the plan runs)"
        )
    return reason
