"""What each method is said to cost is what the parties send."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from grid.smpc.local import run_parties
from grid.smpc.packing import padded
from grid.smpc.party import Operations, Party, Ring
from grid.smpc.protocol import Protocol
from grid.smpc.replicated import costs
from grid.smpc.replicated.chunks import CHUNK, DEPTH
from grid.smpc.replicated.costs import COSTS, Cost, cost
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Bits, Shared

Call = Callable[[Replicated], Awaitable[Any]]

SIZES = (0, 1, 63, 64, 65, 200, CHUNK, CHUNK + 1, DEPTH * CHUNK)
COUNT_BITS = (1, 2, 3, 24, 36, 64)


def spent(call: Call, width: int = 64, start: int = 0) -> Cost:
    async def program(party: Party) -> None:
        await call(Replicated(party, Operations(start)))

    outcome = run_parties(program, ring=Ring(width))
    return Cost(outcome.rounds, sum(outcome.bytes_sent))


def shared(*shape: int) -> Shared:
    zeros = np.zeros(shape, np.uint64)
    return Shared(zeros, zeros)


def packed(planes: int, words: int) -> Bits:
    zeros = np.zeros((planes, words), np.uint64)
    return Bits(zeros, zeros)


def calls(n: int) -> list[tuple[str, Sequence[int], Call]]:
    """A call of every method on n elements, with what its cost is asked by."""
    words = padded(n) // 64
    zeros = np.zeros(n, np.uint64)
    return [
        ("share", (n,), lambda p: p.share(1, (n,), zeros if p.party.rank == 1 else None)),
        ("multiply", (n,), lambda p: p.multiply(shared(n), shared(n))),
        ("multiply", (n, 18), lambda p: p.multiply(shared(n), shared(n), 18)),
        ("multiply", (n, 33), lambda p: p.multiply(shared(n), shared(n), 33)),
        ("truncate", (n, 18), lambda p: p.truncate(shared(n), 18)),
        ("truncate", (n, 33), lambda p: p.truncate(shared(n), 33)),
        ("negative", (n,), lambda p: p.negative(shared(n))),
        ("is_zero", (n,), lambda p: p.is_zero(shared(n))),
        ("conjunction", (3, words), lambda p: p.conjunction(packed(3, words), packed(3, words))),
        ("number", (n,), lambda p: p.number(packed(1, words), (n,))),
        ("choose", (n,), lambda p: p.choose(packed(1, words), shared(n))),
        ("shuffle", (n,), lambda p: p.shuffle(shared(n))),
        ("open", (n,), lambda p: p.open(shared(n))),
        ("open_to", (n,), lambda p: p.open_to(shared(n), 2)),
        ("open_bits", (2, words), lambda p: p.open_bits(packed(2, words))),
    ]


@pytest.mark.parametrize("n", SIZES)
def test_elementwise_methods_send_what_they_declare(n: int) -> None:
    for method, arguments, call in calls(n):
        assert spent(call) == cost(method, *arguments), (method, arguments)


@pytest.mark.parametrize("start", [1, 2])
def test_rotated_roles_cost_the_same(start: int) -> None:
    for method, arguments, call in calls(130):
        assert spent(call, start=start) == cost(method, *arguments), (method, arguments)


@pytest.mark.parametrize("planes", COUNT_BITS)
def test_bits_and_numbers_of_several_planes(planes: int) -> None:
    for n in (1, 65, CHUNK + 1):
        assert spent(lambda p, n=n: p.bits(shared(n), planes)) == cost("bits", n, planes)
    assert spent(lambda p: p.number(packed(planes, 2), (2, 40))) == cost("number", 80, planes)


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 7, 33, 63])
def test_narrow_rings(width: int) -> None:
    assert spent(lambda p: p.negative(shared(100)), width) == cost("negative", 100, width)
    assert spent(lambda p: p.is_zero(shared(100)), width) == cost("is_zero", 100, width)
    assert spent(lambda p: p.bits(shared(100), width), width) == cost("bits", 100, width)


@pytest.mark.parametrize("bits", [0, 18, 40])
def test_bilinear_maps_send_what_their_results_have(bits: int) -> None:
    assert spent(lambda p: p.matmul(shared(5, 30), shared(30, 7), bits)) == cost("matmul", 35, bits)
    assert spent(lambda p: p.matmul(shared(5, 30), shared(30, 1), bits)) == cost("matmul", 5, bits)
    images, filters = shared(2, 3, 9, 8), shared(4, 3, 3, 2)
    result = 2 * 4 * 5 * 9
    found = spent(lambda p: p.conv2d(images, filters, stride=(2, 1), padding=(1, 1), truncate=bits))
    assert found == cost("conv2d", result, bits)


def test_many_blocks_take_no_more_rounds_than_declared() -> None:
    n = (2 * DEPTH + 1) * CHUNK
    for method, arguments, call in calls(n):
        if method in ("multiply", "truncate", "choose"):
            found, declared = spent(call), cost(method, *arguments)
            assert found.bytes_sent == declared.bytes_sent
            assert cost(method, 1, *arguments[1:]).rounds < found.rounds <= declared.rounds, method


def test_every_method_that_sends_declares_its_cost() -> None:
    sends = {name for name, member in vars(Protocol).items() if inspect.iscoroutinefunction(member)}
    assert sends - {"together"} == set(COSTS)


def test_costs_add_up() -> None:
    first, second = Cost(2, 30), Cost(8, 5)
    assert first.then(second) == (10, 35)
    assert first.beside(second) == (8, 35)


def test_figures_of_the_design() -> None:
    """Bytes for an element, in all."""
    n = 64
    relu = costs.negative(n).then(costs.choose(n))
    assert relu == (8, (46.625 + 48) * n)
    assert costs.is_zero(n) == (6, 39.625 * n)
    assert costs.bits(n, 64) == (6, 130.5 * n)
    assert costs.bits(n, 24) == (5, 33.25 * n)
    assert costs.multiply(n, 18) == (3, (24 + 4.25) * n)
    assert costs.number(n) == (2, 24 * n)
