"""How a peer and a gateway show each other who they are: the statements that `Join` and `Welcome` sign.

A peer signs the gateway's greeting, its own nonce and its card, so the signature is of use at that gateway, that once. The
gateway signs the peer's nonce back. This gives a peer no reason to trust the gateway with anything but presence and
transport: between peers only the channel counts.
"""

from __future__ import annotations

import struct

from grid.crypto.cards import GATEWAY, Card
from grid.crypto.envelope import framed
from grid.crypto.keys import check_signature, id_of
from grid.crypto.trust import NONCE_BYTES, Trust
from grid.errors import AuthenticationFailed
from grid.ids import PeerId
from grid.wire.messages import Greeting, Join, Welcome


def _greeted(greeting: Greeting) -> bytes:
    wall = struct.pack(">d", greeting.wall)
    return framed("greeting", greeting.grid.encode(), bytes([greeting.dev]), greeting.gateway_key, greeting.nonce, wall)


def join_statement(greeting: Greeting, nonce: bytes, card: bytes) -> bytes:
    """What a peer signs in `Join`: this gateway, its nonce and ours (32 bytes), and the card that we show."""
    return framed("grid join 1", _greeted(greeting), nonce, card)


def welcome_statement(greeting: Greeting, nonce: bytes, peer_id: PeerId) -> bytes:
    """What a gateway signs in `Welcome`: its greeting, the peer's nonce, and whom it took the peer for."""
    return framed("grid welcome 1", _greeted(greeting), nonce, peer_id.encode())


def verify_join(trust: Trust, greeting: Greeting, join: Join, wall: float) -> Card:
    """The card of the peer that sent `join` in answer to `greeting`; AuthenticationFailed or ClockSkew if it is not that peer."""
    if len(join.nonce) != NONCE_BYTES:
        raise AuthenticationFailed(f"the nonce of a join has {NONCE_BYTES} bytes, not {len(join.nonce)}")
    card = trust.verify_card(join.card, wall=wall)
    if card.role == GATEWAY:
        raise AuthenticationFailed(f"{card} is a gateway; nodes and clients join")
    check_signature(card.key, join.signature, join_statement(greeting, join.nonce, join.card), f"join of {card}")
    return card


def verify_welcome(trust: Trust, greeting: Greeting, nonce: bytes, peer_id: PeerId, welcome: Welcome) -> None:
    """Check the answer to our `Join` (our `nonce`, our id) and take over its revocation list."""
    if welcome.peer != peer_id:
        raise AuthenticationFailed(f"the gateway took us for {welcome.peer[:64]!r}")
    what = f"welcome of the gateway {id_of(greeting.gateway_key)}"
    check_signature(greeting.gateway_key, welcome.signature, welcome_statement(greeting, nonce, peer_id), what)
    trust.merge_revocations(welcome.revocations)
