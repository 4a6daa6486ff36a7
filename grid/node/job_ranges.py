"""What a node says of the ranges of rounds, which the gateway chooses: little, as each answer is about its own update alone.

A range fits or not, and who may ask about many ranges finds the largest coordinate by halving. So one range of the gateway's
making is judged for each model, and few refusals are given in a job; then there are only the wide ones, which are the same for
every job. A range that is no narrower and no coarser than one that fitted is not judged, for the answer is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from grid.errors import ReleaseDenied
from grid.federated.secagg.opening import Memory
from grid.federated.secagg.quantiser import REFUSALS, Quantiser, misfit
from grid.ids import JobId


class Ranges:
    """Of one job. `memory` counts refusals across restarts. For one thread at a time."""

    def __init__(self, memory: Memory, job: JobId) -> None:
        self._memory = memory
        self._place = f"job {job} refused range"
        self._judged: defaultdict[bytes, dict[float | None, Quantiser | None]] = defaultdict(dict)
        """By model and wide range (None: another one) what was judged, and whether it fitted (None: not)."""

    def judge(self, model: bytes, quantiser: Quantiser, check: Callable[[], None]) -> None:
        """Raise `ReleaseDenied` for a range that does not fit by `check`, or that is one too many for `model`."""
        judged = self._judged[model]
        if any(one is not None and _covers(quantiser, one) for one in judged.values()):
            return
        kind = quantiser.clip if quantiser.is_wide else None
        if kind in judged:
            raise misfit("another one was tried for this model")
        if kind is None and self._memory.claimed(f"{self._place} {REFUSALS - 1}"):
            raise misfit(f"{REFUSALS} did not fit in this job")
        judged[kind] = None
        try:
            check()
        except ReleaseDenied:
            if kind is None:
                self._count()
            raise
        judged[kind] = quantiser

    def _count(self) -> None:
        next(number for number in range(REFUSALS) if self._memory.claim(f"{self._place} {number}") or number == REFUSALS - 1)


def _covers(quantiser: Quantiser, fitting: Quantiser) -> bool:
    """Whether what fits one range fits the other in any case."""
    end, fitting_end = (one.clip * one.largest_weight for one in (quantiser, fitting))
    return end >= fitting_end and quantiser.step <= fitting.step
