"""The bits of a secret, and whether it is zero: against plain arithmetic, in all three rotations of the roles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from grid.smpc.link import Words
from grid.smpc.local import Outcome, run_parties
from grid.smpc.packing import unpack
from grid.smpc.party import Operations, Party
from grid.smpc.replicated import groups
from grid.smpc.replicated.networks import network
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Bits

Integers = npt.NDArray[np.int64]

EDGES = np.array([0, 1, -1, 2, -2, 2**62 - 1, -(2**62), 2**63 - 1, -(2**63), 0b1010, -(2**18), 2**18], np.int64)
COUNTS = (1, 2, 3, 4, 24, 36, 64)


def opened(values: Integers, method: str, *arguments: int, start: int = 0) -> Outcome[Words]:
    async def program(party: Party) -> Words:
        protocol = Replicated(party, Operations(start))
        x = await protocol.share(0, values.shape, values.view(np.uint64) if party.rank == 0 else None)
        planes: Bits = await getattr(protocol, method)(x, *arguments)
        return await protocol.open_bits(planes)

    return run_parties(program)


@pytest.mark.parametrize("start", range(3))
def test_bits_are_those_of_the_value(start: int) -> None:
    values = np.concatenate([EDGES, np.random.default_rng(start).integers(-(2**63), 2**63 - 1, 180)])
    for count in COUNTS:
        expected = values.view(np.uint64)[None] >> np.arange(count, dtype=np.uint64)[:, None] & np.uint64(1)
        for result in opened(values, "bits", count, start=start).results:
            assert (unpack(result, values.size) == expected).all(), count


@pytest.mark.parametrize("start", range(3))
def test_zero_is_told_from_all_others(start: int) -> None:
    values = np.concatenate([EDGES, np.zeros(70, np.int64), np.int64(1) << np.arange(64), EDGES])
    for result in opened(values, "is_zero", start=start).results:
        assert (unpack(result, values.size)[0] == (values == 0)).all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 2), (65539,)])
def test_any_shape_and_the_border_of_a_chunk(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).integers(-2, 2, shape)
    for method, arguments, expected in (("is_zero", (), [values == 0]), ("bits", (2,), [values & 1, values >> 1 & 1])):
        result = opened(values, method, *arguments).results[1]
        assert (unpack(result, values.size) == np.reshape(expected, (len(expected), values.size))).all()


def test_rounds_are_those_of_the_design() -> None:
    shares = 1 + 1  # the input and the opening
    assert opened(EDGES, "is_zero").rounds - shares == 6
    assert [opened(EDGES, "bits", count).rounds - shares for count in COUNTS] == [1, 2, 2, 2, 5, 6, 6]
    assert opened(EDGES, "negative").rounds - shares == 6


def test_the_network_has_as_many_gates_as_it_must() -> None:
    levels = network(63, 4)
    assert [level.high.size for level in levels] == [31, 31, 31, 31]
    assert sum(level.rows for level in levels) == 4 * 31 + (31 - 4) + (31 - 8) + (31 - 16)
    assert sum(level.rows for level in network(63, 1)) == 186 + 124


@pytest.mark.parametrize("group", [1, 2, 3, 5])
def test_groups_of_any_size_give_the_same(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GROUP", group)
    values = np.r_[EDGES, np.random.default_rng(group).integers(-(2**63), 2**63 - 1, 60)]
    planes = values >> np.arange(24)[:, np.newaxis] & 1
    for method, arguments, expected in (("bits", (24,), planes), ("negative", (), values < 0), ("is_zero", (), values == 0)):
        found = opened(values, method, *arguments).results[0]
        assert (unpack(found, values.size) == expected).all(), method
