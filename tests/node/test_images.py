"""Folders of images: what they become, in which order, and hostile ones."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from pathlib import Path

import numpy
import PIL.Image
import pytest
import torch

from grid.errors import DatasetError
from grid.node.custody import meet
from grid.node.datasets import Dataset
from grid.store.base import DatasetState
from grid.store.memory import MemoryStore

TOML = """file = "scans/"
[policy]
release = "open"
[image]
size = [4, 6]
channels = 1
"""
LABELLED = TOML.replace('file = "scans/"', 'file = "scans"\ntarget = "sick"') + "[columns.sick]\ncategories = ['no', 'yes']\n"


def image(path: Path, value: int, mode: str = "L", size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new(mode, size, value if mode in ("L", "I;16") else (value, value, 255 - value)).save(path)


def by_class(folder: Path) -> Path:
    """Two classes, of three and two images."""
    for name, value in (("cat/b.png", 10), ("cat/a.png", 20), ("cat/c.bmp", 30), ("dog/z.png", 40), ("dog/0.pgm", 50)):
        image(folder / "scans" / name, value)
    return described(folder, TOML)


def labelled(folder: Path, labels: str = "file,sick,age\nb.png,yes,40\na.png,no,50\n") -> Path:
    for name, value in (("a.png", 20), ("b.png", 10)):
        image(folder / "scans" / name, value)
    (folder / "scans" / "labels.csv").write_text(labels)
    return described(folder, LABELLED)


def described(folder: Path, toml: str) -> Path:
    path = folder / "scans.toml"
    path.write_text(toml)
    return path


def error(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        Dataset.from_file(path)
    return caught.value.message


def test_folders_are_classes_in_the_order_of_names(tmp_path: Path) -> None:
    dataset = Dataset.from_file(by_class(tmp_path))
    assert dataset.features.dtype == torch.float32 and dataset.features.shape == (5, 1, 4, 6)
    assert (dataset.features[:, 0, 0, 0] * 255).round().tolist() == [20, 10, 30, 50, 40]
    assert dataset.targets is not None and dataset.targets.tolist() == [0, 0, 0, 1, 1] and dataset.classes == 2
    (column,) = dataset.columns
    assert (column.name, column.kind, column.role, column.categories) == ("label", "category", "target", ("cat", "dog"))
    assert dataset.part("column", "label").tolist() == [0, 0, 0, 1, 1]
    assert not dataset.appends


def test_declared_categories_give_the_order_of_classes(tmp_path: Path) -> None:
    path = by_class(tmp_path)
    path.write_text('target = "animal"\n' + TOML + "[columns.animal]\ncategories = ['dog', 'cow', 'cat']\n")
    dataset = Dataset.from_file(path)
    assert dataset.targets is not None and dataset.targets.tolist() == [0, 0, 2, 2, 2] and dataset.classes == 3
    path.write_text(TOML + "[columns.label]\ncategories = ['dog', 'cow']\n")
    assert "'cat' is none of the declared" in error(path) and "line 8" in error(path)
    path.write_text(TOML + "[columns.age]\nmin = 0\n")
    assert "no column 'age'" in error(path)


def test_labels_give_rows_order_and_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = labelled(tmp_path)
    image(tmp_path / "scans" / "c.png", 3)
    with caplog.at_level(logging.WARNING):
        dataset = Dataset.from_file(path)
    assert (dataset.features[:, 0, 0, 0] * 255).round().tolist() == [10, 20]
    assert dataset.targets is not None and dataset.targets.tolist() == [1, 0]
    assert dataset.part("column", "age").tolist() == [40, 50]
    assert [(column.name, column.role) for column in dataset.columns] == [("sick", "target"), ("age", "other")]
    assert "1 images are not listed" in caplog.text and dataset.appends


def test_colours_are_channels_first_and_every_mode_becomes_the_declared_one(tmp_path: Path) -> None:
    path = by_class(tmp_path)
    image(tmp_path / "scans" / "cat" / "a.png", 100, "RGB")
    gray = Dataset.from_file(path).features[0]
    assert gray.shape == (1, 4, 6)
    path.write_text(TOML.replace("channels = 1", ""))
    dataset = Dataset.from_file(path)
    assert dataset.features.shape == (5, 3, 4, 6)
    assert (dataset.features[0, :, 2, 3] * 255).round().tolist() == [100, 100, 155]
    assert (dataset.features[1, :, 2, 3] * 255).round().tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("toml", "what"),
    [
        (TOML.split("[image]")[0], "[image] with size"),
        (TOML.replace("size = [4, 6]", ""), "'size' must be"),
        (TOML.replace("[4, 6]", "[4]"), "'size' must be"),
        (TOML.replace("[4, 6]", "[4, 100000]"), "'size' must be"),
        (TOML.replace("channels = 1", "channels = 2"), "'channels' is 1"),
        (TOML.replace("channels", "chanels"), "did you mean 'channels'"),
        ('features = "x"\n' + TOML, "names an array"),
        (TOML.replace("[4, 6]", "[6, 4]"), "a.png: 4 x 6 pixels where [image] says 6 x 4"),
    ],
)
def test_a_wrong_description_says_what_to_write(tmp_path: Path, toml: str, what: str) -> None:
    path = by_class(tmp_path)
    path.write_text(toml)
    assert what in error(path)


def test_what_is_no_image_is_left_out_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = by_class(tmp_path)
    (tmp_path / "scans" / "cat" / "notes.txt").write_text("hello")
    (tmp_path / "scans" / "cat" / ".DS_Store").write_text("hello")
    with caplog.at_level(logging.WARNING):
        assert Dataset.from_file(path).rows == 5
    assert "1 entries are no images" in caplog.text


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ("name,sick\na.png,no\n", "column 'file' is missing"),
        ("file,sick\na.png,no\na.png,no\n", "line 3: column 'file' names an image for the second time"),
        ("file,sick\n,no\n", "line 2: column 'file' has no value"),
        ("file,sick\nnothing.png,no\n", "line 2: column 'file' names no file"),
        ("file,sick\n../scans/a.png,no\n", "line 2: column 'file' names no file"),
        ("file,sick\n/etc/passwd,no\n", "line 2: column 'file' names no file"),
        ("file,sick\na.png,maybe\n", "line 2: column 'sick' holds a category"),
        ("file,sick\na.png\n", "line 2: 1 cells"),
    ],
)
def test_wrong_labels_are_named_by_line(tmp_path: Path, labels: str, what: str) -> None:
    message = error(labelled(tmp_path, labels))
    assert what in message and "labels.csv" in message


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG whose header claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_hostile_images_are_errors_with_the_name_of_the_file(tmp_path: Path) -> None:
    path = by_class(tmp_path)
    victim = tmp_path / "scans" / "cat" / "a.png"
    for hostile, what in (
        (png(60_000, 60_000, b""), "cannot be read as an image (DecompressionBombError)"),
        (png(10_000, 10_000, b""), "10000 x 10000 pixels"),
        (png(2_000_000_000, 2_000_000_000, b""), ""),
        (png(6, 4, b""), "cannot be read as an image"),
        (png(6, 4, bytes(28))[:-30], "cannot be read as an image"),
        (b"not an image", "cannot be read as an image"),
        (b"", "cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n", "cannot be read as an image"),
    ):
        victim.write_bytes(hostile)
        assert f"{victim}: {what}" in error(path)
    image(victim, 3, "I;16")
    assert "mode 'I;16'" in error(path)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    path = by_class(tmp_path)
    image(tmp_path / "private" / "secret.png", 99)
    link = tmp_path / "scans" / "cat" / "link.png"
    link.symlink_to(tmp_path / "private" / "secret.png")
    assert f"{link}: leads out" in error(path)
    link.unlink()
    (tmp_path / "scans" / "horse").symlink_to(tmp_path / "private")
    assert "horse: leads out" in error(path)
    (tmp_path / "scans" / "horse").unlink()
    link.symlink_to(tmp_path / "scans" / "dog" / "z.png")  # stays inside
    assert Dataset.from_file(path).rows == 6
    link.unlink()
    os.mkfifo(link)
    assert "no plain file" in error(path)
    assert "leads out" in error(_linked_labels(tmp_path / "labelled"))


def _linked_labels(folder: Path) -> Path:
    folder.mkdir()
    path = labelled(folder)
    (folder / "scans" / "b.png").unlink()
    (folder / "scans" / "b.png").symlink_to(folder.parent / "private" / "secret.png")
    return path


def test_class_folders_that_grew_after_a_release_are_refused(tmp_path: Path) -> None:
    """A new image stands between old ones, so which rows were released before is no longer known."""
    store = MemoryStore()
    path = by_class(tmp_path)
    path.write_text(TOML.replace('release = "open"', 'release = "aggregate"\nmin_rows = 2'))
    before = Dataset.from_file(path)
    cut = numpy.array([0, 0, 1, 1, 1], dtype="<i4").tobytes()
    store.save("scans", DatasetState(5, 2, cut, bytes(20), 1))
    assert meet(before, store)[0].rows == 5
    for number in range(2):
        image(tmp_path / "scans" / "cat" / f"new{number}.png", 1)
    with pytest.raises(DatasetError, match=r"new rows do not come last.*labels\.csv"):
        meet(Dataset.from_file(path), store)


def test_small_blocks_give_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grid.node.readers.BLOCK_BYTES", 200)
    blocks = Dataset.from_file(by_class(tmp_path))
    monkeypatch.undo()
    whole = Dataset.from_file(by_class(tmp_path))
    assert torch.equal(blocks.features, whole.features)
