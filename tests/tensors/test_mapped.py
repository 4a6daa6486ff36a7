"""Tensors in files that several processes map."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from grid.errors import LocalProtocolError
from grid.tensors.mapped import TensorFile


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 0), (7, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.bfloat16])
@pytest.mark.parametrize("on_disk", [False, True])
def test_gives_back_what_was_written(shape: tuple[int, ...], dtype: torch.dtype, on_disk: bool, tmp_path: Path) -> None:
    tensor = (torch.arange(max(1, torch.Size(shape).numel()))[: torch.Size(shape).numel()] % 2).to(dtype).reshape(shape)
    file = TensorFile.of(tensor, tmp_path / "x" if on_disk else None)
    mapped = file.tensor()
    file.close()
    assert mapped.dtype == dtype
    assert torch.equal(mapped, tensor)


def test_rows_are_written_block_by_block() -> None:
    whole = torch.randn(10, 3)
    file = TensorFile.create((10, 3), torch.float32)
    for first in (0, 4, 8):
        file.write(first, whole[first : first + 4])
    assert torch.equal(file.tensor(), whole)
    file.close()


def test_what_one_mapping_writes_no_other_sees() -> None:
    file = TensorFile.of(torch.zeros(3))
    mine, yours = file.tensor(), file.tensor()
    mine += 1
    assert torch.equal(yours, torch.zeros(3))
    assert torch.equal(file.tensor(), torch.zeros(3))
    file.close()


def test_a_file_on_disk_is_its_owners_alone_and_never_replaces_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    TensorFile.of(torch.zeros(3), path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        TensorFile.create((3,), torch.float32, path)


@pytest.mark.parametrize(
    ("first", "rows"),
    [(3, torch.zeros(2, 2)), (-1, torch.zeros(1, 2)), (0, torch.zeros(1, 3)), (0, torch.zeros(1, 2, dtype=torch.int64))],
)
def test_rows_that_do_not_fit_are_refused(first: int, rows: torch.Tensor) -> None:
    file = TensorFile.create((4, 2), torch.float32)
    with pytest.raises(LocalProtocolError):
        file.write(first, rows)
    file.close()


def test_no_file_stays_open_behind_a_tensor() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    file = TensorFile.of(torch.ones(1000))
    tensor = file.tensor()
    file.close()
    file.close()
    assert float(tensor.sum()) == 1000
    del tensor
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
