"""Operations of torch on shares, against torch on the values: three parties in lockstep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grid.errors import InvalidRequest, OpNotSupported, QuotaExceeded
from grid.smpc.interpreter import Call, Value, fraction_bits
from grid.smpc.link import Words
from grid.smpc.local import run_parties
from grid.smpc.operations.table import FORMS
from grid.smpc.party import Operations, Party
from grid.smpc.plain import Plain, completed
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Shared
from grid.tensors.fixed import decode, encode

MOST = 1 << 16
torch.manual_seed(4)
X, Y, W = torch.randn(3, 4) * 5, torch.randn(3, 4) * 5, torch.randn(4, 2)
IMAGES, FILTERS, BIAS = torch.randn(2, 2, 6, 7), torch.randn(3, 2, 3, 3), torch.randn(3)
COUNTS = torch.arange(-6, 6).reshape(3, 4)


class Secret:
    """An operand that the parties hold in shares."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def on_shares(name: str, *args: Any, **kwargs: Any) -> Tensor:
    """The first result of an operation; `Secret`s are shared by party 1 first."""

    async def program(party: Party) -> tuple[Words, torch.dtype]:
        protocol = Replicated(party)

        async def given(arg: Any) -> Any:
            if isinstance(arg, list):
                return [await given(item) for item in arg]
            if not isinstance(arg, Secret):
                return arg
            words = encode(arg.value, fraction_bits(arg.value.dtype), 1).numpy().view(np.uint64)
            shared = await protocol.share(1, tuple(arg.value.shape), words if party.rank == 1 else None)
            return Value(shared, arg.value.dtype)

        call = Call(name, [await given(arg) for arg in args], {key: await given(arg) for key, arg in kwargs.items()}, most=MOST)
        first = (await call.run(protocol))[0]
        return await protocol.open((await first.numeric(protocol)).shared), first.dtype

    words, dtype = run_parties(program).results[0]
    return decode(torch.from_numpy(words.view(np.int64)), fraction_bits(dtype), dtype)


S = Secret
CASES: list[tuple[str, tuple[Any, ...], Callable[[], Tensor]]] = [
    ("add.Tensor", (S(X), S(Y)), lambda: X + Y),
    ("add.Tensor", (S(X), 2.5), lambda: X + 2.5),
    ("add.Tensor", (S(X), S(COUNTS)), lambda: X + COUNTS),
    ("add.Tensor", (S(X), Y[0]), lambda: X + Y[0]),
    ("sub.Tensor", (Y, S(X)), lambda: Y - X),
    ("rsub.Scalar", (S(X), 1), lambda: 1 - X),
    ("neg.default", (S(COUNTS),), lambda: -COUNTS),
    ("mul.Tensor", (S(X), S(Y)), lambda: X * Y),
    ("mul.Tensor", (S(X), S(COUNTS)), lambda: X * COUNTS),
    ("mul.Tensor", (S(COUNTS), S(COUNTS)), lambda: COUNTS * COUNTS),
    ("mul.Tensor", (S(X), 3), lambda: X * 3),
    ("mul.Tensor", (S(X), -0.3), lambda: X * -0.3),
    ("mul.Tensor", (S(COUNTS), 0.5), lambda: COUNTS * 0.5),
    ("mul.Tensor", (Y, S(X)), lambda: X * Y),
    ("div.Tensor", (S(X), 7), lambda: X / 7),
    ("div.Tensor", (S(X), 1000.0), lambda: X / 1000),
    ("pow.Tensor_Scalar", (S(X), 2), lambda: X**2),
    ("relu.default", (S(X),), lambda: X.relu()),
    ("relu.default", (S(COUNTS),), lambda: COUNTS.relu()),
    ("gt.Tensor", (S(X), S(Y)), lambda: X > Y),
    ("ge.Tensor", (S(COUNTS), S(COUNTS)), lambda: COUNTS >= COUNTS),
    ("lt.Tensor", (S(X), S(Y)), lambda: X < Y),
    ("le.Tensor", (S(X), Y), lambda: X <= Y),
    ("gt.Scalar", (S(X), 1), lambda: X > 1),
    ("lt.Scalar", (S(COUNTS), 0.5), lambda: COUNTS < 0.5),
    ("where.self", (S(X > 0), S(X), S(Y)), lambda: torch.where(X > 0, X, Y)),
    ("where.self", (X > 0, S(X), Y), lambda: torch.where(X > 0, X, Y)),
    ("sum.default", (S(X),), lambda: X.sum()),
    ("sum.dim_IntList", (S(X), [1], True), lambda: X.sum(1, keepdim=True)),
    ("mean.default", (S(X),), lambda: X.mean()),
    ("mean.dim", (S(X), [-1]), lambda: X.mean(-1)),
    ("view.default", (S(X), [2, 6]), lambda: X.view(2, 6)),
    ("t.default", (S(X),), lambda: X.t()),
    ("permute.default", (S(IMAGES), [1, 0, 3, 2]), lambda: IMAGES.permute(1, 0, 3, 2)),
    ("select.int", (S(X), 1, -1), lambda: X[:, -1]),
    ("slice.Tensor", (S(X), 1, 1, None, 2), lambda: X[:, 1::2]),
    ("expand.default", (S(X[:1]), [3, 4]), lambda: X[:1].expand(3, 4)),
    ("cat.default", ([S(X), S(Y)], 1), lambda: torch.cat([X, Y], 1)),
    ("cat.default", ([S(X), Y],), lambda: torch.cat([X, Y])),
    ("mm.default", (S(X), S(W)), lambda: X @ W),
    ("mm.default", (S(X), W), lambda: X @ W),
    ("mm.default", (X, S(W)), lambda: X @ W),
    ("mv.default", (S(X), S(W[:, 0])), lambda: X @ W[:, 0]),
    ("addmm.default", (S(W[0]), S(X), S(W)), lambda: W[0] + X @ W),
    (
        "convolution.default",
        (S(IMAGES), S(FILTERS), S(BIAS), [2, 1], [1, 0], [1, 1], False, [0, 0], 1),
        lambda: torch.nn.functional.conv2d(IMAGES, FILTERS, BIAS, stride=(2, 1), padding=(1, 0)),
    ),
    (
        "convolution.default",
        (S(IMAGES), FILTERS, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        lambda: torch.nn.functional.conv2d(IMAGES, FILTERS),
    ),
    ("max_pool2d_with_indices.default", (S(IMAGES), [3, 2], [2, 2]), lambda: torch.max_pool2d(IMAGES, (3, 2), (2, 2))),
]


@pytest.mark.parametrize(("name", "args", "expected"), CASES)
def test_an_operation_gives_what_torch_gives(name: str, args: tuple[Any, ...], expected: Callable[[], Tensor]) -> None:
    found, wanted = on_shares(f"aten.{name}", *args), expected()
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    assert (found.double() - wanted.double()).abs().max() <= (2e-4 if wanted.dtype.is_floating_point else 0)


def value(*shape: int) -> Value:
    part = np.broadcast_to(np.uint64(0), shape)
    return Value(Shared(part, part), torch.float32)


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        ("aten.add_.Tensor", (1, 2), OpNotSupported),
        ("aten.no_such.default", (), OpNotSupported),
        ("__class__", (), OpNotSupported),
        ("aten.mm.default", (value(2, 3), value(2, 3)), InvalidRequest),
        ("aten.mm.default", (value(2, 3),), InvalidRequest),
        ("aten.view.default", (value(2, 3), [7]), InvalidRequest),
        ("aten.expand.default", (value(1), [10**12]), QuotaExceeded),
        ("aten.add.Tensor", (value(1000, 1), value(1, 1000)), QuotaExceeded),
        ("aten.relu.default", (value(1 << 17),), QuotaExceeded),
        ("aten.mm.default", (value(250, 262), value(262, 250)), None),
        ("aten.mm.default", (value(256, 256), value(256, 257)), QuotaExceeded),
    ],
)
def test_what_does_not_fit_or_is_too_large_is_refused_before_anything_runs(name: str, args: Any, error: Any) -> None:
    if error is None:
        Call(name, args, {}, most=MOST)
        return
    with pytest.raises(error):
        Call(name, args, {}, most=MOST)


def test_every_kernel_is_an_operation_of_the_table() -> None:
    from grid.tensors.ops import OPS

    assert set(FORMS) <= set(OPS), set(FORMS) - set(OPS)


def test_every_form_uses_functions_of_the_table() -> None:
    from grid.smpc.functions.table import SECURE_OPS

    used = {name for form in FORMS.values() for name in form.functions}
    assert used <= set(SECURE_OPS), used - set(SECURE_OPS)
    assert set(SECURE_OPS) - used == set(), "functions that no operation uses"


def rounds(*calls: tuple[str, Callable[[list[Any]], tuple[Any, ...]]]) -> int:
    """Of calls in a row, each made from the results so far; the first is x, a secret of 4 by 10."""

    async def program(party: Party) -> None:
        zeros = np.zeros((4, 10), np.uint64)
        made: list[Any] = [Value(Shared(zeros, zeros), torch.float32)]
        for name, args in calls:
            found = await Call(f"aten.{name}", args(made), {}, most=MOST).run(Replicated(party, Operations(len(made) << 30)))
            made.append(found[0])

    return run_parties(program).rounds


ROUNDS: dict[str, tuple[int, list[tuple[str, Callable[[list[Any]], tuple[Any, ...]]]]]] = {
    "x > 0": (8, [("gt.Scalar", lambda m: (m[0], 0))]),
    "relu": (10, [("relu.default", lambda m: (m[0],))]),
    "where(x > 0, x, 1)": (10, [("gt.Scalar", lambda m: (m[0], 0)), ("where.self", lambda m: (m[1], m[0], torch.tensor(1.0)))]),
    "(x > 0) * x": (10, [("gt.Scalar", lambda m: (m[0], 0)), ("mul.Tensor", lambda m: (m[1], m[0]))]),
    "(x > 0).t().sum()": (
        10,
        [("gt.Scalar", lambda m: (m[0], 0)), ("t.default", lambda m: (m[1],)), ("sum.default", lambda m: (m[2],))],
    ),
    "~(x > 0)": (8, [("gt.Scalar", lambda m: (m[0], 0)), ("bitwise_not.default", lambda m: (m[1],))]),
    "(x > 0) & (x < 1)": (
        13,
        [
            ("gt.Scalar", lambda m: (m[0], 0)),
            ("lt.Scalar", lambda m: (m[0], 1.0)),
            ("bitwise_and.Tensor", lambda m: (m[1], m[2])),
        ],
    ),
    "(x > 0).any(1)": (10, [("gt.Scalar", lambda m: (m[0], 0)), ("any.dim", lambda m: (m[1], 1))]),
    "2 * x": (0, [("mul.Tensor", lambda m: (m[0], 2.0))]),
    "x / 3": (2, [("div.Tensor", lambda m: (m[0], 3.0))]),
    "x * x": (3, [("mul.Tensor", lambda m: (m[0], m[0]))]),
    "x @ public": (2, [("mm.default", lambda m: (m[0], torch.ones(10, 2)))]),
    "x @ whole": (0, [("mm.default", lambda m: (m[0], torch.ones(10, 2, dtype=torch.int64)))]),
    "x.t() @ x": (3, [("t.default", lambda m: (m[0],)), ("mm.default", lambda m: (m[1], m[0]))]),
    "norm": (3 + 24, [("linalg_vector_norm.default", lambda m: (m[0], 2, [1]))]),
    "sort": (17, [("sort.default", lambda m: (m[0], 1))]),
    "views": (0, [("view.default", lambda m: (m[0], [40])), ("flip.default", lambda m: (m[1], [0]))]),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_operations_take_the_rounds_of_their_functions(name: str) -> None:
    stated, calls = ROUNDS[name]
    assert stated - 4 <= rounds(*calls) <= stated


def test_a_small_result_does_not_keep_a_large_operand() -> None:
    x = value(100, 100)
    for name, args in (("select.int", (x, 0, 3)), ("view.default", (x, [10_000])), ("slice.Tensor", (x, 1, 0, 1))):
        (found,) = completed(Call(f"aten.{name}", args, {}, most=MOST).run(Plain()))
        assert found is not None
        for part in found.shared.parts:
            root = part
            while isinstance(root.base, np.ndarray):
                root = root.base
            assert root.nbytes <= 2 * part.nbytes
