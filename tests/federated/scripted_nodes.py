"""Nodes that follow a script, with the real secure aggregation: what the coordinator's tests talk to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity, Trust
from grid.errors import NotFound
from grid.federated.secagg.party import Party
from grid.federated.secagg.statements import Terms
from grid.federated.spec import JobSpec, Stop, model_digest, read_job
from grid.ids import JobId, PeerId, PlanId, random_id
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.wire.jobs import (
    BeginRound,
    EndJob,
    MaskedInput,
    OfferJob,
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
    StartJob,
)
from grid.wire.messages import Message, Ok, TensorFrame

CLOCK = SystemClock()
TRAIN, EVALUATE = b"the train plan", b"the evaluate plan"


def frame_of(vector: Any) -> TensorFrame:
    kind = {"f": "f", "u": "i", "i": "i"}[vector.dtype.kind] + str(vector.itemsize)
    return TensorFrame(dtype=kind, shape=vector.shape, data=vector.tobytes())


class ClaimedNames:
    def __init__(self) -> None:
        self.names: set[str] = set()

    def claim(self, *names: str) -> bool:
        fresh = self.names.isdisjoint(names)
        if fresh:
            self.names.update(names)
        return fresh

    def claimed(self, name: str) -> bool:
        return name in self.names


class ScriptedNode:
    """Trains as `update` says: (weights, round) -> update. `before` is called with each request, and may raise or die."""

    def __init__(self, name: str, update: Callable[[Any, int], Any], examples: int) -> None:
        self.me = LocalIdentity.create(name=name, role="node", clock=CLOCK)
        self.update, self.examples = update, examples
        self.before: Callable[[ScriptedNode, Message], None] = lambda node, message: None
        self.memory = ClaimedNames()
        self.jobs: dict[JobId, tuple[JobSpec, bytes]] = {}
        self.ended: list[str] = []
        self.asked: list[tuple[str, int, int]] = []
        self.parties: dict[tuple[JobId, int, int], Party] = {}
        self.weights: dict[tuple[JobId, int], Any] = {}
        self.begun: dict[tuple[JobId, int, int], BeginRound] = {}
        self.peer: Peer | None = None
        self.here = True

    @property
    def id(self) -> PeerId:
        return self.me.id

    def forget(self) -> None:
        """As a process that was killed: only what is on disk is left."""
        self.parties.clear()
        self.weights.clear()
        self.begun.clear()

    def lose(self) -> None:
        """The connection is gone."""
        if self.peer is not None:
            self.peer.close_soon()

    def heard(self, message: Any) -> None:
        self.asked.append((message.tag, getattr(message, "round", 0), getattr(message, "attempt", 0)))
        self.before(self, message)

    def offer(self, message: OfferJob) -> Ok:
        self.heard(message)
        card = Trust.dev().verify_card(message.card, wall=CLOCK.wall())
        self.jobs[message.job] = read_job(message.envelope, card, CLOCK.wall()), message.envelope
        return Ok()

    def begin(self, message: BeginRound) -> RoundKeys | SingleUpdate:
        self.heard(message)
        if message.job not in self.jobs:
            raise NotFound("no such job")
        if message.weights is not None:
            self.weights[message.job, message.round] = np.frombuffer(message.weights.data, f"<{message.weights.dtype}")
        if (message.job, message.round) not in self.weights:
            raise NotFound("no weights")
        key = (message.job, message.round, message.attempt)
        weights = self.weights[key[:2]]
        self.begun[key] = message
        if not message.terms:
            update = None if message.evaluate_only else self._update(weights, message.index)
            sums = tuple(self._sums(weights).tolist())
            return SingleUpdate(examples=self.examples, metrics=sums, update=None if update is None else frame_of(update))
        if key not in self.parties:
            terms = Terms.decode(message.terms)
            assert terms.model == model_digest(self.jobs[message.job][1], weights.tobytes())
            self.parties[key] = Party(
                me=self.me,
                card=self.me.card,
                terms=terms,
                minimum=3,
                verify=lambda card: Trust.dev().verify_card(card, wall=CLOCK.wall()),
                memory=self.memory,
            )
        return RoundKeys(envelope=self.parties[key].keys())

    def _update(self, weights: Any, index: int) -> Any:
        return self.update(weights, index).astype(weights.dtype)

    def _sums(self, weights: Any) -> Any:
        """The loss is the mean square of the weights."""
        loss = float(np.mean(np.square(weights.astype("f8"))))
        return np.array([loss * self.examples, self.examples])

    def party(self, message: Any) -> Party:
        self.heard(message)
        key = (message.job, message.round, message.attempt)
        if key not in self.parties:
            raise NotFound("no such attempt")
        return self.parties[key]

    def share(self, message: RoundRoster) -> SealedShares:
        found = self.party(message).share(message.keys)
        return SealedShares(shares=tuple(Sealed(peer=peer, data=data) for peer, data in found.items()))

    def mask(self, message: RoundShares) -> MaskedInput:
        party = self.party(message)
        begun, weights = self.begun[message.job, message.round, message.attempt], self.weights[message.job, message.round]
        quantiser = party.terms.quantiser
        update = np.zeros(0, "f4") if begun.evaluate_only else self._update(weights, begun.index)
        weight = 1 if self.jobs[message.job][0].weighting == "equal" else self.examples
        vector = quantiser.encode(update, weight, self._sums(weights))
        quantiser.check_fit(update, weight, vector)
        return MaskedInput(vector=frame_of(party.masked({one.peer: one.data for one in message.shares}, vector)))

    def consent(self, message: RoundSurvivors) -> RoundConsent:
        return RoundConsent(signature=self.party(message).consent(message.survivors))

    def reveal(self, message: RoundUnmask) -> RoundReveal:
        found = self.party(message).reveal({one.peer: one.data for one in message.consents})
        return RoundReveal(shares=tuple(Sealed(peer=peer, data=data) for peer, data in found.items()))

    def end(self, message: EndJob) -> None:
        self.ended.append(message.text)


NODE_HANDLERS = Handlers(
    {
        OfferJob: ScriptedNode.offer,
        BeginRound: ScriptedNode.begin,
        RoundRoster: ScriptedNode.share,
        RoundShares: ScriptedNode.mask,
        RoundSurvivors: ScriptedNode.consent,
        RoundUnmask: ScriptedNode.reveal,
        EndJob: ScriptedNode.end,
    }
)


def spec_of(client: LocalIdentity, nodes: Sequence[PeerId], **changes: Any) -> JobSpec:
    now = CLOCK.wall()
    given: dict[str, Any] = {
        "job": JobId(random_id()),
        "name": "a job",
        "client": client.id,
        "train": PlanId(hashlib.sha256(TRAIN).hexdigest()),
        "evaluate": PlanId(hashlib.sha256(EVALUATE).hexdigest()),
        "datasets": tuple((node, "rows") for node in nodes),
        "rounds": 2,
        "local": {},
        "strategy": {"kind": "fedavg", "lr": 1.0},
        "min_nodes": min(3, len(nodes)),
        "deadline_s": 20.0,
        "stop": Stop(),
        "created": now,
        "expires": now + 3600,
    }
    return JobSpec(**{**given, **changes})


def start_message(client: LocalIdentity, spec: JobSpec, weights: Any) -> StartJob:
    return StartJob(
        envelope=spec.sign(client),
        card=client.card,
        train=TRAIN,
        evaluate=EVALUATE,
        weights=frame_of(weights),
    )


def constant(value: float) -> Callable[[Any, int], Any]:
    """Each round moves the weights by this."""
    return lambda weights, number: np.full_like(weights, value)


def some_nodes(count: int) -> list[ScriptedNode]:
    """Node i has i + 1 examples and moves by i."""
    return [ScriptedNode(f"node-{index}", constant(float(index)), index + 1) for index in range(count)]


def mean_step(nodes: Sequence[ScriptedNode]) -> float:
    """What FedAvg of `some_nodes` adds in each round."""
    total = sum(node.examples for node in nodes)
    return sum(node.examples * (node.examples - 1) for node in nodes) / total
