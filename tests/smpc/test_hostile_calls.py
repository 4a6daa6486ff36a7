"""Whatever arguments a command has, a party computes or refuses: nothing else comes out of a call.

Calls that work are recorded, and some of their arguments replaced by others of the same kind, at random.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from grid.errors import GridError, InvalidRequest, QuotaExceeded
from grid.smpc.functions import comparisons
from grid.smpc.interpreter import Call, Value
from grid.smpc.numbers import Number, encode
from grid.smpc.operations.table import FORMS
from grid.smpc.plain import Plain, completed
from grid.smpc.shares import Shared
from grid.tensors.ops import lookup
from grid.wire.messages import DType
from tests.smpc import on_shares as harness
from tests.smpc.torch_cases import DERIVED, ELEMENTWISE, MATRIX, MODULES, SHAPED, derivable, gradients, made, with_statistics

MOST = 1 << 12
SHAPES = [(), (0,), (1,), (3,), (2, 3), (3, 3), (3, 2), (2, 3, 4), (1, 2, 4, 4), (2, 2, 3, 3)]
Recorded = tuple[str, list[Any], dict[str, Any]]

OTHERS: list[Callable[[Any], Any]] = [
    lambda x: torch.scatter(x, 1, torch.tensor([[0], [1], [2]]), x),
    lambda x: x.scatter_add(1, torch.tensor([[0], [1], [2]]), x),
    lambda x: torch.slice_scatter(x, x[:1], 0, 0, 1),
    lambda x: torch.select_scatter(x, x[0], 0, 1),
    lambda x: x.index_put((torch.tensor([0]),), x[:1]),
    lambda x: x.index_add(0, torch.tensor([0]), x[:1]),
    lambda x: torch.addmv(x[:, 0], x, x[0]),
    lambda x: F.embedding(torch.tensor([1]), x),
    lambda x: torch.diag_embed(x),
    lambda x: x.addcdiv(x, x + 9),
    lambda x: torch.vdot(x[0], x[1]),
]


@pytest.fixture(scope="module")
def recorded() -> list[Recorded]:
    calls: list[Recorded] = []

    class Recording(Call):
        def __init__(self, name: str, args: Any, kwargs: Any, *, most: int) -> None:
            calls.append((name, list(args), dict(kwargs)))
            super().__init__(name, args, kwargs, most=most)

    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(harness, "Call", Recording)
        for case in (*ELEMENTWISE.values(), *SHAPED.values()):
            case.function(*(harness.on_shares(x, 1) for x in made(case, MATRIX, 3)))
        for make, x in MODULES.values():
            module = with_statistics(make()).eval().requires_grad_(False)
            held = [(k, v) for k, v in (*module.named_parameters(), *module.named_buffers()) if v.is_floating_point()]
            for given in ({}, {key: harness.on_shares(value, 1) for key, value in held}):
                torch.func.functional_call(module, given, (harness.on_shares(x, 1),))
            with torch.enable_grad():
                given = {key: harness.on_shares(value, 1).requires_grad_() for key, value in held if "running" not in key}
                statistics = {key: harness.on_shares(value, 1) for key, value in held if "running" in key}
                module.train(not isinstance(module, torch.nn.Dropout))
                found = torch.func.functional_call(module, {**given, **statistics}, (harness.on_shares(x, 1),))
                if found.requires_grad:
                    found.sum().backward()
        for call in OTHERS:
            call(harness.on_shares(torch.randn(3, 4), 1))
        with torch.enable_grad():
            for name, function in DERIVED.items():
                gradients(function, [harness.on_shares(x, 1).requires_grad_() for x in derivable(name)])
    return calls


def tensor(rng: random.Random) -> torch.Tensor:
    x = torch.randn(rng.choice(SHAPES)) * 3
    return rng.choice([lambda: x, lambda: x, lambda: (x * 2).long(), lambda: x > 0, lambda: x.double()])()


def value(rng: random.Random) -> Value:
    x = tensor(rng)
    shared = Shared(encode(x))
    if x.dtype == torch.bool and rng.random() < 0.6:
        return Value(completed(comparisons.boolean(Plain(), Number(shared, 0))), torch.bool)
    return Value(shared, x.dtype)


def argument(rng: random.Random, parameter: Any) -> Any:
    """Some value of the kind that the operation's schema asks for."""
    kind = parameter.kind
    if parameter.optional and rng.random() < 0.3:
        return None
    if kind == "Tensor":
        return rng.choice([value, value, tensor, lambda _: 1, lambda _: 2.5])(rng)
    if "Tensor" in kind:
        return [rng.choice([value, tensor, lambda _: None])(rng) for _ in range(rng.randrange(3))]
    if kind.startswith("List"):
        return [rng.choice([0, 1, -1, 2, 3, 1, 1, 2, True]) for _ in range(rng.randrange(5))]
    choices: dict[str, list[Any]] = {
        "number": [0, 1, -1, 2, 0.5, -0.5, 2.5, True, float("inf"), float("nan"), 10**15],
        "float": [0.0, 1.0, 1e-5, float("nan"), 2.0, -1.0],
        "bool": [True, False],
        "str": ["none", "tanh", "x"],
        "ScalarType": [DType("f32"), DType("i64"), DType("bool"), DType("c64")],
    }
    return rng.choice(choices.get(kind, [0, 1, -1, 2, 3, -2, 100, 1 << 50]))


def test_calls_with_other_arguments_compute_or_refuse(recorded: list[Recorded]) -> None:
    rng = random.Random(4)
    torch.manual_seed(4)
    computed = 0
    for _ in range(3000):
        name, args, kwargs = rng.choice(recorded)
        op, args, kwargs = lookup(name), list(args), dict(kwargs)
        for _ in range(rng.choice([1, 1, 2])):
            place = rng.choice([*range(len(args)), *kwargs])
            if isinstance(place, int):
                args[place] = argument(rng, op.parameters[place])
            else:
                kwargs[place] = argument(rng, op.parameters[op.index[place]])
        try:
            results = completed(Call(name, args, kwargs, most=MOST).run(Plain()))
        except GridError:
            continue
        computed += 1
        assert all(result is None or result.content is not None for result in results), name
    assert computed > 500


def secret(*shape: int) -> Value:
    return Value(Shared(encode(torch.ones(shape))), torch.float32)


_PLAIN, _BOTH = (False, [0, 0], 1), [True, True, True]

TOO_MUCH: list[Recorded] = [
    # filters spread over 8000 pixels, on images with as wide an edge: one result
    ("convolution", [secret(1, 1, 1, 1), secret(1, 1, 2, 2), None, [1, 1], [4000, 4000], [8000, 8000], *_PLAIN], {}),
    ("convolution", [secret(1, 1, 1), secret(1, 1, 2), None, [1], [1 << 22], [1 << 23], False, [0], 1], {}),
    (
        "convolution_backward",
        [
            *(secret(1, 1, 1, 1), secret(1, 1, 1, 1), secret(1, 1, 2, 2)),
            *([0], [1, 1], [4000, 4000], [8000, 8000], *_PLAIN, _BOTH),
        ],
        {},
    ),
    (
        "convolution_backward",  # lists longer than images have sides
        [secret(2, 6, 2), secret(2, 4, 6), secret(6, 4, 3), [6], [2], [1], [2, 3, 3, 1], False, [0], 1, [False, True, True]],
        {},
    ),
    ("log_sigmoid_backward", [secret(3, 4), secret(3, 4), torch.zeros(2, 3, 4)], {}),
    ("silu_backward", [secret(1), secret(1 << 12)], {}),  # 3 times as many on its way
]


@pytest.mark.parametrize("call", TOO_MUCH, ids=[f"{one[0]}-{at}" for at, one in enumerate(TOO_MUCH)])
def test_what_would_take_more_memory_than_its_results_is_refused_before(call: Recorded) -> None:
    name, args, kwargs = call
    with pytest.raises((InvalidRequest, QuotaExceeded)):
        Call(f"aten.{name}.default", args, kwargs, most=MOST)


def test_rows_of_an_empty_table_are_refused() -> None:
    index = Value(Shared(encode(torch.tensor([0, 1]))), torch.int64)
    for table in (secret(0, 3), torch.zeros(0, 3)):
        with pytest.raises(InvalidRequest, match="one class or row"):
            completed(Call("aten.embedding.default", [table, index], {}, most=MOST).run(Plain()))


def test_a_loss_of_nothing_has_a_gradient_of_nothing() -> None:
    (found,) = completed(
        Call("aten.mse_loss_backward.default", [secret(), torch.ones(()), secret(0), 1], {}, most=MOST).run(Plain())
    )
    assert found.shape == (0,)


def test_the_record_has_most_operations(recorded: list[Recorded]) -> None:
    assert len({name for name, _, _ in recorded}) > 0.7 * len(FORMS)
