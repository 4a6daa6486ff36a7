"""A prepared plan run in the clear, on values made up: what would overflow on shares, and what it would cost between parties.

Nothing is sent. Values on shares are fixed point, so they can overflow where PyTorch's would not, and nobody could see it;
`doubtful` names the operations that come near. `cost` adds up what each operation declares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from grid.smpc.interpreter import Value, fraction_bits
from grid.smpc.party import PARTIES
from grid.smpc.plain import Plain, Watch, completed
from grid.smpc.programs import Given, Prepared
from grid.smpc.protocol import Protocol
from grid.smpc.replicated.costs import Cost
from grid.smpc.replicated.counting import Counting
from grid.smpc.shares import Shared
from grid.tensors import fixed


class PlanCost(NamedTuple):
    """Of one run: rounds at most, and bytes that each of the parties sends, on average."""

    rounds: int
    bytes_sent: int


def in_the_clear(value: Tensor) -> Value:
    """A value that `Plain` computes on. Raises `ExecutionFailed` for one that shares cannot hold."""
    words = fixed.encode(value, fraction_bits(value.dtype), 1).numpy().view(np.uint64)
    return Value(Shared(words), value.dtype)


def doubtful(prepared: Prepared, inputs: Sequence[Value | Tensor]) -> list[str]:
    """The operations, with the user's line, whose truncation could overflow or whose argument leaves the domain that they are
    right for, on values such as these."""
    watch = Watch()
    protocol = Plain(watch=watch)

    def at(place: int) -> Protocol:
        operation = prepared.order.operations[place]
        line = f" — at {operation.step.line}" if operation.step.line else ""
        watch.operation = f"step {operation.index} ({operation.step.op}){line}"
        return protocol

    completed(prepared.run(protocol, inputs, at))
    return watch.overflows()


def cost(prepared: Prepared) -> PlanCost:
    """What a run costs; values do not matter. Each operation begins when those that it waits for are done."""
    order, meters = prepared.order, dict[int, Counting]()
    ends: dict[int, int] = {}

    def at(place: int) -> Protocol:
        begins = max((meters[earlier].cost.rounds for earlier in order.before[place] if earlier in meters), default=0)
        stage = order.operations[place].stage
        if stage and stage not in ends:
            ends[stage] = max((meter.cost.rounds for meter in meters.values()), default=0)
        meters[place] = Counting(max(begins, ends.get(stage, 0)))
        return meters[place]

    completed(prepared.run(Plain(), [_nothing(one) for one in prepared.inputs], at))
    total = Cost(0, 0)
    for meter in meters.values():
        total = total.beside(meter.cost)
    return PlanCost(total.rounds, -(-total.bytes_sent // PARTIES))


def _nothing(one: Given) -> Value | Tensor:
    if one.secret:
        return Value(Shared(np.zeros(one.shape, np.uint64)), one.dtype)
    return torch.zeros(one.shape, dtype=one.dtype)
