"""The page about operations on secrets, made of both tables."""

from __future__ import annotations

import math
from collections.abc import Iterable

from grid.smpc.functions.arithmetic import FINE_BITS
from grid.smpc.functions.extremes import PAIRS_AT_ONCE
from grid.smpc.functions.inverses import MOST_DIVISOR_BITS
from grid.smpc.functions.leading import COMPARED_AT_ONCE
from grid.smpc.functions.table import SECURE_OPS, WIDE, SecureOp
from grid.smpc.operations.table import FORMS, INSTEAD
from grid.smpc.protocol import FRACTION_BITS

_HEAD = f"""\
# Operations on secrets

Made from the tables of functions and of torch's operations (`grid/smpc/functions/table.py`, `grid/smpc/operations/table.py`) by
`make docs`. These functions run on tensors shared between three parties. Numbers have {FRACTION_BITS} fraction bits, a resolution
of 4e-6; integers and booleans have none. What torch's operations give on shared tensors has the shape and the dtype that torch
gives; they return at once, and `reveal()` opens a result.

**Elements** of the arguments lie in the interval given; outside of it a result may be garbage, which nobody is told, and which
a check on values like yours finds (`check=True`). **Error** bounds hold for every element, stated as an amount, a share of the
result, or both added; what the arguments themselves are rounded by comes on top. **Rounds** are those of the longest chain of
messages at most, whatever the size, as long as the blocks of 65,536 elements that tensors are cut into are all under way at
once, which four of them are. M stands for 8 + ceil(log2(n - 1)) rounds, the largest of n items, where all pairs of
them are few enough to be compared at once, and for about 10 log2(n) above {PAIRS_AT_ONCE} pairs. Where two numbers are
given, the second one is that of tensors of up to {COMPARED_AT_ONCE} elements.

**Torch** names the operations of torch that use the function, as torch dispatches them: methods, functions and modules come down
to these (`x @ w`: `mm`, `torch.nn.Linear`: `addmm`, `x.std()`: `var` and `sqrt`). Operands may be secret or public; with a public
factor, products take the rounds of `multiply_public`.

| function | what it is | elements | error | rounds | torch |
|---|---|---|---|---|---|
"""


_TRAINING = f"""
## Training

Gradients are numbers as all others: what is below 4e-6 of them is lost, and each has an error of a few roundings. A loss that is
a mean over a batch divides them by its size; with `reduction="sum"`, and a step size divided by it, they keep as many bits more
(`torch.optim.Adam` needs no other step size).

Optimizers that divide by roots of sums of squares (Adam, AdamW, RMSprop, Adagrad) would find squares of gradients below 2e-3 to
be 0. So `addcmul` on shares gives a sum of squares with {FINE_BITS} fraction bits, scaling keeps them, `sqrt` of it has
{MOST_DIVISOR_BITS}, and `addcdiv` and `/` take such a divisor; every other operation, and `reveal`, gets the value at
{FRACTION_BITS}. Means of squares must stay below 64. Before its root, 2**-38 is added to such a sum: a gradient of a few
roundings makes steps of about twice the step size at most, where an `eps` of 1e-8 alone would not hold it. An `eps` that is
added before a root, as Adadelta's 1e-6 is, rounds to 0: give one of 1e-5 or more.

`python -m benchmarks.training` trains beside plain PyTorch on the same batches, 300 steps of a network on scikit-learn's digits:
the losses of all steps differ by less than 0.05 with a mean over the batch, and 0.01 with a sum.
"""


_NARROW = """
## Integers of fewer bits than int64, and truth values

Shares have 64 bits. What adds, multiplies, negates or converts numbers to `uint8`, `int8`, `int16` or `int32` is cut off as torch
does it, in 10 more rounds: 200 + 100 of uint8 is 44. With `x.long()` first there is nothing to cut off. Sharing, comparing and
picking such numbers (`x.max()`, `torch.where`, `x[1:]`, labels), and `x.float()`, take no rounds more. A number of Python that
does not fit into the dtype (`x < 300` of uint8) is refused. `a + b` of truth values is a logical or, and `a * b` an and.
"""

_WITHOUT = """
## Without a function

Rearrangements, constants and copies: each party does them on its own, exactly, without a message. Positions are public.
"""

_INSTEAD = """
## What to use instead

Nothing on shares is written: after `x += y`, x stands for a new value, which a tensor with views cannot, and `torch.where`,
`torch.cat` or `torch.select_scatter` stand for `x[0] = y`. Values decide no size and no branch: `torch.where(mask, x, 0)` for
`x[mask]`, and for `if` and `item()` a choice by `torch.where`, or `reveal()` first.

| not on shares | use |
|---|---|
"""


def secure_ops_page() -> str:
    """The text of `docs/reference/secure-ops.md`."""
    lines = "".join(f"{_line(name, op)}\n" for name, op in SECURE_OPS.items())
    without = _bases(name for name, form in FORMS.items() if not form.functions)
    instead = "".join(f"| `{name}` | {text.replace('|', chr(92) + '|')} |\n" for name, text in INSTEAD.items())
    return f"{_HEAD}{lines}{_TRAINING}{_NARROW}{_WITHOUT}\n{without}.\n{_INSTEAD}{instead}"


def _bases(names: Iterable[str]) -> str:
    """Operations without their overloads, each once."""
    return ", ".join(f"`{base}`" for base in dict.fromkeys(name.split(".")[1] for name in names))


def _amount(value: float) -> str:
    """Powers of 2 as such."""
    mantissa, exponent = math.frexp(abs(value) + (1 if value in (WIDE, -WIDE) else 0))
    if mantissa == 0.5 and abs(exponent - 1) > 8:
        return f"{'-' if value < 0 else ''}2**{exponent - 1}"
    return f"{value:g}"


def _line(name: str, op: SecureOp) -> str:
    errors = ([f"{op.absolute:.2g}"] if op.absolute else []) + ([f"{op.relative:.2g} of it"] if op.relative else [])
    rounds = f"{op.rounds}, {op.small_rounds}" if op.small_rounds else str(op.rounds)
    if op.halving:
        rounds = f"{op.rounds} ceil(log2(n))" if op.rounds > 1 else "ceil(log2(n))"
    if op.sorting:
        rounds = f"{op.rounds}, 8 a further level"
    if op.largest:
        rounds = f"M + {op.rounds}" if op.rounds else "M"
    uses = _bases(form_name for form_name, form in FORMS.items() if name in form.functions)
    summary = op.summary.replace("|", "\\|")
    error, interval = " and ".join(errors) or "none", f"{_amount(op.low)} to {_amount(op.high)}"
    return f"| `{name}` | {summary} | {interval} | {error} | {rounds} | {uses} |"
