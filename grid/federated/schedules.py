"""How the step size of local training changes: a factor on the optimizer's `lr`.

A schedule runs over the rounds of a job, and is then the same at all nodes, or over the steps within each round, which begin anew
with every round since nodes of different sizes take different numbers of steps. With `warmup` the factor first rises evenly: at
position t, counted from 0, it is (t + 1) / (warmup + 1). What follows counts from the end of the warm-up.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from grid.federated.plain import Check, Described, choice, described_from_plain, number, whole

MAX_POSITIONS = 1_000_000_000


class Schedule(Described, ABC):
    """What the schedules have in common. `over` is "rounds" or "steps"."""

    __slots__ = ()
    warmup: int
    over: str

    def factor(self, round: int, step: int) -> float:
        """The factor for a step, counted from 0 in its round; rounds count from 1."""
        position = round - 1 if self.over == "rounds" else step
        if position < self.warmup:
            return (position + 1) / (self.warmup + 1)
        return self._after(position - self.warmup)

    @abstractmethod
    def _after(self, position: int) -> float:
        """The factor so many positions after the warm-up."""


_EVERY: Mapping[str, Check] = {"warmup": whole(0, MAX_POSITIONS), "over": choice("rounds", "steps")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantSchedule(Schedule):
    """The same step size all the time, after a warm-up."""

    kind: ClassVar[str] = "constant"
    checks: ClassVar[Mapping[str, Check]] = _EVERY

    warmup: int = 0
    over: str = "rounds"

    def _after(self, position: int) -> float:
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineSchedule(Schedule):
    """Half a cosine wave, from 1 to `floor` within `length` positions after the warm-up (Loshchilov and Hutter, 2017)."""

    kind: ClassVar[str] = "cosine"
    checks: ClassVar[Mapping[str, Check]] = {"length": whole(1, MAX_POSITIONS), "floor": number(0, 1), **_EVERY}

    length: int
    floor: float = 0.0
    warmup: int = 0
    over: str = "rounds"

    def _after(self, position: int) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(position / self.length, 1.0))) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSchedule(Schedule):
    """The step size times `gamma` after every `every` positions."""

    kind: ClassVar[str] = "step"
    checks: ClassVar[Mapping[str, Check]] = {"every": whole(1, MAX_POSITIONS), "gamma": number(0, 1, above=True), **_EVERY}

    every: int
    gamma: float = 0.1
    warmup: int = 0
    over: str = "rounds"

    def _after(self, position: int) -> float:
        return float(self.gamma ** (position // self.every))


SCHEDULES: Mapping[str, type[Schedule]] = {cls.kind: cls for cls in (ConstantSchedule, CosineSchedule, StepSchedule)}


def schedule_from_plain(data: Any) -> Schedule | None:
    """A schedule that came from somewhere else, or None for None. Raises `InvalidRequest`."""
    return None if data is None else described_from_plain(data, SCHEDULES, "the schedule")
