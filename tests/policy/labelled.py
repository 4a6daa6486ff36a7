"""Torch tensors that run under `Labels`, so that tests can type what plain PyTorch code does: autograd, modules, optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from grid.policy.labels import Labels
from grid.tensors.ops import portable
from grid.tensors.rows import Type

VIEWS = {torch.ops.aten.squeeze_.dim: torch.ops.aten.squeeze.dim}
"""Torch itself squeezes a fresh product of a vector and a matrix in place; as a view it is the same."""


class Labelled(Tensor):
    """A tensor whose operations run through a `Labels`. `inner` holds the values."""

    inner: Tensor
    labels: Labels

    @staticmethod
    def __new__(cls, inner: Tensor, labels: Labels) -> Labelled:
        return Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device)

    def __init__(self, inner: Tensor, labels: Labels) -> None:
        self.inner, self.labels = inner, labels

    def __repr__(self, **_: Any) -> str:
        return f"Labelled({tuple(self.shape)})"

    @property
    def type_(self) -> Type:
        return self.labels.type_of(self.inner)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = VIEWS.get(func, func)
        op, plain_args, plain_kwargs = portable(func, args, kwargs or {})
        found: list[Labelled] = []
        tree_map_only(Labelled, found.append, (plain_args, plain_kwargs))
        labels = found[0].labels

        def inner(tensor: Tensor) -> Tensor:
            return tensor.inner if isinstance(tensor, Labelled) else labels.enter(tensor.detach().clone())

        plain_args, plain_kwargs = tree_map_only(Tensor, inner, (plain_args, plain_kwargs))
        made = [Labelled(tensor, labels) for tensor in labels.run(op, plain_args, plain_kwargs, where=f"step {next(STEPS)}")]
        if op.returns_target:
            return args[0] if not (kwargs or {}).get("out") is not None else kwargs["out"]
        if op.rule == "lists":
            return None
        return _as_returned(func, made, kwargs or {}, args)


def _count() -> Any:
    number = 0
    while True:
        number += 1
        yield number


STEPS = _count()


def _as_returned(func: Any, made: list[Labelled], kwargs: Any, args: Any) -> Any:
    """The results in the form that the operation's schema declares."""
    returns = func._schema.returns
    if not returns:
        return None
    if str(returns[0].real_type).startswith("List"):
        return made
    if len(returns) == 1:
        return made[0]
    if func._schema.name.endswith("convolution_backward") or "norm_backward" in func._schema.name:
        lists = [value for value in (*args, *kwargs.values()) if isinstance(value, list)]
        mask = next(value for value in lists if value and isinstance(value[0], bool))
        rest = iter(made)
        return tuple(next(rest) if wanted else None for wanted in mask)
    return tuple(made)


def labelled(labels: Labels, tensor: Tensor, own: Type | None = None) -> Labelled:
    """Enter a copy of a tensor: the client's own, or of the given type."""
    return Labelled(labels.enter(tensor.detach().clone(), own), labels)


def rows_of(labels: Labels, tensor: Tensor, dataset: str = "d") -> Labelled:
    """Enter a copy of a tensor whose dimension 0 is the rows of a dataset."""
    return labelled(labels, tensor, labels.dataset_type(dataset, len(tensor), tensor.shape))


def module(labels: Labels, plain: torch.nn.Module) -> torch.nn.Module:
    """Put a module's parameters and buffers, the client's own, under labels; changes the module."""
    for part in plain.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(labelled(labels, parameter))
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = labelled(labels, buffer)
    return plain
