"""Private nearest neighbours: which of a library's embeddings are closest to a query. Only the numbers of these few rows open.

Explained in docs/tutorial/13-neighbours.md.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from started import main, refusals, started

import grid

TRIO = ("library", "seeker", "helper")
ROWS, NEAREST = 300, 5


def nearest(query: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """The rows of embeddings `(n, d)` with the largest dot products with the query `(1, d)`, `(1, 5)`, the closest one first."""
    return (query @ embeddings.T).topk(NEAREST).indices


def similarities(query: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """What gives a library away: with d queries of your own, these dot products are its embeddings."""
    return query @ embeddings.T


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of length 1, `(n, 64)`, and what they show `(n,)`: small images of digits, whose dot products say how alike
    they look."""
    images = torch.tensor(load_digits().data, dtype=torch.float32)
    return torch.nn.functional.normalize(images), torch.tensor(load_digits().target)


EXAMPLE = torch.zeros(1, 64), torch.zeros(ROWS, 64)
PLAN, CURIOUS = grid.trace(nearest, *EXAMPLE), grid.trace(similarities, *EXAMPLE)
POLICY = {"release": "deny", "share": list(TRIO), "allow": [f"{PLAN.id}(seeker/query, library/embeddings)"]}
LIBRARY = POLICY | {"max_elements": 4 * NEAREST}
"""The library answers four queries."""

SEEKER = POLICY | {"min_rows": 1}


def run(*, in_processes: bool = False) -> dict[str, Any]:
    """Which embeddings are closest to the query?"""
    embeddings, shown = digits()
    query = embeddings[-1:]
    nodes = {
        "library": {"embeddings": {"features": embeddings[:ROWS], "policy": LIBRARY}},
        "seeker": {"query": {"features": query, "policy": SEEKER}},
        "helper": {},
    }
    with started(nodes, in_processes=in_processes) as here:
        client = here.client()
        print("The library and the seeker have read this, and let its result leave:\n\n" + PLAN.code)
        (theirs,), (own,) = client.search("#embeddings"), client.search("#query")
        with client.committee(*TRIO) as trio:
            shared = own.features.share(trio), theirs.features.share(trio)
            found = trio.run(PLAN, *shared).reveal()[0]
            print(f"the query shows a {int(shown[-1])}; the nearest of the library show {shown[found].tolist()}")
            refused = refusals({
                "the dot products": lambda: trio.run(CURIOUS, *shared).reveal(),
                "a query of the client's own": lambda: trio.run(PLAN, trio.share(query), shared[1]).reveal(),
                "the embeddings found": lambda: shared[1][found].reveal(),
                "the embeddings, to the seeker": lambda: shared[1].reveal(to="seeker"),
                "the query, to the library": lambda: shared[0].reveal(to="library"),
            })
    return {"found": found, "clear": nearest(query, embeddings[:ROWS])[0], "refused": refused}


if __name__ == "__main__":
    main(run)
