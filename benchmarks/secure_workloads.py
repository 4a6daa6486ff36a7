"""What the secure benchmarks compute: names and data as those that the peers are measured with, and the same in the clear.

All data is drawn from generators seeded with the workload's name, so that every process has the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from grid.smpc.link import Words
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.shares import Shared
from grid.smpc.steps import Work

Reals = npt.NDArray[np.float64]

MLP = ((784, 128), (128, 128), (128, 10))


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """`compute` gets the sharings of `inputs`, in order. Its result stands for integers times 2**-fraction."""

    inputs: Sequence[Reals]
    expected: Reals
    compute: Callable[[Protocol, Sequence[Shared]], Work[Shared]]
    fraction: int = FRACTION_BITS

    def error(self, result: Words) -> float:
        """The largest distance from the same in the clear."""
        values = result.view(np.int64).astype(np.float64) / 2.0**self.fraction
        return float(np.abs(values.reshape(self.expected.shape) - self.expected).max())


def encoded(value: Reals) -> Words:
    """Fixed point."""
    return np.rint(value * 2.0**FRACTION_BITS).astype(np.int64).view(np.uint64)


def shares(workload: Workload, rank: int) -> list[Shared]:
    """This party's components of the inputs, by a generator that all parties seed alike: fine for a benchmark alone."""
    random = np.random.default_rng(1)
    mine = []
    for value in workload.inputs:
        first, second = (random.integers(0, 1 << 64, value.shape, np.uint64) for _ in range(2))
        components = (first, second, encoded(value) - first - second)
        mine.append(Shared(components[rank], components[(rank + 1) % 3]))
    return mine


# ---------------------------------------------------------------- on shares


async def relu(protocol: Protocol, x: Shared) -> Shared:
    return await protocol.choose(protocol.invert(await protocol.negative(x)), x)


async def larger(protocol: Protocol, a: Shared, b: Shared) -> Shared:
    return await relu(protocol, a - b) + b


async def pooled(protocol: Protocol, x: Shared) -> Shared:
    """The largest of each 2 x 2 field."""
    rows = await larger(protocol, x[:, :, 0::2], x[:, :, 1::2])
    return await larger(protocol, rows[..., 0::2], rows[..., 1::2])


async def _matmul(protocol: Protocol, given: Sequence[Shared]) -> Shared:
    return await protocol.matmul(given[0], given[1], FRACTION_BITS)


async def _mul(protocol: Protocol, given: Sequence[Shared]) -> Shared:
    return await protocol.multiply(given[0], given[1], FRACTION_BITS)


async def _relu(protocol: Protocol, given: Sequence[Shared]) -> Shared:
    return await relu(protocol, given[0])


async def _positive(protocol: Protocol, given: Sequence[Shared]) -> Shared:
    (x,) = given
    return await protocol.number(await protocol.negative(-x), x.shape)


async def _pool(protocol: Protocol, given: Sequence[Shared]) -> Shared:
    return await pooled(protocol, given[0])


async def _dense(protocol: Protocol, x: Shared, layers: Sequence[Shared]) -> Shared:
    for at in range(0, len(layers), 2):
        h = await protocol.matmul(x, layers[at], FRACTION_BITS) + layers[at + 1]
        x = h if at == len(layers) - 2 else await relu(protocol, h)
    return x


async def _mlp(protocol: Protocol, given: Sequence[Shared]) -> Shared:
    return await _dense(protocol, given[0], given[1:])


async def _cnn(protocol: Protocol, given: Sequence[Shared]) -> Shared:
    x, *layers = given
    for at in (0, 2):
        h = await protocol.conv2d(x, layers[at], stride=(1, 1), padding=(0, 0), truncate=FRACTION_BITS)
        bias = layers[at + 1].reshape((1, -1, 1, 1))
        x = await relu(protocol, await pooled(protocol, h + bias))
    return await _dense(protocol, x.reshape((x.shape[0], -1)), layers[4:])


# ---------------------------------------------------------------- in the clear


def _pool_clear(x: Reals) -> Reals:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))


def _conv_clear(x: Reals, w: Reals, b: Reals) -> Reals:
    outputs, _, k, _ = w.shape
    fields = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))
    n, c, oh, ow = fields.shape[:4]
    columns = fields.transpose(0, 2, 3, 1, 4, 5).reshape(n * oh * ow, c * k * k)
    return (columns @ w.reshape(outputs, -1).T + b).reshape(n, oh, ow, outputs).transpose(0, 3, 1, 2)


def _dense_clear(x: Reals, layers: Sequence[Reals]) -> Reals:
    for at in range(0, len(layers), 2):
        x = x @ layers[at] + layers[at + 1]
        x = x if at == len(layers) - 2 else np.maximum(x, 0)
    return x


def _cnn_clear(x: Reals, layers: Sequence[Reals]) -> Reals:
    for at in (0, 2):
        x = np.maximum(_pool_clear(_conv_clear(x, layers[at], layers[at + 1])), 0)
    return _dense_clear(x.reshape(len(x), -1), layers[4:])


# ---------------------------------------------------------------- by name


def _generator(tag: str) -> np.random.Generator:
    return np.random.default_rng([0, sum(map(ord, tag))])


def _mlp_layers() -> list[Reals]:
    random = _generator("mlp")
    layers: list[Reals] = []
    for shape in MLP:
        layers += [random.normal(size=shape) * (1.5 / shape[0]) ** 0.5, random.normal(size=shape[1]) * 0.05]
    return layers


def _cnn_layers() -> list[Reals]:
    random = _generator("cnn")
    layers: list[Reals] = []
    shapes: list[tuple[tuple[int, ...], int, int]] = [
        ((20, 1, 5, 5), 25, 20),
        ((50, 20, 5, 5), 500, 50),
        ((800, 500), 800, 500),
        ((500, 10), 500, 10),
    ]
    for shape, fan, outputs in shapes:
        layers += [random.normal(size=shape) * (1.5 / fan) ** 0.5, random.normal(size=outputs) * 0.05]
    return layers


def _elementwise(compute: Any, clear: Callable[..., Reals], count: int, scale: float, inputs: int, fraction: int) -> Any:
    def build(random: np.random.Generator) -> Workload:
        given = [scale * random.normal(size=count) for _ in range(inputs)]
        return Workload(given, clear(*given), compute, fraction)

    return build


def _product(m: int, k: int, n: int) -> Any:
    def build(random: np.random.Generator) -> Workload:
        a, b = random.normal(size=(m, k)), random.normal(size=(k, n))
        return Workload([a, b], a @ b, _matmul)

    return build


def _pooling(random: np.random.Generator) -> Workload:
    x = random.normal(size=(32, 6, 24, 24))
    return Workload([x], _pool_clear(x), _pool)


def _network(batch: int, shape: tuple[int, ...], layers: Callable[[], list[Reals]], compute: Any, clear: Any) -> Any:
    def build(random: np.random.Generator) -> Workload:
        x = random.uniform(0, 1, size=(batch, *shape))
        weights = layers()
        return Workload([x, *weights], clear(x, weights), compute)

    return build


_BUILDERS: dict[str, Callable[[np.random.Generator], Workload]] = {
    "matmul_512": _product(512, 512, 512),
    "matmul_128x784x128": _product(128, 784, 128),
    **{f"mul_1e{n}": _elementwise(_mul, np.multiply, 10**n, 1.0, 2, FRACTION_BITS) for n in (6, 4)},
    **{f"relu_1e{n}": _elementwise(_relu, lambda a: np.maximum(a, 0), 10**n, 4.0, 1, FRACTION_BITS) for n in (6, 4)},
    "gt0_1e6": _elementwise(_positive, lambda a: (a > 0).astype(np.float64), 10**6, 4.0, 1, 0),
    "maxpool2_32x6x24x24": _pooling,
    **{f"mlp_b{n}": _network(n, (784,), _mlp_layers, _mlp, _dense_clear) for n in (1, 128)},
    **{f"cnn_b{n}": _network(n, (1, 28, 28), _cnn_layers, _cnn, _cnn_clear) for n in (1, 128)},
}

NAMES = tuple(_BUILDERS)


def workload(name: str) -> Workload:
    return _BUILDERS[name](_generator(name))
