"""What each method of `Replicated` costs, by the number of elements: rounds, and bytes that the three parties send in all.

Which messages are sent depends on shapes alone, so these are exact, and a test compares them with what a counting link sees.
Blocks of a large tensor go side by side, `chunks.DEPTH` of them at a time; beyond that `rounds` is an upper bound, since
a block may begin before another one ends.

`count` is the number of elements, of the result where a sum is taken (matmul, conv2d). `width` is that of the ring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from grid.smpc.packing import padded
from grid.smpc.party import PARTIES
from grid.smpc.replicated.chunks import CHUNK, DEPTH
from grid.smpc.replicated.networks import GROUP, network, tree_rows

WORD = 8
DIGEST = 32


class Cost(NamedTuple):
    """Of one operation, or of several."""

    rounds: int
    bytes_sent: int
    """By all three parties."""

    def then(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(self.rounds + other.rounds, self.bytes_sent + other.bytes_sent)

    def beside(self, other: Cost) -> Cost:
        """Both at the same time."""
        return Cost(max(self.rounds, other.rounds), self.bytes_sent + other.bytes_sent)


NOTHING = Cost(0, 0)


def share(count: int) -> Cost:
    return Cost(1, WORD * count)


def multiply(count: int, truncate: int = 0) -> Cost:
    """Also of matmul and conv2d."""
    if not truncate:
        return _in_blocks(count, 1, 64 * PARTIES)
    return _in_blocks(count, 3, 64 * 3 + 2, _count_bytes(truncate))


def truncate(count: int, bits: int) -> Cost:
    return _in_blocks(count, 2, 64 * 2 + 2, _count_bytes(bits))


def negative(count: int, width: int = 64) -> Cost:
    nodes = -(-(width - 1) // GROUP)
    sent = _products(width - 1) + 1 + 2 * (2 * nodes - 1) + PARTIES * tree_rows(nodes)
    return _in_blocks(count, 2 + (nodes - 1).bit_length(), sent)


def is_zero(count: int, width: int = 64) -> Cost:
    nodes = -(-width // GROUP)
    return _in_blocks(count, 2 + (nodes - 1).bit_length(), _products(width) + 2 * nodes + PARTIES * (nodes - 1))


def bits(count: int, planes: int) -> Cost:
    if planes == 1:
        return _in_blocks(count, 1, 1)
    below = planes - 1
    levels = network(below, GROUP)
    first = _products(below) + 1 + 2 * (below + max(0, below - GROUP))
    return _in_blocks(count, 2 + len(levels), first + PARTIES * sum(level.rows for level in levels))


def conjunction(planes: int, words: int) -> Cost:
    return Cost(1, PARTIES * WORD * planes * words)


def number(count: int, planes: int = 1) -> Cost:
    return _in_blocks(planes * padded(count), 2, 64 * 3)


def choose(count: int) -> Cost:
    return _in_blocks(count, 2, 64 * 6)


def shuffle(count: int) -> Cost:
    """`count` elements of whatever items."""
    return Cost(3, 6 * WORD * count) if count else NOTHING


def open_(count: int) -> Cost:
    return Cost(1, PARTIES * (WORD * count + DIGEST))


def open_to(count: int) -> Cost:
    return Cost(1, WORD * count + DIGEST)


def open_bits(planes: int, words: int) -> Cost:
    return open_(planes * words)


COSTS: dict[str, Callable[..., Cost]] = {
    "share": share,
    "multiply": multiply,
    "matmul": multiply,
    "conv2d": multiply,
    "truncate": truncate,
    "negative": negative,
    "is_zero": is_zero,
    "bits": bits,
    "conjunction": conjunction,
    "number": number,
    "choose": choose,
    "shuffle": shuffle,
    "open": open_,
    "open_to": open_to,
    "open_bits": open_bits,
}
"""By the method of `Protocol` that sends messages."""


def cost(method: str, *arguments: Any) -> Cost:
    """Of one call."""
    return COSTS[method](*arguments)


def _in_blocks(count: int, rounds: int, bits_each: int, bytes_each: int = 0) -> Cost:
    """Of a kernel that sends so many bits, and bytes beside them, for each element; elements come in multiples of 64."""
    elements = padded(count)
    blocks = -(-elements // CHUNK)
    return Cost(rounds * -(-blocks // DEPTH), elements // 8 * bits_each + elements * bytes_each)


def _products(planes: int) -> int:
    """Bits that share the products of all groups of so many planes of an element."""
    return planes // GROUP * ((1 << GROUP) - 1) + (1 << planes % GROUP) - 1


def _count_bytes(k: int) -> int:
    return 4 if k <= 32 else 8
