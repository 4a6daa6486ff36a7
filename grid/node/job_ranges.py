"""What a node says of the ranges of rounds, which the gateway chooses: little, as each answer is about its own update alone.

A range fits or not, and who may ask about many ranges finds the largest coordinate by halving. So one range of the gateway's
making is judged in each round that the client signed, and few refusals are given in a job; then there are only the wide ones,
which are the same for every job. A range that is no narrower and no coarser than one that fitted is not judged, for the answer is
known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from grid.errors import ReleaseDenied
from grid.federated.secagg.opening import Memory
from grid.federated.secagg.quantiser import REFUSALS, Quantiser, misfit
from grid.ids import JobId


class Ranges:
    """Of one job. `memory` knows what was judged across restarts. For one thread at a time."""

    def __init__(self, memory: Memory, job: JobId) -> None:
        self._memory = memory
        self._place = f"job {job} range"
        self._fitting: defaultdict[int, list[Quantiser]] = defaultdict(list)
        """By the round's index."""

    def judge(self, index: int, quantiser: Quantiser, check: Callable[[], None]) -> None:
        """Raise `ReleaseDenied` for a range that does not fit the update of round `index`, by `check`, or is one too many."""
        if any(_covers(quantiser, one) for one in self._fitting[index]):
            return
        wide = quantiser.is_wide
        if not wide and self._memory.claimed(self._refusal(REFUSALS - 1)):
            raise misfit(f"{REFUSALS} did not fit in this job")
        if not self._memory.claim(f"{self._place} of round {index}{f' up to {quantiser.clip}' if wide else ''}"):
            raise misfit("another one was tried in this round")
        try:
            check()
        except ReleaseDenied:
            if not wide:
                next(number for number in range(REFUSALS) if self._memory.claim(self._refusal(number)))
            raise
        self._fitting[index].append(quantiser)

    def _refusal(self, number: int) -> str:
        return f"{self._place} refused {number}"


def _covers(quantiser: Quantiser, fitting: Quantiser) -> bool:
    """Whether what fits one range fits the other in any case."""
    end, fitting_end = (one.clip * one.largest_weight for one in (quantiser, fitting))
    return end >= fitting_end and quantiser.step <= fitting.step
