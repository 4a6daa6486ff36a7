"""What of a node's datasets a federated job trains on, and whether its plans fit them and the node's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from grid.errors import InvalidRequest, NotFound
from grid.federated.local import Local
from grid.federated.loss_plans import LossPlans
from grid.node.dataset_views import DatasetView
from grid.plans.shapes import check_limits
from grid.settings import NodeSettings


def rows_of(sources: Mapping[str, DatasetView], datasets: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Features and targets of datasets, one after the other. Raises `NotFound`, `InvalidRequest` for shapes that differ."""
    views = []
    for name in datasets:
        if name not in sources:
            raise NotFound(f"there is no dataset {name[:100]!r} at this node")
        views.append(sources[name])
    if not views:
        raise InvalidRequest("the job names no dataset of this node")
    parts = [[view.part(part) for view in views] for part in ("features", "targets")]
    if any(len({(one.dtype, tuple(one.shape[1:])) for one in part}) > 1 for part in parts):
        raise InvalidRequest("the rows of the job's datasets at this node differ in shape or dtype")
    features, targets = (part[0] if len(part) == 1 else torch.cat(part) for part in parts)
    return features, targets


def least_of(sources: Mapping[str, DatasetView], datasets: Sequence[str]) -> int:
    """How many rows a batch of these datasets has at least: the largest of their owners' `min_rows`."""
    return max(sources[name].min_rows for name in datasets)


def parts_of(sources: Mapping[str, DatasetView], datasets: Sequence[str]) -> list[int]:
    """How many rows each of these datasets has."""
    return [len(sources[name].part("features")) for name in datasets]


def check_plans(settings: NodeSettings, plans: LossPlans, local: Local, features: Tensor, targets: Tensor) -> None:
    """Raise `PlanRejected` for plans that take more than a plan may at this node, `InvalidRequest` for rows that do not fit."""
    weights = [torch.empty(piece.shape, dtype=piece.dtype, device="meta") for piece in plans.layout.pieces]
    rows = min(local.batch_size, len(features))
    for plan in (plans.train, plans.evaluate):
        check_limits(
            plan,
            [*weights, features[:rows], targets[:rows]],
            max_elements=settings.max_op_elements,
            max_bytes=settings.max_process_bytes,
            max_flops=settings.max_plan_flops,
            max_steps=settings.max_plan_steps,
        )
