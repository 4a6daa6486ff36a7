"""Every function on secrets against the plain one: error, domain and rounds are those of `grid.smpc.functions.table`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.errors import ExecutionFailed, InvalidRequest
from grid.smpc.functions import arithmetic, comparisons, exponential, inverses, layers, softmaxes
from grid.smpc.functions.extremes import level_rounds, max_with_index
from grid.smpc.functions.leading import COMPARED_AT_ONCE
from grid.smpc.functions.table import SECURE_OPS, UNIT, SecureOp
from grid.smpc.local import run_parties
from grid.smpc.numbers import Boolean, Number, decode, default_fraction, encode
from grid.smpc.packing import pack, unpack
from grid.smpc.party import Party
from grid.smpc.plain import Plain, Watch, completed
from grid.smpc.protocol import FRACTION_BITS
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Bits, Shared
from tests.smpc.streams import dealt

Floats = npt.NDArray[Any]
Make = Callable[[Floats], Floats]


@dataclasses.dataclass
class Case:
    """How a function is called on an array, and what it should give."""

    expected: Callable[..., Any]
    arguments: Callable[[Floats], list[Any]] = lambda x: [x]
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    items: Callable[[tuple[int, ...]], tuple[int, int]] | None = None
    """Of a function over an axis: items, and columns beside one another."""


def pair(x: Floats) -> list[Any]:
    return [x, np.roll(np.flip(x), 1)]


def truths(x: Floats) -> list[Any]:
    return [x > 0.5, np.roll(x > 0.25, 1)]


def along_last(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[-1], int(np.prod(shape[:-1]))


def tensor(x: Floats) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def derivative(function: Callable[[torch.Tensor], torch.Tensor], x: Floats) -> Floats:
    given = tensor(x).requires_grad_()
    made: Floats = torch.autograd.grad(function(given).sum(), given)[0].numpy()
    return made


def images(x: Floats) -> Floats:
    return np.resize(x, (2, 3, 5, 4))


def small(x: Floats) -> Floats:
    return np.resize(x, (6, 5)) / 1024


CASES: dict[str, Case] = {
    "add": Case(np.add, pair),
    "subtract": Case(np.subtract, pair),
    "multiply": Case(np.multiply, pair),
    "multiply_public": Case(lambda x: x * -0.7, keywords={"factor": -0.7}),
    "add_product": Case(lambda x, y, z: x + y * z, lambda x: [x, *pair(x)]),
    "divide_public": Case(lambda x: x / 3, keywords={"divisor": 3}),
    "matmul": Case(np.matmul, lambda x: [np.resize(x, (4, 6)), np.resize(x, (6, 5))]),
    "conv2d": Case(
        lambda x, w: F.conv2d(tensor(x), tensor(w), stride=(2, 1), padding=(0, 1)).numpy(),
        lambda x: [images(x), np.resize(np.flip(x), (4, 3, 2, 3))], {"stride": (2, 1), "padding": (0, 1)},
    ),
    "sum": Case(lambda x: x.sum(-1), keywords={"axis": -1}),
    "mean": Case(lambda x: x.mean(-1), keywords={"axis": -1}),
    "var": Case(lambda x: x.var(-1, ddof=1), lambda x: [np.resize(x, (3, max(2, x.size)))], {"axis": -1}),
    "squared_norm": Case(lambda x: (x * x).sum(-1), keywords={"axis": -1}),
    "cumsum": Case(lambda x: x.cumsum(-1), keywords={"axis": -1}),
    "prod": Case(lambda x: x.prod(-1), lambda x: [np.resize(x, (5, 7))], {"axis": -1}, along_last),
    "floor": Case(np.floor),
    "ceil": Case(np.ceil),
    "trunc": Case(np.trunc),
    "less": Case(np.less, pair),
    "less_equal": Case(np.less_equal, pair),
    "greater": Case(np.greater, pair),
    "greater_equal": Case(np.greater_equal, pair),
    "equal": Case(np.equal, lambda x: [x, np.where(np.arange(x.size).reshape(x.shape) % 2, x, x + UNIT)]),
    "not_equal": Case(np.not_equal, lambda x: [x, np.where(np.arange(x.size).reshape(x.shape) % 2, x, x - UNIT)]),
    "both": Case(np.logical_and, truths),
    "either": Case(np.logical_or, truths),
    "differ": Case(np.logical_xor, truths),
    "all": Case(lambda x: x.all(-1), lambda x: [np.resize(x > 0.1, (6, 7))], items=along_last),
    "any": Case(lambda x: x.any(-1), lambda x: [np.resize(x > 0.9, (6, 7))], items=along_last),
    "number": Case(lambda x: x, lambda x: [x > 0.5]),
    "where": Case(np.where, lambda x: [x > 1, *pair(x)]),
    "relu": Case(lambda x: np.maximum(x, 0)),
    "abs": Case(np.abs),
    "sign": Case(np.sign),
    "clamp": Case(lambda x: np.clip(x, -1.5, 2), keywords={"low": -1.5, "high": 2.0}),
    "minimum": Case(np.minimum, pair),
    "maximum": Case(np.maximum, pair),
    "max": Case(lambda x: x.max(-1), items=along_last),
    "min": Case(lambda x: x.min(-1), items=along_last),
    "argmax": Case(lambda x: x.argmax(-1), items=along_last),
    "argmin": Case(lambda x: x.argmin(-1), items=along_last),
    "sort": Case(lambda x: np.sort(x, -1), keywords={"axis": -1}),
    "topk": Case(lambda x: np.sort(x, -1)[..., :-2:-1], lambda x: [x], {"k": 1, "axis": -1}),
    "max_pool2d": Case(
        lambda x: F.max_pool2d(tensor(x), (3, 2), (2, 1), (1, 1)).numpy(), lambda x: [images(x)],
        {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1)}, lambda _: (6, 2 * 3 * 3 * 5),
    ),
    "exp": Case(np.exp),
    "reciprocal": Case(lambda x: 1 / x, lambda x: [np.where(np.abs(x) < 2.0**-17, 2.0**-17, x)]),
    "divide": Case(np.divide, lambda x: [np.flip(x) - 500, x]),
    "sqrt": Case(np.sqrt),
    "rsqrt": Case(lambda x: x**-0.5),
    "log": Case(np.log),
    "sigmoid": Case(lambda x: torch.sigmoid(tensor(x)).numpy()),
    "tanh": Case(np.tanh),
    "gelu": Case(lambda x: F.gelu(tensor(x)).numpy()),
    "gelu_tanh": Case(lambda x: F.gelu(tensor(x), approximate="tanh").numpy()),
    "silu": Case(lambda x: F.silu(tensor(x)).numpy()),
    "gelu_slope": Case(lambda x: derivative(F.gelu, x)),
    "gelu_tanh_slope": Case(lambda x: derivative(lambda y: F.gelu(y, approximate="tanh"), x)),
    "silu_slope": Case(lambda x: derivative(F.silu, x)),
    "leaky_relu": Case(lambda x: F.leaky_relu(tensor(x)).numpy()),
    "elu": Case(lambda x: F.elu(tensor(x)).numpy()),
    "softplus": Case(lambda x: F.softplus(tensor(x)).numpy()),
    "softmax": Case(lambda x: tensor(x).softmax(-1).numpy(), items=along_last),
    "log_softmax": Case(lambda x: tensor(x).log_softmax(-1).numpy(), items=along_last),
    "avg_pool2d": Case(
        lambda x: F.avg_pool2d(tensor(x), (3, 2), (2, 1), (1, 1)).numpy(), lambda x: [images(x)],
        {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1)},
    ),
    "batch_norm": Case(
        lambda x, m, v, w, b: F.batch_norm(*map(tensor, (x, m, v, w, b))).numpy(),
        lambda x: [images(x), *(np.resize(x, 3) / 9, np.array([0.25, 1, 30]), np.array([1, -0.5, 0.125]), np.resize(x, 3))],
    ),
    "layer_norm": Case(
        lambda x, w, b: F.layer_norm(tensor(x), x.shape[-1:], tensor(w), tensor(b)).numpy(),
        lambda x: [np.resize(x, (7, 6)) + np.arange(6), np.linspace(-1, 1, 6), np.arange(6.0)],
    ),
    "embedding": Case(lambda index, table: table[index], lambda x: [np.arange(12).reshape(3, 4) % 5, np.resize(x, (5, 6))]),
}  # fmt: skip

ELEMENTWISE = [
    name
    for name, case in CASES.items()
    if not case.items and "axis" not in case.keywords and case.arguments(np.ones(()))[0].shape == ()
]
SHAPES = [(1,), (63,), (65,), (3, 4), (2, 1, 5), (4, 100)]


def made(op: SecureOp, shape: tuple[int, ...], seed: int) -> Floats:
    """Elements of all sizes from the op's interval, its ends, and those next to zero; multiples of the resolution."""
    rng = np.random.default_rng(seed)
    far = max(abs(op.low), abs(op.high))
    sizes = 2.0 ** rng.uniform(-FRACTION_BITS, np.log2(far), shape)
    x = np.where(rng.random(shape) < 0.5, rng.choice([-1.0, 1.0], shape) * sizes, rng.normal(0, 3, shape))
    if op.low >= 0:
        x = np.abs(x)
    edges = np.array([op.high, op.low, 0, UNIT, -UNIT, 1, -1, 0.5, -(2.0**-17)])
    flat = x.reshape(-1)
    place = rng.random(flat.size) < 0.1
    flat[place] = rng.choice(edges, int(place.sum()))
    return np.clip(np.rint(np.clip(x, op.low, op.high) / UNIT) * UNIT, op.low, op.high)


def secret(value: Any, share: Callable[[npt.NDArray[np.int64]], Shared]) -> Any:
    """An argument of a function: numbers and truth values become shared."""
    if value.dtype == np.bool_:
        return Boolean(Bits(*(share(pack(value.reshape(1, -1)).view(np.int64)).parts)), value.shape)
    number = torch.as_tensor(np.array(value, order="C"))
    return Number(share(encode(number).view(np.int64)), 0 if value.dtype.kind == "i" else FRACTION_BITS)


def plain_shared(words: npt.NDArray[np.int64]) -> Shared:
    return Shared(words.view(np.uint64))


def revealed(results: list[Any]) -> Floats:
    """The value that one share of each party, or the plain protocol's only one, make up."""
    if isinstance(results[0], tuple):
        results = [result[0] for result in results]
    if isinstance(results[0], Boolean):
        words = np.bitwise_xor.reduce([result.bits.parts[0] for result in results])
        shape = results[0].shape
        return unpack(words, int(np.prod(shape)))[0].reshape(shape).astype(bool)
    words = np.asarray(sum(result.raw.parts[0] for result in results[1:]) + results[0].raw.parts[0])
    return decode(words, results[0].fraction, torch.float64).numpy()


def check(name: str, results: list[Any], arguments: list[Floats]) -> None:
    op = SECURE_OPS[name]
    expected = np.asarray(CASES[name].expected(*arguments))
    got = revealed(results)
    assert got.shape == expected.shape
    off = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    assert (off <= op.absolute + op.relative * np.abs(expected)).all(), (name, off.max())


def test_every_function_has_a_case() -> None:
    assert list(CASES) == list(SECURE_OPS)


@pytest.mark.parametrize("name", SECURE_OPS)
def test_errors_are_within_the_stated_bounds(name: str) -> None:
    op, case = SECURE_OPS[name], CASES[name]

    @settings(deadline=None, max_examples=12, database=None)
    @given(st.sampled_from(SHAPES), st.integers(0, 2**32))
    def holds(shape: tuple[int, ...], seed: int) -> None:
        arguments = case.arguments(made(op, shape, seed))
        watch = Watch()
        protocol = Plain(watch=watch, rounding=np.random.default_rng(seed))
        result = completed(op.function(protocol, *(secret(x, plain_shared) for x in arguments), **case.keywords))
        check(name, [result], arguments)
        assert not watch.overflows(), "a truncation's input is too large"

    holds()


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0)], ids=str)
def test_scalars_and_empty_tensors_and_transposed_ones(name: str, shape: tuple[int, ...]) -> None:
    op, case = SECURE_OPS[name], CASES[name]
    for x in (np.full(shape, 1.5), np.array([[1.0, 2.0], [3.0, 4.0], [1.5, 0.5]]).T):
        for protocol in (Plain(), Plain(rounding=np.random.default_rng(0))):
            arguments = case.arguments(x)
            given = [secret(value, plain_shared) for value in arguments]
            turned = [value.each(np.asfortranarray) if isinstance(value, Number) and value.shape else value for value in given]
            check(name, [completed(op.function(protocol, *turned, **case.keywords))], arguments)


@pytest.mark.parametrize("name", SECURE_OPS)
def test_rounds_between_parties_are_those_stated(name: str) -> None:
    op, case = SECURE_OPS[name], CASES[name]
    shape = (2, COMPARED_AT_ONCE) if name in ("reciprocal", "divide", "sqrt", "rsqrt", "log") else (4, 10)
    small_tensor = op.small_rounds is not None and shape == (4, 10)
    arguments = case.arguments(made(op, shape, 1))

    async def program(party: Party) -> Any:
        given = [secret(x, functools.partial(dealt_as, rank=party.rank, bits=x.dtype == np.bool_)) for x in arguments]
        return await op.function(Replicated(party), *given, **case.keywords)

    outcome = run_parties(program)
    check(name, outcome.results, arguments)
    stated = (op.small_rounds or 0) if small_tensor else op.rounds
    if op.largest:
        assert case.items is not None
        stated += level_rounds(*case.items(arguments[0].shape))
    if op.halving:
        stated *= (arguments[0].shape[-1] - 1).bit_length()
    # A party that needs nothing more of one step begins the next one earlier, so that a few may be saved.
    assert stated - 6 <= outcome.rounds <= stated


def dealt_as(words: npt.NDArray[np.int64], *, rank: int, bits: bool) -> Shared:
    if not bits:
        return dealt(words, rank)
    first, second = np.random.default_rng(5).integers(0, 1 << 64, (2, *words.shape), np.uint64)
    components = (first, second, words.view(np.uint64) ^ first ^ second)
    return Shared(components[rank], components[(rank + 1) % 3])


# ---------------------------------------------------------------- what the table does not say


def number(value: Any, fraction: int | None = None) -> Number:
    plain = torch.as_tensor(value)
    return Number(Shared(encode(plain, fraction)), default_fraction(plain.dtype) if fraction is None else fraction)


def on_plain(function: Callable[..., Any], *arguments: Any, watch: Watch | None = None, **keywords: Any) -> Floats:
    return revealed([completed(function(Plain(watch=watch), *arguments, **keywords))])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**43, -(2.0**43)])
def test_what_the_ring_cannot_hold_is_refused_with_one_text(bad: float) -> None:
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(ExecutionFailed, match="each must be finite and smaller in size than") as caught:
            encode(torch.tensor([0.5, bad], dtype=dtype))
        assert str(bad) not in str(caught.value)
    with pytest.raises(ExecutionFailed):
        encode(torch.tensor([1 << 61]))
    with pytest.raises(InvalidRequest, match="not complex64"):
        encode(torch.tensor([1j]))
    with pytest.raises(InvalidRequest, match="from 0 to 60 fraction bits, not 61"):
        encode(torch.tensor([1.0]), 61)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-(2.0**42), 2.0**42), max_size=70), st.sampled_from([0, 1, 18]))
def test_encoding_rounds_to_the_nearest(values: list[float], fraction: int) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    back = decode(encode(x, fraction), fraction, torch.float64)
    assert back.shape == x.shape and ((back - x).abs() <= 2.0 ** -(fraction + 1)).all()


def test_integers_booleans_and_their_dtypes_are_exact() -> None:
    for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool):
        x = torch.tensor([0, 1, 1], dtype=dtype)
        assert torch.equal(decode(encode(x), 0, dtype), x)
    largest = torch.tensor([(1 << 61) - 1, -(1 << 61) + 1])
    assert torch.equal(decode(encode(largest), 0, torch.int64), largest)
    assert decode(encode(torch.tensor(2.5)), FRACTION_BITS, torch.int64).item() == 2


def test_integers_and_fractions_mix() -> None:
    x, k = np.array([0.5, -1.25, 3.0]), np.array([2, -3, 4])
    for function, right in [(arithmetic.add, x + k), (arithmetic.subtract, x - k), (arithmetic.multiply, x * k)]:
        assert np.array_equal(on_plain(function, number(x), number(k)), right)
    assert np.array_equal(on_plain(arithmetic.multiply, number(k), number(k)), k * k)
    assert np.array_equal(on_plain(comparisons.less, number(x), number(k)), x < k)
    with pytest.raises(InvalidRequest, match="20 fraction bits is used where 18 are"):
        on_plain(exponential.exp, number(x, 20))
    with pytest.raises(InvalidRequest, match="do not broadcast"):
        on_plain(arithmetic.add, number(x), number(np.zeros(2)))
    with pytest.raises(InvalidRequest, match="divisor is 0"):
        on_plain(arithmetic.divide_public, number(x), divisor=[1, 0, 2])


def test_divisors_of_very_different_sizes() -> None:
    x, by = np.array([5000.0, -3.5, 4000.0, 0.25]), np.array([1000.0, 0.5, -4096.0, 7.0])
    assert np.abs(on_plain(arithmetic.divide_public, number(x), divisor=by) - x / by).max() < 2e-5


@pytest.mark.parametrize("n", [1, 3, 1000, 1024, 40_001])
def test_means_of_many_large_numbers(n: int) -> None:
    for x in (np.full(n, 1e5), np.full(n, -1e5), 1e5 - np.arange(float(n))):
        watch = Watch()
        found = on_plain(arithmetic.mean, number(x), watch=watch)
        assert not watch.overflows()
        assert abs(found - x.mean()) <= 2.0**-17 + 2.0**-22 * abs(x.mean())


def test_choices_broadcast() -> None:
    condition, x, y = np.array([[True], [False]]), np.arange(70.0), np.array(-1.0)
    b = secret(condition, plain_shared)
    assert np.array_equal(on_plain(comparisons.where, b, number(x), number(y)), np.where(condition, x, y))
    assert np.array_equal(on_plain(comparisons.number, b.each(np.transpose)), condition.T)


def test_zero_has_results_that_are_finite() -> None:
    for function in (inverses.reciprocal, inverses.sqrt, inverses.rsqrt):
        for count in (3, 300):
            watch = Watch()
            assert not on_plain(function, number(np.zeros(count)), watch=watch).any()
            assert not watch.overflows()


def test_exp_is_zero_far_below() -> None:
    assert not on_plain(exponential.exp, number(np.array([-16.0, -100, -5000, -(2.0**18)]))).any()


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000])
def test_softmax_of_any_number_of_items(n: int) -> None:
    for scale in (0.0, 1.0, 3e4):
        x = np.random.default_rng(n).normal(0, scale, (3, n)).clip(-1e5, 1e5).round(3)
        assert np.abs(on_plain(softmaxes.softmax, number(x)) - tensor(x).softmax(-1).numpy()).max() < 2e-5
        assert np.abs(on_plain(softmaxes.log_softmax, number(x)) - tensor(x).log_softmax(-1).numpy()).max() < 4e-5


@pytest.mark.parametrize(("shape", "axis"), [((70_000,), 0), ((3, 700), 1), ((5, 4000), 0), ((2, 1, 3), 1), ((40, 90, 4), 2)])
def test_the_first_of_equal_items_is_the_largest(shape: tuple[int, ...], axis: int) -> None:
    x = np.random.default_rng(0).integers(-4, 4, shape) * 0.5
    assert np.array_equal(on_plain(SECURE_OPS["argmax"].function, number(x), axis), x.argmax(axis))
    assert np.array_equal(on_plain(SECURE_OPS["argmin"].function, number(x), axis), x.argmin(axis))
    value, index = completed(max_with_index(Plain(), number(x), axis))
    assert np.array_equal(revealed([value]), x.max(axis)) and np.array_equal(revealed([index]), x.argmax(axis))


def test_a_watch_finds_arguments_outside_of_a_domain() -> None:
    for function, bad, good in [
        (exponential.exp, 14.5, -50.0),
        (inverses.log, 0.0, 1.0),
        (inverses.sqrt, -1.0, 0.0),
        (inverses.reciprocal, 2.0**18, -2.0),
    ]:
        for value, wrong in ((bad, True), (good, False)):
            watch = Watch()
            watch.operation = "here"
            on_plain(function, number(np.array([value])), watch=watch)
            assert watch.overflows() == (["here"] if wrong else [])


def test_only_known_classes_are_embedded() -> None:
    table = np.arange(12.0).reshape(4, 3)
    index = np.array([3, 4, -1, 0])
    expected = np.stack([table[3], table[0] * 0, table[0] * 0, table[0]])
    assert np.array_equal(on_plain(layers.embedding, number(index), number(table)), expected)


def test_roots_and_quotients_of_sums_of_small_squares() -> None:
    rng = np.random.default_rng(4)
    sizes = 2.0 ** rng.uniform(-18, 2, 400)
    squares, means = sizes**2, np.rint(sizes * rng.uniform(-3, 3, 400) / UNIT) * UNIT
    for place in (slice(0, 400), slice(0, 100)):  # many, and few enough to be compared
        root = completed(inverses.sqrt(Plain(), number(squares[place], arithmetic.FINE_BITS)))
        wanted = np.sqrt(squares[place] + inverses.FINE_FLOOR)
        off = np.abs(revealed([root]) - wanted)
        assert (off <= 1e-5 * wanted + 2.0**-28 + 2.0**-41 / wanted).all()  # the last is what the square was rounded by
        steps = revealed([completed(inverses.divide(Plain(), number(means[place]), root))])
        exact = means[place] / revealed([root])
        assert (np.abs(steps - exact) <= 4 * UNIT + 6e-6 * np.abs(exact)).all()
    assert revealed([completed(inverses.divide(Plain(), number(np.ones(3)), number(np.zeros(3))))]).tolist() == [0, 0, 0]
