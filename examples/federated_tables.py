"""Tables over five owners whose customers differ: federated training beside each owner alone, and beside all rows in one place.

    python examples/federated_tables.py               # needs adult_train.csv and GermanCredit.csv in ../shared/data
    python examples/federated_tables.py --processes

What one owner's rows alone would give is computed in this script, which made the owners' files and so has every row. In a grid
only the owner could: nobody else has the rows. Explained in docs/tutorial/15-federated-learning.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import learning
import numpy
import pandas
import torch
from sklearn.metrics import roc_auc_score
from started import DATA, main, started
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import grid

OWNERS = ("alice", "bob", "carol", "dave", "erin")
POLICY = {"release": "aggregate", "min_rows": 50}
HELD_BACK = 5
"""One row of so many is for testing."""
SPREAD = 0.2
"""How much owners overlap: a row goes to the owner of its rank in the table, from 0 to 1, give or take so much."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table and how it is learned from. `units`: numeric columns with what they are divided by, so that all are around 1; the
    `named` ones become a column of 0 and 1 for each value. Owners' rows differ by the column `apart`: the first has the lowest."""

    title: str
    file: Path
    target: str
    positive: object
    units: Mapping[str, float]
    named: Sequence[str]
    apart: str
    batch: int
    lr: float


ADULT = Table(
    title="Adult: income above 50K, owners apart by age",
    file=DATA / "adult_train.csv",
    target="class",
    positive=">50K",
    units={"age": 40, "education_num": 10, "capital_gain": 10_000, "capital_loss": 1000, "hours_per_week": 40},
    named=("workclass", "marital_status", "occupation", "relationship", "race", "sex"),
    apart="age",
    batch=64,
    lr=0.1,
)
CREDIT = Table(
    title="German credit: paid back, owners apart by amount",
    file=DATA / "GermanCredit.csv",
    target="credit_risk",
    positive=1,
    units={"duration": 24, "amount": 5000, "age": 40, "installment_rate": 3, "present_residence": 3, "number_credits": 2},
    named=("status", "credit_history", "purpose", "savings", "employment_duration", "property", "other_installment_plans", "housing"),
    apart="amount",
    batch=16,
    lr=0.05,
)
TABLES = {"adult": ADULT, "credit": CREDIT}

Rows = tuple[Tensor, Tensor]
"""Features `(n, columns)` and classes `(n,)`."""


def rows_of(table: Table, most: int | None) -> tuple[list[Rows], Rows]:
    """Each owner's rows to train on, and rows of all owners that none trains on."""
    frame = pandas.read_csv(table.file, nrows=most)
    rank = frame[table.apart].rank(method="first", pct=True)
    nearby = numpy.random.default_rng(0).normal(rank, SPREAD).argsort()
    frame = frame.iloc[nearby].reset_index(drop=True)
    numbers = frame[list(table.units)] / pandas.Series(table.units)
    names = pandas.get_dummies(frame[list(table.named)].fillna("none"))
    x = torch.tensor(pandas.concat([numbers, names], axis=1).to_numpy("float32"))
    y = torch.tensor((frame[table.target] == table.positive).to_numpy("int64"))
    test = torch.arange(len(x)) % HELD_BACK == 0
    parts = zip(x[~test].chunk(len(OWNERS)), y[~test].chunk(len(OWNERS)), strict=True)
    return list(parts), (x[test], y[test])


def model_for(columns: int) -> nn.Module:
    """Logistic regression on two outputs, the same weights at each call."""
    model = nn.Linear(columns, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    return model
