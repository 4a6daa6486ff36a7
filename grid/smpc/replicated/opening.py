"""Secrets in, and results out.

Whoever misses a component gets it from one holder and its SHA-256 from the other, so that one corrupt party cannot change what
is opened without being noticed.
"""

from __future__ import annotations

import hashlib

import numpy as np

from grid.errors import WireError
from grid.smpc.link import Words
from grid.smpc.party import PARTIES, Operations, Party
from grid.smpc.shares import Bits, Shared

INPUT, REFRESH_0, REFRESH_1 = 24, 25, 26
"""Purposes of keystreams."""

VALUE_STEP, DIGEST_STEP = 0, 1
DIGEST_WORDS = 4


async def share_input(party: Party, operations: Operations, owner: int, shape: tuple[int, ...], value: Words | None) -> Shared:
    """A sharing of the owner's value, which the others do not pass: (F(k_i), the rest, F(k_all)) from its place on.

    All three know the last component. It is no 0, since truncations round by it. 1 round, 1 element, sent by the owner.
    """
    operation = operations.take()
    size = int(np.prod(shape, dtype=np.int64))
    common = party.draw_common(operation, INPUT, size)
    place = (party.rank - owner) % PARTIES
    if place == 0:
        assert value is not None
        first = party.randomness.draw(0, operation, INPUT, size)
        second = (value.reshape(-1) - first - common) & party.ring.mask
        party.send(party.following, operation, VALUE_STEP, second)
        mine = Shared(first, second)
    elif place == 1:
        mine = Shared(await party.receive(owner, operation, VALUE_STEP, size), common)
    else:
        mine = Shared(common, party.randomness.draw(1, operation, INPUT, size))
    return mine.reshape(shape)


async def open_to_all(party: Party, operations: Operations, x: Shared) -> Words:
    """The value, at all three parties. 1 round, 3 elements and 3 digests in all. Raises `WireError` where a digest differs."""
    operation = operations.take()
    first, second = (party.ring.reduced(part) for part in x.flat().parts)
    _send_component(party, operation, party.following, first)
    _send_digest(party, operation, party.preceding, second)
    missing = await _receive_missing(party, operation, first.size)
    return ((first + second + missing) & party.ring.mask).reshape(x.shape)


async def open_to_one(party: Party, operations: Operations, x: Shared, to: int) -> Words | None:
    """The value at party `to`; None at the others. 1 round, 1 element and 1 digest in all."""
    operation = operations.take()
    first, second = (party.ring.reduced(part) for part in x.flat().parts)
    if party.rank == to:
        missing = await _receive_missing(party, operation, first.size)
        return ((first + second + missing) & party.ring.mask).reshape(x.shape)
    if party.following == to:
        _send_component(party, operation, to, first)
    else:
        _send_digest(party, operation, to, second)
    return None


async def open_bits(party: Party, operations: Operations, x: Bits) -> Words:
    """The bits, packed as they are, at all three parties. 1 round."""
    operation = operations.take()
    first, second = (np.ascontiguousarray(part).reshape(-1) for part in x.parts)
    _send_component(party, operation, party.following, first)
    _send_digest(party, operation, party.preceding, second)
    missing = await _receive_missing(party, operation, first.size)
    return (first ^ second ^ missing).reshape(x.parts[0].shape)


def refreshed(party: Party, operations: Operations, x: Shared) -> Shared:
    """The same value in fresh components, for somebody outside who gets all three: those of a computation may have structure.

    No message: q0 and q1 from the key of all three, and q2 = -q0 - q1.
    """
    operation = operations.take()
    q0 = party.draw_common(operation, REFRESH_0, x.size).reshape(x.shape)
    q1 = party.draw_common(operation, REFRESH_1, x.size).reshape(x.shape)
    q = (q0, q1, -(q0 + q1))
    first, second = x.parts
    mask = party.ring.mask
    return Shared((first + q[party.rank]) & mask, (second + q[party.following]) & mask)


def digest(words: Words) -> bytes:
    """What vouches for a component."""
    return hashlib.sha256(np.ascontiguousarray(words).data).digest()


def put_together(components: list[Words], digests: list[bytes], ring_mask: np.uint64) -> Words:
    """What an outsider makes of three components, each from one holder, and the digests from the others. Raises `WireError`."""
    for number, (component, expected) in enumerate(zip(components, digests, strict=True)):
        if digest(component) != expected:
            raise WireError(f"the two parties that hold component {number} of a result do not agree on it")
    first, second, third = components
    return (first + second + third) & ring_mask


def _send_component(party: Party, operation: int, to: int, words: Words) -> None:
    party.send(to, operation, VALUE_STEP, np.ascontiguousarray(words))


def _send_digest(party: Party, operation: int, to: int, words: Words) -> None:
    party.send(to, operation, DIGEST_STEP, np.frombuffer(digest(words), np.uint64))


async def _receive_missing(party: Party, operation: int, count: int) -> Words:
    missing = await party.receive(party.preceding, operation, VALUE_STEP, count)
    expected = await party.receive(party.following, operation, DIGEST_STEP, DIGEST_WORDS)
    if digest(missing) != expected.tobytes():
        raise WireError(f"parties {party.preceding} and {party.following} do not agree on a component of an opened value")
    return missing
