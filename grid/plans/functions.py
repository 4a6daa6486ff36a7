"""Functions of PyTorch in terms of operations that plans have, and that keep rows apart where the function does.

`FUNCTIONS` is used while a function is traced. Below are only functions that PyTorch would record as one operation which the op
table does not have, or which it would record with a look at values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grid.errors import PlanRejected

Pair = int | Sequence[int]


def _windows(length: Any, size: int, step: int, dilation: int = 1) -> tuple[Any, Tensor]:
    """How many windows of a dimension there are, and the positions in them, window by window."""
    count = (length - dilation * (size - 1) - 1) // step + 1
    places = torch.arange(count)[:, None] * step + torch.arange(size)[None, :] * dilation
    return count, places.reshape(-1)


def _unfold(input: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """`Tensor.unfold`, with values in place of a view."""
    axis = dimension % input.dim()
    count, places = _windows(input.shape[axis], size, step)
    parts = input.index_select(axis, places)
    cut = parts.reshape(*input.shape[:axis], count, size, *input.shape[axis + 1 :])
    return cut.movedim(axis + 1, -1)


def _two(value: Pair) -> tuple[int, int]:
    one, other = (value, value) if isinstance(value, int) else value
    return int(one), int(other)


def _im2col(input: Tensor, kernel_size: Pair, dilation: Pair = 1, padding: Pair = 0, stride: Pair = 1) -> Tensor:
    """`F.unfold`: (n, c, h, w) -> (n, c * kernel, places)."""
    if input.dim() != 4:
        raise PlanRejected("F.unfold without a batch dimension; use x[None]")
    (kh, kw), (dh, dw), (ph, pw), (sh, sw) = map(_two, (kernel_size, dilation, padding, stride))
    data = F.pad(input, (pw, pw, ph, ph)) if ph or pw else input
    n, c, h, w = data.shape
    rows, down = _windows(h, kh, sh, dh)
    columns, along = _windows(w, kw, sw, dw)
    parts = data.index_select(2, down).index_select(3, along).reshape(n, c, rows, kh, columns, kw)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(n, c * kh * kw, rows * columns)


def _col2im(
    input: Tensor, output_size: Pair, kernel_size: Pair, dilation: Pair = 1, padding: Pair = 0, stride: Pair = 1
) -> Tensor:
    """`F.fold`: (n, c * kernel, places) -> (n, c, *output_size), places that meet added up."""
    if input.dim() != 3:
        raise PlanRejected("F.fold without a batch dimension; use x[None]")
    (h, w), (kh, kw), (dh, dw) = map(_two, (output_size, kernel_size, dilation))
    (ph, pw), (sh, sw) = map(_two, (padding, stride))
    rows, down = _windows(h + 2 * ph, kh, sh, dh)
    columns, along = _windows(w + 2 * pw, kw, sw, dw)
    n, c = input.shape[0], input.shape[1] // (kh * kw)
    parts = input.reshape(n, c, kh, kw, rows, columns).permute(0, 1, 4, 2, 5, 3).reshape(n, c, rows * kh, columns * kw)
    tall = parts.new_zeros(n, c, h + 2 * ph, columns * kw).index_add(2, down, parts)
    whole = tall.new_zeros(n, c, h + 2 * ph, w + 2 * pw).index_add(3, along, tall)
    return whole[:, :, ph : ph + h, pw : pw + w]


def _pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    r = upscale_factor
    *lead, c, h, w = input.shape
    parts = input.reshape(*lead, c // (r * r), r, r, h, w)
    k = len(lead)
    return parts.permute(*range(k), k, k + 3, k + 1, k + 4, k + 2).reshape(*lead, c // (r * r), h * r, w * r)


def _pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    r = downscale_factor
    *lead, c, h, w = input.shape
    parts = input.reshape(*lead, c, h // r, r, w // r, r)
    k = len(lead)
    return parts.permute(*range(k), k, k + 2, k + 4, k + 1, k + 3).reshape(*lead, c * r * r, h // r, w // r)


def _channel_shuffle(input: Tensor, groups: int) -> Tensor:
    n, c, *rest = input.shape
    return input.reshape(n, groups, c // groups, *rest).transpose(1, 2).reshape(n, c, *rest)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Bags of equal length, `(bags, length)`: one bag is one row."""
    if input.dim() != 2 or offsets is not None:
        raise PlanRejected("embedding_bag with offsets; use an input (bags, length), with padding_idx where bags are shorter")
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise PlanRejected("embedding_bag with max_norm, scale_grad_by_freq or sparse; leave them out")
    looked_up = F.embedding(input, weight)
    if per_sample_weights is not None:
        looked_up = looked_up * per_sample_weights[:, :, None]
    if padding_idx is None:
        return looked_up.amax(1) if mode == "max" else looked_up.sum(1) if mode == "sum" else looked_up.mean(1)
    real = (input != padding_idx % weight.shape[0])[:, :, None]
    if mode == "max":
        return torch.where(real.any(1), torch.where(real, looked_up, -math.inf).amax(1), 0.0)
    total = torch.where(real, looked_up, 0.0).sum(1)
    return total / real.sum(1).clamp(min=1) if mode == "mean" else total


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Written by index, so that a class which is not there is an error, as it is for PyTorch."""
    if num_classes < 1:
        raise PlanRejected("one_hot without num_classes looks for the largest class; give it num_classes")
    return torch.zeros(*tensor.shape, num_classes, dtype=torch.int64).scatter(-1, tensor.unsqueeze(-1), 1)


def _pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Reflection and replication of the last dimension alone, as a picture one pixel high."""
    if mode in ("reflect", "replicate") and len(pad) == 2:
        return F.pad(input.unsqueeze(-2), (*pad, 0, 0), mode).squeeze(-2)
    return F.pad(input, list(pad), mode, value)


def _cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    return input.roll(-1, dim) * other.roll(-2, dim) - input.roll(-2, dim) * other.roll(-1, dim)


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., i), (..., j), (o, i, j) -> (..., o)."""
    outputs, _, width = weight.shape
    mapped = (input1 @ weight.permute(1, 0, 2).flatten(1)).reshape(*input1.shape[:-1], outputs, width)
    result: Tensor = (mapped * input2.unsqueeze(-2)).sum(-1)
    return result if bias is None else result + bias


def _gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """Without a look at whether a variance is negative."""
    spread = torch.as_tensor(var, dtype=input.dtype)
    if spread.dim() == input.dim() - 1 and spread.dim():
        spread = spread.unsqueeze(-1)
    spread = spread + (spread.clamp(min=eps) - spread).detach()
    loss: Tensor = 0.5 * (spread.log() + (input - target) ** 2 / spread)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()


def _cov(input: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None) -> Tensor:
    """Covariances of the rows of `(variables, observations)`."""
    if fweights is not None or aweights is not None:
        raise PlanRejected("torch.cov with weights; write (w * (x - mean)) @ (x - mean).T / w.sum()")
    data = input.reshape(1, -1) if input.dim() < 2 else input
    centred = data - data.mean(1, keepdim=True)
    result = centred @ centred.T / (data.shape[1] - correction)
    return result.reshape(()) if input.dim() < 2 else result


def _corrcoef(input: Tensor) -> Tensor:
    """Correlations of the rows of `(variables, observations)`."""
    covariance = _cov(input)
    if not covariance.dim():
        return covariance / covariance
    spread = covariance.diagonal().sqrt()
    return (covariance / spread[:, None] / spread[None, :]).clamp(-1, 1)


def _no_packing(*args: Any, **kwargs: Any) -> Tensor:
    raise PlanRejected("packed sequences have a shape that depends on values; use padded ones, and torch.where for the padding")


def _no_printing(*args: Any, **kwargs: Any) -> Tensor:
    raise PlanRejected("the function prints a tensor, which has no values while it is traced; return it, and print the result")


FUNCTIONS: Mapping[Any, Callable[..., Tensor]] = {
    Tensor.unfold: _unfold,
    F.unfold: _im2col,
    F.fold: _col2im,
    torch.pixel_shuffle: _pixel_shuffle,
    torch.pixel_unshuffle: _pixel_unshuffle,
    torch.channel_shuffle: _channel_shuffle,
    F.embedding_bag: _embedding_bag,
    F.one_hot: _one_hot,
    F.pad: _pad,
    torch.linalg.cross: _cross,
    torch.bilinear: _bilinear,
    F.gaussian_nll_loss: _gaussian_nll_loss,
    **{func: _cov for func in (torch.cov, Tensor.cov)},
    **{func: _corrcoef for func in (torch.corrcoef, Tensor.corrcoef)},
}
"""PyTorch's function -> the same in terms of others."""

REFUSED: Mapping[Any, Callable[..., Tensor]] = {
    torch._pack_padded_sequence: _no_packing,
    Tensor.__repr__: _no_printing,
    Tensor.__format__: _no_printing,
}
"""Functions that would fail later, where nobody could tell why."""
