"""One federated job at this node: its rules, its training, and the legs of its rounds.

    offer ──> [ begin ──> roster ──> shares ──> survivors ──> unmask ] for each round and attempt ──> close

A round's training starts when its model comes, beside the legs that agree on masks, and is not repeated for another attempt.
What is asked again is answered as it was the first time. Where the job is secure, an update leaves in `shares` alone, quantised
and under masks (`federated.secagg`). Work of more than a moment is done in the job's lane, in order.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

from grid.clock import Clock
from grid.crypto.cards import Card
from grid.crypto.envelope import framed
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import AuthenticationFailed, ExecutionFailed, GridError, InvalidRequest, NotFound
from grid.federated.secagg.party import Party
from grid.federated.secagg.statements import Terms
from grid.federated.spec import BY_EXAMPLES, JobSpec
from grid.ids import PeerId
from grid.node.datasets import Dataset
from grid.node.executor import Lane
from grid.node.job_ranges import Ranges
from grid.node.job_rounds import (
    Attempt,
    Claims,
    Learned,
    Models,
    Openings,
    Round,
    by_peer,
    frame_of,
    given_up,
    mask,
    read_model,
    sealed,
)
from grid.node.job_rules import check_datasets
from grid.node.training import Training
from grid.policy.gate import Gate
from grid.policy.rules import OPEN
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
    SealedShares,
    SingleUpdate,
)
from grid.wire.messages import Message

log = logging.getLogger(__name__)


class Leg(Protocol):
    """A message of a leg after the first."""

    @property
    def round(self) -> int: ...

    @property
    def attempt(self) -> int: ...


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
        gate: Gate,
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
        self._models = Models(self._memory, spec)
        self._openings = Openings(store, spec)
        self._ranges = Ranges(self._memory, spec.job)
        self._datasets = datasets
        self._minimum = minimum
        self._gate = gate
        self._lane = lane
        self._spawn = spawn
        self._names = spec.datasets_of(me.id)
        self._round: Round | None = None
        self._attempt: Attempt | None = None
        self._beginning = asyncio.Lock()

    # ------------------------------------------------------------ leg 0

    async def begin(self, message: BeginRound) -> Message:
        """Leg 0: check the rules once more, start to train, and answer with fresh keys; without masks, with the update."""
        self._touch()
        self._gate.check_errors(self.client.id)
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
            minimum=max(self._minimum, *[self._datasets[name].policy.min_cohort or 0 for name in self._names]),
            members=frozenset(self.spec.nodes),
            least=self.spec.min_nodes,
            verify=lambda envelope: self._trust.verify_card(envelope, wall=self._clock.wall()),
            memory=self._memory,
            allow_same_organisation=all(self._datasets[name].policy.same_organisation for name in self._names),
            public=all(self._datasets[name].policy.release == OPEN for name in self._names),
        )
        keys = await self._lane.submit(partial(self._first_keys, party, now))
        self._attempt = Attempt(terms, message.terms, party)
        self._start(now, message.round)
        return RoundKeys(envelope=keys)

    def _first_keys(self, party: Party, now: Round) -> bytes:
        self._models.check(now.index, now.model)
        return party.keys()

    def _check_terms(self, terms: Terms, message: BeginRound, now: Round) -> None:
        """The terms are those of this message and this model, and this node's vector fits them."""
        quantiser = terms.quantiser
        size = self._training.layout.size
        asked = (self.spec.job, message.round, message.attempt, message.index)
        if (terms.job, terms.round, terms.attempt, terms.index) != asked or terms.model != now.model:
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
        await self._lane.submit(partial(self._models.count, now.index, now.model))
        self._start(now, message.round)
        learned = await self._learned(now)
        return SingleUpdate(
            examples=learned.examples,
            metrics=tuple(float(value) for value in learned.sums),
            update=None if learned.update is None else frame_of(learned.update, "f8" if learned.update.itemsize == 8 else "f4"),
        )

    def _is_present(self, message: BeginRound) -> bool:
        now = self._round
        return now is not None and (now.number, now.index) == (message.round, message.index)

    async def _entered(self, message: BeginRound) -> Round:
        """The round of a message: a new one, unless the present one has the same index and model.

        So what was trained in a round that was lost serves for the one that is done in its place.
        """
        if message.weights is None:
            if not self._is_present(message) or self._round is None:
                raise NotFound(f"this node does not have the model of round {message.round}: send it with the weights")
            return self._round
        size = self._training.layout.size
        digest, weights = await self._lane.submit(partial(read_model, self.envelope, message.weights, size))
        if self._round is not None and self._round.serves(message.index, digest):
            return self._round
        return Round(message.round, message.index, digest, weights)

    def _start(self, now: Round, number: int) -> None:
        """Make it the present round, under this number. Its training starts, and that of another ends."""
        now.number = number
        if now is self._round:
            return
        self._drop_round()
        self._round = now
        self._spawn(self._learn(now), f"training of job {self.spec.job[:8]}")

    # ------------------------------------------------------------ training

    async def _learn(self, now: Round) -> None:
        now.task = asyncio.current_task()
        outcome: Learned | GridError = given_up()
        try:
            if not now.over:
                outcome = await self._result(now)
        except ExecutionFailed as error:  # whether that happens may depend on rows, so each time tells a little of them
            self._gate.count_error(self.client.id)
            outcome = error
        except GridError as error:
            outcome = error
        except Exception:
            log.exception("local training failed")
            outcome = GridError("local training failed by a fault of this node; its log has more")
        finally:
            now.settle(outcome)

    async def _result(self, now: Round) -> Learned:
        spec = self.spec
        if now.evaluate_only:
            found = await self._training.evaluate(now.weights)
            return Learned(None, self._training.rows, found.metrics, found.examples)
        wanted = spec.evaluates(now.index)
        trained = await self._training.train(
            now.weights, round=now.index, seed=self._seed, proximal=self._proximal, metrics=wanted
        )
        return Learned(trained.update, trained.examples, trained.metrics, trained.examples if wanted else 0)

    async def _learned(self, now: Round) -> Learned:
        return await asyncio.shield(now.learned)  # who asked may be gone before it is there

    @property
    def _seed(self) -> bytes:
        """Where batches are secret it takes a secret of this node to tell them from the client's seed.

        Sums over many batches whose rows are known are equations for single rows: as many jobs as rows solve them. And a batch
        of 33 rows less one of 32 in the same order is a row: so all that a job is decides the order as well.
        """
        known = all(self._datasets[name].policy.tells_batches for name in self._names)
        return self.spec.seed_of(self._me.id, b"" if known else batch_secret(self._me) + self.spec.work)

    @property
    def _weight(self) -> int:
        """What this node counts in the mean."""
        return self._training.rows if self.spec.weighting == BY_EXAMPLES else 1

    # ------------------------------------------------------------ legs 1 to 4

    async def roster(self, message: RoundRoster) -> SealedShares:
        """Leg 1."""
        party = self._present(message).party
        return SealedShares(shares=sealed(await self._lane.submit(partial(party.share, message.keys))))

    async def shares(self, message: RoundShares) -> MaskedInput:
        """Leg 2: the one message with an update in it, under masks."""
        attempt, now = self._present(message), self._round
        assert now is not None
        shares = by_peer(message.shares)
        learned = await self._learned(now)
        self._present(message)
        vector = await self._lane.submit(partial(self._mask, attempt, learned, shares))
        return MaskedInput(vector=frame_of(vector, "i8" if vector.itemsize == 8 else "i4"))

    def _mask(self, attempt: Attempt, learned: Learned, shares: Mapping[PeerId, bytes]) -> Any:
        """The model counts from here on: whether its update fits a range is the first that is told of it."""
        terms = attempt.terms
        self._models.count(terms.index, terms.model)
        return mask(attempt, learned, self._weight, shares, partial(self._ranges.judge, terms.index, terms.quantiser))

    async def survivors(self, message: RoundSurvivors) -> RoundConsent:
        """Leg 3, also of an attempt that this node signed before it was restarted."""
        self._touch()
        return RoundConsent(signature=await self._lane.submit(partial(self._sign, message)))

    def _sign(self, message: RoundSurvivors) -> bytes:
        """What leg 4 will reveal is kept before the signature is given: from then on others may reveal their part."""
        signed = self._openings.find(message.round, message.attempt)
        if signed is not None:
            return signed.consent_to(message.survivors)
        attempt = self._present(message)
        consent = attempt.party.consent(message.survivors)
        self._openings.keep(attempt.terms, consent, attempt.party.opening)
        return consent

    async def unmask(self, message: RoundUnmask) -> RoundReveal:
        """Leg 4, as leg 3."""
        self._touch()
        shares = await self._lane.submit(partial(self._reveal, message, by_peer(message.consents)))
        return RoundReveal(shares=sealed(shares))

    def _reveal(self, message: Leg, consents: Mapping[Any, bytes]) -> Mapping[Any, bytes]:
        signed = self._openings.find(message.round, message.attempt)
        if signed is None:
            return self._present(message).party.reveal(consents)  # leg 3 has not been: it says so
        return signed.opening.reveal(consents, self._memory)

    def _present(self, message: Leg) -> Attempt:
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

    async def close(self, *, over: bool) -> None:
        """End what trains, and forget the secrets of the present round; where the job is `over`, what is kept of it, too."""
        self._attempt = None
        self._drop_round()
        try:
            if over:
                await self._lane.submit(self._openings.forget)
        finally:
            await self._training.close()
            await self._lane.close()


def batch_secret(me: LocalIdentity) -> bytes:
    """32 bytes that only this node can make, the same each time: a signature that nobody else gets to see."""
    return hashlib.sha256(me.key.sign(framed("grid batches 1", me.id.encode()))).digest()
