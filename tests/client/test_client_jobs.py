"""Federated jobs as their clients see them, over a grid in this process: reports, models, refusals, losses of either side."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import grid
from grid.client.job_line import JobLine
from grid.client.jobs import Job
from grid.client.training import Wish, _least_nodes
from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity
from grid.federated.local import Local
from grid.federated.secagg.graph import MAX_COHORT
from grid.federated.secagg.quantiser import Aggregate, Quantiser, Range
from grid.federated.spec import Stop
from grid.federated.trainer import Trainer
from grid.plans import ir
from grid.plans.optimizers import SGD
from grid.policy.rules import Policy
from grid.testing import LocalGrid
from grid.testing.local import Running
from grid.wire.jobs import JobProgress, StartJob
from grid.wire.messages import Message

NAMES = ("alice", "bob", "carol")
cross_entropy = nn.functional.cross_entropy
LOCAL = Local(epochs=2, batch_size=32, optimizer=SGD(lr=0.2))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    loaded = load_digits()
    return torch.tensor(loaded.data, dtype=torch.float32) / 16, torch.tensor(loaded.target)


FEATURES, TARGETS = digits()
OF = {name: (FEATURES[at:900:3], TARGETS[at:900:3]) for at, name in enumerate(NAMES)}


def datasets(**policy: Any) -> dict[str, Any]:
    rules = {"release": "aggregate", "batches": "known", **policy}
    return {
        name: {"digits": {"features": x, "targets": y, "tags": ["#digits"], "policy": rules}} for name, (x, y) in OF.items()
    }


def model() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(64, 10))


@pytest.fixture
def local() -> Iterator[LocalGrid]:
    with LocalGrid(nodes=datasets()) as running:
        yield running


def plain_fedavg(rounds: int, seed: int) -> torch.Tensor:
    """The same rounds by hand: the nodes' trainer on each one's rows, and the weighted mean of what it gives."""
    from grid.federated.losses import trace_losses

    plans = trace_losses(model(), cross_entropy, *OF["alice"])
    train, evaluate = ir.decode(plans.train.encoding), ir.decode(plans.evaluate.encoding)
    plan = {"train": train, "evaluate": evaluate, "local": LOCAL, "least": 10}
    trainers = [Trainer(**plan, features=x, targets=y) for x, y in OF.values()]
    weights = plans.layout.flatten(model().state_dict())
    seeds = [grid_seed(seed, place) for place in range(3)]
    for number in range(1, rounds + 1):
        found = [one.train(weights, round=number, seed=own) for one, own in zip(trainers, seeds, strict=True)]
        weights = weights + sum(one.update * one.examples for one in found) / 900
    return torch.from_numpy(weights.astype(np.float32))


def grid_seed(seed: int, place: int) -> bytes:
    import hashlib

    return hashlib.sha256(b"grid job seed 1\0" + seed.to_bytes(32, "little") + place.to_bytes(4, "little")).digest()


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().reshape(-1) for value in module.parameters()])


# ---------------------------------------------------------------- learning


def test_three_nodes_learn_as_plain_fedavg_does(local: LocalGrid) -> None:
    g = local.client()
    job = g.train(
        model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=6, local=LOCAL, strategy=grid.FedAvg(), seed=5
    )
    assert job.state in ("waiting", "running")
    reports = list(job)
    assert [one.round for one in reports] == [1, 2, 3, 4, 5, 6, 6]
    assert all(one.nodes == 3 and one.examples == 900 and one.epsilon is None and one.seconds > 0 for one in reports)
    assert reports[0].metrics["loss"] > 2 and reports[-1].metrics["accuracy"] > 0.9
    assert job.state == "done" and list(job) == reports
    learned = job.result()
    assert float((learned(FEATURES[900:]).argmax(1) == TARGETS[900:]).float().mean()) > 0.85
    assert (flat(learned) - plain_fedavg(6, 5)).abs().max() < 1e-4
    with torch.no_grad():
        x, y = FEATURES[:900], TARGETS[:900]
        assert abs(reports[-1].metrics["loss"] - float(cross_entropy(learned(x), y))) < 1e-4


def test_an_evaluation_is_the_weighted_mean_over_all_rows(local: LocalGrid) -> None:
    g = local.client()
    found = g.evaluate(model(), g.search("#digits"), metrics=["loss", "accuracy"])
    with torch.no_grad():
        outputs = model()(FEATURES[:900])
    assert abs(found["loss"] - float(cross_entropy(outputs, TARGETS[:900]))) < 1e-4
    assert abs(found["accuracy"] - float((outputs.argmax(1) == TARGETS[:900]).float().mean())) < 1e-6


def test_a_job_of_no_rounds_evaluates_also_datasets_that_are_not_shared() -> None:
    with LocalGrid(nodes=datasets(share=False)) as local:
        g = local.client()
        job = g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=0)
        assert torch.equal(flat(job.result()), flat(model()))
        assert [one.metrics["loss"] > 2 for one in job.reports] == [True]


def test_a_node_puts_the_rows_of_its_datasets_together() -> None:
    nodes = datasets()
    x, y = OF["alice"]
    nodes["alice"] = {
        name: {"features": x[part], "targets": y[part], "tags": ["#digits"]}
        for name, part in (("some", slice(0, 100)), ("others", slice(100, 300)))
    }
    with LocalGrid(nodes=nodes) as local:
        g = local.client()
        found = g.search("#digits")
        assert len(found) == 4
        reports = list(g.train(model(), loss=cross_entropy, datasets=found, rounds=1, local=LOCAL))
        assert (reports[0].nodes, reports[0].examples) == (3, 900)


def test_a_strategy_of_ones_own_runs_at_the_gateway(local: LocalGrid) -> None:
    def half(weights: torch.Tensor, mean_update: torch.Tensor, state: dict[str, torch.Tensor]) -> Any:
        return weights + 0.5 * mean_update + 0 * state["seen"], {"seen": state["seen"] + 1}

    g = local.client()
    moves = []
    for strategy in (grid.CustomStrategy(half, state=["seen"]), grid.FedAvg(lr=0.5)):
        job = g.train(
            model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=2, local=LOCAL, strategy=strategy, seed=2
        )
        moves.append(flat(job.result()) - flat(model()))
    assert moves[0].abs().max() > 0.01 and (moves[0] - moves[1]).abs().max() < 1e-5


def test_robust_strategies_look_at_single_updates() -> None:
    with LocalGrid(nodes=datasets(updates="single")) as local:
        g = local.client()
        found = g.search("#digits")
        with pytest.raises(grid.InvalidRequest, match="secure=False"):
            g.train(model(), loss=cross_entropy, datasets=found, rounds=2, strategy=grid.Median())
        job = g.train(model(), loss=cross_entropy, datasets=found, rounds=3, local=LOCAL, strategy=grid.Median(), secure=False)
        reports = list(job)
        assert [one.nodes for one in reports] == [3] * 4 and reports[-1].metrics["accuracy"] > 0.6
        assert "each seen by the gateway" in job._repr_html_()


async def test_the_asynchronous_client_awaits_what_waits() -> None:
    async with LocalGrid(nodes=datasets()) as local:
        g = await local.client()
        job = await g.train(model(), loss=cross_entropy, datasets=await g.search("#digits"), rounds=2, local=LOCAL)
        rounds = [report.round async for report in job]
        assert rounds == [1, 2, 2]
        assert isinstance(await job.result(), nn.Module)
        assert [one.id for one in await g.jobs()] == [job.id]
        with pytest.raises(grid.InvalidRequest, match="async for"):
            iter(job)


def test_another_client_attaches_by_id_and_takes_the_best_model(local: LocalGrid) -> None:
    g = local.client()
    job = g.train(
        model(),
        loss=cross_entropy,
        datasets=g.search("#digits"),
        rounds=3,
        local=LOCAL,
        stop=Stop(metric="accuracy", higher=True),
        name="digits of three",
    )
    g.close()
    other = local.client()
    again = other.job(job.id)
    assert [report.round for report in again] == [1, 2, 3, 3]
    assert again.name == "digits of three" and len(again.reports) == 4
    with pytest.raises(grid.InvalidRequest, match="into=model"):
        again.result()
    filled = model()
    assert again.result(into=filled) is filled
    assert again.result(into=model(), best=True)[0].weight.shape == (10, 64)
    with pytest.raises(grid.InvalidRequest, match=r"not the one that was traced|elements"):
        again.result(into=nn.Linear(3, 3))
    with pytest.raises(grid.NotFound, match="no job"):
        other.job("0" * 32)
    assert "digits of three" in repr(other.jobs()) and "digits of three" in other.jobs()._repr_html_()


def test_a_cancelled_job_ends_and_keeps_its_model(local: LocalGrid) -> None:
    g = local.client()
    job = g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=100_000, local=LOCAL)
    next(iter(job))
    job.cancel()
    seen = list(job)
    assert job.state == "cancelled" and 1 <= len(seen) < 100_000
    assert not torch.equal(flat(job.result()), flat(model()))


def test_a_job_goes_on_from_the_checkpoint_of_another(local: LocalGrid) -> None:
    g = local.client()

    def trained(module: nn.Module, rounds: int) -> Any:
        plain = Local(batch_size=1000, optimizer=SGD(lr=0.2))  # whole batches, so that rounds do not depend on their number
        return g.train(module, loss=cross_entropy, datasets=g.search("#digits"), rounds=rounds, local=plain)

    half = trained(model(), 2)
    next(iter(half))
    assert not torch.equal(flat(half.checkpoint()), flat(model()))  # while it goes on, or at its end
    half.result()
    whole = trained(half.checkpoint(), 2).result()
    assert torch.allclose(flat(whole), flat(trained(model(), 4).result()), rtol=0, atol=1e-5)
    with pytest.raises(grid.InvalidRequest, match=r"job\.checkpoint\(into=model\)"):
        g.job(half.id).checkpoint()


def test_early_stopping_ends_a_job_that_does_not_get_better(local: LocalGrid) -> None:
    g = local.client()
    stop = Stop(metric="loss", patience=2, min_delta=1e6)
    job = g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=1000, local=LOCAL, stop=stop)
    assert len(list(job)) < 10 and job.state == "done"


# ---------------------------------------------------------------- losses


def test_a_job_goes_on_when_the_clients_channel_is_lost(local: LocalGrid) -> None:
    g = local.client()
    job = g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=8, local=LOCAL)
    seen = []
    for report in job:
        seen.append(report.round)
        if len(seen) == 2:
            peer = g._inner._jobs._peer
            g._thread.loop.call_soon_threadsafe(peer.close_soon)
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8, 8]


@pytest.mark.parametrize("taken", [True, False])
def test_a_start_whose_answer_is_lost_makes_one_job(local: LocalGrid, monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    ask, lost = JobLine.ask, []

    async def losing(self: JobLine, message: Message, kind: Any, **options: Any) -> Any:
        if isinstance(message, StartJob) and not lost:
            lost.append(await ask(self, message, kind, **options) if taken else None)
            raise grid.NodeUnavailable("the connection was lost")
        return await ask(self, message, kind, **options)

    monkeypatch.setattr(JobLine, "ask", losing)
    g = local.client()
    job = g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=1, local=LOCAL)
    assert lost and [one.round for one in job] == [1, 1]
    assert [one.id for one in g.jobs()] == [job.id]


def test_reports_that_were_left_out_are_asked_for(local: LocalGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    told, dropped = Job.told, []

    def forgetful(self: Job, message: JobProgress) -> None:
        if message.reports and message.first == 1 and not dropped:
            dropped.append(message)
        else:
            told(self, message)

    monkeypatch.setattr(Job, "told", forgetful)
    g = local.client()
    job = g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=5, local=LOCAL)
    assert [one.round for one in job] == [1, 2, 3, 4, 5, 5] and dropped


def test_a_node_that_goes_and_comes_back_takes_part_again(local: LocalGrid) -> None:
    g = local.client()
    job = g.train(
        model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=6, local=LOCAL, min_nodes=3, deadline=20.0, seed=5
    )
    reports = iter(job)
    next(reports)
    local.stop_node("bob")
    local.start_node("bob")
    left = list(reports)
    assert job.state == "done" and left[-1].round == 6
    assert all(one.nodes == 3 for one in left)
    assert left[-1].metrics["accuracy"] > 0.9


# ---------------------------------------------------------------- a gateway that is away


class Away:
    """Takes a client's way to the coordinator, and gives it back."""

    def __init__(self, g: Any) -> None:
        self._line, self._loop = g._inner._jobs, g._thread.loop
        self._dial, self._settings = self._line._dial, self._line._settings

    def begin(self, patience_s: float = 600.0) -> None:
        async def dial() -> Any:
            raise grid.NodeUnavailable("cannot connect: connection refused")

        self._line._dial = dial
        self._line._settings = dataclasses.replace(self._settings, job_patience_s=patience_s)
        self._loop.call_soon_threadsafe(lambda: self._line._peer.close_soon())

    def end(self) -> None:
        self._line._dial, self._line._settings = self._dial, self._settings


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What to do when a word is said of the gateway's absence, which is at once; the words are kept."""

    class Heard(logging.Handler):
        said: ClassVar[list[str]] = []

        def then(self) -> None: ...

        def emit(self, record: logging.LogRecord) -> None:
            self.said.append(record.getMessage())
            self.then()

    Heard.said = []
    monkeypatch.setattr("grid.client.absence.WORD_S", 0.0)
    heard, log = Heard(logging.WARNING), logging.getLogger("grid.client.absence")
    log.addHandler(heard)
    yield heard
    log.removeHandler(heard)


def started(g: Any, rounds: int = 8) -> Job:
    job: Job = g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=rounds, local=LOCAL)
    next(iter(job))
    return job


def test_a_gateway_that_is_away_is_told_once_and_the_job_is_followed_when_it_is_back(local: LocalGrid, words: Any) -> None:
    g = local.client()
    job, away, texts = started(g), Away(g), []

    def back() -> None:
        texts.append((job.text, job._beside()))
        away.end()

    words.then = back
    away.begin()
    assert isinstance(job.result(), nn.Module)
    assert [one.round for one in job.reports] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert words.said == ["the gateway has not been reachable for 0 s; the job goes on when it is back"]
    assert texts[0][0] == words.said[0] and texts[0][1].startswith("loss ") and texts[0][1].endswith(words.said[0])
    assert "reachable" not in job.text


def test_a_gateway_that_stays_away_ends_the_wait_with_an_error_that_may_be_tried_again(local: LocalGrid, words: Any) -> None:
    g = local.client()
    job, away = started(g, rounds=100_000), Away(g)
    away.begin(patience_s=0.3)
    for wait in (lambda: list(job), job.result):
        with pytest.raises(grid.NodeUnavailable, match=r"not been reachable for .*refused.*go on when it is back") as raised:
            wait()
        assert raised.value.retryable
    assert len(words.said) == 1 and not job.ended
    away.end()
    job.cancel()
    list(job)
    away.begin(patience_s=0.3)
    with pytest.raises(grid.NodeUnavailable, match="has not been reachable"):
        job.result()  # all has been told, and the model is still to be fetched
    away.end()
    job.result()


def test_result_waits_no_longer_than_it_is_told(local: LocalGrid) -> None:
    g = local.client()
    job = started(g, rounds=100_000)
    with pytest.raises(grid.DeadlineExceeded, match="it goes on"):
        job.result(timeout=0.1)
    away = Away(g)
    away.begin()
    with pytest.raises(grid.DeadlineExceeded, match="it goes on"):
        job.result(timeout=0.1)
    away.end()
    job.cancel()
    job.result(timeout=60)


def test_ctrl_c_ends_the_wait_for_a_gateway_that_is_away(local: LocalGrid, words: Any) -> None:
    g = local.client()
    job, away, program = started(g), Away(g), threading.get_ident()
    words.then = lambda: signal.pthread_kill(program, signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts without it
    try:
        away.begin()
        with pytest.raises(KeyboardInterrupt):
            job.result()
    finally:
        signal.signal(signal.SIGINT, before)
    away.end()
    assert len(list(job)) == 9


# ---------------------------------------------------------------- refusals


def test_an_owner_can_ask_for_more_nodes_in_sums() -> None:
    nodes = datasets(plans="any")
    nodes["bob"] = datasets(plans="any", min_cohort=4)["bob"]
    with LocalGrid(nodes=nodes | {"dave": nodes["alice"]}) as local:
        g = local.client()
        found = sorted(g.search("#digits"), key=lambda one: one.node.name)
        with pytest.raises(grid.InvalidRequest, match=r"at 3 nodes, and the dataset 'digits' at bob needs 4 in a sum \(min"):
            g.train(model(), loss=cross_entropy, datasets=found[:3])
        with pytest.raises(grid.InvalidRequest, match="min_nodes is 3, and the dataset 'digits' at bob needs 4"):
            g.train(model(), loss=cross_entropy, datasets=found, min_nodes=3)
        reports = list(g.train(model(), loss=cross_entropy, datasets=found, rounds=1, local=LOCAL))
        assert [one.nodes for one in reports] == [4, 4]
        mean = grid.trace(lambda x: x.mean(0), torch.zeros(9, 64))
        means = [mean(one.features) for one in found]
        with pytest.raises(grid.ReleaseDenied, match=r"bob: .*needs at least 4 nodes, this one has 3") as refused:
            grid.sum(means[:3])
        assert refused.value.details["rule"] == "sum.cohort"
        assert torch.allclose(grid.sum(means), sum(x.mean(0) for x, _ in (*OF.values(), OF["alice"])), atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "fraction", "least"),
    [(3, 1.0, 3), (4, 1.0, 3), (5, 1.0, 4), (10, 1.0, 7), (100, 0.5, 34), (100, 0.01, 3), (1500, 1.0, 667), (5000, 0.1, 334)],
)
def test_a_round_needs_more_than_two_thirds_of_its_nodes(nodes: int, fraction: float, least: int) -> None:
    """So that hostile nodes, less than a third of them, can't have the others left out until they know one's part of the sum."""
    card: Any = SimpleNamespace(node=SimpleNamespace(id="a"), policy=Policy(release="open").card(100))
    wish = Wish(model=model(), loss=cross_entropy, datasets=[card], fraction=fraction)
    assert _least_nodes(wish, [card], nodes, dev=False) == least
    assert _least_nodes(dataclasses.replace(wish, secure=False), [card], nodes, dev=False) == 1
    if nodes > MAX_COHORT:
        assert _least_nodes(dataclasses.replace(wish, min_nodes=1000), [card], nodes, dev=False) == 1000
        with pytest.raises(grid.InvalidRequest, match="draws at most 1000 nodes, and this one would need 1001"):
            _least_nodes(dataclasses.replace(wish, min_nodes=1001), [card], nodes, dev=False)


def test_what_cannot_be_is_said_before_anything_is_sent(local: LocalGrid) -> None:
    g = local.client()
    found = g.search("#digits")

    def refused(text: str, error: type[grid.GridError] = grid.InvalidRequest, **changes: Any) -> None:
        arguments: dict[str, Any] = {"model": model(), "loss": cross_entropy, "datasets": found, "rounds": 2}
        with pytest.raises(error, match=text):
            g.train(**(arguments | changes))

    refused("differential privacy comes with a later", privacy=object())
    refused("a list of datasets", datasets=[])
    refused("secure aggregation needs 2", datasets=found[:1])
    refused("updates = \"summed\"", secure=False)
    refused("a part that split gave", datasets=found[0].split([0.5, 0.5]))
    refused(r"of this job has 9 rows, and .*'digits' at \w+ has min_rows = 10.*batch_size=10", local=Local(batch_size=9))
    refused("min_nodes is a whole number from 1 to 3", min_nodes=4)
    refused("min_nodes is 1, and secure aggregation needs 2", min_nodes=1)
    for argument, value, bound in (
        ("rounds", -1, "be a whole number from 0 to 100000, not -1"),
        ("rounds", "5", "be a whole number from 0 to 100000, not '5'"),
        ("secure", 1, "be true or false, not 1"),
        ("fraction", 0, "be at least 1e-06 and at most 1, not 0"),
        ("deadline", "soon", "be a finite number, not 'soon'"),
        ("deadline", 0, "be at least 0.01 and at most 604800, not 0"),
        ("seed", -1, r"be a whole number from 0 to 2\*\*256 - 1"),
        ("weighting", "mine", "be one of examples, equal, not 'mine'"),
        ("evaluate_every", -1, "be a whole number from 0 to 100000, not -1"),
        ("name", "x" * 201, "have from 0 to 200 characters, not 201"),
    ):
        refused(f"^{argument} must {bound}", **{argument: value})
    refused("stop.patience must be a whole number from 0 to 100000, not -2", stop=Stop(patience=-2))
    refused("one of the job's metrics", stop=Stop(metric="f1"))
    refused("torch.nn.Module", model=lambda x: x)
    refused(r"Branching|data-dependent|value", error=grid.GridError, model=Branching())
    refused("fails on features of f4 and targets of i8", model=model().double())
    refused(r"parameter '0\.weight' is torch\.float16, and jobs train float32 .*model\.float\(\)", model=model().half())
    refused(r"parameter '0\.weight' is torch\.bfloat16.*model\.float\(\)", model=model().bfloat16())
    refused(r"parameter 'one' is torch\.complex64.*real and imaginary parts", model=model_with(torch.ones(2) * 1j))
    refused(r"parameter 'one' is torch\.uint16.*convert it to one of float64", model=model_with(torch.ones(2).to(torch.uint16)))
    refused(r"buffer 'two' is torch\.float16.*model\.float\(\)", model=model_with(torch.ones(2), torch.ones(2).half()))
    refused("whole numbers cannot be trained", model=model_with(torch.ones(2).int()).requires_grad_(False))
    refused("local is a grid.Local", local={"epochs": 1})
    assert local.gateway.coordinator.cards() == []


def model_with(parameter: torch.Tensor, buffer: torch.Tensor | None = None) -> nn.Module:
    made = model()
    made.register_parameter("one", nn.Parameter(parameter, requires_grad=parameter.is_complex()))
    made.register_buffer("two", buffer)
    return made


class Branching(nn.Module):
    """What a batch's values decide on is no plan."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"release": "deny"}, 'release = "deny"'),
        ({"release": "approve"}, 'release = "approve".*allow = '),
    ],
)
def test_an_owners_refusal_is_known_before_anything_is_sent(policy: dict[str, Any], text: str) -> None:
    nodes = datasets()
    nodes["bob"] = datasets(**policy)["bob"]
    with LocalGrid(nodes=nodes) as local:
        g = local.client()
        with pytest.raises(grid.InvalidRequest, match=f"'digits' at bob.*{text}"):
            g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=2)
        assert local.gateway.coordinator.cards() == []


def test_two_nodes_of_one_organisation_take_part_where_every_owner_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(self: Running, name: str, role: str) -> LocalIdentity:
        where = "Practice A" if name in ("alice", "bob") else ""
        return LocalIdentity.create(name=name, role=role, clock=SystemClock(), organisation=where)

    def train(nodes: dict[str, Any]) -> Job:
        with LocalGrid(nodes=nodes) as local:
            g = local.client()
            job = g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=1, local=LOCAL, min_nodes=3)
            job.result()
            return job

    monkeypatch.setattr(Running, "_identity", identity)
    willing = datasets(same_organisation=True)
    assert train(willing).reports[-1].nodes == 3
    nodes = willing | {"carol": datasets()["carol"]}
    with pytest.raises(grid.InvalidRequest, match=r"alice and bob both belong to 'Practice A'.*'digits' at carol has not"):
        train(nodes)
    monkeypatch.setattr("grid.client.training._check_organisations", lambda found: None)
    with pytest.raises(grid.ReleaseDenied, match=r"refused by carol: node .* and node .* belong to one organisation"):
        train(nodes)  # carol's node refuses, as its own owner has not allowed it


def test_nodes_with_open_data_hide_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = datasets(release="open")
    nodes["alice"] = datasets()["alice"]
    with LocalGrid(nodes=nodes) as local:
        g = local.client()
        found = g.search("#digits")
        with pytest.raises(grid.InvalidRequest, match="of these nodes 1 hold data that is not open"):
            g.train(model(), loss=cross_entropy, datasets=found, rounds=1)
        assert len(list(g.train(model(), loss=cross_entropy, datasets=found[1:], rounds=1))) == 2
        monkeypatch.setattr("grid.client.training.OPEN", "none is open")
        job = g.train(model(), loss=cross_entropy, datasets=found, rounds=1, min_nodes=3, deadline=2.0)
        with pytest.raises(grid.ReleaseDenied, match=r"1 of 3 nodes hold data that is not open to all"):
            list(job)


def test_an_owner_who_reads_plans_first_gets_them_of_the_client() -> None:
    plans = grid.trace_losses(model(), cross_entropy, *OF["alice"])
    listed = [plans.train.id, plans.evaluate.id]
    with LocalGrid(nodes=datasets(release="approve")) as local:
        g = local.client()
        with pytest.raises(grid.InvalidRequest, match=f'allow = \\["{listed[0]}", "{listed[1]}"\\].*grid.trace_losses'):
            g.train(model(), loss=cross_entropy, datasets=g.search("#digits"))
    with LocalGrid(nodes=datasets(release="approve", allow=listed)) as local:
        g = local.client()
        found = g.search("#digits")
        there = grid.trace_losses(model(), cross_entropy, found[0].features, found[0].targets)
        assert [there.train.id, there.evaluate.id] == listed
        assert len(list(g.train(model(), loss=cross_entropy, datasets=found, rounds=1, local=LOCAL))) == 2


def test_datasets_that_differ_are_named() -> None:
    nodes = datasets()
    nodes["carol"]["digits"]["features"] = nodes["carol"]["digits"]["features"][:, :32]
    with LocalGrid(nodes=nodes) as local:
        g = local.client()
        with pytest.raises(grid.InvalidRequest, match=r"'digits' at carol has rows of f4\[32\] features.*f4\[64\] features"):
            g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=2)


def test_why_a_job_failed_is_raised_where_it_is_followed(local: LocalGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grid.client.training._check_rules", lambda *_: None)
    g = local.client()
    job = g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=2, secure=False, min_nodes=3)
    with pytest.raises(grid.ReleaseDenied, match='updates = "summed"'):
        list(job)
    assert job.state == "failed"
    with pytest.raises(grid.ReleaseDenied):
        job.result()
    assert torch.equal(flat(job.checkpoint()), flat(model()))


# ---------------------------------------------------------------- shown


def test_a_job_shows_a_bar_and_a_curve(local: LocalGrid) -> None:
    g = local.client()
    job = g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=3, local=LOCAL, name="<b>digits</b>")
    job.result()
    assert repr(job).startswith(f"<Job {job.id[:8]} <b>digits</b>: done, round 3 of 3, loss ")
    page = job._repr_html_()
    assert "<polyline" in page and "summed under masks" in page and "&lt;b&gt;digits" in page and "<b>digits" not in page


def test_a_notebook_shows_a_card_that_follows_the_job(local: LocalGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    """What IPython offers, in place of IPython."""
    shown: list[str] = []

    class Handle:
        def update(self, job: Any) -> None:
            shown.append(job._repr_html_())

    def display(job: Any, display_id: bool) -> Handle:
        assert display_id
        shown.append(job._repr_html_())
        return Handle()

    notebook, displays = ModuleType("IPython"), ModuleType("IPython.display")
    notebook.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    displays.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    g = local.client()
    g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=2, local=LOCAL).result()
    assert len(shown) == 5 and "done" in shown[-1] and "polyline" in shown[-1]


def test_a_terminal_shows_a_bar(local: LocalGrid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    g = local.client()
    job = g.train(model(), loss=cross_entropy, datasets=g.search("#digits"), rounds=20, local=LOCAL, name="digits [red]")
    job.result()
    written = capsys.readouterr().err
    assert "digits [red]" in written and "/20" in written and "loss " in written


def test_a_range_that_nodes_refuse_costs_a_round_and_no_more(local: LocalGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []
    judge = Quantiser.check_fit

    def judged(quantiser: Quantiser, update: Any, weight: int, vector: Any) -> None:
        try:
            judge(quantiser, update, weight, vector)
        except grid.ReleaseDenied as denied:
            refused.append(denied.message)
            raise

    monkeypatch.setattr(Quantiser, "check_fit", judged)
    monkeypatch.setattr(Aggregate, "next_range", lambda self: Range(clip=1e-7, coarsest=1.0))
    g = local.client()
    job = g.train(model(), loss=cross_entropy, datasets=g.search(), rounds=3, local=LOCAL)
    job.result()
    assert refused and [one.clipped for one in job.reports] == [0, 0, 0, 0]
    losses = [one.metrics["loss"] for one in job.reports]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1.0 < losses[0]
