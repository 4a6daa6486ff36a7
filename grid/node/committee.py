"""One committee at one of its nodes: carries out what `smpc.agreement` decides, and keeps a lane of work for each client.

Statements are signed by the node's identity key and verified against the card of the channel that they come over. Everything to
one peer goes over one session, so its statement stands before its words. The committee ends as a whole when a peer is lost or
does not agree, or when no client is left; the lane of one client ends alone when that client or its requests go wrong, which
the other parties are told.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from grid.clock import Clock
from grid.crypto.envelope import read, seal
from grid.crypto.identity import LocalIdentity
from grid.errors import AuthenticationFailed, GridError, InvalidRequest, NodeUnavailable, QuorumLost, WireError
from grid.ids import PeerId
from grid.node.neighbours import Neighbour, Neighbours
from grid.node.share_lane import ShareLane, again
from grid.settings import NodeSettings
from grid.smpc.agreement import Agreed, Agreement, Announce, Contribution, Effect, Fail, Statement, Terms, Withdraw, decode
from grid.smpc.keystreams import Keys
from grid.smpc.link import Words
from grid.wire.messages import CommitteeOver, CommitteeStatement, CommitteeWords, DealShare, ErrorInfo, Message

log = logging.getLogger(__name__)

KIND = "grid committee statement 1"
MAX_EARLY = 8
"""Statements and withdrawals that may have come before this node has made its own."""


class Participant(Protocol):
    """A client's session at this node."""

    @property
    def client(self) -> PeerId: ...

    def in_lane(self, work: Callable[[], list[Any]]) -> asyncio.Future[list[Any]]:
        """Do some work off the loop."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Common:
    """What all committees of a node have in common. `names` is what nodes are called, as far as that is known; it may grow."""

    me: LocalIdentity
    clock: Clock
    neighbours: Neighbours
    settings: NodeSettings
    names: Mapping[PeerId, str]


class Committee:
    """One committee at this node. `prepare` runs off the loop first, and raises what refuses it."""

    def __init__(self, common: Common, terms: Terms, deadline_s: float, prepare: Callable[[], list[Any]]) -> None:
        self.terms = terms
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: GridError | None = None
        self.deadline_s = deadline_s
        self._common, self._prepare = common, prepare
        self._rank = terms.roster.index(common.me.id)
        self._peers = tuple(peer for peer in terms.roster if peer != common.me.id)
        self._agreement: Agreement | None = None
        self._early: list[tuple[Neighbour, CommitteeStatement | CommitteeOver]] = []
        self._sessions: dict[PeerId, Neighbour] = {}
        self._waiting: dict[PeerId, list[Message]] = {peer: [] for peer in self._peers}
        self._participants: dict[PeerId, Participant] = {}
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._lanes = {client: self._lane(place, client) for place, client in enumerate(terms.clients)}

    def _lane(self, place: int, client: PeerId) -> ShareLane:
        common = self._common
        return ShareLane(
            rank=self._rank,
            place=place,
            send=lambda to, label, words: self._send_words(client, to, label, words),
            settings=common.settings,
            clock=common.clock,
            deadline_s=self.deadline_s,
            names=lambda rank: self._name(self.terms.roster[rank]),
            node_name=self._name,
            broken=lambda error: self._end_lane(client, error, tell=True),
        )

    def _name(self, peer: PeerId) -> str:
        return self._common.names.get(peer, peer)

    # ------------------------------------------------------------ clients

    def join(self, participant: Participant) -> None:
        """A client of the list takes part. Once only, at each node."""
        if participant.client in self._participants:
            raise InvalidRequest("this client has opened the committee here already; one session of it takes part")
        self._participants[participant.client] = participant

    def lane_of(self, participant: Participant) -> ShareLane:
        """The lane of a client's session. `InvalidRequest` for a session that takes no part."""
        if self._participants.get(participant.client) is not participant:
            raise InvalidRequest("this session takes no part in the committee")
        if self.error is not None:
            raise again(self.error)
        if not self.opened.done():
            raise InvalidRequest("the committee is not agreed on yet; wait for the answer to its opening")
        return self._lanes[participant.client]

    def leave(self, participant: Participant) -> bool:
        """A client's session takes part no more, if it did. True where nobody is left."""
        if self._participants.get(participant.client) is not participant:
            return False
        del self._participants[participant.client]
        gone = NodeUnavailable("the client of this work is gone")
        if self._participants:
            self._end_lane(participant.client, gone, tell=True)
        else:
            self.end(gone)
        return not self._participants

    def _end_lane(self, client: PeerId, error: GridError, *, tell: bool) -> None:
        self._lanes[client].end(error)
        if tell and self.error is None:
            for peer in self._peers:
                self._send(peer, CommitteeOver(committee=self.terms.committee, error=_reason(error), client=client))

    # ------------------------------------------------------------ life

    async def run(self, participant: Participant) -> None:
        """From the claim of the name to the end."""
        clock = self._common.clock
        deadline = clock.monotonic() + self.deadline_s
        try:
            async with asyncio.TaskGroup() as self._group:
                for peer in self._peers:
                    self._start(self._reach(peer))
                self._start(self._begin(participant, deadline))
                await self._over.wait()
                for task in self._tasks:
                    task.cancel()
        finally:
            self._group = None
            self.end(NodeUnavailable("the node is closing"))

    def _start(self, work: Any) -> None:
        if self._group is None or self.error is not None:
            work.close()
            return
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin(self, participant: Participant, deadline: float) -> None:
        common, clock = self._common, self._common.clock
        try:
            await participant.in_lane(self._prepare)
        except GridError as error:
            self.end(error)
            return
        expiry = common.clock.wall() + self.deadline_s
        mine = Statement(self.terms, common.me.id, expiry, secrets.token_bytes(16))
        self._envelope = seal(KIND, mine.encode(), common.me.key)
        self._agreement = Agreement(mine, deadline=deadline, names=common.names)
        self._apply(self._agreement.start())
        early, self._early = self._early, []
        for sender, message in early:
            self.received(sender, message)
        while not self.opened.done():
            await clock.sleep(max(deadline - clock.monotonic(), 0.01))
            self._apply(self._agreement.tick(clock.monotonic()))

    async def _reach(self, peer: PeerId) -> None:
        """Find a session with a node of the roster, send what waits, and watch it."""
        try:
            session = await self._common.neighbours.session(peer)
            self._sessions[peer] = session
            for message in self._waiting.pop(peer, []):
                self._send(peer, message)
            await session.live.wait_closed()
        except GridError as error:
            log.info("committee %s: node %s cannot be reached: %s", self.terms.committee, peer, error)
        self.lost(peer)

    def end(self, error: GridError, *, tell: bool = True) -> None:
        """The committee is over for everybody."""
        if self.error is not None:
            return
        if tell:
            for peer in self._sessions:
                self._send(peer, CommitteeOver(committee=self.terms.committee, error=_reason(error)))
        self.error = error
        for lane in self._lanes.values():
            lane.end(error)
        if not self.opened.done():
            self.opened.set_exception(again(error))
            self.opened.exception()  # marks it as seen: who asked may be gone
        self._early.clear()
        self._over.set()

    # ------------------------------------------------------------ the other nodes

    def received(self, sender: Neighbour, message: CommitteeStatement | CommitteeOver) -> None:
        """A peer's statement, or its withdrawal. From anybody else it changes nothing."""
        if self.error is not None or sender.id not in self._peers:
            return
        if isinstance(message, CommitteeOver) and message.client is not None:
            self._lane_over(sender, message)
            return
        if self._agreement is None:
            if len(self._early) < MAX_EARLY:
                self._early.append((sender, message))
            return
        if isinstance(message, CommitteeOver):
            error = message.error.to_error()
            if self.opened.done():
                self.end(self._withdrew(sender, error), tell=False)
            else:
                self._apply(self._agreement.withdrawn(sender.id, error))
            return
        try:
            effects = self._announced(self._agreement, sender, message)
        except GridError as error:
            effects = self._agreement.refused(error)
        self._apply(effects)

    def _announced(self, agreement: Agreement, sender: Neighbour, message: CommitteeStatement) -> list[Effect]:
        payload = read(message.envelope, "statement about a committee").verified(KIND, sender.card.key)
        statement = decode(payload)
        if statement.terms.committee != message.committee:
            raise AuthenticationFailed(f"node {sender.card.name} sent its statement about another committee")
        contribution = Contribution(message.pair, message.common)
        return agreement.announced(sender.id, statement, contribution, self._common.clock.wall())

    def _lane_over(self, sender: Neighbour, message: CommitteeOver) -> None:
        lane = None if message.client is None else self._lanes.get(message.client)
        if lane is not None:
            lane.end(self._withdrew(sender, message.error.to_error()))

    def _withdrew(self, sender: Neighbour, error: GridError) -> QuorumLost:
        """What a peer's end means here. If it says that it lost a third one, that one is named."""
        culprit = sender.card.name
        if isinstance(error, QuorumLost | WireError) and error.details.get("node"):
            culprit = str(error.details["node"])[:100]
            how = "is lost" if isinstance(error, QuorumLost) else "sent what makes no sense"
            return QuorumLost(f"node {culprit} {how}, as node {sender.card.name} says; the committee needs it", node=culprit)
        return QuorumLost(f"node {culprit} has ended its part of the work on shares ({error.code})", node=culprit)

    def words(self, sender: Neighbour, message: CommitteeWords) -> None:
        """One party's words to this one."""
        if self.error is not None or sender.id not in self._peers:
            return
        lane = self._lanes.get(message.client)
        data = memoryview(message.words)
        if lane is None or data.nbytes % 8:
            self.end(WireError(f"node {sender.card.name} sent what are no words of a client's work"))
            return
        lane.deliver(self.terms.roster.index(sender.id), message.label, np.frombuffer(data, "<u8").astype(np.uint64))

    def deal(self, sender: PeerId, message: DealShare) -> None:
        """A node's value for a client, in shares; the node may be this one."""
        if self.error is not None:
            raise again(self.error)
        lane = self._lanes.get(message.client)
        if lane is None or message.client not in self._participants or not self.opened.done():
            raise InvalidRequest("the client of this value takes no part in the committee")
        lane.deal(sender, message)

    def lost(self, peer: PeerId) -> None:
        """There is no session with a node any more, or none could be made."""
        if self.error is not None or peer not in self._peers:
            return
        name = self._name(peer)
        self.end(QuorumLost(f"node {name} is not reachable any more; the committee needs it", node=name))

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Announce(to, contribution):
                    self._send(
                        to,
                        CommitteeStatement(
                            committee=self.terms.committee,
                            envelope=self._envelope,
                            pair=contribution.pair,
                            common=contribution.common,
                        ),
                    )
                case Agreed(keys):
                    self._agreed(keys)
                case Withdraw(to, error):
                    for peer in to:
                        self._send(peer, CommitteeOver(committee=self.terms.committee, error=_reason(error)))
                case Fail(error):
                    self.end(error, tell=False)

    def _agreed(self, keys: Keys) -> None:
        if self.error is None:
            self.opened.set_result(None)
            for lane in self._lanes.values():
                self._start(lane.run(keys))

    def _send_words(self, client: PeerId, to: int, label: int, words: Words) -> None:
        message = CommitteeWords(
            committee=self.terms.committee, client=client, label=label, words=words.astype("<u8", copy=False).tobytes()
        )
        self._send(self.terms.roster[to], message)

    def _send(self, peer: PeerId, message: Message) -> None:
        session = self._sessions.get(peer)
        if session is None:
            self._waiting.get(peer, []).append(message)
            return
        try:
            session.live.notify(message)
        except GridError:  # after what goes on now: a loss is an event of its own
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().call_soon(self.lost, peer)


def _reason(error: GridError) -> ErrorInfo:
    """What other nodes are told: the kind of error, and which node was lost. Texts are for the client alone."""
    details = {key: value for key, value in error.details.items() if key == "node"}
    return ErrorInfo(code=error.code, message="this node ends its part of the work on shares", details=details)
