"""A secret from shares of which some are wrong.

Shares of one secret are a Reed-Solomon code word: any `threshold` right ones say what all others must be. Whether a secret is
the right one can be told here (by what its owner signed), so where there are few ways to choose `threshold` shares all are
tried, which succeeds if that many are right. Where there are more, a decoder (Gao, 2003) corrects as many wrong shares as half
of those beyond the threshold. Either way the work is bounded: some tens of milliseconds for 100 shares.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from grid.federated.secagg.shamir import PRIME, combine, element, inverses, to_bytes

TRIES = 1024
"""Ways to choose shares that are tried at most: with up to 14 nodes, all of whom share with each other, it takes no more."""

Polynomial = list[int]
"""Coefficients in the field, the constant first; the last is not zero."""


def recover(shares: Mapping[int, bytes], threshold: int, fits: Callable[[bytes], bool]) -> tuple[bytes, frozenset[int]] | None:
    """The secret that `fits`, and the points whose share is not one of it; None where it is not to be had.

    If the first `threshold` shares give it the others are not looked at. `shares` are by point, `threshold` or more.
    """
    first = dict(itertools.islice(shares.items(), threshold))
    secret = combine(first)
    if fits(secret):
        return secret, frozenset()
    right = _by_trying(shares, threshold, fits) if math.comb(len(shares), threshold) <= TRIES else _by_decoding(shares, threshold)
    if right is None:
        return None
    secret = combine(right)
    return (secret, frozenset(point for point in shares if differs(right, point, shares[point]))) if fits(secret) else None


def differs(right: Mapping[int, bytes], point: int, share: bytes) -> bool:
    """Whether a share is another one than follows from `threshold` right ones."""
    return combine(right, at=point) != share


def _by_trying(shares: Mapping[int, bytes], threshold: int, fits: Callable[[bytes], bool]) -> dict[int, bytes] | None:
    for points in itertools.combinations(shares, threshold):
        some = {point: shares[point] for point in points}
        if fits(combine(some)):
            return some
    return None


def _by_decoding(shares: Mapping[int, bytes], threshold: int) -> dict[int, bytes] | None:
    """`threshold` right shares, if no more than half of those beyond it are wrong."""
    values = {point: element(share) for point, share in shares.items()}
    everywhere, through = _interpolated(values)
    before, now = everywhere, through
    factor_before, factor = Polynomial(), [1]
    while 2 * (len(now) - 1) >= len(values) + threshold:
        quotient, rest = _divided(before, now)
        before, now = now, rest
        factor_before, factor = factor, _less(factor_before, _times(quotient, factor))
    found, rest = _divided(now, factor)
    if rest or len(found) > threshold:
        return None
    return {point: to_bytes(_value(found, point)) for point in itertools.islice(shares, threshold)}


# ---------------------------------------------------------------- polynomials


def _interpolated(values: Mapping[int, int]) -> tuple[Polynomial, Polynomial]:
    """The one that is zero at all points, and the one that has these values there."""
    everywhere = [1]
    for point in values:
        everywhere = _times(everywhere, [-point % PRIME, 1])
    below = inverses([math.prod(point - other for other in values if other != point) for point in values])
    total = [0] * len(values)
    for (point, value), inverse in zip(values.items(), below, strict=True):
        scale, high = value * inverse % PRIME, 0
        for place in range(len(values) - 1, -1, -1):  # `everywhere` without this point, from its highest coefficient on
            high = (everywhere[place + 1] + high * point) % PRIME
            total[place] += scale * high
    return everywhere, _trimmed([coefficient % PRIME for coefficient in total])


def _times(one: Polynomial, other: Polynomial) -> Polynomial:
    product = [0] * max(len(one) + len(other) - 1, 0)
    for place, coefficient in enumerate(one):
        for beyond, factor in enumerate(other):
            product[place + beyond] += coefficient * factor
    return _trimmed([coefficient % PRIME for coefficient in product])


def _less(one: Polynomial, other: Polynomial) -> Polynomial:
    pairs = itertools.zip_longest(one, other, fillvalue=0)
    return _trimmed([(left - right) % PRIME for left, right in pairs])


def _divided(one: Polynomial, other: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Quotient and rest. `other` is not zero."""
    rest, inverse = list(one), pow(other[-1], -1, PRIME)
    quotient = [0] * max(len(one) - len(other) + 1, 0)
    for place in range(len(quotient) - 1, -1, -1):
        factor = quotient[place] = rest[place + len(other) - 1] * inverse % PRIME
        for beyond, coefficient in enumerate(other):
            rest[place + beyond] = (rest[place + beyond] - factor * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(rest)


def _value(polynomial: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % PRIME
    return value


def _trimmed(coefficients: list[int]) -> Polynomial:
    while coefficients and not coefficients[-1]:
        coefficients.pop()
    return coefficients
