"""What runs on secrets: the function, what it is right for, how far off it is at most, how many rounds it takes.

`docs/reference/secure-ops.md` is made of this table, and the tests hold every function to these numbers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from grid.smpc.functions import activations, arithmetic, comparisons, exponential, extremes, inverses, layers, softmaxes
from grid.smpc.functions.leading import COMPARED_AT_ONCE
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
    "divide_public": SecureOp(_A.divide_public, -4096, 4096, 2, UNIT, 2.0**-21),
    "matmul": SecureOp(_A.matmul, -1024, 1024, 3, UNIT),
    "conv2d": SecureOp(_A.conv2d, -1024, 1024, 3, UNIT),
    "sum": SecureOp(_A.total, -LARGEST / 1024, LARGEST / 1024, 0),
    "mean": SecureOp(_A.mean, -2048, 2048, 2, UNIT, 2.0**-21),
    "var": SecureOp(_A.variance, -32, 32, 5, 2e-5, 2e-5),
    "less": SecureOp(_C.less, *_ANY, 8),
    "less_equal": SecureOp(_C.less_equal, *_ANY, 8),
    "greater": SecureOp(_C.greater, *_ANY, 8),
    "greater_equal": SecureOp(_C.greater_equal, *_ANY, 8),
    "equal": SecureOp(_C.equal, *_ANY, 7),
    "not_equal": SecureOp(_C.not_equal, *_ANY, 7),
    "where": SecureOp(_C.where, *_ANY, 2),
    "relu": SecureOp(_C.relu, *_ANY, 10),
    "abs": SecureOp(_C.absolute, *_ANY, 10),
    "sign": SecureOp(_C.sign, *_ANY, 10),
    "clamp": SecureOp(_C.clamp, *_ANY, 10),
    "minimum": SecureOp(_C.minimum, *_ANY, 10),
    "maximum": SecureOp(_C.maximum, *_ANY, 10),
    "max": SecureOp(_X.largest, *_ANY, 0, largest=True),
    "min": SecureOp(_X.smallest, *_ANY, 0, largest=True),
    "argmax": SecureOp(_X.argmax, *_ANY, 0, largest=True),
    "argmin": SecureOp(_X.argmin, *_ANY, 0, largest=True),
    "max_pool2d": SecureOp(_X.max_pool2d, *_ANY, 0, largest=True),
    "exp": SecureOp(exponential.exp, -(2.0**18), 14, 20, 2 * UNIT, 1.1e-5),
    "reciprocal": SecureOp(_I.reciprocal, -WIDE, WIDE, 32, 1.5 * UNIT, 5e-6, small_rounds=26),
    "divide": SecureOp(_I.divide, 1, 1024, 35, 1024 * 2 * UNIT, 5e-6, small_rounds=29),
    "sqrt": SecureOp(_I.sqrt, 0, WIDE, 32, 1.5 * UNIT, 4e-6, small_rounds=26),
    "rsqrt": SecureOp(_I.rsqrt, TINY, WIDE, 32, 1.5 * UNIT, 6e-6, small_rounds=26),
    "log": SecureOp(_I.log, TINY, WIDE, 29, 1.2e-5, small_rounds=23),
    "sigmoid": SecureOp(activations.sigmoid, *_ANY, 20, 1.8e-4),
    "tanh": SecureOp(activations.tanh, -LARGEST / 2, LARGEST / 2, 20, 3.6e-4),
    "gelu": SecureOp(activations.gelu, *_ANY, 19, 1.4e-4),
    "silu": SecureOp(activations.silu, *_ANY, 22, 1.8e-4),
    "softmax": SecureOp(softmaxes.softmax, -(2.0**17), 2.0**17, 42, 8e-6, 8e-5, largest=True),
    "log_softmax": SecureOp(softmaxes.log_softmax, -(2.0**17), 2.0**17, 39, 8e-5, largest=True),
    "avg_pool2d": SecureOp(_L.avg_pool2d, -4096, 4096, 2, UNIT, 2.0**-21),
    "batch_norm": SecureOp(_L.batch_norm, -32, 32, 38, 5e-4, 5e-5, small_rounds=32),
    "layer_norm": SecureOp(_L.layer_norm, -32, 32, 43, 2e-3, small_rounds=37),
    "embedding": SecureOp(_L.embedding, *_ANY, 10),
}
"""Name -> row. Elements of the arguments are from `low` to `high`; where there are several, all of them."""

_HEAD = f"""\
# Operations on secrets

Made from the table of functions (`grid/smpc/functions/table.py`) by `make docs`. These functions run on tensors shared between
three parties. Numbers have {FRACTION_BITS} fraction bits, a resolution of 4e-6; integers and booleans have none.

**Elements** of the arguments lie in the interval given; outside of it a result may be garbage, which nobody is told, and which
a check on values made up finds (`check=True`). **Error** bounds hold for every element, stated as an amount, a share of the
result, or both added; what the arguments themselves are rounded by comes on top. **Rounds** are those of the longest chain of
messages at most, whatever the size, as long as the blocks of 65,536 elements that tensors are cut into are all under way at
once, which four of them are. M stands for 10 + ceil(log2(n - 1)) rounds, the largest of n items, where all pairs of
them are few enough to be compared at once, and for about 10 log2(n) above {extremes.PAIRS_AT_ONCE} pairs. Where two numbers are
given, the second one is that of tensors of up to {COMPARED_AT_ONCE} elements.

| function | what it is | elements | error | rounds |
|---|---|---|---|---|
"""


def secure_ops_page() -> str:
    """The text of `docs/reference/secure-ops.md`."""
    return _HEAD + "".join(f"{_line(name, op)}\n" for name, op in SECURE_OPS.items())


def _amount(value: float) -> str:
    """Powers of 2 as such."""
    mantissa, exponent = math.frexp(abs(value) + (1 if value in (WIDE, -WIDE) else 0))
    if mantissa == 0.5 and abs(exponent - 1) > 8:
        return f"{'-' if value < 0 else ''}2**{exponent - 1}"
    return f"{value:g}"


def _line(name: str, op: SecureOp) -> str:
    errors = ([f"{op.absolute:.2g}"] if op.absolute else []) + ([f"{op.relative:.2g} of it"] if op.relative else [])
    rounds = f"{op.rounds}, {op.small_rounds}" if op.small_rounds else str(op.rounds)
    if op.largest:
        rounds = f"M + {op.rounds}" if op.rounds else "M"
    summary = op.summary.replace("|", "\\|")
    return f"| `{name}` | {summary} | {_amount(op.low)} to {_amount(op.high)} | {' and '.join(errors) or 'none'} | {rounds} |"
