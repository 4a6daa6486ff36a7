"""A stand-in for a node: an outbox that runs commands at once, in this process, on the op table's own operations.

It shows two things that a real session hides: every command that was emitted, and which objects are alive.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grid.client.origins import Origin
from grid.client.shapes import Shapes
from grid.client.tensors import RemoteTensor, adopt, reference
from grid.ids import ObjectId
from grid.tensors.buffers import from_frame
from grid.tensors.ops import bind, flatten, lookup
from grid.wire.messages import Command, Inline, Ref, TensorFrame


@dataclass(frozen=True)
class Spot:
    """A place with a name."""

    name: str
    id: str


class LocalExecutor:
    """An outbox (`dispatch.Outbox`) whose node is a dictionary."""

    def __init__(self, name: str = "alice", *, shapes: Shapes | None = None) -> None:
        self.shapes = shapes or Shapes()
        self.place = Spot(name, f"id-of-{name}")
        self.objects: dict[int, torch.Tensor] = {}
        self.commands: list[Command] = []
        self.origins: list[Origin] = []
        self.freed: list[int] = []
        self._ids = itertools.count(1)

    def new_id(self) -> ObjectId:
        return ObjectId(next(self._ids))

    def emit(self, command: Command, tensors: Sequence[TensorFrame], place: Origin, what: str) -> None:
        self.commands.append(command)
        self.origins.append(place)
        op = lookup(command.op)
        inline = [from_frame(frame) for frame in tensors]
        args = [self._value(arg, inline) for arg in command.args]
        kwargs = {name: self._value(arg, inline) for name, arg in command.kwargs.items()}
        with torch.no_grad():
            results = flatten(bind(op, args, kwargs).run())
        if command.outputs:
            self.objects.update(zip(command.outputs, results, strict=True))

    def _value(self, arg: Any, inline: Sequence[torch.Tensor]) -> Any:
        if type(arg) is Ref:
            return self.objects[arg]
        if type(arg) is Inline:
            return inline[arg]
        if isinstance(arg, list):
            return [self._value(one, inline) for one in arg]
        return arg

    def free(self, object_id: ObjectId) -> None:
        self.freed.append(object_id)
        self.objects.pop(object_id, None)

    def wait(self, work: Any) -> Any:
        return asyncio.run(work)

    async def read(self, tensor: RemoteTensor, timeout_s: float | None) -> torch.Tensor:
        value = self.objects[int(reference(tensor, self) or 0)].clone()
        assert value.dtype == tensor.dtype and value.shape == tensor.shape
        return value

    async def move(self, tensor: RemoteTensor, to: Any, timeout_s: float | None) -> Any:
        raise AssertionError("not used in these tests")

    def run_plan(self, plan: Any, leaves: Sequence[Any]) -> list[torch.Tensor]:
        raise AssertionError("not used in these tests")

    def put(self, value: torch.Tensor, place: Origin = None) -> RemoteTensor:
        made = adopt(self, self.new_id(), value.shape, value.dtype)
        self.objects[int(reference(made, self) or 0)] = value.detach().clone(memory_format=torch.contiguous_format)
        return made
