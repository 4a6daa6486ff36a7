"""Combining single updates so that a few nodes cannot pull the result where they like. Only where secure aggregation is off.

Each update is first clipped to the length `clip_norm`, or where that is None to the median of the lengths. Nodes' weights are not
used: who claims many rows gets no more say. An update that holds a number that is not finite is left out.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grid.errors import InvalidRequest
from grid.federated.plain import Check, number, optional, whole
from grid.federated.strategy import LARGEST, RATE, State, Strategy, Vector

PIECE = 1 << 16
"""Coordinates that are looked at together."""

MAX_NODES = 10_000

_EVERY: Mapping[str, Check] = {"clip_norm": optional(number(0, LARGEST, above=True)), "lr": RATE}


class Robust(Strategy):
    """What robust strategies have in common: `lr` times the combined update is added to the weights."""

    __slots__ = ()
    needs_single: ClassVar[bool] = True
    clip_norm: float | None
    lr: float

    def apply(self, weights: Vector, mean_update: Vector, state: State, round: int) -> tuple[Vector, State]:
        """New weights."""
        return (weights + self.lr * mean_update).astype(weights.dtype), state

    def combine(self, updates: Sequence[Vector], weights: Sequence[float]) -> Vector:
        """The combined update. Raises `InvalidRequest` where too few are left."""
        good = [update for update in updates if np.isfinite(update).all()]
        if not good or len({update.shape for update in good}) != 1:
            raise InvalidRequest("there are no updates, or they differ in size")
        return self._combined(clipped(good, self.clip_norm))

    @abstractmethod
    def _combined(self, updates: Sequence[Vector]) -> Vector:
        """One update of clipped ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Median(Robust):
    """The median of each coordinate (Yin et al., 2018); right while fewer than half of the nodes lie."""

    kind: ClassVar[str] = "median"
    checks: ClassVar[Mapping[str, Check]] = _EVERY

    clip_norm: float | None = None
    lr: float = 1.0

    def _combined(self, updates: Sequence[Vector]) -> Vector:
        return np.concatenate([np.median(piece, axis=0) for piece in _pieces(updates)])


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedMean(Robust):
    """The mean of each coordinate without the `share` largest and smallest, rounded up to nodes (Yin et al., 2018)."""

    kind: ClassVar[str] = "trimmed-mean"
    checks: ClassVar[Mapping[str, Check]] = {"share": number(0, 0.5), **_EVERY}

    share: float = 0.1
    clip_norm: float | None = None
    lr: float = 1.0

    def _combined(self, updates: Sequence[Vector]) -> Vector:
        cut = math.ceil(self.share * len(updates) - 1e-9)
        if len(updates) <= 2 * cut:
            raise InvalidRequest(
                f"{len(updates)} updates are too few for TrimmedMean(share={self.share:g}), which leaves out {2 * cut} of them"
            )
        return np.concatenate([np.sort(piece, axis=0)[cut : len(updates) - cut].mean(axis=0) for piece in _pieces(updates)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Krum(Robust):
    """The update that lies closest to its neighbours, where up to `byzantine` nodes lie (Blanchard et al., 2017).

    An update's score is the sum of squared distances to its n - byzantine - 2 nearest ones; n must be above 2 byzantine + 2. With
    `keep` above 1 the mean of so many of the best is taken (Multi-Krum).
    """

    kind: ClassVar[str] = "krum"
    checks: ClassVar[Mapping[str, Check]] = {"byzantine": whole(0, MAX_NODES), "keep": whole(1, MAX_NODES), **_EVERY}

    byzantine: int = 1
    keep: int = 1
    clip_norm: float | None = None
    lr: float = 1.0

    def _combined(self, updates: Sequence[Vector]) -> Vector:
        count = len(updates)
        if count <= 2 * self.byzantine + 2 or self.keep > count - self.byzantine:
            least = max(2 * self.byzantine + 3, self.byzantine + self.keep)
            raise InvalidRequest(f"{count} updates are too few for Krum(byzantine={self.byzantine}), which needs {least}")
        nearest = np.sort(_distances(updates), axis=1)[:, 1 : count - self.byzantine - 1]  # 0 is the update itself
        best = np.argsort(nearest.sum(axis=1), kind="stable")[: self.keep]
        chosen: Vector = np.stack([updates[at] for at in best]).mean(axis=0, dtype=np.float64)
        return chosen


def clipped(updates: Sequence[Vector], most: float | None) -> list[Vector]:
    """The updates, none longer than `most`, or than the median of their lengths."""
    lengths = [float(np.linalg.norm(update.astype(np.float64))) for update in updates]
    limit = float(np.median(lengths)) if most is None else most
    return [
        update if length <= limit else update * update.dtype.type(limit / length)
        for update, length in zip(updates, lengths, strict=True)
    ]


def _pieces(updates: Sequence[Vector]) -> Iterator[Vector]:
    """All updates, some coordinates at a time: `(nodes, coordinates)`, float64."""
    for start in range(0, len(updates[0]), PIECE):
        yield np.stack([update[start : start + PIECE] for update in updates]).astype(np.float64)


def _distances(updates: Sequence[Vector]) -> Vector:
    """Squared distances, `(nodes, nodes)`."""
    total = np.zeros((len(updates), len(updates)))
    for piece in _pieces(updates):
        products = piece @ piece.T
        squares = products.diagonal()
        total += squares[:, None] + squares[None, :] - 2 * products
    np.fill_diagonal(total, -np.inf)
    return total
