"""Each operation of a plan measured alone, beside the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import grid
from grid.smpc.programs import UNLIMITED, Given, Limits, Prepared
from grid.smpc.tracing import Whole, measured

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def traced(function: Callable[..., Any], *values: Tensor, public: int = -1, limits: Limits = UNLIMITED) -> Whole:
    given = [Given(tuple(one.shape), one.dtype, at != public) for at, one in enumerate(values)]
    return measured(Prepared(grid.trace(function, *values), given, limits), values)


def test_operations_that_run_at_the_same_time_share_rounds() -> None:
    found = traced(lambda x: (x.relu(), x.exp(), x * 2.5), X)
    relu, exp, mul = found.operations
    assert exp.path == found.rounds == exp.rounds and relu.path == mul.path == 0 < mul.rounds < relu.rounds < exp.rounds
    chain = traced(lambda x: (x.relu() * x).exp(), X)
    assert sum(one.path for one in chain.operations) == chain.rounds and all(one.path for one in chain.operations)
    assert chain.rounds <= sum(one.rounds for one in chain.operations)


def test_an_operation_has_its_own_error_and_the_plan_what_adds_up() -> None:
    found = traced(lambda x: (x * 3e-5).mul(1e4), X)
    first, second = found.operations
    assert 0 < first.error <= 2.0**-18 and second.error < 2.0**-17
    assert 1e3 * first.error < found.error < 0.1


def test_truth_values_stay_bits_between_operations_as_in_the_whole() -> None:
    found = traced(lambda x: ((x > 0) * x, torch.where(x > 1, x, -x)), X)
    assert sum(one.bytes_sent for one in found.operations) - len(found.operations) <= found.bytes_sent
    assert found.differ == 0 and found.error < 1e-5
    assert torch.equal(traced(lambda x: x > 0, X).results[0], X > 0)


def test_picked_items_count_and_not_their_places() -> None:
    ties = torch.tensor([[1.0, 1.0, 0.0], [2.0, 3.0, 3.0]])
    found = traced(lambda x: (x.argmax(1), x.max(1), x.sort(1)), ties)
    assert all(one.error == 0 for one in found.operations)


def test_public_values_and_what_pytorch_refuses() -> None:
    found = traced(lambda x, y: x * y.exp(), X, X, public=1)
    assert [one.rounds for one in found.operations] == [0, 2] and found.operations[1].operands == "(5, 4), (5, 4) public"
    refused = traced(lambda i: torch.nn.functional.embedding(i, torch.eye(2)), torch.tensor([2]))
    assert math.isnan(refused.operations[-1].error) and refused.rounds > 0
    assert math.inf in [one.error for one in traced(lambda x: 1 / (x - x), torch.ones(2)).operations]


def test_a_plan_of_nothing_costs_nothing() -> None:
    found = traced(lambda x: x, X)
    assert (found.operations, found.rounds, found.bytes_sent) == ((), 0, 0) and found.error <= 2.0**-19


def test_operations_that_wait_for_memory_wait_on_the_path() -> None:
    def branches(x: Tensor) -> Tensor:
        return x.relu() + (x + 1).relu() + (x + 2).relu()

    narrow = Limits(1 << 50, 1 << 60, 1 << 80, 1 << 40, 1500)
    wide, staged = traced(branches, X), traced(branches, X, limits=narrow)
    assert staged.rounds > wide.rounds and sum(one.path for one in staged.operations) == staged.rounds


def test_a_result_that_shares_do_not_have_is_none() -> None:
    found = traced(lambda x: torch.nn.functional.max_pool2d(x, 2, return_indices=True), X.reshape(1, 5, 4))
    assert found.results[0] is not None and found.results[1] is None and found.error < 1e-5
