"""One secure sum at a node: carries out what `smpc.sum` decides, over sessions with the other nodes of the roster.

Announcements are signed by the node's identity key and verified against the card of the channel that they come over. The
sum lives until its result or failure has been told to everybody, also when the client has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from grid.clock import Clock
from grid.crypto.envelope import read, seal
from grid.crypto.identity import LocalIdentity
from grid.errors import AuthenticationFailed, DeadlineExceeded, GridError, NodeUnavailable, WireError
from grid.ids import PeerId, PlanId
from grid.node.copies import Copies
from grid.node.early import EarlyMessages
from grid.node.neighbours import Neighbour, Neighbours
from grid.rpc.channel import time_limit
from grid.smpc import ring
from grid.smpc.statement import Statement, decode
from grid.smpc.sum import Announce, Authorise, Effect, Fail, Finish, SendShare, SumParty, Withdraw
from grid.tensors.buffers import from_frame, to_frame
from grid.wire.messages import ErrorInfo, Message, StartSum, SumAnnouncement, SumPart, SumShare

log = logging.getLogger(__name__)

KIND = "grid sum announcement 1"
LINGER_S = 5.0
"""How long a failed sum goes on trying to tell nodes that it has no session with yet."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """What a client's lane gives for a sum: ring elements, and what the statement says of them.

    `commit`, for the lane, has the gate commit the release; it raises what refuses it. `cohort`: how many nodes its owners ask
    for, or 0.
    """

    elements: ring.Elements
    plan: PlanId | None
    arguments: str
    rows: int
    labelled: bool
    own: bool
    open: bool
    commit: Callable[[], None]
    cohort: int = 0


class Participant(Protocol):
    """The client's side of a sum at this node."""

    @property
    def client(self) -> PeerId: ...

    def take_operand(self, message: StartSum, claim: Callable[[], None]) -> asyncio.Future[Operand]:
        """Check and encode the operand; if nothing refuses it, `claim` the sum, which raises if that was done before."""
        ...

    def in_lane(self, work: Callable[[], list[ring.Elements]]) -> asyncio.Future[list[ring.Elements]]:
        """Do some work in the client's lane."""
        ...

@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Common:
    """What all sums of a node have in common.

    `minimum`: how many nodes a sum over datasets needs at least. `names`: what nodes are called in messages, as far as that is
    known; it may grow. `copies` counts what they hold of clients' values.
    """

    me: LocalIdentity
    minimum: int
    clock: Clock
    neighbours: Neighbours
    names: Mapping[PeerId, str]
    copies: Copies
    early: EarlyMessages = dataclasses.field(default_factory=EarlyMessages)


class OneSum:
    """One sum at this node."""

    def __init__(self, common: Common, participant: Participant, message: StartSum, operand: asyncio.Future[Operand]) -> None:
        self.participant = participant
        self.message = message
        self.result: asyncio.Future[SumPart] = asyncio.get_running_loop().create_future()
        self.party: SumParty | None = None
        self._operand: asyncio.Future[Operand] | None = operand
        self._commit: Callable[[], None] | None = None
        self._common = common
        self._sessions: dict[PeerId, Neighbour] = {}
        self._waiting: dict[PeerId, list[Message]] = {peer: [] for peer in message.roster if peer != common.me.id}
        self._envelope = b""
        self._over = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._gone = False
        self._lost: list[PeerId] = []

    async def run(self) -> None:
        """From the operand to the last message about the sum."""
        clock = self._common.clock
        limit_s = 0.95 * self.message.deadline_s  # the answer must be with the client in time, too
        deadline = clock.monotonic() + limit_s
        async with self._tasks:
            reaching = [self._tasks.create_task(self._reach(peer)) for peer in self._waiting]
            await self._take_part(limit_s, deadline)
            with contextlib.suppress(DeadlineExceeded):  # a node that cannot be reached by then is left to its own deadline
                async with time_limit(clock, LINGER_S, "telling the others"):
                    await asyncio.gather(*reaching)
            for task in reaching:
                task.cancel()

    async def _take_part(self, limit_s: float, deadline: float) -> None:
        """From the operand to the outcome; for so long its bytes count in its client's quota."""
        assert self._operand is not None
        with contextlib.ExitStack() as counted:
            try:
                async with time_limit(self._common.clock, limit_s, "the client's commands before the sum"):
                    operand, self._operand = await self._operand, None
                counted.enter_context(self._common.copies.counted(self.participant.client, operand.elements.nbytes))
            except GridError as error:
                self._operand = None
                self._refuse_all(error.with_traceback(None))  # which would keep the operand
                return
            self._begin(operand, deadline)
            timer = self._tasks.create_task(self._keep_time(deadline))
            await self._over.wait()
            timer.cancel()

    def _begin(self, operand: Operand, deadline: float) -> None:
        common, message = self._common, self.message
        self._commit = operand.commit
        expiry = common.clock.wall() + message.deadline_s
        mine = Statement(
            sum=message.sum,
            roster=message.roster,
            node=common.me.id,
            plan=operand.plan or PlanId(""),
            arguments=operand.arguments,
            shape=operand.elements.shape,
            fraction_bits=message.fraction_bits,
            rows=operand.rows,
            labelled=operand.labelled,
            own=operand.own,
            open=operand.open,
            expiry=expiry,
            nonce=secrets.token_bytes(16),
        )
        self._envelope = seal(KIND, mine.encode(), common.me.key)
        minimum = max(common.minimum, operand.cohort)
        self.party = SumParty(mine=mine, value=operand.elements, minimum=minimum, deadline=deadline, names=common.names)
        self._apply(self.party.start())
        for peer in self._lost:
            self.lost(peer)
        if self._gone:
            self.cancelled()
        for early in common.early.take(message.sum):
            self.received(early.sender, early.message)

    async def _reach(self, peer: PeerId) -> None:
        """Find a session with a node of the roster, and send it what waits."""
        try:
            session = await self._common.neighbours.session(peer)
        except GridError as error:
            log.info("sum %s: node %s cannot be reached: %s", self.message.sum, peer, error)
            self.lost(peer)
            self._waiting.pop(peer, None)
            return
        self._sessions[peer] = session
        for message in self._waiting.pop(peer, []):
            self._send(peer, message)

    async def _keep_time(self, deadline: float) -> None:
        clock = self._common.clock
        assert self.party is not None
        while not self.party.over:
            await clock.sleep(max(deadline - clock.monotonic(), 0.01))
            self._apply(self.party.tick(clock.monotonic()))

    def received(self, sender: Neighbour, message: SumAnnouncement | SumShare) -> None:
        """A node's announcement, share or withdrawal."""
        assert self.party is not None
        try:
            if isinstance(message, SumAnnouncement):
                effects = self._announced(self.party, sender, message)
            elif message.tensor is None:
                effects = self.party.withdrawn(sender.id, None if message.error is None else message.error.to_error())
            else:
                effects = self._shared(self.party, sender, message)
        except GridError as error:
            effects = self.party.refused(error) if sender.id in self.message.roster else []
        self._apply(effects)

    def _announced(self, party: SumParty, sender: Neighbour, message: SumAnnouncement) -> list[Effect]:
        payload = read(message.envelope, "sum announcement").verified(KIND, sender.card.key)
        statement = decode(payload)
        if statement.sum != message.sum:
            raise AuthenticationFailed(f"node {sender.card.name} sent the announcement of another sum")
        return party.announced(sender.id, statement, self._common.clock.wall())

    def _shared(self, party: SumParty, sender: Neighbour, message: SumShare) -> list[Effect]:
        assert message.tensor is not None
        if message.tensor.dtype != "i8":
            raise WireError(f"node {sender.card.name} sent a share that is not int64")
        return party.shared(sender.id, ring.from_tensor(from_frame(message.tensor)))

    def lost(self, peer: PeerId) -> None:
        """There is no session with a node any more, or none could be made."""
        if self.party is None:
            self._lost.append(peer)
        else:
            self._apply(self.party.lost(peer))

    def cancelled(self) -> None:
        """The client is gone."""
        self._gone = True
        if self.party is not None:
            self._apply(self.party.refused(NodeUnavailable("the client of the sum is gone")))

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Announce(to):
                    for peer in to:
                        self._send(peer, SumAnnouncement(sum=self.message.sum, envelope=self._envelope))
                case Authorise(elements, parties):
                    assert self._commit is not None
                    self._tasks.create_task(self._authorise(partial(_commit_and_split, self._commit, elements, parties)))
                case SendShare(to, elements):
                    self._send(to, SumShare(sum=self.message.sum, tensor=to_frame(ring.to_tensor(elements), copy=False)))
                case Withdraw(to, error):
                    for peer in to:
                        self._send(peer, SumShare(sum=self.message.sum, error=_reason(error)))
                case Finish(elements):
                    self._end(SumPart(tensor=to_frame(ring.to_tensor(elements), copy=False)))
                case Fail(error):
                    self._end(error)

    async def _authorise(self, work: Callable[[], list[ring.Elements]]) -> None:
        assert self.party is not None
        try:
            parts = await self.participant.in_lane(work)
        except GridError as error:
            self._apply(self.party.refused(error))
        else:
            self._apply(self.party.authorised(parts))

    def _refuse_all(self, error: GridError) -> None:
        """The operand itself is refused: there is nothing to take part with."""
        for peer in self._waiting.keys() | self._sessions.keys():
            self._send(peer, SumShare(sum=self.message.sum, error=_reason(error)))
        self._end(error)

    def _end(self, outcome: SumPart | GridError) -> None:
        if not self.result.done():
            if isinstance(outcome, GridError):
                self.result.set_exception(outcome)
            else:
                self.result.set_result(outcome)
        self._over.set()

    def _send(self, peer: PeerId, message: Message) -> None:
        session = self._sessions.get(peer)
        if session is None:
            self._waiting.get(peer, []).append(message)
            return
        try:
            session.live.notify(message)
        except GridError:  # after what goes on now: a loss is an event of its own
            asyncio.get_running_loop().call_soon(self.lost, peer)


def _commit_and_split(commit: Callable[[], None], elements: ring.Elements, parties: int) -> list[ring.Elements]:
    """The release is committed before any share exists."""
    commit()
    return ring.split(elements, parties)


def _reason(error: GridError) -> ErrorInfo:
    """What other nodes are told: the kind of error, and which node was lost. Texts and rules are for the client alone."""
    details = {key: value for key, value in error.details.items() if key in ("node", "peer")}
    return ErrorInfo(code=error.code, message="this node withdraws from the sum", details=details)
