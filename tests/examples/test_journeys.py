"""The examples do what they say: the right result, and nothing else of anybody's data."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pytest
import torch

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


def run_as_shown(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The same, as it is, and its page is right. What must be refused is: else the example fails."""
    found = run(name)
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
