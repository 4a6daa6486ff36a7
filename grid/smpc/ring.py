"""Additive sharing modulo 2**64.

A value is split into one part for each party; all parts but one are uniformly random, and the last one is what makes their
sum come out right. Any set of parts that lacks one of them is uniformly random and independent of the value, so it says
nothing about it. Arithmetic is on numpy's uint64, whose overflow is defined to wrap, which is the ring's addition.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import numpy
import torch
from torch import Tensor

Elements = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.uint64]]
"""Ring elements, of any shape."""

RandomBytes = Callable[[int], bytes]
"""A cryptographic generator: that many fresh bytes. Tests that enumerate all randomness pass their own."""


def from_tensor(value: Tensor) -> Elements:
    """An int64 tensor as ring elements, copied."""
    if value.dtype != torch.int64:
        raise TypeError(f"ring elements come from int64, not {value.dtype}")
    return value.detach().contiguous().numpy().view(numpy.uint64).copy()


def to_tensor(elements: Elements) -> Tensor:
    """Ring elements as an int64 tensor; over the same memory where that is dense."""
    dense = elements if elements.flags.c_contiguous else elements.copy()
    return torch.from_numpy(dense.view(numpy.int64))


def split(value: Elements, parties: int, random_bytes: RandomBytes = os.urandom) -> list[Elements]:
    """`parties` arrays whose sum is `value`; any `parties - 1` of them are uniformly random.

    The first one is what is left after the random ones are taken off; callers keep it for themselves.
    """
    if parties < 1:
        raise ValueError("a value is split among at least one party")
    masks = [_random(value.shape, random_bytes) for _ in range(parties - 1)]
    rest = value.copy()
    for mask in masks:
        numpy.subtract(rest, mask, out=rest)
    return [rest, *masks]


def _random(shape: Sequence[int], random_bytes: RandomBytes) -> Elements:
    count = 1
    for size in shape:
        count *= size
    fresh = bytearray(random_bytes(8 * count))  # memory that may be written, as tensors over it demand
    return numpy.frombuffer(fresh, dtype="<u8").astype(numpy.uint64, copy=False).reshape(tuple(shape))


def total(parts: Iterable[Elements], shape: Sequence[int]) -> Elements:
    """The sum of all parts, each of the given shape."""
    result = numpy.zeros(tuple(shape), dtype=numpy.uint64)
    for part in parts:
        numpy.add(result, part, out=result)
    return result
