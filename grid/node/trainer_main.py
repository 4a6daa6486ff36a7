"""The process of one federated job's training: reads requests from a pipe and answers them in order, one at a time.

It has the datasets in private mappings, and no keys, no sockets but the pipe, and no say in what leaves. It ends when the node
is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NoReturn

import msgpack

from grid.errors import GridError, LocalProtocolError
from grid.federated.local import local_from_plain
from grid.federated.trainer import Trainer, device_of
from grid.node.dataset_views import DatasetView
from grid.node.pace import Pulse, TrainingLimit
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
from grid.node.training_rows import least_of, parts_of, rows_of
from grid.plans.ir import decode as decode_plan
from grid.rpc.dispatch import public_error
from grid.settings import NodeSettings
from grid.smpc.kernels.memory import keep_large_blocks
from grid.tensors.exhausted import exhausted, is_exhausted
from grid.transport.pipes import BlockingPipe
from grid.wire.codec import decode, encode
from grid.wire.messages import ErrorInfo, Failure, Message

log = logging.getLogger(__name__)


class TrainerProcess:
    """The loop of the process."""

    def __init__(self, pipe: BlockingPipe, pulse: Pulse, sources: Mapping[str, DatasetView], settings: NodeSettings) -> None:
        self._pipe = pipe
        self._sources = sources
        self._limit = TrainingLimit(settings.max_training_s, pulse.write)
        self._trainer: Trainer | None = None

    def run(self) -> NoReturn:
        """Until the node is gone, which raises `EOFError`."""
        keep_large_blocks()
        while True:
            message = decode(self._pipe.receive(), TO_TRAINER).message
            self._limit.begin()
            try:
                answer = self._answer(message)
            except Exception as error:
                answer = Failure(error=ErrorInfo.of(_explained(error, message)))
            self._limit.end()
            self._pipe.send([encode(answer, table=FROM_TRAINER)])

    def _answer(self, message: Message) -> Message:
        match message:
            case BeginTraining():
                self._begin(message)
                return TrainingBegun()
            case TrainRound() if self._trainer is not None:
                weights = vector_of(message.weights, self._trainer.layout)
                trained = self._trainer.train(
                    weights, round=message.round, seed=message.seed, proximal=message.proximal, metrics=message.metrics
                )
                return RoundTrained(update=frame_of(trained.update), metrics=tuple(trained.metrics.tolist()))
            case EvaluateWeights() if self._trainer is not None:
                evaluated = self._trainer.evaluate(vector_of(message.weights, self._trainer.layout))
                return WeightsEvaluated(metrics=tuple(evaluated.metrics.tolist()))
        raise LocalProtocolError("a trainer is asked before it has begun")

    def _begin(self, message: BeginTraining) -> None:
        features, targets = rows_of(self._sources, message.datasets)
        self._trainer = Trainer(
            train=decode_plan(message.train),
            evaluate=decode_plan(message.evaluate),
            local=local_from_plain(msgpack.unpackb(message.local)),
            features=features,
            targets=targets,
            least=least_of(self._sources, message.datasets),
            parts=parts_of(self._sources, message.datasets),
            device=device_of(message.device),
            between=self._limit.check,
        )


def _explained(error: Exception, message: Message) -> GridError:
    return exhausted("local training") if is_exhausted(error) else public_error(error, message)
