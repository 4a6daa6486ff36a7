"""Claims say of a value what its type says, and nothing that can be counted."""

from __future__ import annotations

import numpy as np
import torch
from test_gate import ROWS, Bench

from grid.node.work import FROM_WORKER, Account, Offer
from grid.policy.claims import claim_of
from grid.policy.gate import POINTERS
from grid.tensors.buffers import to_frame
from grid.wire.codec import decode, encode


def test_a_claim_has_the_cells_of_its_type_also_after_a_journey() -> None:
    bench = Bench()
    values = {
        "all rows": bench.total(),
        "rows by position": bench.total(0, 20),
        "a block": bench.batch(0),
        "rows": bench.x,
        "mixed": bench.op("cumsum.default", bench.x, 0),
        "from elsewhere": bench.labels.enter(torch.ones(2), bench.labels.foreign(["bob/d"], (2,))),
    }
    for name, value in values.items():
        kind = bench.labels.type_of(value)
        offer = Offer(tensor=to_frame(value), claim=claim_of(kind), account=Account.of(POINTERS))
        frame = b"".join(encode(offer, table=FROM_WORKER))
        arrived = decode(frame, FROM_WORKER).message
        assert isinstance(arrived, Offer) and arrived.claim is not None
        for claim in (claim_of(kind), arrived.claim):
            assert claim.datasets == kind.datasets, name
            assert bool(claim.mixed) == (kind.mixed is not None)
            for part in claim.rows:
                cells, expected = part.cells(ROWS), kind.cells[part.dataset]
                assert np.array_equal(cells.ids, expected.ids), name
                assert (cells.choice, cells.smallest, cells.count) == (expected.choice, expected.smallest, expected.count)
                assert part.axis == kind.axis(part.dataset)


def test_all_rows_travel_without_their_numbers() -> None:
    bench = Bench()
    (part,) = claim_of(bench.labels.type_of(bench.total())).rows
    assert part.every and not part.ids
