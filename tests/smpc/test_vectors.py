"""Results of all methods at the edges of the ring, whatever the masks are and in whichever order messages come."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from grid.smpc.keystreams import Randomness
from grid.smpc.link import Words
from grid.smpc.local import Outcome, fresh_keystreams, run_parties
from grid.smpc.party import Operations, Party
from grid.smpc.protocol import FRACTION_BITS
from grid.smpc.replicated.opening import DIGEST_WORDS
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Bits, Shared
from tests.smpc.streams import Constant, dealt, fixed_keystreams, unlikely

Integers = npt.NDArray[np.int64]
Call = Callable[[Replicated, Shared, Shared], Awaitable[Shared | Bits]]

ONE = 1 << FRACTION_BITS
EDGES = np.array([0, 1, -1, 2**62 - 1, -(2**62), ONE // 2, -ONE // 2, ONE - 1, 1 - ONE, 5 * ONE, ONE << 20, -(ONE << 20)])
SMALL = np.array([0, 1, -1, ONE, -ONE, ONE // 2, ONE - 1, 1 - ONE, 3, -7, 12 * ONE, -(ONE << 7)])

MASKS: dict[str, Callable[[], Sequence[Randomness]]] = {
    "fresh": fresh_keystreams,
    "zeros": lambda: [Constant(0)] * 3,
    "ones": lambda: [Constant(2**64 - 1)] * 3,
}


def bit_of(values: npt.NDArray[np.bool_]) -> Integers:
    return values.astype(np.int64)


CALLS: dict[str, tuple[Call, Callable[[Integers, Integers], Integers], int]] = {
    "multiply": (lambda p, x, y: p.multiply(x, y), lambda x, y: x * y, 0),
    "multiply truncated": (lambda p, x, y: p.multiply(x - x + y, y, FRACTION_BITS), lambda x, y: y * y >> FRACTION_BITS, 1),
    "truncate": (lambda p, x, y: p.truncate(x, FRACTION_BITS), lambda x, y: x >> FRACTION_BITS, 1),
    "truncate 40": (lambda p, x, y: p.truncate(x, 40), lambda x, y: x >> 40, 1),
    "negative": (lambda p, x, y: p.negative(x), lambda x, y: bit_of(x < 0), 0),
    "is_zero": (lambda p, x, y: p.is_zero(x), lambda x, y: bit_of(x == 0), 0),
    "bits": (lambda p, x, y: p.bits(x, 64), lambda x, y: x >> np.arange(64)[:, None] & 1, 0),
}


async def number(p: Replicated, x: Shared, y: Shared) -> Shared:
    return await p.number(await p.negative(x), x.shape)


async def choose(p: Replicated, x: Shared, y: Shared) -> Shared:
    return await p.choose(p.invert(await p.negative(x)), x)


CALLS["number"] = (number, lambda x, y: bit_of(x < 0), 0)
CALLS["choose"] = (choose, lambda x, y: np.maximum(x, 0), 0)


def opened(call: Call, x: Integers, y: Integers, **settings: Any) -> Outcome[Integers]:
    async def program(party: Party) -> Integers:
        protocol = Replicated(party, Operations(settings.get("start", 0)))
        found = await call(protocol, dealt(x, party.rank, 1), dealt(y, party.rank, 2))
        if isinstance(found, Shared):
            return (await protocol.open(found)).view(np.int64)
        packed = (await protocol.open_bits(found)).view(np.uint8)
        bits = np.unpackbits(packed, axis=1, bitorder="little")[:, : x.size].astype(np.int64)
        return bits if found.planes > 1 else bits[0]

    return run_parties(program, randomness=settings.get("randomness"), shuffle=settings.get("shuffle"))


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", CALLS)
def test_results_at_the_edges(name: str, masks: str) -> None:
    call, expected, error = CALLS[name]
    for start in range(3):
        for found in opened(call, EDGES, SMALL, randomness=MASKS[masks](), start=start).results:
            above = found - expected(EDGES, SMALL)
            assert ((above >= 0) & (above <= error)).all()


def test_multiples_are_truncated_exactly() -> None:
    values = np.array([0, ONE, -ONE, 2**62, -(2**62), 77 * ONE])
    found = opened(lambda p, x, y: p.truncate(x, FRACTION_BITS), values, values).results[0]
    assert (found == values >> FRACTION_BITS).all()


def test_truncation_is_unbiased() -> None:
    values = np.full(40_000, -ONE // 4)
    found = opened(lambda p, x, y: p.truncate(x, FRACTION_BITS), values, values, randomness=fixed_keystreams(1)).results[0]
    assert set(found.tolist()) == {-1, 0}
    assert abs(found.mean() + 0.25) < 0.012  # six standard deviations


@pytest.mark.parametrize("owner", range(3))
def test_truncation_of_an_input_as_it_was_shared_is_unbiased_too(owner: int) -> None:
    async def program(party: Party) -> Integers:
        protocol = Replicated(party)
        value = np.full(10_000, 3 * ONE // 4).view(np.uint64) if party.rank == owner else None
        x = await protocol.share(owner, (10_000,), value)
        return (await protocol.open(await protocol.truncate(x, FRACTION_BITS))).view(np.int64)

    found = run_parties(program, randomness=fixed_keystreams(owner)).results[0]
    assert abs(found.mean() - 0.75) < 0.026  # six standard deviations


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CALLS)
def test_messages_of_a_round_may_come_in_any_order(name: str, seed: int) -> None:
    call, expected, error = CALLS[name]
    for found in opened(call, EDGES, SMALL, shuffle=random.Random(seed)).results:
        above = found - expected(EDGES, SMALL)
        assert ((above >= 0) & (above <= error)).all()


@pytest.mark.parametrize("name", [*CALLS, "shuffle"])
def test_bytes_of_messages_are_uniform(name: str) -> None:
    """Of constant secrets, so that nothing but the masks makes them so."""
    call = (lambda p, x, y: p.shuffle(x)) if name == "shuffle" else CALLS[name][0]
    values = np.full(1 << 12, 5)
    outcome = opened(call, values, values, randomness=fixed_keystreams(2))
    looked_at = 0
    for view in outcome.views:
        for _, _, words in view:
            if words.size > DIGEST_WORDS:
                counts = np.bincount(words.view(np.uint8), minlength=256)
                assert not unlikely(counts, words.nbytes / 256)
                looked_at += 1
    assert looked_at >= 6


def test_a_keystream_drawn_twice_raises() -> None:
    randomness = fresh_keystreams()

    async def program(party: Party) -> Words:
        x = dealt(EDGES, party.rank)
        for _ in range(2):  # two protocols that both begin with operation 0
            x = await Replicated(party).multiply(x, x)
        return await Replicated(party).open(x)

    with pytest.raises(AssertionError, match="drawn a second time"):
        run_parties(program, randomness=randomness)
