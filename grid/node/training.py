"""One federated job's local training, as the node's own code for jobs sees it: in a process, or in a thread of the node."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from grid.errors import NodeUnavailable
from grid.federated.layouts import Layout, Vector
from grid.federated.trainer import Evaluated, Trained, Trainer
from grid.node.pace import TrainingLimit
from grid.settings import NodeSettings

T = TypeVar("T")


class Training(ABC):
    """One job's training at this node, on `rows` rows. One call runs at a time; a call that is cancelled leaves it usable."""

    layout: Layout
    rows: int
    forget: Callable[[], object] = staticmethod(lambda: None)
    """Called at the end, by whoever keeps a list."""

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


class ThreadTraining(Training):
    """Training in a thread of the node. Time is looked at between batches; memory is bounded by the plans' limits alone."""

    _trainer: Trainer

    def __init__(self, settings: NodeSettings) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grid-training")
        self._limit = TrainingLimit(settings.max_training_s)
        self._unwanted = False
        self._closed = False
        self._lock = asyncio.Lock()

    async def begin(self, make: Callable[[Callable[[], None]], Trainer]) -> None:
        """Make the trainer in the thread; `make` gets what it is to call between batches."""
        self._trainer = await self._call(lambda: make(self._between))
        self.layout, self.rows = self._trainer.layout, self._trainer.rows

    def _between(self) -> None:
        """From the thread."""
        if self._unwanted or self._closed:
            raise NodeUnavailable("the job is over")
        self._limit.check()

    async def _call(self, work: Callable[[], T]) -> T:
        async with self._lock:
            if self._closed:
                raise NodeUnavailable("the job is over")
            self._unwanted = False
            self._limit.begin()
            running = asyncio.get_running_loop().run_in_executor(self._pool, work)
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                self._unwanted = True
                await asyncio.wait([running])
                running.exception()  # it was given up: nobody is to be told
                raise

    async def train(
        self, weights: Vector, *, round: int, seed: bytes = b"", proximal: float = 0.0, metrics: bool = True
    ) -> Trained:
        return await self._call(
            lambda: self._trainer.train(weights, round=round, seed=seed, proximal=proximal, metrics=metrics)
        )

    async def evaluate(self, weights: Vector) -> Evaluated:
        return await self._call(lambda: self._trainer.evaluate(weights))

    async def close(self) -> None:
        self._closed = True
        self.forget()
        await asyncio.to_thread(self._pool.shutdown, wait=True)
