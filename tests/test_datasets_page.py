"""The examples of docs/datasets.md work as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grid.demo_processes import processes
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


@pytest.mark.process
def test_a_node_offers_them_and_a_client_computes_on_them(folder: Path) -> None:
    """Over real processes, with every dataset in files because none is small enough for memory."""
    with processes(folder.parent) as running:
        running.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0"])
        url = running.ready("gateway")["url"]
        state = folder.parent / "state"
        options = ["--data", str(folder), "--state", str(state), "--dataset-memory-bytes", "100", "--gateway", url]
        running.start("alice", ["node", "alice", "--dev", *options])
        assert len(running.ready("alice")["datasets"]) == 6
        done = subprocess.run([sys.executable, "-c", PROGRAM, url], capture_output=True, text=True, timeout=90, check=False)
        assert (state / "datasets").is_dir() and not list((state / "datasets").iterdir())
    assert done.returncode == 0, done.stderr
    shapes = ["digits (1, 28, 28)", "patients (6,)", "photos (3, 16, 16)", "scans (1, 28, 28)", "scores (5,)"]
    assert done.stdout.splitlines() == shapes


PROGRAM = """
import sys, grid
g = grid.connect(sys.argv[1])
for ds in sorted(g.search(), key=lambda ds: ds.name):
    if ds.policy.plans == "any":
        mean = (ds.features.float() / 255).mean((0, *range(2, ds.features.dim()))).sum()
        assert mean.get().isfinite() and ds.mock.features.shape[1:] == ds.features.shape[1:]
        print(ds.name, tuple(ds.features.shape[1:]))
"""
