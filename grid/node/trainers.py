"""Local training for federated jobs: one `Training` for each job that runs here, alive over its rounds.

A job's plans are the client's, the loop around them is the node's (`grid.federated.trainer`). Weights go in, an update and sums
of metrics come out, for the job's own code to mask or to refuse; nothing leaves the node from here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from grid.errors import InvalidRequest, NodeUnavailable, NotFound, QuotaExceeded
from grid.federated.layouts import Layout, Vector
from grid.federated.local import Local
from grid.federated.trainer import Evaluated, Trained, Trainer
from grid.node.dataset_views import DatasetView
from grid.node.pace import time_advice
from grid.plans.ir import Plan
from grid.plans.shapes import check_limits
from grid.settings import NodeSettings

log = logging.getLogger(__name__)

T = TypeVar("T")


class Training(ABC):
    """One job's training at this node. One call at a time; a call that is cancelled leaves it usable."""

    layout: Layout
    rows: int

    @abstractmethod
    async def train(
        self, weights: Vector, *, round: int, seed: bytes = b"", proximal: float = 0.0, metrics: bool = True
    ) -> Trained:
        """One round (`Trainer.train`). Raises `QuotaExceeded` where it takes more time or memory than it may."""

    @abstractmethod
    async def evaluate(self, weights: Vector) -> Evaluated:
        """Sums of metrics (`Trainer.evaluate`)."""

    @abstractmethod
    async def close(self) -> None:
        """End what runs and let go of everything. Safe to call again."""


class Trainers:
    """All training of one node."""

    def __init__(self, settings: NodeSettings, sources: Mapping[str, DatasetView]) -> None:
        self._settings = settings
        self._sources = sources
        self._open: dict[str, Training] = {}

    async def open(self, job: str, *, train: Plan, evaluate: Plan, local: Local, datasets: Sequence[str]) -> Training:
        """Training for a job, on the rows of these datasets together.

        Raises `InvalidRequest` and `PlanRejected` where plans, options and rows do not fit together or take too much,
        `NotFound` for a dataset that is not here or has no targets, `QuotaExceeded` where too many jobs train here.
        """
        if job in self._open:
            raise InvalidRequest("this job trains here already")
        if len(self._open) >= self._settings.max_trainings:
            raise QuotaExceeded(f"{len(self._open)} federated jobs train at this node already (max_trainings); try again later")
        features, targets = rows_of(self._sources, datasets)
        check_plans(self._settings, train, evaluate, local, features, targets)
        made = await ThreadTraining.begin(
            lambda between: Trainer(
                train=train, evaluate=evaluate, local=local, features=features, targets=targets, between=between
            ),
            self._settings,
        )
        self._open[job] = _Listed(made, lambda: self._open.pop(job, None))
        return self._open[job]

    async def close(self) -> None:
        """End all training."""
        for each in list(self._open.values()):
            await each.close()


class _Listed(Training):
    """A training that strikes itself off the list at its end."""

    def __init__(self, inner: Training, forget: Callable[[], object]) -> None:
        self._inner = inner
        self._forget = forget
        self.layout, self.rows = inner.layout, inner.rows

    async def train(
        self, weights: Vector, *, round: int, seed: bytes = b"", proximal: float = 0.0, metrics: bool = True
    ) -> Trained:
        return await self._inner.train(weights, round=round, seed=seed, proximal=proximal, metrics=metrics)

    async def evaluate(self, weights: Vector) -> Evaluated:
        return await self._inner.evaluate(weights)

    async def close(self) -> None:
        self._forget()
        await self._inner.close()


class ThreadTraining(Training):
    """Training in a thread of the node. Time is looked at between batches; memory is bounded by the plans' limits alone."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grid-training")
        self._trainer: Trainer | None = None
        self._over = False
        self._ends = 0.0
        self._lock = asyncio.Lock()

    @classmethod
    async def begin(cls, make: Callable[[Callable[[], None]], Trainer], settings: NodeSettings) -> ThreadTraining:
        """A training whose trainer `make` gives, in its thread."""
        training = cls(settings)
        try:
            trainer = training._trainer = await training._call(lambda: make(training._between))
        except BaseException:
            await training.close()
            raise
        training.layout, training.rows = trainer.layout, trainer.rows
        return training

    def _between(self) -> None:
        """From the thread."""
        if self._over:
            raise NodeUnavailable("the job is over")
        if time.monotonic() > self._ends:
            raise QuotaExceeded(
                f"local training ran longer than {time_advice(self._settings.max_training_s, 'max_training_s')}",
                limit="max_training_s",
            )

    async def _call(self, work: Callable[[], T]) -> T:
        async with self._lock:
            if self._over:
                raise NodeUnavailable("the job is over")
            self._ends = time.monotonic() + self._settings.max_training_s
            running = asyncio.get_running_loop().run_in_executor(self._pool, work)
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                self._ends = 0.0
                await asyncio.wait([running])
                running.exception()  # it was given up: nobody is to be told
                raise

    async def train(
        self, weights: Vector, *, round: int, seed: bytes = b"", proximal: float = 0.0, metrics: bool = True
    ) -> Trained:
        trainer = self._trainer
        assert trainer is not None
        return await self._call(lambda: trainer.train(weights, round=round, seed=seed, proximal=proximal, metrics=metrics))

    async def evaluate(self, weights: Vector) -> Evaluated:
        trainer = self._trainer
        assert trainer is not None
        return await self._call(lambda: trainer.evaluate(weights))

    async def close(self) -> None:
        self._over = True
        await asyncio.to_thread(self._pool.shutdown, wait=True)


def rows_of(sources: Mapping[str, DatasetView], datasets: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Features and targets of datasets, one after the other. Raises `NotFound`, `InvalidRequest` for shapes that differ."""
    views = []
    for name in datasets:
        if name not in sources:
            raise NotFound(f"there is no dataset {name[:100]!r} at this node")
        views.append(sources[name])
    if not views:
        raise InvalidRequest("the job names no dataset of this node")
    parts = [[view.part(part) for view in views] for part in ("features", "targets")]
    if any(len({(one.dtype, tuple(one.shape[1:])) for one in part}) > 1 for part in parts):
        raise InvalidRequest("the rows of the job's datasets at this node differ in shape or dtype")
    features, targets = (part[0] if len(part) == 1 else torch.cat(part) for part in parts)
    return features, targets


def check_plans(
    settings: NodeSettings, train: Plan, evaluate: Plan, local: Local, features: Tensor, targets: Tensor
) -> None:
    """Raise `PlanRejected` for plans that take more than a plan may at this node, `InvalidRequest` for rows that do not fit."""
    layout = Layout.of(train)
    weights = [torch.empty(piece.shape, dtype=piece.dtype, device="meta") for piece in layout.pieces]
    rows = min(local.batch_size, len(features))
    for plan in (train, evaluate):
        check_limits(
            plan,
            [*weights, features[:rows], targets[:rows]],
            max_elements=settings.max_op_elements,
            max_bytes=settings.max_process_bytes,
            max_flops=settings.max_plan_flops,
            max_steps=settings.max_plan_steps,
        )

