"""Results of a dtype narrower than the ring: integers of 8 to 32 bits wrap, and sums of truth values are truths, as in torch.

Ring elements have 64 bits, as int64 has, whose overflow is the ring's own. What adds and multiplies narrower ones is cut off
after it, in 10 rounds; what only picks among its elements needs nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from grid.errors import OpNotSupported
from grid.smpc.functions import comparisons
from grid.smpc.link import Words
from grid.smpc.numbers import Number
from grid.smpc.operations.arguments import Arguments, as_number
from grid.smpc.operations.values import Value
from grid.smpc.operations.views import FORMS as VIEWS
from grid.smpc.protocol import Protocol
from grid.smpc.shares import Shared

NARROW = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32))

_ADDS = frozenset(("scatter_add", "index_add", "index_put", "cumsum", "trace"))
_PICKS = frozenset(name.split(".")[0] for name in VIEWS if not name.startswith(("upsample", "reflection", "replication"))) - _ADDS
_KEEPS = _PICKS | frozenset(
    [
        *("clone", "detach", "alias", "lift_fresh", "clamp", "clamp_min", "clamp_max", "hardtanh", "minimum", "maximum", "fmin"),
        *("fmax", "sign", "sgn", "floor", "ceil", "trunc", "relu", "where", "masked_fill", "scatter", "isnan", "isinf"),
        *("isposinf", "isneginf", "max", "min", "amax", "amin", "aminmax", "sort", "topk", "kthvalue", "median", "embedding"),
        *("max_pool2d_with_indices", "upsample_nearest2d", "reflection_pad2d", "replication_pad2d"),
    ]
)
"""Operations whose results are within their dtype where their arguments are."""

_NUMBERS = ("self", "other", "value", "fill_value", "min", "max")


def check(arguments: Arguments) -> None:
    """Raises `OpNotSupported` for what has another result on shares than in torch."""
    op, dtype = arguments.op, arguments.dtype
    source = arguments.dtype_of("self") if "self" in op.index else dtype
    if dtype == torch.bool:
        if op.base in ("scatter_add", "index_add") or (op.base == "index_put" and arguments["accumulate"]):
            raise OpNotSupported(f"{op.name} adds truth values: make numbers of them first, x.long()", op=op.name)
        if op.base in ("sum", "prod") and source != torch.bool:
            raise OpNotSupported(f"{op.name} to truth values: use (x != 0).any() or (x != 0).all()", op=op.name)
    held = source if dtype == torch.bool else dtype
    if held in NARROW and (op.base in _KEEPS or dtype == torch.bool):
        info = torch.iinfo(held)
        for name in _NUMBERS:
            value = arguments.get(name)
            if isinstance(value, int) and not info.min <= value <= info.max:
                raise OpNotSupported(
                    f"{op.name}: {value} does not fit into {str(held).removeprefix('torch.')}: make x.long() of it first",
                    op=op.name,
                )


def exceeds(arguments: Arguments, dtype: torch.dtype) -> bool:
    """Whether a result of this dtype may be beyond it."""
    base = arguments.op.base
    if dtype == torch.bool:
        fills = [arguments.get(name) for name in ("value", "fill_value")]
        return base not in _KEEPS | {"mul", "index_put"} or any(
            isinstance(one, int | float) and one not in (0, 1) for one in fills
        )
    if dtype not in NARROW or base in _KEEPS or (base == "index_put" and not arguments["accumulate"]):
        return False
    return base != "_to_copy" or not _within(arguments.dtype_of("self"), dtype)


def _within(source: Any, target: torch.dtype) -> bool:
    if source == torch.bool:
        return True
    if source.is_floating_point:
        return False
    narrow, wide = torch.iinfo(source), torch.iinfo(target)
    return wide.min <= narrow.min and narrow.max <= wide.max


async def within(protocol: Protocol, value: Value) -> Value:
    """A result as its dtype has it. 10 rounds for an integer, 6 for a truth value."""
    if value.dtype == torch.bool:
        return Value(await comparisons.not_equal(protocol, Number(value.shared, 0), as_number(protocol, 0)), torch.bool)
    info = torch.iinfo(value.dtype)
    return Value(await wrapped(protocol, value.shared, info.bits, signed=info.min < 0), value.dtype)


async def wrapped(protocol: Protocol, x: Shared, width: int, *, signed: bool) -> Shared:
    """The lowest `width` bits of x as a number, for every x. Exact. 10 rounds.

    They are shifted to the top of the ring. Without the uppermost of them, and less 2**62, they are in the domain of a
    truncation, which is exact for multiples; so it brings them back.
    """
    up, half = x.times(1 << (64 - width)), 1 << (width - 2)
    top = await protocol.number(await protocol.negative(up), x.shape)
    centred = (up + top.times(1 << 63)) - protocol.constant(_all(x, 1 << 62))
    low = await protocol.masked().truncate(centred, 64 - width) + protocol.constant(_all(x, half))
    upper = top.times(2 * half)
    return low - upper if signed else low + upper


def _all(x: Shared, value: int) -> Words:
    return np.full(x.shape, value, np.uint64)
