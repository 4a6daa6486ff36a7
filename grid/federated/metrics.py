"""What is measured of a model at each node: sums over rows, which are only ever added up over nodes, then divided by all rows.

The names are those of `METRICS`, whose functions give a value for each row. "loss" is the loss itself, always there and first.
Nothing here imports torch: the gateway reads names and averages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grid.errors import InvalidRequest, PlanRejected

if TYPE_CHECKING:
    from torch import Tensor

LOSS = "loss"

MAX_METRICS = 16


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs `(n, classes, ...)` and targets `(n, ...)`; with one output a row, its logit, positive for class 1."""
    if targets.is_floating_point():
        raise PlanRejected("accuracy is for targets that are classes, and these are numbers")
    if outputs.dim() == targets.dim() + 1 and outputs.shape[1] > 1:
        right = outputs.argmax(1) == targets
    elif outputs.dim() == targets.dim() + 1 or outputs.dim() == targets.dim():
        right = (outputs.reshape(targets.shape) > 0) == (targets > 0)
    else:
        raise PlanRejected("accuracy needs a score for each class, or one logit, for each target")
    return _by_row(right.double())


def _absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return _by_row((_like(outputs, targets) - targets).double().abs())


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return _by_row((_like(outputs, targets) - targets).double().square())


def _like(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs of one number a row in the targets' shape, so that they are not taken for a table by broadcasting."""
    if outputs.dim() == targets.dim():
        return outputs
    if outputs.dim() == targets.dim() + 1 and outputs.shape[-1] == 1:
        return outputs.squeeze(-1)
    raise PlanRejected("an error of numbers needs outputs in the shape of the targets")


def _by_row(values: Tensor) -> Tensor:
    return values if values.dim() == 1 else values.flatten(1).mean(1)


METRICS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "accuracy": _accuracy,
    "mean_absolute_error": _absolute_error,
    "mean_squared_error": _squared_error,
}
"""Name -> function of outputs and targets that gives one float64 number for each row."""


def names_from(metrics: Any) -> tuple[str, ...]:
    """Names that somebody asks for, with "loss" first. Raises `InvalidRequest` for one that is unknown or twice."""
    if isinstance(metrics, str) or not isinstance(metrics, Sequence) or len(metrics) > MAX_METRICS:
        raise InvalidRequest("metrics is a list of names")
    for name in metrics:
        if type(name) is not str or (name != LOSS and name not in METRICS):
            raise InvalidRequest(f"there is no metric {str(name)[:40]!r}; there are {LOSS}, {', '.join(METRICS)}")
    if len(set(metrics)) < len(metrics):
        raise InvalidRequest("a metric is named twice")
    return (LOSS, *[name for name in metrics if name != LOSS])


def usual(outputs: Tensor, targets: Tensor) -> tuple[str, ...]:
    """The metrics that are measured where nobody says: those that make sense for such outputs and targets."""
    found = ["accuracy"] if not targets.is_floating_point() else ["mean_absolute_error", "mean_squared_error"]
    names = [LOSS]
    for name in found:
        try:
            METRICS[name](outputs, targets)
        except PlanRejected:
            continue
        names.append(name)
    return tuple(names)


def averages(names: Sequence[str], sums: Sequence[float], examples: int) -> dict[str, float]:
    """Metrics over all rows from their sums."""
    return {name: float(total) / examples for name, total in zip(names, sums, strict=True)} if examples else {}
