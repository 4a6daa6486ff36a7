"""Descriptions of local training: what they say, how they travel, and what hostile ones come to."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import grid
from grid.errors import InvalidRequest
from grid.federated.local import Local, local_from_plain
from grid.federated.schedules import ConstantSchedule, CosineSchedule, Schedule, StepSchedule

FULL = Local(
    epochs=3,
    batch_size=7,
    optimizer=grid.AdamW(lr=0.5, betas=(0.5, 0.75)),
    schedule=CosineSchedule(length=9, floor=0.25, warmup=2, over="steps"),
    max_grad_norm=1.5,
    max_steps=11,
    buffers="local",
)


@pytest.mark.parametrize(
    "local",
    [
        Local(),
        FULL,
        Local(optimizer=grid.SGD(lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.1), schedule=StepSchedule(every=3)),
        Local(optimizer=grid.Adam(), schedule=ConstantSchedule(warmup=5)),
    ],
)
def test_it_travels(local: Local) -> None:
    assert local_from_plain(msgpack.unpackb(msgpack.packb(local.to_plain()))) == local
    assert len(msgpack.packb(local.to_plain())) < 1000


scalars = st.sampled_from([None, True, 0, -1, 1 << 70, 10**400, 0.5, -0.5, float("nan"), float("inf"), "local", "sgd", b"x", ""])
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.sampled_from(["kind", "lr", "over", 7, b"x"]), scalars)


@given(st.dictionaries(st.sampled_from([*Local.checks, "kind", "more"]), values, max_size=4) | values)
def test_hostile_descriptions_are_refused_or_sound(data: Any) -> None:
    if isinstance(data, dict):
        data = {**FULL.to_plain(), **data}
    try:
        found = local_from_plain(data)
    except InvalidRequest:
        return
    assert 1 <= found.epochs <= 1000 and 1 <= found.batch_size <= 1 << 20 and 0 <= found.lr(1, 0) <= 1e6


@pytest.mark.parametrize("name", ["lr", "betas", "eps", "weight_decay"])
@given(values)
def test_hostile_optimizers_are_refused_or_sound(name: str, value: Any) -> None:
    try:
        found = local_from_plain({"optimizer": {"kind": "adam", name: value}})
    except InvalidRequest:
        return
    assert isinstance(found.optimizer, grid.Adam) and 0 <= found.optimizer.lr <= 1e6


def test_what_makes_no_sense_is_refused_where_it_is_written() -> None:
    with pytest.raises(InvalidRequest, match=r"optimizer is grid\.SGD, grid\.Adam or grid\.AdamW, not SGD"):
        Local(optimizer=torch.optim.SGD([torch.zeros(1)], lr=0.1))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="lr must be at least 0 and at most 1e"):
        Local(optimizer=grid.SGD(lr=1e9))
    with pytest.raises(InvalidRequest, match="epochs must be a whole number from 1"):
        Local(epochs=0)
    with pytest.raises(InvalidRequest, match="buffers must be one of average, local"):
        Local(buffers="none")
    with pytest.raises(InvalidRequest, match="max_grad_norm must be above 0"):
        Local(max_grad_norm=0)
    with pytest.raises(InvalidRequest, match=r"schedule is grid\.ConstantSchedule"):
        Local(schedule="cosine")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="over must be one of rounds, steps"):
        StepSchedule(every=2, over="epochs")


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (ConstantSchedule(), [1, 1, 1, 1, 1]),
        (ConstantSchedule(warmup=3), [0.25, 0.5, 0.75, 1, 1]),
        (CosineSchedule(length=4), [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0]),
        (CosineSchedule(length=2, floor=0.5, warmup=1), [0.5, 1, 0.75, 0.5, 0.5]),
        (StepSchedule(every=2, gamma=0.5), [1, 1, 0.5, 0.5, 0.25]),
        (StepSchedule(every=1, gamma=0.5, warmup=1), [0.5, 1, 0.5, 0.25]),
    ],
)
def test_schedules(schedule: Schedule, factors: list[float]) -> None:
    assert [schedule.factor(round, 7) for round in range(1, len(factors) + 1)] == pytest.approx(factors)
    over_steps = schedule.to_plain() | {"over": "steps"}
    local = local_from_plain({"optimizer": {"kind": "sgd", "lr": 2.0}, "schedule": over_steps})
    assert [local.lr(9, step) for step in range(len(factors))] == pytest.approx([2 * factor for factor in factors])
