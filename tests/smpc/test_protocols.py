"""One suite for every protocol: each method of `Protocol` against plain arithmetic on integers mod 2**64."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from grid.smpc.local import run_parties
from grid.smpc.packing import pack, padded, unpack
from grid.smpc.party import Party
from grid.smpc.plain import Plain, Watch, completed
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Bits, Shared

Integers = npt.NDArray[np.int64]
Program = Callable[[Protocol, int], Awaitable[Any]]

SHAPES = [(), (0,), (1,), (63,), (65,), (3, 4), (2, 0, 3), (70_000,)]
EDGES = np.array([0, 1, -1, 2**62 - 1, -(2**62), 1 << 17, 3 << 17, (1 << 18) - 1, 1 << 18, -(1 << 17), -(3 << 17)], np.int64)
"""Extremes, and fractions: 0, 1/2, the largest, at 18 bits."""


def on_plain(program: Program) -> list[Any]:
    async def run() -> Any:
        return await program(Plain(), 0)

    return [completed(run())]


def on_replicated(program: Program) -> list[Any]:
    async def run(party: Party) -> Any:
        return await program(Replicated(party), party.rank)

    return run_parties(run).results


@pytest.fixture(params=[on_plain, on_replicated], ids=["plain", "replicated"])
def run(request: pytest.FixtureRequest) -> Callable[[Program], list[Any]]:
    return request.param


def values(shape: tuple[int, ...], bits: int, seed: int = 0) -> Integers:
    """Integers below 2**bits in size; the first ones are edges, where they fit."""
    made = np.random.default_rng(seed).integers(-(1 << bits), 1 << bits, shape)
    edges = EDGES[np.abs(EDGES) <= 1 << bits][: made.size]
    made.reshape(-1)[: edges.size] = edges
    return made


def words(value: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    return np.asarray(np.asarray(value, np.int64)).view(np.uint64)


async def shared(protocol: Protocol, rank: int, value: Integers, owner: int = 0) -> Shared:
    """Party `owner`'s value; a protocol of one party is given it whoever owns it."""
    given = words(value) if rank == owner or isinstance(protocol, Plain) else None
    return await protocol.share(owner, value.shape, given)


async def opened(protocol: Protocol, x: Shared) -> Integers:
    return np.asarray(await protocol.open(x)).view(np.int64)


async def opened_bits(protocol: Protocol, b: Bits, count: int) -> npt.NDArray[np.uint8]:
    return unpack(await protocol.open_bits(b), count)


def check(results: list[Any], expected: npt.ArrayLike) -> None:
    assert results
    for result in results:
        assert result.shape == np.shape(expected)
        assert np.array_equal(result, expected)


def check_rounded(results: list[Integers], dividend: list[int], bits: int, shape: tuple[int, ...]) -> None:
    """Each result is a neighbour of the quotient, and exact where there is no remainder; all parties have the same."""
    for result in results:
        assert result.shape == shape
        for got, value in zip(result.reshape(-1).tolist(), dividend, strict=True):
            assert got in (value >> bits, -(-value >> bits))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("owner", range(3))
def test_a_shared_value_opens(run: Any, shape: tuple[int, ...], owner: int) -> None:
    value = values(shape, 62)

    async def program(protocol: Protocol, rank: int) -> Integers:
        return await opened(protocol, await shared(protocol, rank, value, owner))

    check(run(program), value)


@pytest.mark.parametrize("to", range(3))
def test_opening_to_one_party_tells_that_one(run: Any, to: int) -> None:
    value = values((65,), 62)

    async def program(protocol: Protocol, rank: int) -> Any:
        return await protocol.open_to(await shared(protocol, rank, value), to)

    results = run(program)
    told = results[to % len(results)]
    assert np.array_equal(told.view(np.int64), value)
    assert [result is None for result in results].count(False) == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_needs_no_message(run: Any, shape: tuple[int, ...]) -> None:
    value, other = values(shape, 62), values(shape, 62, seed=1)

    async def program(protocol: Protocol, rank: int) -> list[Integers]:
        x = await shared(protocol, rank, value)
        made = [
            protocol.constant(words(other)), protocol.add_public(x, words(other)), protocol.add_public(x, words(-3)),
            x + protocol.constant(words(other)), x - x, -x, x.times(-5), x.reshape((-1,)),
        ]  # fmt: skip
        return [await opened(protocol, one) for one in made]

    with np.errstate(over="ignore"):
        expected = [other, value + other, value - 3, value + other, value * 0, -value, value * -5, value.reshape(-1)]
    for results in run(program):
        for result, right in zip(results, expected, strict=True):
            check([result], right)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(run: Any, shape: tuple[int, ...]) -> None:
    a, b, c = values(shape, 62), values(shape, 62, seed=1)[..., ::-1] if shape else values(shape, 62), values(shape, 40, seed=2)

    async def program(protocol: Protocol, rank: int) -> list[Integers]:
        x, y, z = [await shared(protocol, rank, value, owner) for owner, value in enumerate((a, b, c))]
        return [await opened(protocol, one) for one in (await protocol.multiply(x, y), await protocol.multiply(x, y, add=z))]

    with np.errstate(over="ignore"):
        expected = [a * b, a * b + c]
    for results in run(program):
        for result, right in zip(results, expected, strict=True):
            check([result], right)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [1, 18, 33, 48])
def test_truncations_give_a_neighbour(run: Any, shape: tuple[int, ...], bits: int) -> None:
    value = values(shape, 62)

    async def program(protocol: Protocol, rank: int) -> Integers:
        return await opened(protocol, await protocol.truncate(await shared(protocol, rank, value), bits))

    check_rounded(run(program), value.reshape(-1).tolist(), bits, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_truncated_products_give_a_neighbour(run: Any, shape: tuple[int, ...]) -> None:
    a, b, c = values(shape, 30), values(shape, 31, seed=1), values(shape, 60, seed=2)

    async def program(protocol: Protocol, rank: int) -> list[Integers]:
        x, y, z = [await shared(protocol, rank, value) for value in (a, b, c)]
        made = await protocol.multiply(x, y, FRACTION_BITS), await protocol.multiply(x, y, FRACTION_BITS, add=z)
        return [await opened(protocol, one) for one in made]

    results = run(program)
    check_rounded([first for first, _ in results], (a * b).reshape(-1).tolist(), FRACTION_BITS, shape)
    check_rounded([second for _, second in results], (a * b + c).reshape(-1).tolist(), FRACTION_BITS, shape)


@pytest.mark.parametrize("form", [(3, 4, 5), (1, 1, 1), (2, 0, 3), (0, 2, 3), (70, 65, 1), (64, 3, 130)], ids=str)
def test_matrix_products(run: Any, form: tuple[int, int, int]) -> None:
    m, k, n = form
    a, b = values((m, k), 62), values((k, n), 62, seed=1)
    small, tiny = values((m, k), 24), values((k, n), 24, seed=1)

    async def program(protocol: Protocol, rank: int) -> tuple[Integers, Integers]:
        x, y, z, w = [await shared(protocol, rank, value) for value in (a, b, small, tiny)]
        exact, rounded = await protocol.matmul(x, y), await protocol.matmul(z, w, FRACTION_BITS)
        return await opened(protocol, exact), await opened(protocol, rounded)

    results = run(program)
    check([exact for exact, _ in results], (words(a) @ words(b)).view(np.int64))
    check_rounded([rounded for _, rounded in results], (small @ tiny).reshape(-1).tolist(), FRACTION_BITS, (m, n))


@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
def test_convolutions(run: Any, stride: tuple[int, int], padding: tuple[int, int]) -> None:
    images, filters = values((2, 3, 6, 5), 62), values((4, 3, 3, 2), 62, seed=1)
    small, tiny = values((2, 3, 6, 5), 24), values((4, 3, 3, 2), 24, seed=1)

    async def program(protocol: Protocol, rank: int) -> tuple[Integers, Integers]:
        x, y, z, w = [await shared(protocol, rank, value) for value in (images, filters, small, tiny)]
        exact = await protocol.conv2d(x, y, stride=stride, padding=padding)
        rounded = await protocol.conv2d(z, w, stride=stride, padding=padding, truncate=FRACTION_BITS)
        return await opened(protocol, exact), await opened(protocol, rounded)

    def plain(x: Integers, w: Integers) -> Integers:
        made = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), stride=stride, padding=padding)
        return made.numpy()

    results, right = run(program), plain(small, tiny)
    check([exact for exact, _ in results], plain(images, filters))
    check_rounded([rounded for _, rounded in results], right.reshape(-1).tolist(), FRACTION_BITS, right.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_signs_zeros_and_bits(run: Any, shape: tuple[int, ...]) -> None:
    value = values(shape, 62)
    value = np.where(np.arange(value.size).reshape(shape) % 5 == 4, 0, value)

    async def program(protocol: Protocol, rank: int) -> list[npt.NDArray[np.uint8]]:
        x = await shared(protocol, rank, value)
        negative, zero, bits = await protocol.negative(x), await protocol.is_zero(x), await protocol.bits(x, 24)
        assert (negative.planes, bits.planes, negative.words) == (1, 24, padded(value.size) // 64)
        planes = (negative, protocol.invert(negative), zero, bits, bits[::2] ^ bits[1::2])
        return [await opened_bits(protocol, one, value.size) for one in planes]

    flat = value.reshape(-1)
    planes = np.array([flat >> j & 1 for j in range(24)])
    expected = [flat[None] < 0, flat[None] >= 0, flat[None] == 0, planes, planes[::2] ^ planes[1::2]]
    for results in run(program):
        for result, right in zip(results, expected, strict=True):
            check([result], right)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conjunctions_numbers_and_choices(run: Any, shape: tuple[int, ...]) -> None:
    value, other = values(shape, 62), values(shape, 62, seed=1)

    async def program(protocol: Protocol, rank: int) -> list[Any]:
        x, y = await shared(protocol, rank, value), await shared(protocol, rank, other)
        bits = await protocol.bits(x, 6)
        both = await protocol.conjunction(bits[:3], bits[3:])
        return [
            await opened_bits(protocol, both, value.size),
            await opened(protocol, await protocol.number(bits[1:2], shape)),
            await opened(protocol, await protocol.number(bits, shape)),
            await opened(protocol, await protocol.choose(bits[:1], y)),
        ]

    planes = np.array([value >> j & 1 for j in range(6)])
    expected = [(planes[:3] & planes[3:]).reshape(3, -1), planes[1], planes, np.where(planes[0], other, 0)]
    for results in run(program):
        for result, right in zip(results, expected, strict=True):
            check([result], right)


def test_a_shuffle_keeps_items_whole_and_orders_apart(run: Any) -> None:
    items = np.arange(120).reshape(2, 20, 3)

    async def program(protocol: Protocol, rank: int) -> tuple[Integers, Integers]:
        x = await shared(protocol, rank, items)
        mixed = await opened(protocol, await protocol.shuffle(x, axis=1)), await opened(protocol, await protocol.shuffle(x[0]))
        assert (await protocol.shuffle(x[:0])).shape == (0, 20, 3)
        return mixed

    results = run(program)
    within, first = results[0]
    for rows, source in [(within[0], items[0]), (within[1], items[1]), (first, items[0])]:
        assert np.array_equal(rows[np.argsort(rows[:, 0])], source)
    assert not np.array_equal(within[0] + 60, within[1])
    assert all(np.array_equal(within, again) for again, _ in results)


def test_work_at_the_same_time_does_not_mix(run: Any) -> None:
    value = values((65,), 30)

    async def program(protocol: Protocol, rank: int) -> list[Integers]:
        x = await shared(protocol, rank, value)

        async def times(mine: Protocol, factor: int) -> Shared:
            return await mine.multiply(await mine.multiply(x, x), mine.constant(words(np.full(65, factor))))

        made = await protocol.together(*[lambda mine, k=k: times(mine, k) for k in range(4)])
        return [await opened(protocol, one) for one in made]

    for results in run(program):
        for k, result in enumerate(results):
            check([result], value * value * k)


# ---------------------------------------------------------------- the plain protocol's own


def test_plain_rounds_down_and_with_a_generator_to_either_side_with_the_right_mean() -> None:
    x = Shared(words(np.full(20_000, -5)))
    assert set(completed(Plain().truncate(x, 2)).parts[0].view(np.int64).tolist()) == {-2}
    rounded = completed(Plain(rounding=np.random.default_rng(0)).truncate(x, 2)).parts[0].view(np.int64)
    assert set(rounded.tolist()) == {-2, -1}
    assert abs(rounded.mean() + 1.25) < 0.02


def test_a_watch_names_the_operations_that_could_overflow() -> None:
    watch = Watch()
    protocol = Plain(watch=watch)
    small, large = Shared(words([[1 << 20, 5]])), Shared(words([[1 << 40, -(1 << 40)]]))

    image = large.reshape((1, 1, 1, 2))

    async def program() -> None:
        for name, work in [
            ("small", protocol.multiply(small, small, 18)),
            ("exact", protocol.multiply(large, large)),
            ("product", protocol.multiply(large, large, 18)),
            ("matmul", protocol.matmul(large, large.each(np.transpose), 18)),
            ("cancels", protocol.matmul(large, Shared(words([[1 << 30], [1 << 30]])), 18)),
            ("conv2d", protocol.conv2d(image, image, stride=(1, 1), padding=(0, 0), truncate=1)),
            ("addend", protocol.multiply(small, small, 18, add=Shared(words([[1 << 61, 0]])))),
            ("truncate", protocol.truncate(Shared(words([[1 << 61, 0]])), 3)),
        ]:  # fmt: skip
            watch.operation = name
            await work

    completed(program())
    assert watch.overflows() == ["product", "matmul", "conv2d", "addend", "truncate"]
    assert watch.largest["small"] == 2.0**40 and watch.largest["cancels"] == 0
    assert "exact" not in watch.largest
    watch.operation = "domain"
    protocol.expect(small, 5, 1 << 20)
    assert "domain" not in watch.overflows()
    protocol.expect(small, 6, 1 << 20)
    protocol.masked().expect(small, 6, 7)
    assert watch.overflows()[-1] == "domain"


def test_packed_bits_come_apart_again() -> None:
    for count in (0, 1, 63, 64, 65, 200):
        bits = np.random.default_rng(count).integers(0, 2, (3, count), np.uint8)
        packed = pack(bits)
        assert packed.shape == (3, padded(count) // 64)
        assert np.array_equal(unpack(packed, count), bits)
        if count:
            assert [int(packed[1, e // 64]) >> e % 64 & 1 for e in range(count)] == bits[1].tolist()
