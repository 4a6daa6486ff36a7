"""What remote tensors do that other tensors do, and what they say where they cannot."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_executor import LocalExecutor

from grid.client.modules import send
from grid.client.shapes import MAX_ENTRIES
from grid.client.tensors import RemoteTensor
from grid.errors import InvalidRequest, OpNotSupported
from grid.plans.ir import PlanTarget

RX = torch.arange(12.0).reshape(3, 4)


@pytest.fixture
def alice() -> LocalExecutor:
    return LocalExecutor()


@pytest.fixture
def x(alice: LocalExecutor) -> RemoteTensor:
    return alice.put(RX)


def here() -> str:
    """`file:line` of the caller."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return f"{frame.f_back.f_code.co_filename}:{frame.f_back.f_lineno}"


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "item": (lambda x: x.sum().item(), "x.get"),
    "tolist": (lambda x: x.tolist(), "x.get"),
    "numpy": (lambda x: x.numpy(), "x.get"),
    "asarray": (lambda x: numpy.asarray(x), "x.get"),
    "bool": (lambda x: bool(x.sum()), "torch.where"),
    "if": (lambda x: 1 if x.sum() > 0 else 2, "torch.where"),
    "float": (lambda x: float(x.sum()), "x.get"),
    "int": (lambda x: int(x.sum()), "x.get"),
    "complex": (lambda x: complex(x.sum()), "x.get"),
    "range": (lambda x: range(x.sum().long()), "x.get"),
    "in": (lambda x: 3.0 in x, r"sum\(\)"),
    "format": (lambda x: f"{x.sum():.2f}", "x.get"),
    "equal": (lambda x: torch.equal(x, x), "get"),
    "allclose": (lambda x: torch.allclose(x, x), "get"),
    "nonzero": (lambda x: x.nonzero(), "torch.where"),
    "unique": (lambda x: x.unique(), "size"),
    "masked_select": (lambda x: x.masked_select(x > 0), "torch.where"),
    "mask index": (lambda x: x[x > 0], "torch.where"),
    "write of unknown size": (lambda x: x.__setitem__(x > 3, torch.ones(8)), "torch.where"),
    "write through mask and positions": (lambda x: x.__setitem__((x[:, 0] > 3, torch.tensor([1])), 0.0), "torch.where"),
    "f32 @ f64": (lambda x: x @ torch.ones(4, 2, dtype=torch.float64), r"float32 and float64.*x\.to\(torch\.float32\).*at "),
    "linear of doubles": (lambda x: send(torch.nn.Linear(4, 2), x._handle.outbox.put)(x.double()), "one dtype"),
    "norm of doubles": (lambda x: send(torch.nn.LayerNorm(4), x._handle.outbox.put)(x.double()), "one dtype"),
    "convolution of doubles": (lambda x: torch.conv1d(x[None], torch.ones(1, 3, 1).double()), "one dtype"),
    "pickle": (lambda x: pickle.dumps(x), "state_dict"),
    "cpu": (lambda x: x.cpu(), "x.get"),
    "cuda": (lambda x: x.cuda(), "own devices"),
    "share_memory_": (lambda x: x.share_memory_(), "x.get"),
    "apply_": (lambda x: x.apply_(lambda value: value + 1), "torch.where"),
    "map_": (lambda x: x.map_(x, lambda a, b: a + b), "torch.where"),
    "from_dlpack": (lambda x: numpy.from_dlpack(x), "x.get"),
    "torch.from_dlpack": (lambda x: torch.from_dlpack(x), "x.get"),
    "to_dlpack": (lambda x: x.__dlpack__(), "x.get"),
    "module.share_memory": (lambda x: send(torch.nn.Linear(4, 2), x._handle.outbox.put).share_memory(), "x.get"),
    "to cuda": (lambda x: x.to("cuda"), "own devices"),
    "to cuda 0": (lambda x: x.to(device="cuda:0", dtype=torch.float64), "own devices"),
    "module to cuda": (lambda x: send(torch.nn.Linear(4, 2), x._handle.outbox.put).to("cuda"), "own devices"),
    "to meta": (lambda x: x.to(torch.device("meta")), "own devices"),
    "pickle of a module": (lambda x: pickle.dumps(send(torch.nn.Linear(4, 2), x._handle.outbox.put)), r"model\.get\(\)"),
    "view as another dtype": (lambda x: x.view(torch.int32), r"x\.to\(dtype\)"),
    "into local": (lambda x: torch.zeros(3, 4).copy_(x), "x.get"),
    "local add_": (lambda x: torch.zeros(3, 4).add_(x), "x.get"),
    "data": (lambda x: setattr(x, "data", torch.zeros(3, 4)), "copy_"),
    "generator": (lambda x: x.bernoulli_(0.5, generator=torch.Generator()), "generator"),
    "complex dtype": (lambda x: x.to(torch.complex64), "complex"),
    "deepcopy of a result": (lambda x: copy.deepcopy(x.requires_grad_() * 2), "clone"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_values_says_what_to_write(x: RemoteTensor, what: str) -> None:
    function, advice = REFUSED[what]
    with pytest.raises(InvalidRequest, match=advice):
        function(x)


def test_an_unknown_operation_is_refused_at_once_with_the_line(alice: LocalExecutor, x: RemoteTensor) -> None:
    with pytest.raises(OpNotSupported) as caught:
        line = here(); x.as_strided((2, 2), (1, 2))  # noqa: E702
    assert line in caught.value.message and "as_strided" in caught.value.message and not alice.commands


def test_printing_shows_no_values_and_sends_nothing(alice: LocalExecutor, x: RemoteTensor) -> None:
    assert repr(x) == str(x) == f"{x}" == "RemoteTensor(shape=(3, 4), dtype=float32, at='alice')"
    assert "requires_grad=True" in repr(x.requires_grad_()) and not alice.commands


def test_what_is_known_here_needs_nobody(alice: LocalExecutor, x: RemoteTensor) -> None:
    assert (len(x), x.shape, x.dim(), x.numel(), x.dtype) == (3, (3, 4), 2, 12, torch.float32)
    assert x.is_leaf and x.location.name == "alice"
    assert x.to(torch.float32) is x and x.contiguous() is x and x.detach().shape == x.shape
    assert isinstance(x, PlanTarget) and not isinstance(RX, PlanTarget) and not alice.commands


def written(x: Any, where: Callable[[Any], Any], value: Any) -> Any:
    y = x * 1
    y[where(x)] = value
    return y


def ored(x: Any) -> Any:
    y = x > 5
    y |= x < 2
    y &= x > 0
    y ^= x > 7
    return y.bitwise_not_()


LOCAL_MASK = torch.tensor([True, False, True])

ALLOWED: dict[str, Callable[[Any], Any]] = {
    "local mask": lambda x: x[LOCAL_MASK],
    "local mask and position": lambda x: x[LOCAL_MASK, 1] + x[:, torch.tensor([True, False, False, True])].sum(),
    "local mask of all": lambda x: x[RX > 3],
    "list of bools": lambda x: x[[True, False, True]],
    "write through a mask": lambda x: written(x, lambda x: x > 3, 0.0),
    "write through a mask of rows": lambda x: written(x, lambda x: x[:, 0] > 3, -1.0),
    "write rows through a mask": lambda x: written(x, lambda x: x[:, 0] > 3, torch.arange(4.0)),
    "write through mask and position": lambda x: written(x, lambda x: (x[:, 0] > 3, 1), 9.0),
    "write remote number": lambda x: written(x, lambda x: x > 3, x.mean()),
    "write through a local mask": lambda x: written(x, lambda x: LOCAL_MASK, torch.ones(2, 4)),
    "functional write": lambda x: x.index_put((x > 3,), torch.tensor(7.0)),
    "bits in place": ored,
    "iteration": lambda x: torch.stack(list(x)),
    "unpacking": lambda x: torch.add(*x.split([1, 2])[0].expand(2, 4)),
    "slice": lambda x: x[1:, ::2],
    "ellipsis": lambda x: x[..., None, 0],
    "positions": lambda x: x[torch.tensor([0, 2])],
    "position pairs": lambda x: x[torch.tensor([0, 2]), torch.tensor([1, 3])],
    "numbers": lambda x: 2 - x * 3 + x / 4 - x**2,
    "number left": lambda x: 2**x,
    "bool number": lambda x: x + True,
    "where": lambda x: torch.where(x > 3, x, 0.0),
    "local operand": lambda x: torch.ones(3, 4) - x,
    "local matmul": lambda x: torch.ones(2, 3) @ x @ torch.ones(4, 2),
    "local scalar": lambda x: x * torch.tensor(2.5) + torch.tensor(2) - torch.tensor(0.5, dtype=torch.float64),
    "integer and local float": lambda x: x.long() + torch.tensor(1.5),
    "cat": lambda x: torch.cat([x, torch.zeros(1, 4)]),
    "max": lambda x: x.max(1).values + x.argmax(1),
    "std": lambda x: (x - x.mean(0)) / x.std(0, unbiased=False),
    "cast": lambda x: x.double().int().float(),
    "views": lambda x: x.t().reshape(2, 6).flatten(),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "new": lambda x: x.new_zeros(3) + x.new_ones((3,)) + torch.ones_like(x).sum(1) + torch.zeros_like(x)[:, 0],
    "empty is zeros": lambda x: torch.empty_like(x) * 0 + x,
    "softmax": lambda x: x.softmax(1).log().sum(),
    "histc": lambda x: torch.histc(x, bins=4, min=0, max=12),
    "norm": lambda x: x.norm() + torch.linalg.vector_norm(x, dim=1),
    "topk": lambda x: x.topk(2, 1).values,
    "tuple results": lambda x: torch.var_mean(x, 0)[1],
    "channels last": lambda x: x.view(1, 3, 2, 2).to(memory_format=torch.channels_last) * 2,
}


@pytest.mark.parametrize("what", ALLOWED)
def test_remote_equals_local(x: RemoteTensor, what: str) -> None:
    got, expected = ALLOWED[what](x).get(), ALLOWED[what](RX.clone())
    assert got.dtype == expected.dtype and got.shape == expected.shape and torch.allclose(got, expected, equal_nan=True)


def test_writing_in_place_and_through_views(alice: LocalExecutor) -> None:
    def program(x: Any) -> Any:
        x[0] = 1.0
        x[1:, 2] = torch.tensor([5.0, 6.0])
        x[:, 0].mul_(3).add_(x[:, 1])
        x.t()[3].zero_()
        x[torch.tensor([0, 2]), torch.tensor([1, 1])] = 9.0
        x += 1
        torch.maximum(x, x * 2, out=x)
        return x

    assert torch.equal(program(alice.put(RX)).get(), program(RX.clone()))


def test_views_in_place_change_one_tensor_alone(alice: LocalExecutor) -> None:
    def program(x: Any) -> Any:
        other = x.detach()
        assert x.t_() is x and x.shape == (4, 3) and other.shape == (3, 4)
        x.unsqueeze_(1).transpose_(0, 2)
        assert x.shape == (3, 1, 4)
        x.squeeze_()
        x[0] += 1
        return torch.cat([x, other])

    assert torch.equal(program(alice.put(RX)).get(), program(RX.clone()))
    assert not {"aten.t_.default", "aten.squeeze_.default"} & {command.op for command in alice.commands}


def test_a_transpose_is_made_when_it_is_used_and_taken_back_without_a_command(alice: LocalExecutor) -> None:
    def program(x: Any) -> Any:
        turned = x.t()
        x.add_(1)  # what is written before the view is made is seen in it, as what is written after
        y = turned * 2
        x[0] = 7
        turned.t()[1] = 5
        turned[2] = 4
        return torch.cat([turned, y, turned.detach()])

    assert torch.equal(program(alice.put(RX)).get(), program(RX.clone()))
    assert [command.op for command in alice.commands].count("aten.t.default") == 1
    before, unused = len(alice.commands), alice.put(RX).t()
    assert torch.equal(unused.t().get(), RX) and len(alice.commands) == before
    again = unused.get()
    alice.freed.clear()
    del unused
    assert torch.equal(again, RX.t()) and len(alice.freed) == 2 and not {*alice.freed} & alice.objects.keys()


def test_gradients_through_views_and_writes(alice: LocalExecutor) -> None:
    def program(w: Any) -> Any:
        w = w.requires_grad_()
        y = w * 2
        y[0] = 0
        y[:, 1] *= w[:, 0]
        (y.t()[2] ** 2).sum().backward(retain_graph=True)
        y.sum().backward()
        return w.grad

    assert torch.allclose(program(alice.put(RX)).get(), program(RX.clone()))


def test_gradients_through_masks(alice: LocalExecutor) -> None:
    def program(w: Any) -> Any:
        w = w.requires_grad_()
        y = w * 2
        y[y > 6] = 0
        (y[LOCAL_MASK] ** 2).sum().backward()
        return w.grad

    assert torch.allclose(program(alice.put(RX)).get(), program(RX.clone()))


def test_no_memory_is_handed_out(x: RemoteTensor) -> None:
    for reach in (lambda x: x.data_ptr(), lambda x: x.detach().data_ptr(), lambda x: x.untyped_storage(), lambda x: x.storage()):
        with pytest.raises(InvalidRequest, match=r"x\.get"):
            reach(x)
    with pytest.raises(RuntimeError, match="data pointer"):  # a function in C that asks nobody
        torch.utils.dlpack.to_dlpack(x)


def test_state_of_a_remote_module_into_a_local_one_says_what_to_write(alice: LocalExecutor) -> None:
    remote = send(torch.nn.Linear(4, 2), alice.put)
    remote.load_state_dict(remote.state_dict())
    with pytest.raises(RuntimeError, match=r"remote\.get\(\)\.state_dict\(\)"):
        torch.nn.Linear(4, 2).load_state_dict(remote.state_dict())


def test_a_local_number_travels_as_a_scalar_only_where_that_is_exact(alice: LocalExecutor, x: RemoteTensor) -> None:
    x * torch.tensor(0.1)
    x.mul_(torch.tensor(0.1))
    x * torch.tensor(0.1, dtype=torch.float64)
    x.long() + torch.tensor(0.1)
    kinds = [type(command.args[1]).__name__ for command in alice.commands if command.op != "aten._to_copy.default"]
    assert kinds == ["float", "float", "Inline", "Inline"]


def test_the_shape_cache_tells_apart_what_differs(x: RemoteTensor) -> None:
    i, b = x.long(), x.bool()
    assert ((x + 1).dtype, (i + 1).dtype, (i + 1.0).dtype) == (torch.float32, torch.int64, torch.float32)
    assert ((i + True).dtype, (b + True).dtype, (b + 1).dtype) == (torch.int64, torch.bool, torch.int64)
    assert x.sum(0).shape == (4,) and x.sum(1).shape == (3,) and x.sum(0, keepdim=True).shape == (1, 4)
    assert x.view(12).shape == (12,) and x.view(4, 3).shape == (4, 3) and x.t().shape == (4, 3)
    with pytest.raises(RuntimeError):
        x.t().view(12)  # strides count: torch's own error, as with a local tensor


def test_the_shape_cache_is_bounded_and_numbers_do_not_fill_it(alice: LocalExecutor, x: RemoteTensor) -> None:
    y = x
    for step in range(100):
        y = y.lerp(x, 0.5 + step * 1e-3) * (1.0 / (step + 1))
    assert len(alice.shapes._entries) < 10
    for width in range(1, 300):
        x.new_zeros(width)
    assert len(alice.shapes._entries) <= MAX_ENTRIES


def test_operands_at_two_nodes_are_refused_with_advice(alice: LocalExecutor, x: RemoteTensor) -> None:
    with pytest.raises(InvalidRequest, match=r"alice and at bob.*x\.move\(node\).*grid\.sum"):
        x + LocalExecutor("bob").put(RX)
    with pytest.raises(InvalidRequest, match="two sessions"):
        torch.cat([x, LocalExecutor("alice").put(RX)])
    assert not alice.commands


def test_every_operation_remembers_the_users_line(alice: LocalExecutor, x: RemoteTensor) -> None:
    from grid.client.origins import describe

    layer = torch.nn.functional.layer_norm(x, (4,)); first = here()  # noqa: E702
    (layer.requires_grad_() * 2).sum().backward(); second = here()  # noqa: E702
    lines = {describe(place) for place in alice.origins}
    assert lines == {first, second}


def test_shape_errors_are_torchs_own_and_come_at_once(alice: LocalExecutor, x: RemoteTensor) -> None:
    with pytest.raises(RuntimeError, match=r"reduction dim|cannot be multiplied"):
        x @ x
    assert [command.op for command in alice.commands] == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=25))
def test_random_programs_give_what_they_give_here(steps: list[tuple[int, int, int]]) -> None:
    """Views, writes through views and arithmetic in any order, on tensors that alias each other."""
    alice = LocalExecutor()
    remote: list[Any] = [alice.put(RX), alice.put(RX * 0.5)]
    local: list[torch.Tensor] = [RX.clone(), RX * 0.5]
    for kind, a, b in steps:
        for values in (remote, local):
            x, y = values[a % len(values)], values[b % len(values)]
            if kind == 0:
                values.append(x * 0.5 + 1)
            elif kind == 1:
                values.append(x.t() if x.dim() == 2 else x[None])
            elif kind == 2:
                values.append(x[..., : x.shape[-1] // 2 + 1] if x.dim() else x.clone())
            elif kind == 3 and x.dim():
                values.append(x[b % x.shape[0]])
            elif kind == 4:
                values.append(x.reshape(-1))
            elif kind == 5 and x.shape == y.shape:
                values.append(x + y)
            elif kind == 6:
                x.mul_(0.5)
            elif kind == 7 and x.shape == y.shape and x is not y:
                values.append(torch.where(x > y, x, y))
            elif kind == 8:
                x.fill_(float(b))
    for got, expected in zip(remote, local, strict=True):
        assert got.shape == expected.shape and got.stride() == expected.stride() and torch.equal(got.get(), expected)
