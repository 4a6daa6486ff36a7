"""The same small function run four ways: here, at the nodes, as a sum over nodes, on secret shares. One line changes.

Explained in docs/tutorial/14-four-ways.md.
"""

from __future__ import annotations

from typing import Any

import torch
from started import main, refusals, started

import grid

OWNERS = ("alice", "bob", "carol")


@grid.plan
def moments(x: torch.Tensor) -> torch.Tensor:
    """Rows `(n, 3)` -> their sum, and the sum of their squares, `(2, 3)`."""
    return torch.stack([x.sum(0), (x * x).sum(0)])


@grid.plan
def together(tables: list[torch.Tensor]) -> torch.Tensor:
    """The moments of all rows of three tables."""
    return sum(moments.function(x) for x in tables)


@grid.plan
def largest(x: torch.Tensor) -> torch.Tensor:
    """One person's value in each column."""
    return x.amax(0)


def tables() -> list[torch.Tensor]:
    """100 rows for each owner, made up."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(100, 3, generator=rng) + owner for owner in range(len(OWNERS))]


PLAN, TOGETHER = grid.trace(moments.function, tables()[0]), grid.trace(together.function, tables())
CALL = f"{TOGETHER.id}({', '.join(f'{name}/rows' for name in OWNERS)})"
POLICY = {"release": "aggregate", "plans": "builtin", "share": list(OWNERS), "allow": [PLAN.id, CALL]}
"""One policy for all ways. With "deny" and CALL alone, the fourth way would be the only one."""


def run(*, in_processes: bool = False) -> dict[str, Any]:
    """Do all four give the same?"""
    rows = tables()
    nodes = {name: {"rows": {"features": own, "policy": POLICY}} for name, own in zip(OWNERS, rows, strict=True)}
    with started(nodes, in_processes=in_processes) as here:
        client = here.client()
        found = sorted(client.search("#rows"), key=lambda one: one.node.name)
        with client.committee(*OWNERS) as trio:
            totals = {
                "here": together(rows),
                "at the nodes": sum(moments(ds.features).get() for ds in found),
                "as a sum": grid.sum([moments(ds.features) for ds in found]),
                "on shares": together([ds.features.share(trio) for ds in found]).reveal(),
            }
            for way, total in totals.items():
                mean = total[0] / (len(OWNERS) * 100)
                print(f"{way:13} means {', '.join(f'{one:.3f}' for one in mean.tolist())}")
            refused = refusals({
                "another plan at a node": lambda: largest(found[0].features).get(),
                "another plan in a sum": lambda: grid.sum([largest(ds.features) for ds in found]),
                "another plan on shares": lambda: largest(found[0].features.share(trio)).reveal(),
                "one owner's rows thrice": lambda: together([found[0].features.share(trio)] * 3).reveal(),
            })
    return {"totals": totals, "refused": refused}


if __name__ == "__main__":
    main(run)
