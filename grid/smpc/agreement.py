"""How three nodes agree to be the parties of a committee, as one of them sees it: a state machine without I/O.

    announcing ──both statements hold──> agreed
        └── refusal, loss of a node, deadline ──> failed

 1. A client asks each of the three to open the committee, under an id that no node uses twice.
 2. Each sends both others its signed `Statement`: the terms (id, roster in the order of ranks, clients that may take part) and
    its limits, and over the sealed session, for that peer alone, its contributions to the keys (`Contribution`).
 3. Who has both statements, with terms equal to its own, derives its keys: key j from what P_j and P_(j-1) gave, the common one
    from what all three gave. All terms go into each key, so parties that agreed on other terms would have other keys.

Keys are fresh as long as one honest party draws fresh contributions; so they are never used again, after a restart neither.
Inputs are methods; each returns the effects to carry out. Statements that come here have verified signatures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from grid.errors import AuthenticationFailed, GridError, InvalidRequest, QuorumLost, WireError
from grid.ids import CommitteeId, PeerId
from grid.smpc.keystreams import CONTRIBUTION_BYTES, Keys, derive_key

PARTIES = 3
VERSION = 2
MAX_CLIENTS = 8
MAX_ENCODED_BYTES = 4096
ID_LETTERS = 32
_NONCE_BYTES = 16
_COMMON = 3

LIMITS = (
    "max_secure_elements",
    "max_bytes_per_client",
    "max_objects_per_client",
    "max_plan_bytes",
    "max_plan_flops",
    "max_plan_steps",
)

ANNOUNCING, AGREED, FAILED = "announcing", "agreed", "failed"

Names = Mapping[PeerId, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """What all three must have been asked for alike. `roster`: nodes by rank; `clients`: who may take part and see results."""

    committee: CommitteeId
    roster: tuple[PeerId, ...]
    clients: tuple[PeerId, ...]

    def check(self, me: PeerId) -> None:
        """`InvalidRequest` unless these make a committee that `me` is a party of."""
        if len(self.committee) != ID_LETTERS or not set(self.committee) <= set("0123456789abcdef"):
            raise InvalidRequest(f"the id of a committee is {ID_LETTERS} hexadecimal digits")
        if len(self.roster) != PARTIES or len(set(self.roster)) != PARTIES:
            raise InvalidRequest(f"a committee has {PARTIES} different nodes")
        if me not in self.roster:
            raise InvalidRequest("this node is not in the roster of the committee that it is asked to join")
        if not 1 <= len(self.clients) <= MAX_CLIENTS or len(set(self.clients)) != len(self.clients):
            raise InvalidRequest(f"a committee has from 1 to {MAX_CLIENTS} different clients")
        if any(len(peer) > 64 for peer in (*self.roster, *self.clients)):
            raise InvalidRequest("an id of a node or client is too long")

    def digest(self) -> bytes:
        """What stands for these terms in keys."""
        packed: bytes = msgpack.packb([VERSION, self.committee, self.roster, self.clients])
        return hashlib.sha256(packed).digest()


@dataclasses.dataclass(frozen=True, slots=True)
class Statement:
    """What one node signs. `expiry` is wall time in seconds; `nonce` is fresh.

    `limits`: what one client may have at this node's party, by the settings `LIMITS`. All parties keep to the lowest, so that
    they refuse the same requests, and none waits for one that has refused.
    """

    terms: Terms
    node: PeerId
    expiry: float
    nonce: bytes
    limits: tuple[int, ...]

    def encode(self) -> bytes:
        """The bytes that are signed."""
        terms = self.terms
        packed: bytes = msgpack.packb(
            [
                VERSION,
                terms.committee,
                terms.roster,
                terms.clients,
                self.node,
                self.expiry,
                self.nonce,
                self.limits,
            ]
        )
        return packed


def decode(data: bytes) -> Statement:
    """A statement from bytes whose signature has been verified; `WireError` for anything else."""
    if len(data) > MAX_ENCODED_BYTES:
        raise WireError("a statement about a committee is too large")
    try:
        fields = msgpack.unpackb(data, use_list=False, max_array_len=64, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise WireError("a statement about a committee is not readable") from error
    if not isinstance(fields, tuple) or len(fields) != 8 or fields[0] != VERSION or not _well_typed(fields[1:]):
        raise WireError("a statement about a committee has a wrong form")
    _, committee, roster, clients, node, expiry, nonce, limits = fields
    return Statement(Terms(committee, roster, clients), node, expiry, nonce, limits)


def _well_typed(fields: Sequence[Any]) -> bool:
    committee, roster, clients, node, expiry, nonce, limits = fields
    return (
        isinstance(committee, str)
        and all(isinstance(peers, tuple) and all(isinstance(peer, str) for peer in peers) for peers in (roster, clients))
        and isinstance(node, str)
        and isinstance(expiry, float)
        and isinstance(nonce, bytes)
        and len(nonce) == _NONCE_BYTES
        and isinstance(limits, tuple)
        and len(limits) == len(LIMITS)
        and all(type(limit) is int and limit > 0 for limit in limits)
    )


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Contribution:
    """What one party gives another for keys, 32 random bytes each: for the key of these two, and for that of all three."""

    pair: bytes
    common: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Announce:
    """Send this party's signed statement to a peer, and the contribution that is for it alone."""

    to: PeerId
    contribution: Contribution


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Agreed:
    """All three agree. These are this party's keys, and the limits that all three keep to."""

    keys: Keys
    limits: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell these peers that this node does not take part, and why."""

    to: tuple[PeerId, ...]
    error: GridError


@dataclasses.dataclass(frozen=True, slots=True)
class Fail:
    """Give this error to the client."""

    error: GridError


Effect = Announce | Agreed | Withdraw | Fail


class Agreement:
    """One node's side. `deadline`: monotonic seconds. `names` say how messages call the nodes."""

    def __init__(
        self,
        mine: Statement,
        *,
        deadline: float,
        names: Names,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        mine.terms.check(mine.node)
        self.state = ANNOUNCING
        self._mine = mine
        self._deadline = deadline
        self._names = names
        self._rank = mine.terms.roster.index(mine.node)
        self._peers = tuple(peer for peer in mine.terms.roster if peer != mine.node)
        common = random_bytes(CONTRIBUTION_BYTES)
        self._given = {peer: Contribution(random_bytes(CONTRIBUTION_BYTES), common) for peer in self._peers}
        self._got: dict[PeerId, Contribution] = {}
        self._limits = [mine.limits]

    def start(self) -> list[Effect]:
        """Begin."""
        return [Announce(peer, self._given[peer]) for peer in self._peers]

    def announced(self, sender: PeerId, statement: Statement, contribution: Contribution, wall: float) -> list[Effect]:
        """A peer's statement has come; its signature is its own."""
        if self.state == FAILED or sender not in self._peers:
            return []
        name = self._name(sender)
        if sender in self._got:
            return self._fail(WireError(f"node {name} announced itself twice to one committee"))
        if statement.node != sender:
            return self._fail(AuthenticationFailed(f"node {name} sent another node's statement"))
        if statement.expiry < wall:
            return self._fail(AuthenticationFailed(f"the statement of node {name} about the committee has expired"))
        if statement.terms != self._mine.terms:
            return self._fail(
                InvalidRequest(f"node {name} was asked for another committee under this id: its nodes or clients differ")
            )
        if any(len(part) != CONTRIBUTION_BYTES for part in (contribution.pair, contribution.common)):
            return self._fail(WireError(f"node {name} contributed nothing of use to the keys"))
        self._got[sender] = contribution
        self._limits.append(statement.limits)
        if len(self._got) < len(self._peers):
            return []
        keys = Keys(self._pair_key(self._rank), self._pair_key((self._rank + 1) % PARTIES), self._common_key())
        self._forget(AGREED)
        return [Agreed(keys, tuple(map(min, *self._limits)))]

    def _pair_key(self, place: int) -> bytes:
        """The key of component `place`, which P_place and the party before it hold."""
        terms = self._mine.terms
        other = place if place != self._rank else (place + 2) % PARTIES
        peer = terms.roster[other]
        given = {self._rank: self._given[peer].pair, other: self._got[peer].pair}
        return self._derive([given[rank] for rank in sorted(given)], place)

    def _common_key(self) -> bytes:
        parts = {peer: one.common for peer, one in self._got.items()} | {self._mine.node: self._given[self._peers[0]].common}
        return self._derive([parts[peer] for peer in self._mine.terms.roster], _COMMON)

    def _derive(self, contributions: list[bytes], place: int) -> bytes:
        terms = self._mine.terms
        return derive_key(contributions, session=terms.committee.encode(), program=terms.digest(), place=place)

    def refused(self, error: GridError) -> list[Effect]:
        """This side cannot go on: a peer's announcement does not verify, the client is gone."""
        return [] if self.state != ANNOUNCING else self._fail(error)

    def withdrawn(self, sender: PeerId, error: GridError) -> list[Effect]:
        """A peer does not take part. Where it says that it lost the third one, that one is named."""
        if self.state != ANNOUNCING or sender not in self._peers:
            return []
        name = self._name(sender)
        lost = error.details.get("node") if isinstance(error, QuorumLost) else None
        if isinstance(lost, str) and lost not in (name, self._name(self._mine.node)):
            return self._fail(
                QuorumLost(f"node {lost[:100]} is lost, as node {name} says; the committee needs it", node=lost[:100])
            )
        return self._fail(QuorumLost(f"node {name} does not take part in the committee ({error.code})", node=name))

    def lost(self, peer: PeerId) -> list[Effect]:
        """There is no session with a peer any more."""
        if self.state != ANNOUNCING or peer not in self._peers:
            return []
        name = self._name(peer)
        return self._fail(QuorumLost(f"node {name} is not reachable; the committee needs it", node=name))

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: after the deadline, the first peer that has said nothing is named."""
        if self.state != ANNOUNCING or now < self._deadline:
            return []
        name = self._name(next(peer for peer in self._peers if peer not in self._got))
        return self._fail(QuorumLost(f"node {name} did not answer in time; the committee needs it", node=name))

    def _fail(self, error: GridError) -> list[Effect]:
        self._forget(FAILED)
        return [Withdraw(self._peers, error), Fail(error)]

    def _forget(self, state: str) -> None:
        """No contribution outlives the agreement. Who announced itself is remembered by the keys being there."""
        self.state = state
        self._given.clear()
        self._got = dict.fromkeys(self._got, Contribution(b"", b""))

    def _name(self, peer: PeerId) -> str:
        return self._names.get(peer, peer)
