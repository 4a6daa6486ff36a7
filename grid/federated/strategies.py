"""How the gateway makes new weights of old ones and the mean update of a round's nodes. numpy on flat vectors, nothing else.

    state = strategy.start(size)
    weights, state = strategy.apply(weights, mean_update, state, round)

`mean_update` is the weighted mean of (weights after local training - weights before): minus what optimizers call a gradient. The
adaptive ones are Algorithm 2 of Reddi et al., "Adaptive Federated Optimization" (ICLR 2021), with its names: server step size eta
(`lr`), beta1 and beta2 (`betas`), degree of adaptivity `tau`; second moments begin at tau squared, and nothing corrects for that
beginning. Strategies travel as plain values; state is a dict of vectors, which the coordinator keeps with the job.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from grid.errors import InvalidRequest
from grid.federated.plain import Check, Described, described_from_plain, number, pair

Vector = npt.NDArray[Any]
State = dict[str, Vector]

LARGEST = 1e6

_RATE = number(0, LARGEST, above=True)
_SHARE = number(0, 1)


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

    def close(self) -> None:
        """Let go of what the strategy holds. Safe to call again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg(Strategy):
    """The mean update is added (McMahan et al., 2017), `lr` times where that is not 1."""

    kind: ClassVar[str] = "fedavg"
    checks: ClassVar[Mapping[str, Check]] = {"lr": _RATE}

    lr: float = 1.0

    def apply(self, weights: Vector, mean_update: Vector, state: State, round: int) -> tuple[Vector, State]:
        """New weights."""
        return weights + weights.dtype.type(self.lr) * mean_update.astype(weights.dtype, copy=False), state


@dataclass(frozen=True, slots=True, kw_only=True)
class FedProx(FedAvg):
    """FedAvg whose nodes add mu / 2 times the squared distance to the round's weights to their losses (Li et al., 2020)."""

    kind: ClassVar[str] = "fedprox"
    checks: ClassVar[Mapping[str, Check]] = {"mu": number(0, LARGEST), "lr": _RATE}

    mu: float = 0.01

    @property
    def proximal(self) -> float:
        """mu."""
        return self.mu


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvgM(Strategy):
    """FedAvg with momentum at the server (Hsu et al., 2019): v = momentum v + mean update; weights + lr v."""

    kind: ClassVar[str] = "fedavgm"
    checks: ClassVar[Mapping[str, Check]] = {"lr": _RATE, "momentum": _SHARE}

    lr: float = 1.0
    momentum: float = 0.9

    def start(self, size: int) -> State:
        """`velocity`, zeros."""
        return {"velocity": np.zeros(size)}

    def apply(self, weights: Vector, mean_update: Vector, state: State, round: int) -> tuple[Vector, State]:
        """New weights and velocity."""
        velocity = self.momentum * state["velocity"] + mean_update
        return (weights + self.lr * velocity).astype(weights.dtype), {"velocity": velocity}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adaptive(Strategy):
    """Algorithm 2: m = beta1 m + (1 - beta1) Delta; v by the strategy; weights + eta m / (sqrt(v) + tau)."""

    checks: ClassVar[Mapping[str, Check]] = {"lr": _RATE, "betas": pair(_SHARE), "tau": _RATE}

    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3

    def start(self, size: int) -> State:
        """`mean`, zeros, and `square`, tau squared."""
        return {"mean": np.zeros(size), "square": np.full(size, self.tau**2)}

    def apply(self, weights: Vector, mean_update: Vector, state: State, round: int) -> tuple[Vector, State]:
        """New weights, first and second moment."""
        first = self.betas[0]
        mean = first * state["mean"] + (1 - first) * mean_update
        square = self._square(state["square"], np.square(mean_update.astype(np.float64)))
        new = weights + self.lr * mean / (np.sqrt(square) + self.tau)
        return new.astype(weights.dtype), {"mean": mean, "square": square}

    @abstractmethod
    def _square(self, old: Vector, fresh: Vector) -> Vector:
        """The second moment after this round; `fresh` is the squared mean update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdam(_Adaptive):
    """v = beta2 v + (1 - beta2) Delta^2."""

    kind: ClassVar[str] = "fedadam"

    def _square(self, old: Vector, fresh: Vector) -> Vector:
        return self.betas[1] * old + (1 - self.betas[1]) * fresh


@dataclass(frozen=True, slots=True, kw_only=True)
class FedYogi(_Adaptive):
    """v = v - (1 - beta2) Delta^2 sign(v - Delta^2)."""

    kind: ClassVar[str] = "fedyogi"

    def _square(self, old: Vector, fresh: Vector) -> Vector:
        new: Vector = old - (1 - self.betas[1]) * fresh * np.sign(old - fresh)
        return new


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdagrad(_Adaptive):
    """v = v + Delta^2, and no momentum unless `betas` say so: the paper's experiments have beta1 = 0."""

    kind: ClassVar[str] = "fedadagrad"

    betas: tuple[float, float] = (0.0, 0.0)

    def _square(self, old: Vector, fresh: Vector) -> Vector:
        return old + fresh


PLAIN: Mapping[str, type[Strategy]] = {
    cls.kind: cls for cls in (FedAvg, FedAvgM, FedProx, FedAdam, FedYogi, FedAdagrad)
}
"""Kind -> strategies that need nothing but numpy."""


def strategy_from_plain(data: Any) -> Strategy:
    """What `to_plain` of a strategy gave, or something hostile. Raises `InvalidRequest` and nothing else."""
    return described_from_plain(data, PLAIN, "the strategy")


def mean_of(updates: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """The weighted mean of updates that came one by one. Raises `InvalidRequest` where there are none or they differ in size."""
    if not updates or len(updates) != len(weights) or len({update.shape for update in updates}) != 1:
        raise InvalidRequest("there are no updates, or they differ in size")
    total = np.zeros(updates[0].shape)
    for update, weight in zip(updates, weights, strict=True):
        total += update * np.float64(weight)
    return total / np.float64(sum(weights))
