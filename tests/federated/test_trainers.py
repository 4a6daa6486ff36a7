"""Training at a node, in threads and in processes: the same results, the same errors, and nothing left at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
import torch
from torch import nn
from training_models import classes, mlp, normed, plans_of, trainer, weights_of
from training_nodes import GUARDED, SOURCES, made_with, opened

import grid
from grid.errors import ExecutionFailed, GridError, InvalidRequest, NotFound, QuotaExceeded
from grid.federated.coordination import ROOM
from grid.federated.local import Local
from grid.federated.losses import trace_losses
from grid.node.trainers import Trainers
from grid.settings import NodeSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = b"of this node"


SETTINGS = NodeSettings(max_trainings=2, max_training_s=20.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[False, True], ids=["threads", "processes"])
async def made(request: pytest.FixtureRequest) -> AsyncIterator[Trainers]:
    async with made_with(SETTINGS, request.param) as trainers:
        yield trainers


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def processes_have_ended(made: Trainers) -> AsyncIterator[None]:
    yield
    assert not made._open
    async with asyncio.timeout(30):
        while len(made._workers() or ()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_rounds_equal_the_trainers_own(made: Trainers) -> None:
    model = normed()
    plans = plans_of(normed)
    local = Local(batch_size=8, optimizer=grid.Adam(lr=0.01), buffers="local")
    x, y = (torch.cat([SOURCES[name].parts[part] for name in ("one", "other")]) for part in ("features", "targets"))
    alone = trainer(plans, local, x, y)
    training = await opened(made, plans, local, "one", "other")
    weights = weights_of(model, plans.layout)
    for round in (1, 2):
        expected = alone.train(weights, round=round, seed=SEED, proximal=0.1)
        found = await training.train(weights, round=round, seed=SEED, proximal=0.1)
        assert found.examples == 55 == training.rows
        assert np.array_equal(found.update, expected.update) and np.array_equal(found.metrics, expected.metrics)
        weights = weights + found.update
    evaluated = await training.evaluate(weights)
    assert np.array_equal(evaluated.metrics, alone.evaluate(weights).metrics) and evaluated.examples == 55
    await training.close()
    await training.close()
    with pytest.raises(GridError, match="the job is over"):
        await training.train(weights, round=3)


async def test_the_rest_of_an_epoch_is_no_batch_where_it_is_below_min_rows(made: Trainers) -> None:
    plans, local = plans_of(mlp), Local(batch_size=16)
    training = await opened(made, plans, local, "guarded")
    weights = weights_of(mlp(), plans.layout)
    found = await training.train(weights, round=1, seed=SEED)
    await training.close()
    rows = GUARDED.parts["features"], GUARDED.parts["targets"]
    alone = [trainer(plans, local, *rows, least=least).train(weights, round=1, seed=SEED).update for least in (10, 1)]
    assert [np.array_equal(found.update, one) for one in alone] == [True, False]


async def test_what_does_not_fit_is_refused_when_a_job_opens(made: Trainers) -> None:
    plans = plans_of(mlp)
    with pytest.raises(NotFound, match="no dataset 'nowhere'"):
        await opened(made, plans, Local(), "nowhere")
    with pytest.raises(NotFound, match="'targets'"):
        await opened(made, plans, Local(), "unlabelled")
    with pytest.raises(InvalidRequest, match="no dataset of this node"):
        await opened(made, plans, Local())
    wider = nn.Linear(9, 3)
    with pytest.raises(InvalidRequest, match="must have size 9 in dimension 1, not 8"):
        await opened(made, trace_losses(wider, nn.functional.cross_entropy, torch.zeros(8, 9), classes()), Local(), "one")
    with pytest.raises(InvalidRequest, match="batches of at least 2 rows"):
        await opened(made, plans_of(normed), Local(batch_size=1), "one")
    with pytest.raises(InvalidRequest, match="do not take the same arguments"):
        await made.open("job", train=plans.train, evaluate=plans_of(normed).evaluate, local=Local(), datasets=["one"])


async def test_jobs_are_counted(made: Trainers) -> None:
    plans = plans_of(mlp)
    one, two = await opened(made, plans, Local(), "one", job="a"), await opened(made, plans, Local(), "one", job="b")
    with pytest.raises(QuotaExceeded, match="max_trainings") as full:
        await opened(made, plans, Local(), "one", job="c")
    assert full.value.details["limit"] == ROOM
    await one.close()
    with pytest.raises(InvalidRequest, match="already"):
        await opened(made, plans, Local(), "one", job="b")
    await two.close()


async def test_a_round_that_nobody_waits_for_any_more_ends_and_the_next_one_works(made: Trainers) -> None:
    model = mlp()
    plans = plans_of(mlp)
    weights = weights_of(model, plans.layout)
    training = await opened(made, plans, Local(epochs=1000, batch_size=1), "one")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await training.train(weights, round=1, seed=SEED)
    assert (await training.evaluate(weights)).metrics[0] > 0
    await training.close()


async def test_a_job_that_is_over_ends_its_round(made: Trainers) -> None:
    model = mlp()
    plans = plans_of(mlp)
    training = await opened(made, plans, Local(epochs=1000, batch_size=1), "one")
    running = asyncio.ensure_future(training.train(weights_of(model, plans.layout), round=1))
    await asyncio.sleep(0)
    await training.close()
    with pytest.raises(GridError, match="the job is over"):
        await running


async def test_a_failure_of_the_plan_keeps_the_job(made: Trainers) -> None:
    model = mlp()
    plans = plans_of(mlp)
    training = await opened(made, plans, Local(), "one")
    weights = weights_of(model, plans.layout)
    with pytest.raises(ExecutionFailed, match="not finite"):
        await training.train(weights * np.float32(np.inf), round=1)
    with pytest.raises(InvalidRequest, match="the weights have"):
        await training.train(weights[1:], round=1)
    assert (await training.train(weights, round=1)).update.any()
    await training.close()
