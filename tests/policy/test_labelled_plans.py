"""Plans by generated code against the same plans step by step: equal values, labels, stories, failures and refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from planned import Rig, as_plan, grown
from playing import violations
from programs import own, rows
from torch import Tensor

from grid.errors import ExecutionFailed, GridError, InvalidRequest, PlanRejected
from grid.plans import checks
from grid.plans.program import InputSpec, Step
from grid.plans.program import Program as Plan
from grid.plans.trees import flatten
from grid.policy.labelled_plans import Heirs, LabelledPlan
from grid.policy.labels import Labels
from grid.tensors.buffers import short_dtype
from grid.tensors.ops import Op, lookup
from grid.tensors.rows import CONST, Order
from grid.wire.messages import Ref

SEEDS = 8
CALLS = 8
SOUND_SEEDS = 14


def same(one: Any, other: Any) -> bool:
    if not isinstance(one[0], list) or not isinstance(other[0], list):
        return bool(one == other)
    equal = all(torch.equal(a, b) or torch.equal(a.isnan(), b.isnan()) for a, b in zip(one[0], other[0], strict=True))
    return equal and all(a is b for a, b in zip(one[1], other[1], strict=True)) and one[2:] == other[2:]


def test_random_plans_are_the_same_by_generated_code_as_step_by_step() -> None:
    """Call after call of one plan with other labels, values and sharing of memory, in turns, so that verdicts of one kind of
    call lie around while the next is made."""
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        rig = planned(seed)
        if rig is None:
            continue
        for call in range(CALLS):
            assert not differs(rig, seed, call), f"seed {seed}, call {call}"
        counts += rig.labelled.counts
        counts["plans"] += 1
    assert counts["plans"] > SEEDS // 2 and counts["fast"] > 2 * SEEDS  # or this would have compared little


def planned(seed: int) -> Rig | None:
    """Labels with the random plan of a seed; None where no plan can be made of it."""
    try:
        return Rig(as_plan(grown(seed)))
    except PlanRejected:
        return None


def differs(rig: Rig, seed: int, call: int) -> bool:
    """Whether a call does anything else by generated code than step by step. Every third call has inputs of the same kind."""
    round_, kind = divmod(call, 3)
    values = [*chain(*rows(seed + 1000 * call).values()), *own(seed + round_)]
    expected = rig.outcome(rig.step_by_step, rig.again(0, values, seed, kind))
    return not same(expected, rig.outcome(rig.labelled.run, rig.again(1, values, seed, kind)))


def whatever_the_forms(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Labels, "look", lambda self, tensors: tuple((tensor.shape, tensor.dtype) for tensor in tensors))


def whatever_the_rows(patch: pytest.MonkeyPatch) -> None:
    """Blocks, positions and other rows of one dataset, as if they were all the same."""

    def look(self: Labels, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        forms = [self.type_of(tensor).form for tensor in tensors]
        return tuple((form.shape, tuple(form.cells), form.rows, form.mixed is None, form.blame) for form in forms)

    patch.setattr(Labels, "look", look)


def whatever_the_stories(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Labels, "look", lambda self, tensors: tuple(self.type_of(tensor).form for tensor in tensors))


def failures_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Labels, "inherit", lambda self, tensors, inputs, heirs: None)


def failures_spread(patch: pytest.MonkeyPatch) -> None:
    """Every result takes over the failures of all inputs."""
    patch.setattr(Heirs, "of", lambda self, tensor: range(len(self._inputs)))
    made = Heirs.__init__

    def init(self: Any, labels: Labels, apply: Any, inputs: Sequence[Tensor]) -> None:
        self._inputs = inputs
        made(self, labels, apply, inputs)

    patch.setattr(Heirs, "__init__", init)


def surprises_are_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Labels, "surprises", property(lambda self: 0, lambda self, value: None), raising=False)


@pytest.mark.parametrize(
    "mutate",
    [whatever_the_forms, whatever_the_rows, whatever_the_stories, surprises_are_kept, failures_end, failures_spread],
    ids=lambda mutate: mutate.__name__,
)
def test_a_key_that_says_too_little_is_caught(mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    for seed in range(6 * SEEDS):
        rig = planned(seed)
        if rig is not None and any(differs(rig, seed, call) for call in range(CALLS)):
            return
    pytest.fail("no random plan shows that this is wrong")


def test_results_of_generated_code_keep_the_claim() -> None:
    """What a second call says of its results holds, for values that such calls made."""
    counts: Counter[str] = Counter()
    for seed in range(SEEDS, SEEDS + SOUND_SEEDS):
        rig = planned(seed)
        if rig is None:
            continue
        found = broken(rig, seed, counts)
        assert not found, f"seed {seed}: {found}\n" + "\n".join(str(step) for step in rig.plan.steps)
    assert counts["rows"] > SOUND_SEEDS and counts["constant"] > SOUND_SEEDS // 4 and counts["blame"] > SOUND_SEEDS // 4, counts


def broken(rig: Rig, seed: int, counts: Counter[str]) -> str:
    """The first violation that other values show, too: two equal sums may differ in the last place by accident."""
    found = found_wrong(rig, seed, seed, counts)
    if found and all(found_wrong(rig, seed, seed + other, counts) for other in (1000, 2000)):
        return found
    return ""


def found_wrong(rig: Rig, seed: int, data_seed: int, counts: Counter[str]) -> str:
    """What breaks the claim for the results of a call by generated code; "" for nothing, or if there is no such call."""

    def run(data: dict[str, list[Tensor]]) -> list[Tensor] | None:
        before = rig.labelled.counts["fast"]
        try:
            results = rig.labelled.run(rig.inputs(data, seed))
        except GridError:
            return None
        return results if rig.labelled.counts["fast"] > before else None

    run(rows(data_seed))
    results = run(rows(data_seed))
    if results is None:
        return ""
    every = [(result, rig.labels.type_of(result)) for result in results]
    for _, kind in every:
        form = kind.form
        counts["rows"] += form.rows
        counts["constant"] += any(tag is CONST for dim in form.dims for _, tag in dim)
        counts["blame"] += bool(form.blame) and form.mixed is None
    return next(violations(every, run, data_seed), "")


def one_step(op: str, args: tuple[Any, ...], inputs: Sequence[Tensor], results: int = 1) -> Plan:
    """A plan of one operation, which gives its first result."""
    _, takes = flatten((tuple(inputs),), lambda value: isinstance(value, Tensor))
    _, gives = flatten((inputs[0],), lambda value: isinstance(value, Tensor))
    specs = tuple(InputSpec(short_dtype(tensor.dtype), tuple(tensor.shape)) for tensor in inputs)
    numbers = tuple(range(len(inputs), len(inputs) + results))
    step = Step(op, args, (), numbers, numbers[1:])
    plan = Plan("one", ("x",), takes, specs, (), (), (step,), (len(inputs),), gives)
    checks.validate(plan)
    return plan


def private(rig: Rig, tensor: Tensor) -> Tensor:
    return rig.labels.enter(tensor, rig.labels.dataset_type("d", tensor.shape[0], tensor.shape))


def whole(*values: int) -> Tensor:
    return torch.tensor(values)


BY_VALUES: dict[str, tuple[str, tuple[Any, ...], Any]] = {
    "gather": ("gather", (Ref(0), 1, Ref(1)), lambda bad: [torch.ones(6, 3), whole(0, 1, 2, 0, 1, 9 if bad else 1)[:, None]]),
    "embedding": ("embedding", (Ref(0), Ref(1)), lambda bad: [torch.ones(4, 3), whole(0, 1, 2, 3, 1, 4 if bad else 0)]),
    "classes": (
        "nll_loss_forward",
        (Ref(0), Ref(1), None, 1, -100),
        lambda bad: [torch.ones(6, 3), whole(0, 1, 2, 0, 1, 5 if bad else 2)],
    ),
    "division": ("floor_divide", (Ref(0), Ref(1)), lambda bad: [whole(*range(6)), whole(1, 2, 3, 4, 5, 0 if bad else 6)]),
    "remainder": ("remainder.Tensor", (Ref(0), Ref(1)), lambda bad: [whole(*range(6)), whole(1, 2, 3, 4, 5, 0 if bad else 6)]),
    "chances": (
        "binary_cross_entropy",
        (Ref(0), Ref(1)),
        lambda bad: [torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 2.0 if bad else 0.6]), torch.ones(6)],
    ),
}


def by_values(name: str) -> tuple[Rig, Any]:
    base, args, make = BY_VALUES[name]
    op = f"aten.{base}" if "." in base else f"aten.{base}.default"
    return Rig(one_step(op, args, make(False), results=2 if name == "classes" else 1)), make


@pytest.mark.parametrize("name", BY_VALUES)
def test_how_a_call_runs_does_not_depend_on_private_values(name: str) -> None:
    """Whether or not an operation fails by the values of rows, now or earlier, its plan goes step by step."""
    for history in ([False] * 4, [True] * 4, [False, False, True, False], [True, False, False, True]):
        rig, make = by_values(name)
        for bad in history:
            values = make(bad)
            table = rig.labels.enter(values[0]) if name == "embedding" else private(rig, values[0])
            (result,) = rig.labelled.run([table, private(rig, values[1])])
            assert (rig.labels.spoilt(result) is not None) == bad and not (bad and result.any())
        assert rig.labelled.counts == {} and list(rig.labelled._known.values()) == [None]


@pytest.mark.parametrize("name", BY_VALUES)
def test_the_clients_own_values_are_checked_in_generated_code_in_every_call(name: str) -> None:
    rig, make = by_values(name)
    for bad in (False, False, True, False, True):
        values = [rig.labels.enter(value) for value in make(bad)]
        if bad:
            with pytest.raises(ExecutionFailed) as told:
                rig.labelled.run(values)
            assert told.value.details["private"] is False
        else:
            rig.labelled.run(values)
    assert rig.labelled.counts == {"fast": 2, "given up": 2}


def spoilt(rig: Rig) -> Tensor:
    table, bad = rig.labels.enter(torch.randn(4)), private(rig, torch.tensor([0, 1, 2, 3, 1, 7]))
    (failed,) = rig.labels.run(lookup("aten.index.Tensor"), [table, [bad]], {})
    assert rig.labels.spoilt(failed) is not None
    return failed


def test_an_input_that_comes_of_a_failure_spoils_the_results_and_changes_nothing_else() -> None:
    for history in ([False] * 4, [True] * 4, [False, True, True, False], [True, False, True, False]):
        rig = Rig(one_step("aten.mul.Tensor", (Ref(0), 2), [torch.zeros(6)]))
        for bad in history:
            (result,) = rig.labelled.run([spoilt(rig) if bad else private(rig, torch.ones(6))])
            assert (rig.labels.spoilt(result) is not None) == bad
        assert rig.labelled.counts == {"fast": 3} and None not in rig.labelled._known.values()


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


VIEW = ("aten.slice.Tensor", (Ref(0), 1, 0, 2))


def test_rows_that_come_to_lie_where_others_were_forgotten_are_judged_anew() -> None:
    """What a call was judged for is kept alive, so that nothing else can come to be at its address."""
    rig = Rig(one_step("aten.mul.Tensor", (Ref(0), 2), [torch.zeros(6)]))
    for start in list(range(20)) * 2:
        rows_of_block = np.arange(start, start + 6)
        kind = rig.labels.dataset_type("d", 30, (6,), rows_of_block)
        (result,) = rig.labelled.run([rig.labels.enter(torch.ones(6), kind)])
        (((_, order),),) = rig.labels.type_of(result).dims
        assert isinstance(order, Order) and order.index.tolist() == rows_of_block.tolist()
        del kind, result, order
    assert rig.labelled.counts == {"fast": 20}


def test_a_result_over_memory_of_a_dataset_cannot_be_written() -> None:
    rig = Rig(one_step(*VIEW, [torch.zeros(6, 3)]))
    rows_ = torch.ones(6, 3)
    x = rig.labels.enter(rows_, rig.labels.dataset_type("d", 6, (6, 3)), fixed=True)
    for _ in range(3):
        (view,) = rig.labelled.run([x])
        with pytest.raises(InvalidRequest, match="own memory"):
            rig.labels.run(lookup("aten.fill_.Scalar"), [view, 7.0], {})
    assert rig.labelled.counts == {"fast": 2} and rows_.eq(1).all()


@pytest.mark.parametrize("twice", [False, True])
def test_a_write_through_a_result_reaches_what_shares_its_memory(twice: bool) -> None:
    """Rows written into a view that generated code made: its base, and the results of earlier calls, have labels from then on."""
    rig = Rig(one_step(*VIEW, [torch.zeros(6, 3)]))
    base = rig.labels.enter(torch.ones(6, 3))
    first = rig.labelled.run([base])[0]
    made = rig.labelled.run([base])[0] if twice else first
    assert rig.labelled.counts == ({"fast": 1} if twice else {})
    rig.labels.run(lookup("aten.copy_.default"), [made, private(rig, torch.zeros(6, 2))], {})
    for tensor in (base, first, made):
        assert rig.labels.type_of(tensor).datasets == ("d",)
    (after,) = rig.labelled.run([base])  # the same tensor as before, with another label: not the kind of call that is known
    assert rig.labels.type_of(after).datasets == ("d",)
    assert rig.labels.type_of(after).form is rig.labels.type_of(rig.step_by_step([base])[0]).form


def test_a_dry_run_with_constants_does_not_stand_for_one_with_rows() -> None:
    """First with what the node itself made constant, then with the client's own, then with rows: three kinds of calls."""
    rig = Rig(one_step("aten.mul.Tensor", (Ref(0), 2), [torch.zeros(6)]))
    (constant,) = rig.labels.run(lookup("aten.full.default"), [[6], 1.0], {})
    inputs = [constant, rig.labels.enter(torch.ones(6)), private(rig, torch.ones(6))]
    for value in inputs * 2:
        form = rig.labels.type_of(rig.labelled.run([value])[0]).form
        assert form.dims == rig.labels.type_of(value).dims
    assert len({rig.labels.type_of(value).form for value in inputs}) == 3 and rig.labelled.counts == {"fast": 3}
