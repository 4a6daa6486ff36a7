"""A client's values in this process, its requests in threads of the node. For notebooks and tests, and where there is no fork.

Between steps the limits on time hold here, too; a single step that hangs keeps its thread, and memory is bounded by the quotas
for values alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

from grid.errors import GridError
from grid.ids import ObjectId, PeerId
from grid.node.dataset_views import DatasetView
from grid.node.desk import Dealing, Desk
from grid.node.executor import Lane
from grid.node.one_sum import Operand
from grid.node.pace import Pace
from grid.node.runtime import PAUSE_BYTES, Runtime
from grid.node.transfers import Delivery
from grid.node.work import KeepDelivery, MarkFailed, Offer, TakeValue
from grid.node.workspace import DONE, Workspace
from grid.settings import NodeSettings
from grid.smpc import ring
from grid.wire.messages import ErrorInfo, Message, ObjectValue, Ok, StartSum, TensorFrame

OK = Ok()


class ThreadRuntime(Runtime):
    """One lane of the executor, and a workspace that only its jobs touch."""

    def __init__(self, *, lane: Lane, desk: Desk, sources: Mapping[str, DatasetView], settings: NodeSettings) -> None:
        self.on_failed = lambda command, error: None
        self._lane = lane
        self._desk = desk
        self._loop = asyncio.get_running_loop()
        self._workspace = Workspace(
            sources=sources,
            settings=settings,
            pace=Pace(settings, is_over=lambda: lane.closed),
            on_failed=self._failed,
        )

    def _failed(self, command: int, error: GridError) -> None:
        """From the lane."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is nobody to tell
            self._loop.call_soon_threadsafe(self.on_failed, command, error)

    def submit(self, message: Message, weight: int = 1) -> asyncio.Future[Message]:
        def job() -> Message:
            answer = self._workspace.handle(message)
            return OK if answer is DONE else answer

        return self._lane.submit(job, weight)

    def release(self, object_id: ObjectId, sent: asyncio.Future[None]) -> asyncio.Future[Message]:
        def job() -> Message:
            offer = self._offered(object_id)
            self._desk.release(offer)
            value = _copied(offer.tensor)
            if len(value.data) > PAUSE_BYTES:
                self._lane.pause(sent)
            return ObjectValue(tensor=value)

        return self._lane.submit(job)

    def take(self, object_id: ObjectId) -> asyncio.Future[Offer]:
        def job() -> Offer:
            offer = self._offered(object_id)
            return dataclasses.replace(offer, tensor=_copied(offer.tensor))

        return self._lane.submit(job)

    def _offered(self, object_id: ObjectId) -> Offer:
        offer = self._workspace.handle(TakeValue(object=object_id))
        assert isinstance(offer, Offer)
        return offer

    def allow_move(self, offer: Offer, to: str) -> asyncio.Future[None]:
        return self._lane.submit(partial(self._desk.allow_move, offer, to))

    def allow_share(self, offer: Offer, nodes: Mapping[PeerId, str]) -> asyncio.Future[Dealing]:
        return self._lane.submit(partial(self._desk.share, offer, nodes))

    def take_operand(self, message: StartSum, claim: Callable[[], None]) -> asyncio.Future[Operand]:
        return self._lane.submit(lambda: self._desk.admit(self._workspace.offer_sum(message), claim))

    def commit(self, work: Callable[[], list[ring.Elements]]) -> asyncio.Future[list[ring.Elements]]:
        return self._lane.submit(work)

    def hold(self, until: asyncio.Future[None]) -> asyncio.Future[None]:
        return self._lane.hold(until)

    def keep(self, object_id: ObjectId, arrived: Delivery | GridError) -> asyncio.Future[None]:
        def job() -> None:
            self._workspace.handle(kept(object_id, arrived))

        return self._lane.submit_first(job)

    async def close(self) -> None:
        try:
            await self._lane.close()
        finally:  # the node itself may be closing and not wait
            self._workspace.clear()


def kept(object_id: ObjectId, arrived: Delivery | GridError) -> Message:
    """What a workspace is asked when something that it waits for has arrived, or will not."""
    if isinstance(arrived, GridError):
        return MarkFailed(object=object_id, error=ErrorInfo.of(arrived))
    return KeepDelivery(object=object_id, tensor=arrived.tensor, datasets=arrived.datasets, sender=arrived.sender)


def _copied(frame: TensorFrame) -> TensorFrame:
    """The same value in memory that nobody writes to. It is made of one that may be written, so it is writable, too."""
    return dataclasses.replace(frame, data=memoryview(bytearray(frame.data)))
