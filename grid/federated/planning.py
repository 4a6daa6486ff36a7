"""What the next round of a job is to be: whether it trains, its nodes, its terms, and the state machine that drives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgpack

from grid.federated.attendance import Attendance
from grid.federated.effects import Story
from grid.federated.naming import Name
from grid.federated.orders import Model, draw, terms_of
from grid.federated.progress import ROUND, SUM, Progress
from grid.federated.rounds import AnyRound, Plan
from grid.federated.secure_round import SecureRound
from grid.federated.single import Combine, SingleRound, Sum
from grid.federated.spec import EQUAL, JobSpec
from grid.federated.strategy import Strategy
from grid.ids import PeerId

ATTEMPTS_OF_A_RUN = 1 << 16
"""A gateway that is started again begins attempts at a number that none before it has used."""


class Planner:
    """For one job. `largest`: an upper bound of the examples of any node. `quorum`: how many nodes a round takes at least."""

    def __init__(self, spec: JobSpec, strategy: Strategy, largest: Callable[[], int], name: Name) -> None:
        self.quorum = max(spec.min_nodes, 2) if spec.secure else spec.min_nodes
        self._spec, self._strategy = spec, strategy
        self._largest, self._name = largest, name

    def next(self, at: Progress, model: Model, attendance: Attendance, losses: int, now: float) -> Plan:
        """The round after those that `at` knows of, of which `losses` in a row were lost. Takes a number for it."""
        at.number += 1
        index = 0 if self._has_trained(at) else at.done + 1
        drawable = attendance.drawable(at.number, self.quorum)
        cohort = draw(self._spec, drawable, self.quorum, index, losses)
        return self._plan(at, model, cohort, index, now)

    def round(self, plan: Plan, story: Story, model: Model, attendance: Attendance) -> AnyRound:
        """The machine of a round that begins."""
        if self._spec.secure:
            return SecureRound(plan, story, attendance.ready)
        combine: Combine | None = getattr(self._strategy, "combine", None) if self._strategy.needs_single else None
        size = 0 if plan.evaluate_only else model.weights.size
        total = Sum(size, plan.sums, equal=self._spec.weighting == EQUAL, most=self._largest(), combine=combine)
        return SingleRound(plan, story, attendance.ready, total)

    def resumed(self, at: Progress, model: Model, kept: Mapping[str, bytes], story: Story, now: float) -> AnyRound | None:
        """A round whose sum is among the parts that are kept; None if there is none, or it is of a model before this one."""
        if SUM not in kept or ROUND not in kept:
            return None
        about = msgpack.unpackb(kept[ROUND])
        if about["done"] != at.done:
            return None
        at.number = about["number"]
        index = 0 if about["evaluating"] else at.done + 1
        plan = self._plan(at, model, tuple(PeerId(peer) for peer in about["cohort"]), index, now)
        return SecureRound.resume(plan, story, kept, now)

    def _has_trained(self, at: Progress) -> bool:
        """Whether the model is the last one, and only to be evaluated."""
        return at.done >= self._spec.rounds or at.is_stale(self._spec.stop)

    def _plan(self, at: Progress, model: Model, cohort: tuple[PeerId, ...], index: int, now: float) -> Plan:
        spec, size = self._spec, model.weights.size if index else 0
        terms = terms_of(spec, model, at.number, index, size=size, largest=self._largest(), known=at.range)
        return Plan(
            job=spec.job,
            number=at.number,
            index=index,
            cohort=cohort,
            quorum=self.quorum,
            weights=model.frame,
            deadline=now + spec.deadline_s,
            deadline_s=spec.deadline_s,
            sums=len(spec.sums),
            first_attempt=1 + at.runs * ATTEMPTS_OF_A_RUN,
            terms=terms if spec.secure else None,
            name=self._name,
        )


def about_round(plan: Plan, done: int) -> bytes:
    """What is kept with a sum: which round it is of, after so many that are done."""
    about = {"number": plan.number, "done": done, "evaluating": plan.evaluate_only, "cohort": list(plan.cohort)}
    packed: bytes = msgpack.packb(about)
    return packed
