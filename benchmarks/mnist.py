"""Inference with an encrypted model on encrypted images: MNIST, a convolutional network, three nodes. Prints one JSON line.

    python -m benchmarks.mnist [--images 1000] [--batch 125]

The network (conv 5x5x20, max-pool, ReLU, conv 5x5x50, max-pool, ReLU, 800-500, ReLU, 500-10) is trained here on all but the
last `images` of the 10,000 test images. Their classes are then computed on shares, with the network on shares too, and in
the clear. The line has both accuracies, the images whose class differs, the largest distance of a score, and the seconds of
all batches.
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import commit, machine, skipped
from benchmarks.running import NODES, running_grid

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
EPOCHS, BATCH, RATE = 4, 100, 1e-3


def read_idx(path: Path) -> Tensor:
    """A file of the format IDX, of bytes."""
    data = gzip.decompress(path.read_bytes())
    kind, dimensions = struct.unpack_from(">HBB", data)[1:]
    assert kind == 8
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    return torch.frombuffer(bytearray(data[4 + 4 * dimensions :]), dtype=torch.uint8).reshape(shape)


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Plain training, here."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for at in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[at]), labels[at]).backward()
            optimizer.step()


def accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).double().mean())


def measure(count: int, batch: int) -> dict[str, Any]:
    """The line."""
    torch.manual_seed(0)
    images = read_idx(DATA / IMAGES)[:, None].float() / 255
    labels = read_idx(DATA / LABELS).long()
    model = network()
    train(model, images[:-count], labels[:-count])
    model.eval()
    with torch.no_grad():
        clear = model(images[-count:])
    with running_grid() as running, running.direct.committee(*NODES) as trio:
        secret = trio.share(model)
        parts = [trio.share(part) for part in images[-count:].split(batch)]
        trio.run(secret, parts[0]).reveal()
        started = time.perf_counter()
        scores = torch.cat([one.reveal() for one in [trio.run(secret, part) for part in parts]])
        seconds = time.perf_counter() - started
    return {
        "workload": f"mnist_cnn_{count}",
        "accuracy_clear": accuracy(clear, labels[-count:]),
        "accuracy_secure": accuracy(scores, labels[-count:]),
        "classes_that_differ": int((scores.argmax(1) != clear.argmax(1)).sum()),
        "max_abs_error": float((scores - clear).abs().max()),
        "seconds": round(seconds, 3),
        "machine": machine(),
        "commit": commit(),
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mnist", description="Encrypted inference on MNIST.")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=125)
    chosen = parser.parse_args(arguments)
    if not (DATA / IMAGES).exists():
        skipped(f"mnist_cnn_{chosen.images}", f"no {IMAGES} in ../shared/data")
        return
    print(json.dumps(measure(chosen.images, chosen.batch)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
