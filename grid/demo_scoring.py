"""The demo's last part: a secret model scores private rows of somebody else, and the scores open to the rows' owner alone.

A bank would do so with its model and an insurer's customers: the three nodes compute on shares, so the model's owner sees neither
rows nor scores, the rows' owner does not see the model, and each node sees random numbers.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from grid.demo_learning import Model
from grid.errors import ReleaseDenied
from grid.node.results import listed
from grid.plans.trace import plan


@plan
def score(x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows `(n, d)` -> `(n,)`: the chance that a row is of class 1."""
    found: Tensor = (((x - mean) * scale) @ weight + bias).sigmoid()
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Scoring:
    """What came of it. `refused` is what the model's owner was told when it asked for the scores, "" if nothing refused them;
    `off` the largest distance of a score in the rows' owner's file from that computed in the clear, infinite without a file."""

    rows: int
    refused: str
    off: float
    seconds: float


def score_privately(client: Any, owners: tuple[str, ...], dataset: Any, model: Model, rows: Tensor, state: Path) -> Scoring:
    """Score `dataset` with `model`, both on shares between `owners`; `rows` and `state`, the node's folder, are its owner's."""
    private = (model.mean, 1 / model.std, model.weight, model.bias)
    started = time.monotonic()
    with client.committee(*owners) as trio:
        scores = trio.run(score, dataset.features.share(trio), *(trio.share(value) for value in private))
        refused = ""
        try:
            scores.reveal()
        except ReleaseDenied as error:
            refused = error.message
        scores.reveal(to=dataset.node)
    seconds = time.monotonic() - started
    files = [result.file for result in listed(state) if dataset.name in result.datasets]
    if len(files) != 1:
        return Scoring(dataset.rows, refused, float("inf"), seconds)
    kept = torch.from_numpy(numpy.load(files[0], allow_pickle=False))
    off = float((kept - score.function(rows, *private)).abs().max())
    return Scoring(len(kept), refused, off, seconds)
