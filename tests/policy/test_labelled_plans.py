"""Plans by generated code against the same plans step by step: equal values, labels, stories, failures and refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from programs import N, Program, Value, own, rows
from templates import TEMPLATES
from torch import Tensor

from grid.errors import GridError, PlanRejected
from grid.plans import checks, interpret
from grid.plans.program import InputSpec, Step, with_frees
from grid.plans.program import Program as Plan
from grid.plans.trees import flatten
from grid.policy.labelled_plans import LabelledPlan
from grid.policy.labels import Labels
from grid.tensors.buffers import short_dtype
from grid.tensors.ops import Op, lookup
from grid.wire.messages import Ref

SEEDS = 16
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


def same(one: Any, other: Any) -> bool:
    if not isinstance(one[0], list) or not isinstance(other[0], list):
        return bool(one == other)
    equal = all(torch.equal(a, b) or torch.equal(a.isnan(), b.isnan()) for a, b in zip(one[0], other[0], strict=True))
    return equal and all(a is b for a, b in zip(one[1], other[1], strict=True)) and one[2:] == other[2:]


def as_plan(program: Program) -> Plan:
    """Those steps of a random program that a plan may hold. Its results are all that they make, and two inputs."""
    given = [tensor for tensors in rows(program.seed).values() for tensor in tensors] + own(program.seed)
    numbers = {number: number for number in range(len(given))}
    steps: list[Step] = []
    following = len(given)

    def written(arg: Any) -> Any:
        if isinstance(arg, Value):
            return Ref(numbers[arg.number])
        return tuple(written(item) for item in arg) if isinstance(arg, (list, tuple)) else arg

    for step in program.steps:
        if not step.outputs or step.targets or not lookup(step.op).plannable:
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


def test_random_plans_are_the_same_by_generated_code_as_step_by_step() -> None:
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        try:
            plan = as_plan(grown(seed))
        except PlanRejected:
            continue
        rig = Rig(plan)
        for data_seed in (seed, seed, seed + 1000, seed + 2000):
            data = rows(data_seed)
            expected = rig.outcome(rig.step_by_step, rig.inputs(data, seed))
            found = rig.outcome(rig.labelled.run, rig.inputs(data, seed))
            assert same(expected, found), f"seed {seed}, rows {data_seed}"
        counts += rig.labelled.counts
        counts["plans"] += 1
    assert counts["plans"] > SEEDS // 2 and counts["fast"] > SEEDS // 2  # or this would have compared little


def one_step(op: str, args: tuple[Any, ...], inputs: Sequence[Tensor], **kwargs: Any) -> Plan:
    _, takes = flatten((tuple(inputs),), lambda value: isinstance(value, Tensor))
    _, gives = flatten((inputs[0],), lambda value: isinstance(value, Tensor))
    specs = tuple(InputSpec(short_dtype(tensor.dtype), tuple(tensor.shape)) for tensor in inputs)
    step = Step(op, args, tuple(sorted(kwargs.items())), (len(inputs),))
    plan = Plan("one", ("x",), takes, specs, (), (), (step,), (len(inputs),), gives)
    checks.validate(plan)
    return plan


def private(rig: Rig, tensor: Tensor) -> Tensor:
    return rig.labels.enter(tensor, rig.labels.dataset_type("d", tensor.shape[0], tensor.shape))


VALUE_CHECKS = {
    "gather": ("aten.gather.default", lambda bad: [torch.randn(6, 3), torch.tensor([[0, 1]] * 5 + [[2, 9 if bad else 1]])], (1,)),
    "embedding": ("aten.embedding.default", lambda bad: [torch.randn(4, 3), torch.tensor([0, 1, 2, 3, 1, 4 if bad else 0])], ()),
    "classes": (
        "aten.nll_loss_forward.default",
        lambda bad: [torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 5 if bad else 2])],
        (None, 1, -100),
    ),
}


@pytest.mark.parametrize("name", VALUE_CHECKS)
def test_values_that_a_kernel_trusts_are_checked_in_every_call(name: str) -> None:
    op, make, more = VALUE_CHECKS[name]
    refs: tuple[Any, ...] = (Ref(0), Ref(1))
    if name == "gather":
        refs = (Ref(0), *more, Ref(1))
    else:
        refs = (*refs, *more)
    if name == "classes":
        values = make(False)
        _, takes = flatten((tuple(values),), lambda value: isinstance(value, Tensor))
        _, gives = flatten((values[0],), lambda value: isinstance(value, Tensor))
        specs = tuple(InputSpec(short_dtype(tensor.dtype), tuple(tensor.shape)) for tensor in values)
        plan = Plan("one", ("x",), takes, specs, (), (), (Step(op, refs, (), (2, 3), (3,)),), (2,), gives)
    else:
        plan = one_step(op, refs, make(False))
    rig = Rig(plan)

    def call(bad: bool) -> tuple[Tensor, Tensor]:
        values = make(bad)
        own_part = rig.labels.enter(values[0]) if name == "embedding" else private(rig, values[0])
        (result,) = rig.labelled.run([own_part, private(rig, values[1])])
        return result, values[1]

    for _ in range(3):
        assert rig.labels.spoilt(call(bad=False)[0]) is None
    assert rig.labelled.counts == {"fast": 2}
    failed, _ = call(bad=True)
    assert rig.labels.spoilt(failed) is not None and not failed.any()
    assert rig.labelled.counts == {"fast": 2, "given up": 1}
    assert rig.labels.spoilt(call(bad=False)[0]) is None
    assert rig.labelled.counts == {"fast": 2, "given up": 1}  # from here on step by step


def test_an_input_that_comes_of_a_failure_spoils_the_results() -> None:
    rig = Rig(one_step("aten.mul.Tensor", (Ref(0), 2), [torch.zeros(6)]))
    assert rig.labels.spoilt(rig.labelled.run([private(rig, torch.ones(6))])[0]) is None
    table, bad = rig.labels.enter(torch.randn(4)), private(rig, torch.tensor([0, 1, 2, 3, 1, 7]))
    (failed,) = rig.labels.run(lookup("aten.index.Tensor"), [table, [bad]], {})
    assert rig.labels.spoilt(failed) is not None
    (result,) = rig.labelled.run([failed])
    assert rig.labels.spoilt(result) is not None and rig.labelled.counts == {}


def test_a_verdict_that_read_a_public_index_is_never_kept() -> None:
    index = torch.tensor([0, 2, 4])
    rig = Rig(one_step("aten.index_select.default", (Ref(0), 0, Ref(1)), [torch.zeros(6, 2), index]))
    x = private(rig, torch.randn(6, 2))
    (first,) = rig.labelled.run([x, rig.labels.enter(index)])
    (second,) = rig.labelled.run([x, rig.labels.enter(torch.tensor([1, 3, 5]))])
    (repeated,) = rig.labelled.run([x, rig.labels.enter(torch.tensor([1, 1, 1]))])
    forms = [rig.labels.type_of(result).form for result in (first, second, repeated)]
    assert len(set(map(id, forms))) == 3 and forms[2].mixed and not forms[0].mixed
    assert rig.labelled.counts == {}


def test_other_labels_or_strides_are_judged_anew() -> None:
    rig = Rig(one_step("aten.mul.Tensor", (Ref(0), 2), [torch.zeros(6, 6)]))
    labels = rig.labels
    inputs = [private(rig, torch.ones(6, 6)), labels.enter(torch.ones(6, 6)), private(rig, torch.ones(6, 6)).t()]
    for value in inputs * 2:
        (result,) = rig.labelled.run([value])
        (expected,) = labels.run(lookup("aten.mul.Tensor"), [value, 2], {})
        assert labels.type_of(result).form is labels.type_of(expected).form and torch.equal(result, expected)
    assert rig.labelled.counts == {"fast": 2}  # what is not dense goes step by step


def test_memory_pressure_forgets_and_results_stay_right() -> None:
    rig = Rig(one_step("aten.mul.Tensor", (Ref(0), 2), [torch.zeros(6)]))
    x = private(rig, torch.ones(6))
    rig.labelled.run([x])
    for forget in rig.labels.space.on_pressure:
        forget()
    (result,) = rig.labelled.run([x])
    assert rig.labels.type_of(result).datasets == ("d",) and rig.labelled.counts == {}


def test_between_steps_a_call_can_be_given_up() -> None:
    plan = one_step("aten.mul.Tensor", (Ref(0), 2), [torch.zeros(6)])
    labels, closed = Labels(), [False]

    def between() -> None:
        if closed[0]:
            raise PlanRejected("closed")

    def apply(op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[Tensor]:
        between()
        return labels.run(op, args, kwargs, where)

    labelled = LabelledPlan(labels, plan, apply, between)
    x = labels.enter(torch.ones(6))
    labelled.run([x])
    labelled.run([x])
    closed[0] = True
    with pytest.raises(PlanRejected, match="closed"):
        labelled.run([x])

