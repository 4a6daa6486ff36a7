"""Opening a result of a committee, at one of its parties: no component leaves before every owner behind the result permits it.

Owners are the nodes whose rows are behind the result, in the committee or not, this one perhaps among them. Each is asked over
its own session, and what it signed is checked against this party's own record of the result. Then the component goes to
the client, or to the node that the client names.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from grid.clock import Clock
from grid.crypto.cards import TOLERANCE_S
from grid.crypto.identity import LocalIdentity
from grid.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    GridError,
    InvalidRequest,
    NodeUnavailable,
    QuotaExceeded,
    ReleaseDenied,
    WireError,
)
from grid.ids import PeerId, TransferId
from grid.node.copies import Copies
from grid.node.neighbours import Neighbours
from grid.node.party_messages import CLIENT, Owner, ShareOffer
from grid.node.permits import PERMIT_S, Permits, verify
from grid.node.transfers import Transfers
from grid.policy.rules import OPEN
from grid.rpc.channel import time_limit
from grid.wire.messages import (
    AskPermit,
    DeliverShare,
    GetShare,
    Message,
    Ok,
    Opening,
    OwnerRule,
    Permit,
    RowsBehind,
    ShareValue,
)

MAX_PER_CLIENT = 64
"""Results of one client that wait for permits at once."""


class Openings:
    """See the module. `names` is what nodes are called."""

    def __init__(
        self,
        *,
        me: LocalIdentity,
        clock: Clock,
        neighbours: Neighbours,
        permits: Permits,
        transfers: Transfers,
        copies: Copies,
        names: Mapping[PeerId, str],
    ) -> None:
        self._me, self._clock, self._neighbours = me, clock, neighbours
        self._permits, self._transfers, self._copies, self._names = permits, transfers, copies, names
        self._nonces: dict[bytes, float] = {}
        self._open: Counter[PeerId] = Counter()

    async def open(
        self, client: PeerId, message: GetShare, offer: ShareOffer, deadline_s: float, check: Callable[[], object]
    ) -> Message:
        """The reply to a client that asks for a result. `check` raises once the committee is over."""
        transfer = message.transfer or TransferId("")
        if (message.recipient is None) != (not transfer):
            raise InvalidRequest("a result opens to the client, or to a node that expects it under the name of a transfer")
        opening = Opening(
            committee=message.committee,
            client=client,
            number=message.number,
            object=message.object,
            recipient=client if message.recipient is None else message.recipient,
            plan=offer.made[0] if len(offer.made) == 1 else "",
            dtype=offer.dtype,
            shape=offer.shape,
            given=offer.given,
            call=offer.call,
        )
        with self.counted(client, memoryview(offer.words).nbytes):
            await self._permitted(opening, offer.owners, deadline_s)
            check()
            if message.recipient is None:
                return ShareValue(words=offer.words, digest=offer.digest)
            share = DeliverShare(
                transfer=transfer,
                opening=opening,
                behind=tuple(RowsBehind(node=node, dataset=name) for node, name in _datasets(offer.owners)),
                words=offer.words,
                digest=offer.digest,
            )
            await self._deliver(message.recipient, share, deadline_s)
            return Ok()

    @contextlib.contextmanager
    def counted(self, client: PeerId, nbytes: int) -> Iterator[None]:
        """For so long, one more component of this client's is on its way out. Raises `QuotaExceeded`."""
        if self._open[client] >= MAX_PER_CLIENT:
            raise QuotaExceeded(f"{MAX_PER_CLIENT} results of this client are being opened here; wait for some first")
        self._open[client] += 1
        try:
            with self._copies.counted(client, nbytes):
                yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    async def _deliver(self, recipient: PeerId, share: DeliverShare, deadline_s: float) -> None:
        if recipient == self._me.id:
            await self._transfers.deliver_share(recipient, share, self._names)
            return
        session = await self._neighbours.session(recipient)
        await session.live.request(share, timeout_s=deadline_s)

    # ------------------------------------------------------------ permits

    async def _permitted(self, opening: Opening, owners: Sequence[Owner], deadline_s: float) -> None:
        """Raise unless every owner permits it."""
        for one in owners:
            if one.node.startswith(CLIENT):
                _check_offered(opening, one)
        asks = [self._permit(node, AskPermit(opening=opening, rules=rules), deadline_s) for node, rules in _rules(owners).items()]
        errors: list[GridError] = []
        for answer in await asyncio.gather(*asks, return_exceptions=True):
            if isinstance(answer, GridError):
                errors.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
        if errors:
            raise min(errors, key=lambda error: not isinstance(error, ReleaseDenied))

    async def _permit(self, owner: PeerId, message: AskPermit, deadline_s: float) -> None:
        name = self._names.get(owner, owner)
        try:
            async with time_limit(self._clock, deadline_s, "the permit of an owner"):
                if owner == self._me.id:
                    permit: Message = await self._permits.ask(owner, message)
                    key = self._me.public_key
                else:
                    session = await self._neighbours.session(owner)
                    name, key = session.card.name, session.card.key
                    permit = await session.live.request(message, timeout_s=deadline_s)
        except (NodeUnavailable, DeadlineExceeded) as error:
            raise ReleaseDenied(
                f"node {name}, whose rows are behind the result, gave no permit for it: {error.message}", rule="permit", node=name
            ) from None
        except GridError as error:
            raise type(error)(f"node {name}: {error.message}", **{**error.details, "node": name}) from None
        if not isinstance(permit, Permit):
            raise WireError(f"node {name} answered with {type(permit).__name__} where its permit was due")
        self._check(name, key, permit, message)

    def _check(self, name: str, key: bytes, permit: Permit, message: AskPermit) -> None:
        wall = self._clock.wall()
        try:
            nonce = verify(permit.envelope, key, message, wall)
        except AuthenticationFailed as error:
            raise ReleaseDenied(f"node {name} gave no permit that holds: {error.message}", rule="permit", node=name) from None
        while self._nonces and next(iter(self._nonces.values())) < wall:
            del self._nonces[next(iter(self._nonces))]
        if nonce in self._nonces:
            raise ReleaseDenied(f"node {name} gave a permit that was used before", rule="permit", node=name)
        self._nonces[nonce] = wall + PERMIT_S + 2 * TOLERANCE_S


def _rules(owners: Sequence[Owner]) -> dict[PeerId, tuple[OwnerRule, ...]]:
    """By owner, what it said of its values: in the same order at all parties."""
    nodes = [one for one in owners if not one.node.startswith(CLIENT)]
    ordered = sorted(nodes, key=lambda one: (one.node, *dataclasses.astuple(one.rule)))
    found: dict[PeerId, tuple[OwnerRule, ...]] = {}
    for one in ordered:
        found[one.node] = (*found.get(one.node, ()), one.rule)
    return found


def _datasets(owners: Sequence[Owner]) -> Sequence[tuple[PeerId, str]]:
    return sorted({(one.node, one.rule.dataset) for one in owners if not one.node.startswith(CLIENT)})


def _check_offered(opening: Opening, owner: Owner) -> None:
    """What a client said when it offered its value to this one: alike at all parties, so that nobody need be asked."""
    client, rule = owner.node.removeprefix(CLIENT), owner.rule
    if opening.recipient == client or rule.release == OPEN or opening.plan in rule.allow:
        return
    raise ReleaseDenied(
        f"the result depends on a value that client {client} has offered for some plans alone, and it is no direct result of one"
        " of them on values as they were shared",
        rule="offer",
        client=client,
        instead="run a plan that the other client has named in its offer, on what it offered",
    )
