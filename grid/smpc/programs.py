"""Plans on shares: a validated `Program` prepared to be run on any `Protocol`, with inputs on shares and public ones.

    prepared = Prepared(program, [Given(shape, dtype, secret), ...], limits)
    results = await prepared.run(protocol, inputs)          # grid.smpc.dataflow does that

Preparing does, once for each geometry of inputs, all that public facts decide, so all parties decide alike and a run only
computes: sizes, a `Call` for each operation on shares (its kernel, its other arguments, its results), what depends on constants
alone, who waits for whom, and limits: elements of every value, steps, work, memory. Steps that no result needs are not run.

Memory is counted as if everything at the same time were kept: results of a step, and `TEMPORARIES` times what it reads and makes.
Where that would be too much, or more messages could be under way than a party takes early, steps wait until all before are done:
a program of many large branches takes rounds instead of memory.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grid.errors import GridError, OpNotSupported, PlanRejected, QuotaExceeded
from grid.plans.checks import check_inputs, compute_size, resolve
from grid.plans.flops import flops, touched
from grid.plans.interpret import constants_of
from grid.plans.ir import Plan
from grid.plans.program import SYM_OPS, Program, Step
from grid.smpc import dataflow
from grid.smpc.dataflow import Operation, Order, computed, located
from grid.smpc.interpreter import Call, Value, fraction_bits
from grid.smpc.operations.arguments import keep_encodings
from grid.smpc.operations.views import CONSTANTS
from grid.smpc.protocol import Protocol
from grid.smpc.replicated.chunks import CHUNK, DEPTH
from grid.smpc.shares import Shared
from grid.smpc.steps import Work
from grid.tensors.bounds import measure
from grid.tensors.ops import Bound, bind, lookup

WORD_BYTES = 8
SHARE_BYTES = 16
"""Of one element at one party."""

EARLY_BYTES = 64
"""Of one element in one step of a kernel, at most."""

TEMPORARIES = 3
WORK_ON_SHARES = 100
"""Operations that one element counts for which a step on shares reads or makes."""

DRAWS = ("random", "draw", "dropout")
"""Rules of operations that give each party something else."""

TRANSPOSES = ("aten.t.default", "aten.transpose.int", "aten.permute.default")

STEPS_PER_NUMBER = 16

KEPT_BYTES = 256 << 20
STEP_BYTES = 8192
"""What a prepared step takes, roughly."""


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """What is known of a value before a run."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    secret: bool

    @classmethod
    def of(cls, value: Value | Tensor) -> Given:
        return cls(tuple(value.shape), value.dtype, isinstance(value, Value))

    def stand_in(self) -> Value | Tensor:
        """A value of this geometry that takes no memory."""
        if not self.secret:
            return torch.empty(self.shape, dtype=self.dtype, device="meta")
        nothing = np.broadcast_to(np.uint64(0), self.shape)
        return Value(Shared(nothing, nothing), self.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a plan may take at one party: elements of a value, bytes at one time, operations in all, steps; and bytes of messages
    that may be under way, beside those of one operation."""

    most: int
    max_bytes: int
    max_flops: int
    max_steps: int
    max_early: int


UNLIMITED = Limits(1 << 50, 1 << 60, 1 << 80, 1 << 40, 1 << 60)
"""For a client, who only looks: nodes have limits of their own."""


class Prepared:
    """A program for inputs of one geometry. May be run any number of times, one after the other.

    Raises `InvalidRequest` for inputs that do not fit, and what a step is refused by (`OpNotSupported`, `InvalidRequest`,
    `QuotaExceeded`, `PlanRejected`), naming step, operation and, where the plan was traced, the user's line.
    """

    def __init__(self, program: Program, inputs: Sequence[Given], limits: Limits) -> None:
        check_inputs(program, inputs)
        if len(program.steps) > limits.max_steps:
            raise QuotaExceeded(f"the plan has {len(program.steps)} steps, and {limits.max_steps} are allowed (max_plan_steps)")
        self.program, self.inputs = program, tuple(inputs)
        self._limits = limits
        self._work = 0
        self.nbytes = 0
        """Of what it keeps for runs: constants, and results of steps on constants."""
        self._env: list[Any] = []
        for number, one in enumerate(inputs):
            if math.prod(one.shape) > limits.most:
                raise QuotaExceeded(f"input {number} has {math.prod(one.shape)} elements, and {limits.most} are allowed here")
            fraction_bits(one.dtype)
            self._env.append(one.stand_in())
        for constant in constants_of(program):
            self._keep(constant)
            keep_encodings(constant)
            self._env.append(constant)
        needed = _needed(program)
        operations: list[Operation] = []
        for index, step in enumerate(program.steps):
            try:
                operation = self._prepared(index, step)
            except GridError as error:
                raise located(error, index, step) from None
            if operation is not None and needed[index]:
                operations.append(operation)
        _expect_gradients(operations)
        self._admit(operations)
        self.results = tuple(Given.of(self._env[output]) for output in program.outputs)
        """The geometry of the results."""
        # What every run begins with: inputs and results of steps are not there yet, constants and sizes are.
        known = [one if isinstance(one, int | float) or _is_known(one) else None for one in self._env]
        self._env.clear()
        self.order = Order(operations, program.outputs, known)

    def run(
        self,
        protocol: Protocol,
        inputs: Sequence[Value | Tensor],
        at: dataflow.At | None = None,
        ended: dataflow.Ended | None = None,
    ) -> Work[list[Value]]:
        """The results, for inputs of the geometry that it was prepared for. `at` gives the protocol for an operation where it
        is not to have a range of operation numbers of `protocol`; `ended` is told as each one ends."""
        return dataflow.run(self.order, protocol, inputs, at, ended)

    def in_public(self, inputs: Sequence[Any]) -> list[Tensor | None]:
        """For each result, its value where that depends on public inputs alone, beside secret ones, such as an optimizer's number
        of steps. Raises `InvalidRequest`."""
        if not any(one.secret for one in self.inputs):
            return [None] * len(self.results)
        env = list(self.order.known)
        for number, one in enumerate(self.inputs):
            env[number] = None if one.secret else inputs[number]
        for operation in self.order.operations:
            if operation.call is None:
                step = operation.step
                args, kwargs = [resolve(arg, env) for arg in step.args], {name: resolve(arg, env) for name, arg in step.kwargs}
                for output, value in zip(step.outputs, computed(step, args, kwargs), strict=True):
                    env[output] = value
        found = [env[output] for output in self.order.outputs]
        return [None if one.secret else value for one, value in zip(self.results, found, strict=True)]

    # ------------------------------------------------------------ one step

    def _prepared(self, index: int, step: Step) -> Operation | None:
        """The step as a run takes it; None where its result is known already."""
        env = self._env
        if step.op in SYM_OPS:
            env.append(compute_size(step.op, [resolve(arg, env) for arg in step.args]))
            return None
        args, kwargs = [resolve(arg, env) for arg in step.args], {name: resolve(arg, env) for name, arg in step.kwargs}
        read = tuple(ref for ref in step.refs() if not isinstance(env[ref], int | float))
        if step.op in CONSTANTS:
            args, kwargs = [_empty(arg) for arg in args], {name: _empty(arg) for name, arg in kwargs.items()}
        elif any(isinstance(env[ref], Value) for ref in read):
            call = Call(step.op, args, kwargs, most=self._limits.most)
            self._count(step, bind(lookup(step.op), _metas(args), _metas(kwargs)), call.results, WORK_ON_SHARES)
            env += [Given(tuple(one.shape), one.dtype, True).stand_in() for one in call.results]
            keeps = step.op in TRANSPOSES and self._is_parameter(read[0]) and call.results[0].dtype != torch.bool
            return Operation(index, step, call, read, keeps)
        bound = bind(lookup(step.op), args, kwargs)
        if bound.op.rule in DRAWS:
            raise OpNotSupported("draws random numbers, of which each party would have its own; pass them as an argument")
        results = measure(bound, self._limits.most)
        self._count(step, bound, results, 1)
        if step.op in CONSTANTS or all(_is_known(env[ref]) for ref in read):
            for one in results:
                self._keep(one)
            made = computed(step, args, kwargs)
            for one in made:
                keep_encodings(one)
            env += made
            return None
        env += [torch.empty(one.shape, dtype=one.dtype, device="meta") for one in results]
        return Operation(index, step, None, read)

    def _count(self, step: Step, bound: Bound, results: Sequence[Tensor], weight: int) -> None:
        if len(results) != len(step.outputs):
            raise PlanRejected(f"gives {len(results)} tensors, and the plan names {len(step.outputs)}")
        if not bound.op.views:
            self._work += flops(bound, results) + (weight - 1) * touched(bound, results)
        if self._work > self._limits.max_flops:
            raise QuotaExceeded(f"the plan takes more than {self._limits.max_flops} operations up to here (max_plan_flops)")

    def _keep(self, constant: Tensor) -> None:
        """Count a tensor that is kept for runs, with its ring elements."""
        self.nbytes += constant.numel() * (constant.element_size() + WORD_BYTES)
        if self.nbytes > self._limits.max_bytes:
            raise QuotaExceeded(f"constants of the plan take more than {self._limits.max_bytes} bytes here")

    def _is_parameter(self, value: int) -> bool:
        """Whether a value is an input of a fixed size, which may come again and again."""
        inputs = self.program.inputs
        return value < len(inputs) and not any(isinstance(size, str) for size in inputs[value].sizes)

    # ------------------------------------------------------------ memory

    def _admit(self, operations: Sequence[Operation]) -> None:
        """Give each operation the number of the stage in which it may run. Raises `QuotaExceeded` where one alone is too much."""
        last = {ref: operation.index for operation in operations for ref in operation.reads}
        held: dict[int, int] = {}
        live = stage = under_way = early = 0
        for operation in operations:
            made = {output: self._nbytes(output) for output in operation.step.outputs}
            own = sum(made.values())
            if operation.call is not None:
                own += TEMPORARIES * (own + sum(self._nbytes(ref) for ref in operation.reads))
            if live + own > self._limits.max_bytes:
                error = QuotaExceeded(
                    f"the plan takes {live + own} bytes here, and {self._limits.max_bytes} are left (max_bytes_per_client)"
                )
                raise located(error, operation.index, operation.step)
            sent = self._early(operation)
            if under_way + own > self._limits.max_bytes or (early and early + sent > self._limits.max_early):
                stage, under_way, early = stage + 1, live, 0
            operation.stage = stage
            under_way, early = under_way + own, early + sent
            held |= made
            live += sum(made.values())
            done = [ref for ref in {*operation.reads, *made} if last.get(ref, operation.index) <= operation.index]
            live -= sum(held.pop(ref, 0) for ref in done if ref not in self.program.outputs)

    def _early(self, operation: Operation) -> int:
        """Bytes that another party may have sent for an operation before it begins here: of a few blocks at most."""
        if operation.call is None or lookup(operation.step.op).views:
            return 0
        sizes = [self._nbytes(value) // SHARE_BYTES for value in (*operation.reads, *operation.step.outputs)]
        return EARLY_BYTES * min(max(sizes), CHUNK * DEPTH)

    def _nbytes(self, value: int) -> int:
        one = self._env[value]
        if isinstance(one, Value):
            return SHARE_BYTES * one.shared.size
        return int(one.numel() * one.element_size())


def _needed(program: Program) -> list[bool]:
    """For each step, whether a result of the program depends on it."""
    wanted, needed = set(program.outputs), [False] * len(program.steps)
    for index in range(len(program.steps) - 1, -1, -1):
        step = program.steps[index]
        if not wanted.isdisjoint(step.outputs):
            needed[index] = True
            wanted.update(step.refs())
    return needed


def _expect_gradients(operations: Sequence[Operation]) -> None:
    """Tell operations of whose results gradients are computed."""
    maker = {output: operation for operation in operations for output in operation.step.outputs}
    for operation in operations:
        if lookup(operation.step.op).base.removesuffix("_data").endswith("_backward"):
            for ref in operation.reads:
                if ref in maker and (call := maker[ref].call) is not None:
                    call.expect_gradient()


def _metas(value: Any) -> Any:
    """Arguments with geometries in place of values."""
    if isinstance(value, list):
        return [_metas(item) for item in value]
    if isinstance(value, dict):
        return {name: _metas(item) for name, item in value.items()}
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Value) else value


def _empty(arg: Any) -> Any:
    """A tensor of the geometry of what is not known, which takes no memory."""
    if isinstance(arg, Value) or (isinstance(arg, Tensor) and arg.is_meta):
        return torch.zeros((), dtype=arg.dtype).expand(arg.shape)
    return arg


def _is_known(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_meta


def request_numbers(program: Program) -> int:
    """How many request numbers a call takes in a committee: each stands for OPERATION_NUMBERS of STEPS_PER_NUMBER steps."""
    return max(1, -(-len(program.steps) // STEPS_PER_NUMBER))


class Preparations:
    """What plans were prepared for, the latest ones, up to KEPT_BYTES of them. Used from any thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: OrderedDict[tuple[object, ...], Prepared] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, plan: Plan, inputs: Sequence[Given]) -> Prepared:
        """Errors as `Prepared`."""
        key = (plan.id, *inputs)
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        made = Prepared(plan, inputs, self._limits)
        with self._lock:
            if key not in self._known:
                self._known[key] = made
                self._bytes += _size(made)
            while self._bytes > KEPT_BYTES and len(self._known) > 1:
                self._bytes -= _size(self._known.popitem(last=False)[1])
        return made


def _size(prepared: Prepared) -> int:
    return prepared.nbytes + STEP_BYTES * (1 + len(prepared.program.steps))
