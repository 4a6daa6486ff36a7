"""Where one client's values live and its requests are done, in order: in threads of this process, or in a process of its own.

A session knows only this. Both kinds answer with the same messages, raise the same errors and keep the same order; what
another process adds is that a limit can end it. `tests/node/test_runtimes.py` is the suite that both pass.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Mapping

from grid.errors import GridError
from grid.ids import ObjectId, PeerId
from grid.node.desk import Dealing
from grid.node.one_sum import Operand
from grid.node.transfers import Delivery
from grid.node.work import Offer
from grid.smpc import ring
from grid.wire.messages import Message, StartSum

PAUSE_BYTES = 64 << 10
"""After a released value of this size nothing more is offered until little is left to be sent, so that a client that does not
read holds a few values here and not thousands."""


class Runtime(abc.ABC):
    """Made for one session, on its loop. All methods are for the loop, and none waits; results come as futures.

    `on_failed` is told the number of each command that failed, and why, on the loop, before the command's reply is there.
    `submit` and the like raise `QuotaExceeded` at once when too many commands wait, and `NodeUnavailable` after `close`.
    """

    on_failed: Callable[[int, GridError], None]

    @abc.abstractmethod
    def submit(self, message: Message, weight: int = 1) -> asyncio.Future[Message]:
        """Have a request of `grid.node.work.REQUESTS` done after all before it; gives the reply to the client.

        `weight`: the commands it counts for.
        """

    @abc.abstractmethod
    def release(self, object_id: ObjectId, sent: asyncio.Future[None]) -> asyncio.Future[Message]:
        """The reply with a copy of an object's value, as the rules let it go. `sent` is to be done once little of it waits."""

    @abc.abstractmethod
    def take(self, object_id: ObjectId) -> asyncio.Future[Offer]:
        """A copy of an object's value to be moved, which has yet to be allowed."""

    @abc.abstractmethod
    def allow_move(self, offer: Offer, to: str) -> asyncio.Future[None]:
        """Whether the rules let a value go to the node of this name."""

    @abc.abstractmethod
    def allow_share(self, offer: Offer, nodes: Mapping[PeerId, str]) -> asyncio.Future[Dealing]:
        """A value that `take` gave as it goes to a committee, if the rules let it be shared.

        `nodes`: the others that get shares, with the names on their cards."""

    @abc.abstractmethod
    def take_operand(self, message: StartSum, claim: Callable[[], None]) -> asyncio.Future[Operand]:
        """The operand of a secure sum. `claim` runs off the loop, where nothing refuses it."""

    @abc.abstractmethod
    def commit(self, work: Callable[[], list[ring.Elements]]) -> asyncio.Future[list[ring.Elements]]:
        """Run a secure sum's own work off the loop, in order with this client's releases."""

    @abc.abstractmethod
    def hold(self, until: asyncio.Future[None]) -> asyncio.Future[None]:
        """Let nothing that is submitted after this run before `until` is done. The result is done when the hold begins."""

    @abc.abstractmethod
    def keep(self, object_id: ObjectId, arrived: Delivery | GridError) -> asyncio.Future[None]:
        """Keep what a hold waits for, before everything else that waits; an error is what uses of the object raise.

        The result is done once it is nowhere else any more, with an error where it is lost.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """End what runs, forget everything, and return when that is done."""
