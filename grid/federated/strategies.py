"""The strategies of the literature, in numpy on flat vectors, and the table of all kinds.

The adaptive ones are Algorithm 2 of Reddi et al., "Adaptive Federated Optimization" (ICLR 2021), with its names: server step size
eta (`lr`), beta1 and beta2 (`betas`), degree of adaptivity `tau`; second moments begin at tau squared, and nothing corrects for
that beginning.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from grid.federated.custom import CustomStrategy, custom_from_plain
from grid.federated.plain import Check, described_from_plain, number, pair
from grid.federated.robust import Krum, Median, TrimmedMean
from grid.federated.strategy import LARGEST, RATE, SHARE, State, Strategy, Vector
from grid.federated.with_buffers import checked_buffers, with_buffers


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg(Strategy):
    """The mean update is added (McMahan et al., 2017), `lr` times where that is not 1."""

    kind: ClassVar[str] = "fedavg"
    checks: ClassVar[Mapping[str, Check]] = {"lr": RATE}

    lr: float = 1.0

    def apply(self, weights: Vector, mean_update: Vector, state: State, round: int) -> tuple[Vector, State]:
        """New weights."""
        return weights + weights.dtype.type(self.lr) * mean_update.astype(weights.dtype, copy=False), state


@dataclass(frozen=True, slots=True, kw_only=True)
class FedProx(FedAvg):
    """FedAvg whose nodes add mu / 2 times the squared distance to the round's weights to their losses (Li et al., 2020)."""

    kind: ClassVar[str] = "fedprox"
    checks: ClassVar[Mapping[str, Check]] = {"mu": number(0, LARGEST), "lr": RATE}

    mu: float = 0.01

    @property
    def proximal(self) -> float:
        """mu."""
        return self.mu


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvgM(Strategy):
    """FedAvg with momentum at the server (Hsu et al., 2019): v = momentum v + mean update; weights + lr v."""

    kind: ClassVar[str] = "fedavgm"
    checks: ClassVar[Mapping[str, Check]] = {"lr": RATE, "momentum": SHARE}

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

    checks: ClassVar[Mapping[str, Check]] = {"lr": RATE, "betas": pair(SHARE), "tau": RATE}

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
    cls.kind: cls for cls in (FedAvg, FedAvgM, FedProx, FedAdam, FedYogi, FedAdagrad, Median, TrimmedMean, Krum)
}
"""Kind -> strategies that are all in their plain values; a user's own has a plan beside them."""


def strategy_from_plain(data: Any, plan: bytes | bytearray | memoryview = b"") -> Strategy:
    """What `to_plain` of a strategy gave, or something hostile. Raises `InvalidRequest` and nothing else.

    `plan` is what came beside it as the strategy's plan; it is looked at only where it runs, in a process of its own.
    """
    if type(data) is dict and "buffers" in data:
        rest = {key: value for key, value in data.items() if key != "buffers"}
        return with_buffers(strategy_from_plain(rest, plan), checked_buffers("buffers", data["buffers"]))
    if type(data) is dict and data.get("kind") == CustomStrategy.kind:
        return custom_from_plain(data, bytes(plan))
    return described_from_plain(data, PLAIN, "the strategy")
