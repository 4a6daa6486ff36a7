"""Whole training steps run where the data is: parameters and optimizer state stay there from step to step, and what comes of
them may leave, since every row had a part in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from step_models import MODELS, OPTIMIZERS, Eager, Tensors, batch, make, start, step_of

import grid
from grid.testing import LocalGrid

ROWS = 24


@pytest.fixture(scope="module")
def local() -> Iterator[LocalGrid]:
    datasets: dict[str, Any] = {}
    for name in MODELS:
        features, targets = batch(name, ROWS)
        policy = {"release": "aggregate", "plans": "any", "min_rows": 10, "max_elements": 1_000_000}
        datasets[name] = {"features": features, "targets": targets, "classes": 3, "policy": policy}
    with LocalGrid(nodes={"alice": datasets}) as running:
        yield running


@pytest.mark.parametrize(("name", "optimizer"), [(name, "adam") for name in MODELS] + [("mlp", "sgd"), ("mlp", "adamw")])
def test_steps_at_a_node_are_those_of_torch(local: LocalGrid, name: str, optimizer: str) -> None:
    g = local.client()
    ds = next(ds for ds in g.search() if ds.name == name)
    ours, theirs = OPTIMIZERS[optimizer]
    module = make(name)
    step = grid.plan(step_of(module, ours))
    now, eager = start(module, ours), Eager(module, theirs)
    x, y = batch(name, ROWS)
    for _ in range(3):
        *after, loss = step(*now, ds.features, ds.targets)
        now = Tensors(*after)
        expected = eager.step(x, y)
    assert abs(loss.get() - expected) < 1e-4
    for parameter, value in eager.module.named_parameters():
        distance = (now.params[parameter].get() - value.detach()).abs()
        assert bool(((distance < 1e-4) | eager.noise(parameter)).all()), parameter
    for buffer, value in eager.module.named_buffers():
        assert torch.allclose(now.buffers[buffer].get(), value, atol=1e-4), buffer
    assert len(step._known) == 1  # one trace served local and remote state
    with pytest.raises(grid.ReleaseDenied):
        ds.features.get()
