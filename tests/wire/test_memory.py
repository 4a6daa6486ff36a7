"""Buffers for large messages: whole, writable, and no larger than what has come."""

from __future__ import annotations

import random

import pytest

from grid.wire.memory import HUGE_PAGE_BYTES, LARGE_BYTES, Growing, keep_freed_memory


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("total", [1, 1000, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 5])
def test_pieces_come_back_as_one_writable_buffer(total: int) -> None:
    data = random.Random(total).randbytes(total)
    growing = Growing(total)
    for start in range(0, total, 300_001):
        growing.add(memoryview(data)[start : start + 300_001])
    whole = growing.whole()
    del growing
    assert is_whole(whole, data)
    whole[0] = 7
    assert whole[0] == 7


def is_whole(whole: memoryview, data: bytes) -> bool:
    return len(whole) == len(data) and bytes(whole) == data and not whole.readonly


def test_a_claim_takes_no_memory_before_it_is_filled() -> None:
    before = resident()
    claims = [Growing(1 << 30) for _ in range(20)]
    claims[0].add(memoryview(bytes(1000)))
    assert resident() - before < 4 * HUGE_PAGE_BYTES


def test_telling_the_allocator_twice_does_nothing_more() -> None:
    keep_freed_memory()
    assert keep_freed_memory() is None
