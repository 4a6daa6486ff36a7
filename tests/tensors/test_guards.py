"""Kernels stay inside their tensors' memory: operands lie between guards, and results must not depend on what the guards hold.

Each operation runs on the sample that works, and on samples with other shapes. Most of those are refused; those that are not
must neither read nor write a guard.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_samples import SAMPLES
from torch import Tensor

from grid.errors import GridError, InvalidRequest, LocalProtocolError
from grid.policy.labels import Labels
from grid.tensors.bounds import measure
from grid.tensors.bounds_shapes import _same
from grid.tensors.ops import OPS, bind, flatten, lookup

GUARD = 512
"""Elements before and after each operand."""

TRIES = 16
DRAWN = ("random", "draw", "dropout")
CHECKED = [name for name, op in OPS.items() if op.rule not in DRAWN]


class Guarded:
    """Operands in guarded memory. Two of the same seed differ in their guards alone."""

    def __init__(self, high: bool) -> None:
        self.labels = Labels(max_elements=1 << 20)
        self.high = high
        self.operands: list[Tensor] = []
        self.memory: list[tuple[Tensor, int]] = []

    def place(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.place(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        filling: Any = self.high if value.dtype is torch.bool else (2 if self.high else 1)
        around = torch.full([value.numel() + 2 * GUARD], filling, dtype=value.dtype)
        around[GUARD : GUARD + value.numel()] = value.reshape(-1)
        inside = around[GUARD : GUARD + value.numel()].view(value.shape)
        self.memory.append((around, value.numel()))
        self.operands.append(inside)
        return self.labels.enter(inside)

    def run(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> list[Tensor]:
        made = self.labels.run(OPS[name], self.place(args), {key: self.place(value) for key, value in kwargs.items()})
        for around, size in self.memory:
            untouched = torch.cat([around[:GUARD], around[GUARD + size :]])
            assert bool((untouched == untouched[0]).all()), f"{name} writes beside an operand"
        return [*made, *self.operands]


def reshaped(value: Any, draw: random.Random) -> Any:
    """A tensor like this one with one dimension changed, left out or added."""
    shape = list(value.shape)
    at = draw.randrange(len(shape)) if shape else 0
    change = draw.choice(["one", "more", "less", "drop", "lead", "empty", "none"])
    if change == "lead" or not shape:
        shape.insert(0, draw.choice([1, 2]))
    elif change == "drop":
        del shape[at]
    elif change == "none":
        shape = []
    else:
        shape[at] = {"one": 1, "more": shape[at] + 3, "less": max(shape[at] - 1, 0), "empty": 0}[change]
    if value.dtype.is_floating_point:
        return torch.rand(shape, dtype=value.dtype) * 0.8 + 0.1
    least, most = (int(value.min()), int(value.max())) if value.numel() else (0, 1)
    return torch.randint(least, most + 1, shape).to(value.dtype)


def variants(name: str, seed: int, tries: int = TRIES) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """The operation's sample, then samples with one or two operands of another shape."""
    draw = random.Random(f"{name} {seed}")
    torch.manual_seed(seed)
    yield SAMPLES[name]()
    for _ in range(tries):
        args, kwargs = SAMPLES[name]()
        places = [(args, at) for at, value in enumerate(args) if isinstance(value, Tensor)]
        places += [(kwargs, key) for key, value in kwargs.items() if isinstance(value, Tensor)]  # type: ignore[misc]
        for many in [value for value in args if isinstance(value, list)]:
            places += [(many, at) for at, item in enumerate(many) if isinstance(item, Tensor)]
        for holder, at in draw.sample(places, min(len(places), draw.choice([1, 1, 2]))):
            holder[at] = reshaped(holder[at], draw)
        yield args, kwargs


def check(name: str, seed: int, tries: int = TRIES) -> int:
    """How many variants ran; fails at the first that depends on a guard."""
    ran = 0
    for args, kwargs in variants(name, seed, tries):
        shown = [tuple(v.shape) if isinstance(v, Tensor) else v for v in (*args, *kwargs.values())]
        try:
            low, high = Guarded(False).run(name, args, kwargs), Guarded(True).run(name, args, kwargs)
        except GridError:
            continue
        ran += 1
        for one, other in zip(low, high, strict=True):
            assert torch.equal(torch.nan_to_num(one.double()), torch.nan_to_num(other.double())), f"{name} reads beside {shown}"
    return ran


@pytest.mark.parametrize("name", CHECKED)
def test_no_kernel_reads_or_writes_beside_its_operands(name: str) -> None:
    assert check(name, 0) >= 1


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.private_error])
def test_what_may_fail_by_values_announces_its_strides(name: str) -> None:
    """Else a stand-in for a failed result could be told from the result."""
    bound = bind(OPS[name], *SAMPLES[name]())
    assert [result.stride() for result in measure(bound)] == [result.stride() for result in flatten(bound.run())]


def test_a_gradient_that_is_larger_than_what_it_belongs_to_is_refused() -> None:
    grad, output = torch.ones(60, 8), torch.ones(1, 8)
    for name in ("_log_softmax_backward_data", "_softmax_backward_data"):
        with pytest.raises(InvalidRequest, match="grad_output has the shape"):
            measure(bind(lookup(f"aten.{name}.default"), [grad, output, 1, torch.float32], {}))


def test_a_check_of_an_argument_that_no_operation_of_its_kind_has_is_a_bug() -> None:
    bound = bind(lookup("aten._softmax_backward_data.default"), [torch.ones(2, 2), torch.ones(2, 2), 1, torch.float32], {})
    with pytest.raises(LocalProtocolError, match="'grad'"):
        _same(bound, "grad", (2, 2))
