"""Bits of tensors in words: element e of a plane is bit e mod 64 of the little-endian word e div 64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from grid.smpc.link import Words

WORD_BITS = 64


def padded(count: int) -> int:
    """The next multiple of 64."""
    return -(-count // WORD_BITS) * WORD_BITS


def pack(bits: npt.NDArray[Any]) -> Words:
    """Zeros and ones of shape (planes, count) as (planes, words), filled up with zeros."""
    planes, count = bits.shape
    packed = np.zeros((planes, padded(count) // 8), np.uint8)
    packed[:, : -(-count // 8)] = np.packbits(bits, axis=1, bitorder="little")
    return packed.view("<u8")


def unpack(words: Words, count: int) -> npt.NDArray[np.uint8]:
    """The first `count` bits of each plane, of shape (planes, count)."""
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, count=count, bitorder="little")
