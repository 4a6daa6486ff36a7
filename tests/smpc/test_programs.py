"""Plans on shares: what is shared, what waits for what, what is freed, what is refused before anything runs."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import grid
from grid.errors import GridError, InvalidRequest, OpNotSupported, QuotaExceeded
from grid.plans.ir import Plan, decode
from grid.smpc.interpreter import Value, fraction_bits
from grid.smpc.local import Outcome, run_parties
from grid.smpc.party import Party
from grid.smpc.plain import Plain, completed
from grid.smpc.programs import UNLIMITED, Given, Limits, Prepared
from grid.smpc.rehearsal import cost
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Shared
from grid.tensors.fixed import decode as decoded
from grid.tensors.fixed import encode
from tests.smpc.streams import dealt

torch.manual_seed(7)


class Secret:
    """An input that the parties hold in shares."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def words(value: Tensor) -> Any:
    return encode(value, fraction_bits(value.dtype), 1).numpy().view(np.uint64)


def given(values: Sequence[Secret | Tensor]) -> list[Given]:
    return [dataclasses.replace(Given.of(one.value), secret=True) if isinstance(one, Secret) else Given.of(one) for one in values]


def at_party(rank: int, values: Sequence[Secret | Tensor]) -> list[Value | Tensor]:
    return [
        Value(dealt(words(one.value), rank), one.value.dtype) if isinstance(one, Secret) else one for one in values
    ]


def on_shares(plan: Plan, *values: Secret | Tensor, prepared: Prepared | None = None) -> tuple[list[Tensor], Outcome[Any]]:
    """The plan's results, opened, and what it cost without that."""
    prepared = prepared or Prepared(plan, given(values), UNLIMITED)

    async def program(party: Party) -> list[Value]:
        return await prepared.run(Replicated(party), at_party(party.rank, values))

    outcome = run_parties(program)
    return [opened(parts) for parts in zip(*outcome.results, strict=True)], outcome


def opened(parts: Sequence[Value]) -> Tensor:
    """The value of which the three parties have these shares."""
    total = np.asarray(sum(one.shared.parts[0] for one in parts))
    return decoded(torch.from_numpy(total.view(np.int64)), fraction_bits(parts[0].dtype), parts[0].dtype)


def near(found: Tensor, wanted: Tensor) -> bool:
    alike = (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    return alike and bool(((found.double() - wanted.double()).abs() < 1e-3).all())


X, W, V = torch.randn(5, 4), torch.randn(4, 3), torch.randn(3, 2)


def layers(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    return (x @ w).relu() @ v


def test_a_plan_gives_what_it_gives_in_the_clear() -> None:
    plan = grid.trace(layers, X, W, V)
    for values in ((Secret(X), Secret(W), Secret(V)), (Secret(X), W, V), (X, Secret(W), V), (X, W, Secret(V))):
        (found,), _ = on_shares(plan, *values)
        assert near(found, layers(X, W, V))


def test_public_results_and_inputs_come_back_on_shares() -> None:
    plan = grid.trace(lambda x, y: {"x": x, "y": y + 1, "one": torch.ones(2), "mask": y > 0}, X, W)
    found, outcome = on_shares(plan, Secret(X), W)
    assert near(found[0], X) and near(found[1], W + 1) and near(found[2], torch.ones(2)) and torch.equal(found[3], W > 0)
    assert outcome.rounds == 0


def test_any_batch_runs_by_one_plan() -> None:
    def normalised(x: Tensor) -> Tensor:
        return (x - x.mean(0)) * x.shape[0]

    plan = grid.trace(normalised, X)
    for rows in (1, 2, 7):
        x = torch.randn(rows, 4)
        (found,), _ = on_shares(plan, Secret(x))
        assert near(found, normalised(x))


def test_independent_branches_share_their_rounds() -> None:
    def chain(x: Tensor) -> Tensor:
        return (x * x).relu() * x

    def branches(x: Tensor) -> Tensor:
        return chain(x) + chain(x + 1) + chain(x - 1) + x * x

    _, alone = on_shares(grid.trace(chain, X), Secret(X))
    (found,), together = on_shares(grid.trace(branches, X), Secret(X))
    assert near(found, branches(X))
    assert together.rounds == alone.rounds
    assert sum(together.bytes_sent) > 3 * sum(alone.bytes_sent)


def test_steps_that_no_result_needs_are_not_run() -> None:
    plan = grid.trace(lambda x: x.relu(), X)
    first = plan.steps[0]
    unused = type(first)(first.op, first.args, first.kwargs, (2,))
    larger = Plan.of(Plan(**{**_fields(plan), "steps": (first, unused)}))
    assert on_shares(larger, Secret(X))[1].bytes_sent == on_shares(plan, Secret(X))[1].bytes_sent


def _fields(plan: Plan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in Plan.__dataclass_fields__}


def test_what_depends_on_constants_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    constant = torch.arange(4.0)
    plan = grid.trace(lambda x, y: x + (constant.exp() / 10).sum() + y.exp(), X, X)
    ran: list[str] = []
    noting = _noting(ran)
    monkeypatch.setattr("grid.smpc.dataflow.computed", noting)
    monkeypatch.setattr("grid.smpc.programs.computed", noting)
    values = (Secret(X), X)
    prepared = Prepared(plan, given(values), UNLIMITED)
    folded = list(ran)
    assert sorted(folded) == ["aten.div.Tensor", "aten.exp.default", "aten.sum.default"]
    ran.clear()
    for _ in range(2):
        (found,), _ = on_shares(plan, *values, prepared=prepared)
        assert near(found, X + (constant.exp() / 10).sum() + X.exp())
    assert ran == ["aten.exp.default"] * 6


def _noting(ran: list[str]) -> Callable[..., list[Tensor]]:
    from grid.smpc.dataflow import computed

    def noted(step: Any, args: Any, kwargs: Any) -> list[Tensor]:
        ran.append(step.op)
        return computed(step, args, kwargs)

    return noted


class Counted(Plain):
    """Notes how many operands of products are alive at each product."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[Any]] = []
        self.alive: list[int] = []

    async def multiply(self, x: Shared, y: Shared, truncate: int = 0, add: Shared | None = None) -> Shared:
        whole = x.parts[0]
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        self.seen.append(weakref.ref(whole))
        self.alive.append(sum(one() is not None for one in self.seen))
        return await super().multiply(x, y, truncate, add)


def test_a_value_is_freed_after_its_last_use() -> None:
    def powers(x: Tensor) -> Tensor:
        for _ in range(10):
            x = (x + 1) * (x + 1)
        return x

    plan, protocol = grid.trace(powers, X), Counted()
    value = Value(Shared(words(X / 100)), X.dtype)
    (result,) = completed(Prepared(plan, given([Secret(X)]), UNLIMITED).run(protocol, [value]))
    assert protocol.alive == [1] * 10
    assert all(one() is None for one in protocol.seen)
    assert result.shape == X.shape


def test_an_operation_that_is_not_there_names_the_line_and_the_way_out() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.linalg.inv(x + 1)  # the line

    plan = grid.trace(function, torch.randn(3, 3))
    with pytest.raises(OpNotSupported, match=r"step 1 \(aten\.linalg_inv.*use .* — at test_programs\.py:\d+: .*inv") as told:
        Prepared(plan, given([Secret(torch.randn(3, 3))]), UNLIMITED)
    assert told.value.details["step"] == 1
    with pytest.raises(OpNotSupported, match=r"step 1 \(aten\.linalg_inv[^—]*$"):  # what came from elsewhere has no lines
        Prepared(decode(plan.encoding), given([Secret(torch.randn(3, 3))]), UNLIMITED)


def test_an_operation_that_fails_fails_what_depends_on_it_and_all_parties_stay_in_step() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x / y).relu() + 1, (x * x).relu()

    plan, values = grid.trace(function, X, torch.ones(())), [Secret(X), torch.zeros(())]
    prepared = Prepared(plan, given(values), UNLIMITED)

    async def program(party: Party) -> Value:
        protocol = Replicated(party)
        inputs = at_party(party.rank, values)
        first, second = protocol.split(2)
        with pytest.raises(InvalidRequest, match=r"step 0 \(aten\.div\.Tensor\): .*zero.* — at test_programs"):
            await prepared.run(first, inputs)
        return (await prepared.run(second, [inputs[0], torch.ones(())]))[1]

    outcome = run_parties(program)
    assert near(opened(outcome.results), (X * X).relu())


class Broken(Plain):
    async def negative(self, x: Shared) -> Any:
        raise RuntimeError("the processor burns")


def test_what_is_no_refusal_ends_the_run() -> None:
    plan = grid.trace(lambda x: (x.relu(), x * x), X)
    with pytest.raises(RuntimeError, match="burns"):
        completed(Prepared(plan, given([Secret(X)]), UNLIMITED).run(Broken(), [Value(Shared(words(X)), X.dtype)]))


def limits(**changed: int) -> Limits:
    return Limits(**{"most": 1000, "max_bytes": 1 << 20, "max_flops": 10**7, "max_steps": 100, "max_early": 1 << 20} | changed)


@pytest.mark.parametrize(
    ("function", "changed", "text"),
    [
        (lambda x: x[:, None] * x, {"most": 99}, r"step 1.*100 elements.*99"),
        (lambda x: torch.ones(2000), {}, "2000 elements"),
        (lambda x: torch.ones(200).sum(), {"max_bytes": 100}, "constants"),
        (lambda x: x.relu(), {"max_bytes": 1000}, r"step 0 .*bytes.*1000"),
        (lambda x: x.relu() * x * x, {"max_flops": 5000}, "step 2 .*operations"),
        (lambda x: x + 1 + 1, {"max_steps": 1}, "2 steps"),
        (lambda x: x.expand(10, 10, 10, 10) * 2, {}, "10000 elements"),
    ],
)
def test_limits_are_kept_before_anything_runs(function: Any, changed: dict[str, int], text: str) -> None:
    x = torch.randn(10)
    plan = grid.trace(function, x)
    with pytest.raises(GridError, match=text) as told:
        Prepared(decode(plan.encoding), given([Secret(x)]), limits(**changed))
    assert isinstance(told.value, QuotaExceeded | InvalidRequest)


def test_an_input_that_is_too_large_is_refused() -> None:
    plan = grid.trace(lambda x: x.sum(), X)
    with pytest.raises(QuotaExceeded, match="input 0"):
        Prepared(plan, [Given((1 << 40, 4), torch.float32, True)], limits())
    with pytest.raises(InvalidRequest, match="dtype f4"):
        Prepared(plan, [Given((5, 4), torch.int64, True)], limits())


def test_a_plan_of_many_branches_takes_rounds_instead_of_memory() -> None:
    def branches(x: Tensor) -> Tensor:
        return torch.stack([(x * k).relu() for k in range(2, 12)]).sum()

    plan, values = grid.trace(branches, X), (Secret(X),)
    free = Prepared(plan, given(values), limits())
    (one,), quick = on_shares(plan, *values, prepared=free)
    assert near(one, branches(X)) and len(free.order.stages) == 1
    for tight in (Prepared(plan, given(values), limits(max_bytes=26_000)), Prepared(plan, given(values), limits(max_early=3000))):
        (other,), slow = on_shares(plan, *values, prepared=tight)
        assert near(other, branches(X)) and len(tight.order.stages) > 2
        assert quick.rounds < slow.rounds and quick.bytes_sent == slow.bytes_sent


def test_random_numbers_are_refused() -> None:
    plan = grid.trace(lambda x: x + torch.nn.functional.dropout(torch.ones(4), training=True), X)
    with pytest.raises(OpNotSupported, match="random"):
        Prepared(plan, given([Secret(X)]), UNLIMITED)


def test_a_public_index_out_of_range_is_refused() -> None:
    plan = grid.trace(lambda x, i: x + X[i], X, torch.zeros(5, dtype=torch.int64))
    values = [Secret(X), torch.full((5,), 7)]
    with pytest.raises(InvalidRequest, match="index"):
        on_shares(plan, *values)


def test_weights_stay_what_they_are_and_their_transposes_are_kept() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(80, 60), torch.nn.ReLU(), torch.nn.Linear(60, 3))
    parameters = {name: one.detach() for name, one in model.named_parameters()}

    def function(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (x,))  # type: ignore[no-any-return]

    x = torch.randn(2, 80)
    plan = grid.trace(function, parameters, x)
    values = [*map(Secret, parameters.values()), Secret(x)]
    prepared = [Prepared(plan, given(values), UNLIMITED) for _ in range(3)]
    inputs = [at_party(rank, values) for rank in range(3)]
    before = [[part.copy() for part in one.shared.parts] for one in inputs[0] if isinstance(one, Value)]
    for _ in range(4):

        async def program(party: Party) -> list[Value]:
            return await prepared[party.rank].run(Replicated(party), inputs[party.rank])

        outcome = run_parties(program)
        assert near(opened([result[0] for result in outcome.results]), model(x).detach())
    after = [list(one.shared.parts) for one in inputs[0] if isinstance(one, Value)]
    assert all(np.array_equal(a, b) for one, other in zip(before, after, strict=True) for a, b in zip(one, other, strict=True))
    kept = [one for one in prepared[0].order.operations if one.keeps and one._kept is not None]
    assert len(kept) == 1 and kept[0]._kept is not None and kept[0]._kept[1] is not None
    del after
    inputs.clear()
    assert kept[0]._kept is None


def test_random_orders_of_messages_give_the_same() -> None:
    import random

    def function(x: Tensor) -> Tensor:
        return (x * x).relu() + (x - 1).relu() * x + (x > 0) * 2.0

    plan, values = grid.trace(function, X), [Secret(X)]
    prepared = Prepared(plan, given(values), UNLIMITED)

    async def program(party: Party) -> Value:
        return (await prepared.run(Replicated(party), at_party(party.rank, values)))[0]

    for seed in range(5):
        outcome = run_parties(program, shuffle=random.Random(seed))
        assert near(opened(outcome.results), function(X))


def two_branches(x: Tensor, w: Tensor) -> Tensor:
    h = x @ w
    return h.relu() * h + (h > 0) * 2.0 + (h * h).sum(0)


def image(x: Tensor, w: Tensor) -> Tensor:
    return torch.nn.functional.max_pool2d(torch.nn.functional.conv2d(x, w), 2).relu().flatten(1)


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (layers, (Secret(X), Secret(W), Secret(V))),
        (layers, (Secret(X), W, Secret(V))),
        (two_branches, (Secret(X), Secret(W))),
        (image, (Secret(torch.randn(2, 1, 7, 7)), Secret(torch.randn(2, 1, 2, 2)))),
        (lambda x: torch.stack([(x * k).relu() for k in range(2, 8)]), (Secret(X),)),
    ],
)
@pytest.mark.parametrize("max_early", [1 << 30, 3000])
def test_a_plan_costs_what_is_counted(function: Any, values: tuple[Any, ...], max_early: int) -> None:
    plan = grid.trace(function, *(one.value if isinstance(one, Secret) else one for one in values))
    prepared = Prepared(plan, given(values), limits(max_early=max_early))
    counted = cost(prepared)
    outcome = on_shares(plan, *values, prepared=prepared)[1]
    assert counted.bytes_sent == -(-sum(outcome.bytes_sent) // 3)
    assert outcome.rounds <= counted.rounds <= 1.2 * outcome.rounds + 1


def test_a_constant_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from grid.smpc.operations import arguments

    counted: list[int] = []

    def counting(value: Tensor, fraction: int) -> Any:
        counted.append(value.numel())
        return encode_number(value, fraction)

    encode_number = arguments.encode
    monkeypatch.setattr(arguments, "encode", counting)
    w = torch.randn(4, 3)
    plan = grid.trace(lambda x: x @ w + w[0], X)
    prepared = Prepared(plan, given([Secret(X)]), UNLIMITED)
    for _ in range(3):
        (found,), _ = on_shares(plan, Secret(X), prepared=prepared)
        assert near(found, X @ w + w[0])
    assert sorted(counted) == [3, 12]
