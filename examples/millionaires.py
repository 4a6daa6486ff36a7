"""Yao's millionaires: who is richer? Two owners find out, and nothing else: not by how much, not what either has.

Explained in docs/tutorial/7-millionaires.md.
"""

from __future__ import annotations

from typing import Any

import torch
from started import main, refusals, started

import grid

TRIO = ("alice", "bob", "carol")
"""The nodes that compute: the two millionaires' own, and carol's, who has no secret here."""


def richer(alice: torch.Tensor, bob: torch.Tensor) -> torch.Tensor:
    """Whether alice has more than bob, `(1,)`."""
    return alice > bob


def difference(alice: torch.Tensor, bob: torch.Tensor) -> torch.Tensor:
    """What a curious client would ask."""
    return alice - bob


PLAN = grid.trace(richer, torch.zeros(1), torch.zeros(1))
CURIOUS = grid.trace(difference, torch.zeros(1), torch.zeros(1))

POLICY = {
    "release": "deny",  # nothing leaves in the clear
    "share": list(TRIO),  # these nodes may have secret shares, of which any two could be put together
    "allow": [f"{PLAN.id}(alice/fortune, bob/fortune)"],  # and the result of this plan opens, on these two fortunes
    "max_elements": 1,  # once
    "min_rows": 1,  # though it tells of a single row
}
"""What both owners write, once they have read PLAN.code."""


def run(*, fortunes: tuple[float, float] = (5.2e6, 4.9e6), in_processes: bool = False) -> dict[str, Any]:
    """Who is richer?"""
    nodes: dict[str, Any] = {"carol": {}}
    for name, fortune in zip(("alice", "bob"), fortunes, strict=True):
        nodes[name] = {"fortune": {"features": torch.tensor([fortune]), "policy": POLICY}}
    with started(nodes, in_processes=in_processes) as here:
        client = here.client()
        print("Both owners have read this, and let its result leave:\n\n" + PLAN.code)
        fortune = {one.node.name: one.features for one in client.search("#fortune")}
        with client.committee(*TRIO) as trio:
            alice, bob = fortune["alice"].share(trio), fortune["bob"].share(trio)
            found = bool(trio.run(PLAN, alice, bob).reveal())
            print(f"alice is richer than bob: {found}")
            refused = refusals({
                "their difference": lambda: trio.run(CURIOUS, alice, bob).reveal(),
                "a guess in bob's place": lambda: trio.run(PLAN, alice, trio.share(torch.tensor([5e6]))).reveal(),
                "a fortune on shares": lambda: alice.reveal(),
                "bob's fortune, to alice": lambda: bob.reveal(to="alice"),
                "a fortune at its node": lambda: fortune["alice"].get(),
                "the same once more": lambda: trio.run(PLAN, alice, bob).reveal(),
            })
    return {"richer": found, "refused": refused}


if __name__ == "__main__":
    main(run)
