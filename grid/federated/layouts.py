"""A model's weights as one flat vector, which is what travels, is summed and is changed by strategies.

In it are, in this order, the trainable parameters and then the floating-point buffers, as the loss plan's arguments name them,
each row-major. Its dtype is float32, or float64 where a parameter or buffer is. Frozen parameters and integer buffers are
constants of the plans and stay as they were at the client.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from grid.errors import InvalidRequest
from grid.plans.ir import Plan
from grid.plans.trees import Tree
from grid.tensors.buffers import torch_dtype

Vector = npt.NDArray[Any]
"""`(size,)`, float32 or float64."""

FLOATS = ("f8", "f4")
"""Of what is trained or averaged: half precision would lose an update in the rounding of the weights that it is added to."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One parameter or buffer, and where in the vector it begins."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Where each parameter and buffer of a loss plan lies in the vector."""

    parameters: tuple[Piece, ...]
    buffers: tuple[Piece, ...]

    @classmethod
    def of(cls, plan: Plan) -> Layout:
        """The layout of a loss plan `(params, buffers, x, y)`. Raises `InvalidRequest` for a plan that is none."""
        takes = plan.takes.children
        named, rows = takes[:2], takes[2:]
        if len(rows) != 2 or not all(map(_names_tensors, named)) or any(tree.kind != "leaf" for tree in rows):
            raise InvalidRequest(f"the plan {plan.name} is no loss plan, which takes parameters, buffers, features and targets")
        pieces: list[Piece] = []
        start = 0
        names = [str(key) for tree in named for key in tree.keys]
        for name, spec in zip(names, plan.inputs, strict=False):
            shape = tuple([size for size in spec.sizes if isinstance(size, int)])
            if spec.dtype not in FLOATS or len(shape) != len(spec.sizes):
                raise InvalidRequest(f"{name[:100]!r} of the plan {plan.name} is not float32 or float64 with a fixed shape")
            pieces.append(Piece(name, torch_dtype(spec.dtype), shape, start))
            start += pieces[-1].size
        count = len(takes[0].keys)
        if not count or len(set(names)) < len(names):
            raise InvalidRequest(f"the plan {plan.name} trains no parameter, or has a name twice")
        return cls(tuple(pieces[:count]), tuple(pieces[count:]))

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All of them, in order."""
        return self.parameters + self.buffers

    @cached_property
    def size(self) -> int:
        """Elements of the vector."""
        return sum(piece.size for piece in self.pieces)

    @cached_property
    def trained(self) -> int:
        """Elements of the vector that are parameters; buffers come after them."""
        return sum(piece.size for piece in self.parameters)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Of the vector."""
        return np.dtype("<f8" if any(piece.dtype == torch.float64 for piece in self.pieces) else "<f4")

    def flatten(self, state: Mapping[str, Tensor]) -> Vector:
        """The vector of tensors by name: a module's `state_dict()`, say. Raises `InvalidRequest` for one that does not fit."""
        vector: Vector = np.empty(self.size, self.dtype)
        for piece in self.pieces:
            tensor = state.get(piece.name)
            if tensor is None or tuple(tensor.shape) != piece.shape:
                raise InvalidRequest(f"the model has no {piece.name!r} of shape {piece.shape}: it is not the one that was traced")
            vector[piece.start : piece.start + piece.size] = _numbers(tensor).reshape(-1)
        return vector

    def unflatten(self, vector: Vector, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Parameters and buffers by name, in their own dtypes. Raises `InvalidRequest` for a vector of another size."""
        whole = torch.from_numpy(self.checked(vector).copy())
        return {piece.name: part.to(device) for piece, part in self._parts(whole)}

    def _parts(self, whole: Tensor) -> Iterator[tuple[Piece, Tensor]]:
        for piece in self.pieces:
            yield piece, whole[piece.start : piece.start + piece.size].view(piece.shape).to(piece.dtype)

    def checked(self, vector: Vector) -> Vector:
        """The vector in this machine's byte order. Raises `InvalidRequest` for one of another size or dtype."""
        if vector.shape != (self.size,) or vector.dtype != self.dtype:
            raise InvalidRequest(f"the weights have {self.size} elements of {self.dtype}, not {vector.shape} of {vector.dtype}")
        return vector.astype(self.dtype.newbyteorder("="), copy=False)

    def load_into(self, model: nn.Module, vector: Vector) -> None:
        """Write the vector into the module's parameters and buffers. Raises `InvalidRequest` where they do not fit."""
        own: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        parts = list(self._parts(torch.from_numpy(self.checked(vector).copy())))
        for piece, _ in parts:
            if piece.name not in own or tuple(own[piece.name].shape) != piece.shape:
                raise InvalidRequest(f"the model has no {piece.name!r} of shape {piece.shape}: it is not the one that was traced")
        with torch.no_grad():
            for piece, part in parts:
                own[piece.name].copy_(part)


def _names_tensors(tree: Tree) -> bool:
    return tree.kind == "dict" and all(type(key) is str for key in tree.keys) and all(one.kind == "leaf" for one in tree.children)


def _numbers(tensor: Tensor) -> Vector:
    dense = tensor.detach().cpu().contiguous()
    if dense.dtype not in (torch.float32, torch.float64):
        dense = dense.float()
    numbers: Vector = dense.numpy()
    return numbers
