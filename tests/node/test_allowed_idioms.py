"""What the gate must let through: the idioms of the labels document, each by pointer and as a plan, equal to plain torch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import torch
from node_mesh import RawClient, client, dataset, mesh
from torch import Tensor

from grid.plans.trace import trace

ROWS, COLUMNS = 60, 3

X, Y = torch.randn(ROWS, COLUMNS), torch.randint(0, 2, (ROWS,))
EDGES = torch.linspace(-2, 2, 5)

IDIOMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, y: x.sum(0),
    "sum of the transpose": lambda x, y: x.T.sum(1),
    "mean": lambda x, y: x.mean(0),
    "variance": lambda x, y: x.var(0),
    "standard deviation": lambda x, y: x.std(0),
    "standardised moments": lambda x, y: (((x - x.mean(0)) / (x.std(0) + 1e-6)) ** 3).mean(0),
    "covariance": lambda x, y: (x - x.mean(0)).T @ (x - x.mean(0)) / (x.shape[0] - 1),
    "correlation": lambda x, y: torch.nn.functional.normalize(x - x.mean(0), dim=0).T
    @ torch.nn.functional.normalize(x - x.mean(0), dim=0),
    "ridge": lambda x, y: torch.linalg.solve(x.T @ x + torch.eye(COLUMNS), x.T @ y.to(x.dtype)),
    "logistic gradient": lambda x, y: x.T @ (torch.sigmoid(x @ x.mean(0)) - y.to(x.dtype)) / x.shape[0],
    "accuracy": lambda x, y: ((x.sum(1) > 0).long() == y).to(x.dtype).mean(),
    "histogram by edges": lambda x, y: (x[:, :1] > EDGES).to(x.dtype).sum(0),
    "histogram": lambda x, y: torch.histc(x[:, 0], bins=4, min=-2, max=2),
    "group sums": lambda x, y: (y[:, None] == torch.arange(2)).to(x.dtype).T @ x,
    "where": lambda x, y: torch.where(x > 0, x, torch.zeros_like(x)).sum(0),
    "folds": lambda x, y: x[1::4].mean(0),
    "half": lambda x, y: x[: ROWS // 2].sum(0),
    "ones made at the node": lambda x, y: (torch.ones_like(x[:, :1]).T @ x)[0],
    "cross entropy": lambda x, y: torch.nn.functional.cross_entropy(x[:, :2], y),
    "a function of aggregates": lambda x, y: x.mean(0).sort().values.sqrt().nan_to_num(),
    "concatenated features": lambda x, y: torch.cat([x, x**2], 1).mean(0),
}


@pytest.fixture
async def raw() -> AsyncIterator[RawClient]:
    async with mesh({"alice": [dataset(ROWS, COLUMNS)]}) as made, client(made, "alice") as session:
        yield session


@pytest.mark.parametrize("way", ["pointer", "plan"])
@pytest.mark.parametrize("idiom", IDIOMS)
async def test_an_aggregate_comes_out_as_torch_computes_it(raw: RawClient, idiom: str, way: str) -> None:
    function = IDIOMS[idiom]
    inputs = await raw.open(), await raw.open(part="targets")
    owned = raw.node.datasets["d"]
    assert owned.targets is not None
    if way == "plan":
        (result,) = await raw.plan(trace(function, X, Y), *inputs)
    else:
        (result,) = await raw.remote(function, *inputs)
    torch.testing.assert_close(await raw.get(result), function(owned.features, owned.targets), rtol=1e-5, atol=1e-5)


async def test_shuffled_epochs_of_blocks_stay_releasable(raw: RawClient) -> None:
    """Six blocks of ten rows, drawn two at a time in another order each epoch."""
    generator = torch.Generator().manual_seed(0)
    totals = []
    for _ in range(4):
        epoch = []
        for pair in torch.randperm(6, generator=generator).view(3, 2).tolist():
            batch = await raw.open(blocks=tuple(pair), rows=20)
            (total,) = await raw.remote(lambda x: x.sum(0), batch)
            epoch.append(await raw.get(total))
        totals.append(torch.stack(epoch).sum(0))
    for total in totals:
        torch.testing.assert_close(total, raw.node.datasets["d"].features.sum(0), rtol=1e-4, atol=1e-4)


async def test_features_and_targets_of_the_same_blocks_belong_together(raw: RawClient) -> None:
    x, y = await raw.open(blocks=(4, 1), rows=20), await raw.open(part="targets", blocks=(4, 1), rows=20)
    (moment,) = await raw.remote(lambda x, y: x.T @ y.to(x.dtype), x, y)
    assert (await raw.get(moment)).shape == (COLUMNS,)


async def test_a_linear_model_and_its_gradient_by_pointer(raw: RawClient) -> None:
    """What autograd and an optimizer turn into: products, sums, and in-place writes to the client's own weights."""
    features, w = await raw.open(), await raw.put(torch.zeros(COLUMNS))
    (gradient,) = await raw.remote(lambda x, w: x.T @ (x @ w - x[:, 0]) / x.shape[0], features, w)
    await raw.run(torch.ops.aten.add_.Tensor, w, gradient, alpha=-0.1, outputs=0)
    owned = raw.node.datasets["d"].features
    torch.testing.assert_close(await raw.get(w), 0.1 * owned.T @ owned[:, 0] / ROWS)


async def test_the_clients_own_values_come_back_without_rules(raw: RawClient) -> None:
    value = torch.randn(5, 5)
    own = await raw.put(value)
    assert torch.equal(await raw.get(own), value)
    picked = await raw.run(torch.ops.aten.select.int, own, 0, 3)
    assert torch.equal(await raw.get(picked), value[3])
