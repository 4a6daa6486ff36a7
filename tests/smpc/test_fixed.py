"""Fixed point in the ring: the stated error bound, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.errors import ExecutionFailed, InvalidRequest
from grid.tensors import fixed


def ring_sum(parts: list[torch.Tensor]) -> torch.Tensor:
    """Addition modulo 2**64, by Python's integers."""
    rows = zip(*(part.flatten().tolist() for part in parts), strict=True)
    wrapped = [(sum(row) + 2**63) % 2**64 - 2**63 for row in rows]
    return torch.tensor(wrapped, dtype=torch.int64).reshape(parts[0].shape)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 40),
    st.lists(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_the_sum_of_encoded_values_is_within_the_stated_bound(bits: int, rows: list[list[float]]) -> None:
    values = [torch.tensor(row, dtype=torch.float64) for row in rows]
    parties = len(values)
    total = ring_sum([fixed.encode(value, bits, parties) for value in values])
    true = torch.stack(values).sum(0)
    bound = parties * 2.0 ** -(bits + 1)
    rounding = true.abs() * 2.0**-50 + 2.0**-60  # of the test's own float64 sum and of the decoding
    assert ((fixed.decode(total, bits) - true).abs() <= bound + rounding).all()


def test_the_bound_is_reached_so_it_is_not_loose() -> None:
    half = torch.full((1,), 2.0**-17)  # half of the last place at 16 bits; ties go to even, here to zero
    total = ring_sum([fixed.encode(half, 16, 3)] * 3)
    assert fixed.decode(total, 16).item() == 0.0 and 3 * half.item() == 3 * 2.0**-17


@pytest.mark.parametrize("parties", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("bits", [0, 16, 40])
def test_no_sum_of_accepted_values_wraps(parties: int, bits: int) -> None:
    largest = 2.0 ** (63 - bits) / parties * (1 - 2.0**-40)
    for value in (largest, -largest):
        encoded = int(fixed.encode(torch.tensor(value, dtype=torch.float64), bits, parties))
        assert -(2**63) <= parties * encoded < 2**63
    with pytest.raises(ExecutionFailed):
        fixed.encode(torch.tensor(2.0 ** (63 - bits) / parties * (1 + 2.0**-40), dtype=torch.float64), bits, parties)


@pytest.mark.parametrize("parties", [1, 3, 1024])
def test_integers_are_exact_up_to_their_limit_and_refused_beyond(parties: int) -> None:
    limit = ((1 << 63) - 1) // parties >> 8
    for value in (limit, -limit, 0, 12345):
        encoded = fixed.encode(torch.tensor([value]), 8, parties)
        assert encoded.item() == value << 8
        assert fixed.decode(encoded, 8, torch.int64).item() == pytest.approx(value, rel=2**-52)
    for value in (limit + 1, -limit - 1, -(2**63)):
        with pytest.raises(ExecutionFailed):
            fixed.encode(torch.tensor([value]), 8, parties)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_nan_infinity_and_overflow_have_one_text(value: float) -> None:
    with pytest.raises(ExecutionFailed) as caught:
        fixed.encode(torch.tensor([1.0, value], dtype=torch.float64), 16, 3)
    assert caught.value.message == fixed.NOT_REPRESENTABLE


def test_formats_and_dtypes_outside_the_domain_are_refused() -> None:
    one = torch.ones(1)
    for bits, parties in ((-1, 3), (49, 3), (16, 0), (16, 1025)):
        with pytest.raises(InvalidRequest):
            fixed.encode(one, bits, parties)
    with pytest.raises(InvalidRequest):
        fixed.encode(torch.ones(1, dtype=torch.complex64), 16, 3)
    with pytest.raises(InvalidRequest):
        fixed.decode(one, 16)


REAL = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int32]


@pytest.mark.parametrize("dtype", REAL)
def test_every_real_dtype_comes_back(dtype: torch.dtype) -> None:
    value = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    encoded = fixed.encode(value, 16, 3)
    assert encoded.dtype == torch.int64 and encoded.shape == value.shape
    assert torch.equal(fixed.decode(encoded, 16, dtype), value)


def test_encoding_shares_no_memory_with_the_value() -> None:
    value = torch.tensor([1, 2, 3])
    encoded = fixed.encode(value, 0, 3)
    encoded.zero_()
    assert value.tolist() == [1, 2, 3]


@pytest.mark.parametrize("bits", [0, 18])
def test_the_nearest_that_can_be_held(bits: int) -> None:
    floats = torch.tensor([1.5, torch.nan, torch.inf, -1e30])
    found = fixed.decode(fixed.encode(fixed.nearest(floats, bits, 1), bits, 1), bits)
    assert found[:2].tolist() == [1.5 if bits else 2.0, 0.0]
    assert found[2] > 2.0 ** (62 - bits) and found[3] == -found[2]
    integers = torch.tensor([-(1 << 63), 7, (1 << 63) - 1])
    found = fixed.decode(fixed.encode(fixed.nearest(integers, bits, 1), bits, 1), bits, torch.int64)
    assert found[1] == 7 and found[2] == -found[0] > 1 << (62 - bits)
