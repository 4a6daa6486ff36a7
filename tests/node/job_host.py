"""A coordinator of a test's own: nodes come to it, and the test asks them what it likes."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from grid.client.training import Order, Wish, order
from grid.clock import SystemClock
from grid.crypto.cards import Card
from grid.federated.secagg.graph import degree_and_threshold
from grid.federated.secagg.quantiser import Aggregate, choose
from grid.federated.secagg.server import Server
from grid.federated.secagg.statements import Terms
from grid.federated.spec import model_digest
from grid.ids import PeerId
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.testing import LocalGrid
from grid.wire.jobs import (
    BeginRound,
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
)
from grid.wire.messages import Message, TensorFrame

NAMES = ("alice", "bob", "carol")
ROWS = 40


def rows_of(seed: int, **policy: Any) -> dict[str, Any]:
    """A dataset of four features and two classes."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(ROWS, 4, generator=generator)
    targets = (features.sum(1) > 0).long()
    return {"features": features, "targets": targets, "tags": ["#rows"], **({"policy": policy} if policy else {})}


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(4, 2)


class Visitor:
    """One node's session here."""

    def __init__(self, host: Host, card: Card) -> None:
        self.handlers = Handlers({})
        self._host, self._card = host, card

    def came(self, peer: Peer) -> None:
        self._host.peers[self._card.name] = peer
        self._host.changed.set()

    def went(self) -> None:
        self._host.peers.pop(self._card.name, None)
        self._host.changed.set()


class Host:
    """Takes the place of a `LocalGrid`'s coordinator."""

    def __init__(self, local: LocalGrid) -> None:
        self.local = local
        self.peers: dict[str, Peer] = {}
        self.changed = asyncio.Event()
        local.gateway._job_door._host = self

    def receive(self, card: Card) -> Visitor:
        return Visitor(self, card)

    async def call(self, *names: str) -> None:
        """Call nodes, and return once they have come."""
        for name in names:
            jobs = self.local.node(name)._jobs
            assert jobs is not None
            jobs.called()
        await self.until(lambda: set(names) <= set(self.peers))

    async def until(self, true: Any) -> None:
        """Return once something is true of who is here."""
        while not true():
            self.changed.clear()
            await self.changed.wait()

    async def ask(self, name: str, message: Message) -> Any:
        return await self.peers[name].request(message, timeout_s=30.0)


async def made_order(local: LocalGrid, /, **options: Any) -> Order:
    """A job as `g.train` would ask for it."""
    client = await local.client()
    wish = Wish(model=model(), loss=nn.functional.cross_entropy, datasets=await client.search("#rows"), **options)
    return order(wish, me=client.me, clock=SystemClock(), dev=True)


def offer(made: Order) -> OfferJob:
    message = made.message
    return OfferJob(
        job=made.spec.job, envelope=message.envelope, card=message.card, train=message.train, evaluate=message.evaluate
    )


@dataclasses.dataclass
class Round:
    """A round that a test drives leg by leg."""

    host: Host
    made: Order
    number: int = 1
    attempt: int = 1
    names: tuple[str, ...] = NAMES
    weights: npt.NDArray[Any] | None = None
    evaluate_only: bool = False
    index: int = 0
    """As `number` unless it is said."""

    def __post_init__(self) -> None:
        self.index = 0 if self.evaluate_only else self.index or self.number
        frame = self.made.message.weights
        if self.weights is not None:
            frame = TensorFrame(dtype=frame.dtype, shape=frame.shape, data=self.weights.tobytes())
        self.frame = frame
        cohort = len(self.names)
        size = 0 if self.evaluate_only else frame.shape[0]
        quantiser = choose(size, cohort, 1000, metrics=len(self.made.spec.sums))
        degree, threshold = degree_and_threshold(cohort)
        self.terms = Terms(
            job=self.made.spec.job,
            round=self.number,
            attempt=self.attempt,
            index=self.index,
            model=model_digest(self.made.message.envelope, frame.data),
            size=quantiser.length,
            bits=quantiser.bits,
            degree=degree,
            threshold=threshold,
            quantiser=quantiser,
        )
        self.server = Server(self.terms)
        self.ids = {name: self.host.local.node(name).id for name in self.names}

    @property
    def _at(self) -> dict[str, Any]:
        return {"job": self.made.spec.job, "round": self.number, "attempt": self.attempt}

    def beginning(self, *, with_weights: bool = True, **changes: Any) -> BeginRound:
        message = BeginRound(
            **self._at,
            index=self.index,
            terms=self.terms.encode(),
            deadline_s=30.0,
            weights=self.frame if with_weights else None,
        )
        return dataclasses.replace(message, **changes)

    async def begin(self, *, with_weights: bool = True) -> None:
        for name in self.names:
            keys: RoundKeys = await self.host.ask(name, self.beginning(with_weights=with_weights))
            self.server.add_keys(self.ids[name], keys.envelope)

    def roster(self) -> RoundRoster:
        return RoundRoster(**self._at, keys=self.server.roster())

    async def share(self) -> None:
        for name in self.names:
            answer: SealedShares = await self.host.ask(name, self.roster())
            self.server.add_shares(self.ids[name], {one.peer: one.data for one in answer.shares})

    def shares(self, name: str) -> RoundShares:
        return RoundShares(**self._at, shares=sealed(self.server.shares_for(self.ids[name])))

    async def collect(self) -> dict[str, MaskedInput]:
        answers = {name: await self.host.ask(name, self.shares(name)) for name in self.names}
        for name, answer in answers.items():
            self.server.add_input(self.ids[name], numbers(answer.vector))
        return answers

    def survivors(self) -> RoundSurvivors:
        return RoundSurvivors(**self._at, survivors=self.server.survivors())

    def unmasking(self) -> RoundUnmask:
        return RoundUnmask(**self._at, consents=sealed(self.server.consents()))

    async def open(self) -> Aggregate:
        for name in self.names:
            consent: RoundConsent = await self.host.ask(name, self.survivors())
            self.server.add_consent(self.ids[name], consent.signature)
        for name in self.names:
            answer: RoundReveal = await self.host.ask(name, self.unmasking())
            self.server.add_reveal(self.ids[name], {one.peer: one.data for one in answer.shares})
        return self.terms.quantiser.decode(self.server.result())

    async def all(self) -> Aggregate:
        await self.begin()
        await self.share()
        await self.collect()
        return await self.open()


def sealed(shares: Any) -> tuple[Sealed, ...]:
    return tuple(Sealed(peer=PeerId(peer), data=data) for peer, data in shares.items())


def numbers(frame: TensorFrame) -> npt.NDArray[Any]:
    return np.frombuffer(frame.data, f"<u{frame.dtype[1:]}")
