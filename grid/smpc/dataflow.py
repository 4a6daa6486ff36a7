"""A prepared plan as it runs: each operation begins when its operands are there, so independent ones share their rounds.

Each operation has a range of operation numbers of its own, by its place in the program, whatever the order in which messages
come. Operations on public values alone are computed here; the parties get the same where their processors are of one kind (else
`reveal` finds that components differ). A value is dropped when its last use begins.

An operation that public facts make fail (a kernel that refuses an argument) fails what depends on it; all others go on to their
end, so that the parties stay in step. The first such error, in the program's order, is the run's. Anything else ends the run.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grid.errors import Detail, GridError, InvalidRequest
from grid.plans.checks import resolve
from grid.plans.interpret import local_apply
from grid.plans.lines import AT, at_line
from grid.plans.program import Step
from grid.smpc.interpreter import Call, Value
from grid.smpc.operations.arguments import as_number
from grid.smpc.protocol import Protocol
from grid.smpc.steps import Arrival, Task
from grid.tensors.bounds import OutOfBoundsError, examine
from grid.tensors.ops import bind, lookup

OPERATION_NUMBERS = 1 << 24
"""Of each operation."""

KEPT_FROM = 4096
"""Elements of a parameter from which its transpose is kept."""

At = Callable[[int], Protocol]
"""The protocol for the operation at this place, which begins now."""

Ended = Callable[[int], None]
"""Told when the operation at this place has ended."""


@dataclasses.dataclass(slots=True, eq=False)
class Operation:
    """A step that is run. `call` is None for one on public values. `reads` are value numbers, as often as it reads them.

    `keeps`: it transposes a parameter. A result for the same operand as in the last run is kept, dense, until the operand is
    gone; so kernels find that it is the same, too. `stage`: operations of the stages before are done before it begins.
    """

    index: int
    step: Step
    call: Call | None
    reads: tuple[int, ...]
    keeps: bool = False
    stage: int = 0
    _kept: tuple[weakref.ref[Any], Value | None] | None = None

    def known(self, operand: Value) -> Value | None:
        """The result that is kept for this operand."""
        kept = self._kept
        return None if kept is None or not operand.is_numeric or kept[0]() is not operand.shared.parts[0] else kept[1]

    def keep(self, operand: Value, result: Value) -> Value:
        """The result; kept where the operand was there in the last run."""
        if not operand.is_numeric or operand.shared.size < KEPT_FROM:
            return result
        part, kept = operand.shared.parts[0], self._kept
        if kept is None or kept[0]() is not part:
            self._kept = (weakref.ref(part, self._forget), None)
            return result
        dense = Value(result.shared.each(lambda one: np.array(one, order="C")), result.dtype)
        self._kept = (kept[0], dense)
        return dense

    def _forget(self, gone: object) -> None:
        if self._kept is not None and self._kept[0] is gone:
            self._kept = None


class Order:
    """Who waits for whom. Places are those in `operations`, which are in the program's order."""

    def __init__(self, operations: Sequence[Operation], outputs: Sequence[int], known: Sequence[Any]) -> None:
        self.operations = tuple(operations)
        self.outputs = tuple(outputs)
        self.known = tuple(known)
        """What every run begins with, by value number: sizes and public values that are always the same, None elsewhere."""
        maker = {output: place for place, one in enumerate(operations) for output in one.step.outputs}
        self.before = tuple(tuple({maker[ref] for ref in one.reads if ref in maker}) for one in operations)
        after: list[list[int]] = [[] for _ in operations]
        for place, earlier in enumerate(self.before):
            for one in earlier:
                after[one].append(place)
        self.after = tuple(map(tuple, after))
        self.stages: list[list[int]] = [[] for _ in range(1 + max((one.stage for one in operations), default=0))]
        for place, operation in enumerate(operations):
            self.stages[operation.stage].append(place)
        self.needs = tuple(len(before) + (operation.stage > 0) for before, operation in zip(self.before, operations, strict=True))
        self.uses = [0] * len(known)
        for operation in operations:
            for ref in set(operation.reads):
                self.uses[ref] += 1
        for output in outputs:
            self.uses[output] += 1  # for ever


async def run(
    order: Order, protocol: Protocol, inputs: Sequence[Value | Tensor], at: At | None = None, ended: Ended | None = None
) -> list[Value]:
    """The results of a prepared program. See the module."""
    if at is None:
        at = protocol.split(len(order.operations), OPERATION_NUMBERS).__getitem__
    flow = _Flow(order, inputs, at, ended)
    del inputs
    try:
        flow.advance()
        await flow.done
        return flow.results(protocol)
    finally:
        flow.end()


class _Flow:
    """One run."""

    def __init__(self, order: Order, inputs: Sequence[Value | Tensor], at: At, ended: Ended | None) -> None:
        self.done: Arrival[None] = Arrival()
        self._order, self._at, self._told = order, at, ended
        self._env = list(order.known)
        self._env[: len(inputs)] = inputs
        self._uses = list(order.uses)
        for number in range(len(inputs)):
            if not self._uses[number]:
                self._env[number] = None
        self._needs = list(order.needs)
        self._left = [len(stage) for stage in order.stages]
        self._stage = 0
        self._ready = deque(place for place, needs in enumerate(self._needs) if not needs)
        self._tasks: dict[int, Task[list[Value]]] = {}
        self._advancing = False
        self._missing = len(order.operations)

    def advance(self) -> None:
        """Begin what can begin."""
        if self._advancing:  # further up this very stack, which goes on with what is ready now
            return
        self._advancing = True
        while self._ready and not self.done.done:
            self._begin(self._ready.popleft())
        self._advancing = False
        if not self._missing:
            self.done.set(None)

    def end(self) -> None:
        """Go no further."""
        for task in self._tasks.values():
            task.end()
        self._tasks.clear()
        self._ready.clear()

    def results(self, protocol: Protocol) -> list[Value]:
        """What the program gives, or the first error of an operation."""
        errors = [one for one in self._env if isinstance(one, GridError)]
        if errors:
            raise min(errors, key=lambda error: error.details["step"])
        found = [self._env[output] for output in self._order.outputs]
        return [one if isinstance(one, Value) else _public(protocol, one) for one in found]

    # ------------------------------------------------------------ one operation

    def _begin(self, place: int) -> None:
        operation = self._order.operations[place]
        operands = self._taken(operation)
        failed = next((one for one in operands if isinstance(one, GridError)), None)
        if failed is not None:
            self._finished(place, failed)
        elif operation.call is None:
            try:
                self._finished(place, computed(operation.step, *self._arguments(operation.step, operands, operation.reads)))
            except InvalidRequest as error:
                self._finished(place, error)
        elif operation.keeps and (known := operation.known(operands[0])) is not None:
            self._finished(place, [known])
        else:
            self._start(place, operation, operands)

    def _taken(self, operation: Operation) -> list[Any]:
        """The operands, which are dropped here where nobody else needs them."""
        operands = [self._env[ref] for ref in operation.reads]
        for ref in set(operation.reads):
            self._uses[ref] -= 1
            if not self._uses[ref] and not isinstance(self._env[ref], GridError):
                self._env[ref] = None
        return operands

    def _arguments(self, step: Step, operands: Sequence[Any], reads: Sequence[int]) -> tuple[list[Any], dict[str, Any]]:
        values = dict(zip(reads, operands, strict=True))
        for ref in step.refs():
            values.setdefault(ref, self._env[ref])  # sizes
        return [resolve(arg, values) for arg in step.args], {name: resolve(arg, values) for name, arg in step.kwargs}

    def _start(self, place: int, operation: Operation, operands: list[Any]) -> None:
        assert operation.call is not None
        kept = operands[0] if operation.keeps else None
        try:
            call = operation.call.on(operands)
        except InvalidRequest as error:
            self._finished(place, error)
            return
        task = Task(call.run(self._at(place)))
        del operands, call
        if task.outcome.done:
            self._ended(place, task, kept)
        else:
            self._tasks[place] = task
            task.outcome.tell(functools.partial(self._ended_later, place))

    def _ended_later(self, place: int) -> None:
        self._ended(place, self._tasks.pop(place), None)
        self.advance()

    def _ended(self, place: int, task: Task[list[Value]], operand: Value | None) -> None:
        error = task.outcome.error
        if error is None:
            results = task.outcome.result()
            if operand is not None:
                results = [self._order.operations[place].keep(operand, results[0]), *results[1:]]
            self._finished(place, results)
        elif isinstance(error, InvalidRequest):
            self._finished(place, error)
        else:
            self.done.fail(error)

    def _finished(self, place: int, outcome: Sequence[Value | Tensor] | GridError) -> None:
        order = self._order
        operation = order.operations[place]
        if isinstance(outcome, GridError):
            error = outcome if "step" in outcome.details else located(outcome, operation.index, operation.step)
            outcome = [error] * len(operation.step.outputs)  # type: ignore[list-item]
        for output, value in zip(operation.step.outputs, outcome, strict=True):
            if self._uses[output] or isinstance(value, GridError):
                self._env[output] = value
        self._missing -= 1
        if self._told is not None:
            self._told(place)
        for waiting in order.after[place]:
            self._met(waiting)
        self._left[operation.stage] -= 1
        while not self._left[self._stage] and self._stage + 1 < len(self._left):
            self._stage += 1
            for waiting in order.stages[self._stage]:
                self._met(waiting)

    def _met(self, place: int) -> None:
        """One thing that an operation waits for is there."""
        self._needs[place] -= 1
        if not self._needs[place]:
            self._ready.append(place)


def _public(protocol: Protocol, value: Tensor) -> Value:
    return Value.of(as_number(protocol, value), value.dtype)


def computed(step: Step, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The results of a step on public values. Raises `InvalidRequest`."""
    op = lookup(step.op)
    try:
        examine(bind(op, args, kwargs))
        with torch.no_grad():
            return local_apply(op, args, kwargs, step.op)
    except OutOfBoundsError as error:
        raise InvalidRequest(str(error)) from None
    except GridError:
        raise
    except Exception as error:  # of torch, about values that are public
        raise InvalidRequest(str(error).strip()[:200]) from None


def located(error: GridError, index: int, step: Step) -> GridError:
    """An error of the same class that tells step, operation and, where it is known, the user's line."""
    line = "" if AT in error.message else at_line(step.line)
    details: dict[str, Detail] = {"step": index, "op": step.op}
    return type(error)(f"step {index} ({step.op}): {error.message}{line}", **(error.details | details))
