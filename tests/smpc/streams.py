"""Randomness that tests pass to protocols, and a look at what comes out."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from grid.smpc.keystreams import KEY_BYTES, Keystreams, Randomness, Reuse
from grid.smpc.link import Words
from grid.smpc.shares import Shared


def fixed_keystreams(seed: int) -> list[Randomness]:
    """Three parties' keystreams that are the same in every run; a second draw of one raises."""
    keys = [hashlib.sha256(f"{seed} {place}".encode()).digest()[:KEY_BYTES] for place in range(4)]
    return [Reuse(Keystreams(keys[rank], keys[(rank + 1) % 3], keys[3])) for rank in range(3)]


class Constant:
    """Every word is the same: masks forced to 0, or to all ones."""

    def __init__(self, word: int) -> None:
        self._word = word

    def draw(self, key: int, operation: int, purpose: int, count: int) -> Words:
        return np.full(count, self._word, np.uint64)


def dealt(value: npt.ArrayLike, rank: int, seed: int = 0) -> Shared:
    """One party's share of a value that a test splits into uniform components."""
    whole = np.asarray(value).astype(np.int64).view(np.uint64)
    first, second = np.random.default_rng(seed).integers(0, 1 << 64, (2, *whole.shape), np.uint64)
    components = (first, second, whole - first - second)
    return Shared(components[rank], components[(rank + 1) % 3])


def unlikely(counts: npt.ArrayLike, expected: float) -> bool:
    """Whether chi-squared of these counts is six standard deviations from what equal chances give."""
    seen = np.asarray(counts, np.float64)
    freedom = seen.size - 1
    return abs(float(((seen - expected) ** 2 / expected).sum()) - freedom) > 6 * (2 * freedom) ** 0.5
