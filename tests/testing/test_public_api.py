"""The public API, written as users write it: what the README and the examples promise works as it stands."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import grid
from grid.testing import LocalGrid

ROWS = 60


@pytest.fixture(scope="module")
def local() -> Iterator[LocalGrid]:
    torch.manual_seed(0)
    nodes = {
        name: {
            "patients": {
                "features": torch.randn(ROWS, 4),
                "targets": torch.randint(0, 2, (ROWS,)),
                "classes": 2,
                "tags": ["#breast-cancer", "#train"],
                "policy": {"release": "aggregate", "plans": "any", "min_rows": 10, "max_elements": 100_000},
            }
        }
        for name in ("alice", "bob", "carol")
    }
    with LocalGrid(nodes=nodes) as running:
        yield running


@pytest.fixture
def g(local: LocalGrid) -> grid.client.blocking.Client:
    return local.client()


def rows_at(local: LocalGrid, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the owner sees."""
    dataset = local.node(name).datasets["patients"]
    assert dataset.targets is not None
    return dataset.features, dataset.targets


def test_look_around(local: LocalGrid, g: grid.client.blocking.Client) -> None:
    alice, bob = g.nodes["alice"], g.nodes["bob"]
    assert (alice.name, bob.name) == ("alice", "bob")
    found = g.search("#breast-cancer", "#train")
    ds = found[0]
    assert (ds.name, ds.node.name, ds.rows, ds.tags) == ("patients", "alice", ROWS, ("#breast-cancer", "#train"))
    assert ds.columns == ("x0", "x1", "x2", "x3") and ds.policy.min_rows == 10
    assert ds.mock.features.shape == (ROWS, 4) and ds.mock.targets.shape == (ROWS,)
    assert ds.features.shape == (ROWS, 4) and ds.targets.dtype == torch.int64 and ds["x1"].shape == (ROWS,)
    assert torch.allclose(ds["x1"].sum().get(), rows_at(local, "alice")[0][:, 1].sum(), atol=1e-4)


def test_pointers(g: grid.client.blocking.Client) -> None:
    alice, bob = g.nodes["alice"], g.nodes["bob"]
    torch.manual_seed(1)
    here, weights = torch.randn(3, 4), torch.randn(4, 2)
    x = alice.send(here)
    w = alice.send(weights).requires_grad_()
    loss = (x @ w).relu().sum()
    loss.backward()
    local_w = weights.clone().requires_grad_()
    (here @ local_w).relu().sum().backward()
    assert torch.allclose(w.grad.get(), local_w.grad)
    assert x.location.name == "alice"
    y = x.move(bob)
    assert y.location.name == "bob" and torch.equal(y.get(), here) and torch.equal(x.get(), here)


def test_an_unmodified_module_and_optimizer_learn_remotely(g: grid.client.blocking.Client) -> None:
    (ds, *_) = g.search("#train")
    torch.manual_seed(2)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    model = ds.node.send(module)
    opt = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        for xb, yb in ds.batches(30, shuffle=True, seed=0):
            opt.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(xb), yb)
            loss.backward()
            opt.step()
        losses.append(float(loss.get()))
    assert losses[-1] < losses[0]
    back = model.get()
    assert isinstance(back, torch.nn.Sequential) and back[0].weight.shape == (8, 4)
    assert not torch.equal(back[0].weight, module[0].weight), "the caller's module stays as it was"


def test_rows_do_not_leave(g: grid.client.blocking.Client) -> None:
    (ds, *_) = g.search("#train")
    for refused in (ds.features, ds.features * 1, ds.features[3].sum(), ds.features.max(0).values):
        with pytest.raises(grid.ReleaseDenied) as error:
            refused.get()
        assert error.value.details["rule"] and str(error.value)


def test_plans(local: LocalGrid, g: grid.client.blocking.Client, tmp_path: Path) -> None:
    @grid.plan
    def standardise(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)) / (x.std(0) + 1e-6)

    (ds, *_) = g.search("#train")
    z = standardise(ds.features)
    features, _ = rows_at(local, "alice")
    assert torch.allclose(z.sum(0).get(), torch.zeros(4), atol=1e-3)
    assert torch.allclose((z * z).mean(0).get(), ((features - features.mean(0)) / features.std(0)).pow(2).mean(0), atol=1e-4)

    def total(x: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x @ parameters["w"] + parameters["b"]).sum(0)

    parameters = {"w": torch.randn(4, 2), "b": torch.zeros(2)}
    p = grid.trace(total, torch.randn(5, 4), parameters)
    assert len(p.id) == 64 and "mm" in p.code
    p.save(tmp_path / "total.plan")
    assert grid.Plan.load(tmp_path / "total.plan").id == p.id
    assert torch.allclose(p(features, parameters), total(features, parameters), atol=1e-4)
    assert torch.allclose(p(ds.features, parameters).get(), total(features, parameters), atol=1e-4)


def test_a_sum_over_nodes(local: LocalGrid, g: grid.client.blocking.Client) -> None:
    @grid.plan
    def spread(x: torch.Tensor) -> torch.Tensor:
        return (x * x).sum(0)

    parts = [spread(ds.features) for ds in g.search("#train")]
    expected = sum((rows_at(local, name)[0] ** 2).sum(0) for name in ("alice", "bob", "carol"))
    assert torch.allclose(grid.sum(parts), expected, atol=1e-3)


def test_special_methods_work_or_say_what_to_do_instead(g: grid.client.blocking.Client) -> None:
    alice = g.nodes["alice"]
    x, y = alice.send(torch.ones(3)), alice.send(torch.ones(3))
    for attempt in (
        lambda: torch.equal(x, y),
        lambda: torch.allclose(x, y),
        lambda: x.numpy(),
        lambda: x.tolist(),
        lambda: x.sum().item(),
        lambda: bool(x.sum() > 0),
        lambda: x[x > 0],
    ):
        with pytest.raises(grid.GridError) as error:
            attempt()
        assert "get()" in str(error.value) or "where" in str(error.value)
    copied = copy.deepcopy(x)
    x.add_(1)
    assert copied.get().tolist() == [1.0] * 3 and x.get().tolist() == [2.0] * 3
    model = alice.send(torch.nn.Linear(2, 1))
    state = model.state_dict()
    model.load_state_dict(state)
    (model.weight.sum() * 10).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert float(model.weight.grad.norm().get()) <= 1.0001


async def test_the_asynchronous_twins() -> None:
    async with LocalGrid(nodes=["alice", "bob"]) as local:
        g = await local.client()
        a, b = g.nodes["alice"].send(torch.ones(2)), g.nodes["bob"].send(torch.ones(2))
        assert (await grid.aio.sum([a, b])).tolist() == [2.0, 2.0]
        assert (await a.get()).tolist() == [1.0, 1.0]
        assert await g.search() == []
