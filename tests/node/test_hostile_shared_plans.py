"""Plans on shares under attack: raw messages of a hostile client. Each is refused, and the committee goes on."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from test_hostile_committees import Trio, X, kinds, made, raw, trio, works

import grid
from grid.errors import GridError, InvalidRequest, NotFound, PlanRejected, QuotaExceeded
from grid.ids import CommitteeId, ObjectId, PeerId, PlanId
from grid.node.party_messages import Owner
from grid.node.shared_plans import SharedPlans
from grid.plans.ir import Plan
from grid.settings import NodeSettings
from grid.smpc.interpreter import Value
from grid.smpc.keystreams import NOTHING, Seen
from grid.smpc.programs import request_numbers
from grid.smpc.shares import Shared
from grid.tensors.buffers import to_frame
from grid.wire.messages import Inline, Ok, OwnerRule, PutSharedPlan, Ref, RunShared, SharedCall

__all__ = ["made", "raw", "trio"]

INTEGERS = torch.zeros(3, dtype=torch.int64)
SUMS = grid.trace(lambda x, y: (x * y, x + y), INTEGERS, INTEGERS)


async def put(trio: Trio, plan: Plan, name: str = "", encoding: bytes | None = None) -> list[Any]:
    message = PutSharedPlan(
        committee=trio.committee, plan=PlanId(name or plan.id), encoding=plan.encoding if encoding is None else encoding
    )
    return await asyncio.gather(*(trio.raw[one].request(message) for one in ("alice", "bob", "carol")), return_exceptions=True)


async def call(
    trio: Trio, plan: Plan, inputs: Sequence[Any], outputs: Sequence[int], count: int | None = None, name: str = ""
) -> list[Any]:
    """A call, with the numbers that the client claims; the next request follows them."""
    numbers = request_numbers(plan) if count is None else count

    def make(rank: int, number: int) -> RunShared:
        return RunShared(
            committee=trio.committee,
            number=number,
            calls=(
                SharedCall(
                    plan=PlanId(name or plan.id), count=numbers, inputs=list(inputs), outputs=tuple(map(ObjectId, outputs))
                ),
            ),
            tensors=(to_frame(torch.arange(3)),),
        )

    replies = await trio.ask(make)
    trio.number += numbers - 1
    return replies


async def test_a_plan_runs_on_raw_messages(trio: Trio) -> None:
    await trio.share(1, X)
    await put(trio, SUMS)
    assert kinds(await call(trio, SUMS, [Ref(1), Inline(0)], [2, 3])) == {Ok}
    assert (await trio.reveal(2)).tolist() == [0, 5, 16]  # type: ignore[union-attr]
    assert (await trio.reveal(3)).tolist() == [3, 6, 10]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("inputs", "outputs", "count", "name", "error"),
    [
        ([Ref(1), Ref(1)], [2, 3], 1, "0" * 64, NotFound),  # a plan that was never sent
        ([Ref(1), Ref(1)], [2, 3], 2, "", InvalidRequest),  # more numbers than it takes
        ([Ref(1), Ref(1)], [2], 1, "", InvalidRequest),  # fewer results
        ([Ref(1)], [2, 3], 1, "", InvalidRequest),  # fewer inputs
        ([Ref(1), Ref(77)], [2, 3], 1, "", NotFound),  # shares that are not there
        ([Ref(1), Inline(1)], [2, 3], 1, "", InvalidRequest),  # a tensor that did not come
        ([Ref(1), 5], [2, 3], 1, "", InvalidRequest),
        ([Ref(1), [Ref(1)]], [2, 3], 1, "", InvalidRequest),
        ([Ref(1), Ref(1)], [2, 2], 1, "", InvalidRequest),  # one id for two results
        ([Ref(1), Ref(1)], [1, 2], 1, "", InvalidRequest),  # the id of an input
    ],
)
async def test_a_call_that_makes_no_sense_fails_alone(
    trio: Trio, inputs: list[Any], outputs: list[int], count: int, name: str, error: type[GridError]
) -> None:
    await trio.share(1, X)
    await put(trio, SUMS)
    assert kinds(await call(trio, SUMS, inputs, outputs, count, name)) == {error}
    assert not isinstance(await trio.reveal(3), np.ndarray)
    assert (await trio.reveal(1) == X).all()  # type: ignore[union-attr]
    assert await works(trio)


@pytest.mark.parametrize("encoding", [b"", b"\xc1", b"nonsense", SUMS.encoding[:-1], SUMS.encoding + b"\x00"])
async def test_what_is_no_plan_makes_its_calls_fail(trio: Trio, encoding: bytes) -> None:
    await trio.share(1, X)
    assert kinds(await put(trio, SUMS, encoding=encoding)) == {Ok}
    assert kinds(await call(trio, SUMS, [Ref(1), Ref(1)], [2, 3])) == {PlanRejected}
    assert kinds(await trio.reveal(2)) == {PlanRejected}
    assert await works(trio)


async def test_a_plan_under_the_name_of_another_is_refused(trio: Trio) -> None:
    other = grid.trace(lambda x, y: (x, y), INTEGERS, INTEGERS)
    await trio.share(1, X)
    await put(trio, other, name=SUMS.id)
    assert kinds(await call(trio, SUMS, [Ref(1), Ref(1)], [2, 3])) == {PlanRejected}


async def test_a_plan_that_is_too_large_is_refused_before_anything_runs(trio: Trio) -> None:
    huge = grid.trace(lambda x, y: (torch.ones(1 << 30, dtype=torch.int64).sum() + x, y), INTEGERS, INTEGERS)
    wide = grid.trace(lambda x, y: ((x[:, None] * torch.ones(1 << 22, dtype=torch.int64)).sum(1), y), INTEGERS, INTEGERS)
    await trio.share(1, X)
    for number, plan in enumerate((huge, wide), 1):
        await put(trio, plan)
        replies = await call(trio, plan, [Ref(1), Ref(1)], [10 * number, 10 * number + 1])
        assert kinds(replies) <= {QuotaExceeded, InvalidRequest} and len(kinds(replies)) == 1
    assert await works(trio)


@pytest.mark.parametrize("count", [0, -1, 1 << 40])
async def test_numbers_out_of_bounds_end_the_work_at_once(trio: Trio, count: int) -> None:
    await trio.share(1, X)
    await put(trio, SUMS)
    assert all(isinstance(one, GridError) for one in await call(trio, SUMS, [Ref(1), Ref(1)], [2, 3], count))
    assert not isinstance(await trio.reveal(1), np.ndarray)


@dataclasses.dataclass
class Rows:
    """What a lane holds."""

    value: Value
    owners: frozenset[Owner]
    seen: Seen
    dealt: bool


def rows(owner: str = "", dealt: bool = True) -> Rows:
    named = {Owner(node=PeerId(owner), rule=OwnerRule(dataset="d", release="aggregate"))} if owner else set()
    return Rows(Value(Shared(np.zeros(3, np.uint64), np.zeros(3, np.uint64)), torch.int64), frozenset(named), NOTHING, dealt)


@pytest.mark.parametrize(
    ("first", "second", "owners", "direct"),
    [
        (rows(), rows(), set(), True),
        (rows("dave"), rows("erin"), {"dave", "erin"}, True),
        (rows("dave"), rows(dealt=False), {"dave"}, True),  # what the client does with its own values does not matter
        (rows("dave", dealt=False), rows("erin"), {"dave", "erin"}, False),
        (rows("dave"), rows("erin", dealt=False), {"dave", "erin"}, False),
    ],
)
def test_a_call_knows_whose_rows_are_behind_it_and_whether_the_plan_alone_saw_them(
    first: Rows, second: Rows, owners: set[str], direct: bool
) -> None:
    plans = SharedPlans(NodeSettings(), 1 << 20)
    plans.put(PutSharedPlan(committee=CommitteeId("c"), plan=SUMS.id, encoding=SUMS.encoding))
    asked = SharedCall(plan=SUMS.id, count=1, inputs=[Ref(1), Ref(2)], outputs=(ObjectId(3), ObjectId(4)))
    made = plans.call(asked, [], {1: first, 2: second}.__getitem__)
    assert {one.node for one in made.owners} == owners
    assert made.made == (SUMS.id if direct else "")


def test_a_client_cannot_send_plans_without_end() -> None:
    plans = SharedPlans(NodeSettings(max_plan_bytes=len(SUMS.encoding)), 1 << 20)
    for number in range(4):
        plans.put(PutSharedPlan(committee=CommitteeId("c"), plan=PlanId(f"{number}" * 64), encoding=SUMS.encoding))
    with pytest.raises(QuotaExceeded):
        plans.put(PutSharedPlan(committee=CommitteeId("c"), plan=PlanId("5" * 64), encoding=SUMS.encoding))
