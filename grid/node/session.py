"""A client's session at a node, as the event loop sees it: messages become jobs of the client's lane, results replies.

Everything that touches the client's objects is a job, in the order in which the messages came. The loop itself only
submits jobs, waits for them, and moves frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from grid.crypto.identity import Card
from grid.errors import GridError, NodeUnavailable, NotFound
from grid.ids import ObjectId, PeerId
from grid.node.executor import Lane
from grid.node.one_sum import Operand
from grid.node.services import Services
from grid.node.transfers import Delivery
from grid.node.workspace import Parcel, Workspace
from grid.rpc.peer import Peer
from grid.smpc import ring
from grid.wire.messages import (
    CommandFailed,
    Commands,
    DeliverObject,
    DescribeObject,
    ErrorInfo,
    ExpectObject,
    FreeObjects,
    GetObject,
    Message,
    MoveObject,
    ObjectValue,
    Ok,
    OpenDataset,
    PutObject,
    PutPlan,
    RunPlan,
    StartSum,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_BYTES = 64 << 10
"""After a released value of this size the lane waits until little is left to be sent, so that a client that does not read
holds one value here and not thousands."""


class ClientSession:
    """One client's session. `peer` is set before its first message can come."""

    peer: Peer

    def __init__(self, *, card: Card, lane: Lane, workspace: Workspace, services: Services) -> None:
        self.card = card
        self._lane = lane
        self._workspace = workspace
        self._services = services
        self._loop = asyncio.get_running_loop()
        workspace.on_ended = lambda error: self._from_lane(self._end, error)

    @property
    def client(self) -> PeerId:
        """The client's id."""
        return self.card.id

    async def close(self) -> None:
        """The session is over: stop what runs for it and free everything."""
        gone = NodeUnavailable("the client's session is over")
        self._services.sums.cancel(self)
        self._services.transfers.forget(self, lambda _: True, gone)
        try:
            await self._lane.close()
        finally:  # the node itself may be closing and not wait
            self._workspace.clear()
        log.info("the client's session is over, its objects are freed")

    # ------------------------------------------------------------ values

    async def _ok(self, done: asyncio.Future[None]) -> Message:
        await done
        return Ok()

    def put(self, message: PutObject) -> Awaitable[Message]:
        """Keep a value of the client's."""
        return self._ok(self._lane.submit(lambda: self._workspace.put(message.object, message.tensor)))

    def free(self, message: FreeObjects) -> None:
        """Forget objects; one that is still on its way here is waited for no more."""
        self._give_up(frozenset(message.objects))
        self._lane.submit(lambda: self._workspace.free(message.objects))

    def _give_up(self, freed: frozenset[ObjectId]) -> None:
        """Wait no more for those of these objects that are on their way here."""
        self._services.transfers.forget(self, freed.__contains__, NotFound("the object was freed before it arrived"))

    def get(self, message: GetObject) -> Awaitable[Message]:
        """Release a value, or not."""
        sent: asyncio.Future[None] = self._loop.create_future()

        def release() -> ObjectValue:
            frame = self._workspace.release(message.object)
            if memoryview(frame.data).nbytes > PAUSE_BYTES:
                self._lane.pause(sent)
            return ObjectValue(tensor=frame)

        return self._released(self._lane.submit(release), sent)

    async def _released(self, value: asyncio.Future[ObjectValue], sent: asyncio.Future[None]) -> Message:
        reply = await value
        self._services.spawn(self._when_sent(sent), "sending a value")
        return reply

    async def _when_sent(self, sent: asyncio.Future[None]) -> None:
        try:
            await self.peer.drained()
        finally:
            if not sent.done():
                sent.set_result(None)

    def describe(self, message: DescribeObject) -> Awaitable[Message]:
        """Say what is known of an object without its value."""
        return self._lane.submit(lambda: self._workspace.describe(message.object))

    # ------------------------------------------------------------ commands and plans

    def commands(self, message: Commands) -> Awaitable[Message]:
        """Run operations."""
        if message.frees:
            self._give_up(frozenset(itertools.chain.from_iterable(message.frees)))
        return self._ok(self._lane.submit(lambda: self._workspace.run_commands(message, self._report), len(message.commands)))

    def open_dataset(self, message: OpenDataset) -> Awaitable[Message]:
        """Give a part of a dataset an id."""
        return self._ok(self._lane.submit(lambda: self._workspace.open_dataset(message, self._report)))

    def put_plan(self, message: PutPlan) -> Awaitable[Message]:
        """Take a plan, or note why it is refused."""
        return self._ok(self._lane.submit(lambda: self._workspace.put_plan(message)))

    def run_plan(self, message: RunPlan) -> Awaitable[Message]:
        """Run a plan."""
        return self._ok(self._lane.submit(lambda: self._workspace.run_plan(message, self._report)))

    def _report(self, command: int, error: GridError) -> None:
        """From the lane: tell the client that a command failed."""
        self._from_lane(self._notify, CommandFailed(command=command, error=ErrorInfo.of(error)))

    def _notify(self, message: Message) -> None:
        with contextlib.suppress(GridError):  # the session is over, or so full that the object's own error has to do
            self.peer.notify(message)

    def _end(self, error: GridError) -> None:
        self.peer.close_soon(error)

    def _from_lane(self, function: Callable[[T], None], argument: T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is nobody to tell
            self._loop.call_soon_threadsafe(function, argument)

    # ------------------------------------------------------------ moves

    def move(self, message: MoveObject) -> Awaitable[Message]:
        """Send an object to another node, if the owners of the rows behind it let it go there."""
        return self._move(message, self._lane.submit(lambda: self._workspace.take_for_move(message.object)))

    async def _move(self, message: MoveObject, taken: asyncio.Future[Parcel]) -> Message:
        parcel = await taken
        neighbour = await self._services.neighbours.session(message.to)
        await self._lane.submit(lambda: self._workspace.allow_move(parcel, neighbour.card.name))
        await neighbour.live.request(
            DeliverObject(transfer=message.transfer, tensor=parcel.tensor, datasets=parcel.datasets)
        )
        return Ok()

    def expect(self, message: ExpectObject) -> Awaitable[Message]:
        """Wait for an object from another node; what the client sends after this finds it, or why it is not there."""
        arrived, stored = self._services.transfers.expect(self, message)
        begun = self._lane.hold(stored)
        self._services.spawn(self._receive(message, arrived, stored), "a value that moves here")
        return self._ok(begun)

    async def _receive(self, message: ExpectObject, arrived: asyncio.Future[Delivery], stored: asyncio.Future[None]) -> None:
        try:
            try:
                delivery = await self._services.transfers.wait(message, arrived)
                keep = partial(self._workspace.take_delivery, message.object, delivery)
            except GridError as error:
                keep = partial(self._workspace.fail, message.object, error)
            with contextlib.suppress(NodeUnavailable):  # the session is over: nobody wants it
                self._lane.submit_first(keep)
        finally:
            if not stored.done():
                stored.set_result(None)

    # ------------------------------------------------------------ sums

    def start_sum(self, message: StartSum) -> Awaitable[Message]:
        """Take part in a secure sum."""
        return self._services.sums.start(self, message)

    def take_operand(self, message: StartSum, claim: Callable[[], None]) -> asyncio.Future[Operand]:
        """For `Sums`: the operand, in order with the client's commands."""
        return self._lane.submit(lambda: self._workspace.take_operand(message, claim))

    def in_lane(self, work: Callable[[], list[ring.Elements]]) -> asyncio.Future[list[ring.Elements]]:
        """For `Sums`: work in order with the client's commands."""
        return self._lane.submit(work)
