"""What users write in torch gives on shares what it gives on the values: operations, modules, indexing, choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from grid.errors import InvalidRequest, OpNotSupported, QuotaExceeded
from grid.smpc.operations.table import find
from tests.smpc.on_shares import on_shares, revealed
from tests.smpc.torch_cases import (
    DERIVED,
    ELEMENTWISE,
    INPUT,
    LOSSES,
    MATRIX,
    MODULES,
    SHAPED,
    SHAPES,
    TABLE,
    Case,
    derivable,
    fault,
    gradients,
    listed,
    made,
    with_statistics,
)


def check(case: Case, shape: tuple[int, ...], seed: int, parties: int) -> None:
    inputs = made(case, shape, seed)
    with torch.no_grad():
        found = listed(case.function(*(on_shares(x, parties) for x in inputs)))
    wrong = fault(case, inputs, [revealed(one) for one in found])
    assert not wrong, wrong


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_operations_of_any_shape(name: str) -> None:
    case = ELEMENTWISE[name]

    @settings(deadline=None, max_examples=8, database=None)
    @given(st.sampled_from(SHAPES), st.integers(0, 2**32))
    def holds(shape: tuple[int, ...], seed: int) -> None:
        check(case, shape, seed, 1)

    holds()
    check(case, MATRIX, 7, 3)


U8, I8, I32 = torch.uint8, torch.int8, torch.int32
NARROW: list[tuple[str, torch.dtype, list[int], Callable[..., Any]]] = [
    ("uint8 sum compared", U8, [200, 3], lambda x, y: (x + y) > 250),
    ("uint8 difference", U8, [1, 200], lambda x, y: (x - y - 7).float()),
    ("uint8 largest", U8, [200, 3], lambda x, y: torch.maximum(x + y, y).sum()),
    ("uint8 negated", U8, [3, 0], lambda x, y: -x > 0),
    ("uint8 scaled", U8, [200, 3], lambda x, y: [(x * 2.5), (x * 3).long(), x / 255, x.float(), x.sum(), x.int() * 1000]),
    ("float to uint8", U8, [5, 250], lambda x, y: (x.float() + 300).to(U8).float()),
    ("int8", I8, [-128, 127], lambda x, y: [x.abs() > 0, (x + y).long(), (x * y).sum(), -x < 0]),
    ("int8 summed up as such", I8, [-128, 127], lambda x, y: [x.sum(dtype=I8) > 0, x.cumsum(0, dtype=I8).long()]),
    ("int32 product", I32, [2**16, -(2**31)], lambda x, y: [(x * y) > 0, (x * x + y).long(), x.long() * y]),
    ("int64 to int32", torch.int64, [2**31 + 5, -(2**40) - 1], lambda x, y: x.to(I32).long()),
    ("truths added", torch.bool, [1, 0], lambda x, y: [(x + y).sum(), x + y, (x + x + 1), (x * y).sum(), x.int() + y]),
    (
        "truths picked",
        torch.bool,
        [1, 0],
        lambda x, y: [torch.full_like(x, 2).sum(), x.masked_fill(y, 2).sum(), x.sum(dtype=torch.bool)],
    ),
    (
        "uint8 picked",
        U8,
        [7, 255],
        lambda x, y: [x.max(), x.sort().values, torch.where(x > y, x, y), torch.cat([x, y]), x.flip(0) == y],
    ),
]


@pytest.mark.parametrize("parties", [1, 3])
@pytest.mark.parametrize(("dtype", "values", "function"), [case[1:] for case in NARROW], ids=[case[0] for case in NARROW])
def test_narrow_integers_wrap_and_truth_values_stay_such(
    dtype: torch.dtype, values: list[int], function: Callable[..., Any], parties: int
) -> None:
    x = torch.tensor(values).to(dtype)
    y = x.flip(0)
    for found, wanted in zip(listed(function(on_shares(x, parties), on_shares(y, parties))), listed(function(x, y)), strict=True):
        opened = revealed(found)
        assert opened.dtype == wanted.dtype
        assert torch.allclose(opened.double(), wanted.double(), atol=1e-4, rtol=1e-6), (opened, wanted)


@pytest.mark.parametrize("name", SHAPED)
def test_operations_on_matrices(name: str) -> None:
    case = SHAPED[name]
    for seed in range(4):
        check(case, MATRIX, seed, 1)
    check(case, MATRIX, 11, 3)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("secret", [False, True], ids=["public", "secret"])
def test_modules_with_public_and_with_secret_parameters(name: str, secret: bool) -> None:
    torch.manual_seed(8)
    make, x = MODULES[name]
    module = with_statistics(make()).eval().requires_grad_(False)
    held = [(k, v) for k, v in (*module.named_parameters(), *module.named_buffers()) if v.is_floating_point()]
    given = {key: on_shares(value, 3) for key, value in held} if secret else {}
    with torch.no_grad():
        found = torch.func.functional_call(module, given, (on_shares(x, 3),))
        wanted = module(x)
    assert found.shape == wanted.shape
    assert (revealed(found) - wanted).abs().max() < 5e-3 * (1 + wanted.abs().max())


def test_attention_written_out() -> None:
    q, k, v = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(2))

    def attend(q: Any, k: Any, v: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v)

    with torch.no_grad():
        found = attend(*(on_shares(one, 3) for one in (q, k, v)))
    assert (revealed(found) - attend(q, k, v)).abs().max() < 1e-3


def test_embeddings_by_secret_positions_of_public_and_secret_tables() -> None:
    positions = torch.tensor([[0, 8], [3, 3]])
    for table in (TABLE, on_shares(TABLE, 3)):
        found = F.embedding(on_shares(positions, 3), table)
        assert torch.allclose(revealed(found), TABLE[positions], atol=2 * INPUT)
    assert torch.allclose(revealed(F.embedding(positions, on_shares(TABLE, 3))), TABLE[positions], atol=2 * INPUT)


def losses_of(logits: Any) -> list[Any]:
    target = torch.tensor([0, 2, 1, 0])
    hot = F.one_hot(target, 3).float()
    return [F.cross_entropy(logits, target), F.mse_loss(logits.sigmoid(), hot), (logits.tanh().softmax(1) * hot).sum().log() * -1]


@pytest.mark.parametrize("number", range(3))
def test_autograd_takes_derivatives_on_shares(number: int) -> None:
    generator = torch.Generator().manual_seed(9)
    x, w, v = (torch.randn(shape, generator=generator) for shape in ((4, 6), (6, 5), (5, 3)))

    def gradients(x: Any, *weights: Any) -> list[Any]:
        first, second = (one.requires_grad_() for one in weights)
        losses_of((x @ first).relu() @ second)[number].backward()
        return [first.grad, second.grad]

    wanted = gradients(x.clone(), w.clone(), v.clone())
    found = gradients(*(on_shares(one, 3) for one in (x, w, v)))
    for one, right in zip(found, wanted, strict=True):
        assert (revealed(one) - right).abs().max() < 2e-3


def near(found: list[Any], wanted: list[torch.Tensor]) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all((revealed(one) - right).abs().max() < 2e-3 * (1 + right.abs().max()) for one, right in pairs)


@pytest.mark.parametrize("name", DERIVED)
def test_gradients(name: str) -> None:
    inputs = derivable(name)
    wanted = gradients(DERIVED[name], [x.clone().requires_grad_() for x in inputs])
    for parties in (1, 3) if name in LOSSES or name == "max pooled apart" else (1,):
        assert near(gradients(DERIVED[name], [on_shares(x, parties).requires_grad_() for x in inputs]), wanted)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_gradients_of_modules_and_their_statistics(name: str, training: bool) -> None:
    if name == "Dropout" and training:
        return  # each party would draw a mask of its own
    torch.manual_seed(8)
    make, x = MODULES[name]
    module = with_statistics(make()).train(training)
    names = [key for key, _ in module.named_parameters()]
    buffers = {key: value for key, value in module.named_buffers() if value.is_floating_point()}

    def through(shared: bool) -> tuple[list[Any], list[Any]]:
        held = {key: on_shares(value, 3) if shared else value.clone() for key, value in buffers.items()}

        def function(x: Any, *parameters: Any) -> Any:
            return torch.func.functional_call(module, {**dict(zip(names, parameters, strict=True)), **held}, (x,))

        given = [x, *(one.detach() for one in module.parameters())]
        inputs = [(on_shares(one, 3) if shared else one.clone()).requires_grad_() for one in given]
        return gradients(function, inputs), list(held.values())

    for found, wanted in zip(through(True), through(False), strict=True):
        assert near(found, wanted)


def test_gradients_by_secret_positions() -> None:
    positions, scores = torch.tensor([[0, 1], [2, 2]]), torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    for function in (
        lambda x, shared: F.embedding(on_shares(positions, 3) if shared else positions, x, padding_idx=0),
        lambda x, shared: F.cross_entropy(x[:2], on_shares(positions[0], 3) if shared else positions[0]),
    ):
        wanted = gradients(lambda x, f=function: f(x, False), [scores.clone().requires_grad_()])
        found = gradients(lambda x, f=function: f(x, True), [on_shares(scores, 3).requires_grad_()])
        assert near(found, wanted)


# ---------------------------------------------------------------- what is refused

SECRET = on_shares(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 1)
WHOLE = on_shares(torch.tensor([0, 1]), 1)

REFUSED: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("an operation that is not there", lambda: SECRET.sin(), OpNotSupported, "aten.sin.default"),
    ("in place", lambda: find("aten.add_.Tensor"), OpNotSupported, "use `add` and keep its result"),
    ("a fractional power", lambda: SECRET**1.25, OpNotSupported, "log"),
    ("a power of two secrets", lambda: SECRET**SECRET, OpNotSupported, "pow.Tensor_Tensor"),
    ("whole division", lambda: SECRET // 2, OpNotSupported, "floor"),
    ("a remainder", lambda: SECRET % 2, OpNotSupported, "floor"),
    ("secret positions", lambda: TABLE.index_select(0, WHOLE), OpNotSupported, "embedding"),
    ("positions outside", lambda: SECRET.index_select(0, torch.tensor([2])), InvalidRequest, "out of range"),
    ("positions outside, by gather", lambda: SECRET.gather(1, torch.tensor([[-3]])), InvalidRequest, "out of range"),
    ("a zero divisor", lambda: SECRET / 0, InvalidRequest, "zero"),
    ("infinity", lambda: SECRET.masked_fill(SECRET > 2, -math.inf), InvalidRequest, "-1e4"),
    ("NaN", lambda: SECRET + math.nan, InvalidRequest, "finite numbers alone"),
    ("a large number", lambda: SECRET + 1e15, InvalidRequest, "not smaller"),
    ("complex numbers", lambda: SECRET.to(torch.complex64), InvalidRequest, "complex64"),
    ("a batch norm of one value", lambda: torch.native_batch_norm(SECRET[:1], None, None, None, None, True, 0.1, 1e-5),
     InvalidRequest, "one value"),
    ("where a max-pool looks", lambda: revealed(F.max_pool2d(SECRET[None], 2, return_indices=True)[1]), OpNotSupported, "argmax"),
    ("a transposed convolution", lambda: nn.ConvTranspose1d(2, 2, 1)(SECRET[None]), OpNotSupported, "transposed"),
    ("bits of integers", lambda: WHOLE & 1, OpNotSupported, "truth values"),
    ("the largest of nothing", lambda: SECRET[:0].amax(0), InvalidRequest, "amax"),
    ("many one-hot rows", lambda: F.embedding(on_shares(torch.zeros(600, dtype=torch.int64), 1), torch.ones(500, 2)),
     QuotaExceeded, "300000 elements on its way"),
    ("many windows", lambda: F.max_pool2d(on_shares(torch.ones(1, 400, 400), 1), 20, 1), QuotaExceeded, "on its way"),
    ("a long sort", lambda: on_shares(torch.ones(1 << 17), 1).sort(), QuotaExceeded, "in parts"),
    ("weights of classes", lambda: F.cross_entropy(on_shares(torch.ones(2, 3), 1), torch.tensor([0, 1]), torch.ones(3)),
     OpNotSupported, "multiply them by F.one_hot"),
    ("a number beyond its dtype", lambda: on_shares(torch.ones(2, dtype=U8), 1) < 300, OpNotSupported, r"does not fit.*x\.long"),
    ("whole numbers summed to a truth value", lambda: on_shares(torch.ones(2), 1).sum(dtype=torch.bool), OpNotSupported, "any"),
    ("truths added at places", lambda: torch.zeros(2, dtype=torch.bool).index_add(
        0, torch.tensor([0, 0]), on_shares(torch.ones(2) > 0, 1)), OpNotSupported, r"x\.long"),
    ("many products", lambda: on_shares(torch.ones(500, 500), 1) @ on_shares(torch.ones(500, 500), 1),
     QuotaExceeded, "multiplications"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "says"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_refused_says_what_to_do(call: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says), torch.no_grad():
        call()
