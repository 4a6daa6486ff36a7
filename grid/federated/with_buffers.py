"""A strategy for the parameters of a model that has buffers, too: those are averaged, whatever the strategy does.

Statistics such as the running variance of batch norm are no parameters: momentum or a step size of their own would take them
where no data ever was, below zero even.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from grid.errors import InvalidRequest
from grid.federated.plain import whole
from grid.federated.strategy import State, Strategy, Vector

MAX_BUFFERS = 1 << 40

checked_buffers = whole(0, MAX_BUFFERS)


class WithBuffers(Strategy):
    """`inner` for all elements of the vector but the last `buffers`, whose mean update is added."""

    __slots__ = ("buffers", "inner")

    def __init__(self, inner: Strategy, buffers: int) -> None:
        self.inner = inner
        self.buffers: int = checked_buffers("buffers", buffers)

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The other strategy's."""
        return self.inner.kind

    @property
    def needs_single(self) -> bool:  # type: ignore[override]
        """Whether the other strategy sees each update."""
        return self.inner.needs_single

    @property
    def proximal(self) -> float:
        """The other strategy's."""
        return self.inner.proximal

    def to_plain(self) -> dict[str, Any]:
        """The other strategy's description, with the number of elements."""
        return {**self.inner.to_plain(), "buffers": self.buffers}

    def start(self, size: int) -> State:
        """The other strategy's state. Raises `InvalidRequest` where no element is left to it."""
        if self.buffers >= size:
            raise InvalidRequest(f"a model of {size} numbers has not {self.buffers} in buffers and one to train")
        return self.inner.start(size - self.buffers)

    def apply(self, weights: Vector, mean_update: Vector, state: State, round: int) -> tuple[Vector, State]:
        """New weights and state."""
        at = len(weights) - self.buffers
        new, state = self.inner.apply(weights[:at], mean_update[:at], state, round)
        return np.concatenate([new, (weights[at:] + mean_update[at:]).astype(weights.dtype)]), state

    def combine(self, updates: Sequence[Vector], weights: Sequence[float]) -> Vector:
        """As the other strategy combines them, buffers included."""
        return self.inner.combine(updates, weights)

    def close(self) -> None:
        """Close the other strategy."""
        self.inner.close()


def with_buffers(strategy: Strategy, buffers: int) -> Strategy:
    """The strategy for a model whose vector ends with so many elements of buffers."""
    return WithBuffers(strategy, buffers) if buffers else strategy
