"""Optimizers as functions, for training steps that are plans: from parameters, gradients and state to new ones.

    optimizer = grid.Adam(lr=1e-3)
    state = optimizer.init(params)                            # params: a dict of tensors, as `module.named_parameters()` gives

    @grid.plan
    def step(params, state, x, y):
        loss = F.cross_entropy(functional_call(model, params, (x,)), y)
        gradients = torch.autograd.grad(loss, list(params.values()))
        params, state = optimizer.update(params, gradients, state)
        return params, state, loss

An optimizer of `torch.optim` keeps its state in itself, and Adam's counts its steps in Python; a plan changes nothing and knows
no values, so what changes is an argument and a result here. The arithmetic is that of `torch.optim` (tests compare it step by
step), with the same names and defaults, and the state is a dict that can be sent, saved and given to the next call. These work
without plans as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grid.errors import InvalidRequest

Tensors = dict[str, Tensor]
State = dict[str, Any]


class Optimizer(ABC):
    """What `grid.SGD`, `grid.Adam` and `grid.AdamW` have in common."""

    @abstractmethod
    def init(self, params: Mapping[str, Tensor]) -> State:
        """The state before the first step: zeros, here, whether the parameters are here or remote."""

    @abstractmethod
    def _update(self, params: Tensors, gradients: Sequence[Tensor], state: State, lr: float | Tensor) -> tuple[Tensors, State]:
        """One step on parameters and gradients that belong together."""

    def update(
        self,
        params: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | Iterable[Tensor],
        state: State,
        lr: float | Tensor | None = None,
    ) -> tuple[Tensors, State]:
        """New parameters and new state; nothing is written to, and the results carry no gradient.

        `gradients` is a dict with the names of `params`, or what `torch.autograd.grad` gives: one for each parameter in turn.
        `lr` takes the place of the optimizer's own for this step: a number, or a tensor without dimensions, which can be an
        argument of the plan and so differ from call to call. Raises `InvalidRequest` where gradients and parameters do not
        belong together.
        """
        if isinstance(gradients, Mapping):
            if gradients.keys() != params.keys():
                raise InvalidRequest("the gradients do not have the names of the parameters")
            gradients = [gradients[name] for name in params]
        gradients = [gradient.detach() for gradient in gradients]
        if len(gradients) != len(params):
            raise InvalidRequest(f"{len(gradients)} gradients came for {len(params)} parameters")
        own = {name: value.detach() for name, value in params.items()}
        return self._update(own, gradients, state, self._lr() if lr is None else lr)

    def _lr(self) -> float:
        lr: float = self.lr  # type: ignore[attr-defined]
        return lr


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent, as `torch.optim.SGD`. Without momentum the state is empty."""

    lr: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check(self, "lr", "momentum", "weight_decay")
        if self.nesterov and not self.momentum:
            raise InvalidRequest("nesterov needs a momentum above 0")

    def init(self, params: Mapping[str, Tensor]) -> State:
        """The state before the first step: `{"momentum": {name: zeros}}`, or nothing."""
        return {"momentum": _zeros(params)} if self.momentum else {}

    def _update(self, params: Tensors, gradients: Sequence[Tensor], state: State, lr: float | Tensor) -> tuple[Tensors, State]:
        new: Tensors = {}
        velocities: Tensors = {}
        for (name, value), gradient in zip(params.items(), gradients, strict=True):
            if self.weight_decay:
                gradient = gradient + value * self.weight_decay
            if self.momentum:
                velocity = velocities[name] = state["momentum"][name] * self.momentum + gradient
                gradient = gradient + velocity * self.momentum if self.nesterov else velocity
            new[name] = value - gradient * lr
        return new, {"momentum": velocities} if self.momentum else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015), as `torch.optim.Adam`: `weight_decay` is added to the gradient."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self, "lr", "eps", "weight_decay")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidRequest("betas must lie between 0 and 1")

    def init(self, params: Mapping[str, Tensor]) -> State:
        """The state before the first step: the number of steps (float64) and running means of gradients and their squares."""
        return {"step": torch.zeros((), dtype=torch.float64), "mean": _zeros(params), "square": _zeros(params)}

    def _update(self, params: Tensors, gradients: Sequence[Tensor], state: State, lr: float | Tensor) -> tuple[Tensors, State]:
        first, second = self.betas
        step = state["step"] + 1
        size = lr / (1 - first**step)
        root = (1 - second**step).sqrt()
        sizes: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        new: Tensors = {}
        means: Tensors = {}
        squares: Tensors = {}
        for (name, value), gradient in zip(params.items(), gradients, strict=True):
            if value.dtype not in sizes:
                sizes[value.dtype] = (size.to(value.dtype), root.to(value.dtype))
            size_here, root_here = sizes[value.dtype]
            value, gradient = self._decayed(value, gradient, lr)
            mean = means[name] = state["mean"][name].lerp(gradient, 1 - first)
            square = squares[name] = (state["square"][name] * second).addcmul(gradient, gradient, value=1 - second)
            new[name] = value - mean / (square.sqrt() / root_here + self.eps) * size_here
        return new, {"step": step, "mean": means, "square": squares}

    def _decayed(self, value: Tensor, gradient: Tensor, lr: float | Tensor) -> tuple[Tensor, Tensor]:
        """Parameter and gradient after weight decay."""
        return value, gradient + value * self.weight_decay if self.weight_decay else gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW(Adam):
    """Adam with weight decay beside the gradient (Loshchilov and Hutter, 2019), as `torch.optim.AdamW`."""

    weight_decay: float = 1e-2

    def _decayed(self, value: Tensor, gradient: Tensor, lr: float | Tensor) -> tuple[Tensor, Tensor]:
        return value * (1 - lr * self.weight_decay) if self.weight_decay else value, gradient


def _zeros(params: Mapping[str, Tensor]) -> Tensors:
    return {name: torch.zeros(tuple(value.shape), dtype=value.dtype) for name, value in params.items()}


def _check(optimizer: Any, *names: str) -> None:
    for name in names:
        if not getattr(optimizer, name) >= 0:
            raise InvalidRequest(f"{name} must be 0 or more, not {getattr(optimizer, name)!r}")
