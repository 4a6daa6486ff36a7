"""Tensors in files that several processes map: written once, block of rows by block of rows, and from then on only read.

A node's datasets lie in such files, so that the processes that work for its clients share one copy, and so that a dataset
may be larger than memory: the operating system brings the pages that are in use. Without a path the file lives in memory
alone (`memfd_create`) and is gone with its last user; with one it is a file on disk, mode 0600, which whoever made it deletes.

A mapping is private: what a process writes into its tensor, by mistake or by malice, nobody else ever sees.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from grid.errors import LocalProtocolError

NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE, which `mmap` names from Python 3.13 on: a mapping larger than memory is none that memory must be kept for."""


class TensorFile:
    """One tensor's elements, dense and in row-major order. `fd` is open until `close`; other processes may be given it."""

    def __init__(self, fd: int, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.fd = fd
        self.shape = tuple(int(size) for size in shape)
        self.dtype = dtype

    @classmethod
    def create(cls, shape: Sequence[int], dtype: torch.dtype, path: Path | None = None) -> Self:
        """A file for a tensor of this shape, all zeros. Raises `OSError` where there is no room, and never later."""
        if path is None:
            fd = os.memfd_create("grid-tensor", os.MFD_CLOEXEC)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        made = cls(fd, shape, dtype)
        try:
            if made.nbytes:
                os.posix_fallocate(fd, 0, made.nbytes)
        except OSError:
            made.close()
            if path is not None:
                path.unlink(missing_ok=True)
            raise
        return made

    @classmethod
    def of(cls, tensor: Tensor, path: Path | None = None) -> Self:
        """A file with a copy of this tensor."""
        made = cls.create(tensor.shape, tensor.dtype, path)
        try:
            made.write(0, tensor)
        except BaseException:
            made.close()
            raise
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def write(self, first: int, rows: Tensor) -> None:
        """Put `rows`, `(n, ...)` or a scalar's own value, where row number `first` begins."""
        inner = self.shape[1:]
        fits = rows.dtype == self.dtype and (
            tuple(rows.shape[1:]) == inner and first + rows.shape[0] <= self.shape[0] if self.shape else not rows.dim()
        )
        if not fits or first < 0:
            what = f"{tuple(rows.shape)} {rows.dtype} at row {first}"
            raise LocalProtocolError(f"{what} does not fit a file of {self.shape} {self.dtype}")
        if not rows.numel():
            return
        data = rows.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        at = first * math.prod(inner) * self.dtype.itemsize
        while data:
            written = os.pwrite(self.fd, data, at)
            data, at = data[written:], at + written

    def tensor(self) -> Tensor:
        """The tensor over a private mapping of the file, which lives as long as the tensor and needs `fd` no more."""
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        mapping = _Mapping(self.fd, self.nbytes, flags=mmap.MAP_PRIVATE | NO_RESERVE)
        mapping.file = os.dup(self.fd)
        weakref.finalize(mapping, os.close, mapping.file)
        flat = torch.frombuffer(mapping, dtype=self.dtype)
        _MAPPINGS[flat.data_ptr()] = mapping
        return flat.view(self.shape)

    def close(self) -> None:
        """Close the file; tensors over it stay. Safe to call again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Mapping(mmap.mmap):
    """Lives as long as a tensor over it."""

    file: int


_MAPPINGS: weakref.WeakValueDictionary[int, _Mapping] = weakref.WeakValueDictionary()
"""By the address of its first byte."""


class Mapped(NamedTuple):
    """The file behind a tensor, its length, and the tensor's first byte in it. `fd` is open as long as the tensor lives."""

    fd: int
    nbytes: int
    offset: int


def mapped_file(tensor: Tensor) -> Mapped | None:
    """Where a tensor lies that `TensorFile.tensor` made, or a view of one; None for any other."""
    begin = tensor.data_ptr()
    for start, mapping in list(_MAPPINGS.items()):
        if start <= begin < start + len(mapping):
            return Mapped(mapping.file, len(mapping), begin - start)
    return None
