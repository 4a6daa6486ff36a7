"""What an owner who approves by hand is told of the calls that made a value."""

from __future__ import annotations

import torch

from grid.ids import PlanId
from grid.node.calls import MAX_CALLS, Calls
from grid.node.lineage import Lineage, dataset_part, plan_results
from grid.plans.ir import Plan
from grid.plans.trace import trace

FEATURES = dataset_part("features", "", "features of the dataset 'd'")
SECRET = torch.full((5, 2), 424242.0)
PLAN = trace(lambda x, t: x * t, torch.zeros(5, 2), torch.zeros(2))


def called(calls: Calls, plan: Plan, *inputs: tuple[torch.Tensor, Lineage | None]) -> Lineage:
    (lineage,) = calls.told(plan_results(PlanId(plan.id), inputs, 1), plan, inputs)
    return lineage


def test_small_values_of_the_client_are_told_in_full_and_values_of_datasets_never() -> None:
    (told,) = called(Calls(), PLAN, (SECRET, FEATURES), (torch.tensor([0.19, 3.0]), None)).calls or ()
    first, *lines = told.splitlines()
    assert first.startswith("call ") and first.endswith(f" of the plan {PLAN.id}")
    assert lines == ["    x: features of the dataset 'd'", "    t: the client's own f4[2] = [0.19, 3.0]"]


def test_large_values_are_told_by_digest_and_bounds() -> None:
    plan = trace(lambda x, t: x * t, torch.zeros(5, 17), torch.zeros(17))
    texts = set()
    for last in (1.0, 2.0):
        own = torch.zeros(17)
        own[16], own[15] = last, -4
        (told,) = called(Calls(), plan, (torch.zeros(5, 17), FEATURES), (own, None)).calls or ()
        assert f"t: the client's own f4[17], from -4.0 to {last}, sha256=" in told
        texts.add(told)
    assert len(texts) == 2
    odd = trace(lambda x, t: x * t.sum(), torch.zeros(5), torch.zeros(17, dtype=torch.bool))
    (told,) = called(Calls(), odd, (torch.zeros(5), FEATURES), (torch.zeros(17, dtype=torch.bool), None)).calls or ()
    assert "from False to False" in told


def test_the_calls_that_made_an_argument_are_told_too() -> None:
    calls, own = Calls(), torch.tensor([0.5, 0.25])
    first = called(calls, PLAN, (SECRET, FEATURES), (own, None))
    second = called(calls, PLAN, (SECRET, first), (torch.ones(2), None))
    assert second.calls is not None and len(second.calls) == 2 and second.calls[1:] == first.calls
    assert f"x: {first.shown}" in second.calls[0] and first.shown.startswith("result 0 of call ")
    assert "[0.5, 0.25]" in second.calls[1] and "424242" not in "".join(second.calls)
    assert called(calls, PLAN, (SECRET, first), (own * 2, None)).shown != second.shown


def test_what_is_too_much_to_be_read_is_not_told_in_part() -> None:
    calls, value = Calls(), FEATURES
    for number in range(MAX_CALLS):
        value = called(calls, PLAN, (SECRET, value), (torch.tensor([1.0, number]), None))
    assert value.calls is not None and len(value.calls) == MAX_CALLS
    value = called(calls, PLAN, (SECRET, value), (torch.ones(2), None))
    assert value.calls is None
    assert called(calls, PLAN, (SECRET, value), (torch.ones(2), None)).calls is None, "nor what is made of it"
