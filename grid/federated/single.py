"""A round without secure aggregation: the gateway sees each node's update. Only where every owner's policy allows that.

Updates are added up as they come; a robust strategy needs all of them at once. A state machine like `secure_round.SecureRound`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from grid.display import counted
from grid.errors import GridError, WireError
from grid.federated.effects import Effect, Key, Story
from grid.federated.rounds import AnyRound, Done, Plan, Summed, size_of, vector_of
from grid.ids import PeerId
from grid.wire.jobs import BeginRound, SingleUpdate
from grid.wire.messages import Message

Vector = npt.NDArray[Any]
Combine = Callable[[Sequence[Vector], Sequence[float]], Vector]


LARGEST = 2.0**100
"""A coordinate of a single update, absolutely: one node does not make the sum infinite."""


class Sum:
    """Weighted updates as they come: one vector, unless `combine` wants all of them. No node has more than `most` examples."""

    def __init__(self, size: int, sums: int, *, equal: bool, most: int, combine: Combine | None = None) -> None:
        self._total = np.zeros(size)
        self._sums = np.zeros(sums)
        self._equal = equal
        self._most = most
        self._combine = combine
        self._updates: list[Vector] = []
        self._weights: list[float] = []

    def add(self, update: Vector | None, examples: int, metrics: Sequence[float]) -> None:
        """One node's. Raises `WireError` for what is not finite, of a wrong shape, or of more examples than there can be."""
        sums = np.asarray(metrics, np.float64)
        if sums.shape != self._sums.shape or (update is None) != (self._total.size == 0):
            raise WireError("an update does not have what the job asks for")
        if not 0 <= examples <= self._most or not 0 <= sums[-1] <= self._most:
            raise WireError(f"an update is said to stand for more examples than any node has announced, {self._most}")
        weight = 1.0 if self._equal else float(examples)
        if update is not None:
            if update.shape != self._total.shape or update.dtype.kind != "f" or not float(np.abs(update).max()) <= LARGEST:
                raise WireError("an update has another size than the model, or holds a NaN or a number beyond all measure")
            if self._combine is None:
                self._total += update * np.float64(weight)
            else:
                self._updates.append(np.array(update))
        self._weights.append(weight)
        with np.errstate(invalid="ignore", over="ignore"):  # a metric that is not finite is told as none
            self._sums += sums

    def result(self) -> Summed:
        """What a strategy takes."""
        weight = sum(self._weights)
        if self._updates and self._combine is not None:
            mean = self._combine(self._updates, self._weights)
        else:
            mean = self._total / weight if weight else self._total
        return Summed(mean, int(weight), 0, self._sums)


class SingleRound(AnyRound):
    """A round of single updates."""

    def __init__(self, plan: Plan, story: Story, present: Iterable[PeerId], total: Sum) -> None:
        super().__init__(plan, story, present)
        self._attempt += 1
        self._total = total
        self._answered: set[PeerId] = set()
        self._adding: set[PeerId] = set()
        self._closed = False

    def start(self, now: float) -> list[Effect]:
        return [self._begin(peer, now) for peer in self.plan.cohort if peer in self._present]

    def joined(self, peer: PeerId, now: float) -> list[Effect]:
        self._arrives(peer, now)
        return [self._begin(peer, now)] if self._owes(peer) else []

    def _begin(self, peer: PeerId, now: float) -> Effect:
        plan = self.plan
        message = BeginRound(
            job=plan.job,
            round=plan.number,
            attempt=self._attempt,
            index=plan.index,
            terms=b"",
            deadline_s=max(0.0, plan.deadline - now),
            weights=plan.weights,
        )
        return self._ask(peer, 0, message, now)

    def _owes(self, peer: PeerId) -> bool:
        over = self.outcome is not None or self._closed or peer not in self.plan.cohort
        return not over and peer not in self.out and peer not in self._answered and peer not in self._adding

    def answered(self, peer: PeerId, key: Key, message: Message, now: float) -> list[Effect]:
        if key[:2] != (self.plan.number, self._attempt) or not self._owes(peer):
            return []
        self.bytes += size_of(message)
        try:
            if not isinstance(message, SingleUpdate):
                raise WireError(f"{message.tag!r} is no answer to what node {self.plan.name(peer)} was asked")
            vector = None if message.update is None else vector_of(message.update)
        except GridError as error:
            return self.refused(peer, key, error, now)
        self._adding.add(peer)
        update = message

        def add() -> None:
            self._total.add(vector, update.examples, update.metrics)

        return [self._work("input", add, peer)]

    def refused(self, peer: PeerId, key: Key, error: GridError, now: float) -> list[Effect]:
        if key[:2] != (self.plan.number, self._attempt) or not self._owes(peer):
            return []
        self._fails(peer, error)
        self._put_out(peer, error.message, now)
        return self._settle(now)

    def worked(self, name: str, result: Any, now: float) -> list[Effect]:
        of = self._worked(name)
        if of is None:
            return []
        kind, peer = of
        if kind == "input":
            self._adding.discard(peer)
            if isinstance(result, GridError):
                return self.refused(peer, (self.plan.number, self._attempt, 0), result, now)
            self._answered.add(peer)
            return self._settle(now)
        if isinstance(result, GridError):
            self._error = result
            return self._lose(result.message, (), now)
        there = tuple(peer for peer in self.plan.cohort if peer in self._answered)
        self.outcome = Done(result, there, tuple(peer for peer in self.plan.cohort if peer not in self._answered))
        return []

    def resumed(self, now: float) -> list[Effect]:
        return []

    def kept(self, name: str, now: float) -> list[Effect]:
        """Nothing of such a round is kept before its end."""
        return []

    def _settle(self, now: float) -> list[Effect]:
        missing = self._missing()
        over = now >= self.plan.deadline
        if over and not self._closed:
            self._are_late(peer for peer in missing if peer not in self._adding)
        if self.outcome or self._closed or self._adding or (any(peer in self._present for peer in missing) and not over):
            return []
        if len(self._answered) >= self.plan.quorum:
            self._closed = True
            return [self._work("mean", self._total.result)]
        if over or len(self._answered) + len(missing) < self.plan.quorum:
            return self._lose(f"{counted(len(self._answered), 'update')} came, and {self.plan.quorum} were needed", missing, now)
        return []

    def _missing(self) -> list[PeerId]:
        return [peer for peer in self.plan.cohort if peer not in self._answered and peer not in self.out]

    @property
    def text(self) -> str:
        return f"round {self.plan.number} waits for updates of {self._names(self._missing()) or 'nobody any more'}"
