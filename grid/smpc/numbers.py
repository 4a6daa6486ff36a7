"""Secret tensors of numbers and of truth values, and how plain tensors become ring elements and come back.

A real number x stands as round(x * 2**fraction), in two's complement; integers and booleans have the fraction 0. Values are
kept below 2**61 in the ring, so that differences of two of them keep their sign: 2**43 at 18 fraction bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grid.errors import ExecutionFailed, InvalidRequest
from grid.smpc.link import Words
from grid.smpc.packing import pack, unpack
from grid.smpc.protocol import FRACTION_BITS
from grid.smpc.shares import Bits, Shared

VALUE_BITS = 61
"""Ring elements that stand for values are below 2**61 in size."""

NOT_REPRESENTABLE = (
    "an element of the value does not fit into secure computation: each must be finite and smaller in size than "
    f"2**({VALUE_BITS} - fraction bits), which is 2**{VALUE_BITS - FRACTION_BITS} at the usual {FRACTION_BITS} fraction bits"
)
"""One text for NaN, infinity and overflow, so that it does not tell which of them a private value holds."""

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@dataclass(frozen=True, slots=True)
class Number:
    """A secret tensor: the ring elements `raw` stand for raw / 2**fraction."""

    raw: Shared
    fraction: int = FRACTION_BITS

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    def each(self, rearrange: Callable[[Words], Words]) -> Number:
        """The same rearrangement of elements, or sum over axes, of every component. No message."""
        return Number(self.raw.each(rearrange), self.fraction)

    def with_fraction(self, fraction: int) -> Number:
        """The same value with at least as many fraction bits. No message; fewer bits would be a truncation."""
        if fraction == self.fraction:
            return self
        if fraction < self.fraction:
            raise InvalidRequest(
                f"a value with {self.fraction} fraction bits is used where {fraction} are; share it with {fraction} or fewer"
            )
        if fraction == self.fraction:
            return self
        return Number(self.raw.times(1 << (fraction - self.fraction)), fraction)


@dataclass(frozen=True, slots=True)
class Boolean:
    """A secret tensor of truth values: one plane of bits, and its shape. `functions.comparisons.number` makes 0 and 1 of it."""

    bits: Bits
    shape: tuple[int, ...]

    def each(self, rearrange: Callable[[Any], Any]) -> Boolean:
        """The same rearrangement of elements (index, reshape, transpose, broadcast) of every component. No message."""
        count = int(np.prod(self.shape, dtype=np.int64))
        moved = [rearrange(unpack(part, count)[0].reshape(self.shape)) for part in self.bits.parts]
        return Boolean(Bits(*(pack(part.reshape(1, -1)) for part in moved)), moved[0].shape)


def default_fraction(dtype: torch.dtype) -> int:
    """Fraction bits of a tensor of this dtype. Raises `InvalidRequest` for one that is no real number."""
    if dtype in _INTEGERS:
        return 0
    if dtype.is_floating_point:
        return FRACTION_BITS
    raise InvalidRequest(f"secure computation takes real numbers, not {str(dtype).removeprefix('torch.')}")


def encode(value: Tensor, fraction: int | None = None) -> Words:
    """A tensor of floats, integers or booleans as ring elements of its shape, rounded to the nearest; error 2**-(fraction+1).

    Raises `InvalidRequest` for a dtype that is no real number or a negative or too large fraction, `ExecutionFailed` with the
    fixed text `NOT_REPRESENTABLE` where an element is NaN, infinite or too large.
    """
    fraction = default_fraction(value.dtype) if fraction is None else fraction
    default_fraction(value.dtype)
    if not 0 <= fraction < VALUE_BITS:
        raise InvalidRequest(f"a value has from 0 to {VALUE_BITS - 1} fraction bits, not {fraction}")
    limit = 1 << VALUE_BITS
    if value.dtype.is_floating_point:
        scaled = torch.ldexp(value.detach().to(torch.float64), torch.tensor(fraction)).round_()
        if not bool((scaled.abs() < float(limit)).all()):  # written so that NaN fails it, too
            raise ExecutionFailed(NOT_REPRESENTABLE)
        whole = scaled.to(torch.int64)
    else:
        whole = value.detach().to(torch.int64, copy=True)
        largest = (limit - 1) >> fraction
        if not bool(((whole <= largest) & (whole >= -largest)).all()):
            raise ExecutionFailed(NOT_REPRESENTABLE)
        whole <<= fraction
    return np.asarray(whole.contiguous().numpy()).view(np.uint64)


def decode(words: Words, fraction: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ring elements as a tensor of numbers; an integer dtype rounds to the nearest, ties to even."""
    signed = torch.from_numpy(np.asarray(np.ascontiguousarray(words)).view(np.int64).reshape(words.shape))
    if fraction == 0 and not dtype.is_floating_point:
        return signed.to(dtype, copy=True)
    value = torch.ldexp(signed.to(torch.float64), torch.tensor(-fraction))
    return value.to(dtype) if dtype.is_floating_point else value.round_().to(dtype)


def public(value: npt.ArrayLike, fraction: int) -> Words:
    """Constants of our own, as ring elements of a shape."""
    return np.asarray(np.rint(np.asarray(value, np.float64) * 2.0**fraction).astype(np.int64)).view(np.uint64)
