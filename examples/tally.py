"""A private tally: how many said yes. A vote that is neither 0 nor 1 does not count, and no vote opens, such a one neither.

Explained in docs/tutorial/9-tally.md.
"""

from __future__ import annotations

from typing import Any

import torch
from started import main, refusals, started

import grid

TRIO = ("alice", "bob", "carol")
"""The nodes that compute: three of the voters' own."""

VOTERS = (*TRIO, "dave", "erin", "frank")


def tally(votes: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of votes `(1,)`, int64: how many are 1, and how many are 0 or 1. Any other number is taken for no vote."""
    together = torch.cat(votes)
    yes, no = together == 1, together == 0
    return {"yes": yes.sum(), "valid": (yes | no).sum()}


def stuffed(votes: list[torch.Tensor]) -> torch.Tensor:
    """The tally that somebody would like who has put 1000 into the ballot box."""
    return torch.cat(votes).sum()


EXAMPLE = [torch.zeros(1, dtype=torch.int64) for _ in VOTERS]
PLAN = grid.trace(tally, EXAMPLE)
UNCHECKED = grid.trace(stuffed, EXAMPLE)

CALL = f"{PLAN.id}({', '.join(f'{name}/vote' for name in VOTERS)})"
POLICY = {"release": "deny", "share": list(TRIO), "allow": [CALL], "max_elements": 2, "min_rows": 1}
"""What every voter writes, once it has read PLAN.code: the plan's two counts may open, on these six votes."""


def run(*, votes: tuple[int, ...] = (1, 0, 1, 1, 1000, -1), in_processes: bool = False) -> dict[str, Any]:
    """How many have said yes?"""
    nodes: dict[str, Any] = {
        name: {"vote": {"features": torch.tensor([vote]), "policy": POLICY}} for name, vote in zip(VOTERS, votes, strict=True)
    }
    with started(nodes, in_processes=in_processes) as here:
        client = here.client()
        print("All voters have read this, and let its results leave:\n\n" + PLAN.code)
        vote = {one.node.name: one.features for one in client.search("#vote")}
        with client.committee(*TRIO) as trio:
            ballots = [vote[name].share(trio) for name in VOTERS]
            found = {name: int(count.reveal()) for name, count in trio.run(PLAN, ballots).items()}
            print(f"{found['yes']} of {found['valid']} valid votes say yes; {len(ballots) - found['valid']} do not count")
            refused = refusals({
                "a sum that nobody checks": lambda: trio.run(UNCHECKED, ballots).reveal(),
                "one vote, six times": lambda: trio.run(PLAN, ballots[:1] * 6)["yes"].reveal(),
                "which votes count": lambda: (torch.cat(ballots) > 1).reveal(),
                "a vote on shares": lambda: ballots[0].reveal(),
                "a vote at its node": lambda: vote["erin"].get(),
                "the count once more": lambda: trio.run(PLAN, ballots)["yes"].reveal(),
            })
    return {**found, "refused": refused}


if __name__ == "__main__":
    main(run)
