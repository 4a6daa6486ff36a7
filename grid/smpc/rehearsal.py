"""A prepared plan run in the clear, on values made up: what would go wrong on shares, and what it would cost between parties.

Nothing is sent. Values on shares are fixed point, so they can overflow where PyTorch's would not, and nobody could see it;
`tried` names the operations that do or come near. `cost` adds up what each operation declares.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from grid.errors import GridError
from grid.plans.checks import resolve
from grid.plans.ir import Plan, PlanCost
from grid.plans.lines import at_line
from grid.smpc.dataflow import OPERATION_NUMBERS, computed, located
from grid.smpc.discrepancies import differs, fits, in_torch
from grid.smpc.interpreter import Call, Value, fraction_bits
from grid.smpc.operations.values import Absent
from grid.smpc.party import PARTIES, Operations
from grid.smpc.plain import Plain, Watch, completed
from grid.smpc.programs import UNLIMITED, Given, Prepared
from grid.smpc.protocol import Protocol
from grid.smpc.replicated.counting import Counting, later
from grid.smpc.replicated.spans import START, Clock
from grid.smpc.shares import Shared
from grid.tensors import fixed
from grid.tensors.buffers import torch_dtype
from grid.tensors.ops import Bound, bind, lookup

OVERFLOWS = "a product may overflow, it is 2**25 or larger"
LEAVES = "an argument is outside of what it is right for"
UNFIT = "PyTorch's result is not finite, or 2**45 or larger"
DIFFERS = "it gives another result than PyTorch"
REFUSED = "PyTorch refuses such values"

REVEALED, READ = 1, 2


def in_the_clear(value: Tensor, dtype: torch.dtype | None = None, extra: int = 0) -> Value:
    """A value that `Plain` computes on, as one of `dtype`. Raises `ExecutionFailed` for one that shares cannot hold."""
    dtype = dtype or value.dtype
    words = fixed.encode(value, fraction_bits(dtype) + extra, 1).numpy().view(np.uint64)
    return Value(Shared(words), dtype, extra)


class Trial(NamedTuple):
    """The operations, with the user's line, that could go wrong on shares, and how; PyTorch's results, None for one that shares
    cannot hold."""

    doubts: list[str]
    results: list[Tensor | None]


def tried(prepared: Prepared, inputs: Sequence[Tensor]) -> Trial:
    """A plan on values such as these. Each operation is done on what PyTorch gives for those before it, on shares and by PyTorch
    in double precision.

    Not told: errors that only add up over many operations, and what is lost below `discrepancies.ABSOLUTE`. Raises what an
    operation is refused by.
    """
    order, known = prepared.order, list(prepared.order.known)
    known[: len(inputs)] = inputs
    kinds = {number: (one.dtype, 0) for number, one in enumerate(prepared.inputs) if one.secret}
    last = {ref: place for place, operation in enumerate(order.operations) for ref in operation.reads}
    found: list[str] = []
    absent: dict[int, Value] = {}
    for place, operation in enumerate(order.operations):
        step, operands = operation.step, {ref: known[ref] for ref in operation.reads}
        made: Sequence[Tensor | None] = [None] * len(step.outputs)
        if all(one is not None for one in operands.values()):  # else a step before has no result that shares can hold
            args, kwargs = [resolve(arg, known) for arg in step.args], {name: resolve(arg, known) for name, arg in step.kwargs}
            try:
                if operation.call is None:
                    made = computed(step, args, kwargs)
                else:
                    given = [
                        absent.get(ref) or (in_the_clear(known[ref], *kinds[ref]) if ref in kinds else known[ref])
                        for ref in operation.reads
                    ]
                    fine = any(extra for ref, (_, extra) in kinds.items() if ref in operation.reads)
                    uses = [REVEALED * (output in order.outputs) + READ * (output in last) for output in step.outputs]
                    on_shares, made, doubts = _beside(operation.call.on(given), bind(lookup(step.op), args, kwargs), uses, fine)
                    kinds |= {output: (one.dtype, one.extra) for output, one in zip(step.outputs, on_shares, strict=True)}
                    absent |= {
                        output: one
                        for output, one in zip(step.outputs, on_shares, strict=True)
                        if isinstance(one.content, Absent)
                    }
                    if doubts:
                        found.append(f"step {operation.index} ({step.op}): {', and '.join(doubts)}{at_line(step.line)}")
            except GridError as error:
                raise located(error, operation.index, step) from None
        for output, value in zip(step.outputs, made, strict=True):
            known[output] = value
        for ref in operands:
            if last[ref] == place and ref not in order.outputs:
                known[ref] = None
    pairs = zip(order.outputs, prepared.results, strict=True)
    return Trial(found, [None if known[output] is None else known[output].to(one.dtype) for output, one in pairs])


def _beside(call: Call, bound: Bound, uses: Sequence[int], fine: bool) -> tuple[list[Value], list[Tensor | None], list[str]]:
    """Results on shares, PyTorch's (None for one that later steps cannot take), and what is doubtful about those on shares that
    have a use: REVEALED as a result of the plan, READ by later steps. `fine`: an operand has extra fraction bits."""
    watch, doubts = Watch(), []
    on_shares = completed(call.run(Plain(watch=watch)))
    if watch.overflows() and not watch.outside:
        doubts.append(OVERFLOWS)
    if watch.outside:
        doubts.append(LEAVES)
    try:
        wanted = in_torch(bound)
    except Exception:  # of torch, about values
        return on_shares, [None] * len(on_shares), [*doubts, REFUSED]
    kept: list[Tensor | None] = []
    for place, (value, one) in enumerate(zip(on_shares, wanted, strict=True)):
        kept.append(one if fits(one) else None)
        if isinstance(value.content, Absent) or not uses[place]:
            continue
        if not fits(one):
            doubts.append(UNFIT)
            continue
        number = _decoded(value if value.extra else completed(value.numeric(Plain())))
        if not uses[place] & READ and not value.dtype.is_floating_point:
            number = number.to(value.dtype)
        if differs(bound, place, number, one, jumps=fine):
            doubts.append(DIFFERS)
    return on_shares, kept, list(dict.fromkeys(doubts))


def _decoded(value: Value) -> Tensor:
    """What shares hold: floats in double precision, whole numbers and truth values in 64 bits, however small their dtype is."""
    wide = torch.float64 if value.dtype.is_floating_point else torch.int64
    return fixed.decode(torch.from_numpy(np.array(value.shared.parts[0]).view(np.int64)), value.bits, wide)


def cost(prepared: Prepared) -> PlanCost:
    """What a run costs; values do not matter, but where the plan sorts. Each operation begins at a party when those that it waits
    for are done there."""
    order, meters = prepared.order, dict[int, Counting]()
    stages: dict[int, Clock] = {0: START}

    def at(place: int) -> Protocol:
        stage = order.operations[place].stage
        if stage not in stages:
            stages[stage] = functools.reduce(later, (meter.clock for meter in meters.values()), START)
        waits = (meters[earlier].clock for earlier in order.before[place] if earlier in meters)
        numbers = Operations(place * OPERATION_NUMBERS, (place + 1) * OPERATION_NUMBERS)
        meters[place] = Counting(numbers, functools.reduce(later, waits, stages[stage]))
        return meters[place]

    completed(prepared.run(Plain(), [_nothing(one) for one in prepared.inputs], at))
    costs = [meter.cost for meter in meters.values()]
    rounds = max((one.rounds for one in costs), default=0)
    return PlanCost(rounds, -(-sum(one.bytes_sent for one in costs) // PARTIES))


def plan_cost(plan: Plan, shapes: Sequence[tuple[int, ...]], secret: Sequence[bool]) -> PlanCost:
    """`Plan.cost`. Raises what the plan is refused by on inputs of these shapes."""
    given = zip(shapes, plan.inputs, secret, strict=True)
    return cost(Prepared(plan, [Given(shape, torch_dtype(one.dtype), hidden) for shape, one, hidden in given], UNLIMITED))


Plan.costing = plan_cost


def _nothing(one: Given) -> Value | Tensor:
    if one.secret:
        return Value(Shared(np.zeros(one.shape, np.uint64)), one.dtype)
    return torch.zeros(one.shape, dtype=one.dtype)
