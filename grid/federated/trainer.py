"""Local training at a node: the loop that a client cannot change. It runs a loss plan, takes the gradients, steps and clips.

The plan says what the losses of a batch are, and nothing else. Gradients are torch's, of the plan's generated code. Everything
random comes of `Draws`. What goes wrong inside is told by the plan's step alone: what torch says may hold values of rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grid.errors import ExecutionFailed, GridError, InvalidRequest, QuotaExceeded
from grid.federated.draws import Draws
from grid.federated.layouts import Vector
from grid.federated.local import LOCAL, MAX_STEPS, Local
from grid.federated.loss_plans import LossPlans, batch_range
from grid.plans.interpret import Compiled, constants_of
from grid.plans.ir import Plan
from grid.plans.program import Range
from grid.tensors.exhausted import is_exhausted
from grid.tensors.ops import Op

EVALUATED_ROWS = 1024
"""Rows of one call when a model is evaluated, whatever its plan says: two plans that are cut at different rows would tell those
in between."""

Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """One node's round. `metrics` are sums over its rows for the weights that came in, by the names of the evaluation plan."""

    update: Vector
    examples: int
    metrics: Sums


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """Sums of metrics over a node's rows."""

    examples: int
    metrics: Sums


class Trainer:
    """Trains on one node's rows, round after round. `between` is called before each batch, and may raise.

    No batch, and no piece of an evaluation, has fewer than `least` rows: a loss may count them, and make the smallest batch the
    only one that tells. `parts` are the rows of each dataset, where there are several.

    Raises `InvalidRequest` for plans, rows and options that do not fit together.
    """

    def __init__(
        self,
        *,
        train: Plan,
        evaluate: Plan,
        local: Local,
        features: Tensor,
        targets: Tensor,
        least: int = 1,
        parts: Sequence[int] = (),
        device: torch.device | str = "cpu",
        between: Callable[[], None] = lambda: None,
    ) -> None:
        plans = LossPlans.of(train, evaluate)
        self.layout = plans.layout
        self.metrics = plans.metrics
        self._local = local
        self._between = between
        self._device = torch.device(device)
        self.rows = len(features)
        self._batch = min(local.batch_size, self.rows)
        self._cuts = _raised(batch_range(train), least), _raised(batch_range(evaluate), least)
        self._pieces = _pieces(parts or (self.rows,), max(EVALUATED_ROWS, least), self._cuts[1].least)
        self._check(plans, features, targets)
        self._features, self._targets = features.to(self._device), targets.to(self._device)
        self._generator: torch.Generator | None = None
        self._train, self._evaluate = self._compiled(train), self._compiled(evaluate)
        self._kept: list[Tensor] | None = None
        """Buffers that stay at this node."""

    def _check(self, plans: LossPlans, features: Tensor, targets: Tensor) -> None:
        if not self.rows or len(targets) != self.rows:
            raise InvalidRequest("there are no rows to train on, or not as many targets as rows")
        train, evaluate = self._cuts
        if not _takes(train, self._batch):
            bound = f"at least {train.least}" + ("" if train.most is None else f" and at most {train.most - train.least + 1}")
            raise InvalidRequest(
                f"the model takes batches of {bound} rows here, not of {self._batch}: batch norm needs two, say, an owner"
                " min_rows; and a rest of fewer joins the batch before"
            )
        sizes = [_length(piece) for piece in self._pieces]
        if not (min(sizes) in evaluate and max(sizes) in evaluate):
            bound = f"at least {evaluate.least}" + ("" if evaluate.most is None else f" and at most {evaluate.most}")
            pieces = " to ".join(map(str, sorted({min(sizes), max(sizes)})))
            raise InvalidRequest(
                f"the model is evaluated on {bound} rows at once, and this node cuts its {self.rows} rows by itself, in pieces of"
                f" {pieces}: write model and loss so that they take any number of rows (`if len(x) <= 40`, say, bounds it)"
            )
        steps = self._local.epochs * -(-self.rows // self._batch)
        if min(steps, self._local.max_steps or steps) > MAX_STEPS:
            raise InvalidRequest(f"a round would take {steps} steps, more than {MAX_STEPS}; use larger batches or max_steps")
        plans.check_batch(features[: self._batch], targets[: self._batch])

    def _compiled(self, plan: Plan) -> Compiled:
        constants = [constant.to(self._device) for constant in constants_of(plan)]
        return Compiled(plan, constants, prepare=self._prepare)

    def _prepare(self, op: Op, call: Callable[..., Any]) -> Callable[..., Any]:
        """Dropout from this round's generator, and what is made from nothing on this trainer's device."""
        if op.name == "aten.native_dropout.default":
            return self._dropout
        if self._device.type != "cpu" and any(one.name == "device" for one in op.call._schema.arguments):
            return functools.partial(call, device=self._device)
        return call

    def _dropout(self, input: Tensor, p: float, train: bool | None = True) -> tuple[Tensor, Tensor]:
        if train is False or p == 0:
            return input.clone(), torch.ones_like(input, dtype=torch.bool)
        kept = torch.rand(input.shape, generator=self._generator, device=input.device) >= p
        return input * kept * (0.0 if p == 1 else 1 / (1 - p)), kept

    # ------------------------------------------------------------ training

    def train(
        self, weights: Vector, *, round: int, seed: bytes = b"", proximal: float = 0.0, metrics: bool = True
    ) -> Trained:
        """One round from these weights: the update, how many rows it stands for, and metrics of the weights that came.

        `round` counts from 1. `seed` is b"" or bytes of this node's own in the job. `proximal` is FedProx's mu: mu / 2 times the
        squared distance to `weights`, over parameters, is added to the loss (Li et al., 2020). Without `metrics` these are zeros.

        Raises `ExecutionFailed` where the plan fails or the result is not finite.
        """
        sums = self.evaluate(weights).metrics if metrics else np.zeros(len(self.metrics))
        try:
            new = self._run(self.layout.checked(weights), Draws(seed, round), round, proximal)
        except GridError:
            raise
        except Exception as error:
            raise _failed(self._train, error) from error
        update = self.layout.flatten(new) - weights
        if not np.isfinite(update).all():
            raise ExecutionFailed("the weights after local training are not finite; take a smaller lr, or max_grad_norm")
        return Trained(update, self.rows, sums)

    def _run(self, weights: Vector, draws: Draws, round: int, proximal: float) -> dict[str, Tensor]:
        self._generator = draws.generator(self._device)
        state = self.layout.unflatten(weights, self._device)
        params = {piece.name: state[piece.name] for piece in self.layout.parameters}
        start = list(params.values())
        came = [state[piece.name] for piece in self.layout.buffers]
        buffers = came if self._kept is None else self._kept
        memory = _moved(self._local.optimizer.init(params), self._device)
        for step, rows in enumerate(self._batches(draws)):
            self._between()
            gradients, buffers = self._gradients(list(params.values()), buffers, rows)
            if proximal:
                pairs = zip(gradients, params.values(), start, strict=True)
                gradients = [gradient + (value - origin) * proximal for gradient, value, origin in pairs]
            if self._local.max_grad_norm is not None:
                gradients = _clipped(gradients, self._local.max_grad_norm)
            params, memory = self._local.optimizer.update(params, gradients, memory, lr=self._local.lr(round, step))
        if self._local.buffers == LOCAL:
            self._kept, buffers = buffers, came
        return params | {piece.name: value for piece, value in zip(self.layout.buffers, buffers, strict=True)}

    def _batches(self, draws: Draws) -> Iterator[Tensor]:
        """The numbers of each batch's rows, epoch after epoch. A rest that is too small joins the batch before."""
        left = self._local.max_steps or MAX_STEPS
        for epoch in range(self._local.epochs):
            order = torch.from_numpy(draws.order(self.rows, epoch)).to(self._device)
            for rows in _cut(self.rows, self._batch, self._cuts[0].least):
                if not left:
                    return
                left -= 1
                yield order[rows]

    def _gradients(self, params: Sequence[Tensor], buffers: list[Tensor], rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [value.detach().requires_grad_() for value in params]
        losses, *after = self._train.plainly([*leaves, *buffers, self._features[rows], self._targets[rows]])
        if not losses.requires_grad:
            raise InvalidRequest("the loss does not depend on the parameters in a way that has a gradient")
        loss = losses.mean() if losses.dim() else losses
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        return list(gradients), [value.detach() for value in after]

    # ------------------------------------------------------------ evaluation

    def evaluate(self, weights: Vector) -> Evaluated:
        """Sums of metrics over this node's rows. Raises as `train`."""
        state = self.layout.unflatten(weights, self._device)
        buffers = [state[piece.name] for piece in self.layout.buffers] if self._kept is None else self._kept
        leaves = [*[state[piece.name] for piece in self.layout.parameters], *buffers]
        total = np.zeros(len(self.metrics))
        try:
            for rows in self._pieces:
                self._between()
                with torch.no_grad():
                    found = self._evaluate.plainly([*leaves, self._features[rows], self._targets[rows]])
                total += np.array([float(one) for one in found])
        except GridError:
            raise
        except Exception as error:
            raise _failed(self._evaluate, error) from error
        if not np.isfinite(total).all():
            raise ExecutionFailed("the metrics of the model are not finite; take a smaller lr, or max_grad_norm")
        return Evaluated(self.rows, total)


def _raised(span: Range, least: int) -> Range:
    return Range(max(span.least, least), span.most)


def _takes(span: Range, size: int) -> bool:
    """Whether batches may have so many rows, a rest below `span.least` included, which joins the last of them."""
    return size in span and (span.most is None or size + span.least - 1 <= span.most)


def _cut(rows: int, size: int, least: int) -> Iterator[slice]:
    """Slices of `size` rows; a rest below `least` belongs to the one before."""
    starts = list(range(0, rows, size))
    if len(starts) > 1 and rows - starts[-1] < least:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], rows], strict=True):
        yield slice(start, end)


def _pieces(parts: Sequence[int], size: int, least: int) -> list[slice]:
    """The rows of each call of an evaluation. Each dataset is cut by itself, always at the same rows, whatever others the job
    names; a piece below `least` joins the one before, or the next one where it is the first."""
    pieces: list[slice] = []
    start = 0
    for rows in parts:
        for one in _cut(rows, size, least) if rows else ():
            piece = slice(start + one.start, start + one.stop)
            if pieces and min(_length(pieces[-1]), _length(piece)) < least:
                piece = slice(pieces.pop().start, piece.stop)
            pieces.append(piece)
        start += rows
    return pieces


def _length(piece: slice) -> int:
    return int(piece.stop - piece.start)


def device_of(wish: str) -> torch.device:
    """"auto" is a GPU where torch has one, else the processor."""
    return torch.device("cuda" if wish == "auto" and torch.cuda.is_available() else "cpu" if wish == "auto" else wish)


def _failed(plan: Compiled, error: Exception) -> GridError:
    """The failure with the step that it happened in, and nothing of what torch says."""
    step = plan.failed_step(error)
    where = "in the gradient" if step is None else f"in step {step} of the plan"
    if is_exhausted(error):
        return QuotaExceeded(
            f"local training ran out of memory {where} (max_process_bytes); take smaller batches, or ask the node's owner for a"
            " higher limit",
            limit="max_process_bytes",
        )
    return ExecutionFailed(f"local training failed {where}: do outputs, targets and loss fit together on all rows?")


def _clipped(gradients: list[Tensor], most: float) -> list[Tensor]:
    """Gradients scaled down to the length `most` together, as `torch.nn.utils.clip_grad_norm_` does."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in gradients]))
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    return [one * factor.to(one.dtype) for one in gradients]


def _moved(state: Any, device: torch.device) -> Any:
    if isinstance(state, dict):
        return {name: _moved(value, device) for name, value in state.items()}
    return state.to(device)
