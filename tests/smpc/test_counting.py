"""A program costs between three parties what counting it in the clear says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from grid.smpc.functions import comparisons, exponential, softmaxes
from grid.smpc.local import run_parties
from grid.smpc.numbers import Number
from grid.smpc.party import Party
from grid.smpc.plain import completed
from grid.smpc.protocol import Protocol
from grid.smpc.replicated.costs import COSTS, Cost
from grid.smpc.replicated.counting import Counting
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Shared
from tests.smpc.streams import dealt

VALUES = np.linspace(-5, 5, 90).reshape(9, 10) * 2**18

Program = Callable[[Protocol, Shared], Awaitable[Any]]


async def side_by_side(protocol: Protocol, x: Shared) -> Any:
    y, z = await protocol.together(lambda p: p.multiply(x, x, 18), lambda p: comparisons.relu(p, Number(x)))
    nested = protocol.together(lambda p: p.together(lambda q: q.negative(x), lambda q: q.is_zero(y)), lambda p: p.bits(z.raw, 24))
    (a, b), c = await nested
    return await protocol.open_bits(await protocol.conjunction(a, b)), await protocol.number(c, x.shape)


async def layers(protocol: Protocol, x: Shared) -> Any:
    y = await protocol.matmul(x, x[:2].each(np.transpose), 18)
    images = x.reshape((1, 1, 9, 10))
    z = await protocol.conv2d(images, images[:, :, :3, :3], stride=(1, 1), padding=(0, 0), truncate=18)
    return await protocol.open(y), await protocol.open_to(await protocol.shuffle(z, 2), 1)


async def inputs(protocol: Protocol, x: Shared) -> Any:
    y = await protocol.share(0, (5,), np.zeros(5, np.uint64))
    return await protocol.truncate(await protocol.choose(await protocol.negative(y), y), 40)


PROGRAMS: dict[str, Program] = {
    "relu": lambda protocol, x: comparisons.relu(protocol, Number(x)),
    "exp": lambda protocol, x: exponential.exp(protocol, Number(x)),
    "softmax": lambda protocol, x: softmaxes.softmax(protocol, Number(x)),
    "side by side": side_by_side,
    "layers": layers,
    "inputs": inputs,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_costs_what_is_counted(name: str) -> None:
    async def program(party: Party) -> None:
        await PROGRAMS[name](Replicated(party), dealt(VALUES, party.rank))

    async def counted() -> Cost:
        counting = Counting()
        await PROGRAMS[name](counting, Shared(VALUES.astype(np.int64).view(np.uint64)))
        return counting.cost

    outcome = run_parties(program)
    declared = completed(counted())
    assert sum(outcome.bytes_sent) == declared.bytes_sent
    assert outcome.rounds == declared.rounds


def test_every_method_that_costs_is_counted() -> None:
    assert set(COSTS) <= set(vars(Counting))
