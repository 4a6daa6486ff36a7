"""Who shares secrets and masks with whom.

Up to `COMPLETE` nodes everybody with everybody; above, a k-regular graph (Bell et al., CCS 2020): a Harary graph over an
order of the nodes that follows from the hash of all signed keys, so that nobody chooses anybody's neighbours. A secret's
holders are its owner and the owner's neighbours.

The table's margin of 2**-40 is for one random order. A gateway can't choose the order, but with a node that conspires, and
that picks its keys last, it can try many; so each try costs a memory-hard hash of tens of milliseconds (scrypt).

Above `COMPLETE` nodes a malicious gateway that says that chosen nodes were lost can cut the graph, and learn the sums of parts
of the survivors in place of their sum. Each honest node in a part has `threshold` holders in it, conspirators counted.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

from grid.crypto.envelope import framed
from grid.errors import InvalidRequest
from grid.ids import PeerId

COMPLETE = 100
"""The largest cohort with a complete graph."""

MAX_COHORT = 1000
"""The table says nothing about larger ones."""

TABLE = {0.1: (45, 26), 0.2: (98, 54), 0.33: (280, 147)}
"""Share of nodes that conspire, and as large a share that drops out -> neighbours and threshold in a cohort of 1000, for
2**-40 security and 2**-20 failure. They serve smaller cohorts as well, where fewer would do."""

LEAST = 0.2
"""The tolerance that nodes insist on. A graph for fewer conspirators is refused."""


def degree_and_threshold(cohort: int, tolerance: float = LEAST) -> tuple[int, int]:
    """How many neighbours each node has, and how many holders it takes to open one of its secrets.

    `tolerance` is a key of `TABLE`. `InvalidRequest` for a cohort that is larger than 1000, or smaller than 2.
    """
    if not 2 <= cohort <= MAX_COHORT:
        raise InvalidRequest(f"secure aggregation takes 2 to {MAX_COHORT} nodes, not {cohort}: let a fraction of them take part")
    degree, threshold = TABLE[tolerance]
    degree += degree * cohort % 2  # no graph has an odd sum of degrees
    if cohort <= COMPLETE or degree >= cohort - 1:
        return cohort - 1, majority(cohort)
    return degree, threshold


def majority(cohort: int) -> int:
    """More than two thirds: how many must sign the same survivors, whatever the graph. Two such sets of signers share an honest
    node as long as less than a third conspires with the gateway, and an honest node signs once."""
    return 2 * cohort // 3 + 1


def is_sound(cohort: int, degree: int, threshold: int) -> bool:
    """Whether the table has this graph for a cohort of this size, for as many conspirators as `LEAST` or more."""
    sound = [share for share in TABLE if share >= LEAST]
    return 2 <= cohort <= MAX_COHORT and (degree, threshold) in {degree_and_threshold(cohort, share) for share in sound}


class Graph:
    """The neighbours of each of `peers`, which are distinct. `seed` orders them: the digest of terms and roster."""

    def __init__(self, peers: Iterable[PeerId], degree: int, seed: bytes) -> None:
        self._order = sorted(peers)
        size = len(self._order)
        if not 0 <= degree < max(size, 1) or degree * size % 2:
            raise InvalidRequest(f"there is no graph of {size} nodes with {degree} neighbours each")
        if degree < size - 1:
            drawn = _slow_hash(seed)
            self._order.sort(key=lambda peer: hashlib.sha256(framed("grid graph 1", drawn, peer.encode())).digest())
        self._place = {peer: place for place, peer in enumerate(self._order)}
        half = [step for distance in range(1, degree // 2 + 1) for step in (distance, -distance)]
        self._steps = [*half, size // 2] if degree % 2 else half

    def neighbours(self, peer: PeerId) -> tuple[PeerId, ...]:
        """In the order of their ids; as many as the degree. KeyError for a stranger."""
        place, size = self._place[peer], len(self._order)
        return tuple(sorted(self._order[(place + step) % size] for step in self._steps))

    def holders(self, peer: PeerId) -> tuple[PeerId, ...]:
        """Those who hold a share of the peer's secrets, and whose secrets it holds shares of: its neighbours and itself."""
        return tuple(sorted((peer, *self.neighbours(peer))))


@functools.lru_cache(maxsize=4)
def _slow_hash(seed: bytes) -> bytes:
    """16 MiB and tens of milliseconds for each try at another graph."""
    return hashlib.scrypt(seed, salt=b"grid graph 1", n=1 << 14, r=8, p=1, dklen=32)
