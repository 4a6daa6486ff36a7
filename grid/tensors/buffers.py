"""Tensors to frames and back, without a serialiser: dtype, shape, and little-endian row-major bytes.

A frame that came from a peer is checked before a tensor is made of it, and a tensor made of one owns memory that may be
written: a frame in read-only memory is copied once, since an in-place operation would otherwise change bytes that Python
holds to be constant. A frame in writable, aligned memory becomes the tensor's memory as it is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from grid.errors import InvalidRequest, LocalProtocolError
from grid.wire.dtypes import DTYPES, tensor_bytes
from grid.wire.messages import TensorFrame

TORCH_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "f8": torch.float64,
        "f4": torch.float32,
        "f2": torch.float16,
        "bf2": torch.bfloat16,
        "i8": torch.int64,
        "i4": torch.int32,
        "i2": torch.int16,
        "i1": torch.int8,
        "u1": torch.uint8,
        "b1": torch.bool,
    }
)
"""Short name -> dtype: all that Grid computes with."""

SHORT_DTYPES: Mapping[torch.dtype, str] = MappingProxyType({dtype: short for short, dtype in TORCH_DTYPES.items()})


def short_dtype(dtype: torch.dtype) -> str:
    """The name that travels. Raises `InvalidRequest` for a dtype that Grid does not carry (complex, quantised, ...)."""
    try:
        return SHORT_DTYPES[dtype]
    except KeyError:
        raise InvalidRequest(f"{dtype} tensors cannot travel; convert to one of {_names()}") from None


def torch_dtype(short: str) -> torch.dtype:
    """The dtype of a received name. Raises `InvalidRequest` for an unknown one."""
    found = TORCH_DTYPES.get(short) if isinstance(short, str) else None
    if found is None:
        raise InvalidRequest(f"there is no dtype {short!r:.40}; known are {', '.join(TORCH_DTYPES)}")
    return found


def to_frame(tensor: Tensor, *, copy: bool = True) -> TensorFrame:
    """The tensor's present value as a frame.

    With `copy=False` the frame shares the tensor's memory where that is dense: only for a tensor that nobody writes to
    until the frame is sent, or what arrives is not what was checked.
    """
    dtype = short_dtype(tensor.dtype)
    if sys.byteorder != "little":
        raise LocalProtocolError("Grid's frames are little-endian and this machine is not")
    dense = tensor.detach().contiguous()
    if copy and dense.data_ptr() == tensor.data_ptr():
        dense = dense.clone(memory_format=torch.contiguous_format)
    shape = tuple(tensor.shape)
    if not dense.numel():
        return TensorFrame(dtype=dtype, shape=shape, data=b"")
    if dtype == "bf2":  # numpy has none
        dense = dense.view(torch.int16)
    return TensorFrame(dtype=dtype, shape=shape, data=dense.numpy().data.cast("B"))


def from_frame(frame: TensorFrame) -> Tensor:
    """The tensor in a frame. Raises `InvalidRequest` (or `WireError` from the codec's own check) where the frame is no tensor."""
    dtype = torch_dtype(frame.dtype)
    expected = tensor_bytes(frame.dtype, frame.shape)
    data = memoryview(frame.data)
    if data.nbytes != expected:
        raise InvalidRequest(f"a {frame.dtype} tensor of shape {frame.shape} has {expected} bytes, and {data.nbytes} came")
    if not expected:
        return torch.empty(frame.shape, dtype=dtype)
    flat = torch.frombuffer(bytearray(data) if data.readonly or not data.c_contiguous else data, dtype=dtype)
    if flat.data_ptr() % DTYPES[frame.dtype]:  # a tensor lies in aligned memory
        flat = torch.frombuffer(bytearray(data), dtype=dtype)
    if dtype is torch.bool and int(flat.view(torch.uint8).max()) > 1:
        raise InvalidRequest("a boolean tensor holds bytes other than 0 and 1")
    return flat if len(frame.shape) == 1 else flat.view(frame.shape)


def nbytes(tensor: Tensor) -> int:
    """Bytes of the tensor's elements, as if it were dense."""
    return math.prod(tensor.shape) * tensor.element_size()


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in SHORT_DTYPES)
