"""A node's datasets as other processes get them: open files that they map, and where in those the tensors lie.

Everything is copied once, into one file in memory that is then sealed: who maps it may write into its own pages, and nobody
into the file. Tensors that lie in a file already are passed on as they are (`mapped_file`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from grid.errors import WireError
from grid.node.dataset_views import DatasetView
from grid.tensors.buffers import short_dtype, torch_dtype
from grid.tensors.mapped import TensorFile, mapped_file
from grid.wire.messages import Buffer, record

ALIGNED = 64
"""Tensors begin at multiples of this in the file."""


@record
class Placed:
    """A tensor in one of the files: the first byte, and the strides in elements."""

    name: str
    file: int
    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@record
class SharedSource:
    """A `DatasetView`, its tensors placed. `blocks` is little-endian int32."""

    name: str
    rows: int
    min_rows: int
    blocks: Buffer
    parts: tuple[Placed, ...]
    by_hand: bool


class SharedData:
    """Files and what lies in them. The files are this object's until `close`. Raises `OSError` where there is no room."""

    def __init__(self, sources: Mapping[str, DatasetView]) -> None:
        self.files: list[int] = []
        self.sizes: list[int] = []
        self._known: dict[tuple[int, int], int] = {}
        own = [tensor for source in sources.values() for tensor in source.parts.values() if mapped_file(tensor) is None]
        self._layout = _Layout(own)
        try:
            if self._layout.size:
                self.files.append(self._layout.written())
                self.sizes.append(self._layout.size)
            self.sources = tuple([self._shared(source) for source in sources.values()])
        except BaseException:
            self.close()
            raise

    def _shared(self, source: DatasetView) -> SharedSource:
        return SharedSource(
            name=source.name,
            rows=source.rows,
            min_rows=source.min_rows,
            blocks=np.ascontiguousarray(source.blocks, dtype="<i4").tobytes(),
            parts=tuple([self._placed(name, tensor) for name, tensor in source.parts.items()]),
            by_hand=source.by_hand,
        )

    def _placed(self, name: str, tensor: Tensor) -> Placed:
        found = mapped_file(tensor)
        if found is None:
            file, (offset, strides) = 0, self._layout.place(tensor)
        else:
            file, offset, strides = self._file(found.fd, found.nbytes), found.offset, tensor.stride()
        return Placed(
            name=name,
            file=file,
            offset=offset,
            dtype=short_dtype(tensor.dtype),
            shape=tuple(tensor.shape),
            strides=tuple(strides),
        )

    def _file(self, fd: int, nbytes: int) -> int:
        """The number of a file that tensors lie in already."""
        stat = os.fstat(fd)
        key = (stat.st_dev, stat.st_ino)
        if key not in self._known:
            self._known[key] = len(self.files)
            self.files.append(os.dup(fd))
            self.sizes.append(nbytes)
        return self._known[key]

    def close(self) -> None:
        """Close the files. Safe to call again."""
        while self.files:
            with contextlib.suppress(OSError):
                os.close(self.files.pop())


class _Layout:
    """Where tensors will lie in one file. A view of another of them, such as a column of a matrix, takes no room of its own."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.size = 0
        self._dense: list[tuple[int, int, Tensor]] = []
        dense = sorted((one for one in tensors if one.is_contiguous()), key=lambda one: -one.numel() * one.element_size())
        for tensor in dense:
            if tensor.numel() and self._inside(tensor) is None:
                self._add(tensor)
        for tensor in tensors:
            if tensor.numel() and self._inside(tensor) is None:
                self._add(tensor)

    def _add(self, tensor: Tensor) -> None:
        self._dense.append((tensor.data_ptr(), self.size, tensor))
        self.size = -(-(self.size + tensor.numel() * tensor.element_size()) // ALIGNED) * ALIGNED

    def _inside(self, tensor: Tensor) -> int | None:
        """Where a tensor begins, if all of it lies within one that has a place, or is that one."""
        begin = tensor.data_ptr()
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end = begin + (last + 1) * tensor.element_size()
        for start, offset, other in self._dense:
            if other is tensor:
                return offset
            dense = other.is_contiguous() and other.dtype == tensor.dtype
            if dense and start <= begin and end <= start + other.numel() * other.element_size():
                return offset + begin - start
        return None

    def place(self, tensor: Tensor) -> tuple[int, Sequence[int]]:
        """First byte and strides."""
        inside = self._inside(tensor) if tensor.numel() else 0
        assert inside is not None
        copied = any(other is tensor for _, _, other in self._dense)
        return inside, tensor.contiguous().stride() if copied else tensor.stride()

    def written(self) -> int:
        """A new sealed file with all of them; its descriptor is the caller's."""
        fd = os.memfd_create("grid-datasets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, self.size)
            for _, offset, tensor in self._dense:
                _write(fd, offset, tensor)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
        except BaseException:
            os.close(fd)
            raise
        return fd


def _write(fd: int, offset: int, tensor: Tensor) -> None:
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def mapped_sources(shared: Sequence[SharedSource], files: Sequence[int], sizes: Sequence[int]) -> Mapping[str, DatasetView]:
    """The datasets again, in a process that was given the files. Raises `WireError` for a place outside of them."""
    maps = [TensorFile(fd, (size,), torch.uint8).tensor() for fd, size in zip(files, sizes, strict=True)]
    return MappingProxyType({one.name: _mapped(one, maps) for one in shared})


def _mapped(shared: SharedSource, maps: Sequence[Tensor]) -> DatasetView:
    blocks = np.frombuffer(shared.blocks, dtype="<i4")
    parts = {placed.name: _tensor(placed, maps) for placed in shared.parts}
    return DatasetView(shared.name, shared.rows, shared.min_rows, blocks, parts, shared.by_hand)


def _tensor(placed: Placed, maps: Sequence[Tensor]) -> Tensor:
    dtype = torch_dtype(placed.dtype)
    if 0 in placed.shape:
        return torch.empty(placed.shape, dtype=dtype)
    if not 0 <= placed.file < len(maps) or placed.offset % dtype.itemsize:
        raise WireError("a dataset's tensor lies in no file")
    whole = maps[placed.file]
    usable = len(whole) // dtype.itemsize * dtype.itemsize
    return whole[:usable].view(dtype).as_strided(placed.shape, placed.strides, placed.offset // dtype.itemsize)
