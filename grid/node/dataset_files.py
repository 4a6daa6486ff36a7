"""Where the tensors of a node's datasets lie while it runs: in memory, or in files where they are large.

A file has no name from the moment it has been made, so it takes no room once the node has ended, however it ended. What a crash
in that moment left is removed at the next start. Mappings are private: nobody writes into a dataset.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from grid.errors import DatasetError
from grid.node.readers import Block, Schema
from grid.tensors.mapped import TensorFile

FOLDER = "datasets"
SUFFIX = ".tensor"
MEMORY_BYTES = 256 << 20


class DatasetFiles:
    """See the module. Datasets up to `memory_bytes` stay in memory; `state` is the node's folder, by default a temporary one."""

    def __init__(self, state: Path | None = None, memory_bytes: int = MEMORY_BYTES) -> None:
        self._folder = None if state is None else state / FOLDER
        self._memory_bytes = memory_bytes
        if self._folder is not None and self._folder.is_dir():
            for left in self._folder.glob(f"*{SUFFIX}"):
                left.unlink(missing_ok=True)

    def fill(self, name: str, schema: Schema, blocks: Iterable[Block]) -> dict[str, Tensor]:
        """The tensors of a dataset, written block by block. Raises `DatasetError` where there is no room for them."""
        on_disk = schema.rows * schema.row_bytes > self._memory_bytes
        files: dict[str, TensorFile] = {}
        try:
            for part, form in schema.parts.items():
                files[part] = self._create((schema.rows, *form.inner), form.dtype, on_disk)
            _write(files, blocks, schema.rows, name)
            return {part: file.tensor() for part, file in files.items()}
        except OSError as error:
            where = str(self._folder or tempfile.gettempdir()) if on_disk else "memory"
            needs = f"dataset {name!r} takes {schema.rows * schema.row_bytes >> 20} MiB in {where}"
            raise DatasetError(f"{needs}, where there is no room for it: {error.strerror}") from error
        finally:
            for file in files.values():
                file.close()

    def _create(self, shape: tuple[int, ...], dtype: torch.dtype, on_disk: bool) -> TensorFile:
        if not on_disk:
            return TensorFile.create(shape, dtype)
        folder = self._folder or Path(tempfile.gettempdir())
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{secrets.token_hex(8)}{SUFFIX}"
        file = TensorFile.create(shape, dtype, path)
        path.unlink()
        return file


def _write(files: Mapping[str, TensorFile], blocks: Iterable[Block], rows: int, name: str) -> None:
    first = 0
    for block in blocks:
        count = len(next(iter(block.values())))
        if first + count > rows:
            break
        for part, values in block.items():
            files[part].write(first, values)
        first += count
    else:
        if first == rows:
            return
    raise DatasetError(f"the file of dataset {name!r} changed while it was read; start again")
