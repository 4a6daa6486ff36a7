"""Trainers as a node has them, without a node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import numpy as np
from training_models import classes, vectors

from grid.federated.local import Local
from grid.federated.loss_plans import LossPlans
from grid.node.dataset_views import DatasetView
from grid.node.trainers import Trainers
from grid.node.training import Training
from grid.node.workers import Workers
from grid.settings import NodeSettings


def view(name: str, rows: int, seed: int, min_rows: int = 1) -> DatasetView:
    blocks = np.zeros(rows, dtype=np.int32)
    return DatasetView(name, rows, min_rows, blocks, {"features": vectors(rows, seed), "targets": classes(rows, seed)})


SOURCES = {name: view(name, rows, seed) for name, rows, seed in (("one", 30, 1), ("other", 25, 2))}
GUARDED = view("guarded", 35, 3, min_rows=10)
UNLABELLED = DatasetView("unlabelled", 9, 1, np.zeros(9, dtype=np.int32), {"features": vectors(9)})


@contextlib.asynccontextmanager
async def made_with(settings: NodeSettings, processes: bool) -> AsyncIterator[Trainers]:
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Coroutine[Any, Any, None], name: str) -> None:
        tasks.add(asyncio.get_running_loop().create_task(work, name=name))

    async with contextlib.AsyncExitStack() as stack:
        sources = {**SOURCES, "unlabelled": UNLABELLED, "guarded": GUARDED}
        workers = await stack.enter_async_context(Workers(sources, settings, spawn)) if processes else None
        trainers = Trainers(settings, sources, lambda: workers)
        try:
            yield trainers
        finally:
            await trainers.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def opened(trainers: Trainers, plans: LossPlans, local: Local, *datasets: str, job: str = "job") -> Coroutine[Any, Any, Training]:
    return trainers.open(job, train=plans.train, evaluate=plans.evaluate, local=local, datasets=datasets)
