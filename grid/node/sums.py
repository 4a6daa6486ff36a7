"""All secure sums of a node, by name: each name is used once, and messages find the sum that they belong to.

A client's `StartSum` makes one `OneSum`, which runs as a task of the node's own. What other nodes send before the client's
own request is here is kept, within bounds, until it is due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from grid.clock import Clock
from grid.crypto.identity import LocalIdentity
from grid.errors import InvalidRequest, NodeUnavailable, QuotaExceeded
from grid.ids import PeerId, SumId
from grid.node.copies import Copies
from grid.node.neighbours import Neighbour, Neighbours, Spawn
from grid.node.one_sum import Common, OneSum, Participant
from grid.smpc.statement import check_roster
from grid.tensors.fixed import check_format
from grid.wire.messages import StartSum, SumAnnouncement, SumPart, SumShare

MAX_DEADLINE_S = 3600.0
REMEMBERED_S = 2 * MAX_DEADLINE_S
"""How long the name of a sum cannot be used again."""

MAX_PER_CLIENT = 64
"""Sums of one session at once. The bytes of their operands are bounded, too (`Copies`)."""


class Sums:
    """The sums that this node takes part in; arguments as in `Common`. `claim` is the store's."""

    def __init__(
        self,
        *,
        me: LocalIdentity,
        minimum: int,
        clock: Clock,
        neighbours: Neighbours,
        spawn: Spawn,
        claim: Callable[[str, float, float], bool],
        names: Mapping[PeerId, str],
        copies: Copies,
    ) -> None:
        self._common = Common(me, minimum, clock, neighbours, names, copies)
        self._spawn = spawn
        self._claim = claim
        self._running: dict[SumId, OneSum] = {}
        self._over: dict[SumId, float] = {}

    def start(self, participant: Participant, message: StartSum) -> asyncio.Future[SumPart]:
        """A client puts an operand into a sum. The operand is taken in order with the client's commands."""
        check_roster(message.roster, self._common.me.id)
        check_format(message.fraction_bits, len(message.roster))
        if not 0 < message.deadline_s <= MAX_DEADLINE_S:
            raise InvalidRequest(f"the deadline of a sum must be more than 0 and at most {MAX_DEADLINE_S:g} s")
        if message.sum in self._running or message.sum in self._over or len(message.sum) > 64:
            raise InvalidRequest("a sum of this name has been started here; each sum needs a fresh one")
        if sum(begun.participant is participant for begun in self._running.values()) >= MAX_PER_CLIENT:
            raise QuotaExceeded(f"{MAX_PER_CLIENT} sums of this session are going on; wait for some")
        operand = participant.take_operand(message, lambda: self.claim(message))
        begun = self._running[message.sum] = OneSum(self._common, participant, message, operand)
        self._spawn(self._run(begun), f"sum {message.sum}")
        return begun.result

    async def _run(self, begun: OneSum) -> None:
        try:
            await begun.run()
        finally:
            self._running.pop(begun.message.sum, None)
            self._common.early.take(begun.message.sum)
            now = self._common.clock.monotonic()
            self._over[begun.message.sum] = now
            while now - next(iter(self._over.values())) > REMEMBERED_S:  # the oldest stand first
                del self._over[next(iter(self._over))]
            if not begun.result.done():
                begun.result.set_exception(NodeUnavailable("the node is closing"))
            if not begun.result.cancelled():
                begun.result.exception()  # marks it as seen: the client may be gone

    def claim(self, message: StartSum) -> None:
        """Note that this node contributes to the sum, for good. `InvalidRequest` if it did before, perhaps before a restart.

        For any thread: this writes to the store.
        """
        wall = self._common.clock.wall()
        if not self._claim(f"sum {message.sum}", wall + REMEMBERED_S, wall):
            raise InvalidRequest("this node has contributed to a sum of this name before; each sum needs a fresh one")

    def received(self, sender: Neighbour, message: SumAnnouncement | SumShare) -> None:
        """Something of a sum has come from a node."""
        begun = self._running.get(message.sum)
        if begun is not None and begun.party is not None:
            begun.received(sender, message)
        elif message.sum not in self._over:
            self._common.early.keep(sender, message, self._common.clock.monotonic())

    def lost(self, node: PeerId) -> None:
        """The last session with a node has ended."""
        self._common.early.forget(node)
        for begun in list(self._running.values()):
            begun.lost(node)

    def cancel(self, participant: Participant) -> None:
        """A client's session has ended: its sums are over."""
        for begun in list(self._running.values()):
            if begun.participant is participant:
                begun.cancelled()
