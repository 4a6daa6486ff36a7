"""A plan under labels, again and again: the first call judges every step, later ones that look the same only run.

What the labels of a plan's results are follows from the labels, dtypes and strides of its inputs, step by step and by the
same rules, whatever the values are. So it is worked out once, by running the steps one by one under `Labels`, and kept; a
later call with the same inputs' labels runs generated code and gives its results the labels that were worked out. Which
way a call goes must not depend on rows, or its time would tell of them. So a kind of call always goes step by step where

* a rule read the values of a public index (`Call.volatile`): index, index_select, gather, scatter and their like on rows;
* an operation may fail by the values of rows (`Op.private_error`), whether or not it does: an index, class, divisor or chance
  that was made of rows, or linear algebra on matrices made of them;
* the plan holds dropout, whose masks are counted and drawn in secret, or an operation whose failure shows in a later step.

An input that comes of a failure changes nothing about that: its zeros go through the same code, and its failure is
handed on to those results that would have taken it over step by step (`Heirs`).

What may still fail in generated code are the client's own values. It checks what a kernel would take on trust
(`bounds.examine`), and where anything is raised, its results are dropped and the call is made step by step, from the
beginning: plans write nothing. That changes nothing for later calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from grid.plans import interpret
from grid.plans.program import SYM_OPS, Program
from grid.policy.labels import Labels
from grid.tensors import bounds
from grid.tensors.ops import Op, bind, lookup
from grid.tensors.rows import Type

MAX_KNOWN = 1024
"""Kinds of calls of one plan whose results' labels are kept."""


class Kept(NamedTuple):
    """What is known of a kind of call: the types of its results, and `Labels.inherit`'s `heirs`."""

    types: Sequence[Type]
    heirs: Sequence[Sequence[int]]


class LabelledPlan:
    """A validated program in one client's memory. `apply` is the meaning of an operation step by step, which is that of
    `labels`; `between` is called every few steps of generated code and may raise."""

    def __init__(self, labels: Labels, program: Program, apply: interpret.Apply, between: Callable[[], None]) -> None:
        self._labels = labels
        self._program = program
        self._apply = apply
        self._between = between
        self._constants = [labels.enter(constant) for constant in interpret.constants_of(program)]
        self._compiled: interpret.Compiled | None = None
        self._known: dict[tuple[Any, ...], Kept | None] = {}
        self._predictable = all(step.op in SYM_OPS or predictable(lookup(step.op), len(step.outputs)) for step in program.steps)
        labels.space.on_pressure.append(self._known.clear)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results, labelled. Raises what `interpret.run` raises."""
        key = self._labels.look(inputs) if self._predictable else None
        if key is None:
            return self._step_by_step(inputs)
        if key not in self._known:
            return self._judged(inputs, key)
        kept = self._known[key]
        results = None if kept is None else self._run(inputs)
        if kept is None or results is None or not self._labels.adopt(results, kept.types):
            return self._step_by_step(inputs)
        self._labels.inherit(results, inputs, kept.heirs)
        return results

    def _judged(self, inputs: Sequence[Tensor], key: tuple[Any, ...]) -> list[Tensor]:
        """Run step by step, and keep what it makes of inputs that look like these; None where it can't be relied on."""
        before = self._labels.surprises
        heirs = Heirs(self._labels, self._apply, inputs)
        results = interpret.run(self._program, inputs, heirs.apply, self._constants)
        kept = None
        if self._labels.surprises == before:
            kept = Kept([self._labels.type_of(result) for result in results], [heirs.of(result) for result in results])
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[key] = kept
        return results

    def _step_by_step(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return interpret.run(self._program, inputs, self._apply, self._constants)

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """The results by generated code, without labels; None where anything was raised."""
        if self._compiled is None:
            self._compiled = interpret.Compiled(self._program, self._constants, prepare=_examined, between=self._between)
        try:
            return self._compiled.plainly(inputs)
        except Exception:  # whatever it is, it is raised again or taken care of step by step
            return None


class Heirs:
    """Follows through one run which inputs' failures each value would take over: those of its operands with labels, in order.

    Values are known by id: whatever comes to be at the address of one that died is the result of a later operation.
    """

    def __init__(self, labels: Labels, apply: interpret.Apply, inputs: Sequence[Tensor]) -> None:
        self._labels = labels
        self._apply = apply
        self._behind: dict[int, Sequence[int]] = {}
        for at, tensor in enumerate(inputs):
            self._behind.setdefault(id(tensor), (at,) if labels.type_of(tensor).form.labelled else ())

    def apply(self, op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[Tensor]:
        """One step, with its results noted."""
        behind = tuple(dict.fromkeys(at for tensor in bind(op, args, kwargs).tensors() for at in self.of(tensor)))
        results = self._apply(op, args, kwargs, where)
        for result in results:
            self._behind[id(result)] = behind if self._labels.type_of(result).form.labelled else ()
        return results

    def of(self, tensor: Tensor) -> Sequence[int]:
        """The positions of inputs, the one whose failure goes first in front. A constant takes nothing over."""
        return self._behind.get(id(tensor), ())


def predictable(op: Op, outputs: int) -> bool:
    """Whether generated code may stand for an operation at all."""
    return op.rule != "dropout" and outputs > 0 and not (op.rule == "row_free" and outputs > 1)


def _examined(op: Op, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` with the check of its values before it."""
    if not bounds.examines(op):
        return call

    def checked(*args: Any, **kwargs: Any) -> Any:
        bounds.examine(bind(op, args, kwargs))
        return call(*args, **kwargs)

    return checked
