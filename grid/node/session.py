"""A client's session at a node, as the event loop sees it: messages become requests to its runtime, results replies.

Everything that touches the client's objects is done by the runtime, in the order in which the messages came. The loop itself
only submits, waits, and moves frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

from grid.crypto.identity import Card
from grid.errors import GridError, NodeUnavailable, NotFound, PlanRejected, WireError
from grid.ids import ObjectId, PeerId
from grid.node.committees import check_roster
from grid.node.desk import Dealing, Desk
from grid.node.one_sum import Operand
from grid.node.party_messages import Request
from grid.node.runtime import PAUSE_BYTES, Runtime
from grid.node.services import Services
from grid.node.transfers import Delivery
from grid.node.work import Offer
from grid.rpc.peer import Peer
from grid.smpc import ring
from grid.wire.messages import (
    Buffer,
    CloseCommittee,
    CommandFailed,
    Commands,
    DeliverObject,
    DeliverShare,
    DescribeObject,
    ErrorInfo,
    ExpectObject,
    FreeObjects,
    FreeShares,
    GetObject,
    Message,
    MoveObject,
    ObjectValue,
    Ok,
    OpenCommittee,
    PutObject,
    PutPlan,
    PutSharedPlan,
    ShareObject,
    StartSum,
)

log = logging.getLogger(__name__)

T = TypeVar("T")


class ClientSession:
    """One client's session. `peer` is set before its first message can come."""

    peer: Peer

    def __init__(self, *, card: Card, runtime: Runtime, desk: Desk, services: Services, max_plan_bytes: int) -> None:
        self.card = card
        self.client = card.id
        self._max_plan_bytes = max_plan_bytes
        self._runtime = runtime
        self._services = services
        self._loop = asyncio.get_running_loop()
        runtime.on_failed = self._report
        self._desk = desk
        desk.on_ended = lambda error: self._from_thread(self._end, error)

    async def close(self) -> None:
        """The session is over: stop what runs for it and free everything."""
        gone = NodeUnavailable("the client's session is over")
        self._services.sums.cancel(self)
        self._services.committees.cancel(self)
        self._services.transfers.forget(self, lambda _: True, gone)
        await self._runtime.close()
        log.info("the client's session is over, its objects are freed")

    # ------------------------------------------------------------ values

    def _ok(self, message: Message, weight: int = 1) -> Awaitable[Message]:
        return self._runtime.submit(message, weight)

    async def _done(self, done: asyncio.Future[T]) -> Message:
        await done
        return Ok()

    def put(self, message: PutObject) -> Awaitable[Message]:
        """Keep a value of the client's."""
        return self._ok(message)

    def free(self, message: FreeObjects) -> None:
        """Forget objects; one that is still on its way here is waited for no more."""
        self._give_up(frozenset(message.objects))
        self._runtime.submit(message)

    def _give_up(self, freed: frozenset[ObjectId]) -> None:
        """Wait no more for those of these objects that are on their way here."""
        self._services.transfers.forget(self, freed.__contains__, NotFound("the object was freed before it arrived"))

    def get(self, message: GetObject) -> Awaitable[Message]:
        """Release a value, or not."""
        sent: asyncio.Future[None] = self._loop.create_future()
        value = self._runtime.release(message.object, sent)
        value.add_done_callback(partial(self._released, sent))
        return value

    def _released(self, sent: asyncio.Future[None], value: asyncio.Future[Message]) -> None:
        reply = None if value.cancelled() or value.exception() is not None else value.result()
        if not isinstance(reply, ObjectValue):
            sent.set_result(None)  # whoever waits for it would wait for ever
        elif len(reply.tensor.data) > PAUSE_BYTES:
            with contextlib.suppress(NodeUnavailable):  # the node is closing
                self._services.spawn(self._when_sent(sent), "sending a value")

    async def _when_sent(self, sent: asyncio.Future[None]) -> None:
        try:
            await self.peer.drained()
        finally:
            if not sent.done():
                sent.set_result(None)

    def describe(self, message: DescribeObject) -> Awaitable[Message]:
        """Say what is known of an object without its value."""
        return self._runtime.submit(message)

    # ------------------------------------------------------------ commands and plans

    def commands(self, message: Commands) -> Awaitable[Message]:
        """Run operations and plans, open parts of datasets."""
        if message.frees:
            self._give_up(frozenset(itertools.chain.from_iterable(message.frees)))
        return self._ok(message, len(message.commands))

    def put_plan(self, message: PutPlan) -> Awaitable[Message]:
        """Take a plan, or note why it is refused. One that is too large is refused here, before anything keeps it."""
        self._check_plan(message.encoding)
        self._desk.note_plan(message)
        return self._ok(message)

    def _check_plan(self, encoding: Buffer) -> None:
        size = memoryview(encoding).nbytes
        if size > self._max_plan_bytes:
            raise PlanRejected(f"the plan has {size} bytes, and {self._max_plan_bytes} are allowed (max_plan_bytes)")

    def _report(self, command: int, error: GridError) -> None:
        """Tell the client that a command failed."""
        with contextlib.suppress(GridError):  # the session is over, or so full that the object's own error has to do
            self.peer.notify(CommandFailed(command=command, error=ErrorInfo.of(error)))

    def _end(self, error: GridError) -> None:
        self.peer.close_soon(error)

    def _from_thread(self, function: Callable[[T], None], argument: T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is nobody to tell
            self._loop.call_soon_threadsafe(function, argument)

    # ------------------------------------------------------------ moves

    def move(self, message: MoveObject) -> Awaitable[Message]:
        """Send an object to another node, if the owners of the rows behind it let it go there."""
        return self._move(message, self._runtime.take(message.object))

    async def _move(self, message: MoveObject, taken: asyncio.Future[Offer]) -> Message:
        offer = await taken
        with self._services.copies.counted(self.client, len(offer.tensor.data)):
            neighbour = await self._services.neighbours.session(message.to)
            await self._runtime.allow_move(offer, neighbour.card.name)
            datasets = () if offer.claim is None else offer.claim.datasets
            await neighbour.live.request(DeliverObject(transfer=message.transfer, tensor=offer.tensor, datasets=datasets))
        return Ok()

    def expect(self, message: ExpectObject) -> Awaitable[Message]:
        """Wait for an object from another node; what the client sends after this finds it, or why it is not there.

        What a committee opens holds nothing up: the client uses it once the parties have said that it is here.
        """
        if message.roster:
            check_roster(message.roster)
        arrived, stored = self._services.transfers.expect(self, message)
        begun = self._loop.create_future() if message.roster else self._runtime.hold(stored)
        if message.roster:
            begun.set_result(None)
        self._services.spawn(self._receive(message, arrived, stored), "a value that moves here")
        return self._done(begun)

    async def _receive(self, message: ExpectObject, arrived: asyncio.Future[Delivery], stored: asyncio.Future[None]) -> None:
        """The sender hears once a delivery waits for the client's work; its bytes count until that has taken it."""
        with contextlib.ExitStack() as counted:
            try:
                found: Delivery | GridError
                try:
                    found = await self._services.transfers.wait(message, arrived)
                    if found.opened is not None:
                        await self._file(found.opened, found)
                    nbytes = len(found.tensor.data)
                    counted.enter_context(self._services.copies.counted(self.client, nbytes))
                except GridError as error:
                    found = error
                kept = self._runtime.keep(message.object, found)
                refused = found if isinstance(found, GridError) else kept.exception() if kept.done() else None
                if refused is not None:
                    stored.set_exception(refused)
                    stored.exception()  # marks it as seen: the sender may be gone
            except NodeUnavailable:  # the session is over: nobody wants it
                return
            finally:
                if not stored.done():
                    stored.set_result(None)
            del found
            await asyncio.wait([kept])

    async def _file(self, opened: DeliverShare, found: Delivery) -> None:
        """Keep a copy of a result with rows of this node behind it for the node's owner."""
        if opened.opening.client != self.client:
            raise WireError("the committee opened another client's result under the transfer of this one")
        behind = any(one.node == self._services.id for one in opened.behind)
        if behind and not self._services.permits.gave(opened.opening):
            raise WireError("a result opens here that is said to have rows of this node behind it, which never permitted it")
        await self._services.results.keep(opened, found.tensor, self.card.name)

    # ------------------------------------------------------------ sums

    def start_sum(self, message: StartSum) -> Awaitable[Message]:
        """Take part in a secure sum."""
        return self._services.sums.start(self, message)

    def take_operand(self, message: StartSum, claim: Callable[[], None]) -> asyncio.Future[Operand]:
        """For `Sums`: the operand, in order with the client's commands."""
        return self._runtime.take_operand(message, claim)

    def in_lane(self, work: Callable[[], list[ring.Elements]]) -> asyncio.Future[list[ring.Elements]]:
        """For `Sums` and `Committees`: work off the loop."""
        return self._runtime.commit(work)

    # ------------------------------------------------------------ committees

    def open_committee(self, message: OpenCommittee) -> Awaitable[Message]:
        """Be a party of a committee for this client."""
        return self._services.committees.open(self, message)

    def close_committee(self, message: CloseCommittee) -> None:
        """The client is done with a committee."""
        self._services.committees.close(self, message.committee)

    def on_shares(self, message: Request) -> Awaitable[Message]:
        """A request to a committee, in order with the others to it."""
        return self._services.committees.submit(self, message)

    def put_shared_plan(self, message: PutSharedPlan) -> Awaitable[Message]:
        """Take a plan to be run on shares, or note why it is refused. One that is too large is refused here."""
        self._check_plan(message.encoding)
        return self._services.committees.submit(self, message)

    def free_shares(self, message: FreeShares) -> None:
        """Forget shares, once what was asked before is done."""
        with contextlib.suppress(GridError):  # the committee is over, and has forgotten them
            freed = self._services.committees.submit(self, message)
            assert isinstance(freed, asyncio.Future)

    def share_object(self, message: ShareObject) -> Awaitable[Message]:
        """Deal a value to the parties of a committee, if the owners of the rows behind it let it be shared."""
        check_roster(message.roster)
        taken = self._runtime.take(message.source)  # here, as the value is what it is before the next command
        return self._services.committees.share(self, message, partial(self._allowed_to_share, taken))

    async def _allowed_to_share(self, taken: asyncio.Future[Offer], nodes: Mapping[PeerId, str]) -> Dealing:
        return await self._runtime.allow_share(await taken, nodes)
