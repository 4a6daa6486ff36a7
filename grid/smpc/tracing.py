"""A prepared plan run by three parties in this process, on values made up, and each of its operations measured alone.

Nothing is sent. First the plan runs as a committee runs it, in lockstep, which counts the rounds of the whole: operations that do
not wait for each other share theirs. Then each operation runs by itself on the shares that those before it gave, so its rounds,
bytes, seconds and error are its own. `path` is what an operation adds to the rounds of the whole: it is 0 for one that runs while
others take longer, and the sum over all operations is the rounds of the whole.

An operation's error is the largest difference from what PyTorch gives for the same operands in double precision; the plan's, that
of its results from the plan in double precision, so it has what adds up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from grid.errors import GridError
from grid.plans.checks import resolve
from grid.smpc.dataflow import OPERATION_NUMBERS, Operation, computed, located
from grid.smpc.discrepancies import distance, in_torch
from grid.smpc.interpreter import Value
from grid.smpc.local import Network, fresh_keystreams, run_parties
from grid.smpc.numbers import Boolean
from grid.smpc.operations.values import Absent
from grid.smpc.packing import unpack
from grid.smpc.party import PARTIES, Operations, Party
from grid.smpc.programs import Prepared
from grid.smpc.rehearsal import in_the_clear
from grid.smpc.shares import Shared
from grid.tensors import fixed
from grid.tensors.ops import bind, lookup

Held = Sequence[Value] | Tensor | float | None
"""A value of the plan: what the three parties have of it, or public, or gone."""


class Measured(NamedTuple):
    """One operation. `rounds`, `bytes_sent` by each party on average, and `seconds` of computing at one party are those of the
    operation alone; `path` is its part of the rounds of the whole plan. `error` is not a number where PyTorch refuses the values.
    """

    step: int
    op: str
    line: str
    operands: str
    results: str
    rounds: int
    path: int
    bytes_sent: int
    seconds: float
    error: float


class Whole(NamedTuple):
    """A plan. `results` are None where shares have none. `differ` counts those of its truth values and whole numbers that are not
    PyTorch's."""

    operations: tuple[Measured, ...]
    results: tuple[Tensor | None, ...]
    rounds: int
    bytes_sent: int
    error: float
    differ: int


def measured(prepared: Prepared, inputs: Sequence[Tensor]) -> Whole:
    """Run a plan on `inputs`, of which those that it was prepared for as secret are put on shares here.

    Raises what an operation is refused by, and `ExecutionFailed` for an input that shares cannot hold.
    """
    given: list[Held] = [
        dealt(value, one.dtype) if one.secret else value.detach() for value, one in zip(inputs, prepared.inputs, strict=True)
    ]
    path, results, rounds, bytes_sent = _together(prepared, given)
    operations, exact = _alone(prepared, given, inputs, path)
    opened = [None if _is_absent(held) else decoded(held) for held in results]
    pairs = [(one, wanted) for one, wanted in zip(opened, exact, strict=True) if one is not None and wanted is not None]
    reals = [distance(found, wanted) for found, wanted in pairs if wanted.is_floating_point()]
    differ = sum(int(torch.ne(found, wanted).sum()) for found, wanted in pairs if not wanted.is_floating_point())
    values = [None if one is None else one.to(held[0].dtype) for one, held in zip(opened, results, strict=True)]
    return Whole(tuple(operations), tuple(values), rounds, bytes_sent, max(reals, default=0.0), differ)


def dealt(value: Tensor, dtype: torch.dtype) -> list[Value]:
    """A value on shares of three parties."""
    words = in_the_clear(value.detach(), dtype).shared.parts[0]
    first, second = np.random.default_rng().integers(0, 1 << 64, (2, *words.shape), np.uint64)
    parts = (first, second, words - first - second)
    return [Value(Shared(parts[rank], parts[(rank + 1) % PARTIES]), dtype) for rank in range(PARTIES)]


def decoded(held: Sequence[Value]) -> Tensor:
    """What the parties' shares hold: floats in double precision, whole numbers in 64 bits, however small their dtype is."""
    one = held[0]
    if isinstance(one.content, Boolean):
        first, second, third = (value.content.bits.parts[0] for value in held)  # type: ignore[union-attr]
        count = int(np.prod(one.shape, dtype=np.int64))
        return torch.from_numpy(unpack(first ^ second ^ third, count)[0].reshape(one.shape)).bool()
    first, second, third = (value.shared.parts[0] for value in held)
    wide = torch.float64 if one.dtype.is_floating_point else torch.int64
    made = fixed.decode(torch.from_numpy(np.asarray(first + second + third).view(np.int64)), one.bits, wide)
    return made.bool() if one.dtype == torch.bool else made


# ---------------------------------------------------------------- the whole


def _together(prepared: Prepared, given: Sequence[Held]) -> tuple[list[int], list[list[Value]], int, int]:
    """What each operation adds to the rounds, the results, the rounds, and bytes that a party sends on average."""
    from grid.smpc.replicated.protocol import Replicated  # loads a compiler, which a client needs for rehearsals only

    network = Network(recorded=False)
    ends: dict[int, int] = {}

    async def program(party: Party) -> list[Value]:
        def ended(place: int) -> None:
            ends[place] = network.rounds

        return await prepared.run(Replicated(party), [_at(one, party.rank) for one in given], ended=ended)

    outcome = run_parties(program, network=network, randomness=fresh_keystreams(checked=False))
    path = _path(prepared, [ends[place] for place in range(len(prepared.order.operations))])
    results = [list(held) for held in zip(*outcome.results, strict=True)]
    return path, results, outcome.rounds, _average(outcome.bytes_sent)


def _path(prepared: Prepared, ends: Sequence[int]) -> list[int]:
    """What each operation adds to the rounds: those from the last end that it waits for to its own, back from the last one."""
    operations, found = prepared.order.operations, [0] * len(ends)
    place = max(range(len(ends)), key=ends.__getitem__, default=None)
    while place is not None:
        stage = operations[place].stage
        waits = {*prepared.order.before[place], *(other for other, one in enumerate(operations[:place]) if one.stage < stage)}
        last = max(waits, key=ends.__getitem__, default=None)
        found[place] = ends[place] - (0 if last is None else ends[last])
        place = last
    return found


# ---------------------------------------------------------------- each alone


def _alone(
    prepared: Prepared, given: Sequence[Held], inputs: Sequence[Tensor], path: Sequence[int]
) -> tuple[list[Measured], list[Tensor | None]]:
    """Each operation, and the results of the plan in double precision, None where PyTorch refuses the values."""
    order = prepared.order
    held: list[Any] = list(order.known)
    exact: list[Any] = list(order.known)
    held[: len(given)], exact[: len(given)] = given, [one.detach() for one in inputs]
    last = {ref: place for place, operation in enumerate(order.operations) for ref in operation.reads}
    found = []
    for place, operation in enumerate(order.operations):
        outputs = operation.step.outputs
        try:
            made, row = _one(place, operation, held, exact, path[place])
        except GridError as error:
            raise located(error, operation.index, operation.step) from None
        found.append(row)
        wished: Sequence[Tensor | None] = _in_torch(operation, exact) or [None] * len(outputs)
        for output, value, wanted in zip(outputs, made, wished, strict=True):
            held[output], exact[output] = value, wanted
        for ref in operation.reads:
            if last[ref] == place and ref not in order.outputs:
                held[ref] = exact[ref] = None
    return found, [exact[output] for output in order.outputs]


def _one(
    place: int, operation: Operation, held: Sequence[Held], exact: Sequence[Any], path: int
) -> tuple[Sequence[Held], Measured]:
    """One operation on what is there; its results. `exact` has what shares do not."""
    step, call = operation.step, operation.call
    operands = [held[ref] for ref in operation.reads]
    began = time.perf_counter()
    if call is None:
        public: list[Any] = list(held)
        made: Sequence[Held] = computed(step, [resolve(arg, public) for arg in step.args], _resolved(step.kwargs, public))
        return made, _row(operation, operands, made, 0, path, 0, time.perf_counter() - began, 0.0)
    from grid.smpc.replicated.protocol import Replicated

    async def program(party: Party) -> Sequence[Value | None]:
        numbers = Operations(place * OPERATION_NUMBERS, (place + 1) * OPERATION_NUMBERS)  # so that roles are those of the whole
        return await call.on([_at(one, party.rank) for one in operands]).run(Replicated(party, numbers))

    outcome = run_parties(program, network=Network(recorded=False), randomness=fresh_keystreams(checked=False))
    seconds = (time.perf_counter() - began) / PARTIES
    made = [list(each) for each in zip(*outcome.results, strict=True)]
    rounds, bytes_sent = outcome.rounds, _average(outcome.bytes_sent)
    return made, _row(operation, operands, made, rounds, path, bytes_sent, seconds, _error(operation, held, exact, made))


def _error(operation: Operation, held: Sequence[Held], exact: Sequence[Any], made: Sequence[Held]) -> float:
    """How far the results on shares are from PyTorch's, for the same operands."""
    known: list[Any] = list(held)
    for ref in operation.reads:
        one = held[ref]
        if isinstance(one, list):
            known[ref] = exact[ref] if _is_absent(one) else decoded(one)
    wanted = _in_torch(operation, known)
    if wanted is None:
        return float("nan")
    step = operation.step
    bound = bind(lookup(step.op), [resolve(arg, known) for arg in step.args], _resolved(step.kwargs, known))
    pairs = [(at, one, two) for at, (one, two) in enumerate(zip(made, wanted, strict=True)) if isinstance(one, list)]
    return max((distance(decoded(one), two, bound, at) for at, one, two in pairs if not _is_absent(one)), default=0.0)


def _in_torch(operation: Operation, known: Sequence[Any]) -> Sequence[Tensor] | None:
    """PyTorch's results in double precision; None where an operand is missing or PyTorch refuses the values."""
    step = operation.step
    if any(known[ref] is None for ref in operation.reads):
        return None
    try:
        return in_torch(bind(lookup(step.op), [resolve(arg, known) for arg in step.args], _resolved(step.kwargs, known)))
    except Exception:  # of torch, about values
        return None


def _resolved(kwargs: Sequence[tuple[str, Any]], known: Sequence[Any]) -> dict[str, Any]:
    return {name: resolve(arg, known) for name, arg in kwargs}


def _is_absent(held: Sequence[Value]) -> bool:
    return isinstance(held[0].content, Absent)


def _at(one: Held, rank: int) -> Any:
    return one[rank] if isinstance(one, list) else one


def _average(sent: Sequence[int]) -> int:
    return -(-sum(sent) // PARTIES)


def _row(
    operation: Operation,
    operands: Sequence[Held],
    made: Sequence[Held],
    rounds: int,
    path: int,
    bytes_sent: int,
    seconds: float,
    error: float,
) -> Measured:
    step = operation.step
    shapes = ", ".join(map(_described, operands)), ", ".join(map(_described, made))
    return Measured(operation.index, step.op, step.line, *shapes, rounds, path, bytes_sent, seconds, error)


def _described(one: Held) -> str:
    """A geometry; public ones say so."""
    if isinstance(one, list):
        return f"{tuple(one[0].shape)}"
    return f"{tuple(one.shape)} public" if isinstance(one, Tensor) else ""
