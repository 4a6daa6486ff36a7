"""What runs on secrets: the function, what it is right for, how far off it is at most, how many rounds it takes.

`docs/reference/secure-ops.md` is made of this table, and the tests hold every function to these numbers. `grid.smpc.operations`
says which operations of torch use them.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from grid.smpc.functions import (
    activations,
    arithmetic,
    comparisons,
    exponential,
    extremes,
    inverses,
    layers,
    rounding,
    softmaxes,
    sorting,
)
from grid.smpc.protocol import FRACTION_BITS

UNIT = 2.0**-FRACTION_BITS
"""What one rounding of a fixed-point number is off by, at most."""

LARGEST = 2.0 ** (61 - FRACTION_BITS - 1)
"""Differences of two such values keep their sign."""

TINY, WIDE = 2.0**-17, 2.0**18 - 1


@dataclass(frozen=True, slots=True)
class SecureOp:
    """One row. The error is at most `absolute` plus `relative` times the result, for elements from `low` to `high`."""

    function: Callable[..., Awaitable[Any]]
    low: float
    high: float
    rounds: int
    absolute: float = 0.0
    relative: float = 0.0
    small_rounds: int | None = None
    """Where it differs for tensors of up to 256 elements."""
    largest: bool = False
    """Whether the rounds of the largest along an axis come on top."""
    halving: bool = False
    """Whether these are the rounds of each of ceil(log2 n) levels, for n items along an axis."""
    sorting: bool = False
    """Whether these are the rounds up to the first level of a sort."""

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return " ".join((inspect.getdoc(self.function) or "").replace("\n", " ").split()).split(". ")[0].rstrip(".")


_A, _C, _X, _I, _L = arithmetic, comparisons, extremes, inverses, layers
_ANY = (-LARGEST, LARGEST)

SECURE_OPS: dict[str, SecureOp] = {
    "add": SecureOp(_A.add, *_ANY, 0),
    "subtract": SecureOp(_A.subtract, *_ANY, 0),
    "multiply": SecureOp(_A.multiply, -4096, 4096, 3, UNIT),
    "multiply_public": SecureOp(_A.multiply_public, -4096, 4096, 2, UNIT, 2.0**-21),
    "add_product": SecureOp(_A.add_product, -4, 4, 3, 2.0**-38, 2.0**-16),
    "divide_public": SecureOp(_A.divide_public, -4096, 4096, 2, UNIT, 2.0**-21),
    "matmul": SecureOp(_A.matmul, -1024, 1024, 3, UNIT),
    "conv2d": SecureOp(_A.conv2d, -1024, 1024, 3, UNIT),
    "sum": SecureOp(_A.total, -LARGEST / 1024, LARGEST / 1024, 0),
    "mean": SecureOp(_A.mean, -2048, 2048, 2, 2 * UNIT, 2.0**-21),
    "var": SecureOp(_A.variance, -32, 32, 5, 2e-5, 2e-5),
    "squared_norm": SecureOp(_A.squared_norm, -64, 64, 3, UNIT),
    "cumsum": SecureOp(_A.cumulative, -LARGEST / 1024, LARGEST / 1024, 0),
    "prod": SecureOp(_A.product, -2, 2, 3, 4e-3, halving=True),
    "floor": SecureOp(rounding.floor, -LARGEST / 2, LARGEST / 2, 10),
    "ceil": SecureOp(rounding.ceil, -LARGEST / 2, LARGEST / 2, 10),
    "trunc": SecureOp(rounding.trunc, -LARGEST / 2, LARGEST / 2, 11),
    "less": SecureOp(_C.less, *_ANY, 6),
    "less_equal": SecureOp(_C.less_equal, *_ANY, 6),
    "greater": SecureOp(_C.greater, *_ANY, 6),
    "greater_equal": SecureOp(_C.greater_equal, *_ANY, 6),
    "equal": SecureOp(_C.equal, *_ANY, 6),
    "not_equal": SecureOp(_C.not_equal, *_ANY, 6),
    "both": SecureOp(_C.both, 0, 1, 1),
    "either": SecureOp(_C.either, 0, 1, 1),
    "differ": SecureOp(_C.differ, 0, 1, 0),
    "all": SecureOp(_C.every, 0, 1, 1, halving=True),
    "any": SecureOp(_C.some, 0, 1, 1, halving=True),
    "number": SecureOp(_C.number, 0, 1, 2),
    "where": SecureOp(_C.where, *_ANY, 2),
    "relu": SecureOp(_C.relu, *_ANY, 8),
    "abs": SecureOp(_C.absolute, *_ANY, 8),
    "sign": SecureOp(_C.sign, *_ANY, 8),
    "clamp": SecureOp(_C.clamp, *_ANY, 8),
    "minimum": SecureOp(_C.minimum, *_ANY, 8),
    "maximum": SecureOp(_C.maximum, *_ANY, 8),
    "max": SecureOp(_X.largest, *_ANY, 0, largest=True),
    "min": SecureOp(_X.smallest, *_ANY, 0, largest=True),
    "argmax": SecureOp(_X.argmax, *_ANY, 0, largest=True),
    "argmin": SecureOp(_X.argmin, *_ANY, 0, largest=True),
    "sort": SecureOp(sorting.sort, -(2.0**34), 2.0**34, 17, sorting=True),
    "topk": SecureOp(sorting.topk, -(2.0**34), 2.0**34, 17, sorting=True),
    "max_pool2d": SecureOp(_X.max_pool2d, *_ANY, 0, largest=True),
    "exp": SecureOp(exponential.exp, -(2.0**18), 14, 18, 2 * UNIT, 1.1e-5),
    "reciprocal": SecureOp(_I.reciprocal, -WIDE, WIDE, 30, 1.5 * UNIT, 5e-6, small_rounds=24),
    "divide": SecureOp(_I.divide, 1, 1024, 30, 3 * UNIT, 5e-6, small_rounds=24),
    "sqrt": SecureOp(_I.sqrt, 0, WIDE, 30, 1.5 * UNIT, 4e-6, small_rounds=24),
    "rsqrt": SecureOp(_I.rsqrt, TINY, WIDE, 30, 1.5 * UNIT, 6e-6, small_rounds=24),
    "log": SecureOp(_I.log, TINY, WIDE, 27, 1.2e-5, small_rounds=21),
    "sigmoid": SecureOp(activations.sigmoid, *_ANY, 18, 1.8e-4),
    "tanh": SecureOp(activations.tanh, -LARGEST / 2, LARGEST / 2, 18, 3.6e-4),
    "gelu": SecureOp(activations.gelu, *_ANY, 17, 1.4e-4),
    "gelu_tanh": SecureOp(activations.gelu_tanh, *_ANY, 17, 1.4e-4),
    "silu": SecureOp(activations.silu, *_ANY, 20, 1.8e-4),
    "gelu_slope": SecureOp(activations.gelu_slope, *_ANY, 21, 1e-4),
    "gelu_tanh_slope": SecureOp(activations.gelu_tanh_slope, *_ANY, 21, 1.4e-4),
    "silu_slope": SecureOp(activations.silu_slope, *_ANY, 21, 2.9e-4),
    "leaky_relu": SecureOp(activations.leaky_relu, -4096, 4096, 10, UNIT, 2.0**-21),
    "elu": SecureOp(activations.elu, -(2.0**17), 2.0**17, 26, 2e-5),
    "softplus": SecureOp(activations.softplus, -(2.0**17), 2.0**17, 35, 3e-5),
    "softmax": SecureOp(softmaxes.softmax, -(2.0**17), 2.0**17, 38, 8e-6, 8e-5, largest=True),
    "log_softmax": SecureOp(softmaxes.log_softmax, -(2.0**17), 2.0**17, 35, 8e-5, largest=True),
    "avg_pool2d": SecureOp(_L.avg_pool2d, -4096, 4096, 2, UNIT, 2.0**-21),
    "batch_norm": SecureOp(_L.batch_norm, -32, 32, 36, 5e-4, 5e-5, small_rounds=30),
    "layer_norm": SecureOp(_L.layer_norm, -32, 32, 41, 2e-3, small_rounds=35),
    "embedding": SecureOp(_L.embedding, *_ANY, 9),
}
"""Name -> row. Elements of the arguments are from `low` to `high`; where there are several, all of them."""
