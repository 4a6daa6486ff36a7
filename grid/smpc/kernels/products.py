"""Matrix products and convolutions mod 2**64, on the int64 kernels of torch, which wrap as the ring does.

Bilinear maps of replicated sharings need two local products, not three: x_i (y_i + y_(i+1)) + x_(i+1) y_i.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from grid.smpc.link import Words


def matmul(x0: Words, x1: Words, y0: Words, y1: Words) -> Words:
    """This party's addend of (m, k) @ (k, n), without its zero share; shape (m, n)."""
    both, first, x, x_next = _tensor(y0 + y1), _tensor(y0), _tensor(x0), _tensor(x1)
    if first.shape[1] == 1:  # a matrix times a vector has a kernel of its own, an order of magnitude faster
        z = torch.mv(x, both[:, 0]).add_(torch.mv(x_next, first[:, 0])).unsqueeze(1)
    else:
        z = torch.mm(x, both).add_(torch.mm(x_next, first))
    return _words(z)


def conv2d(x0: Words, x1: Words, w0: Words, w1: Words, stride: tuple[int, int], padding: tuple[int, int]) -> Words:
    """This party's addend of the cross-correlation of (n, c, h, w) with (o, c, kh, kw), without its zero share."""
    both, first = _tensor(w0 + w1), _tensor(w0)
    z = torch.nn.functional.conv2d(_tensor(x0), both, stride=stride, padding=padding)
    return _words(z.add_(torch.nn.functional.conv2d(_tensor(x1), first, stride=stride, padding=padding)))


def _tensor(words: Words) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int64))


def _words(tensor: Tensor) -> Words:
    return tensor.contiguous().numpy().view(np.uint64)
