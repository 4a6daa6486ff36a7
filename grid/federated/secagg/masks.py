"""Masks: keystreams that are added to vectors mod 2**32 or 2**64, and the keys that they come from.

A pair's mask comes from the agreement of their two mask keys, a node's own from its secret seed; both are bound to the terms
of the round (job, number, attempt, model) and to the roster, so masks that were made for anything else do not cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from grid.crypto.envelope import framed
from grid.crypto.keys import AgreementKey
from grid.crypto.prg import SEED_BYTES, Keystream
from grid.ids import PeerId

Vector = npt.NDArray[Any]
"""Ring elements: little-endian uint32 or uint64, one dimension."""

BLOCK_BYTES = 1 << 17
"""A block of the vector and one of a keystream stay in a core's cache while all masks are added to it."""


def apply(vector: Vector, plus: Sequence[bytes], minus: Sequence[bytes] = ()) -> None:
    """Add the masks of the seeds in `plus` to a vector, and take off those in `minus`, in place.

    Each seed (32 bytes) masks one vector only, ever.
    """
    adding = [(Keystream(seed), np.add) for seed in plus] + [(Keystream(seed), np.subtract) for seed in minus]
    block = BLOCK_BYTES // vector.itemsize
    raw = memoryview(bytearray(BLOCK_BYTES))
    mask = np.frombuffer(raw, dtype=vector.dtype)
    for start in range(0, len(vector), block):
        part = vector[start : start + block]
        room, words = raw[: part.nbytes], mask[: len(part)]
        for stream, operation in adding:
            stream.read_into(room)
            operation(part, words, out=part)


def pair_seed(mine: AgreementKey, me: PeerId, theirs: bytes, them: PeerId, context: bytes) -> bytes:
    """The seed of the mask between two nodes: the same for both. `context` is the digest of terms and roster.

    `AuthenticationFailed` for a key of small order.
    """
    return derive(mine.agree(theirs), context, "grid mask of a pair 1", *sorted((me, them)))


def own_seed(secret: bytes, me: PeerId, context: bytes) -> bytes:
    """The seed of a node's own mask."""
    return derive(secret, context, "grid mask of one 1", me)


def sign_of(me: PeerId, them: PeerId) -> int:
    """Whether `me` adds (1) or takes off (-1) the mask of the pair."""
    return 1 if me < them else -1


def derive(secret: bytes, context: bytes, purpose: str, *names: str) -> bytes:
    """32 bytes that belong to a secret, a context (terms and roster), a purpose and an order of names."""
    info = framed(purpose, *(name.encode("utf-8") for name in names))
    return HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=context, info=info).derive(secret)
