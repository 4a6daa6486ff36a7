"""Tensors to frames and back; and what no tensor is made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grid.errors import GridError, InvalidRequest
from grid.tensors.buffers import TORCH_DTYPES, from_frame, nbytes, short_dtype, to_frame, torch_dtype
from grid.wire.dtypes import DTYPES
from grid.wire.messages import TensorFrame


def test_the_dtypes_are_those_of_the_wire() -> None:
    assert TORCH_DTYPES.keys() == DTYPES.keys()
    for short, dtype in TORCH_DTYPES.items():
        assert dtype.itemsize == DTYPES[short]
        assert torch_dtype(short_dtype(dtype)) is dtype


@given(st.sampled_from(sorted(TORCH_DTYPES)), st.lists(st.integers(0, 4), max_size=4))
def test_a_tensor_survives_the_way(short: str, shape: list[int]) -> None:
    tensor = torch.randint(0, 2, shape).to(TORCH_DTYPES[short])
    frame = to_frame(tensor)
    assert memoryview(frame.data).nbytes == nbytes(tensor)
    back = from_frame(TensorFrame(dtype=frame.dtype, shape=frame.shape, data=bytes(frame.data)))
    assert back.dtype == tensor.dtype and torch.equal(back, tensor)


def test_views_travel_dense() -> None:
    tensor = torch.arange(24.0).reshape(4, 6)
    for view in (tensor.t(), tensor[::2, 1:3], tensor[0].expand(5, 6)):
        assert torch.equal(from_frame(to_frame(view)), view)


def test_a_frame_does_not_change_with_the_tensor() -> None:
    tensor = torch.zeros(3)
    frame, shared = to_frame(tensor), to_frame(tensor, copy=False)
    tensor.fill_(1)
    assert from_frame(frame).sum() == 0
    assert from_frame(shared).sum() == 3


def test_writable_aligned_memory_is_used_as_it_is() -> None:
    memory = bytearray(16)
    tensor = from_frame(TensorFrame(dtype="f4", shape=(4,), data=memoryview(memory)))
    tensor.fill_(1)
    assert bytes(memory) == b"\0\0\x80\x3f" * 4


def test_constant_memory_is_never_written() -> None:
    constant = bytes(16)
    from_frame(TensorFrame(dtype="f4", shape=(4,), data=constant)).fill_(1)
    assert constant == bytes(16)


def test_unaligned_memory_is_copied() -> None:
    memory = memoryview(bytearray(20))
    assert from_frame(TensorFrame(dtype="f8", shape=(2,), data=memory[1:17])).tolist() == [0, 0]


@pytest.mark.parametrize(
    "frame",
    [
        TensorFrame(dtype="f4", shape=(4,), data=b"\0" * 15),
        TensorFrame(dtype="f4", shape=(4,), data=b"\0" * 17),
        TensorFrame(dtype="f4", shape=(-1,), data=b""),
        TensorFrame(dtype="f4", shape=(1 << 50,), data=b""),
        TensorFrame(dtype="c8", shape=(1,), data=b"\0" * 8),
        TensorFrame(dtype="b1", shape=(2,), data=b"\1\2"),
        TensorFrame(dtype="f4", shape=(1,) * 40, data=b"\0" * 4),
    ],
    ids=["short", "long", "negative", "huge", "dtype", "boolean", "deep"],
)
def test_what_is_no_tensor_is_refused(frame: TensorFrame) -> None:
    with pytest.raises(GridError):
        from_frame(frame)


def test_a_complex_tensor_cannot_travel() -> None:
    with pytest.raises(InvalidRequest, match="complex64"):
        to_frame(torch.zeros(1, dtype=torch.complex64))
