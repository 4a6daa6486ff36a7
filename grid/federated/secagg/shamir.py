"""Shamir's sharing of 32-byte secrets over the field of 2**255 - 19 elements (CACM 1979).

A secret and a share are field elements, 32 bytes, little-endian. Any `threshold` shares give the secret, fewer say nothing
about it. A secret is drawn below the prime, so it serves as a seed and as an X25519 private key alike.
"""

from __future__ import annotations

import functools
import itertools
import math
import secrets
from collections.abc import Mapping, Sequence

from grid.errors import WireError

PRIME = 2**255 - 19
SHARE_BYTES = 32


def random_secret() -> bytes:
    """A fresh secret, uniform in the field."""
    return to_bytes(secrets.randbelow(PRIME))


def split(secret: bytes, points: Sequence[int], threshold: int) -> dict[int, bytes]:
    """A share for each point (distinct, 1 or more); any `threshold` of them give the secret. ValueError for what can't be."""
    if not 1 <= threshold <= len(points):
        raise ValueError(f"{len(points)} shares can't have a threshold of {threshold}")
    if len(set(points)) != len(points) or not all(1 <= point < PRIME for point in points):
        raise ValueError("the points of shares are distinct and at least 1")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    constant = element(secret)
    shares = {}
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * point % PRIME
        shares[point] = to_bytes((value + constant) % PRIME)
    return shares


def combine(shares: Mapping[int, bytes], at: int = 0) -> bytes:
    """The secret behind shares by point, if there are as many as its threshold; with fewer, or with a wrong one, another value.

    The caller checks what comes out against something public. With `at` it is the share for that point. `WireError` for bytes
    that are no share.
    """
    if at in shares:
        return shares[at]
    points = tuple(sorted(shares))
    total = sum(weight * element(shares[point]) for weight, point in zip(_weights(points, at), points, strict=True))
    return to_bytes(total % PRIME)


def element(share: bytes) -> int:
    """The field element in 32 bytes; `WireError` for anything else."""
    value = int.from_bytes(share, "little")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise WireError("these bytes are no share of a secret")
    return value


def to_bytes(value: int) -> bytes:
    """A field element as it travels."""
    return value.to_bytes(SHARE_BYTES, "little")


@functools.lru_cache(maxsize=64)
def _weights(points: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Lagrange's weights at a place, 0 for the secret: the value there is the sum of weight times share. One set of holders
    shares many secrets.

    The weight of a point is the product of (other - at) / (other - point). Points are small, so products are taken as integers.
    """
    below = [math.prod(other - point for other in points if other != point) for point in points]
    product = math.prod(point - at for point in points)
    return tuple(product // (point - at) * inverse % PRIME for point, inverse in zip(points, inverses(below), strict=True))


def inverses(values: Sequence[int]) -> list[int]:
    """Of all values, none of them zero, at the price of one inversion (Montgomery)."""
    products = list(itertools.accumulate(values, lambda product, value: product * value % PRIME, initial=1))
    inverse = pow(products[-1], -1, PRIME)
    found = []
    for value, product in zip(reversed(values), reversed(products[:-1]), strict=True):
        found.append(inverse * product % PRIME)
        inverse = inverse * value % PRIME
    return found[::-1]
