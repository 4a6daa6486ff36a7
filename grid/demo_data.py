"""The demo's data: scikit-learn's breast-cancer table, split over three owners as folders of CSV files with descriptions.

Each owner has a training set and a test set. The ranges that the descriptions state are what an owner might write from
knowing the instrument; nothing in them is computed from the rows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy
import pandas
import torch

from grid.errors import InvalidRequest, NotFound

OWNERS = ("alice", "bob", "carol")
TARGET = "diagnosis"
CLASSES = ("benign", "malignant")
TEST_EVERY = 5
"""Every fifth row of an owner is in its test set."""

RANGES = {
    "radius": 40, "texture": 60, "perimeter": 300, "area": 5000, "smoothness": 0.3, "compactness": 1.5, "concavity": 1.5,
    "concave points": 0.5, "symmetry": 1, "fractal dimension": 0.3,
}  # fmt: skip
"""The largest value that each measure of a cell nucleus is declared to have; the smallest is 0."""

DESCRIPTION = """\
description = "Nuclei in fine-needle samples of breast tumours: {what} set of {owner}"
file = "{file}"
tags = ["#breast-cancer", "#{what}"]
target = "{target}"

[policy]
release = "aggregate"   # only values that stand for at least min_rows rows leave this machine
plans = "any"           # and any program may compute them
min_rows = 10
# How many numbers may leave over the life of this dataset. The default would be 0.33 x rows, about {default}. A gradient step of
# the demo is 32 numbers, so {elements} allow about {steps} steps. They leave as sums over three owners alone; a client that
# asked one owner directly could learn much from so many numbers, so an owner with real data would choose less.
max_elements = {elements}

[columns.{target}]
categories = [{classes}]
"""

MAX_ELEMENTS = 10_000
STEP_ELEMENTS = 32


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Rows in the clear: float32 features `(rows, 30)` and int64 targets `(rows,)`, 1 for malignant."""

    features: torch.Tensor
    targets: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """Every owner's rows, for whoever plays the owners; `columns` are the names of the features."""

    columns: tuple[str, ...]
    train: dict[str, Samples]
    test: dict[str, Samples]

    def pooled(self, part: str) -> Samples:
        """All owners' rows of "train" or "test" in one place: what the demo compares itself with."""
        parts = list((self.train if part == "train" else self.test).values())
        return Samples(torch.cat([one.features for one in parts]), torch.cat([one.targets for one in parts]))


def split(seed: int = 7) -> Split:
    """The table in a random order, a third to each owner, every fifth row for testing."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise NotFound("the demo's data comes with scikit-learn: pip install 'grid[demo]'") from None
    table = load_breast_cancer()
    features = torch.tensor(table.data, dtype=torch.float32)
    targets = torch.tensor(1 - table.target, dtype=torch.int64)  # scikit-learn has 1 for benign
    order = torch.from_numpy(numpy.random.default_rng(seed).permutation(len(features)))
    train, test = {}, {}
    for position, owner in enumerate(OWNERS):
        rows = order[position :: len(OWNERS)]
        held_out = torch.arange(len(rows)) % TEST_EVERY == 0
        train[owner] = Samples(features[rows[~held_out]], targets[rows[~held_out]])
        test[owner] = Samples(features[rows[held_out]], targets[rows[held_out]])
    return Split(tuple(str(name) for name in table.feature_names), train, test)


def write_folders(folder: Path, data: Split) -> dict[str, Path]:
    """One folder for each owner with `train.csv`, `test.csv` and their descriptions; returns owner -> folder."""
    folders = {}
    for owner in data.train:
        folders[owner] = folder / owner
        try:
            folders[owner].mkdir(parents=True)
        except FileExistsError:
            raise InvalidRequest(f"{folders[owner]} exists; the demo writes into fresh folders alone") from None
        _write_folder(folders[owner], owner, data)
    return folders


def fill_folders(folder: Path) -> list[str]:
    """The same in folders that may exist, such as mounted ones: those that hold anything stay as they are.

    Returns the paths of the files that were written. Raises `InvalidRequest` where nothing can be written.
    """
    data, written = split(), []
    for owner in OWNERS:
        mine = folder / owner
        try:
            mine.mkdir(parents=True, exist_ok=True)
            if not any(mine.iterdir()):
                written += _write_folder(mine, owner, data)
        except OSError as error:
            raise InvalidRequest(f"{mine}: cannot be written: {error.strerror}") from error
    return [str(path) for path in written]


def _write_folder(folder: Path, owner: str, data: Split) -> list[Path]:
    written = []
    for what, samples in (("train", data.train[owner]), ("test", data.test[owner])):
        table, told = folder / f"{what}.csv", folder / f"{what}.toml"
        frame = pandas.DataFrame(samples.features.numpy(), columns=list(data.columns))
        frame[TARGET] = [CLASSES[target] for target in samples.targets.tolist()]
        frame.to_csv(table, index=False)
        told.write_text(_description(owner, what, len(frame), data.columns), encoding="utf-8")
        written += [table, told]
    return written


def _description(owner: str, what: str, rows: int, columns: tuple[str, ...]) -> str:
    text = DESCRIPTION.format(
        owner=owner,
        what=what,
        file=f"{what}.csv",
        target=TARGET,
        classes=", ".join(f'"{name}"' for name in CLASSES),
        default=rows // 3,
        elements=MAX_ELEMENTS,
        steps=MAX_ELEMENTS // STEP_ELEMENTS,
    )
    for column in columns:
        measure = next(measure for measure in RANGES if measure in column)
        text += f'\n[columns."{column}"]\nmin = 0\nmax = {RANGES[measure]}\n'
    return text
