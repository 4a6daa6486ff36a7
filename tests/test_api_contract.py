"""The public API as its users write it, section by section, over a grid in this process and over real processes.

Both are made from the same folders: a CSV file and a description for each of three owners.
"""

from __future__ import annotations

import copy
import io
import math
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch

import grid
from grid.demo_processes import processes

ROWS = 80
TAGS = ("#breast-cancer", "#train")

DESCRIPTION = """\
description = "Breast tumours, site A"
file = "patients.csv"
tags = ["#breast-cancer", "#train"]
target = "malignant"
[policy]
release = "aggregate"
plans = "any"
min_rows = 10
max_elements = 5000
epsilon = 3.0
delta = 1e-5
[columns.age]
min = 0
max = 110
[columns.pressure]
min = 60
max = 240
missing = "mean-of-bounds"
[columns.housing]
categories = ["own", "rent", "none"]
missing = "category"
[columns.malignant]
categories = [0, 1]
"""

FEATURES = ("age", "pressure", "size", "housing=own", "housing=rent", "housing=none", "housing=(missing)")


def frame(seed: int) -> pandas.DataFrame:
    rng = numpy.random.default_rng(seed)
    table = pandas.DataFrame(
        {
            "age": rng.integers(20, 90, ROWS).astype(float),
            "pressure": rng.integers(100, 180, ROWS).astype(float),
            "size": rng.standard_normal(ROWS).round(4),
            "housing": rng.choice(["own", "rent", "none"], ROWS),
            "notes": [f"note {number}" for number in range(ROWS)],
            "malignant": rng.integers(0, 2, ROWS),
        }
    )
    table.loc[3, "pressure"] = math.nan
    table.loc[5, "housing"] = math.nan
    return table


NAMES = ("alice", "bob", "carol")
FRAMES = {name: frame(seed) for seed, name in enumerate(NAMES)}


def rows_of(name: str) -> torch.Tensor:
    """The features as the owner has them, worked out here from the table alone."""
    table = FRAMES[name]
    columns = [table["age"], table["pressure"].fillna((60 + 240) / 2), table["size"]]
    columns += [(table["housing"] == category).astype(float) for category in ("own", "rent", "none")]
    columns += [table["housing"].isna().astype(float)]
    return torch.tensor(numpy.stack([column.to_numpy() for column in columns], axis=1), dtype=torch.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in NAMES:
        made[name] = tmp_path_factory.mktemp(name)
        FRAMES[name].to_csv(made[name] / "patients.csv", index=False)
        (made[name] / "patients.toml").write_text(DESCRIPTION)
    return made


@pytest.fixture(scope="module", params=["local", pytest.param("processes", marks=pytest.mark.process)])
def g(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if request.param == "local":
        with grid.testing.LocalGrid(nodes=folders) as local:
            yield local.client()
        return
    with processes(tmp_path_factory.mktemp("logs")) as running:
        running.start("gateway", ["gateway", "--listen", "127.0.0.1:0", "--state", str(tmp_path_factory.mktemp("g")), "--dev"])
        url = running.ready("gateway")["url"]
        for name, folder in folders.items():
            running.start(name, ["node", name, "--gateway", url, "--data", str(folder), "--listen", "127.0.0.1:0", "--dev"])
        for name in folders:
            running.ready(name)
        with grid.connect(url) as client:
            yield client


@pytest.fixture
def ds(g: Any) -> Any:
    return g.search(*TAGS)[0]


def refused(work: Callable[[], Any], *words: str) -> grid.GridError:
    """The error of ours that the work ends in, whose text has each of the words."""
    with pytest.raises(grid.GridError) as caught:
        work()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    return caught.value


# ---------------------------------------------------------------- start a grid


def test_local_grids_of_every_form() -> None:
    policy = {"release": "aggregate", "plans": "any", "min_rows": 10}
    tensors = {"features": torch.ones(40, 3), "targets": torch.zeros(40), "tags": ["#ones"], "policy": policy}
    plain = pandas.DataFrame({"age": numpy.arange(40.0), "weight": numpy.arange(40.0)})
    with grid.testing.LocalGrid(nodes={"alice": {"patients": plain}, "bob": {"tensors": tensors}}) as local:
        g = local.client()
        assert sorted(g.nodes) == ["alice", "bob"] and [one.name for one in g.search("#ones")] == ["tensors"]
        ds = g.nodes["alice"].datasets["patients"]
        assert (ds.policy.release, ds.policy.plans, ds.policy.min_rows) == ("aggregate", "any", 10)
        assert ds.policy.max_elements >= 1 << 62 and ds.columns == ("age", "weight") and float(ds["age"].mean().get()) == 19.5
    for given, names in ((["x", "y"], ["x", "y"]), (2, ["alice", "bob"])):
        with grid.testing.LocalGrid(nodes=given) as local:
            assert sorted(local.client().nodes) == names


async def test_async_with_gives_the_aio_client() -> None:
    nodes = {"alice": {"t": {"features": torch.ones(40, 3), "tags": ["#t"]}}, "bob": {}}
    async with grid.testing.LocalGrid(nodes=nodes) as local:
        g = await local.client()
        assert isinstance(g, grid.aio.Client)
        (ds,) = await g.search("#t")
        a, b = g.nodes["alice"].send(torch.ones(2)), g.nodes["bob"].send(torch.ones(2))
        moved = await a.move(g.nodes["bob"])
        assert (await moved.get()).tolist() == [1, 1] and (await ds.features.sum(0).get()).tolist() == [40.0] * 3
        assert (await grid.aio.sum([a, b])).tolist() == [2.0, 2.0] and (await grid.sum([a, b])).tolist() == [2.0, 2.0]
        model = g.nodes["alice"].send(torch.nn.Linear(2, 1))
        assert isinstance(await model.get(), torch.nn.Linear)
        with pytest.raises(grid.ReleaseDenied):
            await ds.features.get()


async def test_blocking_calls_work_inside_a_running_loop(g: Any, ds: Any) -> None:
    assert g.nodes["alice"].send(torch.ones(2)).get().tolist() == [1, 1]
    assert len(g.search(*TAGS)) == 3 and ds.features.sum(0).get().shape == (7,)


def _in_child(x: Any, answers: Any) -> None:
    try:
        answers.put(f"no error: {x.get()}")
    except grid.GridError as error:
        answers.put(error.message)
    answers.close()
    answers.join_thread()
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_raises(g: Any) -> None:
    x = g.nodes["alice"].send(torch.ones(2))
    x.get()
    forking = multiprocessing.get_context("fork")
    answers = forking.Queue()
    child = forking.Process(target=_in_child, args=(x, answers))
    child.start()
    try:
        assert "forked" in answers.get(timeout=30)
    finally:
        child.join(10)
        child.kill()
        child.join()
        answers.close()
        answers.join_thread()


# ---------------------------------------------------------------- look around


def test_look_around(g: Any, ds: Any) -> None:
    alice, bob = g.nodes["alice"], g.nodes["bob"]
    assert isinstance(g.nodes, Mapping) and (alice.name, bob.name) == ("alice", "bob") and alice is g.nodes["alice"]
    found = g.search(*TAGS)
    assert isinstance(found, list) and [one.node.name for one in found] == list(NAMES) and g.search("#train", "#other") == []
    assert (ds.name, ds.node, ds.rows, ds.tags) == ("patients", alice, ROWS, TAGS)
    assert ds.columns == tuple(FRAMES["alice"].columns) and ds.description == "Breast tumours, site A"
    assert (ds.policy.release, ds.policy.plans, ds.policy.min_rows, ds.policy.max_elements) == ("aggregate", "any", 10, 5000)


def test_features_are_numbers_categories_and_declared_gaps(ds: Any) -> None:
    assert ds.card.feature_names == FEATURES and ds.features.shape == (ROWS, 7) and ds.classes == 2
    assert ds.targets.shape == (ROWS,) and ds.targets.dtype == torch.int64
    assert torch.allclose(ds.features.mean(0).get(), rows_of("alice").mean(0), atol=1e-3)
    assert ds["age"].shape == (ROWS,) and torch.allclose(ds["age"].mean().get(), rows_of("alice")[:, 0].mean(), atol=1e-3)
    assert ds["housing"].dtype == torch.int64
    refused(lambda: ds["notes"], "text")
    refused(lambda: ds["agee"], "'age'")


def test_the_mock_is_here_and_has_the_schema(ds: Any) -> None:
    mock = ds.mock
    assert isinstance(mock, pandas.DataFrame) and tuple(mock.columns) == ds.columns and mock["age"].between(0, 110).all()
    assert mock.features.shape == ds.features.shape and mock.features.dtype == ds.features.dtype
    assert mock.targets.shape == ds.targets.shape and mock.targets.dtype == ds.targets.dtype


# ---------------------------------------------------------------- pointers


def test_pointers(g: Any) -> None:
    alice, bob = g.nodes["alice"], g.nodes["bob"]
    here, weights = torch.randn(3, 4), torch.randn(4, 2)
    x = alice.send(here)
    w = alice.send(weights).requires_grad_()
    loss = (x @ w).relu().sum()
    loss.backward()
    expected = weights.clone().requires_grad_()
    (here @ expected).relu().sum().backward()
    assert isinstance(x, torch.Tensor) and torch.allclose(w.grad.get(), expected.grad, atol=1e-5)
    assert x.location.name == "alice"
    y = x.move(bob)
    assert y.location.name == "bob" and torch.equal(y.get(), here) and torch.equal(x.get(), here)


def test_a_module_and_an_unmodified_optimizer(g: Any, ds: Any) -> None:
    torch.manual_seed(1)
    module = torch.nn.Linear(7, 2)
    model = g.nodes["alice"].send(module)
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    seen = 0
    for xb, yb in ds.batches(32, shuffle=True, seed=0):
        seen += len(xb)
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(xb / 100), yb).backward()
        opt.step()
    back = model.get()
    assert seen == ROWS and type(back) is torch.nn.Linear and not torch.equal(back.weight, module.weight)
    batches = [xb.shape[0] for xb, _ in ds.batches(32)]
    assert all(size % 10 == 0 for size in batches) and sum(batches) == ROWS


def test_rows_do_not_leave_and_the_error_says_why(ds: Any) -> None:
    with pytest.raises(grid.ReleaseDenied) as caught:
        ds.features.get()
    assert caught.value.details["rule"] == "rows" and caught.value.details["instead"]
    assert "Instead" in str(caught.value) and caught.value.code == "release-denied"
    for other in (ds.features * 1, ds.features[3].sum(), ds.features.max(0).values, ds["age"]):
        with pytest.raises(grid.ReleaseDenied):
            other.get()


# ---------------------------------------------------------------- plans


@grid.plan
def standardise(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(0)) / (x.std(0) + 1e-6)


def test_plans(ds: Any, tmp_path: Path) -> None:
    z = standardise(ds.features)
    rows = rows_of("alice")
    assert z.location.name == "alice" and z.shape == rows.shape
    assert torch.allclose((z * z).mean(0).get(), standardise(rows).pow(2).mean(0), atol=1e-3)

    def scores(x: torch.Tensor, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        y = x @ parameters["w"] + parameters["b"]
        return {"mean": y.mean(0), "spread": y.std(0)}

    parameters = {"w": torch.randn(7, 2), "b": torch.zeros(2)}
    p = grid.trace(scores, torch.randn(5, 7), parameters)
    assert len(p.id) == 64 and p.code.startswith("def scores(")
    p.save(tmp_path / "scores.plan")
    again = grid.Plan.load(tmp_path / "scores.plan")
    assert again.id == p.id and again.code == p.code
    here, there = p(rows, parameters), again(ds.features, parameters)
    assert set(there) == {"mean", "spread"} and torch.allclose(there["mean"].get(), here["mean"], atol=1e-2)


def test_a_sum_over_nodes(g: Any) -> None:
    @grid.plan
    def total(x: torch.Tensor) -> torch.Tensor:
        return x.sum(0)

    parts = [total(one.features) for one in g.search(*TAGS)]
    expected = torch.stack([rows_of(name).sum(0) for name in NAMES]).sum(0)
    assert torch.allclose(grid.sum(parts), expected, atol=1e-2)


# ---------------------------------------------------------------- federated learning


def test_federated_learning(g: Any) -> None:
    found = g.search(*TAGS)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 2))
    job = g.train(
        model, loss=torch.nn.functional.cross_entropy, datasets=found, rounds=3,
        local=grid.Local(epochs=20, batch_size=32, optimizer=grid.SGD(lr=0.1)),
        strategy=grid.FedAvg(),
        secure=True,
        privacy=None,
    )  # fmt: skip
    reports = [(report.round, report.metrics, report.epsilon) for report in job]
    assert [number for number, _, _ in reports] == [1, 2, 3, 3] and all(epsilon is None for _, _, epsilon in reports)
    learned = job.result()
    assert type(learned) is torch.nn.Sequential and not torch.equal(learned[1].weight, model[1].weight)
    told = g.evaluate(learned, found, metrics=["loss", "accuracy"])
    assert told == pytest.approx(reports[-1][1], abs=1e-6) and 0.5 <= told["accuracy"] <= 1
    assert g.job(job.id).id == job.id and job.id in [one.id for one in g.jobs()]
    job.cancel()
    assert job.state == "done"
    refused(lambda: g.train(model, loss=torch.nn.functional.cross_entropy, datasets=found, privacy=1.0), "privacy=None")


# ---------------------------------------------------------------- errors

ERRORS = (
    "ReleaseDenied", "NotFound", "NodeUnavailable", "DeadlineExceeded", "ClockSkew", "PlanRejected", "OpNotSupported",
    "BudgetExhausted", "QuorumLost", "WireError", "AuthenticationFailed",
)  # fmt: skip


def test_one_tree_of_errors_with_stable_codes() -> None:
    classes = [getattr(grid, name) for name in ERRORS]
    assert all(issubclass(one, grid.GridError) for one in classes)
    assert len({one.code for one in (*classes, grid.GridError)}) == len(ERRORS) + 1
    for one in classes:
        again = pickle.loads(pickle.dumps(one("what happened", rule="rows")))
        assert type(again) is one and again.message == "what happened" and again.details == {"rule": "rows"}


def test_errors_that_users_meet(g: Any, ds: Any) -> None:
    assert type(refused(lambda: g.nodes["zoe"], "known nodes")) is grid.NotFound
    x = g.nodes["alice"].send(torch.ones(3, 3))
    assert type(refused(lambda: x.as_strided((2, 2), (1, 2)), "test_api_contract.py")) is grid.OpNotSupported
    assert type(refused(lambda: x.get(timeout=1e-9))) is grid.DeadlineExceeded
    branching = grid.plan(lambda x: x if x.sum() > 0 else -x)
    assert type(refused(lambda: branching(ds.features), "test_api_contract.py")) is grid.PlanRejected
    assert type(refused(lambda: grid.connect("ws://127.0.0.1:1", timeout=5), "connect")) is grid.NodeUnavailable


# ---------------------------------------------------------------- what needs values

NEEDS_VALUES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "torch.equal": (lambda x: torch.equal(x, x), "get()"),
    "allclose": (lambda x: torch.allclose(x, x), "get()"),
    "numpy": (lambda x: x.numpy(), "x.get().numpy()"),
    "numpy function": (lambda x: numpy.sin(x), "numpy's sin"),
    "array plus": (lambda x: numpy.ones(3) + x, "torch.as_tensor(array)"),
    "tolist": (lambda x: x.tolist(), "x.get().tolist()"),
    "item": (lambda x: x.sum().item(), "x.get().item()"),
    "bool": (lambda x: bool(x.sum() > 0), "torch.where"),
    "boolean indexing": (lambda x: x[x > 0], "torch.where"),
    "pickle": (lambda x: pickle.dumps(x), "model.get().state_dict()"),
    "torch.save": (lambda x: torch.save({"x": x}, io.BytesIO()), "x.get()"),
    "data_ptr": (lambda x: x.data_ptr(), "x.get().data_ptr()"),
    "untyped_storage": (lambda x: x.untyped_storage(), "x.get().untyped_storage()"),
    "storage": (lambda x: x.storage(), "x.get().storage()"),
    "pin_memory": (lambda x: x.pin_memory(), "x.get().pin_memory()"),
    "from_dlpack": (lambda x: torch.from_dlpack(x), "x.get()"),
}


@pytest.mark.parametrize("what", NEEDS_VALUES)
def test_what_needs_values_says_what_to_write(g: Any, what: str) -> None:
    work, advice = NEEDS_VALUES[what]
    refused(lambda: work(g.nodes["alice"].send(torch.ones(3, 3))), advice)


def test_writing_through_a_mask_works(g: Any) -> None:
    x = g.nodes["alice"].send(torch.tensor([-1.0, 2.0]))
    x[x < 0] = 0.0
    assert x.get().tolist() == [0, 2] and torch.where(x > 1, x, 5.0).get().tolist() == [5, 2]


def test_copies(g: Any) -> None:
    x = g.nodes["alice"].send(torch.ones(3))
    shallow, deep = copy.copy(x), copy.deepcopy(x)
    x.add_(1)
    assert shallow.get().tolist() == [2.0] * 3 and deep.get().tolist() == [1.0] * 3


def test_state_of_modules(g: Any) -> None:
    model = g.nodes["alice"].send(torch.nn.Linear(2, 1))
    model.load_state_dict(model.state_dict())
    fresh = torch.nn.Linear(2, 1)
    model.load_state_dict(fresh.state_dict())
    assert torch.equal(model.get().weight, fresh.weight)
    local = torch.nn.Linear(2, 1)
    local.load_state_dict(model.get().state_dict())
    assert torch.equal(local.weight, fresh.weight)
    # torch collects what goes wrong while it copies and raises an error of its own, which holds the text of ours.
    with pytest.raises(RuntimeError, match=r"remote\.get\(\)\.state_dict\(\)"):
        local.load_state_dict(model.state_dict())
    assert copy.deepcopy(model).get().weight.shape == (1, 2)
    refused(lambda: pickle.dumps(model), "model.get()")


def test_clipping_of_remote_gradients(g: Any) -> None:
    model = g.nodes["alice"].send(torch.nn.Linear(2, 1))
    (model.weight.sum() * 10).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert float(norm.get()) == pytest.approx(math.sqrt(200)) and float(model.weight.grad.norm().get()) <= 1.0001


def test_a_name_that_is_planned_says_what_to_do_without_it() -> None:
    with pytest.raises(AttributeError, match=r"grid\.DifferentialPrivacy is not there yet: jobs run with privacy=None"):
        _ = grid.DifferentialPrivacy
