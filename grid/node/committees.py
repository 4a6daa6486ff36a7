"""All committees of a node, by id: each id is used once, and messages find the committee that they belong to.

A client's `OpenCommittee` makes one `Committee`, which runs as a task of the node's own; a second client of the list joins it.
What other nodes send before the client's own request is here is kept, within bounds, until it is due.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grid.clock import Clock
from grid.crypto.identity import LocalIdentity
from grid.crypto.prg import SEED_BYTES, ring_elements
from grid.errors import AuthenticationFailed, GridError, InvalidRequest, NotFound, QuotaExceeded, ReleaseDenied, again
from grid.ids import CommitteeId, PeerId
from grid.node.committee import Committee, Common, FromPeer, Participant
from grid.node.desk import Dealing
from grid.node.neighbours import Neighbour, Neighbours, Spawn
from grid.node.openings import Openings
from grid.node.party import Parties
from grid.node.party_links import DialParty, Doors
from grid.node.party_messages import Request, ShareOffer
from grid.node.permits import Permits
from grid.settings import NodeSettings
from grid.smpc.agreement import PARTIES, Terms
from grid.wire.messages import (
    Buffer,
    CommitteeOver,
    CommitteeStatement,
    DealShare,
    ErrorInfo,
    Message,
    MoveShares,
    Ok,
    OpenCommittee,
    ShareObject,
)

MAX_DEADLINE_S = 3600.0
REMEMBERED_S = 30 * 24 * 3600.0
"""How long the id of a committee cannot be used again. Keys would be others anyway."""

MAX_OVER = 1000
"""Committees whose end is explained to whoever asks late."""

MAX_EARLY_PER_NODE = 64
EARLY_KEPT_S = 120.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Early:
    sender: Neighbour
    message: CommitteeStatement | CommitteeOver
    came: float


class Committees:
    """The committees that this node is a party of; arguments as in `committee.Common`. `claim` is the store's, `permits` what
    this node gives itself."""

    def __init__(
        self,
        *,
        me: LocalIdentity,
        clock: Clock,
        neighbours: Neighbours,
        settings: NodeSettings,
        spawn: Spawn,
        claim: Callable[[str, float, float], bool],
        names: Mapping[PeerId, str],
        parties: Parties,
        doors: Doors,
        dial: DialParty | None,
        address: Callable[[], str],
        permits: Permits,
        openings: Openings,
    ) -> None:
        self._common = Common(me, clock, neighbours, settings, names, parties, doors, dial, address, openings)
        self._permits = permits
        self._spawn = spawn
        self._claim = claim
        self._running: dict[CommitteeId, Committee] = {}
        self._early: dict[CommitteeId, list[_Early]] = {}
        self._over: dict[CommitteeId, GridError] = {}

    @property
    def count(self) -> int:
        """Committees that run here."""
        return len(self._running)

    # ------------------------------------------------------------ clients

    async def open(self, participant: Participant, message: OpenCommittee) -> Message:
        """A client opens a committee, or joins it. Returns once the three nodes agree."""
        terms = Terms(message.committee, message.roster, message.clients)
        terms.check(self._common.me.id)
        if participant.client not in terms.clients:
            raise AuthenticationFailed("this client is not among those that may take part in the committee")
        if not 0 < message.deadline_s <= MAX_DEADLINE_S:
            raise InvalidRequest(f"the deadline of a committee must be more than 0 and at most {MAX_DEADLINE_S:g} s")
        committee = self._running.get(terms.committee)
        if committee is None:
            committee = self._begin(participant, terms, message.deadline_s)
        elif committee.terms != terms:
            raise InvalidRequest("the committee of this id has other nodes or clients")
        else:
            self._check_quota(participant.client)
            committee.join(participant)
        try:
            await asyncio.shield(committee.opened)
        except GridError as error:
            raise again(error) from None
        return Ok()

    def _begin(self, participant: Participant, terms: Terms, deadline_s: float) -> Committee:
        most = self._common.settings.max_committees
        if len(self._running) >= most:
            raise QuotaExceeded(f"this node is a party of {most} committees (max_committees); try again later")
        self._check_quota(participant.client)
        committee = Committee(self._common, terms, deadline_s, functools.partial(self._prepare, terms))
        committee.join(participant)
        self._running[terms.committee] = committee
        for early in self._early.pop(terms.committee, []):
            committee.received(early.sender, early.message)
        self._spawn(self._run(committee, participant), f"committee {terms.committee}")
        return committee

    def _check_quota(self, client: PeerId) -> None:
        """Raise where the client takes part in half of what fits here. That others have named it counts for nothing."""
        most = (self._common.settings.max_committees + 1) // 2
        if sum(running.has(client) for running in self._running.values()) >= most:
            raise QuotaExceeded(f"this client takes part in {most} committees here, half of max_committees; close some first")

    def _prepare(self, terms: Terms) -> list[Any]:
        """Note, for good, that this node takes part. For a thread: it takes time."""
        wall = self._common.clock.wall()
        if not self._claim(f"committee {terms.committee}", wall + REMEMBERED_S, wall):
            raise InvalidRequest("this node was in a committee of this id before; each committee needs a fresh one")
        return []

    async def _run(self, committee: Committee, participant: Participant) -> None:
        try:
            await committee.run(participant)
        finally:
            self._running.pop(committee.terms.committee, None)
            if committee.error is not None:
                self._over[committee.terms.committee] = committee.error
            if len(self._over) > MAX_OVER:
                del self._over[next(iter(self._over))]

    def submit(self, participant: Participant, message: Request) -> Awaitable[Message]:
        """A client's request to its committee."""
        committee = self._find(message.committee)
        answer = committee.submit(participant, message)
        return self._moved(participant, message, answer) if isinstance(message, MoveShares) else answer

    def close(self, participant: Participant, committee: CommitteeId) -> None:
        """A client is done with a committee."""
        running = self._running.get(committee)
        if running is not None:
            running.leave(participant)

    def cancel(self, participant: Participant) -> None:
        """A client's session has ended."""
        for running in list(self._running.values()):
            running.leave(participant)

    def _find(self, committee: CommitteeId) -> Committee:
        running = self._running.get(committee)
        if running is None and committee in self._over:
            raise again(self._over[committee])
        if running is None:
            raise NotFound("there is no such committee here (any more)")
        return running

    # ------------------------------------------------------------ values of this node

    async def share(
        self,
        participant: Participant,
        message: ShareObject,
        allowed: Callable[[Mapping[PeerId, str]], Awaitable[Dealing]],
    ) -> Message:
        """Deal a value of this node's to the parties. `allowed`: the value, once the rules let the other nodes have shares of it;
        it gets the names on their cards."""
        try:
            dealing = await allowed(await self._common.neighbours.names(message.roster))
            await self._permits.note(message.committee, participant.client, message.roster, dealing)
        except GridError as error:
            await self._refuse(participant, message, error)
            raise
        value = DealShare(
            committee=message.committee,
            client=participant.client,
            object=message.object,
            dtype=dealing.dtype,
            shape=dealing.frame.shape,
            owners=dealing.rules,
            first=b"",
            second=b"",
        )
        await self._deal_out(value, dealing.frame.data, message.roster)
        return Ok()

    async def _deal_out(self, value: DealShare, data: Buffer, roster: Sequence[PeerId]) -> None:
        """Deal ring elements to the nodes of a committee."""
        seeds, rest = deal(np.frombuffer(data, "<u8").astype(np.uint64))
        parts = ((seeds[0], seeds[1]), (seeds[1], rest), (rest, seeds[0]))
        dealt = [dataclasses.replace(value, first=first, second=second) for first, second in parts]
        await asyncio.gather(*(self._deal(node, one) for node, one in zip(roster, dealt, strict=True)))

    async def _moved(self, participant: Participant, message: MoveShares, answer: Awaitable[Message]) -> Message:
        """Deal this party's component of a value on to another committee.

        That committee's nodes get random numbers, as from any dealer, and this one's learn nothing new. But any two nodes there
        can put the value together, and the client has named them: so it is for values of this client's own alone.
        """
        offer = await answer
        assert isinstance(offer, ShareOffer)
        check_roster(message.roster)
        if offer.owners:
            raise ReleaseDenied(
                "the value depends on rows of a node's dataset, or on another client's value, which were shared with the nodes of"
                " this committee and with no others",
                rule="move",
                instead="share the rows with the other committee, ds.features.share(other), and compute there",
            )
        value = DealShare(
            committee=message.to,
            client=participant.client,
            object=message.name,
            dtype=offer.dtype,
            shape=offer.shape,
            owners=(),
            first=b"",
            second=b"",
        )
        with self._common.openings.counted(participant.client, memoryview(offer.words).nbytes):
            await self._deal_out(value, offer.words, message.roster)
        return Ok()

    async def _refuse(self, participant: Participant, message: ShareObject, error: GridError) -> None:
        """Tell the parties that the value will not come, so that they need not wait. The reason is for the client."""
        told = DealShare(
            committee=message.committee,
            client=participant.client,
            object=message.object,
            dtype="",
            shape=(),
            owners=(),
            first=b"",
            second=b"",
            error=ErrorInfo(code=error.code, message="the node does not share its value", details={"dealt": int(message.object)}),
        )
        await asyncio.gather(*(self._deal(node, told) for node in message.roster), return_exceptions=True)

    async def _deal(self, node: PeerId, message: DealShare) -> None:
        if node == self._common.me.id:
            await self._find(message.committee).deal(node, message)
            return
        session = await self._common.neighbours.session(node)
        await session.live.request(message)

    # ------------------------------------------------------------ the other nodes

    def received(self, sender: Neighbour, message: FromPeer) -> None:
        """A node's statement, its withdrawal, or what concerns the links of parties."""
        running = self._running.get(message.committee)
        if running is not None:
            running.received(sender, message)
        elif isinstance(message, CommitteeStatement) or (isinstance(message, CommitteeOver) and message.client is None):
            self._keep(sender, message)

    def _keep(self, sender: Neighbour, message: CommitteeStatement | CommitteeOver) -> None:
        now = self._common.clock.monotonic()
        for committee in [name for name, kept in self._early.items() if kept[0].came < now - EARLY_KEPT_S]:
            del self._early[committee]
        counts = Counter(early.sender.id for kept in self._early.values() for early in kept)
        if counts[sender.id] < MAX_EARLY_PER_NODE:
            self._early.setdefault(message.committee, []).append(_Early(sender, message, now))

    def deal(self, sender: Neighbour, message: DealShare) -> Awaitable[Message]:
        """A node's value, in shares."""
        return self._find(message.committee).deal(sender.id, message)

    def lost(self, node: PeerId) -> None:
        """The last session with a node has ended."""
        for committee, kept in list(self._early.items()):
            left = [early for early in kept if early.sender.id != node]
            if left:
                self._early[committee] = left
            else:
                del self._early[committee]
        for running in list(self._running.values()):
            running.lost(node)


def check_roster(roster: Sequence[PeerId]) -> None:
    """`InvalidRequest` unless these could be the nodes of a committee."""
    if len(roster) != PARTIES or len(set(roster)) != PARTIES:
        raise InvalidRequest(f"a committee has {PARTIES} different nodes")


def deal(words: np.ndarray[Any, np.dtype[np.uint64]]) -> tuple[tuple[bytes, bytes], bytes]:
    """Ring elements as two seeds and the component that is left."""
    seeds = (secrets.token_bytes(SEED_BYTES), secrets.token_bytes(SEED_BYTES))
    rest = words - sum(ring_elements(seed, words.size).view(np.uint64) for seed in seeds)
    return seeds, rest.astype("<u8").tobytes()
