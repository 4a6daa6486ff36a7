"""Local training for federated jobs: one `Training` for each job that runs here, alive over its rounds.

A job's plans are the client's, the loop around them is the node's (`grid.federated.trainer`). Weights go in, an update and sums
of metrics come out, for the job's own code to mask or to refuse; nothing leaves the node from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from grid.errors import InvalidRequest, QuotaExceeded
from grid.federated.local import Local
from grid.federated.loss_plans import LossPlans
from grid.federated.trainer import Trainer, device_of
from grid.node.dataset_views import DatasetView
from grid.node.training import ThreadTraining, Training
from grid.node.training_rows import check_plans, least_of, parts_of, rows_of
from grid.plans.ir import Plan
from grid.settings import NodeSettings

if TYPE_CHECKING:
    from grid.node.workers import Workers


class Trainers:
    """All training of one node: in processes that `workers` has forked, or in threads where it gives none."""

    def __init__(
        self, settings: NodeSettings, sources: Mapping[str, DatasetView], workers: Callable[[], Workers | None] = lambda: None
    ) -> None:
        self._settings = settings
        self._sources = sources
        self._workers = workers
        self._open: dict[str, Training] = {}
        self._opening: set[str] = set()

    async def open(self, job: str, *, train: Plan, evaluate: Plan, local: Local, datasets: Sequence[str]) -> Training:
        """Training for a job, on the rows of these datasets together.

        Raises `InvalidRequest` and `PlanRejected` where plans, options and rows do not fit together or take too much,
        `NotFound` for a dataset that is not here or has no targets, `QuotaExceeded` where too many jobs train here.
        """
        if job in self._open or job in self._opening:
            raise InvalidRequest("this job trains here already")
        if len(self._open) + len(self._opening) >= self._settings.max_trainings:
            told = f"{len(self._open)} federated jobs train at this node already (max_trainings); try again later"
            raise QuotaExceeded(told, limit="max_trainings")
        plans = LossPlans.of(train, evaluate)
        features, targets = rows_of(self._sources, datasets)
        check_plans(self._settings, plans, local, features, targets)
        self._opening.add(job)
        try:
            workers = self._workers()
            if workers is None:
                made = await self._in_thread(plans, local, datasets)
            else:
                made = await self._in_process(plans, local, datasets, len(features), workers)
        finally:
            self._opening.discard(job)
        made.forget = lambda: self._open.pop(job, None)
        self._open[job] = made
        return made

    async def _in_thread(self, plans: LossPlans, local: Local, datasets: Sequence[str]) -> Training:
        def make(between: Callable[[], None]) -> Trainer:
            features, targets = rows_of(self._sources, datasets)
            return Trainer(
                train=plans.train,
                evaluate=plans.evaluate,
                local=local,
                features=features,
                targets=targets,
                least=least_of(self._sources, datasets),
                parts=parts_of(self._sources, datasets),
                device=device_of(self._settings.training_device),
                between=between,
            )

        training = ThreadTraining(self._settings)
        try:
            await training.begin(make)
        except BaseException:
            await training.close()
            raise
        return training

    async def _in_process(
        self, plans: LossPlans, local: Local, datasets: Sequence[str], rows: int, workers: Workers
    ) -> Training:
        from grid.node.trainer_process import ProcessTraining  # imports what other systems do not have

        training = ProcessTraining(plans, local, tuple(datasets), rows, self._settings, workers)
        try:
            await training.begin()
        except BaseException:
            await training.close()
            raise
        return training

    async def close(self) -> None:
        """End all training."""
        for each in list(self._open.values()):
            await each.close()
