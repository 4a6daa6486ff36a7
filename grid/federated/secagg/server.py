"""The gateway's arithmetic of one attempt: collects what nodes answer, adds masked vectors up, takes the masks off the sum.

    add_keys … roster() … add_shares … shares_for() … add_input … survivors() … add_consent … add_reveal … result()

Whom to wait for, and how long, is decided elsewhere; `can_finish` and its like say whether those who answered suffice. The
result is exact in the ring or an error: every secret that is put together from shares is held against what its owner signed.
Methods that take a node's answer raise `WireError` or `AuthenticationFailed` for one that is wrong, and keep nothing of it;
`InvalidRequest` for one that is out of turn. The same answer again changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import msgpack
import numpy as np

from grid.crypto.cards import read_card
from grid.crypto.envelope import unpack
from grid.crypto.keys import AgreementKey, check_signature
from grid.display import counted
from grid.errors import AuthenticationFailed, InvalidRequest, QuorumLost, WireError
from grid.federated.secagg import masks
from grid.federated.secagg.graph import COMPLETE, MAX_COHORT, Graph, majority
from grid.federated.secagg.masks import Vector, own_seed, pair_seed, sign_of
from grid.federated.secagg.shares import OF_MASK_KEY, OF_OWN_SEED, SEALED_BYTES, read_revealed, revealed
from grid.federated.secagg.statements import Member, Roster, Terms, Verify, commitment_to, consent_statement, read_keys
from grid.federated.secagg.unmasking import Blame, Unmasking
from grid.ids import PeerId

VERSION = 1
SEEDS_AT_ONCE = 64
"""Keystreams that are open at the same time while masks are taken off."""


class Server:
    """One attempt. `verify` says which cards hold; the caller has checked by its channels who is who."""

    def __init__(self, terms: Terms, *, verify: Verify = read_card) -> None:
        self.terms = terms
        self._verify = verify
        self._members: dict[PeerId, Member] = {}
        self._roster: Roster | None = None
        self._graph: Graph | None = None
        self._sealed: dict[PeerId, Mapping[PeerId, bytes]] = {}
        self._sum = np.zeros(terms.size, terms.quantiser.dtype)
        self._inputs: set[PeerId] = set()
        self._survivors: tuple[PeerId, ...] = ()
        self._consents: dict[PeerId, bytes] = {}
        self._reveals: dict[PeerId, dict[PeerId, bytes]] = {}
        self._unmasking: Unmasking | None = None
        self._has_failed = False
        """Whether wrong shares were in the way of a result before: then it is found out whose."""
        self.blamed: tuple[Blame, ...] = ()
        """Whose shares were wrong and done without, once there is a result."""

    # ------------------------------------------------------------ legs 0 and 1

    def add_keys(self, peer: PeerId, envelope: bytes) -> None:
        """What `peer` answered in leg 0."""
        if self._roster is not None:
            raise InvalidRequest(f"{self.terms}: the roster is fixed")
        if len(self._members) >= MAX_COHORT and peer not in self._members:
            raise InvalidRequest(f"{self.terms}: a roster has at most {MAX_COHORT} members")
        member = read_keys(envelope, self.terms, self._verify)
        if member.id != peer:
            raise AuthenticationFailed(f"{self.terms}: {peer} sent the keys of {member.card}")
        self._check_keys(member)
        self._members[peer] = member

    def _check_keys(self, member: Member) -> None:
        """Refuse what no member could take into its roster: one node would end the round for all."""
        probe = AgreementKey.generate()
        for key in (member.cipher, member.mask):
            probe.agree(key)
        keys = {member.cipher, member.mask, member.commitment}
        others = (other for other in self._members.values() if other.id != member.id)
        if len(keys) < 3 or any(not keys.isdisjoint((other.cipher, other.mask, other.commitment)) for other in others):
            raise AuthenticationFailed(f"{self.terms}: {member.card} announces a key twice, or one that another node announced")

    def roster(self) -> tuple[bytes, ...]:
        """All signed keys, for leg 1. From the first call on the roster is fixed.

        `InvalidRequest` where the graph of the terms is none for so many nodes.
        """
        if self._roster is None:
            count, degree, threshold = len(self._members), self.terms.degree, self.terms.threshold
            if threshold > degree + 1 or count > self.terms.quantiser.cohort:
                raise InvalidRequest(f"{self.terms}: these are not the terms for {counted(count, 'node')}")
            roster = Roster(self.terms, self._members.values())
            self._graph = Graph(roster, degree, roster.digest)
            self._roster = roster
        return tuple(member.blob for member in self._roster.values())

    def add_shares(self, peer: PeerId, shares: Mapping[PeerId, bytes]) -> None:
        """What `peer` answered in leg 1: a sealed share for each of its neighbours."""
        _, graph = self._fixed()
        self._check_member(peer)
        if set(shares) != set(graph.neighbours(peer)) or any(len(sealed) != SEALED_BYTES for sealed in shares.values()):
            raise WireError(f"{self.terms}: {peer} did not send one sealed share to each of its neighbours")
        self._sealed.setdefault(peer, dict(shares))

    def shares_for(self, peer: PeerId) -> dict[PeerId, bytes]:
        """For leg 2: the shares for `peer`. `QuorumLost`, naming the first, where a neighbour has sent none."""
        _, graph = self._fixed()
        self._check_member(peer)
        neighbours = graph.neighbours(peer)
        missing = [other for other in neighbours if other not in self._sealed]
        if missing:
            raise QuorumLost(
                f"{self.terms}: {counted(len(missing), 'member')} sent no shares, {missing[0]} first", node=missing[0]
            )
        return {other: self._sealed[other][peer] for other in neighbours}

    # ------------------------------------------------------------ legs 2 and 3

    def add_input(self, peer: PeerId, vector: Vector) -> None:
        """What `peer` answered in leg 2: (size,) integers of the ring's width, signed or not, which are added to the sum.

        For one thread at a time.
        """
        self._check_member(peer)
        if vector.shape != (self.terms.size,) or vector.dtype.kind not in "iu" or 8 * vector.itemsize != self.terms.bits:
            raise WireError(f"{self.terms}: {peer} sent no vector of {self.terms.size} elements of {self.terms.bits} bits")
        if peer in self._inputs:
            return
        if self._survivors:
            raise InvalidRequest(f"{self.terms}: the sum is closed, and {peer} is not in it")
        np.add(self._sum, vector.view(self._sum.dtype), out=self._sum)
        self._inputs.add(peer)

    def can_finish(self) -> bool:
        """Whether the inputs that came suffice for a result, if no more of those nodes are lost."""
        roster, _ = self._fixed()
        return len(self._inputs) >= majority(len(roster)) and self._enough(self._inputs)

    def survivors(self) -> tuple[PeerId, ...]:
        """Those whose inputs are in the sum, for leg 3. From the first call on the sum is closed.

        `QuorumLost` where they do not suffice.
        """
        if not self._survivors:
            if not self.can_finish():
                lost = sorted(set(self._members) - self._inputs)
                raise QuorumLost(f"{self.terms}: {len(self._inputs)} of {len(self._members)} inputs came", node=lost[0])
            self._survivors = tuple(sorted(self._inputs))
        return self._survivors

    def add_consent(self, peer: PeerId, signature: bytes) -> None:
        """What `peer` answered in leg 3."""
        roster, _ = self._fixed()
        self._check_survivor(peer)
        check_signature(
            roster[peer].card.key,
            signature,
            consent_statement(roster.digest, self._survivors),
            f"{self.terms}: the consent of {peer}",
        )
        self._consents[peer] = bytes(signature)

    def consents(self) -> dict[PeerId, bytes]:
        """As many as it takes, for leg 4. `QuorumLost` where too few came."""
        if not self.has_consent():
            silent = sorted(set(self._survivors) - set(self._consents))
            raise QuorumLost(
                f"{self.terms}: {counted(len(self._consents), 'survivor')} signed, and {silent[0]} did not", node=silent[0]
            )
        return dict(itertools.islice(self._consents.items(), majority(len(self._members))))

    def has_consent(self) -> bool:
        """Whether more than two thirds of the roster have signed."""
        roster, _ = self._fixed()
        return bool(self._survivors) and len(self._consents) >= majority(len(roster))

    # ------------------------------------------------------------ leg 4

    def add_reveal(self, peer: PeerId, shares: Mapping[PeerId, bytes]) -> None:
        """What `peer` answered in leg 4: one share of each of its neighbours, and of itself."""
        _, graph = self._fixed()
        self._check_survivor(peer)
        if set(shares) != set(graph.holders(peer)):
            raise WireError(f"{self.terms}: {peer} did not reveal one share of each of its neighbours and of itself")
        self._reveals[peer] = {owner: read_revealed(share, self._kind(owner)) for owner, share in shares.items()}

    def can_open(self) -> bool:
        """Whether enough shares of every secret were revealed: `result` gives the sum, unless too many are wrong."""
        return bool(self._survivors) and self._enough(self._reveals)

    def result(self) -> Vector:
        """The sum of the survivors' vectors, (size,) in the ring.

        Wrong shares are found and left out where there are right ones instead; `blamed` says whose they were. `QuorumLost` while
        too few shares were revealed; `AuthenticationFailed`, naming the owner, for a secret whose shares do not give what it
        signed: further shares may.
        """
        roster, graph = self._fixed()
        if not self.can_open():
            silent = next((peer for peer in self._survivors if peer not in self._reveals), "")
            raise QuorumLost(f"{self.terms}: too few shares were revealed to take the masks off", node=silent)
        unmasking = self._unmasking = self._unmasking or Unmasking(roster, graph, self.terms.threshold)
        unmasking.take(dict(self._reveals))
        plus, minus = list[bytes](), list[bytes]()
        for owner, member in roster.items():
            if owner in self._inputs:
                minus.append(own_seed(self._seed_of(member, unmasking), owner, roster.digest))
                continue
            key = self._key_of(member, unmasking)
            for peer in graph.neighbours(owner):
                if peer in self._inputs:  # that one added or took off the mask of the pair, and nobody did the opposite
                    seed = pair_seed(key, owner, roster[peer].mask, peer, roster.digest)
                    (minus if sign_of(peer, owner) > 0 else plus).append(seed)
        self.blamed = unmasking.blame(all_shares=self._has_failed and len(roster) <= COMPLETE)
        total = self._sum.copy()
        for start in range(0, max(len(plus), len(minus)), SEEDS_AT_ONCE):
            masks.apply(total, plus[start : start + SEEDS_AT_ONCE], minus[start : start + SEEDS_AT_ONCE])
        return total

    def _seed_of(self, member: Member, unmasking: Unmasking) -> bytes:
        seed = unmasking.secret(member.id, lambda secret: commitment_to(secret) == member.commitment)
        return self._there(seed, member)

    def _key_of(self, member: Member, unmasking: Unmasking) -> AgreementKey:
        secret = unmasking.secret(member.id, lambda secret: AgreementKey(secret).public == member.mask)
        return AgreementKey(self._there(secret, member))

    def _there(self, secret: bytes | None, member: Member) -> bytes:
        if secret is None:
            self._has_failed = True
            raise AuthenticationFailed(
                f"{self.terms}: the shares of {member.card} do not give the secret that it signed: it, or some of those who"
                f" revealed them, sent wrong ones, and without {self.terms.threshold} right ones this sum can't be opened",
                peer=member.id,
            )
        return secret

    def _enough(self, present: set[PeerId] | Mapping[PeerId, object]) -> bool:
        """Whether those present hold enough shares of every member's secrets."""
        roster, graph = self._fixed()
        if len(graph.neighbours(next(iter(roster)))) == len(roster) - 1:
            return len(present) >= self.terms.threshold
        return all(sum(holder in present for holder in graph.holders(owner)) >= self.terms.threshold for owner in roster)

    # ------------------------------------------------------------ keeping

    def to_bytes(self) -> bytes:
        """All that is needed to go on with legs 3 and 4 in another process, once the sum is closed: nothing secret."""
        if not self._survivors:
            raise InvalidRequest(f"{self.terms}: the sum is not closed yet")
        kept = [VERSION, self.terms.encode(), list(self.roster()), list(self._survivors), self._consents, self._reveals]
        packed: bytes = msgpack.packb([*kept, self._sum.tobytes()])
        return packed

    @classmethod
    def from_bytes(cls, data: bytes, *, verify: Verify = read_card) -> Server:
        """What `to_bytes` kept. `WireError` or `AuthenticationFailed` for anything else."""
        kept = unpack(data, "a kept sum", error=WireError)
        if not isinstance(kept, list) or len(kept) != 7 or kept[0] != VERSION or not _well_typed(kept[1:]):
            raise WireError("a kept sum has a wrong form")
        _, terms, blobs, survivors, consents, reveals, raw = kept
        server = cls(Terms.decode(terms), verify=verify)
        for blob in blobs:
            member = read_keys(blob, server.terms, verify)
            server._members[member.id] = member
        try:
            server.roster()
        except InvalidRequest as error:
            raise WireError(error.message) from None
        if len(raw) != server._sum.nbytes or not server._members.keys() >= set(survivors):
            raise WireError("a kept sum is not of its own terms and roster")
        server._sum = np.frombuffer(raw, server._sum.dtype)
        server._inputs = set(survivors)
        server._survivors = tuple(sorted(server._inputs))
        try:
            for peer, signature in consents.items():
                server.add_consent(peer, signature)
            for peer, shares in reveals.items():
                server.add_reveal(peer, {owner: revealed(server._kind(owner), share) for owner, share in shares.items()})
        except InvalidRequest as error:
            raise WireError(error.message) from None
        return server

    def _kind(self, owner: PeerId) -> bytes:
        return OF_OWN_SEED if owner in self._inputs else OF_MASK_KEY

    # ------------------------------------------------------------ turns

    def _fixed(self) -> tuple[Roster, Graph]:
        if self._roster is None or self._graph is None:
            raise InvalidRequest(f"{self.terms}: the roster is not fixed yet")
        return self._roster, self._graph

    def _check_member(self, peer: PeerId) -> None:
        roster, _ = self._fixed()
        if peer not in roster:
            raise InvalidRequest(f"{self.terms}: {peer} is no member of the roster")

    def _check_survivor(self, peer: PeerId) -> None:
        if peer not in self._inputs or not self._survivors:
            raise InvalidRequest(f"{self.terms}: {peer} is no survivor of a closed sum")


def _well_typed(parts: Sequence[object]) -> bool:
    terms, blobs, survivors, consents, reveals, raw = parts
    return (
        isinstance(terms, bytes)
        and isinstance(blobs, list)
        and all(isinstance(blob, bytes) for blob in blobs)
        and isinstance(survivors, list)
        and all(isinstance(peer, str) for peer in survivors)
        and isinstance(consents, dict)
        and all(isinstance(signature, bytes) for signature in consents.values())
        and isinstance(reveals, dict)
        and all(isinstance(shares, dict) for shares in reveals.values())
        and all(isinstance(share, bytes) for shares in reveals.values() for share in shares.values())
        and isinstance(raw, bytes)
    )
