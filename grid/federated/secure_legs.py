"""The legs of one attempt under masks: what the gateway asks in each of them, and what it makes of the answers.

Whom to ask and how long to wait is `secure_round`'s, the arithmetic is `secagg.server`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from grid.crypto.envelope import unpack
from grid.errors import WireError
from grid.federated.progress import REVEALS, SUM
from grid.federated.rounds import Plan, Summed, vector_of
from grid.federated.secagg.server import Server
from grid.ids import PeerId
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
)
from grid.wire.messages import Message, TensorFrame

BEGIN, SHARE, COLLECT, AGREE, OPEN = range(5)

Reveals = dict[PeerId, dict[PeerId, bytes]]
"""By holder, its shares by owner."""


class Legs:
    """Of the attempt whose sum `server` makes."""

    def __init__(self, plan: Plan, server: Server) -> None:
        self.server = server
        self.reveals: Reveals = {}
        self._plan = plan
        self._at: Any = {"job": plan.job, "round": plan.number, "attempt": server.terms.attempt}

    @classmethod
    def resume(cls, plan: Plan, kept: Mapping[str, bytes]) -> Legs:
        """What another process has kept: the sum, and shares that open it if they had come.

        Raises `WireError` or `AuthenticationFailed` for anything else.
        """
        one = cls(plan, Server.from_bytes(kept[SUM]))
        for peer, shares in _unpacked(kept.get(REVEALS, b"")).items():
            one.server.add_reveal(peer, shares)
            one.reveals[peer] = shares
        return one

    # ------------------------------------------------------------ questions

    def begin(self, weights: TensorFrame | None, deadline_s: float) -> BeginRound:
        """Leg 0, for a node that has the weights if there are none."""
        return BeginRound(
            **self._at,
            index=self._plan.index,
            terms=self.server.terms.encode(),
            deadline_s=deadline_s,
            weights=weights,
        )

    def question(self, leg: int, peer: PeerId) -> Message:
        """What a node is asked in a later leg."""
        server, at = self.server, self._at
        if leg == SHARE:
            return RoundRoster(**at, keys=server.roster())
        if leg == COLLECT:
            return RoundShares(**at, shares=_sealed(server.shares_for(peer)))
        if leg == AGREE:
            return RoundSurvivors(**at, survivors=server.survivors())
        return RoundUnmask(**at, consents=_sealed(server.consents()))

    # ------------------------------------------------------------ answers

    def take(self, leg: int, peer: PeerId, message: Message) -> Callable[[], None] | None:
        """Put an answer in; of an input, what does so and is for a thread. Raises as the server does, for one that is wrong."""
        server = self.server
        if leg == BEGIN and isinstance(message, RoundKeys):
            server.add_keys(peer, message.envelope)
        elif leg == SHARE and isinstance(message, SealedShares):
            server.add_shares(peer, {one.peer: one.data for one in message.shares})
        elif leg == COLLECT and isinstance(message, MaskedInput):
            vector = vector_of(message.vector)
            return lambda: server.add_input(peer, vector)
        elif leg == AGREE and isinstance(message, RoundConsent):
            server.add_consent(peer, message.signature)
        elif leg == OPEN and isinstance(message, RoundReveal):
            shares = {one.peer: one.data for one in message.shares}
            server.add_reveal(peer, shares)
            self.reveals[peer] = shares
        else:
            raise WireError(f"{message.tag!r} is no answer to what node {self._plan.name(peer)} was asked")
        return None

    def packed_reveals(self) -> bytes:
        """For the store."""
        reveals = {str(peer): {str(owner): share for owner, share in shares.items()} for peer, shares in self.reveals.items()}
        packed: bytes = msgpack.packb(reveals)
        return packed

    def summed(self) -> Summed:
        """The sum without its masks. For a thread. Raises as `Server.result`, and `WireError` for a sum that makes no sense."""
        quantiser = self.server.terms.quantiser
        aggregate = quantiser.decode(self.server.result())
        most = quantiser.largest_weight * len(self.server.survivors())
        if not (0 <= aggregate.weight <= most and aggregate.clipped >= 0):
            raise WireError("the sum is none of what nodes may put in: one of them does not follow the protocol")
        return Summed(
            aggregate.mean_update,
            aggregate.weight,
            aggregate.clipped,
            aggregate.metric_sums,
            aggregate.next_range() if quantiser.size else None,
            self.server.blamed,
        )


def _sealed(data: Mapping[PeerId, bytes]) -> tuple[Sealed, ...]:
    return tuple(Sealed(peer=peer, data=one) for peer, one in data.items())


def _unpacked(data: bytes) -> Reveals:
    if not data:
        return {}
    found = unpack(data, "the shares of a kept sum", error=WireError)
    if not isinstance(found, dict) or not all(isinstance(shares, dict) for shares in found.values()):
        raise WireError("the shares of a kept sum have a wrong form")
    return {PeerId(peer): {PeerId(owner): share for owner, share in shares.items()} for peer, shares in found.items()}
