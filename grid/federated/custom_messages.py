"""What a gateway and the process of a user's own strategy say to each other over a pipe; no peer can send these messages."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grid.errors import WireError
from grid.wire.codec import Table
from grid.wire.messages import Buffer, Failure, Message, TensorFrame, message

TO_STRATEGY_TAGS: dict[str, type[Message]] = {}
FROM_STRATEGY_TAGS: dict[str, type[Message]] = {Failure.tag: Failure}

Doubles = npt.NDArray[np.float64]


@message("begin-strategy", TO_STRATEGY_TAGS)
class BeginStrategy(Message):
    """Gateway -> strategy, first: be this plan, for vectors of `size` and so many of them as state. Reply: Vectors, empty."""

    plan: Buffer
    size: int
    state: int
    max_elements: int
    max_bytes: int
    max_steps: int


@message("apply-strategy", TO_STRATEGY_TAGS)
class ApplyStrategy(Message):
    """Gateway -> strategy: weights, mean update and state. Reply: Vectors, the new weights and state."""

    vectors: tuple[TensorFrame, ...]


@message("vectors", FROM_STRATEGY_TAGS)
class Vectors(Message):
    """What came of it."""

    vectors: tuple[TensorFrame, ...]


TO_STRATEGY = Table(TO_STRATEGY_TAGS)
FROM_STRATEGY = Table(FROM_STRATEGY_TAGS)


def frames_of(vectors: list[Doubles]) -> tuple[TensorFrame, ...]:
    """Vectors as they travel, in their own memory."""
    dense = [np.ascontiguousarray(one, dtype="<f8") for one in vectors]
    return tuple([TensorFrame(dtype="f8", shape=one.shape, data=one.data.cast("B")) for one in dense])


def vectors_of(frames: tuple[TensorFrame, ...], count: int, size: int) -> list[Doubles]:
    """So many vectors of this size. Raises `WireError` for others."""
    if len(frames) != count or any(frame.dtype != "f8" or frame.shape != (size,) for frame in frames):
        raise WireError("a strategy's vectors are not as many, or not as long, as they must be")
    return [np.frombuffer(frame.data, dtype="<f8") for frame in frames]
