"""Correlated randomness: keystreams that two parties, or all three, make without a message.

Key j of a session is known to the two parties that hold component j; each of them can draw the same words of (operation,
purpose) under it, and the third cannot tell them from uniform ones. A draw is the AES-128-GCM encryption of zeros with the
nonce (operation, purpose), its tag thrown away: AES in counter mode on the fast path of OpenSSL. Its place is given by the
operation's number alone, never by the order of use, since operations run at the same time.

One (key, operation, purpose) hides one value only; `Reuse` looks for a second one in tests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import struct
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from grid.smpc.link import Words

Buffer = bytes | bytearray | memoryview

KEY_BYTES = 16
CONTRIBUTION_BYTES = 32

OWN, NEXT, ALL = 0, 1, 2
"""The keys of one party, by place: that of its own component i, that of component i + 1, and that of all three parties."""

_TAG_WORDS = 2
_NONCE = struct.Struct("<QI")
_zeros = memoryview(bytes(1 << 20))


class Randomness(Protocol):
    """What protocols draw from. Tests that enumerate all randomness pass their own."""

    def draw(self, key: int, operation: int, purpose: int, count: int) -> Words:
        """`count` words under one of this party's keys, in memory that the caller may write."""


class Keystreams:
    """The keys of one party in one session."""

    def __init__(self, own: bytes, following: bytes, common: bytes) -> None:
        if any(len(key) != KEY_BYTES for key in (own, following, common)):
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self._ciphers = tuple(AESGCM(key) for key in (own, following, common))

    def draw(self, key: int, operation: int, purpose: int, count: int) -> Words:
        words = np.empty(count + _TAG_WORDS, np.uint64)
        self._ciphers[key].encrypt_into(_NONCE.pack(operation, purpose), _zero_bytes(8 * count), None, words.data.cast("B"))
        return words[:count]


class Seen(NamedTuple):
    """What a party was dealt of the inputs behind a computation: digests of components, at the places of the keys of the same
    number. Both holders of a component have seen the same, unless its dealer told them different things."""

    own: bytes = b""
    following: bytes = b""

    @classmethod
    def dealt(cls, first: Buffer, second: Buffer) -> Seen:
        """Of one input, by the bytes that came for its components."""
        return cls(hashlib.sha256(first).digest(), hashlib.sha256(second).digest())

    @classmethod
    def together(cls, parts: Iterable[Seen]) -> Seen:
        """Of several values, in order."""
        own, following = hashlib.sha256(), hashlib.sha256()
        for part in parts:
            own.update(part.own)
            following.update(part.following)
        return cls(own.digest(), following.digest())

    def told(self, transcript: bytes) -> Seen:
        """Of a value that goes on to another program, with all that its party was told to do until then."""
        return Seen(*(hashlib.sha256(transcript + part).digest() for part in self))


NOTHING = Seen()


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """What a party has agreed on with the others; never used itself: every program has keystreams of its own."""

    own: bytes
    following: bytes
    common: bytes

    def of_program(self, digest: bytes, seen: Seen = NOTHING) -> Keystreams:
        """The keystreams for what `digest` stands for. Parties that were told to do different things, or were dealt shares that
        do not fit together, draw unrelated words: nothing that one of them hides can be compared with what another hides."""
        programs = ((self.own, digest + seen.own), (self.following, digest + seen.following), (self.common, digest))
        return Keystreams(
            *(hmac.digest(key, hashlib.sha256(program).digest(), "sha256")[:KEY_BYTES] for key, program in programs)
        )

    def of_pair(self, place: int, purpose: bytes) -> bytes:
        """32 bytes that the two holders of the key at `place` (OWN, NEXT) have and nobody else, for their link. What is hashed is
        longer than any program's digest, so it is no key of a program."""
        text = b"grid: the link of two parties in a committee: " + purpose
        return hmac.digest((self.own, self.following)[place], text, "sha256")


class Reuse:
    """Randomness that raises where one keystream is drawn twice, which would show the difference of two secrets."""

    def __init__(self, inner: Randomness) -> None:
        self._inner = inner
        self._drawn: set[tuple[int, int, int]] = set()

    def draw(self, key: int, operation: int, purpose: int, count: int) -> Words:
        place = (key, operation, purpose)
        if place in self._drawn:
            raise AssertionError(f"keystream {place} (key, operation, purpose) is drawn a second time")
        self._drawn.add(place)
        return self._inner.draw(key, operation, purpose, count)


def derive_key(contributions: list[bytes], *, session: bytes, program: bytes, place: int) -> bytes:
    """The key of one place (0 to 2: a component's; 3: that of all) from what each of its holders has contributed, in the
    order of their ranks. One honest contribution suffices."""
    if not contributions or any(len(one) != CONTRIBUTION_BYTES for one in contributions):
        raise ValueError(f"each contribution has {CONTRIBUTION_BYTES} bytes")
    info = b"grid replicated key" + bytes([place]) + struct.pack("<I", len(session)) + session + program
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(b"".join(contributions))


def _zero_bytes(count: int) -> memoryview:
    global _zeros
    if count > len(_zeros):
        _zeros = memoryview(bytes(count))  # pages of zeros that nobody writes cost no memory
    return _zeros[:count]
