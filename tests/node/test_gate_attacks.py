"""The gate attacks of the threat model, over real messages to a real node: each by pointer commands, and each as a plan.

An attack succeeds only if a value comes back. Every refusal must be the gate's (`ReleaseDenied`, with the rule), not an
accident of another check.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch
from node_mesh import Mesh, RawClient, client, clients, dataset, mesh, secure_sum
from torch import Tensor

from grid.errors import BudgetExhausted, GridError, InvalidRequest, NotFound, OpNotSupported, PlanRejected, ReleaseDenied
from grid.ids import ObjectId, TransferId, random_id
from grid.plans.trace import trace
from grid.wire.messages import DeliverObject, ExpectObject, MoveObject, Ref

ROWS, COLUMNS = 40, 3


@pytest.fixture
async def made() -> AsyncIterator[Mesh]:
    async with mesh({"alice": [dataset(ROWS, COLUMNS)], "bob": [dataset(ROWS, COLUMNS, seed=1)]}) as nodes:
        yield nodes


@pytest.fixture
async def raw(made: Mesh) -> AsyncIterator[RawClient]:
    async with client(made, "alice") as session:
        yield session


async def by_pointer(raw: RawClient, function: Callable[[Tensor], Tensor]) -> Tensor:
    (result,) = await raw.remote(function, await raw.open())
    return await raw.get(result)


async def by_plan(raw: RawClient, function: Callable[[Tensor], Tensor]) -> Tensor:
    plan = trace(function, torch.randn(ROWS, COLUMNS))
    (result,) = await raw.plan(plan, await raw.open())
    return await raw.get(result)


async def by_plan_again(raw: RawClient, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Its second call, which generated code answers (`grid.policy.labelled_plans`)."""
    plan = trace(function, torch.randn(ROWS, COLUMNS))
    for _ in range(2):
        (result,) = await raw.plan(plan, await raw.open())
    return await raw.get(result)


WAYS = {"pointer": by_pointer, "plan": by_plan, "plan again": by_plan_again}

MASK = torch.zeros(1, ROWS)
MASK[0, 7] = 1
ONE_HOT = torch.nn.functional.one_hot(torch.tensor(7), ROWS).float()

REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "rows as they are": lambda x: x * 1,
    "a row picked by a mask": lambda x: MASK @ x,
    "a row picked by weights": lambda x: (x * ONE_HOT[:, None]).sum(0),
    "one row": lambda x: x[3].sum(),
    "one row by index": lambda x: x[torch.tensor([3])].sum(0),
    "few rows": lambda x: x[:9].mean(0),
    "all rows but few": lambda x: x[2:].sum(0) - x.sum(0),
    "the largest values": lambda x: x.max(0).values,
    "the row of the largest value": lambda x: x.argmax(0).float(),
    "the median": lambda x: x.median(0).values,
    "sorted rows": lambda x: x.sort(0).values[0],
    "top rows": lambda x: x.topk(1, 0).values,
    "a difference of sums": lambda x: x.sum(0) - x[1:].sum(0),
    "reversed rows": lambda x: (x * x.flip(0)).sum(0),
    "running sums": lambda x: x.cumsum(0)[-1],
    "the Gram matrix": lambda x: x @ x.T,
    "pairwise differences": lambda x: (x[:, None] - x[None]).abs().sum((0, 1)),
    "a row hidden in zeros": lambda x: (x.sum(0) * 0 + x[5]),
    "a lagged product": lambda x: (x[1:] * x[:-1]).sum(0),
    "softmax over rows": lambda x: x.softmax(0).sum(0),
    "rows as a batch of channels": lambda x: x.T.reshape(-1)[:5],
    "a mask made of an aggregate": lambda x: ((x.sum() * 0 + ONE_HOT) @ x),
    "a strict triangle": lambda x: torch.tril(torch.ones(ROWS, ROWS)) @ x,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attack", REFUSED)
async def test_single_rows_do_not_come_out(raw: RawClient, attack: str, way: str) -> None:
    with pytest.raises(ReleaseDenied) as caught:
        await WAYS[way](raw, REFUSED[attack])
    assert caught.value.details["rule"] and "alice" not in caught.value.message


@pytest.mark.parametrize("way", WAYS)
async def test_the_column_sums_do_come_out_both_ways_round(raw: RawClient, way: str) -> None:
    features = raw.node.datasets["d"].features
    for function in (lambda x: x.sum(0), lambda x: x.T.sum(1)):
        torch.testing.assert_close(await WAYS[way](raw, function), features.sum(0))


async def test_the_dataset_itself_does_not_come_out(raw: RawClient) -> None:
    for part in ("features", "targets"):
        with pytest.raises(ReleaseDenied):
            await raw.get(await raw.open(part=part))
    with pytest.raises(ReleaseDenied):
        await raw.get(await raw.open(part="column", column="x1"))


async def test_a_row_written_into_the_clients_own_tensor_does_not_come_out(raw: RawClient) -> None:
    features, own = await raw.open(), await raw.put(torch.zeros(COLUMNS))
    row = await raw.run(torch.ops.aten.select.int, features, 0, 3)
    await raw.run(torch.ops.aten.add_.Tensor, own, row, outputs=0)
    with pytest.raises(ReleaseDenied):
        await raw.get(own)


async def test_a_row_written_through_a_view_does_not_come_out_of_any_other(raw: RawClient) -> None:
    features, own = await raw.open(), await raw.put(torch.zeros(2, COLUMNS))
    view = await raw.run(torch.ops.aten.select.int, own, 0, 1)
    flat = await raw.run(torch.ops.aten.view.default, own, [2 * COLUMNS])
    row = await raw.run(torch.ops.aten.select.int, features, 0, 3)
    await raw.run(torch.ops.aten.copy_.default, view, row, outputs=0)
    for name in (own, view, flat):
        with pytest.raises(ReleaseDenied):
            await raw.get(name)
    await raw.run(torch.ops.aten.zero_.default, own, outputs=0)  # and zeroing does not wash it
    with pytest.raises(ReleaseDenied):
        await raw.get(own)


async def test_a_write_that_fails_half_way_leaves_no_way_to_the_rows(raw: RawClient) -> None:
    features, own = await raw.open(), await raw.put(torch.zeros(5, COLUMNS))
    index = await raw.put(torch.tensor([0, 99]))
    rows = await raw.run(torch.ops.aten.slice.Tensor, features, 0, 0, 2)
    await raw.run(torch.ops.aten.index_put_.default, own, [index], rows, outputs=0)
    assert raw.failures
    with pytest.raises(GridError):
        await raw.get(own)


async def test_a_dataset_cannot_be_written(raw: RawClient) -> None:
    before = raw.node.datasets["d"].features.clone()
    features = await raw.open()
    await raw.run(torch.ops.aten.zero_.default, features, outputs=0)
    other = await raw.open()
    (total,) = await raw.remote(lambda x: x.sum(0), other)
    torch.testing.assert_close(await raw.get(total), before.sum(0))
    assert torch.equal(raw.node.datasets["d"].features, before)


async def test_differencing_over_several_releases_is_stopped(raw: RawClient) -> None:
    features = await raw.open()
    first, second = await raw.remote(lambda x: (x.sum(0), x[1:].sum(0)), features)
    await raw.get(first)
    with pytest.raises(ReleaseDenied):
        await raw.get(second)


async def test_differencing_over_several_clients_is_stopped(made: Mesh) -> None:
    async with client(made, "alice") as one:
        (half,) = await one.remote(lambda x: x[:20].sum(0), await one.open())
        await one.get(half)
    async with client(made, "alice") as other:
        (shifted,) = await other.remote(lambda x: x[5:25].sum(0), await other.open())
        with pytest.raises(ReleaseDenied):
            await other.get(shifted)
        (same,) = await other.remote(lambda x: x[:20].mean(0), await other.open())
        await other.get(same)


async def test_three_overlapping_groups_do_not_give_one_row(raw: RawClient) -> None:
    """Every two of them differ by at least 20 rows, and first + second - third is twice row 0."""
    groups = [[0, *range(1, 13)], [0, *range(13, 25)], list(range(1, 25))]
    refused = 0
    for group in groups:
        index = torch.tensor(group)
        (total,) = await raw.remote(lambda x, index=index: x[index].sum(0), await raw.open())
        try:
            await raw.get(total)
        except ReleaseDenied:
            refused += 1
    assert refused >= 1


async def test_the_number_of_elements_is_limited_over_the_datasets_life() -> None:
    owned = dataset(ROWS, COLUMNS, max_elements=10)
    async with mesh({"alice": [owned]}) as made:
        for expected in (True, True, True, False):
            async with client(made, "alice") as raw:
                (total,) = await raw.remote(lambda x: x.sum(0), await raw.open())
                if expected:
                    await raw.get(total)
                else:
                    with pytest.raises(BudgetExhausted):
                        await raw.get(total)


@pytest.mark.parametrize("release", ["deny", "approve"])
async def test_a_closed_dataset_gives_nothing(release: str) -> None:
    async with mesh({"alice": [dataset(ROWS, COLUMNS, release=release)]}) as made, client(made, "alice") as raw:
        (total,) = await raw.remote(lambda x: x.sum(0), await raw.open())
        with pytest.raises(ReleaseDenied):
            await raw.get(total)


async def test_an_open_dataset_gives_everything() -> None:
    async with mesh({"alice": [dataset(ROWS, COLUMNS, release="open")]}) as made, client(made, "alice") as raw:
        assert torch.equal(await raw.get(await raw.open()), raw.node.datasets["d"].features)


async def test_builtin_plans_only_means_neither_pointers_nor_plans_but_for_the_allowed() -> None:
    plan = trace(lambda x: x.sum(0), torch.randn(ROWS, COLUMNS))
    many = trace(lambda x: torch.stack([x.sum(0)] * 50), torch.randn(ROWS, COLUMNS))
    for allow, possible in (([], False), ([plan.id, many.id], True)):
        owned = dataset(ROWS, COLUMNS, plans="builtin", allow=allow, max_elements=COLUMNS)
        async with mesh({"alice": [owned]}) as made, client(made, "alice") as raw:
            features = await raw.open()
            (pointer,) = await raw.remote(lambda x: x.sum(0), features)
            with pytest.raises(ReleaseDenied):
                await raw.get(pointer)
            for allowed in (plan, many):  # an allowed plan's result leaves whatever its size
                (result,) = await raw.plan(allowed, features)
                if possible:
                    await raw.get(result)
                    (changed,) = await raw.remote(lambda x: x * 1, result)
                    with pytest.raises(ReleaseDenied):  # only the plan's own result, not what is made of it
                        await raw.get(changed)
                else:
                    with pytest.raises(ReleaseDenied):
                        await raw.get(result)


async def test_a_guessed_object_id_of_another_client_is_not_found(made: Mesh) -> None:
    async with client(made, "alice") as one, client(made, "alice") as other:
        secret = await one.put(torch.arange(3.0))
        (total,) = await one.remote(lambda x: x.sum(0), await one.open())
        other.ids = itertools.count(500)
        for ref in (secret, total, Ref(10**15)):
            with pytest.raises(NotFound):
                await other.get(ref)
            await other.run(torch.ops.aten.neg.default, ref)
        assert len(other.failures) == 3
        await one.get(total)


async def test_moving_rows_or_aggregates_to_another_node_needs_a_sink(made: Mesh) -> None:
    async with clients(made) as raw:
        alice, bob = raw["alice"], raw["bob"]
        features = await alice.open()
        (total,) = await alice.remote(lambda x: x.sum(0), features)
        for ref, shape in ((features, (ROWS, COLUMNS)), (total, (COLUMNS,))):
            transfer, target = TransferId(random_id()), ObjectId(next(bob.ids))
            await bob.request(
                ExpectObject(transfer=transfer, sender=alice.node.id, object=target, shape=shape, dtype="f4")
            )
            with pytest.raises(ReleaseDenied):
                await alice.request(MoveObject(object=ObjectId(int(ref)), to=bob.node.id, transfer=transfer))
            bob.free(Ref(target))
            with pytest.raises(NotFound):
                await bob.get(Ref(target))


async def test_a_moved_value_keeps_its_owner_where_the_owner_let_it_go() -> None:
    owned = dataset(ROWS, COLUMNS, sinks=["bob"])
    async with mesh({"alice": [owned], "bob": [], "carol": []}) as made, clients(made) as raw:
        total = (await raw["alice"].remote(lambda x: x.sum(0), await raw["alice"].open()))[0]
        for name, allowed in (("bob", True), ("carol", False)):
            transfer, target = TransferId(random_id()), ObjectId(next(raw[name].ids))
            expect = ExpectObject(
                transfer=transfer, sender=made.nodes["alice"].id, object=target, shape=(COLUMNS,), dtype="f4"
            )
            await raw[name].request(expect)
            move = MoveObject(object=ObjectId(int(total)), to=made.nodes[name].id, transfer=transfer)
            if allowed:
                await raw["alice"].request(move)
                with pytest.raises(ReleaseDenied):
                    await raw[name].get(Ref(target))
                (changed,) = await raw[name].remote(lambda x: x * 0 + 1, Ref(target))
                with pytest.raises(ReleaseDenied):
                    await raw[name].get(changed)
            else:
                with pytest.raises(ReleaseDenied):
                    await raw["alice"].request(move)
                raw[name].free(Ref(target))


async def test_a_client_cannot_play_a_node(raw: RawClient) -> None:
    from grid.tensors.buffers import to_frame

    with pytest.raises(InvalidRequest):
        await raw.request(DeliverObject(transfer=TransferId(random_id()), tensor=to_frame(torch.zeros(1))))


async def test_memory_that_was_never_written_is_zero(raw: RawClient) -> None:
    features = await raw.open()
    await raw.run(torch.ops.aten.mul.Tensor, features, 3.0)
    fresh = await raw.run(torch.ops.aten.empty.memory_format, [ROWS, COLUMNS])
    assert torch.equal(await raw.get(fresh), torch.zeros(ROWS, COLUMNS))
    like = await raw.run(torch.ops.aten.empty_like.default, features)
    assert await zero_or_refused(raw, like)


async def zero_or_refused(raw: RawClient, ref: Ref) -> bool:
    try:
        return not bool((await raw.get(ref)).any())
    except ReleaseDenied:
        return True


STORAGE = [torch.ops.aten.as_strided.default, torch.ops.aten.set_.source_Tensor, torch.ops.aten.resize_.default]


@pytest.mark.parametrize("call", STORAGE)
async def test_operations_on_storage_are_not_in_the_table(raw: RawClient, call: Any) -> None:
    from grid.wire.messages import Command, Commands

    features = await raw.open()
    command = Command(op=str(call), args=[features, [1], [1]], kwargs={}, outputs=(ObjectId(999),))
    await raw.request(Commands(first=77, commands=(command,)))
    assert isinstance(raw.failures[77], OpNotSupported)
    with pytest.raises(OpNotSupported):
        await raw.get(Ref(999))


HUGE: dict[str, Callable[[Tensor], Tensor]] = {
    "a large constant": lambda x: x.new_zeros((1 << 20, 1 << 20)).sum() + x.sum(),
    "a large product": lambda x: (x.reshape(-1, 1).repeat(1 << 12, 1 << 16)).sum(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attack", HUGE)
async def test_too_many_elements_are_refused_before_anything_is_allocated(raw: RawClient, attack: str, way: str) -> None:
    with pytest.raises(GridError) as caught:
        await WAYS[way](raw, HUGE[attack])
    assert isinstance(caught.value, InvalidRequest | PlanRejected | ReleaseDenied | GridError)
    assert "elements" in caught.value.message or "bytes" in caught.value.message
    (total,) = await raw.remote(lambda x: x.sum(0), await raw.open())
    await raw.get(total)


# ---------------------------------------------------------------- secure sums


def gradient(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Mean logistic gradient: x is (n, d), y is (n,) of 0 and 1, w is (d,)."""
    return x.T @ (torch.sigmoid(x @ w) - y.to(x.dtype)) / x.shape[0]


PLAN = trace(gradient, torch.randn(ROWS, COLUMNS), torch.zeros(ROWS, dtype=torch.long), torch.zeros(COLUMNS))
OTHER = trace(lambda x, y, w: gradient(x, y, w) * 2, torch.randn(ROWS, COLUMNS), torch.zeros(ROWS).long(), torch.zeros(COLUMNS))


@pytest.fixture
async def trio() -> AsyncIterator[dict[str, RawClient]]:
    owned = {name: [dataset(ROWS + 5 * seed, COLUMNS, seed)] for seed, name in enumerate(("alice", "bob", "carol"))}
    async with mesh(owned) as made, clients(made) as raw:
        yield raw


async def operand(raw: RawClient, plan: Any = PLAN, w: Tensor | None = None) -> Ref:
    weights = torch.zeros(COLUMNS) if w is None else w
    return (await raw.plan(plan, await raw.open(), await raw.open(part="targets"), weights))[0]


async def test_a_sum_of_one_plan_over_all_datasets_is_given(trio: dict[str, RawClient]) -> None:
    result, errors = await secure_sum(trio, {name: await operand(raw) for name, raw in trio.items()})
    assert not errors and result is not None
    expected = sum(
        gradient(one.features, one.targets, torch.zeros(COLUMNS))
        for one in (raw.node.datasets["d"] for raw in trio.values())
        if one.targets is not None
    )
    assert (result - expected).abs().max() <= 3 * 2.0**-25 + 1e-6


async def refused_sum(trio: dict[str, RawClient], operands: dict[str, Ref]) -> dict[str, GridError]:
    result, errors = await secure_sum(trio, operands)
    assert result is None and len(errors) == len(operands)
    assert any(isinstance(error, ReleaseDenied) for error in errors.values())
    return errors


async def test_a_secret_and_two_zeros_are_refused(trio: dict[str, RawClient]) -> None:
    operands = {"alice": await operand(trio["alice"])}
    for name in ("bob", "carol"):
        operands[name] = await trio[name].put(torch.zeros(COLUMNS))
    errors = await refused_sum(trio, operands)
    assert errors["alice"].details["rule"] == "sum.label"


async def test_zeros_that_carry_a_label_are_refused_too(trio: dict[str, RawClient]) -> None:
    """Pointer results, pointer-made arguments, and plan results that were zeroed in place."""
    alice, bob, carol = trio["alice"], trio["bob"], trio["carol"]

    async def pointer_zero(raw: RawClient) -> Ref:
        return (await raw.remote(lambda x: x.sum(0) * 0, await raw.open()))[0]

    async def zeroed_argument(raw: RawClient) -> Ref:
        (zeros,) = await raw.remote(lambda x: x * 0, await raw.open())
        return (await raw.plan(PLAN, zeros, await raw.open(part="targets"), torch.zeros(COLUMNS)))[0]

    async def zeroed_result(raw: RawClient) -> Ref:
        result = await operand(raw)
        await raw.run(torch.ops.aten.zero_.default, result, outputs=0)
        return result

    async def zeroed_through_a_view(raw: RawClient) -> Ref:
        result = await operand(raw)
        view = await raw.run(torch.ops.aten.view.default, result, [COLUMNS, 1])
        await raw.run(torch.ops.aten.zero_.default, view, outputs=0)
        return result

    for zero in (pointer_zero, zeroed_argument, zeroed_result, zeroed_through_a_view):
        operands = {"alice": await operand(alice), "bob": await zero(bob), "carol": await zero(carol)}
        errors = await refused_sum(trio, operands)
        assert {error.details["rule"] for error in errors.values() if isinstance(error, ReleaseDenied)} == {"sum.plan"}, zero


async def test_different_plans_and_different_arguments_are_refused(trio: dict[str, RawClient]) -> None:
    for case, rule in (("plan", "sum.plan"), ("arguments", "sum.arguments")):
        operands = {name: await operand(raw) for name, raw in trio.items()}
        operands["bob"] = await operand(trio["bob"], *((OTHER,) if case == "plan" else (PLAN, torch.ones(COLUMNS))))
        errors = await refused_sum(trio, operands)
        assert errors["alice"].details["rule"] == rule and errors["carol"].details["rule"] == rule


async def test_other_parts_of_the_dataset_are_other_arguments(trio: dict[str, RawClient]) -> None:
    square = trace(lambda a, b: (a * b).sum(), torch.randn(ROWS), torch.randn(ROWS))
    operands = {}
    for name, raw in trio.items():
        column = "x2" if name == "carol" else "x1"
        first, second = await raw.open(part="column", column="x0"), await raw.open(part="column", column=column)
        operands[name] = (await raw.plan(square, first, second))[0]
    errors = await refused_sum(trio, operands)
    assert errors["alice"].details["rule"] == "sum.arguments"


async def test_results_of_plans_on_results_of_plans_are_summed(trio: dict[str, RawClient]) -> None:
    standardise = trace(lambda x: (x - x.mean(0)) / (x.std(0) + 1e-6), torch.randn(ROWS, COLUMNS))
    moment = trace(lambda x: (x**3).mean(0), torch.randn(ROWS, COLUMNS))
    operands = {}
    for name, raw in trio.items():
        (clean,) = await raw.plan(standardise, await raw.open())
        operands[name] = (await raw.plan(moment, clean))[0]
    result, errors = await secure_sum(trio, operands)
    assert not errors and result is not None and result.shape == (COLUMNS,)


async def test_rows_and_small_groups_are_not_summed_either(trio: dict[str, RawClient]) -> None:
    rows = trace(lambda x: x[:30] * 1, torch.randn(ROWS, COLUMNS))
    few = trace(lambda x: x[:5].sum(0), torch.randn(ROWS, COLUMNS))
    for plan in (rows, few):
        operands = {name: (await raw.plan(plan, await raw.open()))[0] for name, raw in trio.items()}
        errors = await refused_sum(trio, operands)
        assert all(isinstance(error, ReleaseDenied) for error in errors.values())
