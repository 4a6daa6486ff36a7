"""Putting secrets together from what was revealed in leg 4, though some of it is wrong, and telling who is to blame.

A share that does not belong to its secret was dealt wrong by the owner or revealed wrong by the holder; which of them, one such
share does not say. A node that stands in so many of them that fewer than a third cannot have agreed on it is named. Nothing of
this changes a sum: it has all its secrets as their owners signed them, or there is none.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from grid.federated.secagg import decoding
from grid.federated.secagg.graph import Graph
from grid.federated.secagg.statements import Roster
from grid.ids import PeerId

Pair = tuple[PeerId, PeerId]
"""An owner of a secret and a holder of a share of it that is wrong."""

Blame = tuple[PeerId, ...]
"""One of these sent something wrong."""


MOST_PAIRS = 10_000
"""Pairs of an owner and a holder that are looked at to tell whose shares are wrong, all of a complete graph's: some seconds."""


class Unmasking:
    """Of one sum, over all tries to open it: a secret that was found fits what was signed, and is not looked for again."""

    def __init__(self, roster: Roster, graph: Graph, threshold: int) -> None:
        self._roster, self._graph, self._threshold = roster, graph, threshold
        self._reveals: Mapping[PeerId, Mapping[PeerId, bytes]] = {}
        self._suspects: dict[PeerId, None] = {}
        self._secrets: dict[PeerId, bytes] = {}
        self._right: dict[PeerId, dict[int, bytes]] = {}
        self._vain: dict[PeerId, dict[int, bytes]] = {}
        """Shares that did not give their owner's secret."""

    def take(self, reveals: Mapping[PeerId, Mapping[PeerId, bytes]]) -> None:
        """What was revealed by now: by holder, its shares by owner. It does not change any more."""
        self._reveals = reveals

    def secret(self, owner: PeerId, fits: Callable[[bytes], bool]) -> bytes | None:
        """The owner's secret, which `fits`; None if the shares that came do not give it.

        Holders that a share was wrong of before come last, so that one who lies costs a search but once.
        """
        if owner in self._secrets:
            return self._secrets[owner]
        holders = [holder for holder in self._graph.holders(owner) if holder in self._reveals]
        holders.sort(key=self._suspects.__contains__)
        shares = {self._roster.point(holder): self._reveals[holder][owner] for holder in holders}
        if self._vain.get(owner) == shares:
            return None
        found = decoding.recover(shares, self._threshold, fits)
        if found is None:
            self._vain[owner] = shares
            return None
        secret, wrong = found
        self._suspects.update({holder: None for holder in holders if self._roster.point(holder) in wrong})
        right = [point for point in shares if point not in wrong][: self._threshold]
        self._right[owner] = {point: shares[point] for point in right}
        self._secrets[owner] = secret
        return secret

    def blame(self, *, all_shares: bool = False) -> tuple[Blame, ...]:
        """Who sent wrong shares: one node where it is sure, two where it was one of them.

        As far as that was noticed, since shares beyond the threshold are not looked at; with `all_shares` they are, as far as
        `MOST_PAIRS` go. What is left out cannot make an honest node look guilty: it is in wrong pairs with liars alone.
        """
        pairs = (
            (owner, holder)
            for holder in {**self._suspects, **(dict.fromkeys(self._reveals) if all_shares else {})}
            if holder in self._reveals
            for owner in self._graph.holders(holder)
            if owner in self._right
        )
        wrong = [pair for pair in itertools.islice(pairs, MOST_PAIRS) if self._is_wrong(*pair)]
        return blame(wrong, len(self._graph.holders(next(iter(self._roster)))))

    def _is_wrong(self, owner: PeerId, holder: PeerId) -> bool:
        return decoding.differs(self._right[owner], self._roster.point(holder), self._reveals[holder][owner])


def blame(pairs: Iterable[Pair], count: int) -> tuple[Blame, ...]:
    """Of `count` nodes as few as explain all wrong shares: those in most of them first, and both where it was one of two.

    One is named alone where more than a third of all say so, or its own share is wrong: fewer could have agreed to deal it
    wrong shares.
    """
    left = {frozenset(pair) for pair in pairs}
    named: list[Blame] = []
    while left:
        counts = Counter(node for pair in left for node in pair)
        worst = max(counts, key=lambda node: (frozenset((node,)) in left, counts[node], node))
        if counts[worst] <= max(1, count // 3) and frozenset((worst,)) not in left:
            return (*named, *sorted(tuple(sorted(pair)) for pair in left))
        named.append((worst,))
        left = {pair for pair in left if worst not in pair}
    return tuple(named)
