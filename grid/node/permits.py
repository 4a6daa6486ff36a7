"""An owner's word on results that a committee computed of its rows: a signed permit for one result, to one recipient, once.

A party asks before it sends a component of a result. The owner's node answers when all three parties have asked for the same:
what one of them says alone opens nothing, and uses nothing up. So a result is decided on and counted once. What may be
opened is the gate's to say, from what this node itself remembers of the values that it dealt.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from grid.clock import Clock
from grid.crypto.cards import TOLERANCE_S
from grid.crypto.envelope import Fields, pack, read, seal
from grid.crypto.identity import LocalIdentity
from grid.errors import AuthenticationFailed, GridError, InvalidRequest, QuotaExceeded, ReleaseDenied
from grid.ids import CommitteeId, ObjectId, PeerId, PlanId
from grid.node.desk import Dealing
from grid.node.neighbours import Neighbours, Spawn
from grid.policy.claims import RowsClaim, merged
from grid.policy.gate import Gate
from grid.policy.rules import argument
from grid.rpc.channel import time_limit
from grid.wire.dtypes import DTYPES, tensor_bytes
from grid.wire.messages import AskPermit, GivenRows, Opening, OwnerRule, Permit

log = logging.getLogger(__name__)

KIND = "grid release permit 1"
PERMIT_S = 60
NONCE_BYTES = 16

MAX_COMMITTEES_PER_CLIENT = 16
MAX_COMMITTEES = 4096
"""Committees that values were dealt to, by client: later ones push out the oldest, whose results then stay closed."""

MAX_WAITING_PER_CLIENT = 64
"""Results of one client for which one party may wait at once; a party lets no more of them wait itself (`openings`)."""

MAX_WAITING = 2048
"""Of all clients: one of them takes a tenth at most, with all three parties of a committee."""

MAX_COUNTED = 4096
"""Results of one committee that are remembered, so that each counts once however often it is opened; the oldest go first."""

MAX_ANSWERS = 4096
"""Answers that are kept, for a party that asks later than the others."""

Submit = Callable[[Callable[[], Any]], "asyncio.Future[Any]"]


def sign(key: LocalIdentity, message: AskPermit, wall: float) -> bytes:
    """A permit, in its envelope."""
    return seal(KIND, _payload(message, int(wall) + PERMIT_S, secrets.token_bytes(NONCE_BYTES)), key.key)


def verify(envelope: bytes, key: bytes, message: AskPermit, wall: float) -> bytes:
    """The nonce of a permit, if it is this key's, for exactly what was asked, and has not expired; else AuthenticationFailed."""
    payload = read(envelope, "permit").verified(KIND, key)
    fields = Fields(payload, "permit")
    expiry, nonce = fields.number("expiry"), fields.raw("nonce", length=NONCE_BYTES)
    if payload != _payload(message, expiry, nonce):
        raise AuthenticationFailed("permit: it is for another result, or another recipient")
    if not wall - TOLERANCE_S <= expiry <= wall + PERMIT_S + TOLERANCE_S:
        raise AuthenticationFailed("permit: it has expired, or lasts longer than permits do")
    return nonce


def _payload(message: AskPermit, expiry: int, nonce: bytes) -> bytes:
    said = dataclasses.asdict(message.opening)
    given = [[one.node, one.dataset, one.part] for one in message.opening.given]
    rules = [[rule.dataset, rule.release, rule.part] for rule in message.rules]
    shape = list(message.opening.shape)
    return pack({**said, "shape": shape, "given": given, "rules": rules, "expiry": expiry, "nonce": nonce})


@dataclasses.dataclass(slots=True, eq=False)
class _Dealt:
    """What went to one committee for one client. `rows`: by dataset, those that went there as they stand. `counted`: results that
    were permitted to go to others, by call and object."""

    roster: frozenset[PeerId]
    rules: set[OwnerRule] = dataclasses.field(default_factory=set)
    rows: dict[str, RowsClaim] = dataclasses.field(default_factory=dict)
    counted: OrderedDict[tuple[int, ObjectId], None] = dataclasses.field(default_factory=OrderedDict)


@dataclasses.dataclass(slots=True, eq=False)
class _Asked:
    """One result, and who has asked for it so far."""

    message: AskPermit
    answer: asyncio.Future[Permit]
    askers: set[PeerId] = dataclasses.field(default_factory=set)


class Permits:
    """The permits that this node gives. `submit` runs work off the loop, in order; `wait_s`: how long parties wait for one
    another. `neighbours` knows the names of other owners."""

    def __init__(
        self,
        *,
        me: LocalIdentity,
        clock: Clock,
        gate: Gate,
        neighbours: Neighbours,
        submit: Submit,
        spawn: Spawn,
        wait_s: float,
    ) -> None:
        self._me, self._clock, self._gate, self._neighbours = me, clock, gate, neighbours
        self._submit, self._spawn, self._wait_s = submit, spawn, wait_s
        self._dealt: OrderedDict[tuple[CommitteeId, PeerId], _Dealt] = OrderedDict()
        self._asked: OrderedDict[tuple[CommitteeId, PeerId, int], _Asked] = OrderedDict()

    # ------------------------------------------------------------ what was dealt

    async def note(self, committee: CommitteeId, client: PeerId, roster: Sequence[PeerId], dealing: Dealing) -> None:
        """Remember a value with rows before it is dealt. `InvalidRequest` for a committee of other nodes than before."""
        if not dealing.rules:
            return
        key = (committee, client)
        dealt = self._dealt.get(key)
        if dealt is None:
            same = [other for other in self._dealt if other[1] == client]
            if len(same) >= MAX_COMMITTEES_PER_CLIENT or len(self._dealt) >= MAX_COMMITTEES:
                del self._dealt[same[0] if len(same) >= MAX_COMMITTEES_PER_CLIENT else next(iter(self._dealt))]
            dealt = self._dealt[key] = _Dealt(frozenset(roster))
        elif dealt.roster != frozenset(roster):
            raise InvalidRequest("values for a committee of this id went to other nodes before")
        await self._submit(lambda: _add(dealt, dealing))

    # ------------------------------------------------------------ what is asked

    async def ask(self, asker: PeerId, message: AskPermit) -> Permit:
        """A party asks. Returns once all three have asked for the same and the gate lets it go; raises what it has against it."""
        opening = message.opening
        dealt = self._dealt.get((opening.committee, opening.client))
        if dealt is None or asker not in dealt.roster:
            raise _refused("it remembers no value that it shared with this committee for this client; share it again")
        asked = self._find(asker, message)
        asked.askers.add(asker)
        if asked.askers == dealt.roster and not asked.answer.done():
            self._spawn(self._decide(asked, dealt), "a permit")
        try:
            async with time_limit(self._clock, self._wait_s, "a permit that all parties must ask for"):
                return await asyncio.shield(asked.answer)
        except GridError as error:
            _settle(asked.answer, error)  # if it was the time that ran out: for all
            raise

    def gave(self, opening: Opening) -> bool:
        """Whether this node has permitted that this result opens."""
        asked = self._asked.get((opening.committee, opening.client, opening.number))
        if asked is None or asked.message.opening != opening or not asked.answer.done():
            return False
        return not asked.answer.cancelled() and asked.answer.exception() is None

    def _find(self, asker: PeerId, message: AskPermit) -> _Asked:
        opening = message.opening
        key = (opening.committee, opening.client, opening.number)
        asked = self._asked.get(key)
        if asked is not None and asked.message != message:
            error = _refused("the parties of the committee do not say the same of it")
            _settle(asked.answer, error)
            raise error
        if asked is None:
            waiting = [other for other in self._asked.values() if not other.answer.done()]
            same = sum(asker in other.askers and other.message.opening.client == opening.client for other in waiting)
            if same >= MAX_WAITING_PER_CLIENT:
                raise QuotaExceeded(f"{same} results of this client wait here for a permit; ask again when some have theirs")
            if len(waiting) >= MAX_WAITING:
                raise QuotaExceeded("too many results wait here for a permit; ask again when some have theirs")
            if len(self._asked) >= MAX_ANSWERS:
                answered = (name for name, other in self._asked.items() if other.answer.done())
                del self._asked[next(answered, next(iter(self._asked)))]
            asked = self._asked[key] = _Asked(message, asyncio.get_running_loop().create_future())
        return asked

    async def _decide(self, asked: _Asked, dealt: _Dealt) -> None:
        try:
            given = await self._named(asked.message.opening.given)
            envelope = await self._submit(lambda: self._decision(asked.message, dealt, given))
        except GridError as error:
            _settle(asked.answer, error)
        except Exception:
            log.exception("a permit could not be decided on")
            _settle(asked.answer, GridError("something went wrong inside the node; its log says what"))
        else:
            if not asked.answer.done():
                asked.answer.set_result(Permit(envelope=envelope))

    async def _named(self, given: Sequence[GivenRows]) -> list[frozenset[str]]:
        """For each argument of the plan what policies may call it, by names that cards prove; nothing where no policy asks."""
        if not self._gate.names_arguments:
            return []
        names = {self._me.id: self._me.name, **await self._neighbours.names({one.node for one in given if one.node})}
        return [frozenset(argument(who, one.dataset, one.part) for who in (one.node, names.get(one.node, ""))) for one in given]

    def _decision(self, message: AskPermit, dealt: _Dealt, given: Sequence[frozenset[str]]) -> bytes:
        """The permit; raises where there is none. Not for the loop: it waits for the store."""
        opening, rules = message.opening, message.rules
        if not rules or not dealt.rules.issuperset(rules):
            raise _refused("it did not share these values with the committee")
        if opening.dtype not in DTYPES or any(size < 0 for size in opening.shape):
            raise InvalidRequest("a result of this dtype or shape cannot be")
        nbytes, own = tensor_bytes(opening.dtype, opening.shape), opening.recipient == self._me.id
        what = f"a result on shares of {', '.join(sorted({rule.dataset for rule in rules}))}, for client {opening.client}"
        if not own:
            self._gate.check_errors(opening.client)
        straight = {rule.dataset: all(other.part for other in rules if other.dataset == rule.dataset) for rule in rules}
        try:
            self._gate.release_on_shares(
                {name: dealt.rows.get(name) if straight[name] else None for name in straight},
                PlanId(opening.plan) if opening.plan else None,
                given=given,
                elements=0 if (opening.call, opening.object) in dealt.counted else nbytes // DTYPES[opening.dtype],
                nbytes=nbytes,
                client=opening.client,
                own=own,
            )
        except GridError as error:
            log.info("no permit for %s (%s)", what, error.details.get("rule", error.code))
            raise
        if opening.call and not own:
            dealt.counted[opening.call, opening.object] = None
            if len(dealt.counted) > MAX_COUNTED:
                dealt.counted.popitem(last=False)
        to = "this node" if own else "the client" if opening.recipient == opening.client else opening.recipient
        log.info("permit for %s: %s%s of plan %s to %s", what, opening.dtype, list(opening.shape), opening.plan or "(none)", to)
        return sign(self._me, message, self._clock.wall())


def _add(dealt: _Dealt, dealing: Dealing) -> None:
    for claim, rule in zip(dealing.rows, dealing.rules, strict=True):
        if rule.part:
            known = dealt.rows.get(claim.dataset)
            dealt.rows[claim.dataset] = claim if known is None else merged(known, claim)
    dealt.rules.update(dealing.rules)


def _refused(why: str) -> ReleaseDenied:
    return ReleaseDenied(f"this node gives no permit for the result: {why}", rule="permit")


def _settle(answer: asyncio.Future[Permit], error: GridError) -> None:
    if not answer.done():
        answer.set_exception(type(error)(error.message, **error.details))
        answer.exception()  # marks it as seen: whoever asked may be gone
