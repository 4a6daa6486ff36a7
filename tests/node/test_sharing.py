"""Datasets in files for other processes: the same tensors, in memory that nobody can change."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from grid.errors import WireError
from grid.node.dataset_views import DatasetView
from grid.node.sharing import SharedData, mapped_sources
from grid.tensors.mapped import TensorFile, mapped_file


def source(name: str = "d", rows: int = 40, **parts: Tensor) -> DatasetView:
    return DatasetView(name, rows, 10, np.arange(rows, dtype=np.int32) // 10, parts)


def there(data: SharedData) -> dict[str, DatasetView]:
    return dict(mapped_sources(data.sources, data.files, data.sizes))


def test_tensors_arrive_as_they_are_with_views_in_the_memory_of_what_they_look_at() -> None:
    features = torch.randn(40, 3)
    parts = {
        "features": features,
        "targets": torch.arange(40),
        "column:x1": features[:, 1],
        "column:flag": torch.arange(40) > 7,
        "column:odd": torch.randn(80)[::2],
    }
    data = SharedData({"d": source(**parts), "empty": source("empty", 0, features=torch.zeros(0, 3))})
    assert len(data.files) == 1
    assert sum(data.sizes) < 2 * (40 * 3 * 4 + 40 * 8 + 40 + 40 * 4)
    found = there(data)
    data.close()
    assert found["d"].rows == 40 and found["d"].min_rows == 10
    assert np.array_equal(found["d"].blocks, np.arange(40) // 10)
    for name, tensor in parts.items():
        assert torch.equal(found["d"].parts[name], tensor) and found["d"].parts[name].dtype == tensor.dtype
    shared = found["d"].parts["features"].untyped_storage().data_ptr()
    assert found["d"].parts["column:x1"].untyped_storage().data_ptr() == shared
    assert found["empty"].parts["features"].shape == (0, 3)
    found["d"].parts["features"].zero_()  # private: nobody else sees it
    assert torch.equal(features, parts["features"]) and features.any()


def test_the_file_is_sealed() -> None:
    data = SharedData({"d": source(features=torch.ones(40, 3))})
    again = os.open(f"/proc/self/fd/{data.files[0]}", os.O_RDWR)
    try:
        for write in (lambda: os.pwrite(again, b"x", 0), lambda: os.ftruncate(again, 1)):
            with pytest.raises(PermissionError):
                write()
    finally:
        os.close(again)
        data.close()


def test_what_lies_in_a_file_already_is_not_copied(tmp_path: Path) -> None:
    file = TensorFile.of(torch.arange(120.0).reshape(40, 3), tmp_path / "features")
    features = file.tensor()
    file.close()
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    data = SharedData({"d": source(features=features[:30], targets=torch.ones(30), **{"column:x": features[:30, 2]})})
    assert len(data.files) == 2 and data.sizes[1] == 480
    found = there(data)["d"]
    assert torch.equal(found.parts["features"], features[:30]) and torch.equal(found.parts["column:x"], features[:30, 2])
    data.close()
    del found
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_mapped_tensor_knows_its_file_and_no_other_does() -> None:
    file = TensorFile.of(torch.arange(12).reshape(4, 3))
    tensor = file.tensor()
    found = mapped_file(tensor[2:])
    assert found is not None and (found.nbytes, found.offset) == (96, 48)
    assert os.fstat(found.fd).st_ino == os.fstat(file.fd).st_ino
    assert mapped_file(torch.ones(3)) is None and mapped_file(tensor + 1) is None
    fd = found.fd
    file.close()
    del tensor
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_places_outside_of_the_files_are_refused() -> None:
    data = SharedData({"d": source(features=torch.ones(40, 3))})
    with pytest.raises(WireError):
        mapped_sources(data.sources, [], [])
    data.close()
