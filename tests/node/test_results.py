"""What committees opened to a node for its owner: kept within bounds, of each client and of all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from grid.errors import QuotaExceeded
from grid.ids import CommitteeId, ObjectId, PeerId, TransferId
from grid.node import results
from grid.node.results import Results, listed
from grid.tensors.buffers import to_frame
from grid.testing.clocks import FakeClock
from grid.wire.messages import DeliverShare, Opening, RowsBehind


def opened(client: str) -> DeliverShare:
    opening = Opening(
        committee=CommitteeId("c"),
        client=PeerId(client),
        number=1,
        object=ObjectId(1),
        recipient=PeerId("me"),
        plan="",
        dtype="f4",
        shape=(2,),
    )
    behind = (RowsBehind(node=PeerId("me"), dataset="d"),)
    return DeliverShare(transfer=TransferId("t"), opening=opening, behind=behind, words=b"", digest=b"")


@pytest.mark.parametrize("limits", [{"MAX_RESULTS": 24}, {"MAX_BYTES": 24 * 136}])
async def test_one_client_takes_an_eighth_and_all_together_no_more_than_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    for name, most in limits.items():
        monkeypatch.setattr(results, name, most)
    kept, value = Results(tmp_path, me=PeerId("me"), clock=FakeClock()), to_frame(torch.ones(2))
    for number in range(8):
        for _ in range(3):
            await kept.keep(opened(f"client {number}"), value, "somebody")
        with pytest.raises(QuotaExceeded, match="of this client" if number < 7 else "no more fit"):
            await kept.keep(opened(f"client {number}"), value, "somebody")
    with pytest.raises(QuotaExceeded, match="24 results for its owner"):
        await kept.keep(opened("one more"), value, "somebody")
    assert len(listed(tmp_path)) == 24
