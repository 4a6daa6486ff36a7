"""Fixed point in the ring of integers modulo 2**64: how real numbers enter a secure sum and come out of it.

A number x becomes round(x * 2**fraction_bits), kept in two's complement in an int64 tensor. Sums of such integers modulo
2**64 are exact as long as the true sum fits into 63 bits, and `encode` checks that before anything is shared: each of the
`parties` values may use a 1/parties part of the range, so no sum of them can wrap.

Error bound, which a test checks with the same numbers: the decoded sum of `parties` encoded tensors differs from the true
sum by at most parties * 2**-(fraction_bits + 1) per element, plus one rounding of the result to float64 (2**-53 relative,
half the last place) and one to the dtype that it is decoded to. Integers and booleans have no error at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grid.errors import ExecutionFailed, InvalidRequest

MAX_FRACTION_BITS = 48
"""More would leave less than 15 bits for the whole part."""

MAX_PARTIES = 1024

NOT_REPRESENTABLE = (
    "an element of the value does not fit into the sum: each must be finite and smaller in size than "
    "2**(63 - fraction_bits) / number of nodes; use fewer fraction bits or scale the value down"
)
"""One text for NaN, infinity and overflow, so that it does not tell which of them a private value holds."""

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def check_format(fraction_bits: int, parties: int) -> None:
    """Raise `InvalidRequest` for a scale or a number of parties outside what the ring can hold."""
    if not 0 <= fraction_bits <= MAX_FRACTION_BITS:
        raise InvalidRequest(f"fraction_bits is {fraction_bits}; it must be from 0 to {MAX_FRACTION_BITS}")
    if not 1 <= parties <= MAX_PARTIES:
        raise InvalidRequest(f"a sum has {parties} parties; it must have from 1 to {MAX_PARTIES}")


def encode(value: Tensor, fraction_bits: int, parties: int) -> Tensor:
    """`value` as ring elements: int64, same shape, contiguous, sharing no memory with `value`.

    Raises `InvalidRequest` for a dtype that is no real number, `ExecutionFailed` with the fixed text `NOT_REPRESENTABLE`
    where an element is NaN, infinite or too large.
    """
    check_format(fraction_bits, parties)
    if value.dtype in _FLOATS:
        return _encode_floats(value.detach(), fraction_bits, parties)
    if value.dtype in _INTEGERS:
        return _encode_integers(value.detach(), fraction_bits, parties)
    raise InvalidRequest(f"a secure sum takes real numbers, not {str(value.dtype).removeprefix('torch.')}")


def nearest(value: Tensor, fraction_bits: int, parties: int) -> Tensor:
    """Float64 or int64, of elements that `encode` takes: those that are too large become the largest ones, NaN becomes 0.

    Where an error would tell of elements that are nobody's to know.
    """
    if value.dtype in _FLOATS:
        limit = _float_limit(parties) / 2.0**fraction_bits
        return value.detach().to(torch.float64).nan_to_num_(0.0, limit, -limit).clamp_(-limit, limit)
    if value.dtype in _INTEGERS:
        bound = _integer_limit(fraction_bits, parties)
        return value.detach().to(torch.int64).clamp(-bound, bound)
    return value


def _float_limit(parties: int) -> float:
    # 2**63 / parties may round up in float64; one part in 2**50 less keeps parties * limit below 2**63 for certain.
    return 2.0**63 / parties * (1 - 2.0**-50)


def _integer_limit(fraction_bits: int, parties: int) -> int:
    return ((1 << 63) - 1) // parties >> fraction_bits


def _encode_floats(value: Tensor, fraction_bits: int, parties: int) -> Tensor:
    # Multiplying by a power of two is exact in float64, so rounding to an integer is the only error here.
    scaled = (value.to(torch.float64) * 2.0**fraction_bits).round_()
    limit = _float_limit(parties)
    if not bool((scaled.abs() <= limit).all()):  # written so that NaN fails it, too
        raise ExecutionFailed(NOT_REPRESENTABLE)
    return scaled.to(torch.int64).contiguous()


def _encode_integers(value: Tensor, fraction_bits: int, parties: int) -> Tensor:
    wide = value.to(torch.int64, copy=True).contiguous()
    limit = _integer_limit(fraction_bits, parties)
    if not bool(((wide <= limit) & (wide >= -limit)).all()):
        raise ExecutionFailed(NOT_REPRESENTABLE)
    return wide.mul_(1 << fraction_bits)


def decode(ring: Tensor, fraction_bits: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Ring elements back as numbers of `dtype`; an integer dtype rounds to the nearest, ties to even."""
    check_format(fraction_bits, 1)
    if ring.dtype != torch.int64:
        raise InvalidRequest(f"ring elements are int64, not {str(ring.dtype).removeprefix('torch.')}")
    if fraction_bits == 0 and not dtype.is_floating_point:
        return ring.to(dtype, copy=True)
    whole = ring.to(torch.float64) / 2.0**fraction_bits
    return whole.to(dtype) if dtype.is_floating_point else whole.round_().to(dtype)
