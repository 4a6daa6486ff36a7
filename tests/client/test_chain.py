"""The chain of tensors: fixed precision here, shares, what can be seen of them, links of one's own, and `grid.hook()`."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import grid
from grid.client.fixed_precision import HERE
from grid.client.shared import SharedTensor
from grid.testing import LocalGrid
from tests.smpc.torch_cases import ELEMENTWISE, MATRIX, SHAPED, SHAPES, fault, listed, made

NAMES = ("alice", "bob", "carol")


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    with LocalGrid(nodes=6) as made:
        yield made


@pytest.fixture(scope="module")
def g(local: Any) -> Any:
    return local.client()


@pytest.fixture(scope="module")
def nodes(g: Any) -> Any:
    return [g.nodes[name] for name in NAMES]


@pytest.fixture(scope="module")
def trio(g: Any) -> Any:
    return g.committee(*NAMES)


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and found.dtype == wanted.dtype and bool(((found - wanted).abs() < 1e-3).all())


def refused(work: Callable[[], Any], words: str, kind: type[grid.GridError] = grid.InvalidRequest) -> None:
    with pytest.raises(kind, match=words):
        work()


class Logging(grid.Link):
    """The link of the tutorial, with a log to look at."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.log.append(func.__name__)
        return super().run(func, args, kwargs)


# ---------------------------------------------------------------- here


def test_fixed_precision_here_is_whole_numbers_that_compute_as_shares_do() -> None:
    x, w = torch.tensor([[-1.5, 2.25], [3.0, 0.1]]), torch.randn(2, 3)
    a = grid.fix_precision(x, bits=18)
    assert isinstance(a, torch.Tensor) and (a.shape, a.dtype) == (x.shape, x.dtype)
    assert a.child.bits == 18 and a.child.parent is a and a.child is a.child
    assert torch.equal(a.child.child, (x.double() * 2**18).round().long())
    assert near(a.float_precision(), x) and near((a @ w).relu().float_prec(), (x @ w).relu())
    assert near((a.t() @ a).float_precision(), x.t() @ x) and near((a * 2 - 1).mean(0).float_precision(), (x * 2 - 1).mean(0))
    assert torch.equal(a > 0, x > 0) and type(a > 0) is torch.Tensor and int(a.argmax()) == 2
    assert a.fix_precision() is a and "FixedPrecision(bits=18)" in str(a)
    b = copy.deepcopy(a)
    b += 1
    assert near(b.float_precision(), x + 1) and torch.equal(b.child.child, a.child.child + 2**18) and near(a.float_precision(), x)
    whole = grid.fix_precision(torch.tensor([1, 2**40]))
    assert whole.dtype == torch.float32 and whole.child.child.tolist() == [2**18, 2**58]


def test_operations_on_fixed_precision_give_what_torch_gives() -> None:
    """Every operation that shares have, with and without a link on top, within the errors of the table of functions."""
    cases = [(name, case, SHAPES[at % len(SHAPES)]) for at, (name, case) in enumerate(ELEMENTWISE.items())]
    cases += [(name, case, MATRIX) for name, case in SHAPED.items()]
    with torch.no_grad():
        for seed, (name, case, shape) in enumerate(cases):
            inputs = made(case, shape, seed)
            fixed = [one if case.whole else grid.fix_precision(one) for one in inputs]
            if seed % 3 == 0:
                fixed = [Logging().on(one) for one in fixed]
            found = [bare(one) for one in listed(case.function(*fixed))]
            wrong = fault(case, inputs, found)
            assert not wrong, (name, wrong)


def bare(value: Any) -> torch.Tensor:
    """The ordinary tensor that something of ours stands for."""
    value = value.float_precision() if hasattr(value, "float_precision") else value
    return value.child.child if isinstance(getattr(value, "child", None), Logging) else value


def test_autograd_and_modules_work_on_fixed_precision() -> None:
    torch.manual_seed(1)
    x, module = torch.randn(5, 4), torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    twin = copy.deepcopy(module)
    a, b = grid.fix_precision(x).requires_grad_(), x.clone().requires_grad_()
    module(a).pow(2).mean().backward()
    twin(b).pow(2).mean().backward()
    assert b.grad is not None and a.grad is not None and near(a.grad.float_precision(), b.grad)


def test_what_fixed_precision_cannot_do_says_what_to_write() -> None:
    x = torch.ones(2)
    a = grid.fix_precision(x)
    refused(lambda: grid.fix_precision(x, bits=10), "18 bits")
    refused(lambda: grid.fix_precision(x, precision_fractional=3), "18 bits after the point")
    refused(lambda: grid.fix_precision([1.0]), "takes a tensor")
    refused(lambda: grid.fix_precision(x, scale=3), "'scale'")
    with pytest.raises(grid.ExecutionFailed, match=r"2\*\*45"):
        grid.fix_precision(torch.tensor([1.0, torch.inf]))
    for needs in (a.sum().item, a.tolist, a.numpy, lambda: bool(a.sum()), lambda: torch.equal(a, a), lambda: pickle.dumps(a)):
        refused(needs, r"float_precision\(\)")
    refused(a.get, r"float_precision\(\)")
    refused(lambda: a.move("alice"), r"share\(alice, bob, carol\)")
    refused(lambda: x.add_(a), "fix_precision")
    with pytest.raises(grid.OpNotSupported, match=r"sin.*test_chain\.py"):
        a.sin()


# ---------------------------------------------------------------- on shares


def test_a_chain_goes_down_to_the_nodes_and_back_up(trio: Any, nodes: Any) -> None:
    x = torch.randn(3)
    s = grid.fix_precision(x, bits=18).share(*nodes)
    assert type(s) is SharedTensor is type(trio.share(x)) and s.location.id == trio.id
    fixed, shares = s.child, s.child.child
    assert fixed.bits == 18 and fixed.parent is s and shares.parent is fixed and s.child is fixed
    assert list(shares.child) == list(NAMES) and shares.location is trio
    for name, component in shares.child.items():
        assert (component.location.name, component.shape, component.parent) == (name, s.shape, shares)
        assert not isinstance(component, torch.Tensor)
    assert str(s) == "float32 (3,) > FixedPrecision(bits=18) > Shares > alice, bob, carol"
    assert torch.equal(s.get().float_precision(), s.reveal()) and near(s.reveal(), x)
    assert torch.equal(s.get().child.child, grid.fix_precision(x).child.child)
    assert s.fix_precision() is s
    refused(s.float_precision, r"x\.get\(\)\.float_precision\(\)")
    refused(lambda: s.share(*nodes), "on shares already")


def test_results_have_chains_of_their_own(nodes: Any) -> None:
    x, w = torch.randn(4, 3), torch.randn(3, 2)
    s, v = grid.fix_precision(x).share(*nodes), grid.fix_precision(w).share("alice", "bob", "carol").requires_grad_()
    y = (s + s) @ v
    assert y.child.parent is y and y.child.child is not s.child.child and near(y.get().float_precision(), ((x + x) @ w))
    y.relu().sum().backward()
    wanted = w.clone().requires_grad_()
    ((x + x) @ wanted).relu().sum().backward()
    assert wanted.grad is not None and near(v.grad.get().float_precision(), wanted.grad)
    positive = s > 0
    assert positive.child.child.keys() == set(NAMES), "no fixed precision where there are truth values"
    assert torch.equal(positive.get(), x > 0)
    counts = torch.arange(3)
    assert torch.equal((grid.fix_precision(x).share(*nodes).argmax(0)).get(), x.argmax(0)) and counts.dtype == torch.int64
    assert near((s + grid.fix_precision(x)).reveal(), x + x) and near((grid.fix_precision(x) - s).reveal(), x - x)
    plan = grid.trace(lambda a, b: a @ b, x, w)
    assert near(plan(grid.fix_precision(x), v).reveal(), x @ w)
    s += 1
    assert s.child.parent is s and near(s.get().float_precision(), x + 1)


def test_components_cannot_be_touched(nodes: Any) -> None:
    s = grid.fix_precision(torch.ones(2)).share(*nodes)
    component = s.child.child.child["bob"]
    for touch in (component.get, component.reveal, lambda: component.move(nodes[0]), lambda: component.share(*nodes)):
        refused(touch, r"bob: no node gives them", grid.ReleaseDenied)
    refused(lambda: torch.add(component, 1), "the head of the chain")
    with pytest.raises(TypeError):
        s.child.child.child["bob"] = component


def shares_at(local: Any, name: str, committee: str) -> int:
    """How many values on shares a node has in a committee."""
    return sum(len(lane._objects) for lane in local.node(name).committees._running[committee]._party._work._lanes)


def test_remote_memory_goes_with_the_head_without_the_collector(local: Any, g: Any, nodes: Any) -> None:
    probe = grid.fix_precision(torch.zeros(1)).share(*nodes)

    def counts() -> list[int]:
        probe.reveal()  # what was freed before is freed there now
        return [shares_at(local, name, probe.location.id) for name in NAMES]

    gc.collect()
    gc.disable()
    try:
        before = counts()
        s = grid.fix_precision(torch.ones(3)).share(*nodes)
        y = Logging().on(s * 2).relu()
        assert len(s.child.child.child) == 3 and s.child.parent is s and y.child.child.child.child
        assert counts() == [count + 2 for count in before]
        level = s.child.child
        del s
        assert level.parent is None and counts() == [count + 2 for count in before], "who keeps a level keeps the value"
        del level, y
        assert counts() == before
        here = len(HERE.values)
        a = grid.fix_precision(torch.ones(3)).requires_grad_()
        (a * a).sum().backward()
        assert a.grad is not None and a.child.child is not None and len(HERE.values) > here
        del a
        assert len(HERE.values) == here
    finally:
        gc.enable()


def test_share_finds_the_committee_that_is_there(g: Any, local: Any, nodes: Any, trio: Any) -> None:
    x = torch.ones(2)
    alice, bob, carol = nodes
    a, b = alice.send(x).share("carol", "bob", "alice"), grid.fix_precision(x).share(bob, "carol", alice)
    assert a.location.id == b.location.id == trio.id and near((a + b).reveal(), x + x)
    other = g.committee("alice", "bob", "dave")
    assert grid.fix_precision(x).share(alice, bob, g.nodes["dave"]).location.id == other.id
    other.close()
    again = grid.fix_precision(x).share(alice, bob, "dave")
    assert again.location.id != other.id and near(again.reveal(), x)
    second = local.client()
    refused(lambda: grid.fix_precision(x).share(*NAMES), "more than one client")
    refused(lambda: grid.fix_precision(x).share(alice, bob, second.nodes["carol"]), "of one client")
    second.close()
    refused(lambda: grid.fix_precision(x).share(alice), "three nodes")
    refused(lambda: grid.fix_precision(x).share(alice, bob), "three different nodes")
    refused(lambda: grid.fix_precision(x).share(3), "not int")
    refused(lambda: grid.fix_precision(x).share(alice, bob, crypto_provider=carol), "no dealer")
    refused(lambda: a.fix_precision(field=3), "'field'")
    with pytest.raises(grid.NotFound, match="zoe"):
        grid.fix_precision(x).share(alice, bob, "zoe")


def test_a_lost_committee_is_not_used_again() -> None:
    with LocalGrid(nodes=4) as local:
        g = local.client()
        x, nodes = grid.fix_precision(torch.ones(2)), [g.nodes[name] for name in NAMES]
        s = x.share(*nodes)
        assert near(s.reveal(), torch.ones(2))
        local.stop_node("bob")
        with pytest.raises(grid.QuorumLost):
            (s * s).reveal()
        local.start_node("bob")
        with contextlib.suppress(grid.QuorumLost):  # the client may not have seen yet that its session there has ended
            x.share(*nodes)
        assert near(x.share(*nodes).reveal(), torch.ones(2))


def test_a_value_moves_to_another_committee_and_nobody_learns_it(g: Any, nodes: Any, trio: Any) -> None:
    x, bits, whole = torch.randn(2, 3), torch.tensor([True, False, True]), torch.tensor(-7)
    s = grid.fix_precision(x).share(*nodes)
    with g.committee("dave", "erin", "frank") as others:
        moved = s.move(others)
        assert moved.location.id == others.id and list(moved.child.child.child) == ["dave", "erin", "frank"]
        assert torch.equal(moved.get().child.child, s.get().child.child), "the very same whole numbers"
        assert near((moved @ others.share(x.t())).relu().reveal(), (x @ x.t()).relu()) and near(s.reveal(), x)
        assert torch.equal((s > 0).move(others).reveal(), x > 0) and torch.equal(trio.share(bits).move(others).get(), bits)
        assert torch.equal(trio.share(whole).move(others).reveal(), whole) and near((s.t() * 2).move(others).reveal(), x.t() * 2)
        assert near((moved.move(*nodes) + s).reveal(), x + x), "and back"
        linked = Logging().on(s).move("dave", "frank", "erin")
        assert isinstance(linked.child, Logging) and near((linked + moved).get().float_prec().child.child, x + x)
    with g.committee("carol", "erin", "alice") as mixed:
        assert near((s.move(mixed) * 2).reveal(), x * 2), "nodes of both"
    with g.committee("dave", "erin", "frank") as closed:
        pass
    refused(lambda: s.move(closed), "was closed")
    refused(lambda: s.move(trio), "at the committee of alice, bob, carol already")
    refused(lambda: s.move("dave"), "not to one")
    refused(lambda: s.move(3), "moves to a committee")


async def test_an_asynchronous_client_awaits_what_waits() -> None:
    async with LocalGrid(nodes=3) as local:
        g = await local.client()
        s = await grid.fix_precision(torch.tensor([-1.0, 2.0])).share(*(g.nodes[name] for name in NAMES))
        assert near((await s.relu().get()).float_precision(), torch.tensor([0.0, 2.0]))
        linked = await Logging().on(torch.tensor([-1.0, 2.0])).fix_precision().share(g.nodes["alice"], "bob", "carol")
        assert near((await (linked + s).get()).float_precision().child.child, torch.tensor([-2.0, 4.0]))


# ---------------------------------------------------------------- links


def test_a_link_sees_every_operation_and_its_gradient(nodes: Any) -> None:
    x = torch.tensor([-1.5, 2.25, 3.0])
    fixed = grid.fix_precision(x)
    opened: list[tuple[torch.Tensor, Callable[[Any], Any]]] = [
        (x, lambda found: found),
        (fixed, lambda found: found.float_precision()),
        (fixed.share(*nodes), lambda found: found.reveal()),
        (nodes[0].send(x), lambda found: found.get()),
    ]
    for below, plain in opened:
        a = Logging().on(below).requires_grad_()
        y = (a * a).relu().sum()
        seen = [name for name in a.child.log if name != "detach.default"]  # autograd's own
        assert seen == ["mul.Tensor", "relu.default", "sum.default"] and y.child is not a.child and y.child.parent is y
        y.backward()
        assert "threshold_backward.default" in a.child.log, "the backward pass is seen, too"
        assert isinstance(a.grad.child, Logging) and near(plain(a.grad).child.child, 2 * x)


def test_links_are_in_the_chain_and_methods_pass_through_them(trio: Any, nodes: Any) -> None:
    x = torch.tensor([-1.5, 2.25])
    a = Logging().on(x)
    s = a.fix_precision().share(*nodes)
    assert isinstance(s.child, Logging) and s.child.parent is s and s.child.child.parent is s.child
    assert s.child.child.child.parent is s.child.child and list(s.child.child.child.child) == list(NAMES)
    assert str(s) == "float32 (2,) > Logging > FixedPrecision(bits=18) > Shares > alice, bob, carol"
    opened = (s + s).get().float_precision()
    assert isinstance(opened.child, Logging) and near(opened.child.child, x + x) and opened.tolist() == [-3.0, 4.5]
    assert near(s.reveal().child.child, x) and opened.sum().item() == 1.5 and f"{opened[0]:.1f}" == "-3.0"
    there, shared = nodes[0].send(a), trio.share(a)
    assert isinstance(there.child, Logging) and near(there.get().child.child, x) and near(a.send(nodes[0]).get().child.child, x)
    assert isinstance(shared.child, Logging) and near(shared.reveal().child.child, x)
    refused(lambda: nodes[0].send(grid.fix_precision(x)), r"node\.send\(x\.float_precision\(\)\)")
    two = Logging().on(a)
    assert isinstance(two.child.child, Logging) and near((two + 1).child.child.child, x + 1)
    b = Logging().on(x.clone())
    b += 1
    assert near(b.child.child, x + 1) and isinstance(b, torch.Tensor)
    assert near((a + nodes[0].send(x)).get().child.child, x + x) and near((nodes[0].send(x) + a).get().child.child, x + x)
    link = b.child
    refused(lambda: link.on(x), "part of a chain already")
    refused(lambda: Logging().on([1.0]), "goes on a tensor")
    refused(lambda: pickle.dumps(a), "save what is below")
    refused(a.get, "here already")
    refused(lambda: a.move("bob"), "the value is here")
    assert near(copy.deepcopy(a).child.child, x) and near(copy.copy(a).child.child, x) and copy.copy(a) is not a


# ---------------------------------------------------------------- hook


def test_the_hook_gives_torch_the_words_of_2019_and_takes_them_back(nodes: Any) -> None:
    alice, bob, carol = nodes
    x = torch.randn(3)
    with grid.hook():
        s = torch.Tensor.fix_precision(x).share(alice, bob, carol)  # type: ignore[attr-defined]
        assert near(s.get().float_prec(), x) and near((s > 0).get().float_prec() * 1.0, (x > 0) * 1.0)
        assert near(x.fix_prec().float_prec(), x) and near(x.send(alice).get(), x)  # type: ignore[operator]
        assert near(x.share(alice, bob, carol).reveal(), x)  # type: ignore[operator]
        model = torch.nn.Linear(3, 2)
        shared = model.fix_precision().share(alice, bob, carol)  # type: ignore[operator]
        with torch.no_grad():
            assert near(shared(s).get().float_prec(), model(x)) and near(shared.get().float_prec().weight, model.weight)
        refused(lambda: x.fix_prec(precision_fractional=3), "binary")  # type: ignore[operator]
        refused(lambda: x.send("alice"), "send takes a node")  # type: ignore[operator]
        refused(lambda: alice.send(x).fix_prec(), "when it is shared")
        with grid.hook():
            pass
        assert near(x.fix_prec().float_prec(), x)  # type: ignore[operator]
        grid.hook()
    assert not any(hasattr(x, name) for name in ("send", "share", "fix_precision", "float_prec"))
    assert not any(hasattr(model, name) for name in ("send", "share", "fix_precision", "float_prec"))
    grid.unhook()


def test_the_hook_replaces_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "send", lambda self: "theirs", raising=False)
    refused(grid.hook, "'send' of somebody else's")
    assert not hasattr(torch.Tensor, "share")


def test_importing_grid_changes_nothing_in_torch() -> None:
    program = (
        "import torch, torch._dynamo, torch.nn.functional as F  # dynamo replaces torch.manual_seed when it is loaded\n"
        "kinds = (torch.Tensor, torch._C.TensorBase, torch.nn.Parameter, torch.nn.Module, torch._ops.OpOverload)\n"
        "places = [*kinds, F, torch]\n"
        "before = [dict(vars(place)) for place in places]\n"
        "import grid\n"
        "for name in grid.__all__: getattr(grid, name)\n"
        "grid.fix_precision(torch.ones(2)) @ torch.ones(2)\n"
        "for place, old in zip(places, before):\n"
        "    now = vars(place)\n"
        "    changed = {name for name in old if now.get(name) is not old[name]}\n"
        "    changed |= set(now) - set(old) if place in kinds else set()\n"
        "    assert not changed, (place, changed)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
