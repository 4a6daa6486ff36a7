"""One job's training in a process that the sessions' nursery forks: it has the datasets mapped already.

The process lives over the rounds of its job. One that was ended, for its limits or by anything else, takes the running call with
it; the next call starts another, which knows all but buffers that were to stay at the node.
"""

from __future__ import annotations

import asyncio
import logging
import math

import msgpack
import numpy as np

from grid.errors import ExecutionFailed, GridError, LocalProtocolError, NodeUnavailable, QuotaExceeded, WireError
from grid.federated.layouts import Vector
from grid.federated.local import Local
from grid.federated.loss_plans import LossPlans
from grid.federated.trainer import Evaluated, Sums, Trained
from grid.node.pace import Running, training_overran
from grid.node.trainer_messages import (
    FROM_TRAINER,
    TO_TRAINER,
    BeginTraining,
    EvaluateWeights,
    RoundTrained,
    TrainingBegun,
    TrainRound,
    WeightsEvaluated,
    frame_of,
    vector_of,
)
from grid.node.training import Training
from grid.node.workers import STATUS_S, Worker, Workers, WorkerUser
from grid.settings import NodeSettings
from grid.wire.codec import decode, encode
from grid.wire.messages import Buffer, Failure, Message

log = logging.getLogger(__name__)


class ProcessTraining(Training, WorkerUser):
    """Training in a process."""

    def __init__(
        self, plans: LossPlans, local: Local, datasets: tuple[str, ...], rows: int, settings: NodeSettings, workers: Workers
    ) -> None:
        self.layout = plans.layout
        self.rows = rows
        self._metrics = len(plans.metrics)
        self._begin = BeginTraining(
            train=plans.train.encoding,
            evaluate=plans.evaluate.encoding,
            local=msgpack.packb(local.to_plain()),
            datasets=datasets,
            device=settings.training_device,
        )
        self._settings = settings
        self._workers = workers
        self._worker: Worker | None = None
        self._answer: asyncio.Future[Message | GridError | None] | None = None
        self._lock = asyncio.Lock()
        self._closed = False

    async def begin(self) -> None:
        """Start the process. Raises what the trainer raises of plans and rows that do not fit together."""
        async with self._lock:
            await self._start()

    async def train(
        self, weights: Vector, *, round: int, seed: bytes = b"", proximal: float = 0.0, metrics: bool = True
    ) -> Trained:
        frame = frame_of(self.layout.checked(weights))
        answer = await self._ask(TrainRound(weights=frame, round=round, seed=seed, proximal=proximal, metrics=metrics))
        if not isinstance(answer, RoundTrained):
            raise self._nonsense()
        try:
            update = vector_of(answer.update, self.layout)
        except WireError:
            raise self._nonsense() from None
        return Trained(update, self.rows, self._sums(answer.metrics))

    async def evaluate(self, weights: Vector) -> Evaluated:
        answer = await self._ask(EvaluateWeights(weights=frame_of(self.layout.checked(weights))))
        if not isinstance(answer, WeightsEvaluated):
            raise self._nonsense()
        return Evaluated(self.rows, self._sums(answer.metrics))

    def _sums(self, metrics: tuple[float, ...]) -> Sums:
        if len(metrics) != self._metrics or not all(map(math.isfinite, metrics)):
            raise self._nonsense()
        return np.array(metrics)

    def _nonsense(self) -> GridError:
        """What the process says makes no sense: something in it has gone wrong."""
        self._drop()
        return NodeUnavailable("the process that trains for this job went wrong and was ended; the next round starts another")

    # ------------------------------------------------------------ the process

    async def _ask(self, message: Message) -> Message:
        async with self._lock:
            if self._worker is None:
                await self._start()
            return await self._exchange(message)

    async def _start(self) -> None:
        if self._closed:
            raise NodeUnavailable("the job is over")
        self._worker = self._workers.start(self, None, trains=True)
        try:
            begun = await self._exchange(self._begin)
        except GridError:
            self._drop()
            raise
        if not isinstance(begun, TrainingBegun):
            raise self._nonsense()

    async def _exchange(self, message: Message) -> Message:
        """Send a request and wait for its answer, or for the end of the process."""
        worker = self._worker
        assert worker is not None
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        limit = self._settings.max_training_s
        hangs = loop.call_later(limit + self._settings.kill_grace_s, worker.kill, training_overran(limit))
        if message is self._begin:  # it waits for the nursery, too; the watch looks at what it does then
            hangs.cancel()
        try:
            worker.pipe.send(encode(message, table=TO_TRAINER))
            answer = await self._answer
        except asyncio.CancelledError:
            self._drop()  # it would train on for nobody
            raise
        finally:
            hangs.cancel()
            self._answer = None
        if answer is None:
            self._worker = None
            raise await self._explained(worker)
        if isinstance(answer, GridError):
            raise answer
        if isinstance(answer, Failure):
            raise answer.error.to_error()
        return answer

    def _settle(self, answer: Message | GridError | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def on_frame(self, frame: Buffer) -> None:
        """An answer."""
        try:
            self._settle(decode(frame, FROM_TRAINER).message)
        except (WireError, LocalProtocolError) as error:
            log.error("a trainer's process sent what is no message, and is ended: %s", error.message)
            self._settle(self._nonsense())

    def on_end(self, wrong: str) -> None:
        """The pipe has ended."""
        if wrong:
            log.error("a trainer's process sent what is no frame, and is ended: %s", wrong)
        self._settle(None)
        if self._answer is None:
            self._drop()

    async def _explained(self, worker: Worker) -> GridError:
        """The error for the end of the process."""
        error = await worker.explained()
        if self._closed and worker.cause is None:
            error = NodeUnavailable("the job is over")
        log.warning("%s", error.message)
        return error

    def lost(self, how: str) -> GridError:
        return ExecutionFailed(f"the process that trains for this job {how}; the next round starts another", again=True)

    def is_busy(self) -> bool:
        return self._answer is not None

    def overran(self, running: Running) -> GridError:
        return training_overran(self._settings.max_training_s)

    def overate(self, running: Running) -> GridError:
        return QuotaExceeded(
            f"local training took more memory than the {self._settings.max_process_bytes} bytes that a process may"
            " (max_process_bytes); take smaller batches, or ask the node's owner for a higher limit",
            limit="max_process_bytes",
        )

    def _drop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.pipe.close()
            worker.kill()

    async def close(self) -> None:
        self._closed = True
        self.forget()
        worker = self._worker
        self._settle(NodeUnavailable("the job is over"))
        self._drop()
        if worker is not None:
            await asyncio.wait([worker.ended], timeout=STATUS_S)
