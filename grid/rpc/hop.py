"""A connection to the gateway, from the peer's side: dial, check the gateway's greeting, join, relay links.

Nothing is sent before the greeting has been found to be of a grid that we may talk to. The session's end is seen by
`wait_closed` of the peer; whoever wants to come back opens a new one (`reconnect`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable
from ssl import SSLContext

from grid.clock import Clock
from grid.crypto.identity import LocalIdentity, Trust, id_of, join_statement, verify_welcome
from grid.errors import AuthenticationFailed, GridError, LocalProtocolError, WireError
from grid.ids import GridId, PeerId
from grid.logs import session_of
from grid.rpc.dispatch import Handlers
from grid.rpc.links import Links, OnOffer
from grid.rpc.peer import Peer
from grid.settings import SessionLimits
from grid.transport.base import Dial
from grid.transport.websocket import dial_websocket
from grid.wire.jobs import CallIn
from grid.wire.messages import Greeting, Hello, Join, Revocations, Welcome

NONCE_BYTES = 32
SOCKET_PATH = "/grid"


def dial_gateway(url: str, ssl: SSLContext | None = None) -> Dial:
    """Opens connections to the gateway at `ws://HOST:PORT` or `wss://HOST:PORT`."""
    return lambda: dial_websocket(url.rstrip("/").removesuffix(SOCKET_PATH) + SOCKET_PATH, ssl=ssl)


async def greeting_of(dial: Dial, clock: Clock, limits: SessionLimits) -> Greeting:
    """What a gateway says of its grid; nothing is sent to it. Raises `NodeUnavailable`, `WireError`, `AuthenticationFailed`."""
    peer = Peer(
        await dial(),
        initiator=True,
        handlers=Handlers({}),
        context=None,
        limits=limits,
        clock=clock,
        name="gateway",
        check_greeting=_only_look,
    )
    try:
        async with peer:
            raise LocalProtocolError("a session went on past the greeting, which was all that was wanted")
    except _Seen as seen:
        return seen.greeting


class _Seen(GridError):
    """Ends a session whose greeting is all that was wanted."""

    def __init__(self, greeting: Greeting) -> None:
        super().__init__("the greeting was all that was wanted")
        self.greeting = greeting


def _only_look(hello: Hello) -> None:
    raise _Seen(_greeting(hello))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Hop:
    """A joined connection: `peer` for requests to the gateway, `links` to others through it, the id and kind of the grid.

    `gateway` is the id of the gateway's key.
    """

    peer: Peer
    links: Links
    grid: GridId
    dev: bool
    gateway: PeerId


@contextlib.asynccontextmanager
async def join_gateway(
    dial: Dial,
    *,
    me: LocalIdentity,
    trust: Trust,
    clock: Clock,
    limits: SessionLimits,
    on_offer: OnOffer | None = None,
    on_call: Callable[[], None] | None = None,
) -> AsyncIterator[Hop]:
    """Join the grid behind `dial` for as long as the context lasts. `on_call`: the gateway has a job for this node.

    Raises `NodeUnavailable`, `AuthenticationFailed`, `ClockSkew`, `DeadlineExceeded`.
    """

    def check(hello: Hello) -> None:
        greeting = _greeting(hello)
        trust.check_greeting(greeting, clock.wall())
        peer.tag(session=session_of(greeting.nonce))

    def revoked(context: object, message: Revocations) -> None:
        trust.merge_revocations(message.envelope)

    def called(context: object, message: CallIn) -> None:
        if on_call is not None:
            on_call()

    transport = await dial()
    links = Links(on_offer=on_offer)
    table = Handlers({**links.handlers(), Revocations: revoked, CallIn: called})
    peer = Peer(
        transport, initiator=True, handlers=table, context=None, limits=limits, clock=clock, name="gateway", check_greeting=check
    )
    async with peer, links.over(peer):
        greeting = _greeting(peer.hello)
        nonce = secrets.token_bytes(NONCE_BYTES)
        card = me.card_for(clock)
        join = Join(card=card, nonce=nonce, signature=me.sign(join_statement(greeting, nonce, card)))
        welcome = await peer.request(join, timeout_s=limits.handshake_s)
        if not isinstance(welcome, Welcome):
            raise WireError(f"the gateway answered a Join with {welcome.tag!r}")
        verify_welcome(trust, greeting, nonce, me.id, welcome)
        yield Hop(peer, links, GridId(greeting.grid), greeting.dev, id_of(greeting.gateway_key))


def _greeting(hello: Hello) -> Greeting:
    if hello.greeting is None:
        raise AuthenticationFailed("this is not a gateway: it did not say which grid it serves")
    return hello.greeting
