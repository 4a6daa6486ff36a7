"""The kernels, compiled before they are needed."""

from __future__ import annotations

import functools

import numpy as np

from grid.smpc.local import run_parties
from grid.smpc.party import Party
from grid.smpc.replicated.protocol import Replicated


@functools.lru_cache(maxsize=1)
def warm_up() -> None:
    """Have the kernels compiled, or read from their cache: on a node's loop that would hold everything up."""

    async def program(party: Party) -> None:
        protocol = Replicated(party)
        x = await protocol.share(0, (2, 3), np.arange(6, dtype=np.uint64).reshape(2, 3) if party.rank == 0 else None)
        y = await protocol.matmul(x, x.each(lambda part: part.T), 18)
        await protocol.multiply(y, y, 18)
        await protocol.multiply(y, y)
        await protocol.truncate(y, 40)
        negative = await protocol.negative(y)
        await protocol.number(negative, (2, 2))
        await protocol.choose(protocol.invert(negative), y)
        row = x[:1]
        await protocol.matmul(row, x.each(lambda part: part.T))
        await protocol.matmul(row, x.each(lambda part: np.ascontiguousarray(part.T)))
        await protocol.matmul(x, row.reshape((3, 1)))

    run_parties(program)
