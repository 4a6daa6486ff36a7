"""Random programs as plans, and one client's labels with such a plan in them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from programs import N, Program, Value, own, rows
from templates import TEMPLATES
from torch import Tensor

from grid.errors import ExecutionFailed, GridError
from grid.plans import checks, interpret
from grid.plans.program import InputSpec, Step, with_frees
from grid.plans.program import Program as Plan
from grid.plans.trees import flatten
from grid.policy.labelled_plans import LabelledPlan, predictable
from grid.policy.labels import Labels
from grid.tensors.buffers import short_dtype
from grid.tensors.ops import Op, lookup
from grid.wire.messages import Ref

STEPS = 20


class Counted(LabelledPlan):
    """Counts the calls that generated code answered, and those that it gave up."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.counts: Counter[str] = Counter()

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        results = super()._run(inputs)
        self.counts["given up" if results is None else "fast"] += 1
        return results


class Rig:
    """One client's labels, and a plan in them."""

    def __init__(self, plan: Plan) -> None:
        self.labels = Labels(random_bytes=bytes)
        self.plan = plan
        self._made: dict[tuple[int, int], list[Tensor]] = {}
        self.labelled = Counted(self.labels, plan, self.apply, lambda: None)

    def apply(self, op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[Tensor]:
        return self.labels.run(op, args, kwargs, where)

    def inputs(self, data: dict[str, list[Tensor]], seed: int) -> list[Tensor]:
        """The datasets' tensors and the client's, entered anew."""
        found = []
        for name, tensors in data.items():
            for tensor in tensors:
                found.append(self.labels.enter(tensor.clone(), self.labels.dataset_type(name, N, tensor.shape)))
        return found + [self.labels.enter(tensor) for tensor in own(seed)]

    def again(self, copy: int, values: Sequence[Tensor], seed: int, kind: int) -> list[Tensor]:
        """`varied` inputs, made once for each copy and kind, with other values in them."""
        inputs = self._made.get((copy, kind))
        if inputs is None:
            inputs = self._made[copy, kind] = self.varied(rows(seed), seed, kind)
        for tensor, value in zip(inputs, values, strict=True):
            tensor.copy_(value)
        return inputs

    def varied(self, data: dict[str, list[Tensor]], seed: int, kind: int) -> list[Tensor]:
        """Inputs of those values and shapes, some of them labelled or lying in memory otherwise; which ones, `kind` decides.

        Kinds 2 n and 2 n + 1 differ in nothing but which rows the inputs hold and which steps they tell of.
        """
        chance, details, inputs = random.Random(seed * 100 + kind // 2), random.Random(kind), self.inputs(data, seed)
        ways = [self._plain, self._blocks, self._selected, self._written, self._mixed, self._view, self._failed]
        for at, tensor in enumerate(inputs):
            if chance.random() < 0.6:
                inputs[at] = chance.choice(ways)(tensor, details)
        alike = [at for at, tensor in enumerate(inputs) if tensor.shape == (N, N) and tensor.dtype == torch.float64]
        one, other = chance.sample(alike, 2)
        if chance.random() < 0.5:
            inputs[one] = inputs[other]  # one object twice
        elif chance.random() < 0.5:
            (inputs[one],) = self.labels.run(lookup("aten.alias.default"), [inputs[other]], {}, "before")
        return inputs

    def _plain(self, tensor: Tensor, chance: random.Random) -> Tensor:
        return self.labels.enter(tensor.clone())

    def _blocks(self, tensor: Tensor, chance: random.Random) -> Tensor:
        if tensor.shape[:1] != (N,):
            return tensor
        rows = np.array(chance.sample(range(2 * N), N))
        return self.labels.enter(tensor.clone(), self.labels.dataset_type("f", 2 * N, tensor.shape, rows))

    def _selected(self, tensor: Tensor, chance: random.Random) -> Tensor:
        if tensor.shape[:1] != (N,):
            return tensor
        positions = self.labels.enter(torch.tensor(chance.sample(range(N), N)))
        return self.labels.run(lookup("aten.index_select.default"), [tensor, 0, positions], {}, "before")[0]

    def _written(self, tensor: Tensor, chance: random.Random) -> Tensor:
        (fresh,) = self.labels.run(lookup("aten.zeros_like.default"), [tensor], {}, f"before {chance.randrange(2)}")
        self.labels.run(lookup("aten.copy_.default"), [fresh, tensor], {}, "before")
        return fresh

    def _mixed(self, tensor: Tensor, chance: random.Random) -> Tensor:
        if not tensor.dim():
            return tensor
        return self.labels.run(lookup("aten.sort.default"), [tensor, 0], {}, f"before {chance.randrange(2)}")[0]

    def _failed(self, tensor: Tensor, chance: random.Random) -> Tensor:
        """What came of one of two failures."""
        failure = ExecutionFailed(f"failure {chance.randrange(2)}", private=True)
        self.labels._memory.spoil([tensor], failure)
        return tensor

    def _view(self, tensor: Tensor, chance: random.Random) -> Tensor:
        if not tensor.dim():
            return tensor
        (whole,) = self.labels.run(lookup("aten.cat.default"), [[tensor, tensor]], {}, "before")
        return self.labels.run(lookup("aten.slice.Tensor"), [whole, 0, 0, tensor.shape[0]], {}, "before")[0]

    def step_by_step(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return interpret.run(self.plan, inputs, self.apply)

    def outcome(self, run: Any, inputs: Sequence[Tensor]) -> Any:
        """Everything that anybody could see of a run."""
        try:
            results = run(inputs)
        except GridError as error:
            return type(error), error.message, error.details
        kinds = [self.labels.type_of(result) for result in results]
        shared = [
            [one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in (*results, *inputs)]
            for one in results
        ]
        spoilt = [self.labels.spoilt(result) for result in results]
        failures = [None if failure is None else (failure.message, failure.details) for failure in spoilt]
        return results, [kind.form for kind in kinds], [kind.story for kind in kinds], failures, shared


def as_plan(program: Program) -> Plan:
    """Those steps of a random program that a plan may hold; in most plans, those of which verdicts are kept.

    Its results are all that they make, and two inputs.
    """
    given = [tensor for tensors in rows(program.seed).values() for tensor in tensors] + own(program.seed)
    numbers = {number: number for number in range(len(given))}
    steps: list[Step] = []
    following = len(given)

    def written(arg: Any) -> Any:
        if isinstance(arg, Value):
            return Ref(numbers[arg.number])
        return tuple(written(item) for item in arg) if isinstance(arg, (list, tuple)) else arg

    kept = program.random.random() < 0.8
    for at, step in enumerate(program.steps):
        op = lookup(step.op)
        if not step.outputs or step.targets or not op.plannable:
            continue
        if kept and (at in program.surprises or not predictable(op, len(step.outputs))):
            continue
        try:
            args, kwargs = tuple(map(written, step.args)), tuple(sorted((k, written(v)) for k, v in step.kwargs.items()))
        except KeyError:  # it uses what a plan cannot hold
            continue
        outputs = tuple(range(following, following + len(step.outputs)))
        following += len(outputs)
        numbers.update(zip(step.outputs, outputs, strict=True))
        steps.append(Step(step.op, args, kwargs, outputs))
    outputs = (*range(len(given), following), 0, len(given) - 1)
    _, takes = flatten((tuple(given),), lambda value: isinstance(value, Tensor))
    _, gives = flatten(tuple(torch.empty(0) for _ in outputs), lambda value: isinstance(value, Tensor))
    inputs = tuple(InputSpec(short_dtype(tensor.dtype), tuple(tensor.shape)) for tensor in given)
    plan = Plan("random", ("x",), takes, inputs, (), (), with_frees(tuple(steps), outputs, range(0)), outputs, gives)
    checks.validate(plan)
    return plan


def grown(seed: int) -> Program:
    program = Program(seed)
    templates, weights = zip(*TEMPLATES, strict=True)
    for _ in range(STEPS):
        program.random.choices(templates, weights)[0](program)
    return program
