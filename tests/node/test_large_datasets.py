"""Datasets that are larger than memory: loaded block by block into files, computed on, and gone when the node is."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import torch

from grid.errors import DatasetError
from grid.node.dataset_files import DatasetFiles
from grid.node.datasets import Dataset
from grid.node.readers import Part, Schema
from grid.tensors.mapped import TensorFile

GROUPS, GROUP_ROWS, COLUMNS = 32, 16_384, 64
CAP = 40 << 20
"""Bytes: less than a third of the file."""


def write_large(folder: Path) -> list[float]:
    """A Parquet file of 134 MB, and the means of its columns."""
    rng = numpy.random.default_rng(0)
    names = [f"f{number}" for number in range(COLUMNS - 1)] + ["y"]
    schema = pyarrow.schema([(name, pyarrow.float32()) for name in names])
    total = numpy.zeros(COLUMNS)
    with pyarrow.parquet.ParquetWriter(folder / "large.parquet", schema, use_dictionary=False, compression="none") as writer:
        for _ in range(GROUPS):
            group = rng.random((COLUMNS, GROUP_ROWS), dtype=numpy.float32)
            total += group.sum(axis=1, dtype=numpy.float64)
            writer.write_table(pyarrow.table(list(group), schema=schema))
    policy = 'release = "aggregate"\nplans = "any"\nmax_elements = 100000\n'
    (folder / "large.toml").write_text(f'file = "large.parquet"\ntarget = "y"\n[policy]\n{policy}')
    return list(total / (GROUPS * GROUP_ROWS))


@pytest.mark.process
def test_a_file_larger_than_memory_is_loaded_and_computed_on(tmp_path: Path) -> None:
    means = write_large(tmp_path)
    state = tmp_path / "state"
    program = Path(__file__).with_name("large_dataset.py")
    command = [sys.executable, str(program), str(tmp_path / "large.toml"), str(state)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == GROUPS * GROUP_ROWS and found["bytes"] > 3 * CAP
    assert 0 < found["loading"] < CAP
    assert 0 < found["working"] < found["bytes"]
    assert torch.allclose(torch.tensor(found["means"]), torch.tensor(means[:-1], dtype=torch.float32), atol=1e-4)
    assert found["batches"] == [COLUMNS - 1] * 5
    assert "ds.batches" in found["refused"] and "8388608 bytes" in found["refused"]
    assert found["left"] == [] and list((state / "datasets").iterdir()) == []


SCHEMA = Schema(4, {"features": Part((2,), torch.float32), "targets": Part((), torch.int64)})


def blocks(*rows: int) -> list[dict[str, torch.Tensor]]:
    return [{"features": torch.full((count, 2), float(count)), "targets": torch.full((count,), count)} for count in rows]


@pytest.mark.parametrize("memory_bytes", [1 << 20, 1])
def test_tensors_are_the_blocks_one_after_another(memory_bytes: int, tmp_path: Path) -> None:
    files = DatasetFiles(tmp_path, memory_bytes)
    made = files.fill("d", SCHEMA, blocks(1, 3))
    assert made["features"].tolist() == [[1, 1], [3, 3], [3, 3], [3, 3]] and made["targets"].tolist() == [1, 3, 3, 3]
    assert (tmp_path / "datasets").exists() == (memory_bytes == 1)
    assert not list(tmp_path.rglob("*.tensor"))


@pytest.mark.parametrize("rows", [(1, 2), (1, 4), (4, 1)])
def test_a_file_that_changes_while_it_is_read_is_an_error(rows: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="changed while it was read"):
        DatasetFiles(tmp_path, 1).fill("d", SCHEMA, blocks(*rows))
    assert not list(tmp_path.rglob("*.tensor"))


def test_what_a_crash_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    left, other = tmp_path / "datasets" / "0123.tensor", tmp_path / "datasets" / "notes.txt"
    left.write_bytes(b"rows")
    other.write_text("not ours")
    DatasetFiles(tmp_path)
    assert not left.exists() and other.exists()


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DatasetError, match=r"'d' takes 0 MiB in .*datasets, where there is no room.*No space left"):
        DatasetFiles(tmp_path, 1).fill("d", SCHEMA, blocks(4))
    assert not list(tmp_path.rglob("*.tensor"))


def test_a_mapping_may_be_larger_than_memory(tmp_path: Path) -> None:
    """The file is sparse: this is about what the system promises for a mapping, not about what is in it."""
    path = tmp_path / "x"
    path.touch()
    huge = 1 << 42
    try:
        with path.open("r+b") as file:
            file.truncate(huge)
    except OSError:
        pytest.skip("this file system has no files of that length")
    with path.open("r+b") as file:
        tensor = TensorFile(file.fileno(), (huge // 4,), torch.float32).tensor()
        assert tensor[-1] == 0 and tensor.nbytes == huge


def test_a_node_keeps_large_datasets_in_its_state_folder(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("a,b\n" + "1,2\n" * 100)
    (tmp_path / "d.toml").write_text('file = "d.csv"\n[policy]\nrelease = "open"\n')
    dataset = Dataset.from_file(tmp_path / "d.toml", DatasetFiles(tmp_path / "state", 100))
    assert dataset.features.sum() == 300 and (tmp_path / "state" / "datasets").is_dir()
    mine = dataset.features
    mine[0] = 7  # what one mapping writes, the file does not hold
    assert Dataset.from_file(tmp_path / "d.toml").features[0].tolist() == [1, 2]
