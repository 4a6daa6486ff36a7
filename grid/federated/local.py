"""What a node does with its rows in one round, as the client describes it. The code that does it is the node's own.

`Local` is checked where it is made and again where it arrives: it holds numbers and names from tables, and nothing that runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from grid.errors import InvalidRequest
from grid.federated.plain import Check, Described, choice, fields_of, flag, number, optional, pair, whole
from grid.federated.schedules import Schedule, schedule_from_plain
from grid.plans.optimizers import SGD, Adam, AdamW, Optimizer

MAX_EPOCHS = 1000
MAX_BATCH = 1 << 20
MAX_STEPS = 1_000_000
"""Steps of one round at one node, asked for or coming of epochs and rows."""

LARGEST = 1e6
"""Of step sizes and the like."""

AVERAGE, LOCAL = "average", "local"

_RATE = number(0, LARGEST)
_SHARE = number(0, 1)
_ADAM: Mapping[str, Check] = {"lr": _RATE, "betas": pair(_SHARE), "eps": _RATE, "weight_decay": _RATE}
OPTIMIZERS: Mapping[str, tuple[type[Optimizer], Mapping[str, Check]]] = {
    "sgd": (SGD, {"lr": _RATE, "momentum": _RATE, "weight_decay": _RATE, "nesterov": flag}),
    "adam": (Adam, _ADAM),
    "adamw": (AdamW, _ADAM),
}


def _optimizer(name: str, value: Any) -> Optimizer:
    for cls, checks in OPTIMIZERS.values():
        if type(value) is cls:
            for each, check in checks.items():
                check(each, getattr(value, each))
            return value
    raise InvalidRequest(f"{name} is grid.SGD, grid.Adam or grid.AdamW, not {type(value).__name__}")


def _schedule(name: str, value: Any) -> Schedule | None:
    if value is not None and not isinstance(value, Schedule):
        raise InvalidRequest(
            f"{name} is grid.ConstantSchedule, grid.CosineSchedule, grid.StepSchedule or None, not {type(value).__name__}"
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Local(Described):
    """Local training of one round: `epochs` times over the node's rows, in shuffled batches of `batch_size`.

    `optimizer` starts afresh in each round; `schedule` changes its step size. `max_grad_norm` scales each batch's gradient
    down to that length, as `torch.nn.utils.clip_grad_norm_`. `max_steps` ends a round early. `buffers`: whether statistics
    such as those of batch norm are averaged over nodes like weights ("average") or stay at each node ("local").
    """

    kind: ClassVar[str] = "local"
    checks: ClassVar[Mapping[str, Check]] = {
        "epochs": whole(1, MAX_EPOCHS),
        "batch_size": whole(1, MAX_BATCH),
        "optimizer": _optimizer,
        "schedule": _schedule,
        "max_grad_norm": optional(number(0, LARGEST, above=True)),
        "max_steps": optional(whole(1, MAX_STEPS)),
        "buffers": choice(AVERAGE, LOCAL),
    }

    epochs: int = 1
    batch_size: int = 32
    optimizer: Optimizer = field(default_factory=lambda: SGD(lr=0.1))
    schedule: Schedule | None = None
    max_grad_norm: float | None = None
    max_steps: int | None = None
    buffers: str = AVERAGE

    def to_plain(self) -> dict[str, Any]:
        """The description in dicts, lists, numbers and texts."""
        plain = Described.to_plain(self)
        plain["schedule"] = None if self.schedule is None else self.schedule.to_plain()
        plain["optimizer"] = _optimizer_to_plain(self.optimizer)
        return plain

    def lr(self, round: int, step: int) -> float:
        """The step size of a step, counted from 0, of a round, counted from 1."""
        own: float = self.optimizer.lr  # type: ignore[attr-defined]
        return own if self.schedule is None else own * self.schedule.factor(round, step)


def local_from_plain(data: Any) -> Local:
    """What `Local.to_plain` gave, or something hostile. Raises `InvalidRequest` and nothing else."""
    values = fields_of(data, Local.checks, "the local training")
    if "optimizer" in values:
        values["optimizer"] = _optimizer_from_plain(values["optimizer"])
    if "schedule" in values:
        values["schedule"] = schedule_from_plain(values["schedule"])
    return Local(**values)


def _optimizer_to_plain(optimizer: Optimizer) -> dict[str, Any]:
    kind = next(kind for kind, (cls, _) in OPTIMIZERS.items() if type(optimizer) is cls)
    values = dataclasses.asdict(optimizer)  # type: ignore[call-overload]
    return {"kind": kind, **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}}


def _optimizer_from_plain(data: Any) -> Optimizer:
    kind = data.get("kind") if type(data) is dict else None
    if type(kind) is not str or kind not in OPTIMIZERS:
        raise InvalidRequest(f"the optimizer is none of the kinds known here: {', '.join(OPTIMIZERS)}")
    cls, checks = OPTIMIZERS[kind]
    values = fields_of(data, checks, f"the optimizer {kind!r}")
    return cls(**{name: checks[name](name, value) for name, value in values.items()})
