"""Two owners train one model on the handwritten digits of both, on secret shares. Only the trained model opens.

Explained in docs/tutorial/11-mnist.md. It needs MNIST's ten thousand test images in ../shared/data.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from started import DATA, main, refusals, started
from torch.nn.functional import cross_entropy

import grid

TRIO = ("alice", "bob", "carol")
IMAGES, LABELS = DATA / "t10k-images-idx3-ubyte.gz", DATA / "t10k-labels-idx1-ubyte.gz"
HIDDEN, BATCH, RATE, MOMENTUM, TEST = 32, 256, 0.1, 0.5, 2000

RNG = torch.Generator().manual_seed(0)
FIRST, SECOND = torch.randn(784, HIDDEN, generator=RNG) / 28, torch.randn(HIDDEN, 10, generator=RNG) / 6
FRESH = [FIRST, torch.zeros(HIDDEN), SECOND, torch.zeros(10)]
"""The weights that training begins with, the same for whoever makes them."""


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images `(10000, 784)`, from about -0.3 to 1.7 and 0 on average, and what they show `(10000,)`."""
    pixels = numpy.frombuffer(gzip.decompress(IMAGES.read_bytes()), numpy.uint8, offset=16)
    shown = numpy.frombuffer(gzip.decompress(LABELS.read_bytes()), numpy.uint8, offset=8)
    return (torch.tensor(pixels.reshape(-1, 784)) / 255 - 0.13) / 0.5, torch.tensor(shown.astype("int64"))


def logits(x: torch.Tensor, model: Sequence[torch.Tensor]) -> torch.Tensor:
    """A perceptron with one hidden layer: images `(n, 784)` -> `(n, 10)`."""
    return (x @ model[0] + model[1]).relu() @ model[2] + model[3]


def train(owned: list[torch.Tensor]) -> list[torch.Tensor]:
    """Images and labels of one owner, and of the other -> the model after one pass of gradient descent with momentum. Half
    of each batch is either owner's."""
    x, labels, other_x, other_labels = owned
    model = [weight.detach().requires_grad_() for weight in FRESH]
    speeds = [torch.zeros_like(weight) for weight in model]
    for start in range(0, len(x), BATCH // 2):
        part = slice(start, start + BATCH // 2)
        batch, shown = torch.cat([x[part], other_x[part]]), torch.cat([labels[part], other_labels[part]])
        loss = cross_entropy(logits(batch, model), shown, reduction="sum")  # divided last, so that gradients are not tiny
        gradients = torch.autograd.grad(loss, model)
        speeds = [MOMENTUM * speed + gradient for speed, gradient in zip(speeds, gradients, strict=True)]
        model = [weight - RATE / BATCH * speed for weight, speed in zip(model, speeds, strict=True)]
    return model


def gradient(owned: list[torch.Tensor]) -> torch.Tensor:
    """The first layer's gradient at a single image, which shows the image."""
    model = [weight.detach().requires_grad_() for weight in FRESH]
    return torch.autograd.grad(cross_entropy(logits(owned[0][:1], model), owned[1][:1]), model[0])[0]


def run(*, steps: int = 30, in_processes: bool = False) -> dict[str, Any]:
    """How good is the model, beside the same training in the clear?"""
    if not IMAGES.exists():
        print(f"there is no {IMAGES.name} in {DATA}: nothing to train on")
        return {}
    x, labels = digits()
    rows = [slice(start, start + steps * BATCH // 2) for start in (0, 4000)]
    owned = [part[one] for one in rows for part in (x, labels)]
    plan, curious = grid.trace(train, owned), grid.trace(gradient, owned)
    call = f"{plan.id}(alice/digits, alice/digits/targets, bob/digits, bob/digits/targets)"
    size = sum(weight.numel() for weight in FRESH)
    policy = {"release": "deny", "share": list(TRIO), "allow": [call], "max_elements": size}
    alice, bob = ({"features": owned[at], "targets": owned[at + 1], "policy": policy} for at in (0, 2))
    nodes = {"alice": {"digits": alice}, "bob": {"digits": bob}, "carol": {}}
    with started(nodes, in_processes=in_processes) as here:
        client = here.client()
        found = sorted(client.search("#digits"), key=lambda one: one.node.name)
        with client.committee(*TRIO, timeout=600) as trio:
            shared = [part.share(trio) for one in found for part in (one.features, one.targets)]
            cost = trio.cost(plan, shared)
            print(f"{len(plan.steps)} operations, {cost.rounds} rounds, {cost.bytes_sent / 1e6:.0f} MB from each node")
            trained = trio.run(plan, shared)
            models = {"shares": [weight.reveal() for weight in trained], "clear": train(owned)}
            shown = {name: logits(x[-TEST:], model).argmax(1) for name, model in models.items()}
            right = {name: float((one == labels[-TEST:]).float().mean()) for name, one in shown.items()}
            print(f"of {TEST} test images right: {right['shares']:.1%}; trained in the clear: {right['clear']:.1%}")
            refused = refusals({
                "a gradient that shows an image": lambda: trio.run(curious, shared).reveal(),
                "something else of the model": lambda: (trained[3] - trained[3].mean()).reveal(),
                "alice's images, to bob": lambda: shared[0].reveal(to="bob"),
                "images at their node": lambda: found[0].features.get(),
            })
    return {**right, "refused": refused}


if __name__ == "__main__":
    main(run)
