"""A cohort in one process: real identities, parties and a server, and a memory that outlives a party."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from grid.clock import SystemClock
from grid.crypto.cards import NODE, read_card
from grid.crypto.identity import LocalIdentity
from grid.federated.secagg.graph import degree_and_threshold
from grid.federated.secagg.masks import Vector
from grid.federated.secagg.party import Party
from grid.federated.secagg.quantiser import Quantiser
from grid.federated.secagg.server import Server
from grid.federated.secagg.statements import Terms
from grid.ids import PeerId

MODEL = bytes(range(32))


class Names:
    """Claimed names, in a set."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def claim(self, *names: str) -> bool:
        fresh = self.taken.isdisjoint(names)
        if fresh:
            self.taken.update(names)
        return fresh

    def claimed(self, name: str) -> bool:
        return name in self.taken


believe = functools.lru_cache(maxsize=4096)(read_card)
"""Cards hold once and for all here: most of a test's time would be spent on checking the same ones again."""


@functools.cache
def identity(number: int, organisation: str | None = None) -> LocalIdentity:
    """Node number `number`, the same each time."""
    where = f"org{number}" if organisation is None else organisation
    return LocalIdentity.create(name=f"node{number}", role=NODE, clock=SystemClock(), organisation=where)


def terms_for(cohort: int, *, size: int = 8, bits: int = 32, degree: int | None = None, **changes: Any) -> Terms:
    """Terms of a round with `size` update coordinates."""
    levels = 100 if bits == 32 else 1 << 30
    quantiser = Quantiser(size=size, metrics=0, bits=bits, clip=1.0, levels=levels, largest_weight=1000, cohort=max(cohort, 3))
    neighbours, threshold = degree_and_threshold(cohort)
    if degree is not None and degree != neighbours:
        neighbours, threshold = degree, degree // 2 + 1
    base = Terms(
        job="job",
        round=1,
        attempt=0,
        index=1,
        model=MODEL,
        size=quantiser.length,
        bits=bits,
        degree=neighbours,
        threshold=threshold,
        quantiser=quantiser,
    )
    return dataclasses.replace(base, **changes)


def party(me: LocalIdentity, terms: Terms, memory: Names | None = None, **changes: Any) -> Party:
    """A node with the default policy."""
    settings: dict[str, Any] = {"minimum": 3, "verify": believe, **changes}
    return Party(me=me, card=me.card, terms=terms, memory=memory or Names(), **settings)


class Cohort:
    """Parties and a server under the same terms; each leg with those who are there."""

    def __init__(self, terms: Terms, members: Sequence[LocalIdentity], **changes: Any) -> None:
        self.terms = terms
        self.members = {me.id: me for me in members}
        self.memories = {me.id: Names() for me in members}
        self.parties = {me.id: party(me, terms, self.memories[me.id], **changes) for me in members}
        self.server = Server(terms, verify=believe)

    def announce(self) -> tuple[bytes, ...]:
        """Legs 0: the roster."""
        for peer, one in self.parties.items():
            self.server.add_keys(peer, one.keys())
        return self.server.roster()

    def exchange(self) -> None:
        """Legs 0 and 1."""
        roster = self.announce()
        for peer, one in self.parties.items():
            self.server.add_shares(peer, one.share(roster))

    def give(self, vectors: dict[PeerId, Vector]) -> tuple[PeerId, ...]:
        """Leg 2, of the nodes that have a vector: the survivors."""
        for peer, vector in vectors.items():
            self.server.add_input(peer, self.parties[peer].masked(self.server.shares_for(peer), vector))
        return self.server.survivors()

    def agree(self, peers: Iterable[PeerId]) -> dict[PeerId, bytes]:
        """Leg 3, of these nodes: the signatures."""
        for peer in peers:
            self.server.add_consent(peer, self.parties[peer].consent(self.server.survivors()))
        return self.server.consents()

    def open(self, peers: Iterable[PeerId]) -> Vector:
        """Leg 4, of these nodes: the sum."""
        consents = self.server.consents()
        for peer in peers:
            self.server.add_reveal(peer, self.parties[peer].reveal(consents))
        return self.server.result()

    def vectors(self, seed: int = 1) -> dict[PeerId, Vector]:
        """A random vector for each, over the whole ring."""
        random = np.random.default_rng(seed)
        dtype = self.terms.quantiser.dtype
        limit = np.iinfo(dtype).max
        return {peer: random.integers(0, limit, self.terms.size, dtype, endpoint=True) for peer in self.parties}


def ring_sum(vectors: Iterable[Vector], terms: Terms) -> Vector:
    """What a sum must be."""
    total = np.zeros(terms.size, terms.quantiser.dtype)
    for vector in vectors:
        total += vector
    return total
