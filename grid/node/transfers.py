"""Moving values from node to node: what a client expects here, and what neighbours deliver.

The client names a fresh transfer at both nodes. The receiver accepts one delivery under it, from that sender, of that shape
and dtype; the client's lane waits for it, so that later commands find the object. The sender's datasets stay on the
object's label for ever. Deliveries that nobody expects are refused at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping

from grid.clock import Clock
from grid.errors import GridError, InvalidRequest, NotFound, QuotaExceeded
from grid.ids import ObjectId, PeerId, TransferId
from grid.node.opened import check_size, datasets_behind, put_together
from grid.node.work import OPENED_FROM_SHARES
from grid.rpc.channel import time_limit
from grid.wire.messages import DeliverObject, DeliverShare, ExpectObject, TensorFrame

MAX_EXPECTED = 1024
"""Deliveries that one client may wait for at once."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """What arrived, and the datasets of the sender behind it. `opened`: how a committee opened it, if one did."""

    tensor: TensorFrame
    datasets: tuple[str, ...]
    sender: str
    opened: DeliverShare | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Expected:
    message: ExpectObject
    owner: object
    arrived: asyncio.Future[Delivery]
    stored: asyncio.Future[None]
    shares: dict[PeerId, DeliverShare] = dataclasses.field(default_factory=dict)


class Transfers:
    """Deliveries that this node's clients wait for. `wait_s`: how long."""

    def __init__(self, *, clock: Clock, wait_s: float) -> None:
        self._clock = clock
        self._wait_s = wait_s
        self._expected: dict[TransferId, _Expected] = {}

    def expect(self, owner: object, message: ExpectObject) -> tuple[asyncio.Future[Delivery], asyncio.Future[None]]:
        """Note that `owner`, a client's session, waits for a delivery. The second future is to be done once it is kept.

        Raises `InvalidRequest` for a transfer that is known, `QuotaExceeded`.
        """
        if message.transfer in self._expected:
            raise InvalidRequest("a transfer of this name is under way; each move needs a fresh one")
        if sum(expected.owner is owner for expected in self._expected.values()) >= MAX_EXPECTED:
            raise QuotaExceeded(f"more than {MAX_EXPECTED} moves to this node are under way")
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[Delivery] = loop.create_future()
        stored: asyncio.Future[None] = loop.create_future()
        self._expected[message.transfer] = _Expected(message, owner, arrived, stored)
        return arrived, stored

    async def wait(self, message: ExpectObject, arrived: asyncio.Future[Delivery]) -> Delivery:
        """The delivery. Raises `DeadlineExceeded` after the node's limit, or what ended the waiting."""
        try:
            async with time_limit(self._clock, self._wait_s, "the delivery of a moved value"):
                return await arrived
        finally:
            self._expected.pop(message.transfer, None)

    async def deliver(self, sender: PeerId, name: str, message: DeliverObject) -> None:
        """A neighbour brings a value; returns once it is kept. Raises `NotFound` where nobody waits for it from that node."""
        expected = self._expected.get(message.transfer)
        if expected is None or expected.message.sender != sender or expected.message.roster or expected.arrived.done():
            raise NotFound("nobody here waits for this delivery; the client may be gone")
        frame = message.tensor
        if frame.dtype != expected.message.dtype or frame.shape != expected.message.shape:
            error = InvalidRequest("the value that was moved has another shape or dtype than its receiver was told")
            expected.arrived.set_exception(error)
            raise error
        expected.arrived.set_result(Delivery(frame, message.datasets, name))
        await asyncio.shield(expected.stored)

    async def deliver_share(self, sender: PeerId, message: DeliverShare, names: Mapping[PeerId, str]) -> None:
        """A party brings its component of a result; returns once the result, of all three, is kept. Raises `NotFound` where
        nobody waits for it from that node, `WireError` where the parties do not agree. `names` is what nodes are called."""
        expected = self._expected.get(message.transfer)
        if expected is None or expected.arrived.done() or sender not in expected.message.roster or sender in expected.shares:
            raise NotFound("nobody here waits for this part of a result; the client may be gone")
        check_size(message, expected.message)
        expected.shares[sender] = message
        if len(expected.shares) == len(expected.message.roster):
            try:
                shares = [expected.shares[party] for party in expected.message.roster]
                value = put_together(shares, expected.message, names)
                expected.arrived.set_result(Delivery(value, datasets_behind(message, names), OPENED_FROM_SHARES, message))
            except GridError as error:
                expected.arrived.set_exception(error)
                expected.arrived.exception()  # marks it as seen: the client may be gone
                raise
            finally:
                expected.shares.clear()
        await asyncio.shield(expected.stored)

    def forget(self, owner: object, which: Callable[[ObjectId], bool], why: GridError) -> None:
        """Stop waiting for deliveries of `owner` whose objects `which` picks."""
        for transfer, expected in list(self._expected.items()):
            if expected.owner is owner and which(expected.message.object) and not expected.arrived.done():
                del self._expected[transfer]
                expected.arrived.set_exception(why)
