"""Linear regression on columns of two owners, with standard errors and p-values. Only the table of coefficients opens.

Explained in docs/tutorial/12-regression.md.
"""

from __future__ import annotations

from typing import Any

import torch
from scipy import stats
from sklearn.datasets import load_diabetes
from started import main, refusals, started

import grid

TRIO = ("clinic", "lab", "helper")
CLINIC = {"age": 10, "sex": 1, "bmi": 5, "bp": 10}
LAB = {"s3": 10, "s5": 1, "s6": 10}
"""Columns of the two owners, each with its unit: numbers on shares are best around 1."""

COLUMNS, ROWS = (*CLINIC, *LAB), 442
DEGREES = ROWS - len(COLUMNS) - 1
STEPS = 12
"""Newton's steps to an inverse; each doubles the digits that are right."""


def inverse(a: torch.Tensor) -> torch.Tensor:
    """The inverse of a correlation matrix, whose eigenvalues lie between 0 and its size."""
    eye = torch.eye(len(COLUMNS), dtype=a.dtype)
    found = eye / len(COLUMNS)
    for _ in range(STEPS):
        found = found @ (2 * eye - a @ found)
    return found


def regress(clinic: torch.Tensor, lab: torch.Tensor, outcome: torch.Tensor) -> torch.Tensor:
    """Columns `(n, 4)` and `(n, 3)` and an outcome `(n,)` -> least-squares coefficients, the intercept last, and their standard
    errors times the root of DEGREES, `(2, 8)`."""
    x = torch.cat([clinic, lab], 1)
    mean, y = x.mean(0), outcome - outcome.mean()
    scale = 1 / (x - mean).square().mean(0).sqrt()
    z = (x - mean) * scale
    covariance = inverse((z.T @ z) / ROWS)
    right = (z.T @ y) / ROWS
    slopes = covariance @ right
    slopes = slopes + covariance @ (right - (z.T @ (z @ slopes)) / ROWS)  # once more, for what rounding has left
    noise = (y - z @ slopes).square().mean().sqrt()
    at_zero = mean * scale
    errors = noise * torch.cat([covariance.diagonal().sqrt() * scale, (1 + at_zero @ covariance @ at_zero).sqrt().reshape(1)])
    intercept = outcome.mean() - (slopes * at_zero).sum()
    return torch.stack([torch.cat([slopes * scale, intercept.reshape(1)]), errors])


def products(clinic: torch.Tensor, lab: torch.Tensor, outcome: torch.Tensor) -> torch.Tensor:
    """From which one could go on to other regressions."""
    return clinic.T @ torch.cat([lab, outcome[:, None]], 1)


def table() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """442 people with diabetes: the clinic's columns, the lab's, and how far the disease is a year later, in tens."""
    data = load_diabetes(scaled=False, as_frame=True)
    parts = [torch.tensor((data.data[list(owned)] / list(owned.values())).to_numpy("float32")) for owned in (CLINIC, LAB)]
    return parts[0], parts[1], torch.tensor(data.target.to_numpy("float32") / 10)


EXAMPLE = (torch.zeros(ROWS, len(CLINIC)), torch.zeros(ROWS, len(LAB)), torch.zeros(ROWS))
PLAN, CURIOUS = grid.trace(regress, *EXAMPLE), grid.trace(products, *EXAMPLE)
CALL = f"{PLAN.id}(clinic/people, lab/people, lab/people/targets)"
POLICY = {"release": "deny", "share": list(TRIO), "allow": [CALL], "max_elements": 2 * len(COLUMNS) + 2}


def run(*, in_processes: bool = False) -> dict[str, Any]:
    """Which columns of the two owners say something of the outcome?"""
    clinic, lab, outcome = table()
    nodes = {
        "clinic": {"people": {"features": clinic, "policy": POLICY}},
        "lab": {"people": {"features": lab, "targets": outcome, "policy": POLICY}},
        "helper": {},
    }
    with started(nodes, in_processes=in_processes) as here:
        client = here.client()
        found = {one.node.name: one for one in client.search("#people")}
        with client.committee(*TRIO) as trio:
            rows = (found["clinic"].features, found["lab"].features, found["lab"].targets)
            shared = [part.share(trio) for part in rows]
            coefficients, scaled = trio.run(PLAN, *shared).reveal().double()
            errors = scaled / DEGREES**0.5
            p = 2 * stats.t.sf((coefficients / errors).abs(), DEGREES)
            for line in zip((*COLUMNS, "(intercept)"), coefficients, errors, p, strict=True):
                print("{:12} {:9.4f} +- {:7.4f}   p = {:.2g}".format(*line))
            refused = refusals({
                "products of columns": lambda: trio.run(CURIOUS, *shared).reveal(),
                "an outcome of the client's own": lambda: trio.run(PLAN, *shared[:2], trio.share(outcome)).reveal(),
                "the clinic's rows, to the lab": lambda: shared[0].reveal(to="lab"),
                "the regression once more": lambda: trio.run(PLAN, *shared).reveal(),
            })
    return {"coefficients": coefficients, "errors": errors, "p": p, "refused": refused}


if __name__ == "__main__":
    main(run)
