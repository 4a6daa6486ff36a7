"""What a run would give and cost, from the shapes of its inputs alone, before anything real is allocated.

The program is run on meta tensors, which have shapes and no memory. For each step this gives elements, newly used bytes and
floating-point operations; for the whole, the shapes of the results and the largest memory in use at one time. A node asks
before it runs a plan, and refuses one that is too large as a whole, instead of half way.

Bytes count each new tensor once and views not at all, and what a step needs on the way; `grid.plans.flops` counts operations.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from grid.errors import GridError, PlanRejected
from grid.plans.checks import Shaped, check_inputs, compute_size, resolve
from grid.plans.flops import flops, workspace
from grid.plans.program import SYM_OPS, Program, Step
from grid.tensors.bounds import measure
from grid.tensors.buffers import torch_dtype
from grid.tensors.ops import Meta, bind, elements, lookup
from grid.wire.dtypes import tensor_bytes

LARGEST_RESULT = 1 << 50
"""Elements that one step may give in a dry run, which allocates nothing; `check_limits` sets the limit that counts."""

_KEPT = 64
"""Dry runs of one plan that are kept, by sizes of its inputs."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """One step: elements of all its results, bytes of memory that was not in use before, operations."""

    elements: int = 0
    bytes: int = 0
    flops: int = 0


@dataclass(frozen=True)
class DryRun:
    """A whole run: its results without values, the cost of each step, and the most bytes in use at one time.

    `peak_bytes` counts what the plan allocates: inputs were there before.
    """

    outputs: tuple[Meta, ...]
    steps: tuple[StepCost, ...]
    peak_bytes: int

    @cached_property
    def largest(self) -> int:
        """Elements of the step that gives most of them."""
        return max((step.elements for step in self.steps), default=0)

    @cached_property
    def elements(self) -> int:
        """Elements of all results of all steps."""
        return sum(step.elements for step in self.steps)

    @cached_property
    def flops(self) -> int:
        """Operations of all steps."""
        return sum(step.flops for step in self.steps)


class DryRuns:
    """Dry runs of one program, kept by sizes of inputs: the second one costs a look-up. Used from any thread."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._known: OrderedDict[tuple[object, ...], DryRun] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, inputs: Sequence[Shaped]) -> DryRun:
        """What a run on inputs of these shapes gives and costs.

        Raises `InvalidRequest` for inputs that do not fit the plan, and `PlanRejected`, naming the step, where shapes do not
        fit within it.
        """
        key = tuple([(leaf.shape, leaf.dtype) for leaf in inputs])
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
        if known is None:
            check_inputs(self._program, inputs)
            known = dry_run(self._program, [tuple(int(size) for size in leaf.shape) for leaf in inputs])
            with self._lock:
                self._known[key] = known
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        return known


def dry_run(program: Program, shapes: Sequence[tuple[int, ...]], seen: dict[int, Tensor] | None = None) -> DryRun:
    """One dry run, worked out anew. `shapes` fit the program's inputs. `seen` gets the tensors, without values, of all steps."""
    env: dict[int, Any] = {}
    memory = _Memory()
    for index, (spec, shape) in enumerate(zip(program.inputs, shapes, strict=True)):
        if elements(shape) > LARGEST_RESULT:
            raise PlanRejected(f"input {index} would be larger than any tensor")
        env[index] = torch.empty(shape, dtype=torch_dtype(spec.dtype), device="meta")
    for index, constant in enumerate(program.constants, start=len(program.inputs)):
        env[index] = torch.empty(constant.shape, dtype=torch_dtype(constant.dtype), device="meta")
        memory.allocate(index, tensor_bytes(constant.dtype, constant.shape))
    costs: list[StepCost] = []
    for index, step in enumerate(program.steps):
        try:
            costs.append(_step(step, env, memory))
        except GridError as error:
            raise PlanRejected(f"step {index} ({step.op}): {error.message}", step=index, op=step.op) from None
        if seen is not None:
            seen.update((value, env[value]) for value in step.outputs if isinstance(env[value], Tensor))
        for value in step.frees:
            del env[value]
            memory.free(value)
    return DryRun(tuple(Meta.of(env[output]) for output in program.outputs), tuple(costs), memory.peak)


def output_metas(plan: Program, inputs: Sequence[Shaped]) -> list[Meta]:
    """Shapes, strides and dtypes of a plan's results for inputs of these shapes. Errors as `DryRuns.of`."""
    return list(_runs(plan).of(inputs).outputs)


def check_limits(
    plan: Program,
    inputs: Sequence[Shaped],
    *,
    max_elements: int,
    max_bytes: int,
    max_flops: int | None = None,
    max_steps: int | None = None,
) -> DryRun:
    """Raise `PlanRejected` if any step gives more than `max_elements`, or the plan needs more than the other limits in all.

    Returns the dry run. Errors otherwise as `DryRuns.of`.
    """
    if max_steps is not None and len(plan.steps) > max_steps:
        raise PlanRejected(f"the plan has {len(plan.steps)} steps; at most {max_steps} are allowed")
    run = _runs(plan).of(inputs)
    if run.largest > max_elements:
        for index, (step, cost) in enumerate(zip(plan.steps, run.steps, strict=True)):
            if cost.elements <= max_elements:
                continue
            raise PlanRejected(
                f"step {index} ({step.op}) would give {cost.elements} elements; at most {max_elements} are allowed",
                step=index,
                op=step.op,
            )
    if run.peak_bytes > max_bytes:
        raise PlanRejected(f"the plan would use {run.peak_bytes} bytes at one time; at most {max_bytes} are allowed")
    if max_flops is not None and run.flops > max_flops:
        raise PlanRejected(f"the plan would need {run.flops} operations; at most {max_flops} are allowed")
    return run


def _runs(plan: Program) -> DryRuns:
    """The plan's own cache; a program that is no plan gets a fresh one."""
    kept = getattr(plan, "dry_runs", None)
    return kept if isinstance(kept, DryRuns) else DryRuns(plan)


class _Memory:
    """Bytes in use. A view keeps what it looks at: memory is free when no value of the same owner is left."""

    def __init__(self) -> None:
        self.peak = 0
        self._used = 0
        self._owner: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._values: dict[int, int] = {}

    def allocate(self, value: int, size: int) -> None:
        """`value` has memory of its own."""
        self._owner[value] = value
        self._bytes[value] = size
        self._values[value] = 1
        self._used += size
        self.peak = max(self.peak, self._used)

    def look(self, value: int, at: int) -> None:
        """`value` is a view of `at`, which may be an input, and those are not counted."""
        owner = self._owner.get(at)
        if owner is not None:
            self._owner[value] = owner
            self._values[owner] += 1

    def spend(self, size: int) -> None:
        """Memory that is used within one step alone."""
        self.peak = max(self.peak, self._used + size)

    def free(self, value: int) -> None:
        """`value` is gone."""
        owner = self._owner.pop(value, None)
        if owner is None:
            return
        self._values[owner] -= 1
        if not self._values[owner]:
            self._used -= self._bytes.pop(owner)
            del self._values[owner]


def _step(step: Step, env: dict[int, Any], memory: _Memory) -> StepCost:
    args = [resolve(arg, env) for arg in step.args]
    if step.op in SYM_OPS:
        env[step.outputs[0]] = compute_size(step.op, args)
        return StepCost()
    op = lookup(step.op)
    bound = bind(op, args, {name: resolve(arg, env) for name, arg in step.kwargs})
    results = measure(bound, LARGEST_RESULT)
    if len(results) != len(step.outputs):
        raise PlanRejected(f"gives {len(results)} tensors, and the plan names {len(step.outputs)}")
    source = next(step.refs(), None)
    fresh = 0
    for output, result in zip(step.outputs, results, strict=True):
        env[output] = result
        size = result.numel() * result.element_size()
        if op.views and source is not None:
            memory.look(output, source)
        else:
            memory.allocate(output, size)
            fresh += size
    extra = workspace(bound, results)
    memory.spend(extra)
    return StepCost(sum(result.numel() for result in results), fresh + extra, 0 if op.views else flops(bound, results))
