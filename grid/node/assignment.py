"""One federated job at this node: its rules, its training, and the legs of its rounds.

    offer ──> [ begin ──> roster ──> shares ──> survivors ──> unmask ] for each round and attempt ──> close

A round's training starts when its model comes, beside the legs that agree on masks, and is not repeated for another attempt.
What is asked again is answered as it was the first time. Where the job is secure, an update leaves in `shares` alone, quantised
and under masks (`federated.secagg`). Work of more than a moment is done in the job's lane, in order.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from grid.clock import Clock
from grid.crypto.cards import TOLERANCE_S, Card
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import AuthenticationFailed, GridError, InvalidRequest, NodeUnavailable, NotFound
from grid.federated.secagg.party import Party
from grid.federated.secagg.statements import Terms
from grid.federated.spec import BY_EXAMPLES, JobSpec, model_digest
from grid.node.datasets import Dataset
from grid.node.executor import Lane
from grid.node.job_rules import check_datasets
from grid.node.training import Training
from grid.store.base import Store
from grid.wire.jobs import (
    BeginRound,
    MaskedInput,
    RoundConsent,
    RoundKeys,
    RoundReveal,
    RoundRoster,
    RoundShares,
    RoundSurvivors,
    RoundUnmask,
    Sealed,
    SealedShares,
    SingleUpdate,
)
from grid.wire.messages import Message, TensorFrame

log = logging.getLogger(__name__)

Vector = npt.NDArray[Any]

NUMPY_DTYPES: Mapping[str, str] = {"f4": "<f4", "f8": "<f8"}
"""Of weights: short name -> numpy's."""


class Leg(Protocol):
    """A message of a leg after the first."""

    @property
    def round(self) -> int: ...

    @property
    def attempt(self) -> int: ...


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


class _Learned:
    """What a node found out in a round: its update, for how many rows, and sums of metrics over rows that were evaluated."""

    def __init__(self, update: Vector | None, examples: int, metrics: Vector, evaluated: int) -> None:
        self.update = update
        self.examples = examples
        self.sums = np.array([*metrics, evaluated], np.float64)


class _Round:
    """The model of one round, and what this node learns from it: a future, so that those who wait may stop waiting."""

    def __init__(self, number: int, model: bytes, weights: Vector, evaluate_only: bool) -> None:
        self.number = number
        self.model = model
        self.weights = weights
        self.evaluate_only = evaluate_only
        self.learned: asyncio.Future[_Learned] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Any] | None = None
        self.over = False

    def end(self) -> None:
        """Nobody wants to know any more."""
        self.over = True
        if self.task is not None:
            self.task.cancel()
        self.settle(_given_up())

    def settle(self, outcome: _Learned | GridError) -> None:
        """What was found out, or why nothing; the first word counts."""
        if self.learned.done():
            return
        if isinstance(outcome, GridError):
            self.learned.set_exception(outcome)
            self.learned.exception()  # the gateway may never ask
        else:
            self.learned.set_result(outcome)


class _Attempt:
    """One attempt of the present round under masks."""

    def __init__(self, terms: Terms, encoded: bytes, party: Party) -> None:
        self.terms = terms
        self.encoded = encoded
        self.party = party
        self.vector: Vector | None = None


class Assignment:
    """See the module. `client` is whose job it is; `training` is closed with this."""

    def __init__(
        self,
        spec: JobSpec,
        envelope: bytes,
        *,
        client: Card,
        training: Training,
        proximal: float,
        me: LocalIdentity,
        trust: Trust,
        clock: Clock,
        store: Store,
        datasets: Mapping[str, Dataset],
        minimum: int,
        lane: Lane,
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self.spec = spec
        self.envelope = envelope
        self.client = client
        self.touched = clock.monotonic()
        self._training = training
        self._proximal = proximal
        self._me, self._trust, self._clock = me, trust, clock
        self._memory = Claims(store, clock, spec.expires)
        self._datasets = datasets
        self._minimum = minimum
        self._lane = lane
        self._spawn = spawn
        self._names = spec.datasets_of(me.id)
        self._round: _Round | None = None
        self._attempt: _Attempt | None = None
        self._beginning = asyncio.Lock()

    # ------------------------------------------------------------ leg 0

    async def begin(self, message: BeginRound) -> Message:
        """Leg 0: check the rules once more, start to train, and answer with fresh keys; without masks, with the update."""
        self._touch()
        check_datasets(self.spec, self._names, self._datasets, self._me.name)
        if bool(message.terms) != self.spec.secure:
            raise InvalidRequest(
                "the client's job is to be summed under masks, and the gateway asks without"
                if self.spec.secure
                else "the client's job is without masks, and the gateway asks with them"
            )
        async with self._beginning:  # an attempt may be overtaken by the next while its model is hashed
            return await (self._begin_secure if self.spec.secure else self._begin_single)(message)

    async def _begin_secure(self, message: BeginRound) -> RoundKeys:
        known = self._attempt
        if known is not None and known.encoded == message.terms and self._is_present(message):
            return RoundKeys(envelope=known.party.keys())
        terms = Terms.decode(message.terms)
        now = await self._entered(message)
        self._check_terms(terms, message, now)
        party = Party(
            me=self._me,
            card=self._me.card_for(self._clock),
            terms=terms,
            minimum=self._minimum,
            verify=lambda envelope: self._trust.verify_card(envelope, wall=self._clock.wall()),
            memory=self._memory,
            allow_same_organisation=False,
        )
        keys = await self._lane.submit(party.keys)
        self._attempt = _Attempt(terms, message.terms, party)
        self._start(now)
        return RoundKeys(envelope=keys)

    def _check_terms(self, terms: Terms, message: BeginRound, now: _Round) -> None:
        """The terms are those of this message and this model, and this node's vector fits them."""
        quantiser = terms.quantiser
        size = self._training.layout.size
        asked = (self.spec.job, message.round, message.attempt)
        if (terms.job, terms.round, terms.attempt) != asked or terms.model != now.model:
            raise InvalidRequest("the terms of the round are of another job, round, attempt or model than the message")
        if quantiser.metrics != len(self.spec.sums) or quantiser.size not in ((0, size) if now.evaluate_only else (size,)):
            raise InvalidRequest("the terms of the round are for a vector of another size than the job's")
        if self._weight > quantiser.largest_weight:
            raise InvalidRequest(
                f"this node counts by {self._weight} examples, and the round is for at most {quantiser.largest_weight}:"
                ' train with weighting="equal"'
            )

    async def _begin_single(self, message: BeginRound) -> SingleUpdate:
        now = self._round if self._is_present(message) and message.weights is None else await self._entered(message)
        assert now is not None
        self._start(now)
        learned = await self._learned(now)
        return SingleUpdate(
            examples=learned.examples,
            metrics=tuple(float(value) for value in learned.sums),
            update=None if learned.update is None else _frame(learned.update, "f8" if learned.update.itemsize == 8 else "f4"),
        )

    def _is_present(self, message: BeginRound) -> bool:
        now = self._round
        return now is not None and (now.number, now.evaluate_only) == (message.round, message.evaluate_only)

    async def _entered(self, message: BeginRound) -> _Round:
        """The round of a message: the present one if it is of the same model, else a new one in its place."""
        if message.weights is None:
            if not self._is_present(message) or self._round is None:
                raise NotFound(f"this node does not have the model of round {message.round}: send it with the weights")
            return self._round
        size = self._training.layout.size
        digest, weights = await self._lane.submit(partial(_read_model, self.envelope, message.weights, size))
        if self._is_present(message) and self._round is not None and self._round.model == digest:
            return self._round
        return _Round(message.round, digest, weights, message.evaluate_only)

    def _start(self, now: _Round) -> None:
        """Make it the present round. Its training starts, and that of another ends."""
        if now is self._round:
            return
        self._drop_round()
        self._round = now
        self._spawn(self._learn(now), f"training of job {self.spec.job[:8]}")

    # ------------------------------------------------------------ training

    async def _learn(self, now: _Round) -> None:
        now.task = asyncio.current_task()
        outcome: _Learned | GridError = _given_up()
        try:
            if not now.over:
                outcome = await self._result(now)
        except GridError as error:
            outcome = error
        except Exception:
            log.exception("local training failed")
            outcome = GridError("local training failed by a fault of this node; its log has more")
        finally:
            now.settle(outcome)

    async def _result(self, now: _Round) -> _Learned:
        spec = self.spec
        if now.evaluate_only:
            found = await self._training.evaluate(now.weights)
            return _Learned(None, self._training.rows, found.metrics, found.examples)
        wanted = spec.evaluates(now.number)
        trained = await self._training.train(
            now.weights, round=now.number, seed=spec.seed_of(self._me.id), proximal=self._proximal, metrics=wanted
        )
        return _Learned(trained.update, trained.examples, trained.metrics, trained.examples if wanted else 0)

    async def _learned(self, now: _Round) -> _Learned:
        return await asyncio.shield(now.learned)  # who asked may be gone before it is there

    @property
    def _weight(self) -> int:
        """What this node counts in the mean."""
        return self._training.rows if self.spec.weighting == BY_EXAMPLES else 1

    # ------------------------------------------------------------ legs 1 to 4

    async def roster(self, message: RoundRoster) -> SealedShares:
        """Leg 1."""
        party = self._present(message).party
        return SealedShares(shares=_sealed(await self._lane.submit(partial(party.share, message.keys))))

    async def shares(self, message: RoundShares) -> MaskedInput:
        """Leg 2: the one message with an update in it, under masks."""
        attempt, now = self._present(message), self._round
        assert now is not None
        shares = _by_peer(message.shares)
        learned = await self._learned(now)
        self._present(message)
        vector = await self._lane.submit(partial(_mask, attempt, learned, self._weight, shares))
        return MaskedInput(vector=_frame(vector, "i8" if vector.itemsize == 8 else "i4"))

    async def survivors(self, message: RoundSurvivors) -> RoundConsent:
        """Leg 3."""
        party = self._present(message).party
        return RoundConsent(signature=await self._lane.submit(partial(party.consent, message.survivors)))

    async def unmask(self, message: RoundUnmask) -> RoundReveal:
        """Leg 4."""
        party = self._present(message).party
        shares = await self._lane.submit(partial(party.reveal, _by_peer(message.consents)))
        return RoundReveal(shares=_sealed(shares))

    def _present(self, message: Leg) -> _Attempt:
        """The attempt that a leg belongs to. Raises `NotFound` for one that this node has no secrets of (any more)."""
        self._touch()
        attempt = self._attempt
        if attempt is None or (attempt.terms.round, attempt.terms.attempt) != (message.round, message.attempt):
            raise NotFound(
                f"this node takes no part in attempt {message.attempt} of round {message.round} of job {self.spec.job}: it was"
                " restarted, or another attempt has begun"
            )
        return attempt

    # ------------------------------------------------------------ end

    def _touch(self) -> None:
        self.touched = self._clock.monotonic()
        if self._clock.wall() > self.spec.expires:
            raise AuthenticationFailed("the job's time is over; start a new one")
        if self._trust.revoked(self.client):
            raise AuthenticationFailed(f"{self.client}, whose job this is, was revoked by the grid's root")

    def _drop_round(self) -> None:
        if self._round is not None:
            self._round.end()
        self._round = None

    async def close(self) -> None:
        """End what trains, and forget the secrets of the present round."""
        self._attempt = None
        self._drop_round()
        await self._training.close()
        await self._lane.close()


def _mask(attempt: _Attempt, learned: _Learned, weight: int, shares: Mapping[Any, bytes]) -> Vector:
    quantiser = attempt.terms.quantiser
    if attempt.vector is None:
        update = np.zeros(quantiser.size, np.float32) if learned.update is None else learned.update
        attempt.vector = quantiser.encode(update, weight, learned.sums)
    masked = attempt.party.masked(shares, attempt.vector)
    attempt.vector = np.empty(0, quantiser.dtype)  # from now on the party answers by itself
    return masked


def _given_up() -> NodeUnavailable:
    return NodeUnavailable("the training of this round was given up: another has begun, or the job is over")


def _read_model(envelope: bytes, frame: TensorFrame, size: int) -> tuple[bytes, Vector]:
    """The digest of a round's model and its vector, without a copy.

    Raises `InvalidRequest` for a vector of another size than the job's, or one that is not finite.
    """
    if frame.dtype not in NUMPY_DTYPES or frame.shape != (size,):
        raise InvalidRequest(f"the job's model is one vector of {size} float32 or float64 numbers")
    vector = np.frombuffer(frame.data, NUMPY_DTYPES[frame.dtype])
    if not math.isfinite(float(np.abs(vector).max(initial=0.0))):
        raise InvalidRequest("the model's weights are not finite")
    return model_digest(envelope, frame.data), vector


def _frame(vector: Vector, dtype: str) -> TensorFrame:
    """A vector as it travels, without a copy."""
    return TensorFrame(dtype=dtype, shape=vector.shape, data=vector.view(np.uint8).data)


def _sealed(shares: Mapping[Any, bytes]) -> tuple[Sealed, ...]:
    return tuple(Sealed(peer=peer, data=data) for peer, data in shares.items())


def _by_peer(shares: tuple[Sealed, ...]) -> dict[Any, bytes]:
    found = {one.peer: one.data for one in shares}
    if len(found) != len(shares):
        raise InvalidRequest("a peer is named twice")
    return found
