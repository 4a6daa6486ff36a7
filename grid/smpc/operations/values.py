"""A secret tensor as torch sees it: with a dtype.

A floating-point dtype stands for fixed point with FRACTION_BITS, integers and booleans for integers without any; so the dtype
says which scale a value has. What comparisons give stays bits until somebody computes with it: choices and masks take bits.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from grid.errors import InvalidRequest, OpNotSupported
from grid.smpc.functions import comparisons
from grid.smpc.functions.extremes import Winners
from grid.smpc.link import Words
from grid.smpc.numbers import Boolean, Number
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.shares import Bits, Shared

Secret = Number | Boolean

_ABSENT = "where a max-pool has its values from is not computed on shares: compare the windows, or use argmax"


def fraction_bits(dtype: torch.dtype) -> int:
    """The scale that a dtype stands for. `InvalidRequest` for one that is no real number."""
    if dtype.is_complex:
        raise InvalidRequest(f"{dtype} values cannot be shared")
    return FRACTION_BITS if dtype.is_floating_point else 0


def _nbytes(held: Shared | Bits | Secret) -> int:
    shares = held.raw if isinstance(held, Number) else held.bits if isinstance(held, Boolean) else held
    return sum(part.nbytes for part in shares.parts)


def _kept(part: Words) -> Words:
    """A component that keeps no more memory alive than its own: what a party holds is counted."""
    root = part
    while isinstance(root.base, np.ndarray):
        root = root.base
    return part.copy() if root.nbytes > 2 * part.nbytes else part


@dataclasses.dataclass(frozen=True, slots=True)
class Absent:
    """In place of a result that is not computed on shares: the positions that a max-pool picks, which its gradient finds anew."""

    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A secret tensor at one party: ring elements of the dtype's scale, or, of truth values, bits.

    `extra` are fraction bits beyond those of the dtype: of squares that are summed up, and of their roots, which optimizers
    divide by. An operation that does not take them gets the value without them, and so does whoever it is opened to.

    `beside` is what making it has found that its gradient needs, too: of a relu where it is above 0, of a log-softmax the
    softmax, of the positions in a max-pool who won.
    """

    content: Shared | Boolean | Absent
    dtype: torch.dtype
    extra: int = 0
    beside: Boolean | Number | Winners | None = None

    @classmethod
    def of(cls, secret: Secret, dtype: torch.dtype) -> Value:
        """A result of a function, with the scale of its dtype or more fraction bits."""
        if isinstance(secret, Boolean):
            assert dtype == torch.bool
            return cls(secret, dtype)
        bits = fraction_bits(dtype)
        made = secret.with_fraction(max(bits, secret.fraction if bits else 0))
        return cls(made.raw.each(_kept), dtype, made.fraction - bits)

    @property
    def bits(self) -> int:
        """Its fraction bits."""
        return fraction_bits(self.dtype) + self.extra

    @property
    def shape(self) -> tuple[int, ...]:
        return self.content.shape

    @property
    def is_numeric(self) -> bool:
        """Whether it is as `numeric` gives it."""
        return not isinstance(self.content, Boolean) and not self.extra

    @property
    def secret(self) -> Secret:
        """As functions take it."""
        return self.content if isinstance(self.content, Boolean) else Number(self.shared, self.bits)

    @property
    def shared(self) -> Shared:
        """The ring elements. Truth values have them once they are `numeric`. Raises `OpNotSupported` for what is absent."""
        if isinstance(self.content, Absent):
            raise OpNotSupported(_ABSENT)
        assert isinstance(self.content, Shared), "truth values are bits until `numeric` makes numbers of them"
        return self.content

    @property
    def nbytes(self) -> int:
        """Of this party's components."""
        own = 0 if isinstance(self.content, Absent) else _nbytes(self.content)
        if isinstance(self.beside, Winners):
            return own + sum(_nbytes(level.planes) for level in self.beside.levels)
        return own + (0 if self.beside is None else _nbytes(self.beside))

    async def numeric(self, protocol: Protocol) -> Value:
        """The same value as ring elements of the dtype's scale: truth values become 0 and 1. 2 rounds for bits and for a value
        with extra bits, 0 for others."""
        if self.extra:
            return Value(await protocol.truncate(self.shared, self.extra), self.dtype)
        if not isinstance(self.content, Boolean):
            return Value(self.shared, self.dtype)
        return Value((await comparisons.number(protocol, self.content)).raw, self.dtype)
