"""Rates over time, and metrics over rounds, as SVG paths.

A chart has one box of `WIDTH` by `HEIGHT`, which the page stretches; labels stand outside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH = 600
HEIGHT = 120


class Chart(NamedTuple):
    """A line from the left (`slots` samples ago) to the right (now) over an axis from 0 to `top`."""

    line: str
    area: str
    top: float
    peak: float
    mean: float
    now: float


def chart(values: Sequence[float], slots: int, rounded: Callable[[float], float]) -> Chart:
    """A chart of the last `slots` values. Where there are fewer, the line begins later. `rounded` gives the end of the axis."""
    values = values[-slots:]
    peak = max(values, default=0.0)
    top = rounded(peak)
    step = WIDTH / max(1, slots - 1)
    start = WIDTH - step * (len(values) - 1)
    points = [f"{start + index * step:.1f} {HEIGHT - value / top * HEIGHT:.1f}" for index, value in enumerate(values)]
    line = "M" + "L".join(points) if points else ""
    return Chart(
        line=line,
        area=f"{line}L{WIDTH} {HEIGHT}L{start:.1f} {HEIGHT}Z" if points else "",
        top=top,
        peak=peak,
        mean=sum(values) / len(values) if values else 0.0,
        now=values[-1] if values else 0.0,
    )


class Curve(NamedTuple):
    """A line over an axis from `bottom` to `top`, with gaps where a value is not finite; `first` and `last` of those that are."""

    line: str
    bottom: float
    top: float
    first: float | None
    last: float | None


def curve(values: Sequence[float | None]) -> Curve:
    """A line through values of any sign and size, from the left to the right; a single one is a point."""
    finite = [value for value in values if value is not None]
    bottom, top = min(finite, default=0.0), max(finite, default=1.0)
    height = top / 2 - bottom / 2  # halves, as the whole may be more than a number can be
    step = WIDTH / max(1, len(values) - 1)
    path, pen = [], "M"
    for index, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        y = HEIGHT - (value / 2 - bottom / 2) / height * HEIGHT if height > 0 else HEIGHT / 2
        path.append(f"{pen}{index * step:.1f} {y:.1f}")
        if pen == "M":
            path.append("h0")  # with round ends, a point where nothing follows
        pen = "L"
    return Curve("".join(path), bottom, top, finite[0] if finite else None, finite[-1] if finite else None)


def round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8 or 10 times a power of ten, at least 1: the middle of the axis is a round number, too."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 1 else 1.0
    return next(power * factor for factor in (1, 2, 4, 6, 8, 10) if value <= power * factor or factor == 10)


def round_bytes(value: float) -> float:
    """As `round_up`, at least 1 kB."""
    return max(1000.0, round_up(value))


def round_count(value: float) -> float:
    """As `round_up`, an even number."""
    return max(2.0, round_up(value))
