"""What a pair of loss plans must look like, wherever they came from, and what a trainer reads off them.

Nothing here traces: a node's processes load this and not the tracer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grid.errors import InvalidRequest
from grid.federated.layouts import Layout
from grid.federated.metrics import LOSS, names_from
from grid.plans.ir import Plan
from grid.plans.program import Range
from grid.plans.shapes import dry_run


@dataclass(frozen=True, slots=True)
class LossPlans:
    """What a job trains with, and where the weights lie in its vector.

    Raises `InvalidRequest` for plans that are no loss plans, or do not belong together.
    """

    train: Plan
    evaluate: Plan
    layout: Layout

    @classmethod
    def of(cls, train: Plan, evaluate: Plan) -> LossPlans:
        """The pair, checked."""
        layout = Layout.of(train)
        for plan in (train, evaluate):
            _check_batches(plan)
        if Layout.of(evaluate) != layout or _rows(train) != _rows(evaluate):
            raise InvalidRequest("the plans for training and for evaluation do not take the same arguments")
        gives = train.gives.children
        if train.gives.kind != "tuple" or len(gives) != 2 or gives[0].kind != "leaf" or gives[1] != train.takes.children[1]:
            raise InvalidRequest(f"the plan {train.name} does not give losses and the buffers after the batch")
        metric_names(evaluate)
        return cls(train, evaluate, layout)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metric sums, in order."""
        return metric_names(self.evaluate)


    def check_batch(self, features: Tensor, targets: Tensor) -> None:
        """Raise `InvalidRequest` where the plans do not take such a batch, or give something else than they must for it."""
        leaves = [torch.empty(piece.shape, dtype=piece.dtype, device="meta") for piece in self.layout.pieces]
        losses, *buffers = self.train.dry_runs.of([*leaves, features, targets]).outputs
        if not losses.dtype.is_floating_point or tuple(losses.shape) not in ((), (len(features),)):
            raise InvalidRequest(f"the plan {self.train.name} gives neither one loss nor one for each row")
        for piece, after in zip(self.layout.buffers, buffers, strict=True):
            if (tuple(after.shape), after.dtype) != (piece.shape, piece.dtype):
                raise InvalidRequest(f"the plan {self.train.name} changes the shape or dtype of the buffer {piece.name[:100]!r}")
        if any(tuple(one.shape) for one in self.evaluate.dry_runs.of([*leaves, features, targets]).outputs):
            raise InvalidRequest(f"the plan {self.evaluate.name} gives metrics that are not single numbers")


def metric_names(evaluate: Plan) -> tuple[str, ...]:
    """The names of what an evaluation plan gives, in order. Raises `InvalidRequest` for a plan that gives something else."""
    gives = evaluate.gives
    if gives.kind != "dict" or not gives.keys or gives.keys[0] != LOSS or any(one.kind != "leaf" for one in gives.children):
        raise InvalidRequest(f"the plan {evaluate.name} is no evaluation plan, which gives sums of metrics, the loss first")
    return names_from(list(gives.keys))


def _check_batches(plan: Plan) -> None:
    """The first dimensions of features and targets are free, and where both are used the same."""
    if not all(spec.sizes and isinstance(spec.sizes[0], str) for spec in plan.inputs[-2:]):
        raise InvalidRequest(
            f"the plan {plan.name} does not take batches of any size: the model or the loss fixes it (x.view(8, -1) in place of"
            " x.view(len(x), -1), say)"
        )


def _rows(plan: Plan) -> list[tuple[str, tuple[int | str, ...]]]:
    """What one row of features and of targets must be."""
    return [(spec.dtype, spec.sizes[1:]) for spec in plan.inputs[-2:]]


def batch_range(plan: Plan) -> Range:
    """How many rows a batch may have: as the plan says, and 2 at least where batch norm would see one value a channel else."""
    spans = [plan.ranges[int(str(spec.sizes[0])[1:])] for spec in plan.inputs[-2:]]
    most = [span.most for span in spans if span.most is not None]
    least = max(1, *[span.least for span in spans])
    if least == 1 and _norms_one_value(plan):
        least = 2
    return Range(least, min(most) if most else None)


def _norms_one_value(plan: Plan) -> bool:
    """Whether batch norm in training would see one value a channel in a batch of one row."""
    shapes = [tuple([size if isinstance(size, int) else 1 for size in spec.sizes]) for spec in plan.inputs]
    seen: dict[int, Tensor] = {}
    dry_run(plan, shapes, seen)
    for step in plan.steps:
        if step.op.startswith("aten._native_batch_norm_legit") and "no_training" not in step.op:
            source = next(step.refs())
            shape = tuple(seen[source].shape) if source in seen else shapes[source] if source < len(shapes) else ()
            if len(shape) > 1 and math.prod(shape) <= shape[1]:
                return True
    return False
