"""The examples do what they say: the right result, and nothing else of anybody's data."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def examples() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def run(name: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module(name).run(**options)
    return found


def test_millionaires() -> None:
    for fortunes, richer in (((5.2e6, 4.9e6), True), ((3.0, 3.0), False)):
        found = run("millionaires", fortunes=fortunes)
        assert found["richer"] is richer and set(found["refused"].values()) == {"committee.release", "release"}


def test_auction() -> None:
    found = run("auction", amounts=(4200, 5150, 5150, 17))
    assert (found["winner"], found["price"]) == ("bob", 5150)
    assert len(found["refused"]) == 5


def test_tally() -> None:
    found = run("tally")
    assert (found["yes"], found["valid"]) == (3, 4)
    assert len(found["refused"]) == 4


def test_credit() -> None:
    found = run("credit")
    assert abs(found["score"] - found["clear"]) < 0.005
    assert len(found["refused"]) == 5
    module = importlib.import_module("credit")
    answers, paid = module.table()
    model = module.trained(answers, paid)
    loss = torch.nn.functional.binary_cross_entropy
    knows_nothing = loss(paid.mean().expand_as(paid), paid)
    assert loss(module.score(answers, model)[:, 0], paid) < 0.97 * knows_nothing
