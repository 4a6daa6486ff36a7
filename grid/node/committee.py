"""One committee at one of its nodes: carries out what `smpc.agreement` decides, connects the party to its peers, and has it work.

Statements are signed by the node's identity key and verified against the card of the channel that they come over. Everything to
one peer goes over one session, in order. The committee ends as a whole when a peer is lost or
does not agree, or when no client is left; the lane of one client ends alone when that client or its requests go wrong, which
the other parties are told.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from grid.clock import Clock
from grid.crypto.envelope import read, seal
from grid.crypto.identity import LocalIdentity
from grid.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    GridError,
    InvalidRequest,
    NodeUnavailable,
    QuorumLost,
    WireError,
    again,
)
from grid.ids import PeerId
from grid.node.neighbours import Neighbour, Neighbours
from grid.node.openings import Openings
from grid.node.party import Parties, PartyPort, PartyUser
from grid.node.party_links import DialParty, Doors, Linking, PartyLinks
from grid.node.party_messages import Begin, Dealt, Request, ShareOffer
from grid.rpc.channel import time_limit
from grid.settings import NodeSettings
from grid.smpc.agreement import (
    ANNOUNCING,
    LIMITS,
    Agreed,
    Agreement,
    Announce,
    Contribution,
    Effect,
    Fail,
    Statement,
    Terms,
    Withdraw,
    decode,
)
from grid.smpc.keystreams import Keys
from grid.wire.messages import (
    CommitteeOver,
    CommitteeStatement,
    DealShare,
    ErrorInfo,
    GetShare,
    Message,
    OfferShares,
)

log = logging.getLogger(__name__)

KIND = "grid committee statement 1"
MAX_EARLY = 8
"""Statements and withdrawals that may have come before this node has made its own."""

EXPLAIN_S = 1.0
"""How long the node of a party that ended its connection may take to say why: it may have lost the third one first."""

IDLE_S = 4 * 3600.0
"""A committee that nobody asks for anything, for this long, ends: others wait for its place."""

FromPeer = CommitteeStatement | CommitteeOver | Linking


class Participant(Protocol):
    """A client's session at this node."""

    @property
    def client(self) -> PeerId: ...

    def in_lane(self, work: Callable[[], list[Any]]) -> asyncio.Future[list[Any]]:
        """Do some work off the loop."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Common:
    """What all committees of a node have in common. `names` is what nodes are called, as far as that is known; it may grow.

    `dial` reaches parties of other nodes, where this node may; `address` says where this one listens itself, "" if it does not.
    """

    me: LocalIdentity
    clock: Clock
    neighbours: Neighbours
    settings: NodeSettings
    names: Mapping[PeerId, str]
    parties: Parties
    doors: Doors
    dial: DialParty | None
    address: Callable[[], str]
    openings: Openings


class Committee(PartyUser):
    """One committee at this node. `prepare` runs off the loop first, and raises what refuses it."""

    def __init__(self, common: Common, terms: Terms, deadline_s: float, prepare: Callable[[], list[Any]]) -> None:
        self.terms = terms
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: GridError | None = None
        self._common, self._deadline_s, self._prepare = common, deadline_s, prepare
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
        self._party: PartyPort | None = None
        self._links: PartyLinks | None = None
        self._early_links: list[tuple[Neighbour, Linking]] = []
        self._deadline = 0.0
        self._asked = common.clock.monotonic()

    def _name(self, peer: PeerId) -> str:
        return self._common.names.get(peer, peer)

    # ------------------------------------------------------------ clients

    def join(self, participant: Participant) -> None:
        """A client of the list takes part. Once only, at each node."""
        if participant.client in self._participants:
            raise InvalidRequest("this client has opened the committee here already; one session of it takes part")
        self._participants[participant.client] = participant
        self._asked = self._common.clock.monotonic()

    def has(self, client: PeerId) -> bool:
        """Whether a client takes part."""
        return client in self._participants

    def submit(self, participant: Participant, message: Request) -> Awaitable[Message]:
        """A client's request. `InvalidRequest` for a session that takes no part."""
        if self._participants.get(participant.client) is not participant:
            raise InvalidRequest("this session takes no part in the committee")
        if self.error is not None:
            raise again(self.error)
        if self._party is None or not self.opened.done():
            raise InvalidRequest("the committee is not agreed on yet; wait for the answer to its opening")
        if isinstance(message, OfferShares) and message.client != participant.client:
            raise InvalidRequest("a client offers shares in its own name")
        self._asked = self._common.clock.monotonic()
        answer = self._party.submit(self._place(participant.client), message)
        return self._opened(participant, message, answer) if isinstance(message, GetShare) else answer

    async def _opened(self, participant: Participant, message: GetShare, answer: asyncio.Future[Message]) -> Message:
        offer = await answer
        assert isinstance(offer, ShareOffer)

        def still_on() -> None:
            if self.error is not None:
                raise again(self.error)
            if self._participants.get(participant.client) is not participant:
                raise NodeUnavailable("the client of this work is gone")

        return await self._common.openings.open(participant.client, message, offer, self._deadline_s, still_on)

    def _place(self, client: PeerId) -> int:
        return self.terms.clients.index(client)

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
        if self._party is not None:
            self._party.end_lane(self._place(client), error)
        if tell and self.error is None:
            for peer in self._peers:
                self._send(peer, CommitteeOver(committee=self.terms.committee, error=_reason(error), client=client))

    # ------------------------------------------------------------ life

    async def run(self, participant: Participant) -> None:
        """From the claim of the name to the end."""
        clock = self._common.clock
        deadline = clock.monotonic() + self._deadline_s
        try:
            async with asyncio.TaskGroup() as self._group:
                for peer in self._peers:
                    self._start(self._reach(peer))
                self._start(self._begin(participant, deadline))
                self._start(self._watch())
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
            await common.parties.prepare(participant.in_lane)
        except GridError as error:
            self.end(error)
            return
        expiry = common.clock.wall() + self._deadline_s
        settings = common.settings
        limits = tuple(getattr(settings, name) for name in LIMITS)
        mine = Statement(self.terms, common.me.id, expiry, secrets.token_bytes(16), limits)
        self._deadline = deadline
        self._envelope = seal(KIND, mine.encode(), common.me.key)
        self._agreement = Agreement(mine, deadline=deadline, names=common.names)
        self._apply(self._agreement.start())
        early, self._early = self._early, []
        for sender, message in early:
            self.received(sender, message)
        while self._agreement.state == ANNOUNCING:
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

    async def _watch(self) -> None:
        """End a committee that nobody uses."""
        clock = self._common.clock
        while (left := self._asked + IDLE_S - clock.monotonic()) > 0:
            await clock.sleep(left)
            if self._party is not None and self._party.busy:
                self._asked = clock.monotonic()
        self.end(_idle("this node"))

    def end(self, error: GridError, *, tell: bool = True) -> None:
        """The committee is over for everybody."""
        if self.error is not None:
            return
        if tell:
            for peer in self._sessions:
                self._send(peer, CommitteeOver(committee=self.terms.committee, error=_reason(error)))
        self.error = error
        if self._party is not None:
            self._party.end(error)
        if self._links is not None:
            self._links.close()
        if not self.opened.done():
            self.opened.set_exception(again(error))
            self.opened.exception()  # marks it as seen: who asked may be gone
        self._early.clear()
        self._early_links.clear()
        self._over.set()

    # ------------------------------------------------------------ the other nodes

    def received(self, sender: Neighbour, message: FromPeer) -> None:
        """A peer's statement, its withdrawal, or what concerns the link to its party. From anybody else it changes nothing."""
        if self.error is not None or sender.id not in self._peers:
            return
        if isinstance(message, Linking):
            self._linking(sender, message)
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
            if self._agreement.state != ANNOUNCING:
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
        if message.client not in self.terms.clients:
            return
        told = message.error.to_error()
        error = self._withdrew(sender, told)
        if isinstance(told, QuorumLost) and error.details.get("node") == self._name(self._common.me.id):
            self._start(self._lane_explained(message.client, error))
        else:
            self._end_lane(message.client, error, tell=False)

    async def _lane_explained(self, client: PeerId, error: GridError) -> None:
        """A peer waits for this node, whose party may wait for the third one itself, and is about to say so."""
        await self._common.clock.sleep(EXPLAIN_S / 2)
        self._end_lane(client, error, tell=False)

    def _linking(self, sender: Neighbour, message: Linking) -> None:
        if self._links is None:  # the peer has agreed a little earlier than this node
            if sum(early.id == sender.id for early, _ in self._early_links) < MAX_EARLY:
                self._early_links.append((sender, message))
            return
        try:
            self._links.received(self.terms.roster.index(sender.id), message)
        except WireError as error:
            name = sender.card.name
            self.end(WireError(f"{error.message} (from node {name})", node=name))

    def _withdrew(self, sender: Neighbour, error: GridError) -> QuorumLost:
        """What a peer's end means here. If it says that it lost a third one, that one is named."""
        culprit = sender.card.name
        if error.details.get("idle") is True:
            return _idle(f"node {culprit}")
        if isinstance(error, QuorumLost | WireError) and error.details.get("node"):
            culprit = str(error.details["node"])[:100]
            how = "is lost" if isinstance(error, QuorumLost) else "sent what makes no sense"
            return QuorumLost(f"node {culprit} {how}, as node {sender.card.name} says; the committee needs it", node=culprit)
        return QuorumLost(f"node {culprit} has ended its part of the work on shares ({error.code})", node=culprit)

    def deal(self, sender: PeerId, message: DealShare) -> Awaitable[Message]:
        """A node's value for a client, in shares; the node may be this one."""
        if self.error is not None:
            raise again(self.error)
        if self._party is None or message.client not in self._participants or not self.opened.done():
            raise InvalidRequest("the client of this value takes no part in the committee")
        dealt = Dealt(
            sender=sender,
            object=message.object,
            dtype=message.dtype,
            shape=message.shape,
            owners=message.owners,
            first=message.first,
            second=message.second,
            error=message.error,
        )
        return self._party.deal(self._place(message.client), dealt)

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
                case Agreed(keys, limits):
                    self._start(self._connect(keys, limits))
                case Withdraw(to, error):
                    for peer in to:
                        self._send(peer, CommitteeOver(committee=self.terms.committee, error=_reason(error)))
                case Fail(error):
                    self.end(error, tell=False)

    # ------------------------------------------------------------ the party

    async def _connect(self, keys: Keys, limits: tuple[int, ...]) -> None:
        """All three agree: connect the party to the others, and let it begin."""
        common, roster = self._common, self.terms.roster
        first, second = (roster.index(peer) for peer in self._peers)
        links = self._links = PartyLinks(
            self.terms.committee,
            (self._rank, first, second),
            keys,
            clock=common.clock,
            send=lambda to, message: self._send(roster[to], message),
        )
        left = max(self._deadline - common.clock.monotonic(), 0.01)
        try:
            async with time_limit(common.clock, left, "connecting the parties"):
                connecting = asyncio.ensure_future(links.connect(common.doors, common.dial, common.address()))
                early, self._early_links = self._early_links, []
                for sender, message in early:
                    self._linking(sender, message)
                sockets = await connecting
        except DeadlineExceeded:
            if not links.missing:
                took = f"connecting the parties took longer than {self._deadline_s:g} s"
                self.end(DeadlineExceeded(f"{took}; open the committee with more time (timeout=)"))
                return
            late = " and ".join(self._name(roster[rank]) for rank in links.missing)
            self.end(QuorumLost(f"the party of node {late} was not connected in time; the committee needs it", node=late))
            return
        except GridError as error:
            self.end(error)
            return
        begin = Begin(
            rank=self._rank,
            names=tuple(map(self._name, roster)),
            clients=len(self.terms.clients),
            deadline_s=self._deadline_s,
            own=keys.own,
            following=keys.following,
            common=keys.common,
            links=links.keys(),
            limits=limits,
        )
        await self._begin_party(begin, sockets)

    async def _begin_party(self, begin: Begin, sockets: dict[int, Any]) -> None:
        """The first party of a node may take a while to start."""
        left = max(self._deadline - self._common.clock.monotonic(), 0.01)
        try:
            self._party = self._common.parties.open(self)
        except GridError as error:
            for each in sockets.values():
                each.close()
            self.end(error)
            return
        try:
            self._party.begin(begin, sockets)
            async with time_limit(self._common.clock, left, "the start of this node's party"):
                await asyncio.shield(self.opened)
        except GridError as error:
            self.end(error)

    def party_ready(self) -> None:
        if not self.opened.done():
            self.opened.set_result(None)

    def lane_broken(self, place: int, error: GridError) -> None:
        self._end_lane(self.terms.clients[place], error, tell=True)

    def party_over(self, error: GridError) -> None:
        """Where a peer's connection ended, its node is given time to say why."""
        rank = error.details.get("party")
        if not isinstance(rank, int):
            self.end(error)
            return
        name = self._name(self.terms.roster[rank])
        named = type(error)(f"{error.message} (party {rank} is node {name})", node=name)
        if error.details.get("ended"):
            self._start(self._explained(named))
        else:
            self.end(named)

    async def _explained(self, error: GridError) -> None:
        await self._common.clock.sleep(EXPLAIN_S)
        self.end(error)

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


def _idle(who: str) -> QuorumLost:
    asked = f"nothing was asked of it for {IDLE_S / 3600:g} hours"
    return QuorumLost(f"{who} has ended the committee, as {asked}; open another one", idle=True)


def _reason(error: GridError) -> ErrorInfo:
    """What other nodes are told: the kind of error, and which node was lost. Texts are for the client alone."""
    details = {key: value for key, value in error.details.items() if key in ("node", "idle")}
    return ErrorInfo(code=error.code, message="this node ends its part of the work on shares", details=details)
