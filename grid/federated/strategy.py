"""What every strategy is: how the gateway makes new weights of old ones and of what a round's nodes have learned.

    state = strategy.start(size)
    weights, state = strategy.apply(weights, mean_update, state, round)

`mean_update` is the weighted mean of (weights after local training - weights before): minus what optimizers call a gradient.
Strategies travel as plain values, `to_plain`; state is a dict of vectors, which the coordinator keeps with the job. Calls may
take long and are for a thread, one at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from grid.errors import InvalidRequest
from grid.federated.plain import Described, number

Vector = npt.NDArray[Any]
State = dict[str, Vector]

LARGEST = 1e6

RATE = number(0, LARGEST, above=True)
SHARE = number(0, 1)


class Strategy(Described, ABC):
    """What strategies have in common. `needs_single`: it sees each node's update alone, so secure aggregation must be off.

    `proximal` is FedProx's mu, for the nodes.
    """

    __slots__ = ()
    needs_single: ClassVar[bool] = False

    @property
    def proximal(self) -> float:
        """The weight of the squared distance to the round's weights in local losses."""
        return 0.0

    def start(self, size: int) -> State:
        """The state before the first round, for weights of so many elements."""
        return {}

    @abstractmethod
    def apply(self, weights: Vector, mean_update: Vector, state: State, round: int) -> tuple[Vector, State]:
        """New weights and new state; rounds count from 1. Arguments are not written to."""

    def combine(self, updates: Sequence[Vector], weights: Sequence[float]) -> Vector:
        """One update of those that came one by one, with the weights of their nodes: their mean. For jobs without secure sums.

        Raises `InvalidRequest` where there are none, or too few.
        """
        return mean_of(updates, weights)

    def close(self) -> None:
        """Let go of what the strategy holds. Safe to call again."""


def mean_of(updates: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """The weighted mean of updates that came one by one. Raises `InvalidRequest` where there are none or they differ in size."""
    if not updates or len(updates) != len(weights) or len({update.shape for update in updates}) != 1:
        raise InvalidRequest("there are no updates, or they differ in size")
    total = np.zeros(updates[0].shape)
    for update, weight in zip(updates, weights, strict=True):
        total += update * np.float64(weight)
    return total / np.float64(sum(weights))
