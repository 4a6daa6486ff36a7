"""One round of a federated job at a node: its model, what the node learns from it, and attempts to sum that under masks."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from grid.clock import Clock
from grid.crypto.cards import TOLERANCE_S
from grid.crypto.envelope import unpack
from grid.errors import GridError, InvalidRequest, NodeUnavailable, ReleaseDenied, WireError
from grid.federated.secagg.opening import Opening
from grid.federated.secagg.party import Party
from grid.federated.secagg.statements import Terms
from grid.federated.spec import JobSpec, model_digest
from grid.ids import JobId, PeerId
from grid.store.base import Store
from grid.wire.jobs import Sealed
from grid.wire.messages import TensorFrame

log = logging.getLogger(__name__)

Vector = npt.NDArray[Any]

SUM = "sum"
"""The part of a job that is kept at a node."""

NUMPY_DTYPES: Mapping[str, str] = {"f4": "<f4", "f8": "<f8"}
"""Of weights: short name -> numpy's."""


class Claims:
    """Names that this node takes once, for as long as a job may go on (`secagg.party.Memory`). For any thread."""

    def __init__(self, store: Store, clock: Clock, expires: float) -> None:
        self._store, self._clock, self._expires = store, clock, expires + TOLERANCE_S

    def claim(self, name: str) -> bool:
        """Take a name: True for the first who asks. It is on disk when this returns."""
        return self._store.claim(name, self._expires, self._clock.wall())

    def claimed(self, name: str) -> bool:
        """Whether somebody has taken the name."""
        return self._store.claimed(name)


class Models:
    """The models of a job that this node has given a sum or an update for: as many as its client has signed, and no more.

    One for each round, and one for the last evaluation: a gateway that goes on by itself gets nothing. Counted across restarts.
    """

    def __init__(self, claims: Claims, spec: JobSpec) -> None:
        self._claims = claims
        self._job = spec.job
        self._most = spec.rounds + 1
        self._used = 0

    def check(self, model: bytes) -> None:
        """Raise `ReleaseDenied` for a model that would be one too many."""
        while self._used < self._most and self._claims.claimed(self._place(self._used)):
            self._used += 1
        if self._used == self._most and not self._claims.claimed(self._name(model)):
            raise ReleaseDenied(
                f"this node has answered for {self._most} models of job {self._job}, one for each round that its client signed,"
                " one for the evaluation of the last, and the gateway asks for more (rule rounds). Do instead: start another job",
                rule="rounds",
                instead="another job",
            )

    def count(self, model: bytes) -> None:
        """Count a model, once. It is on disk when this returns. Raises as `check`."""
        self.check(model)
        if not self._claims.claimed(self._name(model)):
            self._claims.claim(self._place(self._used))
            self._claims.claim(self._name(model))

    def _place(self, number: int) -> str:
        return f"job {self._job} model {number}"

    def _name(self, model: bytes) -> str:
        return f"job {self._job} model {model.hex()}"


class Learned:
    """What a node found out in a round: its update, for how many rows, and sums of metrics over rows that were evaluated."""

    def __init__(self, update: Vector | None, examples: int, metrics: Vector, evaluated: int) -> None:
        self.update = update
        self.examples = examples
        self.sums = np.array([*metrics, evaluated], np.float64)


class Round:
    """The model of one round, and what this node learns from it: a future, so that those who wait may stop waiting."""

    def __init__(self, number: int, model: bytes, weights: Vector, evaluate_only: bool) -> None:
        self.number = number
        self.model = model
        self.weights = weights
        self.evaluate_only = evaluate_only
        self.learned: asyncio.Future[Learned] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Any] | None = None
        self.over = False

    def end(self) -> None:
        """Nobody wants to know any more."""
        self.over = True
        if self.task is not None:
            self.task.cancel()
        self.settle(given_up())

    def settle(self, outcome: Learned | GridError) -> None:
        """What was found out, or why nothing; the first word counts."""
        if self.learned.done():
            return
        if isinstance(outcome, GridError):
            self.learned.set_exception(outcome)
            self.learned.exception()  # the gateway may never ask
        else:
            self.learned.set_result(outcome)


class Attempt:
    """One attempt of the present round under masks."""

    def __init__(self, terms: Terms, encoded: bytes, party: Party) -> None:
        self.terms = terms
        self.encoded = encoded
        self.party = party
        self.vector: Vector | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptSum:
    """A sum that this node has signed for: what it still has to say about it, kept so that a restart in between loses nothing.

    Its disk is the owner's. `opening` has the one share of each peer that the signed survivors call for.
    """

    expires: float
    round: int
    attempt: int
    model: bytes
    survivors: tuple[PeerId, ...]
    consent: bytes
    opening: Opening

    def to_bytes(self) -> bytes:
        """For the store."""
        facts = [self.expires, self.round, self.attempt, self.model, self.survivors, self.consent, self.opening.to_bytes()]
        packed: bytes = msgpack.packb(facts)
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> KeptSum:
        """What `to_bytes` gave; `WireError` for anything else."""
        kept = unpack(data, "a kept sum", error=WireError)
        if not isinstance(kept, list) or list(map(type, kept)) != [float, int, int, bytes, list, bytes, bytes]:
            raise WireError("a kept sum has a wrong form")
        expires, number, attempt, model, survivors, consent, opening = kept
        return cls(
            expires=expires,
            round=number,
            attempt=attempt,
            model=model,
            survivors=tuple(PeerId(str(one)) for one in survivors),
            consent=consent,
            opening=Opening.from_bytes(opening),
        )

    def consent_to(self, survivors: Sequence[PeerId]) -> bytes:
        """The signature, for the same survivors alone."""
        if sorted(survivors) != sorted(self.survivors):
            raise ReleaseDenied("this node has signed other survivors for this attempt (rule secagg.leg)", rule="secagg.leg")
        return self.consent


def kept_sum(store: Store, job: JobId) -> KeptSum | None:
    """What is kept of a job, if it can be read."""
    data = store.job_parts(job, SUM).get(SUM)
    try:
        return None if data is None else KeptSum.from_bytes(data)
    except WireError as error:
        log.warning("what was kept of job %s cannot be read, and is not used: %s", job, error)
        return None


def forget_old_sums(store: Store, wall: float) -> None:
    """At the start of a node: forget what jobs that are over by now have left."""
    for job in store.jobs():
        kept = kept_sum(store, JobId(job))
        if kept is None or kept.expires < wall:
            store.forget_job(job)


def mask(attempt: Attempt, learned: Learned, weight: int, shares: Mapping[Any, bytes]) -> Vector:
    quantiser = attempt.terms.quantiser
    if attempt.vector is None:
        update = np.zeros(quantiser.size, np.float32) if learned.update is None else learned.update
        attempt.vector = quantiser.encode(update, weight, learned.sums)
    masked = attempt.party.masked(shares, attempt.vector)
    attempt.vector = np.empty(0, quantiser.dtype)  # from now on the party answers by itself
    return masked


def given_up() -> NodeUnavailable:
    return NodeUnavailable("the training of this round was given up: another has begun, or the job is over")


def read_model(envelope: bytes, frame: TensorFrame, size: int) -> tuple[bytes, Vector]:
    """The digest of a round's model and its vector, without a copy.

    Raises `InvalidRequest` for a vector of another size than the job's, or one that is not finite.
    """
    if frame.dtype not in NUMPY_DTYPES or frame.shape != (size,):
        raise InvalidRequest(f"the job's model is one vector of {size} float32 or float64 numbers")
    vector = np.frombuffer(frame.data, NUMPY_DTYPES[frame.dtype])
    if not math.isfinite(float(np.abs(vector).max(initial=0.0))):
        raise InvalidRequest("the model's weights are not finite")
    return model_digest(envelope, frame.data), vector


def frame_of(vector: Vector, dtype: str) -> TensorFrame:
    """A vector as it travels, without a copy."""
    return TensorFrame(dtype=dtype, shape=vector.shape, data=vector.view(np.uint8).data)


def sealed(shares: Mapping[Any, bytes]) -> tuple[Sealed, ...]:
    return tuple(Sealed(peer=peer, data=data) for peer, data in shares.items())


def by_peer(shares: tuple[Sealed, ...]) -> dict[Any, bytes]:
    found = {one.peer: one.data for one in shares}
    if len(found) != len(shares):
        raise InvalidRequest("a peer is named twice")
    return found
