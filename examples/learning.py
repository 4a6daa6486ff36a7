"""What the examples of federated learning share: training in the clear to compare with, and pictures of what came out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

matplotlib.use("Agg")  # files alone, also where there is no screen

from matplotlib import pyplot

Curve = Sequence[tuple[float, float]]
"""Points of a line."""

PLAIN = "centralised"
"""The line of training on all rows in one place."""


def epochs(model: nn.Module, x: Tensor, y: Tensor, *, lr: float, count: int, batch: int = 32) -> Iterator[nn.Module]:
    """A copy of the model after each of `count` passes of plain SGD over rows that are all here, each in another order."""
    model, order = copy.deepcopy(model), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(count):
        for rows in torch.randperm(len(x), generator=order).split(batch):
            optimizer.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        yield copy.deepcopy(model)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of rows whose class the model says."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def picture(file: Path, panels: Mapping[str, Mapping[str, Curve]], *, x: str, y: str) -> None:
    """Save lines, a panel for each title; `x` and `y` are what the axes are called."""
    figure, axes = pyplot.subplots(1, len(panels), figsize=(6 * len(panels), 4.5), sharey=True, squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, points in lines.items():
            style = "k--" if name == PLAIN else ".-"
            axis.plot(*zip(*points, strict=True), style, label=name)
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.grid(alpha=0.3)
        axis.locator_params(axis="x", integer=True)
        axis.legend()
    save(file, figure)


def bars(file: Path, panels: Mapping[str, Mapping[str, float]], *, y: str, bottom: float) -> None:
    """Save bars, a panel for each title."""
    figure, axes = pyplot.subplots(1, len(panels), figsize=(6 * len(panels), 4.5), sharey=True, squeeze=False)
    for axis, (title, heights) in zip(axes[0], panels.items(), strict=True):
        drawn = axis.bar(list(heights), list(heights.values()), color=["tab:gray"] * (len(heights) - 2) + ["tab:blue", "black"])
        axis.bar_label(drawn, fmt="%.3f")
        axis.set(title=title, ylabel=y, ylim=(bottom, None))
        axis.tick_params(axis="x", rotation=30)
    save(file, figure)


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Shares as a Markdown table: a line for each name, a column for each title."""
    titles = list(next(iter(rows.values())))
    lines = [["", *titles], ["---"] * (len(titles) + 1)]
    lines += [[name, *(f"{one[title]:.3f}" for title in titles)] for name, one in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save(file: Path, figure: pyplot.Figure) -> None:
    """Write the picture and say so."""
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    print(f"the picture is in {file}")
