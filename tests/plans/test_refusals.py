"""Functions that cannot be plans: the message names the line and says what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plan_models import mlp, vectors
from torch import Tensor, nn

from grid.errors import InvalidRequest, PlanRejected
from grid.plans.lower import MAX_CONSTANT_BYTES
from grid.plans.trace import trace

counter = torch.zeros(8)
norm = nn.BatchNorm1d(8)


def branches(x: Tensor) -> Tensor:
    if x.sum() > 0:  # branch by value
        return x
    return -x


def reads_item(x: Tensor) -> Tensor:
    return x * x.sum().item()


def reads_list(x: Tensor) -> Any:
    return x.tolist()


def selects_by_mask(x: Tensor) -> Tensor:
    return x[x > 0]


def finds(x: Tensor) -> Tensor:
    return x.nonzero()


def finds_unique(x: Tensor) -> Tensor:
    return x.unique()


def draws(x: Tensor) -> Tensor:
    return x + torch.randn(8)


def draws_alike(x: Tensor) -> Tensor:
    return x * torch.rand_like(x)


def counts(x: Tensor) -> Tensor:
    counter.add_(1)
    return x + counter


def trains_batch_norm(x: Tensor) -> Tensor:
    return norm(x)


def compares_all_rows(x: Tensor) -> Tensor:
    return torch.cdist(x, x)


def misfits(x: Tensor) -> Tensor:
    return x @ torch.zeros(3, 3)


def fails(x: Tensor) -> Any:
    return {}["missing"]


def leaves_torch(x: Tensor) -> Any:
    return x.numpy()


def wants_device(x: Tensor) -> Tensor:
    return torch.zeros(3, device="meta")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (branches, "torch.where"),
        (reads_item, "torch.where"),
        (reads_list, r"reads a value"),
        (selects_by_mask, r"torch.where\(mask"),
        (finds, "depends on values"),
        (finds_unique, "depends on values"),
        (draws, "pass them as an argument"),
        (draws_alike, "random numbers"),
        (counts, "pass it as an argument"),
        (trains_batch_norm, "functional_call"),
        (compares_all_rows, "every row would meet every other row"),
        (misfits, "same reduction dim"),
        (fails, "KeyError"),
        (leaves_torch, "numpy"),
        (wants_device, "leave it out"),
    ],
)
def test_the_message_names_the_line_and_a_way_out(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(PlanRejected, match=says) as caught:
        trace(function, vectors(8))
    first = function.__code__.co_firstlineno
    lines = [f"test_refusals.py:{number}:" for number in range(first, first + 5)]
    assert any(line in caught.value.message for line in lines), caught.value.message


def test_refusals_leave_what_was_closed_over_as_it_was() -> None:
    for function in (counts, trains_batch_norm):
        with pytest.raises(PlanRejected):
            trace(function, vectors(8))
    assert torch.equal(counter, torch.zeros(8))
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, torch.zeros(8))


def test_gradients_on_top_of_old_ones_are_refused_and_the_old_ones_stay() -> None:
    module = mlp()
    module[0].weight.grad = torch.ones(6, 8)

    def step(x: Tensor) -> Any:
        module(x).sum().backward()
        return [p.grad for p in module.parameters()]

    with pytest.raises(PlanRejected, match=r"torch\.autograd\.grad in place of backward"):
        trace(step, vectors(8))
    assert torch.equal(module[0].weight.grad, torch.ones(6, 8))
    assert module[2].weight.grad is None


def test_constants_are_bounded() -> None:
    large = torch.zeros(MAX_CONSTANT_BYTES // 4 + 1)
    with pytest.raises(PlanRejected, match="pass large ones as arguments"):
        trace(lambda x: x.sum() + large.sum(), vectors(8))


def test_arguments_that_no_plan_takes() -> None:
    with pytest.raises(InvalidRequest, match="functional_call"):
        trace(lambda module, x: module(x), mlp(), vectors(8))
    with pytest.raises(InvalidRequest, match="not object"):
        trace(lambda x: x, object())
    with pytest.raises(InvalidRequest, match="complex"):
        trace(lambda x: x, torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(InvalidRequest, match="dense"):
        trace(lambda x: x, torch.eye(3).to_sparse())


def test_results_that_no_plan_gives() -> None:
    with pytest.raises(PlanRejected, match="not object"):
        trace(lambda x: object(), vectors(8))
    nested: Any = []
    for _ in range(40):
        nested = [nested]
    with pytest.raises(PlanRejected, match="levels deep"):
        trace(lambda x: nested, vectors(8))
