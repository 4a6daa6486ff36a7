"""Boolean masks as indices: what can be said without the values of the tensor that is indexed, and sometimes of the mask.

A local mask is turned into positions here, so `x[mask]` has a known size. A remote mask never has one; writing through it,
`x[mask] = value`, needs none and is written with `masked_fill` or `where`. What is left is refused at the line, with advice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grid.errors import InvalidRequest

aten: Any = torch.ops.aten

INDEXED: Mapping[Any, str] = {
    aten.index.Tensor: "read",
    aten.index_put.default: "write",
    aten.index_put_.default: "write_",
}
"""Operations that take masks among their indices, and what they do: read, write a copy, write in place."""

MASKS = (torch.bool, torch.uint8)

ADVICE = (
    "x[mask] = value through a remote mask writes as many values as the mask has; give a single number, a value that fits each"
    " row, or write x = torch.where(mask, values, x)"
)


def without_masks(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], is_remote: Callable[[Any], bool]
) -> tuple[Sequence[Any], Any]:
    """The arguments with local masks as positions, and the result where a remote mask had to be written otherwise, else None.

    Raises `InvalidRequest` for a write through a remote mask whose size would have to be known.
    """
    indices = args[1]
    if not any(isinstance(one, Tensor) and one.dtype in MASKS for one in indices):
        return args, None
    found: list[Any] = []
    for one in indices:
        if isinstance(one, Tensor) and one.dtype in MASKS and not is_remote(one):
            found += one.detach().nonzero(as_tuple=True) if one.dim() else [one]
        else:
            found.append(one)
    args = [args[0], found, *args[2:]]
    remote = any(isinstance(one, Tensor) and one.dtype in MASKS for one in found)
    if not remote or INDEXED[func] == "read":
        return args, None  # reading through a remote mask is refused where shapes are worked out
    if len(found) > 1 or (args[3] if len(args) > 3 else kwargs.get("accumulate", False)):
        raise InvalidRequest(ADVICE)
    return args, _write(args[0], found[0], args[2], in_place=INDEXED[func] == "write_")


def _write(target: Tensor, mask: Tensor, value: Tensor, *, in_place: bool) -> Tensor:
    """`target[mask] = value` where `value` fits every place that the mask may choose."""
    rest = target.dim() - mask.dim()
    if mask.dtype != torch.bool or rest < 0 or target.shape[: mask.dim()] != mask.shape or value.dim() > rest:
        raise InvalidRequest(ADVICE)
    mask = aten.view.default(mask, [*mask.shape, *[1] * rest]) if rest else mask
    if not value.dim():
        fill = aten.masked_fill_.Tensor if in_place else aten.masked_fill.Tensor
        return fill(target, mask, value)  # type: ignore[no-any-return]
    chosen = aten.where.self(mask, value, target)
    return aten.copy_.default(target, chosen) if in_place else chosen  # type: ignore[no-any-return]
