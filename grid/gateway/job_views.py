"""Federated jobs as the API and the pages show them: sums over nodes, never anything of a single node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from grid.errors import NotFound
from grid.federated.progress import CANCELLED, DONE, FAILED, OVER, RUNNING, WAITING
from grid.gateway.charts import Curve, curve
from grid.gateway.coordinator import Coordinator
from grid.gateway.views import show_time
from grid.ids import JobId
from grid.telemetry import Metrics
from grid.wire.jobs import JobCard, RoundReport

STATES = (WAITING, RUNNING, DONE, FAILED, CANCELLED)

POINTS = 300
"""Of a curve; of more rounds, it has those that are evenly apart."""


class JobViews:
    """Reads the coordinator; changes nothing."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def jobs(self, words: Sequence[str] = (), *, state: str = "") -> list[JobCard]:
        """Jobs with every word in name, id or client, of a state ("" for all), the newest first."""
        found = self._coordinator.cards()
        texts = ((card, f"{card.name}\n{card.id}\n{card.client}".casefold()) for card in found)
        return [card for card, text in texts if state in ("", card.state) and all(word in text for word in words)]

    async def job(self, wanted: str) -> tuple[JobCard, Sequence[RoundReport]]:
        """A job by its id with its reports, in order. Raises `NotFound`."""
        try:
            job = JobId(wanted)
            return self._coordinator.card_of(job), await self._coordinator.reports(job)
        except NotFound:
            raise NotFound("this gateway knows no job of this id; those that are over are kept for a while only") from None

    def story(self, wanted: str) -> list[str]:
        """What happened last in a job that is under way, the newest first."""
        return self._coordinator.story(JobId(wanted))

    def counts(self) -> dict[str, int]:
        """Jobs under way and over."""
        states = [card.state for card in self._coordinator.cards()]
        over = sum(state in OVER for state in states)
        return {"under_way": len(states) - over, "over": over}

    def measure(self, metrics: Metrics) -> None:
        """Bring the metrics that are read from state up to date."""
        metrics.set("grid_jobs", self.counts()["under_way"])
        metrics.raise_to("grid_job_rounds_total", self._coordinator.rounds)
        metrics.raise_to("grid_job_rounds_lost_total", self._coordinator.rounds_lost)


def curves(card: JobCard, reports: Sequence[RoundReport]) -> list[tuple[str, Curve]]:
    """The curve of each metric over the models that were evaluated: the first is that which the job began with."""
    found = [report for report in reports if report.metrics]
    found = found[:: max(1, math.ceil(len(found) / POINTS))]
    return [(name, curve([report.metrics[index] for report in found])) for index, name in enumerate(card.metrics) if found]


def show_job(card: JobCard) -> dict[str, Any]:
    """A job for the API: what is known of it, with times as text."""
    return card.facts() | {"started": show_time(card.started), "ended": show_time(card.ended) if card.ended else None}


def show_report(card: JobCard, report: RoundReport) -> dict[str, Any]:
    """A round for the API; its metrics by name."""
    return report.facts(card.metrics) | {"seconds": round(report.seconds, 6)}
