"""What a check of a plan finds on given values, and what it does not complain of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import grid
from grid.errors import OpNotSupported
from grid.smpc import rehearsal
from grid.smpc.operations.values import Value
from grid.smpc.programs import UNLIMITED, Given, Prepared
from grid.smpc.rehearsal import DIFFERS, LEAVES, OVERFLOWS, REFUSED, UNFIT, tried
from tests.smpc.torch_cases import ELEMENTWISE, MATRIX, SHAPED, made


def doubts(function: Callable[..., Any], *values: Tensor) -> list[str]:
    given = [Given(tuple(one.shape), one.dtype, True) for one in values]
    return tried(Prepared(grid.trace(function, *values), given, UNLIMITED), values).doubts


def test_operations_that_overflow_or_leave_their_domain_are_named() -> None:
    (found,) = doubts(lambda x: (x * x).relu() + x * 3, torch.full((5, 4), 9000.0))
    assert found.startswith(f"step 0 (aten.mul.Tensor): {OVERFLOWS} — at test_rehearsal.py") and "(x * x).relu()" in found
    x = torch.linspace(1, 4, 20)
    assert not doubts(lambda x: (x.relu(), x.exp()), x)
    (found,) = doubts(lambda x: (x.relu(), x.exp()), 10 * x)
    assert found.startswith(f"step 1 (aten.exp.default): {LEAVES}")


WRONG: list[tuple[Callable[..., Any], Tensor, str, str]] = [
    (lambda x: x > -x, torch.tensor([3e13]), "gt.Tensor", DIFFERS),
    (lambda x: x > -x, torch.tensor([2**62 + 5]), "gt.Tensor", DIFFERS),
    (lambda x: x.tanh(), torch.tensor([-3e13]), "tanh", DIFFERS),
    (lambda x: x * 1e6, torch.tensor([1e-6]), "mul", DIFFERS),
    (lambda x: x.sum(), torch.full((1000,), 1e13), "sum", UNFIT),
    (lambda x: x.float(), torch.tensor([2**60]), "_to_copy", UNFIT),
    (lambda x: 1 / (x - x), torch.ones(2), "reciprocal", UNFIT),
    (lambda x: (x - 2).sqrt(), torch.ones(2), "sqrt", UNFIT),
    (lambda x: x.softmax(0), torch.tensor([5e5, 1e6, 2e6, 3e6]), "softmax", OVERFLOWS),
    (lambda x: F.embedding(x, torch.eye(2)), torch.tensor([2]), "embedding", REFUSED),
]


@pytest.mark.parametrize(("function", "x", "op", "doubt"), WRONG, ids=[f"{one[2]}-{at}" for at, one in enumerate(WRONG)])
def test_what_is_not_as_pytorch_has_it_is_named(function: Callable[..., Any], x: Tensor, op: str, doubt: str) -> None:
    (found,) = doubts(function, x)  # and no step after it is blamed
    assert op in found and doubt in found and "test_rehearsal.py" in found


def test_ties_and_steps_at_a_rounding_are_no_fault() -> None:
    near = torch.tensor([2.9999995, -1e-6, 1e-6, 3.0, -2.0000005, 0.0, 1.0000021])
    other = torch.tensor([3.0, 1e-6, -1e-6, 3.0, -2.0, 0.0, 1.0000019])
    assert not doubts(lambda x: (x.floor(), x.ceil(), x.trunc(), x.frac(), x.sign(), x.long(), x > 0, x == 0, x.bool()), near)
    assert not doubts(lambda x, y: (x > y, x >= y, x == y, x != y, (x < y).any(), torch.where(x > y, x, y)), near, other)
    ties = torch.tensor([[0.0, 1.0, 1.0000001, 0.0], [2.0, 2.0, 2.0, 2.0]])
    for x in (ties, ties.long()):
        assert not doubts(lambda x: (x.argmax(), x.argmin(1, keepdim=True), x.max(1), x.sort(1), x.topk(2), x.median(1)), x)
    assert not doubts(lambda x: F.cross_entropy(x, torch.tensor([0, 3]), reduction="none"), ties)


def test_narrow_integers_and_sums_of_truth_values_are_as_pytorch_has_them() -> None:
    for x in (torch.tensor([100, -100], dtype=torch.int8), torch.tensor([2**17 + 1], dtype=torch.int32), torch.ones(2) > 0):
        assert not doubts(lambda x: (x + x, (x + x).sum(), (x * x) > 0), x)


def test_a_truth_value_beyond_1_is_seen_as_what_it_is() -> None:
    two = rehearsal.in_the_clear(torch.tensor([2]))
    assert rehearsal._decoded(Value(two.shared, torch.bool)).tolist() == [2]


@pytest.mark.parametrize("name", [*ELEMENTWISE, *SHAPED])
def test_operations_within_what_they_are_right_for_are_no_fault(name: str) -> None:
    case = ELEMENTWISE.get(name) or SHAPED[name]
    assert not doubts(case.function, *made(case, MATRIX, 0))


def test_training_is_no_fault_and_its_first_wrong_step_is_named() -> None:
    def step(x: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        weights = [one.detach().requires_grad_() for one in (w, v)]
        loss = F.cross_entropy((x @ weights[0]).relu() @ weights[1], torch.tensor([0, 2, 1, 0]))
        return tuple(one - 0.1 * by for one, by in zip(weights, torch.autograd.grad(loss, weights), strict=True))

    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator) for shape in ((4, 6), (6, 5), (5, 3))]
    assert not doubts(step, *values)
    assert "aten.mm" in doubts(step, 1e5 * values[0], 1e5 * values[1], values[2])[0]


def test_means_of_large_numbers_are_right_and_their_variance_is_named() -> None:
    assert not doubts(lambda x: x.mean(), torch.full((1000,), 1e5))
    assert DIFFERS in doubts(lambda x: x.var(), torch.tensor([1e4, -1e4, 0.0]))[0]


def test_public_values_and_made_up_infinities() -> None:
    plan = grid.trace(lambda x, y: x * y.exp(), torch.ones(2), torch.ones(2))
    prepared = Prepared(plan, [Given((2,), torch.float32, True), Given((2,), torch.float32, False)], UNLIMITED)
    assert not tried(prepared, [torch.ones(2), torch.ones(2)]).doubts
    assert not doubts(lambda x: x.clamp(max=math.inf), torch.ones(2))


def test_what_reads_a_result_that_shares_do_not_have_is_refused() -> None:
    x = torch.randn(1, 4, 4)
    with pytest.raises(OpNotSupported, match=r"step 1 .*max-pool"):
        doubts(lambda x: F.max_pool2d(x, 2, return_indices=True)[1] + 1, x)

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)[0]

    assert not doubts(gradient, x)
