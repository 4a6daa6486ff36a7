"""Secure aggregation as one node sees it, in one attempt of one round.

    keys ──> share(roster) ──> masked(shares, vector) ──> consent(survivors) ──> reveal(consents)

Threat model: the gateway is malicious, and conspires with less than a third of the roster. What it learns is the sum of the
survivors' vectors, of at least the minimum cohort, or nothing. Each leg answers a repeated question with its first answer, and
refuses another question. What the node refuses, by the rule that `ReleaseDenied` names:

    secagg.model         a sum over this model has been opened before: two sums would show who is in one only
    secagg.cohort        the roster, or those who are left, are fewer than the owner asks for; nodes with open data do not count
    secagg.member        the roster has somebody whom the client's job does not name
    secagg.organisation  two members belong to one organisation
    secagg.graph         neighbours and threshold are not those of the table for the roster
    secagg.overflow      the quantiser was made for fewer nodes
    secagg.neighbours    shares came from others than this node's neighbours, which follow from the keys
    secagg.leg           a leg is asked for a second time with something else, or before its turn
    secagg.survivors     survivors that are not members, or without this node
    secagg.consent       too few signatures under the same survivors

A card, key, signature or sealed share that does not hold is `AuthenticationFailed`; bytes of a wrong form are `WireError`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn

from grid.crypto.envelope import framed
from grid.crypto.identity import LocalIdentity
from grid.crypto.keys import AgreementKey
from grid.errors import AuthenticationFailed, InvalidRequest, WireError
from grid.federated.secagg import masks, shamir
from grid.federated.secagg.graph import MAX_COHORT, Graph, is_sound, majority
from grid.federated.secagg.masks import Vector, own_seed, pair_seed, sign_of
from grid.federated.secagg.opening import Memory, Opening, deny, deny_opened
from grid.federated.secagg.shares import OF_MASK_KEY, OF_OWN_SEED, SEALED_BYTES, open_shares, revealed, seal_shares
from grid.federated.secagg.statements import (
    Member,
    Roster,
    Terms,
    Verify,
    commitment_to,
    consent_statement,
    read_keys,
    sign_keys,
)
from grid.ids import PeerId


class Party:
    """One node in one attempt. Its secrets live in this object alone: after a restart there is nothing left to reveal.

    `card`: this node's card, as others shall verify it. `minimum`: the smallest cohort that the owner accepts, at least 2.
    `members` may be in a roster, and nobody else, `least` of them or more: what the client has signed; None for anybody.
    `verify` says whose cards to believe. `public`: this node's data is open to all, so it hides nobody. `sound` judges (cohort,
    degree, threshold).
    """

    def __init__(
        self,
        *,
        me: LocalIdentity,
        card: bytes,
        terms: Terms,
        minimum: int,
        members: Collection[PeerId] | None = None,
        least: int = 0,
        verify: Verify,
        memory: Memory,
        allow_same_organisation: bool = False,
        public: bool = False,
        sound: Callable[[int, int, int], bool] = is_sound,
    ) -> None:
        self.terms = terms
        self._me = me
        self._minimum = max(2, minimum)
        self._members = members
        self._least = least
        self._verify = verify
        self._memory = memory
        self._allow_same_organisation = allow_same_organisation
        self._public = public
        self._sound = sound
        self._cipher = AgreementKey(shamir.random_secret())
        self._mask = AgreementKey(shamir.random_secret())
        self._seed = shamir.random_secret()
        self._keys = sign_keys(
            me,
            card,
            terms,
            cipher=self._cipher.public,
            mask=self._mask.public,
            commitment=commitment_to(self._seed),
            public=public,
        )
        self._roster: Roster | None = None
        self._graph: Graph | None = None
        self._sealed: dict[PeerId, bytes] = {}
        self._shares: dict[PeerId, tuple[bytes, bytes]] = {}
        self._masked: Vector | None = None
        self._survivors: tuple[PeerId, ...] = ()
        self._consent = b""
        self._opening: Opening | None = None

    # ------------------------------------------------------------ leg 0

    def keys(self) -> bytes:
        """Leg 0: this node's card and its two fresh keys, signed for these terms.

        `ReleaseDenied` where a sum over this model has been opened before.
        """
        self._check_unopened()
        return self._keys

    # ------------------------------------------------------------ leg 1

    def share(self, roster: Sequence[bytes]) -> dict[PeerId, bytes]:
        """Leg 1: all members' signed keys, in any order -> a sealed share for each neighbour.

        Raises `AuthenticationFailed`, `ReleaseDenied` or `WireError`; nothing is kept of a roster that is refused.
        """
        if self._roster is not None:
            if sorted(roster) != sorted(member.blob for member in self._roster.values()):
                self._deny("secagg.leg", "a second, different roster came for one attempt", "another attempt")
            return self._sealed
        checked, graph = self._check_roster(roster)
        holders = graph.holders(self._me.id)
        points = [checked.point(holder) for holder in holders]
        of_mask = shamir.split(self._mask.seed, points, self.terms.threshold)
        of_seed = shamir.split(self._seed, points, self.terms.threshold)
        sealed = {}
        for holder, point in zip(holders, points, strict=True):
            if holder != self._me.id:
                sealed[holder] = seal_shares(
                    self._cipher, self._me.id, checked[holder], checked.digest, of_mask[point], of_seed[point]
                )
        mine = checked.point(self._me.id)
        self._shares = {self._me.id: (of_mask[mine], of_seed[mine])}
        self._roster, self._graph, self._sealed = checked, graph, sealed
        return sealed

    def _check_roster(self, blobs: Sequence[bytes]) -> tuple[Roster, Graph]:
        count, terms = len(blobs), self.terms
        if count > MAX_COHORT:
            raise WireError(f"{terms}: a roster has at most {MAX_COHORT} members, not {count}")
        self._check_cohort(count)
        if not self._sound(count, terms.degree, terms.threshold):
            self._deny(
                "secagg.graph",
                f"{terms.degree} neighbours with threshold {terms.threshold} do not protect {count} nodes",
                "the degree and threshold of the table for this roster",
            )
        if count > terms.quantiser.cohort:
            self._deny("secagg.overflow", f"{count} nodes for a ring made for {terms.quantiser.cohort}", "a larger ring")
        roster = Roster(terms, (read_keys(blob, terms, self._verify) for blob in blobs))
        if self._me.id not in roster or roster[self._me.id].blob != self._keys:
            raise AuthenticationFailed(f"{terms}: the roster does not hold the keys that this node sent for this attempt")
        if self._members is not None and not set(self._members) >= roster.keys():
            self._deny("secagg.member", "the roster has nodes that the client's job does not name", "nodes of the job alone")
        self._check_hidden(roster.values())
        if not self._allow_same_organisation:
            self._check_organisations(roster)
        return roster, Graph(roster, terms.degree, roster.digest)

    def _check_organisations(self, roster: Roster) -> None:
        """A card without an organisation says nothing about it, and is like no other."""
        seen: dict[str, str] = {}
        for member in roster.values():
            organisation = member.card.organisation
            if organisation and organisation in seen:
                self._deny(
                    "secagg.organisation",
                    f"{seen[organisation]} and {member.card} belong to one organisation, which would know two of the inputs",
                    "one node of each organisation; or every owner could write same_organisation = true in [policy]",
                )
            seen[organisation] = str(member.card)

    # ------------------------------------------------------------ leg 2

    def masked(self, shares: Mapping[PeerId, bytes], vector: Vector) -> Vector:
        """Leg 2: the shares for this node, one of each neighbour, and its vector (size,) in the ring -> the masked vector.

        The vector stays as it is. A repeated call returns the first result, whatever comes with it. Raises `ReleaseDenied`,
        `AuthenticationFailed` or `WireError`, and `InvalidRequest` for a vector of another size or dtype.
        """
        roster, graph = self._after_leg_1()
        if self._masked is not None:
            return self._masked
        if self._consent:
            self._deny("secagg.leg", "the input was given and the survivors are agreed", "leg 4")
        self._check_unopened()
        if vector.shape != (self.terms.size,) or vector.dtype != self.terms.quantiser.dtype:
            raise InvalidRequest(f"{self.terms}: a vector of {self.terms.size} elements of {self.terms.bits} bits was expected")
        opened = self._open(shares, roster, graph)
        me = self._me.id
        plus, minus = [own_seed(self._seed, me, roster.digest)], list[bytes]()
        for peer in graph.neighbours(me):
            seed = pair_seed(self._mask, me, roster[peer].mask, peer, roster.digest)
            (plus if sign_of(me, peer) > 0 else minus).append(seed)
        out = vector.copy()
        masks.apply(out, plus, minus)
        self._shares |= opened
        self._masked = out
        return out

    def _open(self, shares: Mapping[PeerId, bytes], roster: Roster, graph: Graph) -> dict[PeerId, tuple[bytes, bytes]]:
        neighbours = graph.neighbours(self._me.id)
        if set(shares) != set(neighbours):
            self._deny(
                "secagg.neighbours",
                f"shares of {len(neighbours)} neighbours were due, and others came, or not all of them",
                "the shares of this node's neighbours, or another attempt without those who are lost",
            )
        if any(len(sealed) != SEALED_BYTES for sealed in shares.values()):
            raise WireError(f"{self.terms}: a sealed share has {SEALED_BYTES} bytes")
        me = self._me.id
        return {peer: open_shares(self._cipher, me, roster[peer], roster.digest, shares[peer]) for peer in neighbours}

    # ------------------------------------------------------------ leg 3

    def consent(self, survivors: Sequence[PeerId]) -> bytes:
        """Leg 3: those whose inputs make the sum -> this node's signature (64 bytes) under them, given for one set only.

        Raises `ReleaseDenied`.
        """
        roster, graph = self._after_leg_1()
        ordered = tuple(sorted(survivors))
        if self._consent:
            if ordered != self._survivors:
                self._deny("secagg.leg", "this node has signed other survivors for this attempt", "the survivors that it signed")
            return self._consent
        if self._masked is None:
            self._deny("secagg.leg", "survivors came before this node gave its input", "leg 2 first")
        if len(set(ordered)) != len(ordered) or not roster.keys() >= set(ordered) or self._me.id not in ordered:
            self._deny(
                "secagg.survivors",
                "the survivors are not a set of members of the roster that this node belongs to",
                "those members whose masked inputs came",
            )
        self._check_cohort(len(ordered))
        self._check_hidden([roster[peer] for peer in ordered])
        if len(ordered) < majority(len(roster)):
            self._deny(
                "secagg.cohort",
                f"{len(ordered)} of {len(roster)} members are left, and {majority(len(roster))} must sign",
                "another round without those who are lost",
            )
        self._survivors = ordered
        self._opening = self._prepare(roster, graph)
        self._consent = self._me.sign(consent_statement(roster.digest, ordered))
        self._masked = None  # the gateway has it
        return self._consent

    def _prepare(self, roster: Roster, graph: Graph) -> Opening:
        """Of each peer one share is taken along; the others are forgotten here."""
        survivors, shares = set(self._survivors), {}
        for peer in graph.holders(self._me.id):
            of_mask, of_seed = self._shares[peer]
            shares[peer] = revealed(OF_OWN_SEED, of_seed) if peer in survivors else revealed(OF_MASK_KEY, of_mask)
        self._shares = {}
        return Opening(
            where=self._where,
            model=self._opened_name,
            roster=roster.digest,
            survivors={peer: roster[peer].card.key for peer in self._survivors},
            needed=majority(len(roster)),
            shares=shares,
        )

    # ------------------------------------------------------------ leg 4

    def reveal(self, consents: Mapping[PeerId, bytes]) -> dict[PeerId, bytes]:
        """Leg 4: the survivors' signatures -> for this node and each neighbour one share: of the seed of its own mask if it
        survived, else of its mask key; never both.

        With that the sum over this model counts as opened for this node, for ever. Raises `ReleaseDenied` or
        `AuthenticationFailed`.
        """
        return self.opening.reveal(consents, self._memory)

    @property
    def opening(self) -> Opening:
        """What leg 4 will reveal, from leg 3 on: the one thing of this object that a node may keep across a restart."""
        if self._opening is None:
            self._deny("secagg.leg", "signatures came before this node was told of survivors", "leg 3 first")
        return self._opening

    # ------------------------------------------------------------ rules

    def _after_leg_1(self) -> tuple[Roster, Graph]:
        if self._roster is None or self._graph is None:
            self._deny("secagg.leg", "no roster has come yet", "leg 1 first")
        return self._roster, self._graph

    def _check_cohort(self, count: int) -> None:
        least = max(self._minimum, self._least)
        if count < least:
            what = f"{count} nodes are fewer than this node's minimum, or the job's"
            self._deny("secagg.cohort", what, f"{least} nodes or more")

    def _check_hidden(self, members: Collection[Member]) -> None:
        """Nodes whose data is open hide nobody: their part could be taken off the sum. Such a node has nothing to hide itself."""
        hidden = sum(not member.public for member in members)
        if not self._public and hidden < self._minimum:
            self._deny(
                "secagg.cohort",
                f"{hidden} of {len(members)} nodes hold data that is not open to all, which is fewer than this node's minimum",
                f"{self._minimum} nodes or more whose data is not open",
            )

    def _check_unopened(self) -> None:
        if self._memory.claimed(self._opened_name):
            deny_opened(self._where)

    @property
    def _opened_name(self) -> str:
        """One for each model of a job, whatever the round's number or the attempt."""
        return "secagg opened " + hashlib.sha256(framed("grid opened 1", self.terms.job.encode(), self.terms.model)).hexdigest()

    @property
    def _where(self) -> str:
        return f"{self.terms} refused by {self._me.name}"

    def _deny(self, rule: str, what: str, instead: str) -> NoReturn:
        deny(self._where, rule, what, instead)
