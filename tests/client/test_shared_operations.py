"""Operations and modules on shares as users write them, over a grid: all in one committee, all under way at once."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import grid
from grid.testing import LocalGrid
from tests.smpc.torch_cases import ELEMENTWISE, MATRIX, MODULES, SHAPED, SHAPES, fault, listed, made, with_statistics


@pytest.fixture(scope="module")
def trio() -> Iterator[Any]:
    with LocalGrid(nodes=3) as local, local.client().committee("alice", "bob", "carol") as made:
        yield made


def test_operations_give_what_torch_gives(trio: Any) -> None:
    cases = [(name, case, SHAPES[at % len(SHAPES)]) for at, (name, case) in enumerate(ELEMENTWISE.items())]
    cases += [(name, case, MATRIX) for name, case in SHAPED.items()]
    asked = []
    with torch.no_grad():
        for seed, (name, case, shape) in enumerate(cases):
            inputs = made(case, shape, seed)
            asked.append((name, case, inputs, listed(case.function(*map(trio.share, inputs)))))
    for name, case, inputs, found in asked:
        wrong = fault(case, inputs, [one.reveal() for one in found])
        assert not wrong, (name, wrong)


def test_modules_give_what_torch_gives(trio: Any) -> None:
    torch.manual_seed(8)
    asked = []
    with torch.no_grad():
        for name, (make, x) in MODULES.items():
            module = with_statistics(make()).eval().requires_grad_(False)
            held = [(k, v) for k, v in (*module.named_parameters(), *module.named_buffers()) if v.is_floating_point()]
            shared = {key: trio.share(value) for key, value in held}
            for given in ({}, shared):
                asked.append((name, module(x), torch.func.functional_call(module, given, (trio.share(x),))))
    for name, wanted, found in asked:
        opened = found.reveal()
        assert (opened.shape, opened.dtype) == (wanted.shape, wanted.dtype), name
        assert (opened - wanted).abs().max() < 5e-3 * (1 + wanted.abs().max()), name


def rewritten(x: Any) -> Any:
    """Aliases see what is written, as in torch."""
    y = x * 2
    alias = y.detach()
    y += 1
    y.mul_(alias).clamp_(min=-1.0)
    return y + alias


def recurrent(x: Any) -> Any:
    torch.manual_seed(5)
    layer = torch.nn.GRU(3, 2)
    hidden = x[:1, :2] * 0
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    return layer(x, hidden)[0]


def test_what_is_written_in_place_stands_for_a_new_value(trio: Any) -> None:
    x = torch.tensor([[0.5, -1.0, 2.0], [-0.25, 0.0, 1.5]])
    with torch.no_grad():
        for function in (rewritten, recurrent, lambda x: torch.nn.functional.cosine_similarity(x, x.flip(0))):
            assert (function(trio.share(x)).reveal() - function(x)).abs().max() < 1e-3


def test_an_optimizer_steps_on_shares(trio: Any) -> None:
    weights = torch.nn.Parameter(trio.share(torch.ones(3)))
    optimizer = torch.optim.SGD([weights], lr=0.1, foreach=False)
    (weights * weights).sum().backward()
    optimizer.step()
    assert (weights.reveal() - 0.8).abs().max() < 1e-4


NEEDS_VALUES: dict[str, Callable[[Any], Any]] = {
    "if": lambda x: bool(x > 0),
    "if of one": lambda x: 1 if (x > 0).all() else 0,
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "equal": lambda x: torch.equal(x, x),
    "in": lambda x: 1.0 in x,
    "format": lambda x: f"{x:.2f}",
    "save": lambda x: torch.save(x, io.BytesIO()),
}


@pytest.mark.parametrize("what", NEEDS_VALUES)
def test_what_needs_a_value_says_to_reveal_it(trio: Any, what: str) -> None:
    x = trio.share(torch.ones(3))
    with pytest.raises(grid.InvalidRequest) as refused:
        NEEDS_VALUES[what](x)
    assert "reveal()" in str(refused.value) and "get()" not in str(refused.value)


def written(x: Any) -> None:
    x[0] = 1.0


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "x[mask]": (lambda x: x[x > 0], "torch.where"),
    "nonzero": (lambda x: x.nonzero(), "torch.where"),
    "unique": (lambda x: x.unique(), "arange"),
    "part += 1": (lambda x: x[1:].add_(1), "x = x [+] y"),
    "x += 1 with a view": (lambda x: (x[1:], x.add_(1)), "x = x [+] y"),
    "x *= 0.5 of whole numbers": (lambda x: x.long().mul_(0.5), "shape or dtype"),
    "local += shared": (lambda x: torch.ones(3).add_(x), "share"),
    "x[0] = 1": (written, "torch.where"),
    "sin": (lambda x: x.sin(), "secure-ops.md"),
    "round": (lambda x: x.round(), "floor"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_done_names_its_line_and_what_to_write(trio: Any, what: str) -> None:
    call, says = REFUSED[what]
    with pytest.raises(grid.InvalidRequest, match=rf"(?s){says}.*test_shared_operations\.py"):
        call(trio.share(torch.ones(3)))


def test_clients_and_nodes_load_no_compiler_before_they_need_it() -> None:
    program = "import sys, grid.client.committee, grid.node.share_lane; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
