"""What a round at a node may take, and what becomes of a process that takes more or is ended."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import Tensor, nn
from training_models import classes, mlp, plans_of, vectors, weights_of
from training_nodes import SOURCES, made_with, opened

from grid.errors import ExecutionFailed, PlanRejected, QuotaExceeded
from grid.federated.local import Local
from grid.federated.losses import trace_losses
from grid.node.trainer_process import ProcessTraining
from grid.node.trainers import Trainers
from grid.settings import NodeSettings

pytestmark = pytest.mark.asyncio


class Wide(nn.Module):
    """One step of its plan gives 90,000 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 300))

    def forward(self, x: Tensor) -> Tensor:
        lines = x @ self.weight
        square = lines.T @ lines
        return x[:, :3] * square.mean()


async def test_a_round_that_takes_too_long_is_over_between_two_batches() -> None:
    async with made_with(NodeSettings(max_training_s=0.5), processes=False) as trainers:
        training = await opened(trainers, plans_of(mlp), Local(epochs=1000, batch_size=1), "one")
        weights = weights_of(mlp(), training.layout)
        with pytest.raises(QuotaExceeded, match=r"longer than 0\.5 s \(max_training_s\)"):
            await training.train(weights, round=1, metrics=False)
        assert (await training.evaluate(weights)).metrics[0] > 0, "the job goes on"


async def test_a_process_that_hangs_or_is_killed_ends_one_call() -> None:
    settings = NodeSettings(max_training_s=1.0, kill_grace_s=0.05)
    async with made_with(settings, processes=True) as trainers:
        training = await opened(trainers, plans_of(mlp), Local(), "one")
        assert isinstance(training, ProcessTraining)
        weights = weights_of(mlp(), training.layout)
        for how, error in ((signal.SIGSTOP, QuotaExceeded), (signal.SIGKILL, ExecutionFailed)):
            assert training._worker is not None
            os.kill(training._worker.pid, how)
            with pytest.raises(error, match=r"max_training_s|killed from outside"):
                await training.evaluate(weights)
            assert (await training.evaluate(weights)).metrics[0] > 0, "the next call starts another process"


async def test_plans_that_take_too_much_are_refused() -> None:
    wide = trace_losses(Wide(), nn.functional.cross_entropy, vectors(), classes())
    with pytest.raises(PlanRejected, match="would give 90000 elements; at most 50000"):
        await opened(Trainers(NodeSettings(max_op_elements=50_000), SOURCES), wide, Local(), "one")
    with pytest.raises(PlanRejected, match="steps"):
        await opened(Trainers(NodeSettings(max_plan_steps=2), SOURCES), wide, Local(), "one")
