"""Rounds that came to nothing, in a row: when to try again, and when the job is over because of them."""

from __future__ import annotations

from grid.errors import GridError, InvalidRequest
from grid.federated.orders import widened
from grid.federated.progress import Progress
from grid.federated.rounds import Lost
from grid.federated.secagg.quantiser import MISFIT

REFUSALS = 3
"""How many rounds in a row may be lost because nodes refuse."""


class Setbacks:
    """`in_row`: how many since the last round that ended well; a range that did not fit is none of them."""

    def __init__(self, deadline_s: float) -> None:
        self.in_row = 0
        self._deadline_s = deadline_s
        self._not_before = 0.0
        self._reason: Lost | None = None

    def add(self, lost: Lost, at: Progress, now: float) -> GridError | None:
        """Another one is lost. What ends the job because of that, or None: it is tried again."""
        if not (lost.error is not None and lost.error.details.get("rule") == MISFIT and _widens(at)):
            self.in_row += 1
            if self._reason is None or self._reason.error is None:
                self._reason = lost
        reason = self._reason
        if lost.hopeless and lost.error is not None:  # and each try counts at the nodes as a failure
            return type(lost.error)(lost.text, **lost.error.details)
        if self.in_row >= REFUSALS and lost.error is not None and reason is not None and reason.error is not None:
            return type(reason.error)(reason.text, **reason.error.details)
        self._not_before = 0.0 if self.in_row <= 1 else now + min(self._deadline_s / 4, 0.25 * 2**self.in_row)
        return None

    def forget(self) -> None:
        """A round ended well."""
        self.in_row, self._reason = 0, None

    def hurry(self) -> None:
        """Something has changed: the next round need not wait."""
        self._not_before = 0.0

    def rests(self, now: float) -> bool:
        """Whether the next round is still to wait."""
        return now < self._not_before


def _widens(at: Progress) -> bool:
    """Whether there is another range to try after one that did not fit."""
    at.misfits += 1
    try:
        at.range = widened(at.range, at.wide)
    except InvalidRequest:
        at.range = None
        return False
    return True
