"""How two parties of a committee are connected: by a socket of their own where one node reaches the other, else relayed.

Once the node of the higher rank agrees, it says so (`CommitteeReady`) with the address at which it listens; the one of the lower
rank dials that, shows a token that only these two can know, and says how it went (`CommitteeLink`). Token, answer and the keys of
the link come from the key that exactly these two parties have in common. Where no socket is to be had, each node pumps bytes
between its party and the session with the other (`transport.relay`); what passes is sealed by the parties either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from grid.clock import Clock
from grid.errors import AuthenticationFailed, GridError, WireError
from grid.ids import CommitteeId
from grid.node.party_messages import LinkKeys
from grid.rpc.channel import time_limit
from grid.smpc.agreement import PARTIES
from grid.smpc.keystreams import NEXT, OWN, Keys
from grid.transport.base import Transport
from grid.transport.raw import call, pick_up
from grid.transport.relay import Relay
from grid.wire.address import parse_address
from grid.wire.messages import CommitteeBytes, CommitteeLink, CommitteeReady, Message

log = logging.getLogger(__name__)

PARTY_PATH = "/party"
"""Where a node listens for connections that become those of parties."""

DIRECT_S = 3.0
"""Time to reach a party directly before everything goes over the session of the nodes."""

Linking = CommitteeReady | CommitteeLink | CommitteeBytes
"""What nodes say about the links of their parties, and over them."""

DialParty = Callable[[str], Awaitable[Transport]]
"""Opens a transport to `PARTY_PATH` at an address that another node named; raises `NodeUnavailable`."""


class Doors:
    """The connections of other nodes' parties that this node expects, each by its token and once."""

    def __init__(self) -> None:
        self._expected: dict[bytes, tuple[bytes, asyncio.Future[Any]]] = {}

    @contextlib.contextmanager
    def expected(self, token: bytes, answer: bytes) -> Iterator[asyncio.Future[Any]]:
        """Expect a connection inside the block; the future gets its socket, which is the caller's."""
        came: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._expected[token] = (answer, came)
        try:
            yield came
        finally:
            self._expected.pop(token, None)

    async def serve(self, transport: Transport) -> None:
        """A connection that came to `PARTY_PATH`. Raises `AuthenticationFailed` for one that nobody expects."""
        shown = bytes(await transport.receive())
        found = None
        for token in self._expected:
            if hmac.compare_digest(token, shown):
                found = token
        if found is None:
            raise AuthenticationFailed("no party of this node expects this connection")
        answer, came = self._expected.pop(found)
        raw = await pick_up(transport, answer)
        if came.done():
            raw.close()
        else:
            came.set_result(raw)


class PartyLink:
    """The connection of this node's party to that of one peer, while it is made and, if it is relayed, as long as it lasts.

    `send` brings a message to the peer's node.
    """

    def __init__(
        self, committee: CommitteeId, ranks: tuple[int, int], keys: Keys, *, clock: Clock, send: Callable[[Message], None]
    ) -> None:
        self._committee, (self._mine, self.rank) = committee, ranks
        self._keys = keys
        self._clock = clock
        self._send = send
        self._relay: Relay | None = None
        loop = asyncio.get_running_loop()
        self._address: asyncio.Future[str] = loop.create_future()
        self._way: asyncio.Future[bool] = loop.create_future()

    def _secret(self, purpose: bytes) -> bytes:
        return self._keys.of_pair(NEXT if self.rank == (self._mine + 1) % PARTIES else OWN, purpose)

    def keys(self) -> LinkKeys:
        """A key for each direction."""
        sending, receiving = (self._secret(b"key of what is sent by " + bytes([rank])) for rank in (self._mine, self.rank))
        return LinkKeys(rank=self.rank, sending=sending, receiving=receiving)

    # ------------------------------------------------------------ what the peer's node says

    def received(self, message: Linking) -> None:
        """Raises `WireError` for what is not due."""
        if isinstance(message, CommitteeBytes):
            if self._relay is None:
                raise WireError("bytes for a party that is not connected that way")
            self._relay.received(message.data, message.taken, message.over)
            return
        is_ready = isinstance(message, CommitteeReady)
        if is_ready != (self._mine < self.rank) or (self._address if is_ready else self._way).done():
            raise WireError("a word on the connection of two parties that is not due")
        if isinstance(message, CommitteeReady):
            self._address.set_result(message.address)
        else:
            if not message.direct:  # here, as the next message may bring bytes
                self._relay = Relay(self._say)
            self._way.set_result(message.direct)

    def _say(self, data: bytes, taken: int, over: bool) -> None:
        self._send(CommitteeBytes(committee=self._committee, data=data, taken=taken, over=over))

    # ------------------------------------------------------------ both sides

    async def dial(self, dial: DialParty | None) -> Any:
        """The side of the lower rank: the socket for its party."""
        address = await self._address
        if address and dial is not None:
            try:
                parse_address(address)  # what is no address must not steer our dial
                async with time_limit(self._clock, DIRECT_S, "reaching a party directly"):
                    async with await dial(address) as transport:
                        raw = await call(transport, self._secret(b"token"), self._secret(b"answer"))
                self._send(CommitteeLink(committee=self._committee, direct=True))
                return raw
            except GridError as error:
                log.info("the parties of committee %s are not connected directly: %s", self._committee, error)
        self._relay = Relay(self._say)
        self._send(CommitteeLink(committee=self._committee, direct=False))
        return self._relay.end

    async def expect(self, doors: Doors, address: str) -> Any:
        """The side of the higher rank: the socket for its party."""
        with doors.expected(self._secret(b"token"), self._secret(b"answer")) as came:
            self._send(CommitteeReady(committee=self._committee, address=address))
            try:
                direct = await self._way
            except BaseException:
                _close(came)
                raise
        if direct and not came.done():
            raise WireError("a node says that it is connected, and is not")
        if not direct:
            _close(came)
        if direct:
            return came.result()
        assert self._relay is not None
        return self._relay.end

    def close(self, *, handed_over: bool) -> None:
        """No more bytes pass. The party's end of the relay is the party's own once it was handed over."""
        if self._relay is not None:
            self._relay.close()
            if not handed_over:
                self._relay.end.close()
        for future in (self._address, self._way):
            future.cancel()


class PartyLinks:
    """The links of one party to both others. `ranks`: this party's first; `send` brings a message to the node of a rank."""

    def __init__(
        self,
        committee: CommitteeId,
        ranks: tuple[int, int, int],
        keys: Keys,
        *,
        clock: Clock,
        send: Callable[[int, Message], None],
    ) -> None:
        self._rank, *others = ranks
        self._links = {
            rank: PartyLink(committee, (self._rank, rank), keys, clock=clock, send=partial(send, rank)) for rank in others
        }
        self._handed_over = False
        self.missing = list(self._links)
        """The ranks of parties that are not connected yet."""

    def received(self, rank: int, message: Linking) -> None:
        """What the node of a rank says. Raises `WireError` for what is not due."""
        self._links[rank].received(message)

    def keys(self) -> tuple[LinkKeys, ...]:
        return tuple(link.keys() for link in self._links.values())

    async def connect(self, doors: Doors, dial: DialParty | None, address: str) -> dict[int, Any]:
        """Connected sockets to both, by rank, which are the caller's. Raises `GridError`, and has closed all then."""
        works = {rank: asyncio.create_task(self._connected(link, doors, dial, address)) for rank, link in self._links.items()}
        try:
            await asyncio.gather(*works.values())
        except BaseException:
            for work in works.values():
                work.cancel()
            await asyncio.wait(works.values())
            for work in works.values():
                if not work.cancelled() and work.exception() is None:
                    work.result().close()
            raise
        self._handed_over = True
        return {rank: work.result() for rank, work in works.items()}

    async def _connected(self, link: PartyLink, doors: Doors, dial: DialParty | None, address: str) -> Any:
        raw = await (link.dial(dial) if self._rank < link.rank else link.expect(doors, address))
        self.missing.remove(link.rank)
        return raw

    def close(self) -> None:
        """No more bytes pass through this node."""
        for link in self._links.values():
            link.close(handed_over=self._handed_over)


def _close(came: asyncio.Future[Any]) -> None:
    """Nobody wants the socket, if it came or comes."""
    if came.done() and not came.cancelled():
        came.result().close()
    came.cancel()
