"""Typed ids. They are plain strings and integers on the wire; the types keep one from being passed for another."""

from __future__ import annotations

import secrets
from typing import NewType

PeerId = NewType("PeerId", str)
"""base32(SHA-256(Ed25519 public key))[:26], lower case: a node's, client's or gateway's identity."""

GridId = NewType("GridId", str)
"""The id of the grid's root key; in `--dev`, the gateway's own id."""

ObjectId = NewType("ObjectId", int)
"""A value at a node, 1 to 2**63 - 1, chosen by the client and meaningful only within that client's session."""

OFFERED = 1 << 62
"""From here on, ids of shares in a committee are random names of offers; a client counts its own from 1."""

RequestId = NewType("RequestId", int)
"""A request within one session; odd from the side that opened it, even from the other."""

LinkId = NewType("LinkId", int)
"""A relayed link on one connection to the gateway; odd from the peer, even from the gateway."""

PlanId = NewType("PlanId", str)
"""SHA-256 of a plan's canonical encoding, in hex."""

SumId = NewType("SumId", str)
"""One secure sum: 128 random bits in hex, chosen by the client, used once."""

CommitteeId = NewType("CommitteeId", str)
"""Three nodes that compute on shares together: 128 random bits in hex, chosen by the client that opens it, used once."""

JobId = NewType("JobId", str)
"""A federated job: 128 random bits in hex, chosen by the client that starts it, used once."""

TransferId = NewType("TransferId", str)
"""One move of a value from node to node: 128 random bits in hex, chosen by the client, used once."""


def random_id() -> str:
    """128 bits from the cryptographic generator, in hex."""
    return secrets.token_hex(16)
