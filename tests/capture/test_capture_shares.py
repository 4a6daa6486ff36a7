"""What an eavesdropper on every connection sees of a committee's work, and what each of its nodes gets: nothing of the values.

The same recorder and search as for sums. Rows, weights and results are looked for as numbers and in fixed point. Without the
cipher of the channels they are not to be found either, since only shares travel; but those are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_capture import Recording, as_bytes, occurring, pieces

import grid
from grid.crypto import noise
from grid.node import share_lane
from grid.tensors import fixed
from grid.testing import LocalGrid
from grid.transport.base import Buffer

NAMES = ("alice", "bob", "carol")
FRACTION_BITS = 18
SIZE = 1000.0
"""Of the numbers: large enough for their fixed-point words to be more than zeros."""


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Any]]:
    """Filled while a committee works: the components of inputs that each party gets, by rank."""
    found: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    components = share_lane._components

    def seen(rank: int, *rest: Any) -> Any:
        value = components(rank, *rest)
        found[rank].append(value.shared.parts)
        return value

    monkeypatch.setattr(share_lane, "_components", seen)
    return found


def both_forms(value: torch.Tensor) -> set[bytes]:
    """The pieces of a tensor, as it is and in fixed point."""
    return pieces(as_bytes(value)) | pieces(as_bytes(fixed.encode(value, FRACTION_BITS, 1)))


def score_recorded(secrets: dict[str, set[bytes]]) -> bytes:
    """A model of the client's on rows of two nodes, one of them no party, opened to the client and to a node; the recording."""
    frames: list[bytes] = []
    torch.manual_seed(5)
    rows, more, w = SIZE * torch.randn(64, 8), SIZE * torch.randn(64, 8), SIZE * torch.randn(8, 3)
    plan = grid.trace(lambda x, y, w: ((x + y) @ w).relu(), rows, more, w)
    policy = {"release": "aggregate", "allow": [plan.id], "share": list(NAMES)}
    owned = {name: {"features": one, "policy": policy, "tags": [f"#{name}"]} for name, one in (("alice", rows), ("dave", more))}
    nodes: dict[str, dict[str, Any]] = {name: {} for name in NAMES} | {name: {"d": one} for name, one in owned.items()}
    with LocalGrid(nodes=nodes, wrap=lambda transport: Recording(transport, frames)) as local:
        client = local.client()
        found = {name: client.search(f"#{name}")[0] for name in owned}
        with client.committee(*NAMES) as trio:
            x, y = (found[name].features.share(trio) for name in owned)
            m = trio.share(w)
            result = trio.run(plan, x, y, m).reveal()
            assert torch.allclose(result, ((rows + more) @ w).relu(), rtol=1e-4, atol=1.0)
            (x @ m).reveal(to="alice")
    secrets["rows"] = both_forms(rows) | both_forms(more)
    secrets["weights"] = both_forms(w)
    secrets["results"] = both_forms(result) | both_forms(rows @ w)
    return b"".join(frames)


def components_of(held: dict[int, list[Any]]) -> set[bytes]:
    return set().union(*(pieces(part.tobytes()) for parts in held.values() for pair in parts for part in pair))


def search(secrets: dict[str, set[bytes]], recording: bytes) -> dict[str, int]:
    assert len(recording) > 20_000 and all(len(found) > 100 for found in secrets.values())
    return {kind: len(occurring(found, recording)) for kind, found in secrets.items()}


def test_nothing_of_a_committees_work_is_on_the_wire(held: dict[int, list[Any]]) -> None:
    secrets: dict[str, set[bytes]] = {}
    recording = score_recorded(secrets)
    secrets["shares"] = components_of(held)
    assert search(secrets, recording) == dict.fromkeys(("rows", "weights", "results", "shares"), 0)


def test_without_a_cipher_there_are_shares_and_still_no_values(
    held: dict[int, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def seal(self: noise.CipherState, plain: Buffer, associated: bytes | None = None) -> bytes:
        return bytes(plain) + bytes(noise.TAG_BYTES)

    def open_(self: noise.CipherState, sealed: Buffer, associated: bytes | None = None) -> bytearray:
        return bytearray(sealed)[: -noise.TAG_BYTES]

    monkeypatch.setattr(noise.CipherState, "seal", seal)
    monkeypatch.setattr(noise.CipherState, "open", open_)
    secrets: dict[str, set[bytes]] = {}
    recording = score_recorded(secrets)
    secrets["shares"] = components_of(held)
    found = search(secrets, recording)
    assert found.pop("shares") > 100 and found == dict.fromkeys(("rows", "weights", "results"), 0)


def chi_squared(words: Any) -> float:
    """How far bytes are from uniform, in standard deviations of the statistic."""
    counts = np.bincount(np.ascontiguousarray(words).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float((((counts - expected) ** 2 / expected).sum() - 255) / np.sqrt(2 * 255))


def test_what_one_node_gets_is_uniform(held: dict[int, list[Any]]) -> None:
    score_recorded({})
    flat = {rank: [np.concatenate([pair[at].reshape(-1) for pair in parts]) for at in (0, 1)] for rank, parts in held.items()}
    assert all(first.size > 1000 for first, _ in flat.values())
    for first, second in flat.values():
        for words in (first, second, first + second, first - second, first ^ second):
            assert abs(chi_squared(words)) < 6
    assert chi_squared(flat[0][0] + flat[0][1] + flat[1][1]) > 100  # of two nodes together: the values
