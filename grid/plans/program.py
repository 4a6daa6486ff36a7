"""What a plan consists of, as frozen data. Everything else in this package works on these classes.

Values are numbered: inputs first, then constants, then what steps give, in order and without gaps. Each number is given
once. A value is a tensor, or an integer or float that some `sym.` step computed from sizes (the batch, mostly).

Dimensions that may differ from call to call are named n0, n1, ... in order of appearance; dimensions with one name must be
equal in a call. `ranges` bound each name where the program is right for some sizes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from grid.plans.trees import Tree
from grid.wire.messages import Arg, Ref

SYM_OPS = (
    *("sym.size", "sym.add", "sym.sub", "sym.mul", "sym.floordiv", "sym.mod"),
    *("sym.max", "sym.min", "sym.float", "sym.truediv"),
)
"""Operations on sizes. They see no tensor's contents, so they need neither label nor gate."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What one input must be: element type by its short name, and sizes: an integer, or the name of a free dimension."""

    dtype: str
    sizes: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Sizes for which a free dimension's program is right: `least` and above, up to `most` where it has a limit."""

    least: int = 0
    most: int | None = None

    def __contains__(self, size: int) -> bool:
        return self.least <= size and (self.most is None or size <= self.most)


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that is part of the program: dtype by its short name, little-endian row-major bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation. `outputs` are new value numbers; `frees` are values that nothing after this step needs.

    `op` is a name of the op table, or one of `SYM_OPS`. `kwargs` are sorted by name. Arguments hold `Ref(number)` for values.
    `line` is the user's, where this process traced the function; it is for messages, and no part of the plan.
    """

    op: str
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    outputs: tuple[int, ...]
    frees: tuple[int, ...] = ()
    line: str = field(default="", compare=False, repr=False)

    def refs(self) -> Iterator[int]:
        """The values that the step reads, as often as it does."""
        yield from refs_in(self.args)
        for _, value in self.kwargs:
            yield from refs_in(value)


def refs_in(arg: Any) -> Iterator[int]:
    """The values that one argument tree names."""
    if type(arg) is Ref:
        yield int(arg)
    elif isinstance(arg, (list, tuple)):
        for item in arg:
            yield from refs_in(item)


@dataclass(frozen=True)
class Program:
    """A whole plan's data. `takes` is the structure of the arguments (a tuple of them), `gives` that of the result."""

    name: str
    parameters: tuple[str, ...]
    takes: Tree
    inputs: tuple[InputSpec, ...]
    ranges: tuple[Range, ...]
    constants: tuple[Constant, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    gives: Tree

    @property
    def first_step_value(self) -> int:
        """The number of the first value that a step gives."""
        return len(self.inputs) + len(self.constants)


def with_frees(steps: tuple[Step, ...], outputs: tuple[int, ...], constants: range) -> tuple[Step, ...]:
    """The same steps with `frees` filled in: each value dies after its last use, results and constants never.

    A value that nothing uses dies in the step that made it. An input dies too: the caller's own reference keeps it.
    """
    seen: set[int] = set(outputs) | set(constants)
    done: list[Step] = []
    for step in reversed(steps):
        frees = tuple(sorted({value for value in (*step.refs(), *step.outputs) if value not in seen}))
        seen.update(frees)
        done.append(replace(step, frees=frees))
    return tuple(reversed(done))
