"""From a Python function to a graph of ATen operations. The only file that touches PyTorch's tracing interfaces.

The function is run once on fake tensors, which have a shape and no values. The first dimension of an input may be a symbol
that stands for any size; what the function asks of it is noted as a guard. Operations are recorded below autograd, so
gradients that the function takes are part of the record. In-place operations are replaced afterwards by ones that are not.

What cannot be recorded is refused as it happens, with the user's line: reading a value, shapes that depend on values, a
remote tensor that was not passed as an argument, writing to a tensor that was not passed as an argument.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import SymFloat, SymInt, Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode_stack

from grid.errors import PlanRejected
from grid.plans.ir import PlanTarget, is_tensor
from grid.plans.layers import Layers
from grid.plans.lines import at_line, errors_explained, user_line
from grid.plans.trees import Tree, flatten
from grid.tensors.table import HIDDEN_WRITES, INSTEAD

aten = torch.ops.aten

_TRACING = threading.RLock()
"""PyTorch keeps its tracer in variables of the process, so one trace at a time, whichever thread it is in."""

@dataclass(frozen=True, slots=True)
class Leaf:
    """What tracing needs of one example tensor. `free`: dimension 0 is a symbol, and `shape[0]` only an example of it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool = False
    free: bool = False


@dataclass(frozen=True)
class Captured:
    """A recorded function: its graph, without in-place operations and unused nodes.

    `symbols` are the symbols of the free inputs by input number. `seen` are the real tensors that became constants.
    """

    graph: fx.Graph
    constants: Mapping[str, Tensor]
    symbols: Mapping[int, sympy.Symbol]
    gives: Tree
    seen: Sequence[Tensor]
    _env: ShapeEnv

    def simplify(self, value: Any) -> Any:
        """The expression of a symbolic size (or float) with all known equalities put in; other values as they are."""
        if isinstance(value, (SymInt, SymFloat)):
            return self._env.simplify(value.node.expr)
        return value

    def simplify_symbol(self, index: int) -> sympy.Expr:
        """What the free dimension of input `index` turned out to be: itself, another input's, a number, or a formula."""
        return self._env.simplify(self.symbols[index])

    def guards(self) -> Iterator[sympy.Basic]:
        """What the function and PyTorch's kernels took for granted about free dimensions, equalities aside."""
        for guard in self._env.guards:
            yield self._env.simplify(guard.expr)


def capture(function: Callable[..., Any], build: Callable[[Sequence[Tensor]], Sequence[Any]], leaves: Sequence[Leaf]) -> Captured:
    """Record `function(*build(tensors))` for tensors as `leaves` describe them.

    Raises `PlanRejected`, with the user's line, for whatever keeps the function from being recorded, its own errors included.
    """
    with _TRACING, no_ambient_modes():
        env = ShapeEnv(duck_shape=False, specialize_zero_one=False)
        fake = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
        symbols: dict[int, sympy.Symbol] = {}
        with fake:
            inputs = [_fake_input(env, symbols, index, leaf) for index, leaf in enumerate(leaves)]
        watch = _Watch()
        gives: list[Tree] = []

        def recorded(*tensors: Tensor) -> list[Tensor]:
            with Layers(), watch.recording():
                results, tree = flatten(function(*build(tensors)), is_tensor)
            gives.append(tree)
            _refuse_remote(results)
            return results

        with fake, watch.grads_kept(), errors_explained(), _quiet(), enable_python_dispatcher():
            module = make_fx(recorded, _TAKEN_APART, tracing_mode="real")(*inputs)
            module.graph.eliminate_dead_code()
            if any(_is_mutable(node) for node in module.graph.nodes):
                module = _without_writes(module, [tensor.detach() for tensor in inputs])
        constants = {node.target: getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"}
        return Captured(module.graph, constants, symbols, gives[-1], list(watch.seen.values()), env)


@contextmanager
def no_ambient_modes() -> Iterator[None]:
    """Trace the same program whatever the caller happens to be inside of."""
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from logging a traceback for shapes that do not fit: that is what the error is for."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _fake_input(env: ShapeEnv, symbols: dict[int, sympy.Symbol], index: int, leaf: Leaf) -> Tensor:
    shape: list[Any] = list(leaf.shape)
    if leaf.free:
        source = ConstantSource(f"input{index}")
        symbol = env.create_symbol(leaf.shape[0], source, DimDynamic.DYNAMIC, None)
        assert isinstance(symbol, sympy.Symbol)
        symbols[index] = symbol
        shape[0] = env.create_symintnode(symbol, hint=leaf.shape[0], source=source)
    return torch.empty(shape, dtype=leaf.dtype, device="cpu").requires_grad_(leaf.requires_grad)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation before it is recorded: refuses what a plan cannot hold, and notes the line that it came from."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[int, Tensor] = {}
        self._grads: list[tuple[Tensor, Tensor | None]] = []
        self._graph: fx.Graph | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        mode = get_proxy_mode()
        assert mode is not None
        self._graph = mode.tracer.graph
        with self:
            yield

    @contextmanager
    def grads_kept(self) -> Iterator[None]:
        """Give parameters that the function closed over their `grad` back: `backward()` left a fake one there."""
        try:
            yield
        finally:
            for tensor, grad in self._grads:
                tensor.grad = grad

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        _refuse_remote(tensors)
        real = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
        for tensor in real:
            self._meet(tensor)
        if func is aten._local_scalar_dense.default and self._is_known(args[0]):
            with _disable_current_modes():
                return func(args[0] if real else args[0].constant)
        _refuse(func, args, kwargs)
        before = self._last_node()
        result = _batch_norm(args) if func is aten.native_batch_norm.default else func(*args, **kwargs)
        line = user_line(sys._getframe(1))
        for node in self._since(before):
            node.meta["line"] = line
        return result

    def _meet(self, tensor: Tensor) -> None:
        if id(tensor) not in self.seen:
            self.seen[id(tensor)] = tensor
            if tensor.requires_grad and tensor.is_leaf:
                self._grads.append((tensor, tensor.grad))

    @staticmethod
    def _is_known(tensor: Tensor) -> bool:
        """Whether the tensor's value belongs to the function's text: a constant, not an input or something made from one."""
        return not isinstance(tensor, FakeTensor) or tensor.constant is not None

    def _last_node(self) -> fx.Node:
        assert self._graph is not None
        return self._graph._root.prev

    def _since(self, last: fx.Node) -> Iterator[fx.Node]:
        node = self._last_node()
        while node is not last:
            yield node
            node = node.prev


def _refuse(func: Any, args: Any, kwargs: Any) -> None:
    """Raise `PlanRejected` for an operation that has no place in a plan because of what it reads or writes."""
    masks = args[1] if func is aten.index.Tensor else ()
    if func is aten._local_scalar_dense.default or func in (aten.equal.default, aten.is_nonzero.default):
        raise PlanRejected(
            "the function reads a value while it is traced, and there are none yet (`if`, `float()`, `.item()`, `.tolist()`); "
            "use torch.where to choose by value, and tensors in place of numbers"
        )
    if any(mask is not None and mask.dtype in (torch.bool, torch.uint8) for mask in masks):
        raise PlanRejected("`x[mask]` has a shape that depends on values; use torch.where(mask, x, torch.zeros_like(x))")
    if torch.Tag.dynamic_output_shape in func.tags and func is not aten.index.Tensor:
        advice = INSTEAD.get(str(func).split(".")[1].lstrip("_"), "use torch.where and sums over all rows instead")
        raise PlanRejected(f"the shape of the result of {func} depends on values; {advice}")
    for name, value in _written(func, args, kwargs):
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            raise PlanRejected(
                f"the function changes a tensor that is not among its arguments ({func}, argument {name}); pass it as an "
                "argument and return the new value (torch.func.functional_call for a module's parameters and buffers, "
                "torch.autograd.grad in place of backward())"
            )


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[str, object]]:
    """The arguments that an operation writes to, by name; those that its schema hides, too."""
    hidden = HIDDEN_WRITES.get(str(func).removeprefix("aten."), ())
    if str(func) == "aten.native_batch_norm.default" and not args[5]:
        hidden = ()
    for index, argument in enumerate(func._schema.arguments):
        if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name in hidden:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            for item in value if isinstance(value, (list, tuple)) else (value,):
                yield argument.name, item


def _batch_norm(args: Any) -> Any:
    """Batch norm that does not write, or writes its running statistics openly, so that the write can be taken out again."""
    running_mean, running_var, training = args[3], args[4], args[5]
    if not training:
        return aten._native_batch_norm_legit_no_training.default(*args[:5], *args[6:])
    if running_mean is None:
        return aten._native_batch_norm_legit.no_stats(*args[:3], *args[5:])
    *results, new_mean, new_var = aten._native_batch_norm_legit_functional.default(*args)
    running_mean.copy_(new_mean)
    running_var.copy_(new_var)
    return tuple(results)


def _index_fill(self: Tensor, dim: int, index: Tensor, value: Tensor) -> Tensor:
    part = aten.index_select.default(self, dim, index)
    result: Tensor = aten.index_copy.default(self, dim, index, aten.expand.default(value, part.shape))
    return result


_TAKEN_APART = {aten.index_fill.int_Tensor: _index_fill}
"""Operations that only gradients use, in terms of others."""


def is_recording() -> bool:
    """Whether a function is being recorded right now, in this thread."""
    return any(isinstance(mode, _Watch) for mode in _get_current_dispatch_mode_stack())


def _refuse_remote(tensors: Sequence[object]) -> None:
    if any(isinstance(tensor, PlanTarget) for tensor in tensors):
        raise PlanRejected("the function uses a remote tensor that is not among its arguments; pass it as one")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


class _Replay(fx.Interpreter):
    """Runs a graph again and gives new nodes the line of the one that they come from."""

    def run_node(self, n: fx.Node) -> Any:
        mode = get_proxy_mode()
        assert mode is not None
        last = mode.tracer.graph._root.prev
        result = super().run_node(n)
        for node in _after(mode.tracer.graph, last):
            node.meta["line"] = n.meta.get("line", "")
        return result


def _after(graph: fx.Graph, last: fx.Node) -> Iterator[fx.Node]:
    node = graph._root.prev
    while node is not last:
        yield node
        node = node.prev


def _without_writes(module: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
    """The same record with no operation that writes. Inputs that were written to are left as they were.

    Inside the function, and in what it returns, a written input has its new value; the caller's tensor keeps its old one.
    """
    replay = _Replay(module)

    def again(*tensors: Tensor) -> Any:
        with torch.no_grad():
            return replay.run(*tensors)

    done = make_fx(functionalize(again, remove="mutations"), tracing_mode="real")(*inputs)
    for node in reversed(done.graph.nodes):
        if node.target is aten.copy_.default and not node.users and node.args[0].op == "placeholder":
            done.graph.erase_node(node)
    done.graph.eliminate_dead_code()
    for node in done.graph.nodes:
        if _is_mutable(node):
            line = node.meta.get("line", "")
            raise PlanRejected(f"{node.target} writes to a tensor in a way that a plan cannot hold{at_line(line)}")
    return done
