"""All operations that there are on shares, and what to use instead of others."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from grid.errors import OpNotSupported
from grid.smpc.operations import (
    elementwise,
    gradients,
    layers,
    losses,
    nonlinear,
    normalisations,
    ordering,
    products,
    reductions,
    truth,
    views,
)
from grid.smpc.operations.arguments import Form

FORMS: Mapping[str, Form] = MappingProxyType(
    {
        f"aten.{name}": form
        for forms in (
            *(elementwise, nonlinear, truth, views, products, reductions, ordering, layers, normalisations, losses, gradients),
        )
        for name, form in forms.FORMS.items()
    }
)
"""Operation -> how it is done on shares. A received name only selects from this."""

_WITHOUT_VALUES = "its size depends on values, which nobody has; use torch.where(mask, x, 0), or multiply by the mask"
_COUNT = "count with (x[:, None] == torch.arange(k)).sum(0)"

INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "round": "(x + 0.5).floor()",
        "floor_divide": "(x / y + 1e-4).floor() for whole numbers; quotients are off by a little",
        "remainder": "x - y * (x / y + 1e-4).floor() for whole numbers",
        "fmod": "x - y * (x / y + 1e-4).floor() for whole numbers from 0",
        "cumprod": "x.log().cumsum(dim).exp() for x > 0",
        "exp2": "(x * math.log(2)).exp()",
        "erf": "2 * F.gelu(x * 2**0.5) / (x * 2**0.5) - 1 away from 0, or a polynomial",
        "nan_to_num": "nothing: values on shares are never NaN or infinite",
        "bernoulli": "a random mask made by the client and shared",
        "native_dropout": "model.eval(), or a random mask made by the client and shared",
        "nonzero": _WITHOUT_VALUES,
        "masked_select": _WITHOUT_VALUES,
        "_unique2": _COUNT,
        "bincount": _COUNT,
        "histc": _COUNT,
        "max_pool3d_with_indices": "max_pool2d twice",
        "_scaled_dot_product_flash_attention_for_cpu": "(q @ k.transpose(-1, -2) / math.sqrt(d)).softmax(-1) @ v",
        "mkldnn_rnn_layer": "the LSTM inside `with torch.backends.mkldnn.flags(enabled=False):`",
        "xlogy": "torch.nn.functional.cross_entropy(scores, probabilities) in place of kl_div, which is off by the entropy alone",
        "binary_cross_entropy": "torch.nn.functional.binary_cross_entropy_with_logits",
        "_linalg_svd": "the svd in the clear",
        "_linalg_solve_ex": "solve in the clear, or a fixed number of steps of gradient descent",
        "linalg_inv_ex": "solve in the clear, or a fixed number of Newton steps",
    }
)
"""Operation without its overload -> what to use instead, for those that people reach for."""


_PART = "make a new tensor with torch.where, torch.cat or torch.select_scatter, which may have a part of the old one"

WRITES: Mapping[str, str] = MappingProxyType({name: _PART for name in ("fill_", "copy_", "zero_", "index_put_", "scatter_")})
"""What to use instead of operations that write a tensor, or a part of one."""


def find(name: str) -> Form:
    """How an operation is done. `OpNotSupported` names it and what to use instead."""
    form = FORMS.get(name)
    if form is not None:
        return form
    base = name.split(".")[1] if name.count(".") == 2 else name
    if base.startswith("_foreach_"):
        raise OpNotSupported(f"{name[:80]} is not done on shares: make the optimizer without foreach=True", op=name[:80])
    if base.endswith("_") and not base.startswith("_"):
        if base in WRITES:
            advice = WRITES[base]
        else:
            advice = f"use `{base.rstrip('_')[:80]}` and keep its result, as in `x = x + y`"
        raise OpNotSupported(f"{name[:80]} writes in place, which shares never do: {advice}", op=name[:80])
    instead = INSTEAD.get(base)
    advice = f"use {instead}" if instead else "docs/reference/secure-ops.md lists those that are, to write it with"
    raise OpNotSupported(f"{name[:80]} is not done on shares: {advice}", op=name[:80])
