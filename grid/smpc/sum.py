"""A secure sum as one party sees it: a state machine without I/O.

    announcing ──all statements checked──> authorising ──the gate has committed──> sharing ──all shares in──> done
        └──────────────┴── refusal, loss of a node, deadline, cancellation ──┴──> failed

Protocol (additive sharing modulo 2**64; semi-honest parties; one round of statements, one of shares):
 1. Every party sends every other one its signed `Statement`, and checks all that come.
 2. Only when all of them hold does it ask its own gate, which commits the release before it agrees.
 3. It splits its value into random parts, sends one to each other party, and keeps one.
 4. Its result is its own part plus the parts it received. The results of all parties add up to the sum; any proper subset
    of them is uniformly random, so the one who collects them learns the sum alone.
A party that cannot go on withdraws: it tells the others, and each of them fails with `QuorumLost` that names it.

Inputs are methods; each returns the effects to carry out, in order. Statements that come here have verified signatures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from grid.errors import GridError, QuorumLost, WireError
from grid.ids import PeerId
from grid.smpc import ring
from grid.smpc.ring import Elements
from grid.smpc.statement import Names, Statement, check_cohort, check_roster, check_statement

ANNOUNCING, AUTHORISING, SHARING, DONE, FAILED = "announcing", "authorising", "sharing", "done", "failed"


@dataclasses.dataclass(frozen=True, slots=True)
class Announce:
    """Send this party's signed statement to these peers."""

    to: tuple[PeerId, ...]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Authorise:
    """Ask the gate to commit the release, and only then split the elements among so many parties (`ring.split`, work for a
    thread where they are many); answer with `authorised` or `refused`."""

    elements: Elements
    parties: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SendShare:
    """Send these ring elements to this peer."""

    to: PeerId
    elements: Elements


@dataclasses.dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell these peers that this party does not go on, and why."""

    to: tuple[PeerId, ...]
    error: GridError


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Finish:
    """Give these ring elements to the one who asked for the sum."""

    elements: Elements


@dataclasses.dataclass(frozen=True, slots=True)
class Fail:
    """Give this error to the one who asked for the sum."""

    error: GridError


Effect = Announce | Authorise | SendShare | Withdraw | Finish | Fail


class SumParty:
    """One node's side of one sum. `minimum`: how many nodes a sum over datasets needs. `deadline`: monotonic seconds."""

    def __init__(
        self,
        *,
        mine: Statement,
        value: Elements,
        minimum: int,
        deadline: float,
        names: Names,
    ) -> None:
        check_roster(mine.roster, mine.node)
        assert value.shape == mine.shape
        self.state = ANNOUNCING
        self.deadline = deadline
        self._mine = mine
        self._value: Elements | None = value
        self._minimum = minimum
        self._names = names
        self._peers = tuple(peer for peer in mine.roster if peer != mine.node)
        self._statements: dict[PeerId, Statement] = {mine.node: mine}
        self._own_part: Elements | None = None
        self._shares: dict[PeerId, Elements] = {}

    @property
    def over(self) -> bool:
        """Whether nothing more will come of this party."""
        return self.state in (DONE, FAILED)

    def start(self) -> list[Effect]:
        """Begin. A sum over datasets with too few nodes is refused here, before anybody is told anything."""
        try:
            if len(self._mine.roster) < self._minimum:
                check_cohort([self._mine] * len(self._mine.roster), minimum=self._minimum, names=self._names)
        except GridError as error:
            return self._fail(error, tell=())
        announce: list[Effect] = [Announce(self._peers)] if self._peers else []
        return announce + self._when_announced()

    def announced(self, sender: PeerId, statement: Statement, wall: float) -> list[Effect]:
        """A peer's statement has come; its signature is its own."""
        if self.over or sender not in self._peers:
            return []
        if sender in self._statements:
            return self._fail(WireError(f"node {self._name(sender)} announced itself twice in one sum"))
        try:
            check_statement(statement, sender, self._mine, wall, self._names)
        except GridError as error:
            return self._fail(error)
        self._statements[sender] = statement
        return self._when_announced()

    def _when_announced(self) -> list[Effect]:
        if len(self._statements) < len(self._mine.roster):
            return []
        try:
            check_cohort([self._statements[node] for node in self._mine.roster], minimum=self._minimum, names=self._names)
        except GridError as error:
            return self._fail(error)
        self.state = AUTHORISING
        assert self._value is not None
        value, self._value = self._value, None
        return [Authorise(value, len(self._mine.roster))]

    def authorised(self, parts: Sequence[Elements]) -> list[Effect]:
        """The gate agreed, and has committed what this release uses up; `parts` are what the value was split into."""
        if self.state != AUTHORISING:
            return []
        self.state = SHARING
        self._own_part, *shares = parts
        sends: list[Effect] = [SendShare(peer, share) for peer, share in zip(self._peers, shares, strict=True)]
        return sends + self._when_shared()

    def refused(self, error: GridError) -> list[Effect]:
        """This side cannot go on: the gate said no, a peer's announcement does not verify, the client is gone."""
        return [] if self.over else self._fail(error)

    def shared(self, sender: PeerId, elements: Elements) -> list[Effect]:
        """A peer's share has come. It may come before this party's own turn, but not before that peer's statement."""
        if self.over or sender not in self._peers:
            return []
        if sender not in self._statements or sender in self._shares:
            return self._fail(WireError(f"node {self._name(sender)} sent a share out of turn"))
        if elements.shape != self._mine.shape:
            return self._fail(WireError(f"node {self._name(sender)} sent a share of a wrong shape"))
        self._shares[sender] = elements
        return self._when_shared()

    def _when_shared(self) -> list[Effect]:
        if self.state != SHARING or len(self._shares) < len(self._peers):
            return []
        assert self._own_part is not None
        result = ring.total([self._own_part, *self._shares.values()], self._mine.shape)
        self._forget(DONE)
        return [Finish(result)]

    def withdrawn(self, sender: PeerId, error: GridError | None) -> list[Effect]:
        """A peer does not go on. If it says that it lost a third one, that one is named."""
        if self.over or sender not in self._peers:
            return []
        culprit = self._culprit(sender, error)
        how = f"withdrew ({error.code})" if error is not None and culprit == sender else "is lost"
        return self._fail(self._lost(culprit, how))

    def _culprit(self, sender: PeerId, error: GridError | None) -> PeerId:
        if isinstance(error, QuorumLost):
            named = error.details.get("peer")
            for peer in self._peers:
                if peer == named:
                    return peer
        return sender

    def lost(self, peer: PeerId) -> list[Effect]:
        """The connection to a peer is gone. It no longer matters once that peer's share is here and ours went out."""
        if self.over or peer not in self._peers or (self.state == SHARING and peer in self._shares):
            return []
        return self._fail(self._lost(peer, "is not reachable any more"))

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: after the deadline, the first peer that owes something is named."""
        if self.over or now < self.deadline:
            return []
        owing = [peer for peer in self._peers if peer not in self._statements]
        owing = owing or [peer for peer in self._peers if peer not in self._shares]
        if not owing:
            here = self._name(self._mine.node)
            return self._fail(QuorumLost("this node's own gate did not decide in time for the sum", node=here))
        return self._fail(self._lost(owing[0], "did not answer in time"))

    def _lost(self, peer: PeerId, how: str) -> QuorumLost:
        return QuorumLost(f"node {self._name(peer)} {how}; the sum needs it", node=self._name(peer), peer=peer)

    def _fail(self, error: GridError, tell: Sequence[PeerId] | None = None) -> list[Effect]:
        self._forget(FAILED)
        to = self._peers if tell is None else tuple(tell)
        if isinstance(error, QuorumLost):
            to = tuple(peer for peer in to if peer != error.details.get("peer"))
        withdraw: list[Effect] = [Withdraw(to, error)] if to else []
        return [*withdraw, Fail(error)]

    def _forget(self, state: str) -> None:
        """No secret outlives the sum."""
        self.state = state
        self._value = self._own_part = None
        self._shares.clear()

    def _name(self, peer: PeerId) -> str:
        return self._names.get(peer, peer)
