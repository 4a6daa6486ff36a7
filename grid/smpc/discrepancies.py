"""Whether an operation's result on shares is what PyTorch gives in double precision.

On shares numbers are rounded to 2**-18, so what jumps may jump elsewhere: truth values, whole numbers, and results of `JUMPS` may
differ where PyTorch's would with arguments a few roundings away; an index, where the items are a few roundings apart. A sum of
whole numbers on shares does not wrap at its dtype's size as PyTorch's does, until it is revealed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from grid.smpc.protocol import FRACTION_BITS
from grid.tensors.ops import Bound, flatten

RELATIVE = 1e-2
ABSOLUTE = 5e-3
"""How far a number may be off: by a share of its size, and by this times 1 and the median size of all of them."""

NEAR = 4 * 2.0**-FRACTION_BITS
"""Numbers so close are taken for equal."""

LARGEST = 2.0 ** (63 - FRACTION_BITS)
"""Numbers on shares are below it."""

JUMPS = frozenset({"floor", "ceil", "trunc", "frac", "sign", "sgn", "threshold", "threshold_backward"})
"""Operations that give numbers, and jump."""

PICKS = {
    "aten.argmax.default": 0,
    "aten.argmin.default": 0,
    "aten.max.dim": 1,
    "aten.min.dim": 1,
    "aten.sort.default": 1,
    "aten.sort.stable": 1,
    "aten.topk.default": 1,
    "aten.kthvalue.default": 1,
    "aten.median.dim": 1,
}
"""Operation -> its result that has indices of items of `self`."""


def in_torch(bound: Bound) -> list[Tensor]:
    """The results of an operation in plain torch, floats in double precision. `bound` may have any floats."""
    wide = Bound(bound.op, tuple(_wide(value) for value in bound.values))
    with torch.no_grad():
        made = [one.zero_() if bound.op.unfilled else one for one in flatten(wide.run())]
    return [one.to(torch.float64) if one.is_floating_point() else one for one in made]


def fits(wanted: Tensor) -> bool:
    """Whether shares can hold it."""
    if wanted.is_floating_point():
        return bool((wanted.abs() < LARGEST).all())  # NaN fails it, too
    return wanted.dtype != torch.int64 or bool((wanted > torch.iinfo(torch.int64).min).all())


def differs(bound: Bound, place: int, found: Tensor, wanted: Tensor, *, jumps: bool = False) -> bool:
    """Whether result `place` on shares is far from what `in_torch` gives for the same arguments, which fits. With `jumps`, it may
    be as far as roundings of the arguments take it: an optimizer's step for a gradient of the size of a rounding is such."""
    if PICKS.get(bound.op.name) == place:
        return _picks_others(bound, found, wanted)
    if bound.op.base == "nll_loss_forward" and place == 1 and not bound["reduction"]:
        return False  # a weight that nothing divides by, and that PyTorch leaves at 0
    wrong = _far(found, wanted)
    if (jumps or bound.op.base in JUMPS or not wanted.is_floating_point()) and wrong.any():
        for nearby in _nearby(bound):
            wrong &= ~_far(wanted, in_torch(nearby)[place])
            wrong &= _far(found, wanted)
    return bool(wrong.any())


def distance(found: Tensor, wanted: Tensor, bound: Bound | None = None, place: int = 0) -> float:
    """The largest difference; for indices of items of `bound`, that of the items. Not a number or infinite where `wanted` is."""
    if not wanted.numel():
        return 0.0
    if bound is not None and PICKS.get(bound.op.name) == place:
        pair = _items_at(bound, found, wanted)
        if pair is None:
            return float("inf")
        found, wanted = pair
    return float((found.to(torch.float64) - wanted.to(torch.float64)).abs().max())


def _wide(value: object) -> object:
    if isinstance(value, Tensor):
        return value.to(torch.float64) if value.is_floating_point() else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    return [_wide(item) for item in value] if isinstance(value, list) else value


def _far(found: Tensor, wanted: Tensor) -> Tensor:
    if not wanted.is_floating_point():
        return found != wanted
    size = wanted.abs()
    middle = size.median() if size.numel() else size.new_zeros(())
    return ~((found - wanted).abs() <= RELATIVE * size + ABSOLUTE * (1 + middle))  # NaN is far


def _nearby(bound: Bound) -> Iterator[Bound]:
    """The operation on rounded arguments, and with each number a little larger or smaller."""

    def changed(at: Sequence[int], by: float) -> Bound:
        values = list(bound.values)
        for one in at:
            wide = values[one].to(torch.float64)
            values[one] = wide + by if by else (wide * 2.0**FRACTION_BITS).round() / 2.0**FRACTION_BITS
        return Bound(bound.op, tuple(values))

    numbers = [at for at, one in enumerate(bound.values) if isinstance(one, Tensor) and one.is_floating_point()]
    if numbers:
        yield changed(numbers, 0)
    for at in numbers:
        yield changed([at], NEAR)
        yield changed([at], -NEAR)


def _picks_others(bound: Bound, found: Tensor, wanted: Tensor) -> bool:
    """Whether items at other places are others."""
    pair = _items_at(bound, found, wanted)
    if pair is None:
        return True
    one, other = pair
    return bool(((one - other).abs() > NEAR).any()) if one.is_floating_point() else bool((one != other).any())


def _items_at(bound: Bound, found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor] | None:
    """The items of `self` at these indices; the indices where there is one item; None where there are fewer items."""
    items, dim = bound["self"], bound.get("dim")
    if not items.dim() or not found.numel():
        return found, wanted
    if dim is None:
        items, found, wanted, dim = items.reshape(-1), found.reshape(-1), wanted.reshape(-1), 0
    elif found.dim() < items.dim():
        found, wanted = found.unsqueeze(dim), wanted.unsqueeze(dim)
    if bool(((found < 0) | (found >= items.shape[dim])).any()):
        return None
    return items.gather(dim, found), items.gather(dim, wanted)
