"""Real updates as ring elements, such that sums over a cohort are exact and never wrap around.

A vector in the ring holds, in this order:

    size            update coordinates times the weight, in levels, rounded to whole ones
    1               the weight (number of examples)
    1               how many coordinates lay beyond the range and were clipped
    5 for each      metric sums, in fixed point, split into digits of base 2**16; and how many of them were no number

The weight comes before the rounding. After it, each node's part of a sum would be a multiple of its weight, which all know: with
weights of 10,000, 400 and 10 and few levels the sum could be taken apart as a number is into its digits.
levels x largest weight x cohort < 2**(bits - 1), so no sum of updates overflows; a node refuses a larger weight, and a larger
cohort. The range adapts: where nothing is known of it (the first round, or after one that did not fit) it is huge and
the ring has 64 bits; then it follows from the last aggregate, and 32 bits are taken where they are fine enough.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from grid.errors import InvalidRequest, ReleaseDenied, WireError
from grid.federated.secagg.graph import MAX_COHORT
from grid.federated.secagg.masks import Vector

FIRST_CLIP = 2.0**16
WIDE_CLIPS = tuple(FIRST_CLIP * 2.0**more for more in (0, 8, 16, 24))
"""Ranges where nothing is known of updates: the first, and others for running variances, say."""

MARGIN = 16.0
"""How far beyond the largest coordinate of a mean the coordinates of one node may lie in the next round."""

FINENESS = 64.0
"""A level is at most this part of the mean update's median coordinate; where 32 bits are too coarse for that, 64 are taken."""

MISFIT = "secagg.range"
"""The rule by which a node refuses a range that does not fit its update."""

REFUSALS = 3
"""How often in a job a node refuses a range that is none of `WIDE_CLIPS`; then it takes only those."""

LEAST_LEVELS = 32.0
"""That a node's median coordinate has, times its weight."""

FINE_STEP = 2.0**-22
"""Levels as close as this are fine for any update."""

MOST_LEVELS = 1 << 60
LEAST_WIDE_LEVELS = 1 << 24
"""A wide range of fewer levels would be coarse for usual updates."""

MAX_SIZE = 1 << 30
MAX_METRICS = 64
MAX_WEIGHT = 1 << 40

DIGITS = 4
DIGIT_BITS = 16
METRIC_SCALE = 2.0**20
MAX_METRIC = 2.0**42
"""A node's sum of one metric, absolutely; a larger one counts as no number. Digits of `MAX_COHORT` nodes fit the smaller ring."""

BLOCK = 1 << 14
SAMPLES = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """What the last aggregate says of the next round's updates: the largest coordinate to expect, and the coarsest level."""

    clip: float
    coarsest: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """A decoded sum. `mean_update`: (size,) float64, the weighted mean; zeros where all weights are 0. `weight`: their sum.

    `clipped`: coordinates of all nodes that lay beyond the range, and count as its end. `metric_sums`: (metrics,) float64, NaN
    for those of which a node's part was no number.
    """

    mean_update: npt.NDArray[np.float64]
    weight: int
    clipped: int
    metric_sums: npt.NDArray[np.float64]

    def next_range(self) -> Range | None:
        """What to pass to `choose` for the next round; None where the range is unknown (again)."""
        magnitudes = np.abs(self.mean_update[:: max(1, self.mean_update.size // SAMPLES)])
        magnitudes = magnitudes[magnitudes > 0]
        if self.clipped or not magnitudes.size:
            return None
        largest = max(float(self.mean_update.max()), -float(self.mean_update.min()))
        return Range(clip=MARGIN * largest, coarsest=float(np.median(magnitudes)) / FINENESS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quantiser:
    """`size` and `metrics` are counts. `clip` is the range for the largest weight, `levels` the number of levels from 0 to it.

    A node of a smaller weight has a range that is as much larger: where the range ends says nothing of whose coordinate it is.
    """

    size: int
    metrics: int
    bits: int
    clip: float
    levels: int
    largest_weight: int
    cohort: int

    @property
    def length(self) -> int:
        """Ring elements in a vector."""
        return self.size + 2 + (DIGITS + 1) * self.metrics

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def step(self) -> float:
        """The distance of two levels. The mean update is exact to half of it times cohort / sum of weights."""
        return self.clip / self.levels

    def encode(self, update: npt.NDArray[Any], weight: int, metrics: npt.NDArray[Any] | None = None) -> Vector:
        """A node's vector: `update` (size,) float32 or float64, `metrics` (metrics,) sums over its examples.

        `InvalidRequest` for an update with a NaN or an infinity, a weight beyond the largest, and wrong shapes.
        """
        metrics = np.zeros(0) if metrics is None else np.asarray(metrics, np.float64)
        if update.shape != (self.size,) or metrics.shape != (self.metrics,):
            raise InvalidRequest(f"an update of {self.size} numbers with {self.metrics} metrics was expected")
        if not 0 <= weight <= self.largest_weight:
            raise InvalidRequest(f"this node's weight is {weight}, and the round is for weights up to {self.largest_weight}")
        out = np.empty(self.length, self.dtype)
        clipped = 0
        for start in range(0, self.size, BLOCK):
            clipped += self._encode_block(update[start : start + BLOCK], weight, out[start : min(start + BLOCK, self.size)])
        out[self.size] = weight
        out[self.size + 1] = min(clipped, ((1 << self.bits - 1) - 1) // self.cohort)
        out[self.size + 2 :] = self._digits(metrics).astype(self.dtype)
        return out

    @property
    def is_wide(self) -> bool:
        """Whether this is the range of a round in which nothing is known of updates."""
        return self.bits == 64 and self.clip in WIDE_CLIPS and self.levels >= LEAST_WIDE_LEVELS

    def check_fit(self, update: npt.NDArray[Any], weight: int, vector: Vector) -> None:
        """Whether a range that somebody else chose fits this node's own update; `vector` is what `encode` made of it.

        What lies beyond counts as the end of the range, which all know, so the sum less such parts is the others'. And sums of
        few different numbers say more than sums of many: 3 of three parts that are 1, 0 or -1 says that each is 1. So a range
        beyond which a coordinate lies, or whose levels are coarse for this update, is refused with `ReleaseDenied`; one so fine
        that levels never matter is not.
        """
        if not self.size:
            return
        if int(vector[self.size + 1]):
            raise misfit("some of this node's coordinates lie beyond it")
        if self.step <= FINE_STEP:
            return
        sample = np.abs(update[:: max(1, self.size // SAMPLES)])
        sample = sample[sample > 0]
        if sample.size and float(np.median(sample)) * weight < LEAST_LEVELS * self.step:
            raise misfit("its levels are too coarse for this node's update")

    @property
    def _end(self) -> float:
        """The largest number of levels that a coordinate may count, the weight included."""
        end = self.levels * self.largest_weight
        nearest = float(end)
        return nearest if int(nearest) <= end else math.nextafter(nearest, 0.0)

    def _encode_block(self, update: npt.NDArray[Any], weight: int, out: Vector) -> int:
        values = update * np.float64(weight * (self.levels / self.clip))
        largest = float(np.abs(values).max())
        if not math.isfinite(largest):
            raise InvalidRequest("the update holds a NaN or an infinity: training diverged here; lower the learning rate")
        np.rint(values, out=values)
        beyond, end = 0, self._end
        if largest > end:
            beyond = int(np.count_nonzero(np.abs(values) > end))
            np.clip(values, -end, end, out=values)
        out[...] = values.astype(np.int64).view(np.uint64)  # a cast to fewer bits keeps the lower ones, which is the ring
        return beyond

    def _digits(self, metrics: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Signed digits of the metrics in fixed point, the lowest first, and 1 behind them for one that is no number."""
        numbers = np.abs(metrics) <= MAX_METRIC
        fixed = np.rint(np.where(numbers, metrics, 0.0) * METRIC_SCALE).astype(np.int64)
        shifts = DIGIT_BITS * np.arange(DIGITS)
        digits = (np.abs(fixed)[:, None] >> shifts) & ((1 << DIGIT_BITS) - 1)
        return np.column_stack([digits * np.sign(fixed)[:, None], ~numbers]).reshape(-1).astype(np.int64)

    def decode(self, ring_sum: Vector) -> Aggregate:
        """What the sum of vectors of up to `cohort` nodes says."""
        if ring_sum.shape != (self.length,) or ring_sum.dtype != self.dtype:
            raise InvalidRequest(f"a sum of {self.length} ring elements of {self.bits} bits was expected")
        signed = ring_sum.view(f"<i{self.bits // 8}")
        weight, clipped = int(signed[self.size]), int(signed[self.size + 1])
        mean = np.multiply(signed[: self.size], np.float64(self.step / weight if weight else 0.0), dtype=np.float64)
        digits = signed[self.size + 2 :].astype(np.float64).reshape(self.metrics, DIGITS + 1)
        sums = digits[:, :DIGITS] @ (2.0 ** (DIGIT_BITS * np.arange(DIGITS))) / METRIC_SCALE
        return Aggregate(mean, weight, clipped, np.where(digits[:, DIGITS] == 0, sums, np.nan))

    def fields(self) -> list[int | float]:
        """What travels; `from_fields` reads it."""
        return [self.size, self.metrics, self.bits, self.clip, self.levels, self.largest_weight, self.cohort]

    @classmethod
    def from_fields(cls, fields: object) -> Quantiser:
        """`WireError` for anything but the fields of a quantiser that can't overflow."""
        if not isinstance(fields, list) or len(fields) != 7 or type(fields[3]) is not float:
            raise WireError("the terms of a round hold no quantiser")
        size, metrics, bits, clip, levels, largest_weight, cohort = fields
        sizes = ((size, 0, MAX_SIZE), (metrics, 0, MAX_METRICS), (bits, 32, 64))
        scales = ((levels, 1, MOST_LEVELS), (largest_weight, 1, MAX_WEIGHT), (cohort, 1, MAX_COHORT))
        if not all(type(value) is int and least <= value <= most for value, least, most in (*sizes, *scales)):
            raise WireError("a quantiser's numbers are out of bounds")
        if bits not in (32, 64) or not 2.0**-500 < clip < 2.0**500 or levels * largest_weight * cohort >= 1 << bits - 1:
            raise WireError("a quantiser's sums can overflow, or its range is no number")
        return cls(
            size=size,
            metrics=metrics,
            bits=bits,
            clip=clip,
            levels=levels,
            largest_weight=largest_weight,
            cohort=cohort,
        )


def misfit(why: str) -> ReleaseDenied:
    """The error for a range that does not fit."""
    return ReleaseDenied(
        f"the round's range is not taken: {why}, and ranges made to measure tell single updates apart (rule {MISFIT}). Do instead"
        ": a round whose range is unknown, as the first",
        rule=MISFIT,
        instead="a round whose range is unknown, as the first",
    )


def choose(size: int, cohort: int, largest_weight: int, clip: Range | None = None, *, metrics: int = 0) -> Quantiser:
    """The quantiser of a round in which up to `cohort` nodes send updates of `size` coordinates and weights up to the largest.

    `clip`: what is known of the range (`Aggregate.next_range`); None if nothing. `InvalidRequest` where no ring holds the sums.
    """
    known = clip or Range(FIRST_CLIP, 0.0)
    bits = 64
    if clip is not None and clip.clip <= clip.coarsest * _levels(32, cohort, largest_weight):
        bits = 32
    levels = min(_levels(bits, cohort, largest_weight), MOST_LEVELS)
    if levels < LEAST_WIDE_LEVELS and bits == 64:
        raise InvalidRequest(f"weights of up to {largest_weight} over {cohort} nodes are too large: weight nodes equally")
    fields = [size, metrics, bits, float(min(max(known.clip, 2.0**-400), 2.0**400)), levels, largest_weight, cohort]
    try:
        return Quantiser.from_fields(fields)
    except WireError as error:
        raise InvalidRequest(f"{error.message}: {size} coordinates, {metrics} metrics, {cohort} nodes") from None


def _levels(bits: int, cohort: int, largest_weight: int) -> int:
    return ((1 << bits - 1) - 1) // max(1, cohort * largest_weight)
