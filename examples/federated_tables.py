"""Tables over five owners whose customers differ: federated training beside each owner alone, and beside all rows in one place.

    python examples/federated_tables.py               # needs adult_train.csv and GermanCredit.csv in ../shared/data
    python examples/federated_tables.py --processes

What one owner's rows alone would give is computed in this script, which made the owners' files and so has every row. In a grid
only the owner could: nobody else has the rows. Explained in docs/tutorial/18-federated-tables.md.
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
POLICY = {"release": "aggregate", "min_rows": 10}
STRATEGY = grid.FedAvgM(momentum=0.5)
HELD_BACK = 5
"""One row of so many is for testing."""
SPREAD = 0.2
"""How much owners overlap: a row goes to the owner of its rank in the table, from 0 to 1, give or take so much."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table and how to learn from it. `units`: numeric columns with what they are divided by, so that all are around 1; the
    `named` ones become a column of 0 and 1 for each value. Owners differ by the column `apart`: the first has low values."""

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
    named=("status", "credit_history", "purpose", "savings", "employment_duration", "property", "housing"),
    apart="amount",
    batch=16,
    lr=0.1,
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


def area(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The area under the ROC curve (AUC): how often a row of the positive class is scored above one of the other."""
    with torch.no_grad():
        scores = model(x)
    return float(roc_auc_score(y, scores[:, 1] - scores[:, 0]))


def run(
    *, rounds: int = 20, most: int | None = None, plot: Path = Path("federated_tables.png"), in_processes: bool = False
) -> dict[str, Any]:
    """What does an owner gain by training with the others?"""
    tables = {tag: table for tag, table in TABLES.items() if table.file.exists()}
    for table in TABLES.values():
        if table not in tables.values():
            print(f"there is no {table.file.name} in {DATA}: nothing to train on")
    if not tables:
        return {}
    dealt = {tag: rows_of(table, most) for tag, table in tables.items()}
    nodes = {
        name: {tag: {"features": parts[at][0], "targets": parts[at][1], "policy": POLICY} for tag, (parts, _) in dealt.items()}
        for at, name in enumerate(OWNERS)
    }
    federated = {}
    with started(nodes, in_processes=in_processes) as here:
        client = here.client()
        for tag, table in tables.items():
            job = client.train(
                model_for(dealt[tag][1][0].shape[1]),
                loss=cross_entropy,
                datasets=client.search(f"#{tag}"),
                rounds=rounds,
                local=grid.Local(epochs=1, batch_size=table.batch, optimizer=grid.SGD(lr=table.lr)),
                strategy=STRATEGY,
                seed=0,
                name=table.title,
            )
            federated[tag] = job.result()
    found = {}
    for tag, table in tables.items():
        parts, test = dealt[tag]
        pooled = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        models = {f"{name} alone": fitted(table, rows, rounds) for name, rows in zip(OWNERS, parts, strict=True)}
        models |= {"federated": federated[tag], "pooled": fitted(table, pooled, rounds)}
        found[tag] = {
            name: {"accuracy": learning.accuracy(model, *test), "AUC": area(model, *test)} for name, model in models.items()
        }
        shares = ", ".join(f"{float(y.float().mean()):.0%}" for _, y in parts)
        print(f"{table.title}: {len(pooled[0])} rows, of whom {shares} are positive at the five owners; {len(test[0])} to test\n")
        print(learning.table(found[tag]) + "\n")
    bars = {tables[tag].title: {name: one["AUC"] for name, one in rows.items()} for tag, rows in found.items()}
    learning.bars(plot, bars, y="AUC on rows of all owners", bottom=0.5)
    return found


def fitted(table: Table, rows: Rows, passes: int) -> nn.Module:
    """The same model and as many passes, over rows in one place."""
    *_, model = learning.epochs(model_for(rows[0].shape[1]), *rows, lr=table.lr, count=passes, batch=table.batch)
    return model


if __name__ == "__main__":
    main(run)
