"""What a plan is said to cost is what three parties send for it: for each operation, for the whole, and for large tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import grid
from grid.plans.ir import decode
from grid.smpc.local import Network, run_parties
from grid.smpc.party import Operations, Party
from grid.smpc.programs import UNLIMITED, Given, Limits, Prepared
from grid.smpc.rehearsal import cost
from grid.smpc.replicated.chunks import CHUNK, DEPTH
from grid.smpc.replicated.costs import COSTS
from grid.smpc.replicated.counting import Counting
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.replicated.spans import BY_RANK, PROBES, START, spans
from grid.smpc.tracing import dealt, measured
from tests.smpc.test_costs import calls
from tests.smpc.torch_cases import ELEMENTWISE, MATRIX, SHAPED, made

GENERATOR = torch.Generator().manual_seed(2)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def prepared(function: Callable[..., Any], *values: Tensor, public: tuple[int, ...] = (), limits: Limits = UNLIMITED) -> Prepared:
    given = [Given(tuple(one.shape), one.dtype, at not in public) for at, one in enumerate(values)]
    return Prepared(grid.trace(function, *values), given, limits)


def counted(plan: Prepared, values: tuple[Tensor, ...], shifted: int = 0) -> tuple[int, int]:
    """Rounds and bytes that a party sends, as a counting link sees them."""
    shares = [dealt(value, one.dtype) if one.secret else value for value, one in zip(values, plan.inputs, strict=True)]

    async def program(party: Party) -> Any:
        given = [one[party.rank] if isinstance(one, list) else one for one in shares]
        return await plan.run(Replicated(party, Operations(shifted)), given)

    outcome = run_parties(program, network=Network(recorded=False))
    return outcome.rounds, -(-sum(outcome.bytes_sent) // 3)


@pytest.mark.parametrize("name", [*ELEMENTWISE, *SHAPED])
def test_each_operation_costs_what_is_counted(name: str) -> None:
    case = ELEMENTWISE.get(name) or SHAPED[name]
    values = tuple(made(case, MATRIX, 0))
    plan = prepared(case.function, *values)
    assert tuple(cost(plan)) == counted(plan, values)


def step(x: Tensor, w: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    weights = [one.detach().requires_grad_() for one in (w, v)]
    loss = F.cross_entropy((x @ weights[0]).relu() @ weights[1], y)
    return (loss, *(one - 0.1 * by for one, by in zip(weights, torch.autograd.grad(loss, weights), strict=True)))


def branches(x: Tensor) -> Tensor:
    return x.relu() * x + (x + 1).exp() * (x > 0) + (x @ x.t()).sum(1, keepdim=True).sigmoid()


def images(x: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    weights = [one.detach().requires_grad_() for one in (w, v)]
    pooled = F.max_pool2d(F.conv2d(x, weights[0]).relu(), 2)
    loss = F.mse_loss(pooled.flatten(1) @ weights[1], torch.ones(2, 2))
    return (loss, *torch.autograd.grad(loss, weights))


CNN = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4))

WHOLE: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], tuple[int, ...]]] = {
    "training step": (step, (normal(6, 4), normal(4, 5), normal(5, 3), torch.tensor([0, 1, 2, 2, 1, 0])), (3,)),
    "public weights": (step, (normal(6, 4), normal(4, 5), normal(5, 3), torch.tensor([0, 1, 2, 2, 1, 0])), (1, 3)),
    "training step of images": (images, (normal(2, 1, 6, 6), normal(2, 1, 3, 3), normal(8, 2)), ()),
    "branches": (branches, (normal(5, 5),), ()),
    "network": (lambda x: CNN(x).softmax(1), (normal(2, 1, 8, 8),), ()),
    "several blocks": (lambda x: (x * x).relu(), (normal((DEPTH + 2) * CHUNK + 5) / 4,), ()),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_plan_costs_what_is_counted_whatever_number_it_has(name: str) -> None:
    function, values, public = WHOLE[name]
    plan = prepared(function, *values, public=public)
    for shifted in (0, 1, 2):
        assert tuple(cost(plan)) == counted(plan, values, shifted)


def test_stages_that_wait_for_memory_are_counted() -> None:
    x, narrow = normal(5, 5), Limits(1 << 50, 1 << 60, 1 << 80, 1 << 40, 1500)
    wide, staged = prepared(branches, x), prepared(branches, x, limits=narrow)
    assert max(one.stage for one in staged.order.operations) > 1
    assert cost(staged).rounds > cost(wide).rounds
    assert tuple(cost(staged)) == counted(staged, (x,))


@pytest.mark.parametrize("name", ["training step", "training step of images"])
def test_a_trace_counts_what_is_predicted_for_each_of_its_operations(name: str) -> None:
    function, values, public = WHOLE[name]
    plan = prepared(function, *values, public=public)
    found = measured(plan, values)
    assert max(one.error for one in found.operations) < 1e-4 and found.error < 1e-3
    assert tuple(cost(plan)) == (found.rounds, found.bytes_sent)
    assert sum(one.path for one in found.operations) == found.rounds
    assert 0 <= sum(one.bytes_sent for one in found.operations) - found.bytes_sent < len(found.operations)


@pytest.mark.parametrize("n", [1, 65, CHUNK, CHUNK + 1, DEPTH * CHUNK + 1])
def test_methods_have_the_rounds_that_are_counted_from_any_number_on(n: int) -> None:
    for method, arguments, call in calls(n):
        if method in BY_RANK:
            continue

        async def twice(party: Party, call: Any = call) -> None:
            protocol = Replicated(party, Operations(1))
            await call(protocol)
            await call(protocol)  # a party that was done early begins this one early

        elements = n if method not in ("conjunction", "open", "open_bits", "shuffle") else None
        counting = Counting(Operations(1))
        for _ in range(2):
            counting._pay(method, *arguments, how=_how(method, arguments), elements=elements)
        assert counting.clock and max(counting.clock) == run_parties(twice, network=Network(recorded=False)).rounds, method


def _how(method: str, arguments: Any) -> tuple[int, ...]:
    if method in ("multiply", "truncate", "bits"):
        return tuple(arguments[1:]) or (0,)
    return ()


def test_the_longest_span_of_a_method_is_its_declared_rounds() -> None:
    assert set(PROBES) == set(COSTS)
    for method, arguments, _ in calls(64):
        how = (1,) if method == "share" else (2,) if method == "open_to" else _how(method, arguments)
        assert max(spans(method, how).after(START, 0)) == COSTS[method](*arguments).rounds, method


# ---------------------------------------------------------------- as users ask


def rate(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return (x @ weights["w"] + weights["b"]).relu()


def test_a_plan_says_what_it_costs() -> None:
    weights = {"w": normal(4, 3), "b": normal(3)}
    plan = grid.trace(rate, normal(5, 4), weights)
    assert plan.cost() == plan.cost(normal(5, 4), weights) == plan.cost(n0=5) == plan.cost(secret=["x", "weights"])
    assert plan.cost(n0=500).rounds == plan.cost().rounds and plan.cost(n0=500).bytes_sent > 20 * plan.cost().bytes_sent
    assert plan.cost(secret="x").rounds < plan.cost().rounds and plan.cost(secret=()) == (0, 0)
    loaded = decode(plan.encoding)
    assert loaded.cost(n0=5) == plan.cost() and loaded.id == plan.id


def test_a_plan_that_cannot_say_what_it_costs_says_what_is_missing() -> None:
    plan = grid.trace(rate, normal(5, 4), {"w": normal(4, 3), "b": normal(3)})
    for ask, text in (
        (lambda: decode(plan.encoding).cost(), r"any n0: say which, plan\.cost\(n0=128\)"),
        (lambda: plan.cost(n7=3), "no free dimension n7; it has n0"),
        (lambda: plan.cost(secret="w"), "no parameter 'w'; it has x, weights"),
        (lambda: plan.cost(normal(5, 4)), "takes 2 arguments"),
        (lambda: plan.cost(n0=-1), "at least 0 rows"),
    ):
        with pytest.raises(grid.InvalidRequest, match=text):
            ask()
    with pytest.raises(grid.OpNotSupported, match="linalg_inv"):
        grid.trace(torch.linalg.inv, normal(2, 2)).cost()
