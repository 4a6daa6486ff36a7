"""Files of named arrays: `.npz` as numpy writes it, `.safetensors`. Both are read by blocks of rows, and neither can run code.

An array of objects, which numpy would unpickle, is refused before a byte of it is read. What an array claims to hold is compared
with what the file has before memory is taken for it.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy
import safetensors
import torch
from torch import Tensor

from grid.errors import DatasetError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What arrays may hold, by safetensors' names."""

NUMPY_DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}

MAX_ARRAYS = 10_000
READ_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class ArrayForm:
    """What an array's header says. `dtype` is None for one that nothing is computed with, which `kind` names."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    kind: str


class ArrayFile(abc.ABC):
    """A file of named arrays."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abc.abstractmethod
    def forms(self) -> Mapping[str, ArrayForm]:
        """Every array of the file, by name."""

    @abc.abstractmethod
    def rows(self, name: str, most_rows: int) -> Iterator[Tensor]:
        """An array of at least one dimension in blocks of rows, each but the last of `most_rows`."""


class SafetensorsFile(ArrayFile):
    """A `.safetensors` file; the library checks that its header and its data agree."""

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safetensors.safe_open(str(self.path), framework="pt") as file:
                yield file
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise DatasetError(f"{self.path}: cannot be read as safetensors ({error.__class__.__name__})") from error

    def forms(self) -> Mapping[str, ArrayForm]:
        with self._open() as file:
            found = {}
            for name in sorted(file.keys()):
                part = file.get_slice(name)
                kind = str(part.get_dtype())
                found[name] = ArrayForm(tuple(part.get_shape()), DTYPES.get(kind), kind)
            return found

    def rows(self, name: str, most_rows: int) -> Iterator[Tensor]:
        with self._open() as file:
            part = file.get_slice(name)
            count = int(part.get_shape()[0])
            for first in range(0, count, most_rows):
                yield part[first : min(count, first + most_rows)]


class NpzFile(ArrayFile):
    """A `.npz` file, compressed or not. An array in Fortran order is read whole, as its rows do not lie together."""

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], ArrayForm, bool]]:
        """The open member behind its header, what that says, and whether it is in Fortran order."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                member = archive.getinfo(f"{name}.npy")
                with archive.open(member) as stream:
                    yield stream, *self._header(name, stream, member.file_size)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
            raise DatasetError(f"{self.path}: array {name!r} cannot be read ({error.__class__.__name__})") from error

    def _header(self, name: str, stream: IO[bytes], size: int) -> tuple[ArrayForm, bool]:
        try:
            version = numpy.lib.format.read_magic(stream)
            read = {(1, 0): numpy.lib.format.read_array_header_1_0, (2, 0): numpy.lib.format.read_array_header_2_0}
            if version not in read:
                raise DatasetError(f"{self.path}: array {name!r} is of a newer version of numpy's format")
            shape, by_columns, dtype = read[version](stream)
        except (ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
            raise DatasetError(f"{self.path}: array {name!r} has a damaged header ({error.__class__.__name__})") from error
        if dtype.hasobject:
            what = "holds Python objects, which are never unpickled here: save it as numbers"
            raise DatasetError(f"{self.path}: array {name!r} {what}")
        known = None if dtype.fields is not None else NUMPY_DTYPES.get(dtype.newbyteorder("=").name)
        if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != size - stream.tell():
            raise DatasetError(f"{self.path}: array {name!r} is longer or shorter than its header says")
        if known is not None and not dtype.isnative:
            what = f"is big-endian: save it with .astype({dtype.newbyteorder('=').name!r})"
            raise DatasetError(f"{self.path}: array {name!r} {what}")
        return ArrayForm(tuple(shape), known, str(dtype.name)[:40]), bool(by_columns) and len(shape) > 1

    def forms(self) -> Mapping[str, ArrayForm]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = [entry.filename for entry in archive.infolist()]
        except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
            raise DatasetError(f"{self.path}: cannot be read as .npz ({error.__class__.__name__})") from error
        if len(names) > MAX_ARRAYS or len(set(names)) != len(names):
            raise DatasetError(f"{self.path}: more than {MAX_ARRAYS} arrays, or two of one name")
        found = {}
        for name in sorted(name.removesuffix(".npy") for name in names if name.endswith(".npy")):
            with self._open(name) as (_, form, _):
                found[name] = form
        return found

    def rows(self, name: str, most_rows: int) -> Iterator[Tensor]:
        with self._open(name) as (stream, form, by_columns):
            assert form.dtype is not None
            count, inner = form.shape[0], form.shape[1:]
            if by_columns:
                data = _exactly(stream, math.prod(form.shape) * form.dtype.itemsize)
                whole = torch.frombuffer(data, dtype=form.dtype).view(form.shape[::-1]).permute(*reversed(range(len(form.shape))))
                yield from torch.split(whole, most_rows)
                return
            for first in range(0, count, most_rows):
                rows = min(most_rows, count - first)
                data = _exactly(stream, rows * math.prod(inner) * form.dtype.itemsize)
                yield torch.frombuffer(data, dtype=form.dtype).view(rows, *inner)


def _exactly(stream: IO[bytes], size: int) -> bytearray:
    """So many bytes. Raises `EOFError` where there are fewer; takes memory for what has come, not for what was claimed."""
    data = bytearray()
    while len(data) < size:
        piece = stream.read(min(READ_BYTES, size - len(data)))
        if not piece:
            raise EOFError
        data += piece
    return data
