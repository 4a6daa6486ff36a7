"""What an eavesdropper on every connection, and the gateway, see of a federated job: no row, and nothing of one node alone.

The same recorder and search as for sums. Collected inside the nodes are their rows, each batch's gradients, updates and weights
after training, and updates as they are quantised. Without the channels' cipher the recording is all that the gateway sees: still
nothing is found, for updates leave under masks. With the masks switched off, too, the same search finds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_capture import Recording, as_bytes, occurring, pieces

import grid
from grid.crypto import noise
from grid.federated.secagg import masks
from grid.federated.secagg.quantiser import Quantiser
from grid.federated.trainer import Trained, Trainer
from grid.testing import LocalGrid
from grid.transport.base import Buffer

NAMES = ("alice", "bob", "carol")
ROWS, FEATURES = 40, 12


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[bytes]]:
    """Filled while nodes train."""
    found: dict[str, set[bytes]] = {name: set() for name in ("rows", "gradients", "updates", "weights", "quantised")}
    train, gradients, encode = Trainer.train, Trainer._gradients, Quantiser.encode

    def seen_train(self: Trainer, weights: Any, **options: Any) -> Trained:
        trained = train(self, weights, **options)
        found["updates"] |= pieces(trained.update.tobytes()) | pieces(trained.update.astype(np.float64).tobytes())
        found["weights"] |= pieces((weights + trained.update).tobytes())
        return trained

    def seen_gradients(self: Trainer, *rest: Any) -> Any:
        result = gradients(self, *rest)
        for one in result[0]:
            found["gradients"] |= pieces(as_bytes(one))
        return result

    def seen_encode(self: Quantiser, *rest: Any) -> Any:
        vector = encode(self, *rest)
        found["quantised"] |= pieces(vector[: self.size].tobytes())
        return vector

    monkeypatch.setattr(Trainer, "train", seen_train)
    monkeypatch.setattr(Trainer, "_gradients", seen_gradients)
    monkeypatch.setattr(Quantiser, "encode", seen_encode)
    return found


def without_cipher(monkeypatch: pytest.MonkeyPatch) -> None:
    def seal(self: noise.CipherState, plain: Buffer, associated: bytes | None = None) -> bytes:
        return bytes(plain) + bytes(noise.TAG_BYTES)

    def open_(self: noise.CipherState, sealed: Buffer, associated: bytes | None = None) -> bytearray:
        return bytearray(sealed)[: -noise.TAG_BYTES]

    monkeypatch.setattr(noise.CipherState, "seal", seal)
    monkeypatch.setattr(noise.CipherState, "open", open_)


def train_recorded(secrets: dict[str, set[bytes]], *, secure: bool = True) -> dict[str, int]:
    """A job of four rounds over three nodes: how many pieces of each kind of secret are in the recording."""
    frames: list[bytes] = []
    torch.manual_seed(9)
    nodes: dict[str, dict[str, Any]] = {}
    policy = {"release": "aggregate"} if secure else {"release": "aggregate", "updates": "single"}
    for name in NAMES:
        rows = torch.randn(ROWS, FEATURES)
        secrets["rows"] |= pieces(as_bytes(rows))
        nodes[name] = {"rows": {"features": rows, "targets": (rows.sum(1) > 0).long(), "tags": ["#rows"], "policy": policy}}
    with LocalGrid(nodes=nodes, wrap=lambda transport: Recording(transport, frames)) as local:
        g = local.client()
        model = torch.nn.Sequential(torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        job = g.train(
            model,
            loss=torch.nn.functional.cross_entropy,
            datasets=g.search("#rows"),
            rounds=4,
            local=grid.Local(epochs=3, batch_size=10),
            secure=secure,
        )
        assert [report.nodes for report in job] == [3] * 5
        job.result()
    recording = b"".join(frames)
    assert len(recording) > 20_000
    assert all(len(found) > 100 for name, found in secrets.items() if secure or name != "quantised")
    return {name: len(occurring(found, recording)) for name, found in secrets.items()}


NOTHING = {"rows": 0, "gradients": 0, "updates": 0, "weights": 0, "quantised": 0}


def test_nothing_of_a_node_is_on_the_wire(secrets: dict[str, set[bytes]]) -> None:
    assert train_recorded(secrets) == NOTHING


def test_nothing_of_a_node_is_seen_by_the_gateway(secrets: dict[str, set[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    without_cipher(monkeypatch)
    assert train_recorded(secrets) == NOTHING


def test_with_the_masks_switched_off_the_same_search_finds_updates(
    secrets: dict[str, set[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cipher(monkeypatch)
    monkeypatch.setattr(masks, "apply", lambda *_: None)
    found = train_recorded(secrets)
    assert found.pop("quantised") > 1000
    assert set(found.values()) == {0}, "an update leaves quantised alone"


def test_where_owners_let_updates_leave_alone_the_search_finds_them(
    secrets: dict[str, set[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cipher(monkeypatch)
    found = train_recorded(secrets, secure=False)
    assert found["updates"] > 1000 and found["rows"] == found["gradients"] == 0
