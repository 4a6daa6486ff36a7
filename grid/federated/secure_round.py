"""One round of a job with secure aggregation, as the gateway sees it: a state machine without I/O.

    begin ──keys of all──> share ──shares of all──> collect ──inputs──> agree ──signatures──> open ──sum──> done
      └────── a node is lost: attempt + 1 ──────┘      └── too few are left, or the deadline: lost ──┘

Whom to wait for is decided here; what is asked, and what comes of answers, is `secure_legs`'. A node that is lost in the first
two legs leaves the roster, and they are done again without it; one that is lost later is made up for by the shares that others
hold, as long as enough are left. With three nodes none can be spared: the round waits for the lost one until its deadline.
Inputs are methods, each with the time (monotonic seconds); each returns the effects to carry out, in order. The round is over
when `outcome` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from grid.errors import AuthenticationFailed, DeadlineExceeded, GridError, NotFound
from grid.federated.effects import Effect, Keep, Key, Part, Story
from grid.federated.progress import REVEALS, SUM
from grid.federated.rounds import SHORT, AnyRound, Done, Plan, Summed, size_of
from grid.federated.secagg.graph import COMPLETE, majority
from grid.federated.secagg.quantiser import MISFIT
from grid.federated.secagg.server import Server
from grid.federated.secure_legs import AGREE, BEGIN, COLLECT, OPEN, SHARE, Legs, Reveals
from grid.ids import PeerId
from grid.wire.messages import Message

ACCUSERS = 2
"""Nodes whose word it takes at least that another one does not follow the protocol."""

WAIT = -1
LEGS = {
    WAIT: "waits for nodes",
    BEGIN: "collects keys",
    SHARE: "collects sealed shares",
    COLLECT: "waits for updates",
    AGREE: "collects signatures",
    OPEN: "takes the masks off",
}

PATIENCE = 3
"""How often in one round a node may have forgotten what it was asked before."""


class SecureRound(AnyRound):
    """A round whose updates are only ever summed under masks."""

    def __init__(self, plan: Plan, story: Story, present: Iterable[PeerId]) -> None:
        super().__init__(plan, story, present)
        self.leg = WAIT
        self._attempted: Legs | None = None
        self._members: tuple[PeerId, ...] = ()
        self._answered: set[PeerId] = set()
        self._adding: set[PeerId] = set()
        self._consented: set[PeerId] = set()
        self._have_weights: set[PeerId] = set()
        self._forgot: Counter[PeerId] = Counter()
        self._strangers: set[PeerId] = set()
        """Who knows nothing of the attempt under way."""
        self._leg_until = 0.0
        self._until = plan.deadline
        self._waits: set[str] = set()
        self._summed: Summed | None = None
        self._opening = False
        self._wrong: AuthenticationFailed | None = None
        """Why the shares that came did not open the sum."""
        self._tried: Reveals = {}
        self._accusers: dict[PeerId, set[PeerId]] = {}

    # ------------------------------------------------------------ inputs

    def start(self, now: float) -> list[Effect]:
        return self._begin(now)

    @classmethod
    def resume(cls, plan: Plan, story: Story, kept: Mapping[str, bytes], now: float) -> SecureRound:
        """A round whose sum was closed before the gateway was started again: it goes on with the signatures.

        Raises `WireError` or `AuthenticationFailed` for what was not kept by a round.
        """
        one = cls(plan, story, ())
        one._attempted = Legs.resume(plan, kept)
        one._attempt = one._attempted.server.terms.attempt
        one._members = one._attempted.server.survivors()
        one._enter(AGREE, now)
        return one

    def resumed(self, now: float) -> list[Effect]:
        if self._legs.reveals:
            self._enter(OPEN, now)
        return self._settle(now)

    def joined(self, peer: PeerId, now: float) -> list[Effect]:
        self._arrives(peer, now)
        self._have_weights.discard(peer)
        if self.outcome or peer not in self.plan.cohort:
            return []
        if self.leg == WAIT:
            self.out.pop(peer, None)
            return self._begin(now)
        if peer not in self._members or peer in self.out:
            return []
        return self._ask_again(peer, now)

    def answered(self, peer: PeerId, key: Key, message: Message, now: float) -> list[Effect]:
        if not self._is_current(peer, key):
            return []
        self.bytes += size_of(message)
        try:
            effects = self._take(peer, key[2], message, now)
        except GridError as error:
            return self.refused(peer, key, error, now)
        return effects + self._settle(now)

    def refused(self, peer: PeerId, key: Key, error: GridError, now: float) -> list[Effect]:
        """A node that knows nothing of the attempt is begun with anew."""
        if not self._is_current(peer, key):
            return []
        if isinstance(error, NotFound) and key[2] < COLLECT and self._forgot[peer] < PATIENCE:
            self._forgot[peer] += 1
            self._have_weights.discard(peer)
            self._story.note(now, f"node {self.plan.name(peer)} does not know of attempt {self._attempt}")
            self._strangers.add(peer)
            return self._settle(now)
        if self.leg == OPEN and isinstance(error, DeadlineExceeded):
            return self._ask_again(peer, now)
        if error.details.get("rule") == MISFIT:
            if key[2] == COLLECT and self._misfits(peer):
                self._error = error
                return self._lose(error.message, (), now)
        elif not isinstance(error, NotFound):
            self._fails(peer, error)
        if key[2] == COLLECT and self._accused(peer, error, now):
            return self._begin(now)
        self._put_out(peer, error.message, now)
        return self._settle(now)

    def _misfits(self, peer: PeerId) -> bool:
        """Whether the round is lost, and tried in a wider range, because this one does not fit a node's update.

        To leave that node out would bend the model. But wide ranges fit nearly all updates, and one that finds none of them wide
        enough would have each round tried in each: it is done without where that can be.
        """
        left = sum(one not in self.out for one in self._members) - 1
        if not self._legs.server.terms.quantiser.is_wide or left < self._needed():
            return True
        self._are_late([peer])
        return False

    def _accused(self, peer: PeerId, error: GridError, now: float) -> bool:
        """Whether enough nodes say that the same other one sealed no share for them: then that one leaves, and they stay.

        Enough are more than a third, or who conspires could have others leave until nobody is left with one honest node. In a
        sparse graph it takes more than conspire among the neighbours of any node.
        """
        accused = PeerId(str(error.details.get("peer", "")))
        if not isinstance(error, AuthenticationFailed) or accused not in self._members or accused == peer:
            return False
        accusers = self._accusers.setdefault(accused, set())
        accusers.add(peer)
        count = len(self._members)
        enough = self._legs.server.terms.threshold if count > COMPLETE else max(ACCUSERS, count // 3 + 1)
        if len(accusers) < enough:
            return False
        for one in accusers:
            self.out.pop(one, None)
        self._put_out(accused, f"{len(accusers)} nodes could not open what it sealed for them", now)
        return True

    def worked(self, name: str, result: Any, now: float) -> list[Effect]:
        of = self._worked(name)
        if of is None:
            return []
        kind, node = of
        if kind == "input":
            self._adding.discard(node)
            if isinstance(result, GridError):
                return self.refused(node, (self.plan.number, self._attempt, COLLECT), result, now)
            self._answered.add(node)
            return self._settle(now)
        if isinstance(result, AuthenticationFailed):  # a wrong share among those that came: others may make up for it
            self._story.note(now, result.message)
            self._opening, self._wrong = False, result
            return self._settle(now)
        if isinstance(result, GridError):
            self._error = result
            return self._lose(result.message, (), now)
        self._summed = result
        return self._finish()

    def kept(self, name: str, now: float) -> list[Effect]:
        self._waits.discard(name)
        if self.outcome:
            return []
        return self._finish() if self._summed is not None else self._settle(now)

    def tick(self, now: float) -> list[Effect]:
        if not self.outcome and self.leg in (BEGIN, SHARE) and self._leg_until <= now < self._until:
            late = [peer for peer in self._members if peer not in self._answered]
            self._are_late(self._missing())
            if late and len(self._members) - len(late) >= self.plan.quorum:
                for peer in late:
                    self._put_out(peer, "it has not answered in time", now)
        return super().tick(now)

    @property
    def text(self) -> str:
        missing = self._missing()
        whom = f" of {self._names(missing)}" if missing else ""
        if self.leg == WAIT:
            there = len(self._members)
            return f"round {self.plan.number} waits until {self.plan.quorum} nodes are there; {there} are, without{whom[3:]}"
        return f"round {self.plan.number} {LEGS[self.leg]}{whom}"

    def _missing(self) -> list[PeerId]:
        if self.leg == WAIT:
            return [peer for peer in self.plan.cohort if peer not in self._present or peer in self.out]
        return [peer for peer in self._members if peer not in self._answered and peer not in self.out]

    # ------------------------------------------------------------ legs

    def _begin(self, now: float) -> list[Effect]:
        """The first leg, with those who are there; or wait, where they are too few."""
        assert self.plan.terms is not None
        members = tuple(peer for peer in self.plan.cohort if peer in self._present and peer not in self.out)
        self._members = members
        if len(members) < self.plan.quorum:
            self.leg, self._attempted = WAIT, None
            self._story.note(now, self.text)
            return self._settle(now)
        self._attempt += 1
        self._adding = set()
        self._attempted = Legs(self.plan, Server(self.plan.terms(self._attempt, len(members))))
        self._enter(BEGIN, now)
        return self._ask_all(now)

    def _ask_again(self, peer: PeerId, now: float) -> list[Effect]:
        """What a node owes in this leg, also for one that has lost the question with its channel."""
        if peer in self._answered or peer in self._adding:
            return []
        leg = AGREE if self.leg == OPEN and peer not in self._consented else self.leg
        if leg != BEGIN:
            return [self._ask(peer, leg, self._legs.question(leg, peer), now)]
        weights = None if peer in self._have_weights else self.plan.weights
        self._have_weights.add(peer)
        return [self._ask(peer, BEGIN, self._legs.begin(weights, max(0.0, self.plan.deadline - now)), now)]

    def _ask_all(self, now: float) -> list[Effect]:
        here = [peer for peer in self._members if peer in self._present and peer not in self.out]
        return [effect for peer in here for effect in self._ask_again(peer, now)]

    def _take(self, peer: PeerId, leg: int, message: Message, now: float) -> list[Effect]:
        if peer in self._adding:
            return []
        add = self._legs.take(leg, peer, message)
        if add is not None:
            self._adding.add(peer)
            return [self._work("input", add, peer)]
        if leg == AGREE:
            self._consented.add(peer)
            if self.leg == OPEN:
                return self._ask_again(peer, now)
        self._answered.add(peer)
        return []

    @property
    def _legs(self) -> Legs:
        """Of the attempt under way."""
        assert self._attempted is not None
        return self._attempted

    def _is_current(self, peer: PeerId, key: Key) -> bool:
        """Whether the answer is still of use. A signature is also while the masks are taken off."""
        number, attempt, leg = key
        if self.outcome or number != self.plan.number or attempt != self._attempt or peer not in self._members:
            return False
        return peer not in self.out and (leg == self.leg or (leg == AGREE and self.leg == OPEN and peer not in self._consented))

    def _enter(self, leg: int, now: float) -> None:
        self.leg = leg
        self._answered, self._strangers = set(), set()
        self._leg_until = now + self.plan.deadline_s * SHORT
        if leg >= AGREE:
            self._until = max(self.plan.deadline, self._leg_until)
        self._story.note(now, f"round {self.plan.number}, attempt {self._attempt}: {LEGS[leg]} of {len(self._members)} nodes")

    # ------------------------------------------------------------ decisions

    def _settle(self, now: float) -> list[Effect]:
        if self.outcome:
            return []
        if self.leg != WAIT and now >= (self._until if self.leg == COLLECT else self._leg_until):
            self._are_late(peer for peer in self._missing() if peer not in self._adding)
        if self.leg == WAIT:
            possible = sum(peer not in self.out for peer in self.plan.cohort)
            if now < self._until and possible >= self.plan.quorum:
                return []
            there, needed = len(self._members), self.plan.quorum
            return self._lose(f"{there} of the {needed} nodes that a round needs were there", self._missing(), now)
        if self.leg in (BEGIN, SHARE):
            return self._settle_keys(now)
        return self._settle_inputs(now) if self.leg == COLLECT else self._settle_opening(now)

    def _settle_keys(self, now: float) -> list[Effect]:
        if now >= self._until:
            return self._lose("the deadline came before all had agreed on keys", self._missing(), now)
        # Those who are there answer first, so that many who are lost at once cost one further attempt.
        if any(peer in self._present and peer not in self._strangers for peer in self._missing()):
            return []
        if any(peer not in self._present or peer in self.out or peer in self._strangers for peer in self._members):
            return self._begin(now)
        if self.leg == BEGIN:
            self._legs.server.roster()
        self._enter(self.leg + 1, now)
        return self._ask_all(now)

    def _settle_inputs(self, now: float) -> list[Effect]:
        if self._adding:
            return []
        missing = self._missing()
        over = now >= self._until
        if not over and any(peer in self._present for peer in missing):
            return self._lose_inputs(missing, now) if len(self._answered) + len(missing) < self._needed() else []
        if len(self._answered) >= self.plan.quorum and self._legs.server.can_finish():
            for peer in missing:
                self._put_out(peer, "it was late" if peer in self._present else "it was lost", now)
            return self._close(now)
        return self._lose_inputs(missing, now) if over or len(self._answered) + len(missing) < self._needed() else []

    def _lose_inputs(self, missing: list[PeerId], now: float) -> list[Effect]:
        came = f"{len(self._answered)} of {len(self._members)} updates came, and {self._needed()} were needed"
        return self._lose(came, missing, now)

    def _needed(self) -> int:
        return max(self.plan.quorum, majority(len(self._members)))

    def _close(self, now: float) -> list[Effect]:
        """The sum is closed and kept, while its survivors are asked to sign."""
        server = self._legs.server
        self._members = server.survivors()
        self._enter(AGREE, now)
        return [self._keep(SUM, server.to_bytes), *self._ask_all(now)]

    def _keep(self, part: str, data: Part) -> Keep:
        name = f"{part} of round {self.plan.number}"
        self._waits.add(name)
        return Keep(self._story.cause, name, {part: data})

    def _settle_opening(self, now: float) -> list[Effect]:
        if self._opening:
            return []
        legs, missing = self._legs, self._missing()
        waits = now < self._leg_until and any(peer in self._present for peer in missing)
        # In a sparse graph it takes a look at all shares to see whether they suffice: not after each answer.
        more = self.leg == OPEN and legs.reveals != self._tried
        if more and not (waits and len(self._members) > COMPLETE) and legs.server.can_open():
            return self._open()
        if self._wrong is not None and not missing:
            self._error = self._wrong
            return self._lose(self._wrong.message, (), now)
        left = [peer for peer in self._members if peer not in self.out]
        # Once signatures have gone out, nodes may have revealed their part: no other sum over this model is to be had from them.
        if (self.leg != OPEN and now >= self._until) or len(left) < legs.server.terms.threshold:
            return self._lose(
                f"the sum could not be opened: {len(self._answered)} of {len(self._members)} nodes answered", missing, now
            )
        if self.leg == OPEN or self._waits or waits or not legs.server.has_consent():
            return []
        self._enter(OPEN, now)
        return self._ask_all(now)

    def _open(self) -> list[Effect]:
        legs = self._legs
        self._opening, self._tried = True, dict(legs.reveals)
        return [self._keep(REVEALS, legs.packed_reveals()), self._work("open", legs.summed)]

    def _finish(self) -> list[Effect]:
        if self._summed is not None and not self._waits:
            survivors = set(self._members)
            lost = tuple(peer for peer in self.plan.cohort if peer not in survivors)
            self.outcome = Done(self._summed, tuple(self._members), lost)
        return []
