"""Random programs over labelled tensors, and their replay on other rows: the material of `test_soundness.py`.

All datasets have 6 rows, and 6 is also a number of columns, classes and client values, so that shapes never tell a row axis
from any other. Values are float64. A program is a list of steps that name values by number; running it under `Labels`
makes types, replaying it makes the values that other rows would have given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from grid.errors import ExecutionFailed, InvalidRequest
from grid.policy.labels import Labels
from grid.tensors import bounds
from grid.tensors.ops import bind, flatten, lookup
from grid.tensors.rows import Type
from grid.tensors.rules import ROW_RULES, Rule

N = 6
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "d": [(N, N), (N,), (N, 2, 3), (N, 2, 4, 4)],
    "e": [(N, N), (N,)],
}


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the program, by number, as an argument."""

    number: int


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation. `targets` are the values that it wrote, `outputs` those that it made; `failed`: it raised half-way."""

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int, ...]
    targets: tuple[int, ...]
    failed: bool = False


def rows(seed: int) -> dict[str, list[Tensor]]:
    """The datasets' tensors: multiples of 1/8, and whole numbers below 6 in the last one of each."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shapes in SHAPES.items():
        found[name] = [torch.randint(-16, 17, shape, generator=generator).double() / 8 for shape in shapes]
        found[name].append(torch.randint(0, N, (N,), generator=generator))
    return found


def own(seed: int) -> list[Tensor]:
    """The client's tensors, some whole numbers to index with."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    shapes = [(N, N), (N,), (), (N, 3), (3, 2, 3, 3), (1, N)]
    made = [torch.randint(-16, 17, shape, generator=generator).double() / 8 for shape in shapes]
    made += [torch.randint(0, N, (N,), generator=generator), torch.randperm(N, generator=generator), torch.tensor([0, 2, 5])]
    return [*made, torch.tensor([4, 1]), torch.tensor([3, 3, 0]), torch.tensor([0, 99])]


class Program:
    """A program that grows under `Labels`, step by step. `log` has each value and its type after each step that changed it.

    `surprises`: the steps that a verdict is not kept of, by number.
    """

    def __init__(self, seed: int, rules: Mapping[str, Rule] = ROW_RULES) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.reached: Counter[str] = Counter()
        self.shown: Counter[str] = Counter()
        self.labels = Labels(strict=True, rules={name: self._counted(name, rule) for name, rule in rules.items()})
        self.steps: list[Step] = []
        self.surprises: set[int] = set()
        self.values: list[Tensor] = []
        self.log: list[tuple[int, Tensor, Type]] = []
        for name, tensors in rows(seed).items():
            for tensor in tensors:
                kind = self.labels.dataset_type(name, N, tensor.shape)
                self.values.append(self.labels.enter(tensor, kind))
        for tensor in own(seed):
            self.values.append(self.labels.enter(tensor))
        given = len(self.values)
        self.distinct, self.repeated, self.outside = Value(given - 4), Value(given - 2), Value(given - 1)
        self.vector, self.classes = Value(given - 11), [Value(4), Value(4), Value(7), Value(given - 6)]

    def _counted(self, name: str, rule: Rule) -> Rule:
        def counted(call: Any) -> Any:
            if any(form.rows for form in call.inputs):
                self.reached[name] += 1
            made = rule(call)
            if any(form.labelled for form in made):
                self.shown[name] += 1
            return made

        return counted

    def try_step(self, op: str, *args: Any, **kwargs: Any) -> None:
        """Run one operation, if its arguments fit. Arguments are values by number (`Value`) or constants."""
        entry = lookup(op)
        real_args = [self._real(arg) for arg in args]
        real_kwargs = {name: self._real(arg) for name, arg in kwargs.items()}
        failed, made, surprises = False, [], self.labels.surprises
        try:
            bound = bind(entry, real_args, real_kwargs)
            bounds.measure(bound)
            bounds.examine(bound)
            made = self.labels.run(entry, real_args, real_kwargs, where=f"step {len(self.steps)}")
        except (InvalidRequest, bounds.OutOfBoundsError):
            return
        except ExecutionFailed:
            failed = True
        targets = self._targets(entry.mutates, bound)
        if any(self.labels.spoilt(value) for value in (*made, *[self.values[number] for number in targets])):
            failed, made = True, []
        outputs = tuple(range(len(self.values), len(self.values) + len(made)))
        self.values += made
        if self.labels.surprises != surprises:
            self.surprises.add(len(self.steps))
        self.steps.append(Step(op, args, kwargs, outputs, targets, failed))
        for number in (*outputs, *targets):
            self.log.append((number, self.values[number].clone(), self.labels.type_of(self.values[number])))

    def _targets(self, names: tuple[str, ...], bound: Any) -> tuple[int, ...]:
        tensors: list[Tensor] = []
        for name in names:
            value = bound[name]
            tensors += [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, Tensor)]
        return tuple(number for number, value in enumerate(self.values) if any(value is tensor for tensor in tensors))

    def _real(self, arg: Any) -> Any:
        return resolve(arg, self.values)

    # ------------------------------------------------------------ choosing

    def pick(self, fits: Callable[[Tensor], bool] = lambda _: True) -> Value:
        """A value that fits: recent ones, and those with rows and not mixed, more often than others."""
        for _ in range(12):
            low = 0 if self.random.random() < 0.5 else max(0, len(self.values) - 8)
            number = self.random.randrange(low, len(self.values))
            kind = self.labels.type_of(self.values[number])
            skipped = 0.9 if kind.mixed is not None else 0.0 if kind.form.rows else 0.6
            if self.random.random() < skipped:
                continue
            if fits(self.values[number]):
                return Value(number)
        fitting = [number for number, value in enumerate(self.values) if fits(value)]
        return Value(self.random.choice(fitting or [0]))

    def shape(self, value: Value) -> tuple[int, ...]:
        return tuple(self.values[value.number].shape)

    def dim(self, value: Value) -> int:
        rank = len(self.shape(value))
        return self.random.randrange(-rank, rank) if rank else 0


def resolve(arg: Any, values: list[Tensor]) -> Any:
    """The argument with values in the place of their numbers."""
    if isinstance(arg, Value):
        return values[arg.number]
    return [resolve(item, values) for item in arg] if isinstance(arg, (list, tuple)) else arg


def replay(program: Program, data: dict[str, list[Tensor]]) -> tuple[list[tuple[int, Tensor]], list[Tensor]] | None:
    """The log's values and the final values on other rows, without labels; None where an operation fails on them alone."""
    values = [tensor.clone() for name in SHAPES for tensor in data[name]] + own(program.seed)
    log: list[tuple[int, Tensor]] = []
    for step in program.steps:
        kwargs = {name: resolve(arg, values) for name, arg in step.kwargs.items()}
        bound = bind(lookup(step.op), [resolve(arg, values) for arg in step.args], kwargs)
        if step.failed:
            with contextlib.suppress(Exception):
                bound.run()
        else:
            try:
                made = flatten(bound.run())
            except Exception:
                return None
            if step.outputs:
                values += [tensor.zero_() for tensor in made] if bound.op.unfilled else made
        log += [(number, values[number].clone()) for number in (*step.outputs, *step.targets)]
    return log, values
