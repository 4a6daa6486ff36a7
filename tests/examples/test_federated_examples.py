"""The examples of federated learning, small: the models are as good as they say, and the pictures are there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def examples() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def test_digits_are_learned_as_plain_fedavg_learns_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "digits.png"
    found = importlib.import_module("federated_digits").run(plot=plot)
    pages.check("federated_digits", capsys.readouterr().out)
    assert found["accuracy"] >= 0.93 and found["apart"] < 1e-4
    assert [one.nodes for one in found["reports"]] == [4] * 16 and len(found["refused"]) == 1
    assert plot.read_bytes().startswith(PNG)


def test_mnist_with_equal_parts_and_with_two_digits_a_node(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    module: Any = importlib.import_module("federated_mnist")
    if not module.IMAGES.exists():
        pytest.skip(f"no {module.IMAGES.name} in ../shared/data")
    plot = tmp_path / "mnist.png"
    few = {name: module.STRATEGIES[name] for name in ("FedAvg",)}
    found = module.run(rounds=2, trained=1000, strategies=few, plot=plot)
    pages.check("federated_mnist", capsys.readouterr().out)
    assert list(found["tested"]) == [*few, "centralised"]
    equal, two = ({name: one[title] for name, one in found["tested"].items()} for title, _ in module.DEALT.values())
    assert equal["centralised"] == max(equal.values()) > 0.8
    assert equal["FedAvg"] > 0.4 and two["FedAvg"] > 0.4
    assert all(curve[-1][1] > curve[0][1] + 0.2 for lines in found["curves"].values() for curve in lines.values())
    assert plot.read_bytes().startswith(PNG)


def test_tables_are_learned_better_together_than_by_most_owners(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    module: Any = importlib.import_module("federated_tables")
    if not all(table.file.exists() for table in module.TABLES.values()):
        pytest.skip("no tables in ../shared/data")
    plot = tmp_path / "tables.png"
    found = module.run(rounds=6, most=4000, plot=plot)
    pages.check("federated_tables", capsys.readouterr().out)
    for rows in found.values():
        alone = sorted(one["AUC"] for name, one in rows.items() if name.endswith(" alone"))
        assert len(alone) == 5 and rows["federated"]["AUC"] > alone[2]
        assert rows["federated"]["AUC"] > rows["pooled"]["AUC"] - 0.05
    assert plot.read_bytes().startswith(PNG)


@pytest.mark.parametrize("name", ["federated_mnist", "federated_tables"])
def test_without_the_data_an_example_says_so(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = importlib.import_module(name)
    if name == "federated_mnist":
        monkeypatch.setattr(module, "IMAGES", tmp_path / "none.gz")
    else:
        monkeypatch.setattr(module, "TABLES", {})
    assert module.run(plot=tmp_path / "none.png") == {} and not list(tmp_path.iterdir())
