"""What a job is made of: the order as its client signed it, the model as it stands, and for each round its nodes and terms."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
import secrets
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from grid.errors import InvalidRequest
from grid.federated.secagg.graph import MAX_COHORT, degree_and_threshold
from grid.federated.secagg.quantiser import FIRST_CLIP, WIDE_CLIPS, Range, choose
from grid.federated.secagg.statements import Terms
from grid.federated.spec import EQUAL, JobSpec, model_digest
from grid.federated.strategy import State
from grid.ids import PeerId
from grid.wire.messages import Buffer, TensorFrame

Vector = npt.NDArray[Any]
MakeTerms = Callable[[int, int], Terms]
"""Of an attempt and a number of nodes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """A job as its client sent it, checked: the spec and its envelope, the client's card, the plans."""

    spec: JobSpec
    envelope: bytes
    card: bytes
    train: Buffer
    evaluate: Buffer


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Model:
    """The weights after some rounds, as they travel, and their digest. `state`: the strategy's."""

    weights: Vector
    frame: TensorFrame
    digest: bytes
    state: State

    @classmethod
    def of(cls, weights: Vector, state: State, envelope: bytes) -> Model:
        """Copies nothing where the weights are in travelling order already."""
        plain = np.ascontiguousarray(weights, weights.dtype.newbyteorder("<"))
        data = plain.data.cast("B") if plain.size else memoryview(b"")
        frame = TensorFrame(dtype=f"f{plain.itemsize}", shape=plain.shape, data=data)
        return cls(plain, frame, model_digest(envelope, data), state)


def terms_of(spec: JobSpec, model: Model, number: int, index: int, *, size: int, largest: int, known: Range | None) -> MakeTerms:
    """Makes the terms of an attempt of a round, of its number and how many nodes it has.

    `number` and `index` as `Terms` has them. `size`: coordinates of an update, 0 for an evaluation. `largest`: the most examples
    of any node. `known`: what is known of the quantiser's range.
    """
    heaviest = 1 if spec.weighting == EQUAL else largest
    usual = min(MAX_COHORT, math.ceil(spec.fraction * len(spec.nodes)))  # so that the same range comes with fewer nodes

    def terms(attempt: int, count: int) -> Terms:
        degree, threshold = degree_and_threshold(count)
        quantiser = choose(size, max(count, usual), heaviest, known, metrics=len(spec.sums))
        return Terms(
            job=spec.job,
            round=number,
            attempt=attempt,
            index=index,
            model=model.digest,
            size=quantiser.length,
            bits=quantiser.bits,
            degree=degree,
            threshold=threshold,
            quantiser=quantiser,
        )

    return terms


def widened(known: Range | None, wide: float) -> Range:
    """What to take for the range after one that did not fit: a wide one, then ever wider ones (for running variances, say).

    `wide` is the end of the one that fitted last. Raises `InvalidRequest` where none is left.
    """
    if known is not None and known.coarsest > 0.0:  # it came from an aggregate
        return Range(wide, 0.0)
    before = FIRST_CLIP if known is None else known.clip
    wider = next((clip for clip in WIDE_CLIPS if clip > before), None)
    if wider is None:
        raise InvalidRequest("no range fits the updates")
    return Range(wider, 0.0)


def draw(spec: JobSpec, ready: Sequence[PeerId], quorum: int, index: int, losses: int) -> tuple[PeerId, ...]:
    """The nodes of a round: a share of all that the job names, drawn from those who are there. A seed fixes the draw.

    One that was lost is done again with the same nodes, so that it ends as if nothing had been; one that was lost more often, of
    which `losses` is the number, with others.
    """
    wanted = max(quorum, math.ceil(spec.fraction * len(spec.nodes)))
    if spec.secure:
        wanted = min(wanted, MAX_COHORT)
    if len(ready) <= wanted:
        return tuple(ready)
    seed = spec.seed or secrets.token_bytes(32)
    drawing = random.Random(hashlib.sha256(b"grid cohort 1\0" + seed + struct.pack("<QQ", index, max(losses - 1, 0))).digest())
    drawn = set(drawing.sample(list(ready), wanted))
    return tuple(peer for peer in ready if peer in drawn)


def metrics_of(spec: JobSpec, weight: int, sums: Vector, *, evaluated: bool) -> tuple[tuple[float | None, ...], int, int]:
    """Weighted means over rows, how many rows were evaluated, and how many the updates stand for. `sums` as `JobSpec.sums`.

    A node may have put in what makes no sense; then there are no metrics of that round.
    """
    counted = float(sums[-1])
    rows = round(counted) if 0 <= counted < 2**53 else 0
    trained = rows if spec.weighting == EQUAL else weight
    if not evaluated or rows <= 0:
        return (), rows, trained
    means = (float(total) / rows for total in sums[:-1])
    return tuple(mean if math.isfinite(mean) else None for mean in means), rows, trained
