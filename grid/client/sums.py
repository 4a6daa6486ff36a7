"""`grid.sum`: the sum of tensors at different nodes, and nothing else of them.

Each node splits its value into random shares modulo 2**64 and sends one to each other node; each adds up the shares that it
holds and sends that here. All of these together make the sum; fewer make noise.

Error bound: the result differs from the true sum by at most n * 2**-(fraction_bits + 1) for each element of n tensors, and by
the rounding of the result to their dtype; integers have no error. Each element of each tensor must be smaller in size than
2**(63 - fraction_bits) / n.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch

from grid.client.connection import NodeConnection
from grid.client.tensors import RemoteTensor
from grid.errors import DeadlineExceeded, GridError, InvalidRequest, NodeUnavailable, QuorumLost
from grid.ids import PeerId, SumId, random_id
from grid.tensors.fixed import check_format, decode

FRACTION_BITS = 24
"""For floating-point tensors, unless the caller says otherwise: errors below n * 3e-8, values up to 5e11 / n."""

TIMEOUT_S = 60.0
SETTLE_S = 1.0
"""After a first error, time for others to come in: the one that explains most is raised."""


def sum(tensors: Sequence[Any], *, fraction_bits: int | None = None, timeout: float | None = None) -> Any:
    """The sum of tensors of one shape and dtype, each at a node of its own, as a local tensor.

    In an asynchronous client, an awaitable of that. `timeout` in seconds; default 60. Raises `ReleaseDenied` where the owners'
    rules do not allow it, `QuorumLost` naming a node that is gone.
    """
    connections = _check(tensors)
    first = tensors[0]
    if fraction_bits is None:
        fraction_bits = FRACTION_BITS if first.dtype.is_floating_point else 0
    check_format(fraction_bits, len(tensors))
    return connections[0].wait(_sum(list(tensors), connections, fraction_bits, TIMEOUT_S if timeout is None else timeout))


def _check(tensors: Sequence[Any]) -> list[NodeConnection]:
    if not isinstance(tensors, (list, tuple)) or not all(isinstance(tensor, RemoteTensor) for tensor in tensors):
        raise InvalidRequest("grid.sum takes a list of remote tensors, each at another node; add a local one to the result")
    if len(tensors) < 2:
        raise InvalidRequest("grid.sum takes at least two tensors, each at another node; get() gives one by itself")
    connections = [tensor._handle.outbox for tensor in tensors]
    found = [one for one in connections if isinstance(one, NodeConnection)]
    first = tensors[0]
    if len(found) < len(tensors) or any(one.shapes is not found[0].shapes for one in found):
        raise InvalidRequest("grid.sum takes tensors of one client")
    if len({one.place.id for one in found}) < len(found):
        raise InvalidRequest("grid.sum takes one tensor from each node; add those of one node there first")
    for tensor in tensors:
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            raise InvalidRequest(
                f"grid.sum takes tensors of one shape and dtype; {first.location.name} has {tuple(first.shape)} {first.dtype},"
                f" {tensor.location.name} {tuple(tensor.shape)} {tensor.dtype}"
            )
    return found


async def _sum(
    tensors: list[RemoteTensor], connections: list[NodeConnection], fraction_bits: int, timeout_s: float
) -> torch.Tensor:
    roster = tuple(PeerId(one.place.id) for one in connections)
    sum_id = SumId(random_id())
    async with asyncio.TaskGroup() as group:
        # Each task keeps its error to itself: which one to raise is decided when they are known.
        parts = [
            group.create_task(_part(one.start_sum(tensor, sum_id, roster, fraction_bits, timeout_s)))
            for tensor, one in zip(tensors, connections, strict=True)
        ]
        await _settle(parts)
    outcomes = {one.place.name: _outcome(part) for one, part in zip(connections, parts, strict=True)}
    names = {one.place.id: one.place.name for one in connections}
    errors = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, GridError)}
    if errors:
        raise _most_telling(errors, names)
    total = torch.zeros(tensors[0].shape, dtype=torch.int64)
    for outcome in outcomes.values():
        assert isinstance(outcome, torch.Tensor)
        total += outcome  # wraps around, which is what a ring does
    return decode(total, fraction_bits, tensors[0].dtype)


async def _part(work: Any) -> torch.Tensor | GridError:
    try:
        part: torch.Tensor = await work
        return part
    except GridError as error:
        return error


async def _settle(parts: list[asyncio.Task[torch.Tensor | GridError]]) -> None:
    """Wait for all parts; once one has failed, only for `SETTLE_S` more."""
    pending = set(parts)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if any(isinstance(part.result(), GridError) for part in done):
            if pending:
                _, pending = await asyncio.wait(pending, timeout=SETTLE_S)
            for part in pending:
                part.cancel()
            return


def _outcome(part: asyncio.Task[torch.Tensor | GridError]) -> torch.Tensor | GridError | None:
    return None if part.cancelled() else part.result()


def _most_telling(errors: dict[str, GridError], names: dict[str, str]) -> GridError:
    """Of several errors the one that says most: a refusal, then who is gone, then that time is over."""
    explained = [_named(name, error, names) for name, error in errors.items()]
    return min(explained, key=lambda error: (isinstance(error, DeadlineExceeded), isinstance(error, QuorumLost)))


def _named(name: str, error: GridError, names: dict[str, str]) -> GridError:
    """The error with the names of nodes: people know those, not ids."""
    if isinstance(error, NodeUnavailable):
        return QuorumLost(f"the sum needs {name}, which is gone: {error.message}", node=name)
    if isinstance(error, QuorumLost):
        lost = str(error.details.get("node", ""))
        known = names.get(lost, lost) or "one of its nodes"
        return QuorumLost(f"the sum needs {known}, which is gone (as {name} says: {error.message})", node=known)
    said = error.message if error.message.startswith(f"{name}: ") else f"{name}: {error.message}"
    return type(error)(said, **error.details)
