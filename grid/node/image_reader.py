"""Folders of images as datasets: `(rows, channels, height, width)` float32 from 0 to 1.

Either one folder for each class, whose name is the class; or a `labels.csv` beside the images, with the column `file` and any
others, in whose order the rows stand. Images are decoded by Pillow, from a list of common formats, and only after
their size has been found to be what `[image]` says: a small file cannot ask for much memory.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy
import PIL
import PIL.Image
import torch
from torch import Tensor

from grid.errors import DatasetError
from grid.node.columns import Column, plan_columns
from grid.node.csv_table import CsvTable
from grid.node.descriptions import MAX_CATEGORIES, ColumnRule, Description, ImageRule
from grid.node.findings import Findings
from grid.node.readers import (
    COLUMN,
    FEATURES,
    TARGETS,
    Block,
    Part,
    Reader,
    Schema,
    block_rows,
    column_part,
    column_values,
    survey,
    texts_of,
)

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's kinds of images with 8 bits for each channel, or fewer."""

LABELS = "labels.csv"
FILE = "file"
LABEL_ROWS = 4096


def image_reader(description: Description, findings: Findings) -> Reader:
    """The reader for a folder of images."""
    folder, where = description.path, description.where
    description.refuse_keys(("features", "targets"), "names an array; a folder of images has none", findings)
    rule = description.image
    if rule is None:
        what = "a folder of images needs their form: [image] with size = [height, width] and channels = 1 or 3"
        raise where.error(what, key="file")
    if (folder / LABELS).is_file():
        return LabelledImages(folder, rule, description, findings)
    return ClassFolders(folder, rule, description, findings)


class ClassFolders(Reader):
    """One folder for each class, in the order of their names; in each the files in the order of theirs."""

    def __init__(self, folder: Path, rule: ImageRule, description: Description, findings: Findings) -> None:
        self._rule = rule
        self._findings = findings
        self._folder = folder
        target = description.target or "label"
        declared = description.columns.get(target)
        for name in description.columns:
            if name != target:
                what = f"there is no column {name!r}: the class folders give one column, {target!r}"
                findings.error(description.where.error(what, section=f"columns.{name}"))
        self._classes = _classes(folder, declared, description)
        self._files = [
            (path, code) for code, name in enumerate(self._classes) for path in _images_in(folder, folder / name, findings)
        ]
        if not self._files:
            raise DatasetError(f"{folder}: no images in its folders; known endings are {', '.join(SUFFIXES)}")
        column = Column(target, "category", "target", ColumnRule(categories=self._classes))
        parts = {FEATURES: Part((rule.channels, rule.height, rule.width), torch.float32), TARGETS: Part((), torch.int64)}
        self._schema = Schema(
            len(self._files), parts, (column.card,), {target: (TARGETS, None)}, (), len(self._classes), appends=False
        )

    @property
    def schema(self) -> Schema:
        return self._schema

    def blocks(self) -> Iterator[Block]:
        most = block_rows(self._schema.row_bytes)
        for first in range(0, len(self._files), most):
            part = self._files[first : first + most]
            images = torch.stack([read_image(path, self._folder, self._rule, self._findings) for path, _ in part])
            yield {FEATURES: images, TARGETS: torch.tensor([code for _, code in part])}


class LabelledImages(Reader):
    """Images beside a `labels.csv`; its other columns are read as those of any table, and are no features."""

    def __init__(self, folder: Path, rule: ImageRule, description: Description, findings: Findings) -> None:
        self._rule = rule
        self._findings = findings
        self._folder = folder
        self._table = CsvTable(folder / LABELS, findings)
        if FILE not in self._table.names:
            raise DatasetError(f"{folder / LABELS}, line 1: the column {FILE!r} is missing: the name of each row's image")
        rows, tallies = survey(self._table, description, findings)
        self._columns = plan_columns(self._table, tallies, description, findings, usual="other", without=(FILE,))
        self._check_names()
        self._schema = self._make_schema(rows)

    @property
    def schema(self) -> Schema:
        return self._schema

    def _check_names(self) -> None:
        """Every image is one row, and every row's image is there."""
        listed: set[str] = set()
        for chunk in self._table.chunks({FILE}, {FILE}, LABEL_ROWS):
            for row, name in enumerate(chunk.cells[FILE]):
                if name is None:
                    self._findings.row(chunk.at(row), FILE, f"column {FILE!r} has no value")
                elif name in listed:
                    self._findings.row(chunk.at(row), FILE, f"column {FILE!r} names an image for the second time")
                elif Path(name).name != name or not (self._folder / name).is_file():
                    self._findings.row(chunk.at(row), FILE, f"column {FILE!r} names no file of the folder")
                else:
                    listed.add(name)
        spare = sum(path.name not in listed for path in _images_in(self._folder, self._folder, self._findings))
        if spare:
            self._findings.warn(f"{self._folder}: {spare} images are not listed in {LABELS} and are left out")

    def _make_schema(self, rows: int) -> Schema:
        rule = self._rule
        parts = {FEATURES: Part((rule.channels, rule.height, rule.width), torch.float32)}
        places: dict[str, tuple[str, int | None]] = {}
        for column in self._columns:
            if column.kind != "text":
                place = TARGETS if column.role == "target" else COLUMN + column.name
                parts[place] = column_part(column)
                places[column.name] = (place, None)
        classes = next((len(column.rule.categories) for column in self._columns if column.role == "target"), 0)
        return Schema(rows, parts, tuple(column.card for column in self._columns), places, (), classes)

    def blocks(self) -> Iterator[Block]:
        usable = [column for column in self._columns if column.kind != "text"]
        wanted = {FILE, *(column.name for column in usable)}
        for chunk in self._table.chunks({FILE, *texts_of(usable)}, wanted, block_rows(self._schema.row_bytes)):
            values = column_values(usable, chunk, self._findings)
            paths = [self._folder / Path(str(name)).name for name in chunk.cells[FILE]]
            images = torch.stack([read_image(path, self._folder, self._rule, self._findings) for path in paths])
            yield {FEATURES: images} | {self._schema.places[name][0]: each for name, each in values.items()}


def _classes(folder: Path, declared: ColumnRule | None, description: Description) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")))
    if declared is not None and declared.categories:
        unknown = next((name for name in names if name not in declared.categories), "")
        if unknown:
            what = f"the folder {unknown!r} is none of the declared categories"
            raise description.where.error(what, section=f"columns.{description.target or 'label'}", key="categories")
        return declared.categories
    if not 2 <= len(names) <= MAX_CATEGORIES:
        what = f"{len(names)} folders in {str(folder)!r}: it needs one for each class, two at least, or images and a {LABELS}"
        raise description.where.error(what, key="file")
    return names


def _images_in(root: Path, folder: Path, findings: Findings) -> Iterator[Path]:
    """The images of a folder, by name. What is no image is left out, and what lies elsewhere is an error."""
    if not folder.is_dir():
        return
    if not _inside(folder, root):
        findings.error(DatasetError(f"{folder}: leads out of the dataset's folder; copy the images into it"))
        return
    others = 0
    for name in sorted(entry.name for entry in os.scandir(folder)):
        path = folder / name
        if name.startswith(".") or name == LABELS:
            continue
        if not name.lower().endswith(SUFFIXES):
            others += 1
        else:
            yield path
    if others:
        findings.warn(f"{folder}: {others} entries are no images (known endings are {', '.join(SUFFIXES)}) and are left out")


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def read_image(path: Path, root: Path, rule: ImageRule, findings: Findings) -> Tensor:
    """One image: `(channels, height, width)` float32 from 0 to 1. What is wrong with it goes to the findings, with its name."""
    with findings.noting():
        if not _inside(path, root):
            raise DatasetError(f"{path}: leads out of the dataset's folder; copy the image into it")
        if not stat.S_ISREG(path.stat().st_mode):
            raise DatasetError(f"{path}: is no plain file")
        pixels = numpy.asarray(_decoded(path, rule), dtype=numpy.float32) / 255
        return torch.from_numpy(pixels.reshape(rule.height, rule.width, rule.channels)).permute(2, 0, 1)
    return torch.zeros(rule.channels, rule.height, rule.width)


def _decoded(path: Path, rule: ImageRule) -> PIL.Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on damaged metadata; a size that Pillow warns of is refused below
            with PIL.Image.open(path, formats=FORMATS) as image:
                _check_form(path, image, rule)
                return image.convert("L" if rule.channels == 1 else "RGB")
    except DatasetError:
        raise
    except Exception as error:  # decoders of damaged files raise errors of many kinds
        raise DatasetError(f"{path}: cannot be read as an image ({type(error).__name__})") from error


def _check_form(path: Path, image: PIL.Image.Image, rule: ImageRule) -> None:
    """Before anything is decoded: the header says what the image will take."""
    if image.size != (rule.width, rule.height):
        what = f"{image.height} x {image.width} pixels where [image] says {rule.height} x {rule.width}"
        raise DatasetError(f"{path}: {what} (height x width); resize it, or change 'size'")
    if image.mode not in MODES:
        raise DatasetError(f"{path}: an image of Pillow's mode {image.mode!r}; save it with 8 bits a channel")
