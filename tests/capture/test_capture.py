"""What an eavesdropper on every connection sees of the demo's training: no row, no gradient, no share, nor a piece of one.

Every frame that any party sends is recorded where it leaves the party, below the sealed channels: on the hops from client
and nodes to the gateway, and from the gateway to them. The secrets are collected inside the nodes. The same search finds all of
them once the cipher is replaced by one that does nothing, so it would notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch

from grid.crypto import noise
from grid.demo import node_total
from grid.demo_data import Split, split
from grid.demo_learning import fresh_model, gradient, train
from grid.smpc import ring
from grid.tensors import fixed
from grid.testing import LocalGrid
from grid.transport.base import Buffer, Transport

PIECE = 16
DISTINCT = 8
STEPS = 4


class Recording(Transport):
    """Passes everything on, and keeps a copy of each frame that is sent."""

    def __init__(self, inner: Transport, frames: list[bytes]) -> None:
        self._inner = inner
        self._frames = frames

    async def send(self, *parts: Buffer) -> None:
        self._frames.append(b"".join(parts))
        await self._inner.send(*parts)

    async def receive(self) -> Buffer:
        return await self._inner.receive()

    async def close(self, reason: str = "") -> None:
        await self._inner.close(reason)


def pieces(secret: bytes) -> set[bytes]:
    """Every 16 bytes in a row of a secret that have at least 8 distinct values."""
    if len(secret) < PIECE:
        return set()
    windows = numpy.lib.stride_tricks.sliding_window_view(numpy.frombuffer(secret, numpy.uint8), PIECE)
    in_order = numpy.sort(windows, axis=1)
    distinct = 1 + (in_order[:, 1:] != in_order[:, :-1]).sum(1)
    return {window.tobytes() for window in windows[distinct >= DISTINCT]}


def occurring(secrets: set[bytes], recording: bytes) -> set[bytes]:
    """The pieces that occur in the recording, at any offset."""
    windows = (recording[at : at + PIECE] for at in range(len(recording) - PIECE + 1))
    return {window for window in windows if window in secrets}


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


@pytest.fixture
def secrets_of_nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[bytes]]:
    """Filled while sums run: what the nodes put into them, and the shares that they make."""
    found: dict[str, set[bytes]] = {"rows": set(), "gradients": set(), "shares": set()}
    encode, split_value = fixed.encode, ring.split

    def seen_encode(value: torch.Tensor, *rest: Any) -> torch.Tensor:
        encoded = encode(value, *rest)
        found["gradients"] |= pieces(as_bytes(value)) | pieces(as_bytes(encoded))
        return encoded

    def seen_split(value: ring.Elements, *rest: Any) -> list[ring.Elements]:
        shares = split_value(value, *rest)
        for share in shares:
            found["shares"] |= pieces(share.tobytes())
        return shares

    monkeypatch.setattr(fixed, "encode", seen_encode)
    monkeypatch.setattr(ring, "split", seen_split)
    return found


def train_recorded(data: Split, secrets: dict[str, set[bytes]]) -> bytes:
    """The demo's training; then one owner's public rows and one gradient by itself, which their owners let out. The recording."""
    frames: list[bytes] = []
    nodes: dict[str, dict[str, Any]] = {
        owner: {"train": {"features": rows.features, "targets": rows.targets, "tags": ["#train"]}}
        for owner, rows in data.train.items()
    }
    nodes["alice"]["public"] = {"features": data.test["alice"].features, "policy": {"release": "open"}, "tags": ["#public"]}
    for rows in (*data.train.values(), data.test["alice"]):
        secrets["rows"] |= pieces(as_bytes(rows.features))
    with LocalGrid(nodes=nodes, wrap=lambda transport: Recording(transport, frames)) as local:
        client = local.client()
        datasets = client.search("#train")
        total = node_total(datasets)
        rows_in_all = sum(one.rows for one in datasets)
        *_, last = train(total, fresh_model(total), rows_in_all, STEPS)
        assert last.loss < 0.5

        (public,) = client.search("#public")
        assert torch.equal(public.features.get(), data.test["alice"].features)
        alone = gradient(datasets[0].features, datasets[0].targets, *last.model.inputs).get()
        secrets["gradients"] |= pieces(as_bytes(alone))
    return b"".join(frames)


def search_all(secrets: dict[str, set[bytes]], recording: bytes) -> dict[str, int]:
    return {kind: len(occurring(pieces_of_kind, recording)) for kind, pieces_of_kind in secrets.items()}


@pytest.fixture(scope="module")
def data() -> Iterator[Split]:
    yield split()


def test_nothing_secret_is_on_the_wire(data: Split, secrets_of_nodes: dict[str, set[bytes]]) -> None:
    recording = train_recorded(data, secrets_of_nodes)
    assert len(recording) > 100_000
    assert all(len(found) > 1000 for found in secrets_of_nodes.values()), {k: len(v) for k, v in secrets_of_nodes.items()}
    assert search_all(secrets_of_nodes, recording) == {"rows": 0, "gradients": 0, "shares": 0}


def test_without_a_cipher_the_same_search_finds_it(
    data: Split, secrets_of_nodes: dict[str, set[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def seal(self: noise.CipherState, plain: Buffer, associated: bytes | None = None) -> bytes:
        return bytes(plain) + bytes(noise.TAG_BYTES)

    def open_(self: noise.CipherState, sealed: Buffer, associated: bytes | None = None) -> bytearray:
        return bytearray(sealed)[: -noise.TAG_BYTES]

    monkeypatch.setattr(noise.CipherState, "seal", seal)
    monkeypatch.setattr(noise.CipherState, "open", open_)
    found = search_all(secrets_of_nodes, train_recorded(data, secrets_of_nodes))
    assert all(count > 100 for count in found.values()), found


def test_the_search_finds_a_piece_at_any_offset() -> None:
    secret = bytes(range(40))
    for offset in range(20):
        recording = bytes(offset) + secret[offset : offset + PIECE] + bytes(5)
        assert secret[offset : offset + PIECE] in occurring(pieces(secret), recording)
    assert pieces(bytes(100)) == set()
    assert occurring(pieces(secret), bytes(1000)) == set()
