"""Products mod 2**64: every way to compute them gives what Python's integers give, for all shapes and values."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.smpc.kernels import digits, products
from grid.smpc.link import Words

EXTREMES = np.array([0, 1, 2**64 - 1, 2**63, 2**63 - 1, 0x8080808080808080, 0x7F7F7F7F7F7F7F7F, 0xFF, 0x80], np.uint64)


def words(shape: tuple[int, ...], seed: int, extreme: bool = False) -> Words:
    random = np.random.default_rng(seed)
    return random.choice(EXTREMES, shape) if extreme else random.integers(0, 1 << 64, shape, np.uint64)


def addend(x0: Words, x1: Words, y0: Words, y1: Words) -> Words:
    """x0 y0 + x0 y1 + x1 y0 with numpy, whose uint64 product wraps."""
    return np.asarray(x0 @ y0 + x0 @ y1 + x1 @ y0)


@pytest.fixture(params=["int64", "digits"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of products of matrices, whatever this processor has and however small they are."""
    monkeypatch.setattr(products, "_TILES", request.param == "digits")
    monkeypatch.setattr(products, "DIGITS_FROM", 0)
    return str(request.param)


def test_numpy_agrees_with_integers_of_python() -> None:
    x, y = words((3, 7), 1, True), words((7, 2), 2, True)
    expected = [[sum(int(a) * int(b) for a, b in zip(row, column, strict=True)) % 2**64 for column in y.T] for row in x]
    assert (x @ y).tolist() == expected
    assert (
        digits.matmul(torch.from_numpy(x.view(np.int64)), torch.from_numpy(y.view(np.int64))).numpy().view(np.uint64).tolist()
        == expected
    )


SHAPES = [(m, k, n) for m in (0, 1, 2, 17) for k in (0, 1, 3, 8, 13) for n in (0, 1, 5, 16)]


@pytest.mark.parametrize("extreme", [False, True])
def test_addends_of_all_shapes(way: str, extreme: bool) -> None:
    for seed, (m, k, n) in enumerate(SHAPES):
        x0, x1 = words((m, k), seed, extreme), words((m, k), seed + 1, extreme)
        y0, y1 = words((k, n), seed + 2, extreme), words((k, n), seed + 3, extreme)
        result = products.matmul(x0, x1, y0, y1)
        assert result.shape == (m, n) and result.dtype == np.uint64
        assert np.array_equal(result, addend(x0, x1, y0, y1)), (m, k, n)


LAYOUTS: list[Callable[[Words], Words]] = [
    lambda a: a,
    lambda a: np.asfortranarray(a),
    lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    lambda a: np.ascontiguousarray(a[::-1])[::-1],
]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 20), st.integers(1, 40), st.integers(1, 20), st.integers(0, 99),
    st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.booleans(),
)  # fmt: skip
def test_any_layout(
    m: int, k: int, n: int, seed: int, left: Callable[[Words], Words], right: Callable[[Words], Words], tiles: bool
) -> None:
    given = [words((m, k), seed), words((m, k), seed + 1), words((k, n), seed + 2), words((k, n), seed + 3)]
    x0, x1, y0, y1 = left(given[0]), left(given[1]), right(given[2]), right(given[3])
    before, products._TILES = products._TILES, tiles
    limit, products.DIGITS_FROM = products.DIGITS_FROM, 0
    try:
        assert np.array_equal(products.matmul(x0, x1, y0, y1), addend(*given))
    finally:
        products._TILES, products.DIGITS_FROM = before, limit


def test_digits_are_exact_up_to_the_longest_sum_and_beyond() -> None:
    """The worst case: all digits -128, so that every level's sum is as large as it can be."""
    worst = np.uint64(0x7F7F7F7F7F7F7F80)  # its balanced digits are -128, -128, ...
    assert set(digits._bytes(torch.tensor([int(worst)])).tolist()) == {-128}
    for k in (digits.LONGEST // 2, digits.LONGEST // 2 + 1, digits.LONGEST + 10):
        x, y = np.full((1, k), worst), np.full((k, 1), worst)
        expected = int(worst) * int(worst) * k % 2**64
        assert digits.matmul(torch.from_numpy(x.view(np.int64)), torch.from_numpy(y.view(np.int64))).item() % 2**64 == expected
        left = [digits.left(a.T, b.T) for a, b in digits.pieces(x.T, x.T)]
        right = [digits.right(a, b) for a, b in digits.pieces(y, y)]
        assert digits.product(left, right, 1, 1).tolist() == [[2 * expected % 2**64]]
    assert 8 * digits.LONGEST * 2**14 < 2**31 <= 8 * (digits.LONGEST + 1) * 2**14


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_digits_on_any_device_give_the_same(m: int, k: int, n: int) -> None:
    x, y = words((m, k), 5), words((k, n), 6)
    result = digits.matmul(torch.from_numpy(x.view(np.int64)), torch.from_numpy(y.view(np.int64)))
    assert np.array_equal(result.numpy().view(np.uint64), x @ y)


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
def test_convolutions(way: str, stride: tuple[int, int], padding: tuple[int, int]) -> None:
    x = [words((2, 3, 9, 8), seed) for seed in (1, 2)]
    w = [words((4, 3, 3, 2), seed) for seed in (3, 4)]
    padded = [np.pad(each, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2)) for each in x]
    windows = [np.lib.stride_tricks.sliding_window_view(each, (3, 2), axis=(2, 3)) for each in padded]
    fields = [each[:, :, :: stride[0], :: stride[1]].transpose(0, 2, 3, 1, 4, 5) for each in windows]
    rows = [each.reshape(*each.shape[:3], -1) for each in fields]
    filters = [each.reshape(4, -1).T for each in w]
    expected = addend(rows[0], rows[1], filters[0], filters[1]).transpose(0, 3, 1, 2)
    assert np.array_equal(products.conv2d(x[0], x[1], w[0], w[1], stride, padding), expected)


def test_sums_of_weights_are_kept_from_their_second_use_until_they_are_gone(way: str) -> None:
    products._seen.clear()
    x0, x1 = words((3, 80), 1), words((3, 80), 2)
    weights = [words((80, 64), 3), words((80, 64), 4)]
    expected = addend(x0, x1, *weights)
    for uses in range(3):
        assert np.array_equal(products.matmul(x0, x1, *weights), expected)
        assert [entry[2] is not None for entry in products._seen.values()] == [uses > 0]
    other = [weights[0].copy(), words((80, 64), 5)]
    assert np.array_equal(products.matmul(x0, x1, *other), addend(x0, x1, *other))
    assert len(products._seen) == 2
    del weights, other
    gc.collect()
    assert not products._seen


def test_operands_are_left_as_they_were(way: str) -> None:
    given = [words((4, 9), 1), words((4, 9), 2), words((9, 5), 3), words((9, 5), 4)]
    for array in given:
        array.flags.writeable = False
    products.matmul(*given)
