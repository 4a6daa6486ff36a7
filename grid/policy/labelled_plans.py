"""A plan under labels, again and again: the first call judges every step, later ones that look the same only run.

What the labels of a plan's results are follows from the labels, dtypes and strides of its inputs, step by step and by the
same rules, whatever the values are. So it is worked out once, by running the steps one by one under `Labels`, and kept; a
later call with the same inputs' labels runs generated code and gives its results the labels that were worked out. It is not
kept, and each such call goes step by step, where

* a rule read the values of a public index (`Call.volatile`): index, index_select, gather, scatter and their like on rows;
* an operation failed, or an input comes of a failure: what is made of a failure is marked, value by value;
* the plan holds dropout, whose masks are counted and drawn in secret, or an operation whose failure shows in a later step.

Generated code still checks what a kernel would take on trust (`bounds.examine`): indices of index, gather, scatter and
embedding, classes of nll_loss, pivots, chances, and divisions of whole numbers. Where anything is raised, its results are
dropped and the call is made step by step, from the beginning: plans write nothing. After that, calls that look the same stay so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from grid.plans import interpret
from grid.plans.program import SYM_OPS, Program
from grid.policy.labels import Labels
from grid.tensors import bounds
from grid.tensors.ops import Op, bind, lookup
from grid.tensors.rows import Type

MAX_KNOWN = 1024
"""Kinds of calls of one plan whose results' labels are kept."""


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
        self._known: dict[tuple[Any, ...], Sequence[Type] | None] = {}
        self._predictable = all(step.op in SYM_OPS or predictable(lookup(step.op), len(step.outputs)) for step in program.steps)
        labels.space.on_pressure.append(self._known.clear)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results, labelled. Raises what `interpret.run` raises."""
        key = self._labels.look(inputs) if self._predictable else None
        if key is None:
            return self._step_by_step(inputs)
        types = self._known.get(key)
        if types is None:
            return self._judged(inputs, key)
        results = self._run(inputs)
        if results is None or not self._labels.adopt(results, types):
            self._known[key] = None
            return self._step_by_step(inputs)
        return results

    def _judged(self, inputs: Sequence[Tensor], key: tuple[Any, ...]) -> list[Tensor]:
        """Run step by step, and keep the types of the results where they follow from what the inputs look like."""
        before = self._labels.surprises
        results = self._step_by_step(inputs)
        if key not in self._known and self._labels.surprises == before:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = [self._labels.type_of(result) for result in results]
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
