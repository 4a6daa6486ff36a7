"""What is told of a job's rounds, and how that is shown: a line, a bar, a curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from grid.display import printable
from grid.wire.jobs import JobCard, RoundReport

CURVE_WIDTH, CURVE_HEIGHT = 320, 72
"""Of a curve in a notebook, in pixels."""


@dataclass(frozen=True, slots=True)
class Report:
    """One round of a job; everything in it is a sum or a mean over nodes.

    `metrics`: weighted means over the rows of all nodes, by name, of the model that the round began with; of the last report, of
    the final model. Empty where it was not evaluated. `nodes`: how many updates were summed, `examples`: how many rows they
    stand for. `seconds` and `bytes`: what the round took at the gateway. `clipped`: coordinates outside of the quantiser's range.
    `epsilon`: what privacy was spent so far, None without differential privacy. `best`: whether the metric that the job stops
    by was never better. `text`: what else is worth knowing, such as who was lost.
    """

    round: int
    metrics: dict[str, float]
    nodes: int
    examples: int
    seconds: float
    bytes: int
    clipped: int
    epsilon: float | None
    best: bool
    text: str

    @classmethod
    def of(cls, told: RoundReport, names: Sequence[str]) -> Self:
        """A report as it came, with the job's names of metrics."""
        found = zip(names, told.metrics, strict=False)
        return cls(
            round=told.round,
            metrics={name: math.nan if value is None else value for name, value in found},
            nodes=told.nodes,
            examples=told.examples,
            seconds=told.seconds,
            bytes=told.bytes,
            clipped=told.clipped,
            epsilon=told.epsilon,
            best=told.best,
            text=told.text,
        )


def line(metrics: Mapping[str, float]) -> str:
    """`loss 0.4321, accuracy 0.9123`."""
    return ", ".join(f"{printable(name, 40)} {value:.4f}" for name, value in metrics.items())


def last_line(reports: Sequence[Report]) -> str:
    """The metrics of the last evaluation, "" where there was none."""
    return next((line(one.metrics) for one in reversed(reports) if one.metrics), "")


def facts_of(card: JobCard, reports: Sequence[Report], text: str) -> list[tuple[str, object]]:
    """What a card for a notebook says of a job; `text` is what it waits for, or why it ended."""
    return [
        ("id", card.id),
        ("state", card.state),
        ("round", f"{card.round} of {card.rounds}"),
        ("nodes", len(card.nodes)),
        ("strategy", card.strategy),
        ("updates", "summed under masks" if card.secure else "each seen by the gateway"),
        ("metrics", last_line(reports)),
        ("", text),
    ]


def curve(reports: Sequence[Report], done: float) -> str:
    """A bar of how much is done, from 0 to 1, and a curve of the first metric over the rounds, as SVG."""
    points = _points(reports)
    bar = f'<rect x="0" y="0" width="{CURVE_WIDTH}" height="6" rx="3" fill="rgba(127,127,127,.2)"/>'
    bar += f'<rect x="0" y="0" width="{CURVE_WIDTH * min(1.0, max(0.0, done)):.1f}" height="6" rx="3" fill="#4c8bf5"/>'
    if len(points) > 1:
        bar += f'<polyline points="{" ".join(points)}" fill="none" stroke="#4c8bf5" stroke-width="1.5"/>'
    height = CURVE_HEIGHT if len(points) > 1 else 6
    return f'<svg width="{CURVE_WIDTH}" height="{height}" role="img" style="display:block; margin:6px 0 0">{bar}</svg>'


def _points(reports: Sequence[Report]) -> list[str]:
    """Evaluations from left to right, however many there are."""
    values = [value for one in reports if one.metrics and math.isfinite(value := next(iter(one.metrics.values())))]
    if len(values) < 2:
        return []
    low, high, room = min(values), max(values), CURVE_HEIGHT - 16
    across, up = CURVE_WIDTH / (len(values) - 1), room / ((high - low) or 1)
    return [f"{across * at:.1f},{CURVE_HEIGHT - 4 - up * (value - low):.1f}" for at, value in enumerate(values)]


def bar_of(told: Callable[[], str]) -> Any:
    """A progress bar for a terminal, with what `told` says beside it, asked for several times a second."""
    from rich.console import Console  # takes a while to load, and scripts never come here
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Told(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(told())

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Told())
    return Progress(*columns, console=Console(stderr=True), transient=True)
