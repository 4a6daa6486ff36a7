"""The claim of the label system, checked on values (docs/labels.md).

Permuting a dataset's rows inside their cells permutes a tensor along its Order and changes nothing else; CONST is constant;
replacing a row changes nothing where it is not involved, and its own slice alone where nothing is to blame.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from programs import SHAPES, N, rows
from torch import Tensor

from grid.tensors.rows import CONST, Cells, Form, Order, Type

TOLERANCE = 1e-6

Run = Callable[[dict[str, list[Tensor]]], Sequence[Tensor] | None]
"""The values that the same program makes of other rows; None where it cannot be run on them."""


def factored(value: Tensor, form: Form) -> tuple[Tensor, list[object]]:
    """The value with one dimension for each factor, and their tags."""
    factors = [factor for dim in form.dims for factor in dim]
    return value.reshape([length for length, _ in factors]), [tag for _, tag in factors]


def close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    scale = a.abs().nan_to_num(0, 0, 0).max() if a.numel() else 0
    return bool(torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * float(scale) + 1e-9, equal_nan=True))


def is_constant(value: Tensor, form: Form) -> bool:
    spread, tags = factored(value, form)
    return all(close(spread, spread.narrow(axis, 0, 1).expand_as(spread)) for axis, tag in enumerate(tags) if tag is CONST)


def permuted(value: Tensor, form: Form, dataset: str, g: np.ndarray) -> Tensor | None:
    """What the value has to be once the dataset's row i is what row g[i] was. None: the cells let a row leave its Order."""
    spread, tags = factored(value, form)
    for axis, tag in enumerate(tags):
        if isinstance(tag, Order) and tag.dataset == dataset:
            place = {int(row): at for at, row in enumerate(tag.index)}
            if not {int(g[row]) for row in tag.index} <= place.keys():
                return None
            spread = spread.index_select(axis, torch.tensor([place[int(g[row])] for row in tag.index]))
    return spread.reshape(value.shape)


def without_row(value: Tensor, form: Form, dataset: str, row: int) -> Tensor:
    """The value without the slice of one row."""
    spread, tags = factored(value, form)
    for axis, tag in enumerate(tags):
        if isinstance(tag, Order) and tag.dataset == dataset and row in tag.index:
            spread = spread.index_select(axis, torch.tensor(np.flatnonzero(tag.index != row)))
    return spread


def inside_cells(cells: Cells, chance: random.Random) -> np.ndarray:
    """A random permutation of rows inside their cells; rows that are not involved go anywhere among themselves."""
    g = np.arange(len(cells.ids))
    for cell in set(cells.ids.tolist()):
        members = np.flatnonzero(cells.ids == cell)
        g[members] = chance.sample(members.tolist(), len(members))
    return g


# ---------------------------------------------------------------- all values of one program


def violations(every: Sequence[tuple[Tensor, Type]], run: Run, seed: int, checks: int = 4) -> Iterator[str]:
    """What breaks the claim for values made of `rows(seed)`. Several of them are tried."""
    chance = random.Random(seed)
    for at, (value, kind) in enumerate(every):
        if kind.mixed is None and value.numel() and not is_constant(value, kind.form):
            yield f"value {at} is not constant: {kind.form}"
    for _ in range(checks):
        dataset = chance.choice(list(SHAPES))
        row = chance.randrange(N)
        yield from _replaced(run, seed, every, dataset, row)
        involved = [kind.cells[dataset] for _, kind in every if kind.mixed is None and dataset in kind.cells]
        if involved:
            yield from _permuted(run, seed, every, dataset, inside_cells(chance.choice(involved), chance))


def _permuted(run: Run, seed: int, every: Sequence[tuple[Tensor, Type]], dataset: str, g: np.ndarray) -> Iterator[str]:
    data = rows(seed)
    data[dataset] = [tensor[torch.tensor(g)] for tensor in data[dataset]]
    other = run(data)
    if other is None:
        return
    for at, (value, kind) in enumerate(every):
        cells = kind.cells.get(dataset)
        if kind.mixed is not None or not value.numel() or (cells is not None and (cells.ids[g] != cells.ids).any()):
            continue
        expected = permuted(value, kind.form, dataset, g)
        if expected is None or not close(other[at], expected):
            yield f"value {at} is not permuted with its rows: {kind.form}"


def _replaced(run: Run, seed: int, every: Sequence[tuple[Tensor, Type]], dataset: str, row: int) -> Iterator[str]:
    data, fresh = rows(seed), rows(seed + 77)
    for tensor, new in zip(data[dataset], fresh[dataset], strict=True):
        tensor[row] = new[row]
    other = run(data)
    if other is None:
        return
    for at, (value, kind) in enumerate(every):
        if kind.mixed is not None or not value.numel():
            continue
        now, cells = other[at], kind.cells.get(dataset)
        if cells is None or not cells.ids[row]:
            if not close(now, value):
                yield f"value {at} changed with a row that is not involved: {kind.form}"
        elif dataset not in kind.form.blame:
            if not close(without_row(now, kind.form, dataset, row), without_row(value, kind.form, dataset, row)):
                yield f"value {at} changed elsewhere than in its row, and nothing is to blame: {kind.form}"
