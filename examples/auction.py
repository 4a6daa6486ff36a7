"""A sealed-bid second-price auction: who wins, and at the second highest bid. No bid opens, the winner's neither.

Explained in docs/tutorial/8-auction.md.
"""

from __future__ import annotations

from typing import Any

import torch
from started import main, refusals, started

import grid

TRIO = ("house", "notary", "union")
"""The nodes that compute: the auction house's, a notary's, and one of the bidders' union. None of them has a bid."""

BIDDERS = ("alice", "bob", "carol", "dave")


def second_price(bids: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of bids `(1,)`, int64: which one is the highest, the first of equal ones, and what the second highest is."""
    together = torch.cat(bids)
    return {"winner": together.argmax(), "price": together.topk(2).values[1]}


def highest(bids: list[torch.Tensor]) -> torch.Tensor:
    """What the house would like to know for the next auction."""
    return torch.cat(bids).amax()


EXAMPLE = [torch.zeros(1, dtype=torch.int64) for _ in BIDDERS]
PLAN = grid.trace(second_price, EXAMPLE)
CURIOUS = grid.trace(highest, EXAMPLE)

CALL = f"{PLAN.id}({', '.join(f'{name}/bid' for name in BIDDERS)})"
POLICY = {"release": "deny", "share": list(TRIO), "allow": [CALL], "max_elements": 2, "min_rows": 1}
"""What every bidder writes, once it has read PLAN.code: the plan's two numbers may open, on these four bids."""


def run(*, amounts: tuple[int, ...] = (4200, 3900, 5150, 5000), in_processes: bool = False) -> dict[str, Any]:
    """Who wins the auction, and at which price?"""
    nodes: dict[str, Any] = {name: {} for name in TRIO}
    for name, amount in zip(BIDDERS, amounts, strict=True):
        nodes[name] = {"bid": {"features": torch.tensor([amount]), "policy": POLICY}}
    with started(nodes, in_processes=in_processes) as here:
        client = here.client()
        print("All bidders have read this, and let its results leave:\n\n" + PLAN.code)
        bid = {one.node.name: one.features for one in client.search("#bid")}
        with client.committee(*TRIO) as trio:
            bids = [bid[name].share(trio) for name in BIDDERS]
            found = trio.run(PLAN, bids)
            winner, price = BIDDERS[int(found["winner"].reveal())], int(found["price"].reveal())
            print(f"{winner} wins, and pays {price}")
            refused = refusals({
                "the highest bid": lambda: trio.run(CURIOUS, bids).reveal(),
                "bids that are made up": lambda: trio.run(PLAN, [bids[2], *map(trio.share, EXAMPLE[1:])])["price"].reveal(),
                "a bid on shares": lambda: bids[2].reveal(),
                "a bid, to the house": lambda: bids[2].reveal(to="house"),
                "a bid at its node": lambda: bid["carol"].get(),
                "the price once more": lambda: trio.run(PLAN, bids)["price"].reveal(),
            })
    return {"winner": winner, "price": price, "refused": refused}


if __name__ == "__main__":
    main(run)
