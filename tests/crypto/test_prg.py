"""Keystreams and ring elements."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from grid.crypto.prg import SEED_BYTES, Keystream, keystream, random_ring, ring_elements

SEED = bytes(range(SEED_BYTES))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 4096, (1 << 18) - 1, 1 << 18, (1 << 18) + 5, 700_001])
@pytest.mark.parametrize("stream", [0, 1, 2**96 - 1])
def test_a_keystream_is_the_encryption_of_zeros(count: int, stream: int) -> None:
    expected = AESGCM(SEED).encrypt(stream.to_bytes(12, "big"), bytes(count), None)[:count]
    assert keystream(SEED, count, stream=stream) == expected


def test_a_keystream_in_pieces_is_the_whole() -> None:
    stream, out = Keystream(b"s" * 32, stream=5), bytearray(700_001)
    view, at = memoryview(out), 0
    for piece in (0, 1, 15, 16, 17, 300_000, 399_952):
        stream.read_into(view[at : at + piece])
        at += piece
    assert at == len(out) and out == keystream(b"s" * 32, len(out), stream=5)


def test_ring_elements_are_the_keystream() -> None:
    elements = ring_elements(SEED, 1000, stream=3)
    assert elements.dtype == np.int64
    assert elements.astype("<i8").tobytes() == bytes(keystream(SEED, 8000, stream=3))
    assert ring_elements(SEED, 0).shape == (0,)


def test_seeds_and_streams_differ() -> None:
    other = bytes([1]) + SEED[1:]
    streams = [keystream(SEED, 64), keystream(SEED, 64, stream=1), keystream(other, 64)]
    assert len({bytes(one) for one in streams}) == 3


def test_fresh_elements_never_repeat_and_fill_the_ring() -> None:
    first, second = random_ring(100_000), random_ring(100_000)
    assert not np.array_equal(first, second)
    bits = np.unpackbits(first.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    # 100,000 fair coins: 0.01 from one half is more than six standard deviations.
    assert np.all(np.abs(bits - 0.5) < 0.01)


def test_a_seed_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        keystream(b"short", 10)
    with pytest.raises(OverflowError):
        keystream(SEED, 10, stream=-1)
