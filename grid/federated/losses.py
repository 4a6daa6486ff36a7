"""Loss plans: what a client publishes of its model and loss, traced here, run by the nodes' own trainers.

    train(params, buffers, x, y) -> (losses, buffers)      the module in training mode; gradients are taken at the node
    evaluate(params, buffers, x, y) -> {metric: sum}       the module in evaluation mode; sums over rows, float64

`losses` has one loss a row, or is one number for the batch where the loss gives no more. The mean over a batch's rows is what is
trained on. A loss with the argument `reduction` is called with "none", so class weights scale a row's loss and not the mean.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from grid.errors import InvalidRequest, PlanRejected
from grid.federated.gradient_check import check_gradients
from grid.federated.loss_plans import LossPlans as LossPlans
from grid.federated.metrics import LOSS, METRICS, names_from, usual
from grid.plans.trace import trace, trace_differentiable
from grid.tensors.buffers import SHORT_DTYPES, torch_dtype

Loss = Callable[[Any, Tensor], Tensor]

TRACED_ROWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """What one row of features or targets looks like: shape, and dtype by its short name, as a dataset's card has them."""

    shape: tuple[int, ...] = ()
    dtype: str = "f4"


def trace_losses(model: nn.Module, loss: Loss, features: Any, targets: Any, metrics: Sequence[str] | None = None) -> LossPlans:
    """The loss plans of a module. `features` and `targets` are tensors, here or remote, whose rows are examples, or `RowSpec`s.

    Parameters that require no gradient, and integer buffers, become constants of the plans. `metrics` are names of
    `grid.federated.metrics`; without them those that suit the targets are measured. The module stays as it was.

    Raises `PlanRejected`, with the line, for what cannot be a plan or gives no loss, `InvalidRequest` for no module.
    """
    if not isinstance(model, nn.Module):
        raise InvalidRequest(f"the model is a torch.nn.Module, not {type(model).__name__}")
    _check_dtypes(model)
    params = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    if not params:
        raise InvalidRequest(
            "the model has no parameter that requires a gradient, so there is nothing to train: call model.requires_grad_(True);"
            " whole numbers cannot be trained"
        )
    buffers = {name: value.detach() for name, value in model.named_buffers() if value.is_floating_point()}
    wanted = None if metrics is None else names_from(metrics)
    examples = (params, buffers, _example(features), _example(targets))
    calls = _Calls(model, _unreduced(loss))
    with _modes_kept(model):
        model.train()
        train = trace_differentiable(calls.train, *examples)
        check_gradients(train, calls.train)
        model.eval()
        evaluate = trace(calls.evaluating(wanted), *examples)
    return LossPlans.of(train, evaluate)


def _check_dtypes(model: nn.Module) -> None:
    """Raise `InvalidRequest` where a parameter or buffer has a dtype that jobs do not train, or plans do not hold."""
    parameters = (("parameter", name, value, value.requires_grad) for name, value in model.named_parameters())
    buffers = (("buffer", name, value, value.is_floating_point()) for name, value in model.named_buffers())
    for what, name, value, changes in (*parameters, *buffers):
        if value.is_complex():
            instead = "hold real and imaginary parts as two of float32, and put them together inside forward"
        elif changes and value.dtype not in (torch.float32, torch.float64):
            instead = "call model.float(), and convert inside forward where less precision is wanted"
        elif value.dtype not in SHORT_DTYPES:
            instead = f"convert it to one of {', '.join(str(one).removeprefix('torch.') for one in SHORT_DTYPES)}"
        else:
            continue
        raise InvalidRequest(f"the model's {what} {name!r} is {value.dtype}, and jobs train float32 and float64: {instead}")


class _Calls:
    """The functions that become plans."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._model = model
        self._loss = loss
        self._counters = {
            name: value for name, value in model.named_buffers() if name.rpartition(".")[2] == "num_batches_tracked"
        }

    def train(self, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Any:
        """Losses, and the buffers after the batch."""
        own = self._own(buffers)
        outputs = functional_call(self._model, (params, own), (x,))
        return self._losses(outputs, x, y), {name: own[name] for name in buffers}

    def evaluating(self, wanted: Sequence[str] | None) -> Callable[..., Any]:
        """The function that gives sums of these metrics, or of those that suit the targets."""

        def evaluate(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Any:
            outputs = functional_call(self._model, (params, self._own(buffers)), (x,))
            losses = self._losses(outputs, x, y).double()
            found = {LOSS: losses.sum() if losses.dim() else losses * x.shape[0]}
            for name in wanted if wanted is not None else usual(outputs, y):
                if name != LOSS:
                    found[name] = METRICS[name](outputs, y).sum()
            return found

        return evaluate

    def _own(self, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        """All buffers that a batch may write to. The counters of batch norm start anew: nothing reads what they count."""
        return {**{name: torch.zeros(tuple(one.shape), dtype=one.dtype) for name, one in self._counters.items()}, **buffers}

    def _losses(self, outputs: Any, x: Tensor, y: Tensor) -> Tensor:
        losses = self._loss(outputs, y)
        if not isinstance(losses, Tensor) or not losses.is_floating_point():
            raise PlanRejected("the loss gives no floating-point tensor; it takes the model's outputs and the targets")
        if not losses.dim():
            return losses
        if losses.shape[0] != x.shape[0]:
            raise PlanRejected("the loss gives neither one number nor one for each row; return its mean or every row's")
        return losses if losses.dim() == 1 else losses.flatten(1).mean(1)


def _unreduced(loss: Loss) -> Loss:
    """The loss of each row where the loss can tell it."""
    if isinstance(loss, nn.Module):
        if getattr(loss, "reduction", None) != "mean":
            return loss
        own = copy.copy(loss)
        own.reduction = "none"  # type: ignore[assignment]
        return own
    if not callable(loss):
        raise InvalidRequest("the loss is a function of the model's outputs and the targets")
    try:
        reduction = inspect.signature(loss).parameters.get("reduction")
    except (TypeError, ValueError):
        return loss
    if reduction is None or reduction.default != "mean":
        return loss
    apart: Any = functools.partial(loss, **{"reduction": "none"})
    return apart  # type: ignore[no-any-return]


def _example(rows: Any) -> Tensor:
    if isinstance(rows, RowSpec):
        return torch.zeros((TRACED_ROWS, *rows.shape), dtype=torch_dtype(rows.dtype))
    shape, dtype = getattr(rows, "shape", None), getattr(rows, "dtype", None)
    if shape is None or not isinstance(dtype, torch.dtype) or not len(shape):
        raise InvalidRequest("features and targets are tensors whose first dimension are rows")
    return torch.zeros((TRACED_ROWS, *[int(size) for size in shape[1:]]), dtype=dtype)


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
