"""One round of a federated job at a node: its model, what the node learns from it, and attempts to sum that under masks."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import msgpack
import numpy as np
import numpy.typing as npt

from grid.clock import Clock
from grid.crypto.cards import TOLERANCE_S
from grid.display import counted
from grid.errors import GridError, InvalidRequest, NodeUnavailable, ReleaseDenied
from grid.federated.secagg.opening import Opening
from grid.federated.secagg.party import Party
from grid.federated.secagg.statements import Terms
from grid.federated.spec import JobSpec, model_digest
from grid.ids import PeerId
from grid.store.base import Store
from grid.wire.jobs import Sealed
from grid.wire.messages import TensorFrame

Vector = npt.NDArray[Any]

OPENING = "opening"
"""Name of a job's part in the store."""

NUMPY_DTYPES: Mapping[str, str] = {"f4": "<f4", "f8": "<f8"}
"""Of weights: short name -> numpy's."""


class Claims:
    """Names that this node takes once, for as long as a job may go on (`secagg.party.Memory`). For any thread."""

    def __init__(self, store: Store, clock: Clock, expires: float) -> None:
        self._store, self._clock, self._expires = store, clock, expires + TOLERANCE_S

    def claim(self, *names: str) -> bool:
        """Take names, all of them or none: True for the first who asks. They are on disk when this returns."""
        return self._store.claim_all(names, self._expires, self._clock.wall())

    def claimed(self, name: str) -> bool:
        """Whether somebody has taken the name."""
        return self._store.claimed(name)


class Models:
    """The models of a job that this node has given a sum or an update for: as many as its client has signed, and no more.

    One for each round of training, by its index from 1 on, and one for the evaluation of the last model, index 0: a gateway that
    goes on by itself gets nothing, and none for an evaluation in place of training or the other way round. Counted across
    restarts.
    """

    def __init__(self, claims: Claims, spec: JobSpec) -> None:
        self._claims = claims
        self._job = spec.job
        self._rounds = spec.rounds

    def check(self, index: int, model: bytes) -> None:
        """Raise `ReleaseDenied` for a round that the client has not signed, and for a second model in one."""
        if not 0 <= index <= self._rounds:
            self._deny(f"the client has signed {counted(self._rounds, 'round')}, and the gateway asks for number {index}")
        if self._claims.claimed(self._place(index)) and not self._claims.claimed(self._name(index, model)):
            which = f"round {index}" if index else "the evaluation"
            self._deny(f"this node has answered for another model in {which}, and one is what the client has signed")

    def count(self, index: int, model: bytes) -> None:
        """Count a model, once. It is on disk when this returns. Raises as `check`."""
        self.check(index, model)
        if not self._claims.claimed(self._name(index, model)):
            self._claims.claim(self._place(index), self._name(index, model))

    def _deny(self, what: str) -> NoReturn:
        raise ReleaseDenied(
            f"job {self._job}: {what} (rule rounds). Do instead: start another job", rule="rounds", instead="another job"
        )

    def _place(self, index: int) -> str:
        return f"job {self._job} round {index}"

    def _name(self, index: int, model: bytes) -> str:
        return f"{self._place(index)} model {model.hex()}"


@dataclasses.dataclass(frozen=True, slots=True)
class Signed:
    """The sum that a node has signed for: the round's index and model, its signature, and what it will reveal."""

    index: int
    model: bytes
    consent: bytes
    opening: Opening

    def consent_to(self, survivors: Sequence[PeerId]) -> bytes:
        """The signature, for the same survivors alone."""
        if sorted(survivors) != sorted(self.opening.survivors):
            raise ReleaseDenied(
                "this node has signed other survivors for this attempt (rule secagg.leg). Do instead: ask for those",
                rule="secagg.leg",
                instead="the survivors that it signed",
            )
        return self.consent


class Openings:
    """The one secret of a job that outlives this process: what leg 4 reveals, kept before the node signs in leg 3.

    Without it a node that is killed in between takes a sum along that others have revealed their part of. For any thread.
    """

    def __init__(self, store: Store, spec: JobSpec) -> None:
        self._store, self._spec = store, spec

    def keep(self, terms: Terms, consent: bytes, opening: Opening) -> None:
        """In place of the one before. It is on disk when this returns."""
        facts = [self._spec.expires, terms.round, terms.attempt, terms.index, terms.model, consent]
        packed: bytes = msgpack.packb([*facts, opening.to_bytes()])
        self._store.keep_job(self._spec.job, {OPENING: packed})

    def find(self, round: int, attempt: int) -> Signed | None:
        """What was signed in an attempt, if it is the one that is kept."""
        kept = self._store.job_parts(self._spec.job, OPENING).get(OPENING)
        if kept is None:
            return None
        _, *found, index, model, consent, opening = msgpack.unpackb(kept)
        return Signed(index, model, consent, Opening.from_bytes(opening)) if found == [round, attempt] else None

    def forget(self) -> None:
        """The job is over."""
        self._store.forget_job(self._spec.job)


def forget_expired(store: Store, wall: float) -> None:
    """Forget what is kept of jobs whose time is over: this node was not running when they ended."""
    for job in store.jobs():
        kept = store.job_parts(job, OPENING).get(OPENING)
        if kept is not None and msgpack.unpackb(kept)[0] < wall:
            store.forget_job(job)


class Learned:
    """What a node found out in a round: its update, for how many rows, and sums of metrics over rows that were evaluated."""

    def __init__(self, update: Vector | None, examples: int, metrics: Vector, evaluated: int) -> None:
        self.update = update
        self.examples = examples
        self.sums = np.array([*metrics, evaluated], np.float64)


class Round:
    """The model of one round, and what this node learns from it: a future, so that those who wait may stop waiting."""

    def __init__(self, number: int, index: int, model: bytes, weights: Vector) -> None:
        self.number = number
        self.index = index
        self.model = model
        self.weights = weights
        self.learned: asyncio.Future[Learned] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Any] | None = None
        self.over = False

    @property
    def evaluate_only(self) -> bool:
        """Whether nothing is trained."""
        return not self.index

    def serves(self, index: int, model: bytes) -> bool:
        """Whether what is asked about this model in a round of this index is what is learned here, or was, and did not fail."""
        failed = self.learned.done() and self.learned.exception() is not None
        return (self.index, self.model) == (index, model) and not failed

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


Judge = Callable[[Callable[[], None]], None]
"""Makes the check that it is given, or raises without it; or needs none."""


def mask(attempt: Attempt, learned: Learned, weight: int, shares: Mapping[Any, bytes], judge: Judge) -> Vector:
    """What a node learned, under masks: at the first call quantised, in a range that `judge` lets pass."""
    quantiser = attempt.terms.quantiser
    if attempt.vector is None:
        update = learned.update
        if update is None:  # of an evaluation, which has a range but nothing in it: no word about any
            attempt.vector = quantiser.encode(np.zeros(quantiser.size, np.float32), weight, learned.sums)
        else:
            vector = quantiser.encode(update, weight, learned.sums)
            judge(lambda: quantiser.check_fit(update, weight, vector))
            attempt.vector = vector
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
