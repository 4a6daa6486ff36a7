"""grid.sum on the client's side: what it asks of nodes, adding up, and which error people see."""

from __future__ import annotations

import pytest
import torch
from small_node import SmallNode, served

from grid.client.sums import FRACTION_BITS, sum
from grid.client.tensors import RemoteTensor
from grid.errors import DeadlineExceeded, GridError, InvalidRequest, NodeUnavailable, QuorumLost, ReleaseDenied, WireError
from grid.tensors.buffers import to_frame
from grid.wire.messages import StartSum, SumPart


def put(node: SmallNode, value: torch.Tensor) -> RemoteTensor:
    return node.connection().put(value, None)


async def test_parts_add_up_to_the_sum_within_the_stated_bound() -> None:
    async with served("alice", "bob", "carol") as nodes:
        for bits in (None, 10, 30):
            values = [torch.randn(4, 3, dtype=torch.float64) * 100 for _ in nodes]
            got = await sum([put(node, value) for node, value in zip(nodes, values, strict=True)], fraction_bits=bits)
            bound = 3 * 2.0 ** -((bits or FRACTION_BITS) + 1) + 1e-12
            assert got.dtype is torch.float64 and (got - torch.stack(values).sum(0)).abs().max() <= bound
        ids = {one.sum for node in nodes for one in node.seen if isinstance(one, StartSum)}
        rosters = {one.roster for node in nodes for one in node.seen if isinstance(one, StartSum)}
        assert len(ids) == 3 and rosters == {("id-of-alice", "id-of-bob", "id-of-carol")}


async def test_integers_are_exact() -> None:
    async with served("alice", "bob") as nodes:
        got = await sum([put(node, torch.tensor([2**40, -3])) for node in nodes])
        assert got.dtype is torch.int64 and got.tolist() == [2**41, -6]


async def test_parts_wrap_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are uniform in the ring, so their plain sum overflows more often than not."""
    parts = {"alice": 2**63 - 1, "bob": 2**62, "carol": 2**62 + 6}
    monkeypatch.setattr(SmallNode, "_sum", lambda self, *_: SumPart(tensor=to_frame(torch.tensor([parts[self.name]]))))
    async with served(*parts) as nodes:
        assert (await sum([put(node, torch.tensor([0])) for node in nodes])).tolist() == [5]


async def test_what_makes_no_sum_is_refused_before_anything_is_asked() -> None:
    async with served("alice", "bob") as [alice, bob], served("carol") as [carol]:
        a, b = put(alice, torch.ones(3)), put(bob, torch.ones(3))
        for wrong, why in (
            ([a], "at least two"),
            (a, "list of remote"),
            ([a, torch.ones(3)], "list of remote"),
            ([a, a + 1], "one tensor from each node"),
            ([a, put(bob, torch.ones(4))], "one shape"),
            ([a, b.double()], "one shape"),
            ([a, put(carol, torch.ones(3))], "one client"),
        ):
            with pytest.raises(InvalidRequest, match=why):
                await sum(wrong)
        with pytest.raises(InvalidRequest, match="fraction_bits"):
            await sum([a, b], fraction_bits=60)
        assert not [one for node in (alice, bob, carol) for one in node.seen if isinstance(one, StartSum)]


@pytest.mark.parametrize(
    ("at_alice", "at_bob", "expected", "text"),
    [
        (ReleaseDenied("two are too few", rule="cohort"), QuorumLost("gone", node="id-of-alice"), ReleaseDenied, "alice: two"),
        (QuorumLost("no share came", node="id-of-carol"), DeadlineExceeded("late"), QuorumLost, "needs carol"),
        (None, NodeUnavailable("the link is gone"), QuorumLost, "needs bob"),
        (DeadlineExceeded("late"), DeadlineExceeded("late"), DeadlineExceeded, "alice: late"),
    ],
)
async def test_the_error_that_says_most_is_raised(
    at_alice: GridError | None, at_bob: GridError | None, expected: type[GridError], text: str
) -> None:
    async with served("alice", "bob", "carol") as nodes:
        for node, error in zip(nodes, (at_alice, at_bob, None), strict=True):
            if error is not None:
                node.refuse[StartSum] = error
        with pytest.raises(expected, match=text) as caught:
            await sum([put(node, torch.ones(2)) for node in nodes])
        if isinstance(caught.value, QuorumLost):
            assert caught.value.details["node"] in ("bob", "carol")


async def test_a_lost_node_is_named() -> None:
    async with served("alice", "bob", "carol") as nodes:
        values = [put(node, torch.ones(2)) for node in nodes]
        await values[2].get()
        nodes[2].cut()
        with pytest.raises(QuorumLost, match="carol") as caught:
            await sum(values)
        assert caught.value.details == {"node": "carol"}


async def test_a_part_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallNode, "_sum", lambda self, *_: SumPart(tensor=to_frame(torch.zeros(3, dtype=torch.int64))))
    async with served("alice", "bob") as nodes:
        with pytest.raises(WireError, match="another shape"):
            await sum([put(node, torch.ones(2)) for node in nodes])
