"""Layers of PyTorch that a plan holds in another form than PyTorch would record, with the same meaning.

- Dropout is one operation, `native_dropout`, whose mask whoever runs the plan draws; PyTorch would record the draw.
- Dropout of whole channels and alpha dropout are made from it.
- Recurrent layers are recorded operation by operation: an LSTM would be one call into a library, and dropout between layers is
  lost where PyTorch takes them apart itself.
- `grid.plans.functions` has what is no layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from grid.plans.functions import FUNCTIONS, REFUSED

SELU_FLOOR = -1.7580993408473766
"""What SELU gives for a large negative number: -scale * alpha of Klambauer et al., 2017."""


class Layers(TorchFunctionMode):
    """Inside this mode functions mean what this file and `grid.plans.functions` say."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in RECURRENT:
            return _recurrent(func, *args, **kwargs)
        return (DROPOUTS.get(func) or FUNCTIONS.get(func) or REFUSED.get(func) or func)(*args, **kwargs)


# ---------------------------------------------------------------- dropout


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, train: bool = True) -> Tensor:
    if not (training and train) or p == 0:
        return input
    result: Tensor = torch.native_dropout(input, p, True)[0]
    return input.copy_(result) if inplace else result


def _feature_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, train: bool = True
) -> Tensor:
    """Dropout of whole channels: one draw for dimensions 0 and 1."""
    if not (training and train) or p == 0:
        return input
    kept = _keeps(input, p, channels=True)
    return input.mul_(kept) if inplace else input * kept


def _alpha_dropout(
    input: Tensor, p: float = 0.5, train: bool = False, inplace: bool = False, *, training: bool = False, channels: bool = False
) -> Tensor:
    """Dropout after SELU: what is dropped gets SELU's least value, and mean and variance stay (Klambauer et al., 2017)."""
    if not (train or training) or p == 0:
        return input
    kept = _keeps(input, p, channels=channels) * (1 - p)
    scale = ((1 - p) * (1 + p * SELU_FLOOR**2)) ** -0.5
    result: Tensor = (input * kept + SELU_FLOOR * (1 - kept)) * scale - scale * p * SELU_FLOOR
    return input.copy_(result) if inplace else result


def _feature_alpha_dropout(input: Tensor, p: float = 0.5, train: bool = False, inplace: bool = False, **named: Any) -> Tensor:
    return _alpha_dropout(input, p, train, inplace, channels=True, **named)


def _keeps(input: Tensor, p: float, *, channels: bool) -> Tensor:
    """A dropout mask, 0 or 1 / (1 - p), for a tensor or its channels. It is drawn over the tensor's own rows, so that at a
    node each row has its own."""
    rows = input[(slice(None), slice(None), *[slice(1)] * (input.dim() - 2))] if channels else input
    ones = ((rows == rows) | (rows != rows)).to(input.dtype)
    kept: Tensor = torch.native_dropout(ones, p, True)[0]
    return kept


# ---------------------------------------------------------------- recurrent layers


def _recurrent(func: Callable[..., Any], input: Tensor, *rest: Any) -> Any:
    """`torch.lstm`, `torch.gru` and the like, with dropout between layers."""
    hx, params, has_biases, layers, dropout, train, both, batch_first = rest
    if not (train and dropout and layers > 1):
        with _without_library():
            return func(input, *rest)
    states = hx if func is torch.lstm else (hx,)
    width = 2 if both else 1
    share = len(params) // layers
    finals: list[Sequence[Tensor]] = []
    for layer in range(layers):
        own = [state[layer * width : (layer + 1) * width] for state in states]
        start = own if func is torch.lstm else own[0]
        weights = params[layer * share : (layer + 1) * share]
        with _without_library():
            input, *last = func(input, start, weights, has_biases, 1, 0.0, train, both, batch_first)
        finals.append(last)
        if layer + 1 < layers:
            input = _dropout(input, dropout)
    return input, *[torch.cat(parts) for parts in zip(*finals, strict=True)]


@contextmanager
def _without_library() -> Iterator[None]:
    """Keep oneDNN from taking an LSTM as a whole. (`torch.backends.mkldnn.flags` does the same, and warns about GPUs.)"""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


RECURRENT = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})

DROPOUTS: Mapping[Any, Callable[..., Tensor]] = {
    **{func: _dropout for func in (F.dropout, torch.dropout, torch.dropout_)},
    **{func: _feature_dropout for func in (F.dropout1d, F.dropout2d, F.dropout3d, torch.feature_dropout, torch.feature_dropout_)},
    **{func: _alpha_dropout for func in (F.alpha_dropout, torch.alpha_dropout)},
    **{func: _feature_alpha_dropout for func in (F.feature_alpha_dropout, torch.feature_alpha_dropout)},
}
