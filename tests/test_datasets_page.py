"""The examples of docs/datasets.md work as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grid.node.checking import check_folder
from grid.node.datasets import Dataset, load_datasets

PAGE = Path(__file__).parents[1] / "docs" / "datasets.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page's examples make."""
    place = tmp_path_factory.mktemp("page")
    (place / "data").mkdir()
    page = PAGE.read_text()
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    subprocess.run([sys.executable, "-c", program], cwd=place, check=True, timeout=60)
    for name, text in re.findall(r"^`(data/\w+\.toml)`:\n\n```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        (place / name).write_text(text)
    return place / "data"


@pytest.fixture(scope="module")
def datasets(folder: Path) -> dict[str, Dataset]:
    return {dataset.name: dataset for dataset in load_datasets(folder)}


def test_every_example_is_a_dataset(folder: Path, datasets: dict[str, Dataset]) -> None:
    assert sorted(datasets) == ["digits", "patients", "photos", "scans", "scores", "visits"]
    report = check_folder(folder)
    assert report.sound and not report.warnings
    assert [one.name for one in report.datasets] == sorted(datasets)
    assert [one.card for one in report.datasets] == [datasets[one.name].card() for one in report.datasets]


def test_they_are_what_the_page_says(datasets: dict[str, Dataset]) -> None:
    patients, visits = datasets["patients"], datasets["visits"]
    assert patients.feature_names == ("age", "housing=own", "housing=rent", "housing=none", "housing=(missing)", "weight")
    assert torch.equal(patients.features, visits.features) and patients.classes == 2
    assert datasets["digits"].features.dtype == torch.uint8 and datasets["digits"].features.shape == (60, 1, 28, 28)
    assert datasets["digits"].classes == 10 and datasets["digits"].targets is not None
    assert datasets["scores"].part("column", "age").tolist() == list(range(60))
    assert datasets["scores"].feature_names == ("x0", "x1", "x2", "x3", "x4")
    assert datasets["scans"].features.shape == (40, 1, 28, 28) and datasets["scans"].columns[0].categories == ("cat", "dog")
    assert datasets["photos"].features.shape == (40, 3, 16, 16)
    assert datasets["photos"].part("column", "age")[3] == 23
