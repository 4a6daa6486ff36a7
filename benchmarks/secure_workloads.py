"""What the secure benchmarks compute: names and data as those that the peers are measured with, as functions of torch.

All data is drawn from generators seeded with the workload's name, so that every process has the same, and so have the peers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, max_pool2d

MLP = ((784, 128), (128, 128), (128, 10))
LEARNING_RATE = 0.1
GOALS = {
    "matmul_512": 0.0500,
    "matmul_128x784x128": 0.0070,
    "mul_1e6": 0.0400,
    "mul_1e4": 0.0010,
    "relu_1e6": 0.130,
    "relu_1e4": 0.0030,
    "gt0_1e6": 0.115,
    "softmax_128x10": 0.0080,
    "argmax_128x10": 0.0020,
    "maxpool2_32x6x24x24": 0.0170,
    "sigmoid_1e5": 0.0850,
    "exp_1e5": 0.0500,
    "reciprocal_1e5": 0.0900,
    "sqrt_1e5": 0.0900,
    "mlp_b1": 0.0040,
    "mlp_b128": 0.0200,
    "cnn_b1": 0.0220,
    "cnn_b128": 0.650,
    "logreg_step_b128": 0.0080,
    "mlp_step_b128": 0.0700,
    "cnn_step_b128": None,
}
"""Seconds that each is to take between three parties; None where that is only measured beside the peers."""

NAMES = tuple(GOALS)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """`function` of `inputs`, all of them secret, float32; `expected` are its results in double precision."""

    function: Callable[..., Tensor | list[Tensor]]
    inputs: Sequence[Tensor]
    expected: Sequence[Tensor]

    def error(self, results: Sequence[Tensor]) -> float:
        """The largest distance from the same in the clear."""
        pairs = zip(results, self.expected, strict=True)
        return max(float((one.double() - exact.double()).abs().max()) for one, exact in pairs)


def listed(results: Any) -> list[Any]:
    """One result, or several, as a list."""
    return list(results) if isinstance(results, list | tuple) else [results]


# ---------------------------------------------------------------- functions


def product(a: Tensor, b: Tensor) -> Tensor:
    return a * b


def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def positive(x: Tensor) -> Tensor:
    return x > 0


def softmax(x: Tensor) -> Tensor:
    return x.softmax(1)


def argmax(x: Tensor) -> Tensor:
    return x.argmax(1)


def pooled(x: Tensor) -> Tensor:
    return max_pool2d(x, 2)


def mlp(x: Tensor, *layers: Tensor) -> Tensor:
    """Products and biases in turn, ReLU between them."""
    for at in range(0, len(layers), 2):
        x = x @ layers[at] + layers[at + 1]
        if at < len(layers) - 2:
            x = x.relu()
    return x


def cnn(x: Tensor, *layers: Tensor) -> Tensor:
    """Two convolutions, pooled, and two dense layers."""
    for at in (0, 2):
        x = pooled(conv2d(x, layers[at], layers[at + 1])).relu()
    return mlp(x.flatten(1), *layers[4:])


def logistic_step(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """The weights of a logistic regression after one step of gradient descent."""
    step: Tensor = w - x.T @ ((x @ w).sigmoid() - y) * (LEARNING_RATE / len(x))
    return step


def mlp_step(x: Tensor, y: Tensor, *layers: Tensor) -> list[Tensor]:
    """The layers after one step of gradient descent on the cross-entropy with classes in one-hot rows."""
    return _step(mlp, x, y, layers)


def cnn_step(x: Tensor, y: Tensor, *layers: Tensor) -> list[Tensor]:
    """The same of the network with convolutions."""
    return _step(cnn, x, y, layers)


def _step(network: Callable[..., Tensor], x: Tensor, y: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
    learning = [layer.detach().requires_grad_() for layer in layers]
    gradients = torch.autograd.grad(cross_entropy(network(x, *learning), y), learning)
    return [layer.detach() - LEARNING_RATE * gradient for layer, gradient in zip(learning, gradients, strict=True)]


# ---------------------------------------------------------------- data


def _generator(tag: str) -> np.random.Generator:
    return np.random.default_rng([0, sum(map(ord, tag))])


def _layers(tag: str, shapes: Sequence[tuple[tuple[int, ...], int, int]]) -> list[Any]:
    """Weights and biases; `shapes` gives the weight's shape, its fan-in and its outputs."""
    random = _generator(tag)
    layers: list[Any] = []
    for shape, fan, outputs in shapes:
        layers += [random.normal(size=shape) * (1.5 / fan) ** 0.5, random.normal(size=outputs) * 0.05]
    return layers


def _mlp_layers() -> list[Any]:
    return _layers("mlp", [(shape, *shape) for shape in MLP])


def _cnn_layers() -> list[Any]:
    """All weights of a layer are drawn before its bias."""
    dense = [((800, 500), 800, 500), ((500, 10), 500, 10)]
    return _layers("cnn", [((20, 1, 5, 5), 25, 20), ((50, 20, 5, 5), 500, 50), *dense])


def _drawn(name: str, random: np.random.Generator) -> tuple[Callable[..., Any], list[Any]]:
    kind, _, size = name.partition("_")
    match kind:
        case "matmul":
            m, k, n = (int(one) for one in size.split("x")) if "x" in size else (int(size),) * 3
            return matrix_product, [random.normal(size=(m, k)), random.normal(size=(k, n))]
        case "mul":
            count = int(float(size))
            return product, [random.normal(size=count), random.normal(size=count)]
        case "relu" | "gt0":
            return (torch.relu if kind == "relu" else positive), [4 * random.normal(size=int(float(size)))]
        case "softmax" | "argmax":
            return (softmax if kind == "softmax" else argmax), [3 * random.normal(size=(128, 10))]
        case "maxpool2":
            return pooled, [random.normal(size=(32, 6, 24, 24))]
        case "sigmoid":
            return torch.sigmoid, [3 * random.normal(size=100_000)]
        case "exp" | "reciprocal" | "sqrt":
            function = {"exp": torch.exp, "reciprocal": torch.reciprocal, "sqrt": torch.sqrt}[kind]
            low, high = {"exp": (-4, 2), "reciprocal": (0.5, 10), "sqrt": (0.1, 100)}[kind]
            return function, [random.uniform(low, high, size=100_000)]
        case "mlp" if size == "step_b128":
            x = random.uniform(0, 1, size=(128, 784))
            return mlp_step, [x, np.eye(10)[random.integers(0, 10, 128)], *_mlp_layers()]
        case "cnn" if size == "step_b128":
            x = random.uniform(0, 1, size=(128, 1, 28, 28))
            return cnn_step, [x, np.eye(10)[random.integers(0, 10, 128)], *_cnn_layers()]
        case "mlp":
            return mlp, [random.uniform(0, 1, size=(int(size[1:]), 784)), *_mlp_layers()]
        case "cnn":
            return cnn, [random.uniform(0, 1, size=(int(size[1:]), 1, 28, 28)), *_cnn_layers()]
        case "logreg":
            x = random.uniform(0, 1, size=(128, 784))
            y = (random.uniform(size=(128, 1)) > 0.5).astype(float)
            return logistic_step, [x, y, random.normal(size=(784, 1)) * 0.05]
    raise KeyError(name)


def workload(name: str) -> Workload:
    """One of `NAMES`."""
    function, drawn = _drawn(name, _generator(name))
    exact = [torch.from_numpy(np.asarray(value)) for value in drawn]
    return Workload(function, [value.float() for value in exact], listed(function(*exact)))
