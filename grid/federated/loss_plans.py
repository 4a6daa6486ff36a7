"""What a pair of loss plans must look like, wherever they came from, and what a trainer reads off them.

Nothing here traces: a node's processes load this and not the tracer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from grid.errors import InvalidRequest
from grid.federated.layouts import Layout
from grid.federated.metrics import LOSS, names_from
from grid.plans.ir import Plan
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


def least_rows(train: Plan) -> int:
    """How many rows a batch needs: 2 where batch norm would otherwise see one value a channel, else 1."""
    shapes = [tuple([size if isinstance(size, int) else 1 for size in spec.sizes]) for spec in train.inputs]
    seen: dict[int, Tensor] = {}
    dry_run(train, shapes, seen)
    for step in train.steps:
        if step.op.startswith("aten._native_batch_norm_legit") and "no_training" not in step.op:
            source = next(step.refs())
            shape = tuple(seen[source].shape) if source in seen else shapes[source] if source < len(shapes) else ()
            if len(shape) > 1 and math.prod(shape) <= shape[1]:
                return 2
    return 1
