"""What a node and a trainer's process say to each other over a pipe: one request at a time, each answered or failed.

No peer can send these messages, since they stand in tables of their own. Weights and updates are raw bytes beside the header.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grid.errors import WireError
from grid.federated.layouts import Layout, Vector
from grid.wire.codec import Table
from grid.wire.messages import Failure, Message, TensorFrame, message

TO_TRAINER_TAGS: dict[str, type[Message]] = {}
FROM_TRAINER_TAGS: dict[str, type[Message]] = {Failure.tag: Failure}


@message("begin-training", TO_TRAINER_TAGS)
class BeginTraining(Message):
    """Node -> trainer, first: train on these datasets. `local` is `Local.to_plain` in msgpack. Reply: TrainingBegun."""

    train: bytes
    evaluate: bytes
    local: bytes
    datasets: tuple[str, ...]
    device: str


@message("train-round", TO_TRAINER_TAGS)
class TrainRound(Message):
    """Node -> trainer: one round, as `Trainer.train`. Reply: RoundTrained."""

    weights: TensorFrame
    round: int
    seed: bytes
    proximal: float
    metrics: bool


@message("evaluate-weights", TO_TRAINER_TAGS)
class EvaluateWeights(Message):
    """Node -> trainer: metrics of these weights. Reply: WeightsEvaluated."""

    weights: TensorFrame


@message("training-begun", FROM_TRAINER_TAGS)
class TrainingBegun(Message):
    """Everything fits together."""


@message("round-trained", FROM_TRAINER_TAGS)
class RoundTrained(Message):
    """The update, and sums of metrics of the weights that came."""

    update: TensorFrame
    metrics: tuple[float, ...]


@message("weights-evaluated", FROM_TRAINER_TAGS)
class WeightsEvaluated(Message):
    """Sums of metrics."""

    metrics: tuple[float, ...]


TO_TRAINER = Table(TO_TRAINER_TAGS)
FROM_TRAINER = Table(FROM_TRAINER_TAGS)


def frame_of(vector: Vector) -> TensorFrame:
    """A vector as it travels, in its own memory."""
    dense = np.ascontiguousarray(vector, dtype=vector.dtype.newbyteorder("<"))
    return TensorFrame(dtype=f"f{dense.dtype.itemsize}", shape=dense.shape, data=dense.data.cast("B"))


def vector_of(frame: TensorFrame, layout: Layout) -> Vector:
    """The vector in a frame. Raises `WireError` for one that does not fit the layout."""
    dtype: np.dtype[Any] = layout.dtype
    if frame.dtype != f"f{dtype.itemsize}" or frame.shape != (layout.size,):
        raise WireError(f"the weights have {layout.size} elements of {dtype}, and others came")
    return np.frombuffer(frame.data, dtype)
