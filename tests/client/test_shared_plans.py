"""Plans and modules on shares as users write them, over a grid in this process."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import grid
from grid.testing import LocalGrid

NAMES = ("alice", "bob", "carol")
ROWS = torch.tensor([[float(n), float(n * n % 7)] for n in range(12)])
torch.manual_seed(3)


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    data = {"numbers": {"features": ROWS, "tags": ["#numbers"], "policy": {"release": "open"}}}
    with LocalGrid(nodes={"alice": {}, "bob": {}, "carol": {}, "dave": data}) as made:
        yield made


@pytest.fixture(scope="module")
def client(local: Any) -> Any:
    return local.client()


@pytest.fixture(scope="module")
def trio(client: Any) -> Iterator[Any]:
    with client.committee(*NAMES) as made:
        yield made


def near(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and found.dtype == wanted.dtype and bool(((found - wanted).abs() < 1e-3).all())


def layer(x: Tensor, w: Tensor) -> dict[str, Tensor]:
    h = (x @ w).relu()
    return {"hidden": h, "positive": h > 0}


def test_a_plan_runs_on_shared_and_public_arguments(trio: Any) -> None:
    x, w = torch.randn(5, 4), torch.randn(4, 3)
    plan = grid.trace(layer, x, w)
    for args in ((trio.share(x), trio.share(w)), (trio.share(x), w), (x, trio.share(w)), (x, w)):
        found = trio.run(plan, *args)
        assert near(found["hidden"].reveal(), (x @ w).relu())
        assert torch.equal(found["positive"].reveal(), x @ w > 0)
    again = plan(trio.share(x[:2]), trio.share(w))  # another batch, and the call that plans have anyway
    assert near(again["hidden"].reveal(), (x[:2] @ w).relu())


def test_a_decorated_function_runs_where_its_arguments_are(trio: Any) -> None:
    @grid.plan
    def centred(x: Tensor) -> Tensor:
        return x - x.mean(0)

    x = torch.randn(6, 2)
    for run in (centred, lambda x: trio.run(centred, x)):
        y = run(trio.share(x))
        assert isinstance(y, grid.client.shared.SharedTensor) and near(y.reveal(), x - x.mean(0))


def test_results_are_arguments_of_the_next_call_and_nothing_waits(trio: Any) -> None:
    step = grid.trace(lambda x: x * 0.5 + 1, torch.zeros(3))
    x = trio.share(torch.zeros(3))
    for _ in range(20):
        x = trio.run(step, x)
    assert near((x + 0).reveal(), torch.full((3,), 2.0))


def test_a_nodes_rows_are_shared_on_the_way(client: Any, trio: Any) -> None:
    (numbers,) = client.search("#numbers")
    w = torch.randn(2, 1)
    plan = grid.trace(lambda x, w: x @ w, ROWS, w)
    for run in (plan, lambda *args: trio.run(plan, *args, check=True)):
        assert near(run(numbers.features, trio.share(w)).reveal(), ROWS @ w)


def test_a_plan_that_cannot_run_says_so_at_the_line_that_runs_it(trio: Any, client: Any) -> None:
    plan = grid.trace(lambda x: torch.linalg.inv(x), torch.randn(2, 2))
    with pytest.raises(grid.OpNotSupported, match=r"step 0 \(aten\.linalg_inv.*test_shared_plans\.py:\d+"):
        trio.run(plan, trio.share(torch.eye(2)))
    with pytest.raises(grid.InvalidRequest, match="dtype"):
        trio.run(plan, trio.share(torch.eye(2, dtype=torch.float64)))
    with pytest.raises(grid.InvalidRequest, match="takes a plan"):
        trio.run(torch.relu, trio.share(torch.eye(2)))
    with client.committee("bob", "carol", "dave") as other, pytest.raises(grid.InvalidRequest, match=r"bob.* share the value"):
        trio.run(grid.trace(lambda x, y: x + y, ROWS, ROWS), trio.share(ROWS), other.share(ROWS))


def test_what_fails_at_the_nodes_names_the_line_of_the_plan(trio: Any) -> None:
    plan = grid.trace(lambda x, y: (x / y, x + 1), torch.ones(2), torch.ones(()))
    x = trio.share(torch.ones(2))
    for result in trio.run(plan, x, torch.zeros(())):
        with pytest.raises(grid.InvalidRequest, match=r"zero.* — at test_shared_plans\.py:\d+: plan = .*the plan .*written at"):
            result.reveal()
    assert near(trio.run(plan, x, torch.ones(()))[0].reveal(), torch.ones(2))


def test_a_plan_on_shares_is_tried_in_the_clear_first(client: Any, trio: Any) -> None:
    @grid.plan
    def square(x: Tensor) -> Tensor:
        y = x + 1
        return y * y

    large, small = torch.full((3,), 20_000.0), torch.full((3,), 2.0)
    shared = trio.share(large)
    named = r"wrong.*\n  step 1 \(aten\.mul\.Tensor\): .*overflow.* — at .*return y \* y\n"
    with pytest.raises(grid.InvalidRequest, match=named) as told:
        trio.run(square, shared, check=True)
    assert told.value.details["operations"] == 1
    assert near(trio.run(square, trio.share(small), check=True).reveal(), torch.full((3,), 9.0))
    large.fill_(2.0)  # a copy is kept
    del large
    with pytest.raises(grid.InvalidRequest, match="overflow"):
        trio.run(square, shared, check=True)
    with pytest.raises(grid.InvalidRequest, match=r"aten\.sum\.default"):
        trio.run(grid.trace(lambda x: x.sum(), small), trio.share(torch.full((3,), 3e13)), check=True)
    (numbers,) = client.search("#numbers")
    total = grid.trace(lambda x: x.square().sum(0), ROWS)
    assert near(trio.run(total, numbers.features, check=True).reveal(), ROWS.square().sum(0))


def test_a_check_tells_where_it_has_no_values(trio: Any, caplog: pytest.LogCaptureFixture) -> None:
    one, made = torch.ones(3), trio.share(torch.full((3,), 9000.0)) + 0
    plan = grid.trace(lambda x, y: x + y, one, one)
    assert near(trio.run(plan, trio.share(one), trio.share(one), check=True).reveal(), 2 * one) and not any(caplog.messages)
    assert trio.run(plan, trio.share(one), made, check=True).shape == (3,)
    assert "no values are at hand for y: standard normal" in caplog.text
    wrong = grid.trace(lambda x, y: (x * y).sum() + 1e6 * (x - x + 1e5).square(), one, one)
    with pytest.raises(grid.InvalidRequest, match="no values are at hand for x, y: standard normal"):
        trio.run(wrong, made, made, check=True)
    caplog.clear()
    root = grid.trace(lambda x, y: x / (y.sqrt() + 1), one, one)  # y is never negative, as an optimizer's squares are not
    assert trio.run(root, trio.share(one), made, check=True).shape == (3,)
    assert "for y: standard normal ones without their signs" in caplog.text


def test_costs_are_known_before(trio: Any) -> None:
    x, w = torch.randn(5, 4), torch.randn(4, 3)
    plan = grid.trace(layer, x, w)
    secret, public = trio.cost(plan, trio.share(x), trio.share(w)), trio.cost(plan, x, w)
    assert secret.rounds > 10 and secret.bytes_sent > 8 * 15
    assert public == (0, 0)


def step(params: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    held = {name: one.detach().requires_grad_() for name, one in params.items()}
    loss = F.cross_entropy((x @ held["w"]).relu() @ held["v"], y)
    gradients = torch.autograd.grad(loss, list(held.values()))
    return {name: one - 0.1 * by for (name, one), by in zip(params.items(), gradients, strict=True)}, loss


def test_a_training_step_is_traced_and_nothing_is_asked_of_a_node(trio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    params, x, y = {"w": torch.randn(4, 5), "v": torch.randn(5, 3)}, torch.randn(6, 4), torch.tensor([0, 2, 1, 0, 1, 2])
    plan = grid.trace(step, params, x, y)
    shared = [{name: trio.share(one) for name, one in params.items()}, trio.share(x)]
    asked: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(trio._requests, "add", asked.append)
        trace = trio.run(plan, *shared, y, trace=True)
    assert not [one for one in asked if not isinstance(one, int)]  # others forget objects of tests before
    assert trace.result[0]["w"].dtype == torch.float32 and near(trace.result[0]["w"], step(params, x, y)[0]["w"])
    assert 0 < trace.error < 1e-3 and not trace.differ and not trace.note
    assert trio.cost(plan, *shared, y).bytes_sent == trace.bytes_sent
    first = trace.operations[0]
    assert (first.op, first.operands, first.results) == ("aten.mm.default", "(6, 4), (4, 5)", "(6, 5)")
    assert 'loss = F.cross_entropy((x @ held["w"])' in first.line and any("public" in one.operands for one in trace.operations)


def test_a_trace_is_read_as_text_in_a_terminal_in_a_notebook_and_as_a_picture(trio: Any, tmp_path: Path) -> None:
    shared = trio.share(Net())
    trace = trio.run(shared, trio.share(torch.ones(3, 4)) + 0, trace=True)
    text, page = repr(trace), trace._repr_html_()
    terminal = Console(width=80, file=io.StringIO())
    terminal.print(trace)
    drawn = terminal.file.getvalue()  # type: ignore[attr-defined]
    for shown in (text, page, drawn):
        assert f"Net on shares: {trace.rounds} rounds, {trace.bytes_sent:,} bytes by each node" in shown
        assert "addmm" in shown and "relu" in shown and "more" in shown and "o values are at hand for arg1" in shown
    assert all(len(line) <= 80 for line in drawn.splitlines())
    trace.save(tmp_path / "cost.svg")
    picture = ElementTree.parse(tmp_path / "cost.svg").getroot()
    kinds = [one.tag.rpartition("}")[2] for one in picture.iter()]
    assert picture.tag == "{http://www.w3.org/2000/svg}svg" and kinds.count("rect") > 8 and "script" not in kinds
    with pytest.raises(grid.InvalidRequest, match=r"SVG: name the file cost\.svg"):
        trace.save(tmp_path / "cost.png")
    with pytest.raises(grid.InvalidRequest, match="cannot be saved"):
        trace.save(tmp_path / "nowhere" / "cost.svg")


class Net(nn.Module):
    """Nested modules, a tied weight and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first[0].weight
        self.register_buffer("scale", torch.tensor([0.5, 1.0, 2.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) * self.scale  # type: ignore[no-any-return]


def test_a_module_on_shares_runs_step_by_step_and_as_a_plan(trio: Any) -> None:
    net, x = Net(), torch.randn(3, 4)
    shared = trio.share(net)
    assert isinstance(shared, Net) and shared.second.weight is shared.first[0].weight and shared.location.name == trio.place.name
    wanted = net(x).detach()
    assert near(shared(trio.share(x)).reveal(), wanted)
    assert near(shared(x).reveal(), wanted)
    assert near(trio.run(shared, trio.share(x)).reveal(), wanted)
    assert near(trio.run(shared, x[:2]).reveal(), wanted[:2])
    assert near(trio.run(net, trio.share(x)).reveal(), wanted)  # a public model on private data
    with torch.no_grad():
        net.scale += 1  # type: ignore[operator]
    assert near(trio.run(shared, x).reveal(), wanted)


def test_a_module_on_shares_is_traced_once(trio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, x = trio.share(nn.Linear(4, 2)), trio.share(torch.randn(3, 4))
    trio.run(shared, x)
    monkeypatch.setattr("grid.plans.trace._Tracer", None)
    trio.run(shared, x)
    with pytest.raises(TypeError):
        trio.run(shared.eval(), x)


def test_parameters_are_arguments_of_plans(trio: Any) -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(3, 4)

    @grid.plan
    def forward(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, params, (x,))  # type: ignore[no-any-return]

    shared = trio.share(net)
    assert near(forward(dict(shared.named_parameters()), trio.share(x)).reveal(), net(x).detach())


def test_a_module_comes_back_plain(trio: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    net[1].running_mean.copy_(torch.randn(3))
    back = trio.share(net).reveal()
    assert type(back) is nn.Sequential and not back.training
    for name, value in net.state_dict().items():
        assert type(back.state_dict()[name]) is Tensor and near(back.state_dict()[name].double(), value.double()), name
    tied = trio.share(Net()).reveal()
    assert tied.second.weight is tied.first[0].weight and tied.second.weight.requires_grad


def test_what_a_shared_module_cannot_do_says_what_to_do_instead(trio: Any, client: Any) -> None:
    shared = trio.share(nn.Linear(2, 2))
    with pytest.raises(grid.InvalidRequest, match=r"on shares.*reveal\(\)\.state_dict"):
        pickle.dumps(shared)
    with pytest.raises(grid.InvalidRequest, match="share that"):
        shared.load_state_dict(nn.Linear(2, 2).state_dict())
    with pytest.raises(grid.InvalidRequest, match="reveal"):
        shared.state_dict()["weight"].numpy()
    with pytest.raises(grid.InvalidRequest, match=r"committee of .* already"):
        trio.share(shared)
    with pytest.raises(grid.InvalidRequest, match="device"):
        shared.to("cuda")
    with pytest.raises(grid.InvalidRequest, match="neither parameters nor buffers"):
        trio.share(nn.ReLU())
    twin = copy.copy(shared)
    assert twin.weight is shared.weight
    assert near(copy.deepcopy(shared).weight.reveal(), shared.weight.reveal())


async def test_an_asynchronous_client_awaits_what_waits() -> None:
    async with LocalGrid(nodes=3) as local:
        client = await local.client()
        trio = await client.committee(*NAMES)
        net, x = nn.Linear(2, 1), torch.ones(1, 2)
        shared = trio.share(net)
        assert near(await trio.run(shared, trio.share(x)).reveal(), net(x).detach())
        assert near((await shared.reveal()).weight, net.weight)
