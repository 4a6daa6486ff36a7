"""Whether an operation on rows fails is a bit about them: nothing tells it before the rules have let the value go, and then
it is counted."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch
from node_mesh import CLOCK, Mesh, RawClient, client, clients, dataset, mesh, secure_sum
from torch import Tensor

from grid.crypto.identity import LocalIdentity
from grid.errors import ExecutionFailed, GridError, ReleaseDenied
from grid.node.datasets import Dataset
from grid.plans.trace import trace
from grid.policy.labels import PRIVATE_FAILURE
from grid.tensors.fixed import NOT_REPRESENTABLE
from grid.wire.messages import Ref

aten = torch.ops.aten
ROWS = 40


@pytest.fixture
async def made() -> AsyncIterator[Mesh]:
    async with mesh({"alice": [dataset(ROWS, 3)], "bob": [dataset(ROWS, 3, seed=1)]}) as nodes:
        yield nodes


async def bit_of_a_row(raw: RawClient, threshold: float) -> Ref:
    """An index that is 0 or 5 as the value of row 7 decides, used on two elements."""
    row = await raw.run(aten.select.int, await raw.open(), 0, 7)
    over = await raw.run(aten.gt.Scalar, await raw.run(aten.select.int, row, 0, 1), threshold)
    index = await raw.run(aten.mul.Scalar, await raw.run(aten.add.Scalar, over, 0), 5)
    return await raw.run(aten.index_select.default, await raw.put(torch.zeros(2)), 0, index)


async def outside_total(raw: RawClient, threshold: float = -1e9) -> Ref:
    """A lookup by how many rows lie above a threshold, reduced: what the rules let go."""
    features = await raw.open()
    over = await raw.run(aten.gt.Scalar, features, threshold)
    index = await raw.run(aten.sum.dim_IntList, over, [0])
    return await raw.run(aten.embedding.default, await raw.put(torch.ones(2, 4)), index)


async def outcome(raw: RawClient, ref: Ref) -> tuple[Any, ...]:
    described = await raw.describe(ref)
    try:
        await raw.get(ref)
        said = "value"
    except GridError as error:
        said = f"{type(error).__name__} {re.sub('command [0-9]+', 'command', error.message)}"
    return described, said, dict(raw.failures)


@pytest.mark.parametrize("release", ["deny", "aggregate"])
async def test_a_failure_that_one_row_decides_looks_like_success(release: str) -> None:
    async with mesh({"alice": [dataset(ROWS, 3, release=release)]}) as made, client(made, "alice") as raw:
        outcomes = [await outcome(raw, await bit_of_a_row(raw, at)) for at in (-100.0, 100.0) for _ in range(4)]
        assert all(one == outcomes[0] for one in outcomes)
        assert outcomes[0][1].startswith("ReleaseDenied") and not raw.failures


async def test_what_is_made_of_a_failure_looks_like_success_too(made: Mesh) -> None:
    async with client(made, "alice") as raw:
        outcomes = []
        for at in (-100.0, 100.0):
            picked = await bit_of_a_row(raw, at)
            target = await raw.put(torch.zeros(1))
            await raw.run(aten.copy_.default, target, picked, outputs=0)
            view = await raw.run(aten.alias.default, target)
            outcomes.append([await outcome(raw, ref) for ref in (target, view, await raw.run(aten.zeros_like.default, picked))])
        assert outcomes[0] == outcomes[1] and not raw.failures
        assert outcomes[0][2][1] == "value"  # a constant says nothing, whatever it was shaped after


async def test_a_failure_is_told_where_the_value_was_let_go(made: Mesh) -> None:
    async with client(made, "alice") as raw:
        assert torch.equal(await raw.get(await outside_total(raw, 1e9)), torch.ones(3, 4))
        with pytest.raises(ExecutionFailed) as failed:
            await raw.get(await outside_total(raw))
        assert failed.value.message == f"aten.embedding.default: {PRIVATE_FAILURE}"
        assert failed.value.details["private"] is True and isinstance(failed.value.details["command"], int)
        assert not raw.failures


async def test_the_fifth_failure_ends_the_session_and_a_new_session_starts_where_it_ended(made: Mesh) -> None:
    me = LocalIdentity.create(name="scientist", role="client", clock=CLOCK)
    for _ in range(2):
        async with client(made, "alice", me) as raw:
            for _ in range(2):
                with pytest.raises(ExecutionFailed):
                    await raw.get(await outside_total(raw))
    async with client(made, "alice", me) as raw:
        with contextlib.suppress(GridError):  # the answer and the end of the session come together
            await raw.get(await outside_total(raw))
        error = await asyncio.wait_for(raw.peer.wait_closed(), 20)
        assert isinstance(error, ReleaseDenied) and error.details["rule"] == "private_errors"
    async with client(made, "alice", me) as raw:
        for threshold in (-1e9, 1e9):
            with pytest.raises(ReleaseDenied) as denied:
                await raw.get(await outside_total(raw, threshold))
            assert denied.value.details["rule"] == "private_errors"
        await raw.get(await raw.put(torch.ones(1)))
    async with client(made, "alice") as other:
        await other.get(await outside_total(other, 1e9))


async def test_a_sum_tells_nothing_before_the_rules_have_let_the_operand_go(made: Mesh) -> None:
    async with clients(made) as raw:
        refused = []
        for scale in (1.0, 1e30):
            refs = {}
            for name, one in raw.items():
                row = await one.run(aten.select.int, await one.open(), 0, 7)
                refs[name] = await one.run(aten.mul.Scalar, row, scale)
            _, errors = await secure_sum(raw, refs)
            refused.append({name: (type(error), error.code) for name, error in errors.items()})
            assert all(error.message != NOT_REPRESENTABLE for error in errors.values())
        assert refused[0] == refused[1]


async def test_a_value_that_does_not_fit_into_a_sum_counts(made: Mesh) -> None:
    plan = trace(lambda x: (x.sum(0) - 1e30).log(), torch.randn(ROWS, 3))
    async with clients(made) as raw:
        refs = {name: (await one.plan(plan, await one.open()))[0] for name, one in raw.items()}
        _, errors = await secure_sum(raw, refs)
        assert any(error.message == NOT_REPRESENTABLE for error in errors.values())
        assert any(made.nodes[name]._custody.gate._errors for name in raw)


async def test_steps_of_a_plan_fail_as_silently_as_commands(made: Mesh) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.ones(2, 4)[(x > -1e9).sum(0)].sum(1)

    async with client(made, "alice") as raw:
        plan = trace(function, torch.randn(ROWS, 3))
        (result,) = await raw.plan(plan, await raw.open())
        assert (await raw.describe(result)).axis == -1 and not raw.failures
        with pytest.raises(ExecutionFailed, match="nothing more can be said"):
            await raw.get(result)


# ------------------------------------------------------------ one dataset's failures stay out of another's releases


async def through_zeros_like(raw: RawClient, failed: Ref, total: Ref) -> Ref:
    return await raw.run(aten.add.Tensor, total, await raw.run(aten.zeros_like.default, failed))


async def through_an_empty_slice(raw: RawClient, failed: Ref, total: Ref) -> Ref:
    return await raw.run(aten.cat.default, [total, await raw.run(aten.slice.Tensor, failed, 0, 0, 0)])


async def through_a_dropout_mask(raw: RawClient, failed: Ref, total: Ref) -> Ref:
    _, mask = await raw.run(aten.native_dropout.default, failed, 0.0, True, outputs=2)
    return await raw.run(aten.mul.Tensor, total, mask)


async def through_statistics_that_are_only_read(raw: RawClient, failed: Ref, total: Ref) -> Ref:
    mean, variance = await raw.put(torch.zeros(3)), await raw.put(torch.ones(3))
    await raw.run(aten.add_.Tensor, mean, total, outputs=0)
    wide = await raw.run(aten.expand.default, await raw.run(aten.view.default, failed, [1, 1]), [1, 3])
    await raw.run(aten.native_batch_norm.default, wide, None, None, mean, variance, False, 0.1, 1e-5, outputs=3)
    return mean


async def through_a_write_into_zeros(raw: RawClient, failed: Ref, total: Ref) -> Ref:
    zeros = await raw.run(aten.zeros_like.default, await raw.run(aten.expand.default, failed, [3]))
    await raw.run(aten.add_.Tensor, zeros, total, outputs=0)
    return zeros


@pytest.mark.parametrize(
    "way",
    [
        through_zeros_like,
        through_an_empty_slice,
        through_a_dropout_mask,
        through_statistics_that_are_only_read,
        through_a_write_into_zeros,
    ],
)
async def test_a_failure_on_one_dataset_is_not_told_with_the_release_of_another(way: Any) -> None:
    parts = {"features": torch.randn(ROWS, 3), "policy": {"release": "deny"}}
    closed = Dataset.from_tensors("closed", parts)
    said = []
    async with mesh({"alice": [dataset(ROWS, 3), closed]}) as nodes:
        for threshold in (-1e9, 1e9):
            async with client(nodes, "alice") as raw:
                total = await raw.run(aten.sum.dim_IntList, await raw.open(), [0])
                row = await raw.run(aten.select.int, await raw.open("closed"), 0, 7)
                over = await raw.run(aten.gt.Scalar, await raw.run(aten.select.int, row, 0, 1), threshold)
                index = await raw.run(aten.mul.Scalar, await raw.run(aten.add.Scalar, over, 0), 5)
                failed = await raw.run(aten.index_select.default, await raw.put(torch.zeros(2)), 0, index)
                said.append(await outcome(raw, await way(raw, failed, total)))
    assert said[0] == said[1]
