"""Secure sums at a node: carries out what `smpc.sum` decides, over sessions with the other nodes of the roster.

A client's `StartSum` makes one `_Sum` task of the node's own, which lives until its result or failure has been told to
everybody, also when the client has gone. Announcements are signed by the node's identity key and verified against the card
of the channel that they come over. What comes before the client's own request is kept, within bounds, until it is due.
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
from grid.errors import AuthenticationFailed, DeadlineExceeded, GridError, InvalidRequest, NodeUnavailable, WireError
from grid.ids import PeerId, PlanId, SumId
from grid.node.neighbours import Neighbour, Neighbours, Spawn
from grid.rpc.channel import time_limit
from grid.smpc import ring
from grid.smpc.statement import Statement, check_roster, decode
from grid.smpc.sum import Announce, Authorise, Effect, Fail, Finish, SendShare, SumParty, Withdraw
from grid.tensors.buffers import from_frame, to_frame
from grid.tensors.fixed import check_format
from grid.wire.messages import ErrorInfo, Message, StartSum, SumAnnouncement, SumPart, SumShare

log = logging.getLogger(__name__)

KIND = "grid sum announcement 1"
MAX_DEADLINE_S = 3600.0
LINGER_S = 5.0
"""How long a failed sum goes on trying to tell nodes that it has no session with yet."""

EARLY_S = 120.0
MAX_EARLY_PER_NODE = 256
"""Announcements of sums that this node was not asked for yet: how long and how many are kept."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """What a client's lane gives for a sum: ring elements, and what the statement says of them.

    `commit`, for the lane, has the gate commit the release; it raises what refuses it.
    """

    elements: ring.Elements
    plan: PlanId | None
    arguments: str
    rows: int
    labelled: bool
    own: bool
    commit: Callable[[], None]


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


@dataclasses.dataclass(frozen=True, slots=True)
class _Early:
    sender: Neighbour
    message: SumAnnouncement | SumShare
    came: float


class Sums:
    """All sums that this node takes part in. `minimum`: how many nodes a sum over datasets needs."""

    def __init__(
        self,
        *,
        me: LocalIdentity,
        minimum: int,
        clock: Clock,
        neighbours: Neighbours,
        spawn: Spawn,
        claim: Callable[[str, float, float], bool],
        names: Callable[[], Mapping[PeerId, str]],
    ) -> None:
        self.me = me
        self.minimum = minimum
        self.clock = clock
        self.neighbours = neighbours
        self.names = names
        self._spawn = spawn
        self._claim = claim
        self._running: dict[SumId, _Sum] = {}
        self._early: dict[SumId, list[_Early]] = {}
        self._over: dict[SumId, float] = {}

    def start(self, participant: Participant, message: StartSum) -> asyncio.Future[SumPart]:
        """A client puts an operand into a sum. The operand is taken in order with the client's commands."""
        check_roster(message.roster, self.me.id)
        check_format(message.fraction_bits, len(message.roster))
        if not 0 < message.deadline_s <= MAX_DEADLINE_S:
            raise InvalidRequest(f"the deadline of a sum must be more than 0 and at most {MAX_DEADLINE_S:g} s")
        if message.sum in self._running or message.sum in self._over or len(message.sum) > 64:
            raise InvalidRequest("a sum of this name has been started here; each sum needs a fresh one")
        operand = participant.take_operand(message, lambda: self.claim(message))
        begun = self._running[message.sum] = _Sum(self, participant, message, operand)
        self._spawn(self._run(begun), f"sum {message.sum}")
        return begun.result

    async def _run(self, begun: _Sum) -> None:
        try:
            await begun.run()
        finally:
            self._running.pop(begun.message.sum, None)
            self._early.pop(begun.message.sum, None)
            now = self.clock.monotonic()
            self._over[begun.message.sum] = now
            for old in [name for name, ended in self._over.items() if ended < now - 2 * MAX_DEADLINE_S]:
                del self._over[old]
            if not begun.result.done():
                begun.result.set_exception(NodeUnavailable("the node is closing"))
            if not begun.result.cancelled():
                begun.result.exception()  # marks it as seen: the client may be gone

    def claim(self, message: StartSum) -> None:
        """Note that this node contributes to the sum, for good. `InvalidRequest` if it did before, perhaps before a restart.

        For any thread: this writes to the store.
        """
        wall = self.clock.wall()
        if not self._claim(f"sum {message.sum}", wall + 2 * MAX_DEADLINE_S, wall):
            raise InvalidRequest("this node has contributed to a sum of this name before; each sum needs a fresh one")

    def received(self, sender: Neighbour, message: SumAnnouncement | SumShare) -> None:
        """Something of a sum has come from a node."""
        begun = self._running.get(message.sum)
        if begun is not None and begun.party is not None:
            begun.received(sender, message)
        elif message.sum not in self._over:
            self._keep(sender, message)

    def _keep(self, sender: Neighbour, message: SumAnnouncement | SumShare) -> None:
        """Keep what came before its time. A share never does: its sender waits for our announcement."""
        if isinstance(message, SumShare) and message.tensor is not None:
            log.warning("node %s sent a share of a sum that this node has not announced", sender.card.name)
            return
        now = self.clock.monotonic()
        for name in [name for name, kept in self._early.items() if kept[0].came < now - EARLY_S]:
            del self._early[name]
        if sum(early.sender.id == sender.id for kept in self._early.values() for early in kept) >= MAX_EARLY_PER_NODE:
            log.warning("node %s announced too many sums that this node was not asked for", sender.card.name)
            return
        self._early.setdefault(message.sum, []).append(_Early(sender, message, now))

    def early(self, name: SumId) -> list[_Early]:
        """What was kept for a sum, and is so no longer."""
        return self._early.pop(name, [])

    def lost(self, node: PeerId) -> None:
        """The last session with a node has ended."""
        for begun in list(self._running.values()):
            begun.lost(node)

    def cancel(self, participant: Participant) -> None:
        """A client's session has ended: its sums are over."""
        for begun in list(self._running.values()):
            if begun.participant is participant:
                begun.cancelled()


class _Sum:
    """One sum at this node."""

    def __init__(self, sums: Sums, participant: Participant, message: StartSum, operand: asyncio.Future[Operand]) -> None:
        self.participant = participant
        self.message = message
        self.result: asyncio.Future[SumPart] = asyncio.get_running_loop().create_future()
        self.party: SumParty | None = None
        self._operand = operand
        self._commit: Callable[[], None] | None = None
        self._sums = sums
        self._sessions: dict[PeerId, Neighbour] = {}
        self._waiting: dict[PeerId, list[Message]] = {peer: [] for peer in message.roster if peer != sums.me.id}
        self._envelope = b""
        self._over = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._gone = False
        self._lost: list[PeerId] = []

    async def run(self) -> None:
        """From the operand to the last message about the sum."""
        clock = self._sums.clock
        limit_s = 0.95 * self.message.deadline_s  # the answer must be with the client in time, too
        deadline = clock.monotonic() + limit_s
        async with self._tasks:
            reaching = [self._tasks.create_task(self._reach(peer)) for peer in self._waiting]
            try:
                async with time_limit(clock, limit_s, "the client's commands before the sum"):
                    operand = await self._operand
            except GridError as error:
                self._refuse_all(error)
            else:
                await self._take_part(operand, deadline)
            with contextlib.suppress(DeadlineExceeded):  # a node that cannot be reached by then is left to its own deadline
                async with time_limit(clock, LINGER_S, "telling the others"):
                    await asyncio.gather(*reaching)
            for task in reaching:
                task.cancel()

    async def _take_part(self, operand: Operand, deadline: float) -> None:
        self._begin(operand, deadline)
        timer = self._tasks.create_task(self._keep_time(deadline))
        await self._over.wait()
        timer.cancel()

    def _begin(self, operand: Operand, deadline: float) -> None:
        sums, message = self._sums, self.message
        self._commit = operand.commit
        expiry = sums.clock.wall() + message.deadline_s
        mine = Statement(
            sum=message.sum,
            roster=message.roster,
            node=sums.me.id,
            plan=operand.plan or PlanId(""),
            arguments=operand.arguments,
            shape=operand.elements.shape,
            fraction_bits=message.fraction_bits,
            rows=operand.rows,
            labelled=operand.labelled,
            own=operand.own,
            expiry=expiry,
            nonce=secrets.token_bytes(16),
        )
        self._envelope = seal(KIND, mine.encode(), sums.me.key)
        names = {**sums.names(), sums.me.id: sums.me.name}
        self.party = SumParty(mine=mine, value=operand.elements, minimum=sums.minimum, deadline=deadline, names=names)
        self._apply(self.party.start())
        for peer in self._lost:
            self.lost(peer)
        if self._gone:
            self.cancelled()
        for early in sums.early(message.sum):
            self.received(early.sender, early.message)

    async def _reach(self, peer: PeerId) -> None:
        """Find a session with a node of the roster, and send it what waits."""
        try:
            session = await self._sums.neighbours.session(peer)
        except GridError as error:
            log.info("sum %s: node %s cannot be reached: %s", self.message.sum, peer, error)
            self.lost(peer)
            self._waiting.pop(peer, None)
            return
        self._sessions[peer] = session
        for message in self._waiting.pop(peer, []):
            self._send(peer, message)

    async def _keep_time(self, deadline: float) -> None:
        clock = self._sums.clock
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
        return party.announced(sender.id, statement, self._sums.clock.wall())

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
        with contextlib.suppress(NodeUnavailable):  # `Neighbours` reports the loss to `lost`
            session.live.notify(message)


def _commit_and_split(commit: Callable[[], None], elements: ring.Elements, parties: int) -> list[ring.Elements]:
    """The release is committed before any share exists."""
    commit()
    return ring.split(elements, parties)


def _reason(error: GridError) -> ErrorInfo:
    """What other nodes are told: the kind of error, and which node was lost. Texts and rules are for the client alone."""
    details = {key: value for key, value in error.details.items() if key in ("node", "peer")}
    return ErrorInfo(code=error.code, message="this node withdraws from the sum", details=details)
