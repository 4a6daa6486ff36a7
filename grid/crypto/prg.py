"""Secret randomness in bulk: a 32-byte seed expanded with AES-256.

The stream of (seed, stream number) is the AES-256-GCM encryption of zeros under the seed, with the stream number as the
96-bit nonce and the tag thrown away; that is AES in counter mode, on the faster path of OpenSSL. Equal arguments give equal
bytes on every machine, so two holders of a seed agree; without the seed the bytes cannot be told from random ones.

One (seed, stream) must hide one value only: two values masked by it would show their difference.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from grid.crypto.keys import fresh_seed

SEED_BYTES = 32

MAX_STREAM_BYTES = 1 << 36
"""What one nonce of AES-GCM may cover, less two blocks; rounded down."""

_ZEROS = memoryview(bytes(1 << 18))

Ring = npt.NDArray[np.int64]
"""Numbers mod 2**64, as int64."""


def keystream(seed: bytes, count: int, *, stream: int = 0) -> bytearray:
    """The first `count` bytes of stream number `stream` (0 to 2**96 - 1) of `seed`, which has 32 bytes."""
    out = bytearray(count)
    _fill(memoryview(out), seed, stream)
    return out


def ring_elements(seed: bytes, count: int, *, stream: int = 0) -> Ring:
    """`count` numbers, uniform mod 2**64: the keystream read as little-endian int64."""
    out: Ring = np.empty(count, dtype="<i8")
    if count:
        _fill(out.data.cast("B"), seed, stream)
    return out.astype(np.int64, copy=False)


def random_ring(count: int) -> Ring:
    """`count` fresh numbers, uniform mod 2**64, that nobody can make again."""
    return ring_elements(fresh_seed(), count)


class Keystream:
    """A stream that is read piece by piece: together the pieces are `keystream`."""

    __slots__ = ("_encryptor", "_left")

    def __init__(self, seed: bytes, *, stream: int = 0) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        self._encryptor = Cipher(algorithms.AES(seed), modes.GCM(stream.to_bytes(12, "big"))).encryptor()
        self._left = MAX_STREAM_BYTES - 32

    def read_into(self, out: memoryview) -> None:
        """Overwrite `out`, a view of bytes, with what comes next. ValueError where the stream is at its end."""
        self._left -= len(out)
        if self._left < 0:
            raise ValueError(f"one stream gives at most {MAX_STREAM_BYTES - 32} bytes; use another stream number for more")
        for start in range(0, len(out), len(_ZEROS)):
            block = out[start : start + len(_ZEROS)]
            self._encryptor.update_into(_ZEROS[: len(block)], block)


def _fill(out: memoryview, seed: bytes, stream: int) -> None:
    Keystream(seed, stream=stream).read_into(out)
