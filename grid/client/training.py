"""What `g.train` asks for, worked out and checked before anything is sent: datasets that go together, owners' rules as far as
they are public, a module that traces, and the signed job."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from grid.client.datasets import Dataset
from grid.client.nodes import Node
from grid.clock import Clock
from grid.crypto.identity import LocalIdentity
from grid.errors import InvalidRequest
from grid.federated.custom import CustomStrategy
from grid.federated.layouts import Layout, Piece
from grid.federated.local import Local
from grid.federated.losses import LossPlans, RowSpec, trace_losses
from grid.federated.secagg.graph import MAX_COHORT, majority
from grid.federated.spec import BY_EXAMPLES, CHECKS, MAX_AGE_S, MAX_METRICS, JobSpec, Stop
from grid.federated.strategies import FedAvg
from grid.federated.strategy import Strategy
from grid.federated.with_buffers import with_buffers
from grid.ids import JobId, PeerId, random_id
from grid.policy.rules import APPROVE, DENY, OPEN, SINGLE, Policy
from grid.tensors.buffers import torch_dtype
from grid.wire.jobs import StartJob
from grid.wire.messages import TensorFrame

DEADLINE_S = 600.0
LEAST_LIFE_S = 86400.0

HIGHER_IS_BETTER = ("accuracy",)


BOUNDED = {
    **{name: name for name in ("rounds", "secure", "fraction", "weighting", "evaluate_every", "name")},
    "deadline": "deadline_s",
}
"""Argument of `g.train` -> the field of the job whose bounds it has; the others have checks of their own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A job as it is asked for: the message, and what its client keeps to read the result."""

    spec: JobSpec
    message: StartJob
    model: nn.Module
    layout: Layout


class Options(TypedDict, total=False):
    """What `g.train` takes beside model, loss and datasets; `api.Client.train` says what each is."""

    rounds: int
    local: Local | None
    strategy: Strategy | None
    secure: bool
    privacy: Any
    min_nodes: int | None
    fraction: float
    deadline: float
    seed: int | None
    metrics: Sequence[str] | None
    stop: Stop | None
    evaluate_every: int
    weighting: str
    name: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The arguments of `g.train`, as users give them."""

    model: nn.Module
    loss: Callable[..., torch.Tensor]
    datasets: Any
    rounds: int = 10
    local: Local | None = None
    strategy: Strategy | None = None
    secure: bool = True
    privacy: Any = None
    min_nodes: int | None = None
    fraction: float = 1.0
    deadline: float = DEADLINE_S
    seed: int | None = None
    metrics: Sequence[str] | None = None
    stop: Stop | None = None
    evaluate_every: int = 1
    weighting: str = BY_EXAMPLES
    name: str = ""


def order(wish: Wish, *, me: LocalIdentity, clock: Clock, dev: bool) -> Order:
    """The signed job. Raises `InvalidRequest`, which names the argument or dataset, `PlanRejected` for what does not trace."""
    _check_privacy(wish.privacy)
    for argument, field in BOUNDED.items():
        CHECKS[field](argument, getattr(wish, argument))
    found = chosen(wish.datasets)
    local, strategy = wish.local or Local(), wish.strategy or FedAvg()
    if not isinstance(local, Local) or not isinstance(strategy, Strategy):
        raise InvalidRequest("local is a grid.Local(...), strategy a grid.FedAvg() or another strategy")
    _check_rules(found, wish, local, strategy)
    nodes = list(dict.fromkeys(PeerId(one.node.id) for one in found))
    least = _least_nodes(wish, found, len(nodes), dev)
    plans = _traced(wish.model, wish.loss, found[0], wish.metrics)
    _check_approvals(found, plans)
    own = strategy.plan if isinstance(strategy, CustomStrategy) else b""
    now = clock.wall()
    spec = JobSpec(
        job=JobId(random_id()),
        name=wish.name or type(wish.model).__name__,
        client=me.id,
        train=plans.train.id,
        evaluate=plans.evaluate.id,
        datasets=tuple((PeerId(one.node.id), one.name) for one in found),
        rounds=wish.rounds,
        local=local.to_plain(),
        strategy=with_buffers(strategy, plans.layout.size - plans.layout.trained).to_plain(),
        strategy_plan=hashlib.sha256(own).hexdigest() if own else "",
        secure=wish.secure,
        min_nodes=least,
        fraction=wish.fraction,
        deadline_s=wish.deadline,
        weighting=wish.weighting,
        seed=b"" if wish.seed is None else _seed(wish.seed),
        metrics=plans.metrics,
        stop=_stop(wish.stop, plans.metrics),
        evaluate_every=wish.evaluate_every,
        created=now,
        expires=now + min(MAX_AGE_S, max(LEAST_LIFE_S, 2 * wish.deadline * max(1, wish.rounds))),
    )
    vector = plans.layout.flatten(_tensors(wish.model))
    message = StartJob(
        envelope=spec.sign(me),
        card=me.card_for(clock),
        train=plans.train.encoding,
        evaluate=plans.evaluate.encoding,
        strategy=own,
        weights=TensorFrame(dtype="f8" if vector.itemsize == 8 else "f4", shape=vector.shape, data=vector.view(np.uint8).data),
    )
    return Order(spec, message, copy.deepcopy(wish.model), plans.layout)


def layout_of(model: nn.Module) -> Layout:
    """The layout of a module's vector, as tracing it would give: trainable parameters, then floating-point buffers."""
    start, parts = 0, []
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    buffers = {name: value for name, value in model.named_buffers() if value.is_floating_point()}
    for tensors in (trained, buffers):
        pieces = []
        for name, value in tensors.items():
            pieces.append(Piece(name, value.dtype, tuple(value.shape), start))
            start += value.numel()
        parts.append(tuple(pieces))
    return Layout(*parts)


def usual_loss(outputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """What `g.evaluate` takes as loss where it is told none: cross entropy for classes, squares for numbers."""
    if targets.is_floating_point():
        return functional.mse_loss(outputs.reshape(targets.shape), targets, reduction=reduction)
    if outputs.dim() == 1 or outputs.shape[1:] == (1,):
        values = outputs.reshape(targets.shape)
        return functional.binary_cross_entropy_with_logits(values, targets.to(values.dtype), reduction=reduction)
    return functional.cross_entropy(outputs, targets, reduction=reduction)


# ---------------------------------------------------------------- checks


def chosen(datasets: Any) -> list[Dataset]:
    """The datasets of a call, which go together. Raises `InvalidRequest` that names those that do not."""
    found = [datasets] if isinstance(datasets, Dataset) else list(datasets) if isinstance(datasets, Sequence) else []
    if not found or not all(isinstance(one, Dataset) for one in found):
        raise InvalidRequest('datasets is what g.search("#tag") gives, a list of datasets, and not an empty one')
    for one in found:
        where = f"the dataset {one.name!r} at {one.node.name}"
        if not isinstance(one.node, Node):
            raise InvalidRequest(f"{where} is not of this client")
        if one.blocks is not None:
            raise InvalidRequest(f"{where} is a part that split gave, and jobs train on whole datasets: ask owners for a split")
        if not one.card.target_dtype:
            raise InvalidRequest(f"{where} has no target to learn from")
        if _rows(one) != _rows(found[0]):
            raise InvalidRequest(
                f"{where} has rows of {_described(one)}, and {found[0].name!r} at {found[0].node.name} of {_described(found[0])}:"
                " a job's datasets are alike. Search for tags that those alone have"
            )
    return found


def _rows(one: Dataset) -> tuple[Any, ...]:
    card = one.card
    return card.feature_shape, card.feature_dtype, card.target_shape, card.target_dtype, card.classes


def _described(one: Dataset) -> str:
    card = one.card
    targets = f"{card.target_dtype}{list(card.target_shape)}" + (f" of {card.classes} classes" if card.classes else "")
    return f"{card.feature_dtype}{list(card.feature_shape)} features and {targets} targets"


def _check_privacy(privacy: Any) -> None:
    if privacy is not None:
        raise InvalidRequest(
            "privacy= is not part of this version: differential privacy comes with a later one. Train with privacy=None; updates"
            " leave nodes in sums under masks alone, which hides who contributed what and does not bound what the model tells"
        )


def _check_rules(found: Sequence[Dataset], wish: Wish, local: Local, strategy: Strategy) -> None:
    """What the owners' published rules say; the nodes check it again, before each round."""
    secure = wish.secure
    if secure and getattr(strategy, "needs_single", False):
        raise InvalidRequest(
            f"{type(strategy).__name__} looks at each node's update by itself, which secure aggregation hides: say secure=False,"
            ' where every owner has updates = "single" in [policy], or take FedAvg'
        )
    if secure:
        _check_organisations(found)
    for one in found:
        where = f"the dataset {one.name!r} at {one.node.name}"
        if one.policy.release == DENY:
            raise InvalidRequest(
                f'{where} has release = "deny": nothing that is learned from it leaves. Leave it out, or ask its owner for'
                ' release = "aggregate"'
            )
        if wish.rounds and local.batch_size < one.policy.min_rows:
            raise InvalidRequest(
                f"a batch of this job has {local.batch_size} rows, and {where} has min_rows = {one.policy.min_rows}: say"
                f" local=grid.Local(batch_size={one.policy.min_rows}) or more"
            )
        if not secure and one.policy.updates != SINGLE:
            raise InvalidRequest(
                f'{where} has updates = "{one.policy.updates}": its updates leave in sums over nodes alone. Say secure=True, or'
                ' ask its owner for updates = "single" in [policy]'
            )


def _check_organisations(found: Sequence[Dataset]) -> None:
    """No two nodes of a secure sum belong to one organisation, which would know two of its inputs, unless all owners allow it."""
    seen: dict[str, str] = {}
    strict = next((one for one in found if not one.policy.same_organisation), None)
    if strict is None:
        return
    for node in dict.fromkeys(one.node for one in found if isinstance(one.node, Node)):
        if node.organisation and node.organisation in seen:
            raise InvalidRequest(
                f"{seen[node.organisation]} and {node.name} both belong to {node.organisation!r}, and a secure sum takes one node"
                " of each organisation: leave one out, or have every owner write same_organisation = true in [policy], as that"
                f" of {strict.name!r} at {strict.node.name} has not"
            )
        seen[node.organisation] = node.name


def _check_approvals(found: Sequence[Dataset], plans: LossPlans) -> None:
    wanted = (plans.train.id, plans.evaluate.id)
    for one in found:
        if one.policy.release == APPROVE and not set(wanted) <= set(one.policy.allow):
            raise InvalidRequest(
                f'the dataset {one.name!r} at {one.node.name} has release = "approve": its owner has to read both plans of this'
                f' job and list them first, allow = ["{wanted[0]}", "{wanted[1]}"] in [policy]. plans = grid.trace_losses(model,'
                " loss, ds.features, ds.targets) makes them; send what plans.train.save(file) and plans.evaluate.save(file) write"
            )


def _traced(model: nn.Module, loss: Callable[..., torch.Tensor], one: Dataset, metrics: Sequence[str] | None) -> LossPlans:
    card = one.card
    features = RowSpec(shape=card.feature_shape, dtype=card.feature_dtype)
    targets = RowSpec(shape=card.target_shape, dtype=card.target_dtype)
    plans = trace_losses(model, loss, features, targets, metrics)
    _try_out(model, loss, features, targets)
    if len(plans.metrics) > MAX_METRICS:
        raise InvalidRequest(f"a job has at most {MAX_METRICS} metrics")
    return plans


def _try_out(model: nn.Module, loss: Callable[..., torch.Tensor], features: RowSpec, targets: RowSpec) -> None:
    """Run on two rows of zeros: tracing looks at shapes, and lets types pass that torch does not multiply."""
    if any(value.device.type != "cpu" for value in model.parameters()):
        return
    x, y = (torch.zeros((2, *one.shape), dtype=torch_dtype(one.dtype)) for one in (features, targets))
    try:
        with torch.no_grad():
            loss(copy.deepcopy(model).eval()(x), y)
    except Exception as error:
        raise InvalidRequest(
            f"the model or the loss fails on features of {features.dtype} and targets of {targets.dtype}, all zeros: {error}"
        ) from error


def _least_nodes(wish: Wish, found: Sequence[Dataset], count: int, dev: bool) -> int:
    """How many nodes a round needs, of the job's `count`. Without a wish of the client's more than two thirds of those that are
    drawn for one: no third of them can bring about a sum that shows somebody's part."""
    if wish.min_nodes is not None and (type(wish.min_nodes) is not int or not 1 <= wish.min_nodes <= count):
        raise InvalidRequest(f"min_nodes is a whole number from 1 to {count}, the nodes that these datasets are at")
    if not wish.secure:
        return wish.min_nodes or 1
    least = _least_cohort(wish, found, count, dev)
    needed = max(least, wish.min_nodes or 0)
    if needed > MAX_COHORT:
        raise InvalidRequest(
            f"a round with secure aggregation draws at most {MAX_COHORT} nodes, and this one would need {needed}: say"
            f" min_nodes={MAX_COHORT} or less, and leave out datasets whose owners ask for more"
        )
    drawn = min(MAX_COHORT, max(least, math.ceil(wish.fraction * count)))
    return wish.min_nodes or max(least, majority(drawn))


def _least_cohort(wish: Wish, found: Sequence[Dataset], count: int, dev: bool) -> int:
    """What nodes ask of a secure sum. Raises `InvalidRequest` for a job that can't have it; a node has the last word."""
    strict, least = max(found, key=lambda one: one.policy.min_cohort), Policy().cohort(dev=dev)
    needs = f"secure aggregation needs {least}"
    if strict.policy.min_cohort > least:
        least = strict.policy.min_cohort
        needs = f"the dataset {strict.name!r} at {strict.node.name} needs {least} in a sum (min_cohort)"
    if count < least:
        raise InvalidRequest(
            f"these datasets are at {count} node{'s' if count != 1 else ''}, and {needs}: fewer would know each other's part of"
            " the sum. Search for more datasets"
        )
    hidden = {one.node.id for one in found if one.policy.release != OPEN}
    if 0 < len(hidden) < least:
        raise InvalidRequest(
            f"of these nodes {len(hidden)} hold data that is not open to all, and {needs}, all of that kind: the part of the"
            " others could be taken off the sum. Search for more datasets, or train on the open ones alone"
        )
    if wish.min_nodes is not None and wish.min_nodes < least:
        raise InvalidRequest(f"min_nodes is {wish.min_nodes}, and {needs}")
    return least


def _seed(seed: int) -> bytes:
    if type(seed) is not int or not 0 <= seed < 1 << 256:
        raise InvalidRequest("seed must be a whole number from 0 to 2**256 - 1")
    return seed.to_bytes(32, "little")


def _stop(stop: Stop | None, metrics: Sequence[str]) -> Stop:
    if stop is None:
        metric = metrics[0]
        return Stop(metric=metric, higher=metric in HIGHER_IS_BETTER)
    if not isinstance(stop, Stop) or stop.metric not in metrics:
        raise InvalidRequest(f"stop is a grid.Stop(metric=...) of one of the job's metrics: {', '.join(metrics)}")
    CHECKS["stop"]("stop", dataclasses.asdict(stop))
    return stop


def _tensors(model: nn.Module) -> Mapping[str, torch.Tensor]:
    """Parameters and buffers by name; also buffers that a module does not save."""
    return {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}
