"""The examples do what they say: the right result, and nothing else of anybody's data."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def examples() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def run(name: str, **options: Any) -> dict[str, Any]:
    """What an example finds."""
    found: dict[str, Any] = importlib.import_module(name).run(**options)
    return found


def run_as_shown(name: str, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    """The same, and its page is right. What must be refused is: else the example fails."""
    found = run(name, **options)
    pages.check(name, capsys.readouterr().out)
    return found


def test_millionaires(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_as_shown("millionaires", capsys)
    assert found["richer"] is True and len(found["refused"]) == 6
    assert run("millionaires", fortunes=(3.0, 3.0))["richer"] is False


@pytest.mark.process
def test_millionaires_over_processes() -> None:
    found = run("millionaires", fortunes=(0.5, 1e9), in_processes=True)
    assert found["richer"] is False and len(found["refused"]) == 6


def test_auction(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_as_shown("auction", capsys)
    assert (found["winner"], found["price"]) == ("carol", 5000) and len(found["refused"]) == 6
    equal = run("auction", amounts=(4200, 5150, 5150, 17))
    assert (equal["winner"], equal["price"]) == ("bob", 5150)


def test_tally(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_as_shown("tally", capsys)
    assert (found["yes"], found["valid"]) == (3, 4) and len(found["refused"]) == 6
    wild = run("tally", votes=(1, 2**40, -(2**40), 2, 0, 1))
    assert (wild["yes"], wild["valid"]) == (2, 3)


def test_credit(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_as_shown("credit", capsys)
    assert abs(found["score"] - found["clear"]) < 0.005 and len(found["refused"]) == 6
    module = importlib.import_module("credit")
    answers, paid = module.table()
    model = module.trained(answers, paid)
    loss = torch.nn.functional.binary_cross_entropy
    knows_nothing = loss(paid.mean().expand_as(paid), paid)
    assert loss(module.score(answers, model)[:, 0], paid) < 0.97 * knows_nothing


def test_mnist(capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("mnist")
    if not module.IMAGES.exists():
        pytest.skip(f"no {module.IMAGES.name} in ../shared/data")
    found = run_as_shown("mnist", capsys, steps=20)
    assert found["clear"] > 0.8 and abs(found["shares"] - found["clear"]) <= 0.005
    assert len(found["refused"]) == 4


def test_regression(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_as_shown("regression", capsys)
    clinic, lab, outcome = importlib.import_module("regression").table()
    x, y = torch.cat([clinic, lab], 1).double().numpy(), outcome.double().numpy()
    line = LinearRegression().fit(x, y)
    assert np.allclose(found["coefficients"], [*line.coef_, line.intercept_], rtol=0.002, atol=0)
    inverse = np.linalg.inv((ones := np.column_stack([x, np.ones(len(x))])).T @ ones)
    degrees = len(x) - ones.shape[1]
    errors = np.sqrt(np.square(y - line.predict(x)).sum() / degrees * np.diag(inverse))
    p = 2 * stats.t.sf(abs(np.array([*line.coef_, line.intercept_]) / errors), degrees)
    assert np.allclose(found["errors"], errors, rtol=0.002, atol=0) and np.allclose(found["p"], p, rtol=0.002, atol=0)
    assert len(found["refused"]) == 4


def test_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_as_shown("neighbours", capsys)
    assert found["found"].tolist() == found["clear"].tolist() and len(found["refused"]) == 5


def test_four_ways(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_as_shown("four_ways", capsys)
    here, *others = found["totals"].values()
    assert len(others) == 3 and all(torch.allclose(here, other, atol=1e-2, rtol=1e-4) for other in others)
    assert len(found["refused"]) == 4
