"""Computing on shares as users write it, over a grid in this process and over real processes: one suite for both."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from click.testing import CliRunner

import grid
from grid.cli import grid as command
from grid.demo_processes import processes
from grid.settings import NodeSettings
from grid.testing import LocalGrid

NAMES = ("alice", "bob", "carol")
ROWS = 12


def data_folder(path: Path) -> Path:
    """Two datasets of rows 0, 1, 2, ...: `public`, whose rows may leave, and `private`, of which aggregates may."""
    path.mkdir()
    for name, release in (("public", "open"), ("private", "aggregate"), ("kept", "deny")):
        lines = ["x,y", *(f"{row},{row * row}" for row in range(ROWS))]
        (path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        policy = f'release = "{release}"\nplans = "any"\nmin_rows = 10\nmax_elements = 100\n'
        (path / f"{name}.toml").write_text(f'file = "{name}.csv"\ntags = ["#{name}"]\n[policy]\n{policy}')
    return path


@contextlib.contextmanager
def in_one_process(folder: Path) -> Iterator[Any]:
    nodes: dict[str, Any] = {"alice": {}, "bob": {}, "carol": {}, "dave": data_folder(folder / "data")}
    with LocalGrid(nodes=nodes, node=NodeSettings(state=folder / "state")) as local:
        yield lambda: local.client()


@contextlib.contextmanager
def in_processes(folder: Path) -> Iterator[Any]:
    data = data_folder(folder / "data")
    with processes(folder) as running, contextlib.ExitStack() as stack:
        running.start("gateway", ["gateway", "--dev", "--listen", "127.0.0.1:0"])
        url = running.ready("gateway")["url"]
        for name in (*NAMES, "dave"):
            own = ["--data", str(data), "--state", str(folder / "state")] if name == "dave" else []
            own += ["--listen", "127.0.0.1:0"] if name in ("alice", "bob") else []  # the others' parties are relayed
            running.start(name, ["node", name, "--gateway", url, "--dev", *own])
        for name in (*NAMES, "dave"):
            running.ready(name)
        yield lambda: stack.enter_context(grid.connect(url))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module", params=[in_one_process, pytest.param(in_processes, marks=pytest.mark.process)])
def connect(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    inside = folder / request.param.__name__
    inside.mkdir()
    with request.param(inside) as made:
        made.state = inside / "state"
        yield made


@pytest.fixture(scope="module")
def client(connect: Any) -> Any:
    return connect()


@pytest.fixture(scope="module")
def trio(client: Any) -> Iterator[Any]:
    with client.committee(*NAMES) as made:
        yield made


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and found.dtype == wanted.dtype and bool(((found - wanted).abs() < 1e-3).all())


def test_a_client_computes_on_its_own_inputs(trio: Any) -> None:
    a, w = torch.randn(5, 4), torch.randn(4, 3)
    shared_a, shared_w = trio.share(a), trio.share(w)
    y = (shared_a @ shared_w).relu()
    assert (y.shape, y.dtype) == ((5, 3), torch.float32)
    assert near(y.reveal(), (a @ w).relu())
    assert torch.equal((shared_a > 0).reveal(), a > 0)
    assert near((2 * shared_a - 1).mean(0).reveal(), (2 * a - 1).mean(0))
    assert near((shared_a * a).sum().reveal(), (a * a).sum())
    counts = torch.arange(6).reshape(2, 3)
    assert torch.equal((trio.share(counts) * 3).reveal(), counts * 3)


def test_a_module_with_public_parameters_runs_on_shares(trio: Any) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(8, 3)
    )
    images = torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        assert near(model(trio.share(images)).reveal(), model(images))


def test_a_plan_and_a_module_run_as_one_request(trio: Any) -> None:
    net, x = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)), torch.randn(5, 4)
    shared, wanted = trio.share(net), net(x).detach()
    assert near(trio.run(shared, trio.share(x)).reveal(), wanted)
    labels = trio.run(grid.trace(lambda y: (y.argmax(1), y > 0), wanted), trio.share(wanted))
    assert torch.equal(labels[0].reveal(), wanted.argmax(1)) and torch.equal(labels[1].reveal(), wanted > 0)
    assert near(shared.reveal()(x).detach(), wanted)


def test_a_node_outside_the_committee_shares_its_rows(client: Any, trio: Any) -> None:
    (public,) = client.search("#public")
    w = torch.randn(2, 1) / 10
    rows = torch.tensor([[float(row), float(row * row)] for row in range(ROWS)])
    assert near((public.features.share(trio) @ trio.share(w)).reveal(), rows @ w)
    pointer = client.nodes["alice"].send(torch.ones(2))
    assert near(pointer.share(trio).reveal(), torch.ones(2))


def test_what_is_computed_of_rows_under_a_rule_does_not_open(client: Any, trio: Any) -> None:
    (private,) = client.search("#private")
    shared = private.features.share(trio)
    for value in (shared, shared.sum(), shared * 0 + 1, torch.cat([trio.share(torch.zeros(1, 2)), shared])):
        with pytest.raises(grid.ReleaseDenied, match="private"):
            value.reveal()
    with pytest.raises(grid.ReleaseDenied, match="private"):
        private.features.sum(0).share(trio).reveal()
    (kept,) = client.search("#kept")
    with pytest.raises(grid.ReleaseDenied) as denied:
        (kept.features.share(trio) + 1).reveal()
    assert denied.value.details["rule"] == "share"
    assert near(trio.share(torch.ones(2)).reveal(), torch.ones(2))


def test_a_result_opens_to_the_owner_of_its_rows_alone(connect: Any, client: Any, trio: Any) -> None:
    (private,) = client.search("#private")
    w = torch.randn(2, 1) / 10
    scores = private.features.share(trio) @ trio.share(w)
    with pytest.raises(grid.ReleaseDenied, match=r"dave.*private.*allow"):
        scores.reveal()
    for other in ("alice", client.nodes["bob"]):
        with pytest.raises(grid.ReleaseDenied, match="private"):
            scores.reveal(to=other)
    there = scores.reveal(to=client.nodes["dave"])
    assert (there.location.name, there.shape, there.dtype) == ("dave", (ROWS, 1), torch.float32)
    for value in (there, there.sum(), there * 0, there.clone().zero_()):
        with pytest.raises(grid.ReleaseDenied):
            value.get()
    with pytest.raises(grid.ReleaseDenied):
        there.share(trio).reveal(to="dave")
    rows = torch.tensor([[float(row), float(row * row)] for row in range(ROWS)])
    (kept,) = json.loads(CliRunner().invoke(command, ["results", "--state", str(connect.state), "--json"]).stdout)
    assert near(torch.from_numpy(numpy.load(kept["file"])), rows @ w)
    assert [kept[name] for name in ("datasets", "client", "plan", "shape")] == [["private"], client.me.id, "", [ROWS, 1]]
    assert Path(kept["file"]).stat().st_mode & 0o777 == 0o600
    shown = CliRunner().invoke(command, ["results", "--state", str(connect.state)]).stdout
    assert "private" in shown and "f4[12, 1]" in shown


def test_a_clients_own_value_opens_to_a_node_and_stays_its_own(client: Any, trio: Any) -> None:
    x = torch.tensor([[1.5, -2.0], [0.0, 4.0]])
    for name in ("alice", "dave"):
        there = (trio.share(x) + 1).reveal(to=name)
        assert there.location.name == name and near((there * 2).get(), (x + 1) * 2)
    with pytest.raises(grid.InvalidRequest, match="takes a node"):
        trio.share(x).reveal(to=3)
    with pytest.raises(grid.NotFound):
        trio.share(x).reveal(to="nobody")


def test_what_cannot_be_done_names_itself_and_the_way_out(client: Any, trio: Any) -> None:
    x = trio.share(torch.ones(2))
    with pytest.raises(grid.OpNotSupported, match=r"aten\.sin\.default.*test_committees\.py"):
        x.sin()
    with pytest.raises(grid.InvalidRequest, match=r"x = x [+] y"):
        x[:1].add_(1)
    bob = client.nodes["bob"]
    for wrong in (x.float_precision, x.item, x.numpy, lambda: x.move(bob), lambda: x + bob.send(torch.ones(2))):
        with pytest.raises(grid.InvalidRequest):
            wrong()
    with pytest.raises(grid.InvalidRequest):
        client.committee("alice", "bob", "bob")
    with pytest.raises(grid.NotFound):
        client.committee("alice", "bob", "nobody")


def test_the_chain_and_a_move_to_another_committee(client: Any, trio: Any) -> None:
    alice, bob, carol = (client.nodes[name] for name in NAMES)
    x = torch.randn(3)
    s = grid.fix_precision(x, bits=18).share(alice, bob, carol)
    assert type(s) is type(trio.share(x)) and s.child.child.parent is s.child and list(s.child.child.child) == list(NAMES)
    assert near(s.get().float_precision(), x) and near((s + trio.share(x)).reveal(), x + x)
    there = s.move("dave", "bob", "carol")
    assert near((there * there).reveal(), x * x) and near((s * s).reveal(), x * x)
    (private,) = client.search("#private")
    rows = private.features.share(trio)
    for value in (rows, rows.sum(), rows * 0 + 1, torch.cat([trio.share(torch.zeros(1, 2)), rows])):
        with pytest.raises(grid.ReleaseDenied, match="with the nodes of this committee and with no others"):
            value.move("dave", "bob", "carol")


@pytest.mark.parametrize("value", [torch.tensor([1.0, torch.nan]), torch.tensor([2.0**45]), torch.tensor([-(2**63)])])
def test_what_does_not_fit_into_shares_says_what_does(trio: Any, value: torch.Tensor) -> None:
    with pytest.raises(grid.ExecutionFailed, match=f"smaller in size than 2..{45 if value.is_floating_point() else 63}; scale"):
        trio.share(value)


@pytest.mark.parametrize("told", [True, False])
def test_whether_private_values_fit_or_can_be_made_is_told_to_nobody(told: bool) -> None:
    """Else a client reads them by a search: nothing of it would be counted. Of open data it is told."""
    policy = {"release": "open"} if told else {"release": "deny", "share": list(NAMES), "min_rows": 1}
    owners: dict[str, Any] = {name: {} for name in NAMES}
    rows = torch.tensor([5.0, 6.0, 7.0])
    with LocalGrid(nodes=owners | {"dave": {"d": {"features": rows, "tags": ["#d"], "policy": policy}}}) as local:
        client = local.client()
        (d,) = client.search("#d")
        with client.committee(*NAMES) as trio:
            said = []
            whole = d.features.long()
            for value in (d.features, d.features * 2.0**44, d.features * torch.nan, whole // whole, whole // (whole - 6)):
                try:
                    value.share(trio).reveal()
                    said.append("")
                except grid.GridError as error:
                    said.append(f"{error.code} {error.details.get('rule')}")
            assert (len(set(said)) > 1) == told


def test_an_operation_that_fails_at_the_nodes_names_its_line(trio: Any) -> None:
    x = trio.share(torch.ones(2))
    with pytest.raises(grid.InvalidRequest, match=r"zero.*test_committees\.py"):
        (x / 0 + 1).reveal()
    assert near(x.reveal(), torch.ones(2))


def test_two_clients_take_part_and_neither_has_the_others_objects(connect: Any, client: Any) -> None:
    other = connect()
    clients = (client.me.id, other.me.id)
    with client.committee(*NAMES, clients=clients) as ours, other.committee(*NAMES, clients=clients, id=ours.id) as theirs:
        mine, foreign = ours.share(torch.full((2,), 3.0)), theirs.share(torch.full((2,), 4.0))
        assert mine._handle.object_id == foreign._handle.object_id
        assert near((mine * mine).reveal(), torch.full((2,), 9.0))
        assert near((foreign * foreign).reveal(), torch.full((2,), 16.0))
        with pytest.raises(grid.GridError):
            mine + foreign
    with pytest.raises(grid.AuthenticationFailed):
        other.committee(*NAMES, clients=(client.me.id,))


def test_two_clients_compute_on_what_neither_reads(connect: Any, client: Any) -> None:
    other = connect()
    who = (client.me.id, other.me.id)
    x, w = torch.randn(4, 2), torch.randn(2, 1)
    plan = grid.trace(lambda x, w: (x @ w).sum(0), x, w)
    with client.committee(*NAMES, clients=who) as ours, other.committee(*NAMES, clients=who, id=ours.id) as theirs:
        offer = ours.offer(ours.share(w), to=other.me.id, plans=[plan])
        taken = theirs.take(offer)
        result = theirs.run(plan, theirs.share(x), taken)
        assert near(result.reveal(), (x @ w).sum(0))
        for closed in (taken, taken * 0, result + 0, theirs.run(plan, theirs.share(x), taken * 1)):
            with pytest.raises(grid.ReleaseDenied, match="offered for some plans"):
                closed.reveal()
            with pytest.raises(grid.ReleaseDenied, match="offered for some plans"):
                closed.reveal(to="alice")
        back = ours.take(theirs.offer(result * 2, to=client.me.id, freely=True))
        assert near((back + 1).reveal(), 2 * (x @ w).sum(0) + 1)
        for wrong in (
            lambda: ours.offer(ours.share(w), to=client.me.id, freely=True),
            lambda: ours.offer(ours.share(w), to=other.me.id),
            lambda: theirs.offer(back, to=client.me.id, freely=True),
            lambda: ours.take("nonsense"),
            lambda: ours.offer(ours.share(w), to=other.me.id, plans=["abc"]),
            lambda: theirs.take(offer),
            lambda: theirs.take(offer.replace("2x1", "999999999999x999999999999")),
        ):
            with pytest.raises(grid.InvalidRequest):
                wrong()
        assert near(theirs.run(plan, theirs.share(x), taken).reveal(), (x @ w).sum(0))
    with client.committee(*NAMES, clients=who, timeout=1) as ours, pytest.raises(grid.DeadlineExceeded, match="this offer"):
        ours.take(offer).reveal()


def test_many_committees_at_once_do_not_mix(client: Any) -> None:
    with contextlib.ExitStack() as stack:
        orders = [("alice", "bob", "carol"), ("carol", "alice", "bob"), ("bob", "carol", "dave"), ("dave", "bob", "alice")]
        made = [stack.enter_context(client.committee(*order)) for order in orders]
        shared = [one.share(torch.full((3,), float(number))) for number, one in enumerate(made)]
        results = [(x * x + number).relu() for number, x in enumerate(shared)]
        for number, result in enumerate(results):
            assert near(result.reveal(), torch.full((3,), float(number * number + number)))


async def test_an_asynchronous_client_awaits_what_waits() -> None:
    async with LocalGrid(nodes=3) as local:
        client = await local.client()
        trio = await client.committee(*NAMES)
        x = trio.share(torch.tensor([-1.0, 2.0]))
        assert near(await x.relu().reveal(), torch.tensor([0.0, 2.0]))


def test_a_node_that_ends_is_named_and_the_others_go_on() -> None:
    with LocalGrid(nodes=4) as local:
        client = local.client()
        trio, rest = client.committee(*NAMES), client.committee("alice", "carol", "dave")
        x, y = trio.share(torch.ones(2)), rest.share(torch.ones(2))
        assert near((x + 1).reveal(), torch.full((2,), 2.0))
        local.stop_node("bob")
        with pytest.raises(grid.QuorumLost, match="bob"):
            (x * x).reveal()
        assert near((y * y).reveal(), torch.ones(2))
        with pytest.raises(grid.GridError, match="bob"):
            client.committee(*NAMES, timeout=5)
        rest.close()
        trio.close()


def test_results_of_listed_plans_open_and_nothing_else_does() -> None:
    """Even under "deny": the owner has read the plan, and named the nodes."""
    rows = torch.tensor([[float(row), float(row * row)] for row in range(ROWS)])
    plan = grid.trace(lambda x, w: (x @ w).mean(0), rows, torch.zeros(2, 1))
    other = grid.trace(lambda x: x.sum(0), rows)
    policy = {"release": "deny", "allow": [plan.id], "share": list(NAMES)}
    data = {"d": {"features": rows, "tags": ["#d"], "policy": policy}}
    nodes: dict[str, Any] = {name: {} for name in (*NAMES, "erin")}
    with LocalGrid(nodes={**nodes, "dave": data}) as local:
        client = local.client()
        (d,) = client.search("#d")
        assert d.policy.parties == NAMES
        with client.committee(*NAMES) as trio, client.committee("alice", "bob", "erin") as strangers:
            w = torch.tensor([[1.0], [0.5]])
            x, shared = d.features.share(trio), trio.share(w)
            assert near(trio.run(plan, x, shared).reveal(), (rows @ w).mean(0))
            closed = {
                "no direct result": trio.run(plan, x, shared) + 0,
                "is not listed": trio.run(other, x),
                "as they were shared": trio.run(plan, x * 1, shared),
                "computed from it before": trio.run(plan, d.features[:3].share(trio), shared),
            }
            for why, value in closed.items():
                with pytest.raises(grid.ReleaseDenied, match=why):
                    value.reveal()
            with pytest.raises(grid.ReleaseDenied, match=r'erin may have shares.*share = \["alice", "bob", "erin"\]'):
                d.features.share(strangers).reveal()
            with pytest.raises(grid.ReleaseDenied):
                plan(d.features, w).get()


def test_a_plan_listed_with_arguments_opens_on_these_alone() -> None:
    """The client who runs it cannot put values of its own in the place of another owner's, and so ask about this one's."""
    value = torch.tensor([[3.0]])
    plan = grid.trace(lambda x, y, public: x - y + public, value, value, torch.zeros(1, 1))
    policy = {"release": "deny", "allow": [f"{plan.id}(alice/d, dave/d, *)"], "share": list(NAMES), "min_rows": 1}
    data = {"d": {"features": value, "tags": ["#d"], "policy": policy}}
    rogue = {"d": {"features": value, "tags": ["#d"], "policy": {"release": "open"}}}
    with LocalGrid(nodes={"alice": data, "bob": {}, "carol": rogue, "dave": data}) as local:
        client, other = local.client(), local.client()
        who = (client.me.id, other.me.id)
        with client.committee(*NAMES, clients=who) as trio, other.committee(*NAMES, clients=who, id=trio.id) as theirs:
            x, rogues, y = (one.features.share(trio) for one in sorted(client.search("#d"), key=lambda one: one.node.name))
            own, public = trio.share(value), torch.ones(1, 1)
            offered = trio.take(theirs.offer(theirs.share(value), to=client.me.id, freely=True))
            assert near(trio.run(plan, x, y, public).reveal(), public) and near(trio.run(plan, x, y, own).reveal(), value)
            wrong = {"own": (x, own), "public": (x, value), "swapped": (y, x), "twice": (x, x), "changed": (x, y * 1)}
            for what, given in {**wrong, "another node's": (x, rogues), "offered": (x, offered)}.items():
                with pytest.raises(grid.ReleaseDenied) as denied:
                    trio.run(plan, *given, public).reveal()
                assert denied.value.details["rule"] == "committee.release", what
            assert trio.run(plan, x, own, public).reveal(to="alice").location.name == "alice"


def test_another_owners_dataset_that_a_plan_is_listed_with_is_whole_too() -> None:
    """Whatever that owner lets out: else a client picks rows of it, and so asks about this one's again and again."""
    plan = grid.trace(lambda x, y: x.sum() + y.sum(), torch.zeros(9, 2), torch.zeros(7, 2))

    def data(name: str, allowed: str) -> dict[str, Any]:
        policy = {"release": "deny", "allow": [allowed], "share": list(NAMES), "min_rows": 5}
        return {name: {"features": torch.ones(10, 2), "targets": torch.zeros(10), "tags": [f"#{name}"], "policy": policy}}

    with LocalGrid(nodes={"alice": data("a", f"{plan.id}(alice/a, bob/b)"), "bob": data("b", plan.id), "carol": {}}) as local:
        client = local.client()
        (a,), (b,) = client.search("#a"), client.search("#b")
        with client.committee(*NAMES) as trio:
            x = a.features.share(trio)
            assert near(trio.run(plan, x, b.features.share(trio)).reveal(), torch.tensor(40.0))
            some = next(iter(b.batches(5)))[0].share(trio)
            with pytest.raises(grid.ReleaseDenied) as denied:
                trio.run(plan, x, some).reveal()
            assert denied.value.details["node"] == "alice"
            assert near(trio.run(plan, trio.share(torch.zeros(5, 2)), some).reveal(), torch.tensor(10.0))  # bob does not mind


def test_a_result_counts_once_however_often_and_to_whom_it_is_asked_for() -> None:
    """An owner who lets it go does not lose its count to another one who refuses."""
    plan = grid.trace(lambda x, y: x + y, torch.zeros(1), torch.zeros(1))
    common = {"release": "deny", "share": list(NAMES), "min_rows": 1}
    policies = {"alice": {**common, "allow": [f"{plan.id}(alice/d, bob/d)"], "max_elements": 1}, "bob": common}
    data = {name: {"d": {"features": torch.ones(1), "tags": ["#d"], "policy": own}} for name, own in policies.items()}
    with LocalGrid(nodes={"carol": {}, **data}) as local:
        client = local.client()
        with client.committee(*NAMES) as trio:
            x, y = (one.features.share(trio) for one in sorted(client.search("#d"), key=lambda one: one.node.name))
            result = trio.run(plan, x, y)
            for to in (None, "carol", "alice"):
                with pytest.raises(grid.ReleaseDenied, match="bob"):
                    result.reveal(to=to)
            assert result.reveal(to="bob").shape == (1,)
            name = result._handle.object_id
            del result
            gc.collect()
            trio.new_id = lambda: name  # which may stand for another value now
            with pytest.raises(grid.BudgetExhausted):
                trio.run(plan, x, y).reveal(to="bob")


def test_a_committees_id_is_used_once_even_by_nodes_that_have_started_again() -> None:
    with LocalGrid(nodes=3) as local:
        client = local.client()
        with client.committee(*NAMES) as trio:
            assert near((trio.share(torch.ones(2)) + 1).reveal(), torch.full((2,), 2.0))
        local.stop_node("bob")
        local.start_node("bob")
        for order in (NAMES, NAMES[::-1]):
            with pytest.raises(grid.InvalidRequest, match="fresh one"):
                client.committee(*order, id=trio.id)
        with client.committee(*NAMES) as another:
            assert near((another.share(torch.ones(2)) * 2).reveal(), torch.full((2,), 2.0))
