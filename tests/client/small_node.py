"""A node of a page: real sessions and codec over memory, plain torch, no labels, no gate. For tests of the client's side alone.

Failures are as the protocol says: a command that fails leaves its outputs failed, is reported at once, and explains whatever
uses them later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch

from grid.client.connection import NodeConnection, Site
from grid.client.flow import Home, OnFailed
from grid.client.shapes import Shapes
from grid.clock import SystemClock
from grid.errors import ExecutionFailed, GridError, NotFound
from grid.plans.ir import decode
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.settings import SessionLimits
from grid.tensors.buffers import from_frame, to_frame
from grid.tensors.ops import bind, flatten, lookup
from grid.transport.base import Transport
from grid.transport.memory import memory_pair
from grid.wire.messages import (
    Command,
    CommandFailed,
    Commands,
    ErrorInfo,
    ExpectObject,
    FreeObjects,
    GetObject,
    Inline,
    MoveObject,
    ObjectValue,
    Ok,
    OpenDataset,
    PutObject,
    PutPlan,
    Ref,
    RunPlan,
    StartSum,
    SumPart,
)

LIMITS = SessionLimits()


class SmallNode(Site):
    """The node, and the site that stands for it at the client. Both ends live on one loop."""

    def __init__(
        self,
        name: str = "alice",
        *,
        home: Home | None = None,
        shapes: Shapes | None = None,
        wait: Any = None,
        wrap: Callable[[Transport], Transport] = lambda transport: transport,
    ) -> None:
        self._name = name
        self._wrap = wrap
        self.objects: dict[int, torch.Tensor | GridError] = {}
        self.freed: list[int] = []
        self.seen: list[Any] = []
        self.plans: dict[str, Any] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuse: dict[type, GridError] = {}
        self.fail_openings: GridError | None = None
        self.neighbours: dict[str, SmallNode] = {}
        self.expected: dict[str, int] = {}
        self._live: Peer | None = None
        self._connection = NodeConnection(
            self,
            home=home or Home(asyncio.get_running_loop()),
            shapes=shapes or Shapes(),
            wait=wait or (lambda work: work),
            timeout_s=20.0,
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def id(self) -> str:
        return f"id-of-{self._name}"

    def connection(self) -> NodeConnection:
        return self._connection

    async def serve(self) -> None:
        """The client's session with this node, until it is cut or cancelled."""
        await self._connection.run(self._open)

    @contextlib.asynccontextmanager
    async def _open(self, on_failed: OnFailed) -> AsyncIterator[Peer]:
        here, there = memory_pair()
        there = self._wrap(there)
        clock = SystemClock()
        table: dict[type, Callable[..., Any]] = {
            PutObject: self._put,
            Commands: self._commands,
            FreeObjects: self._free,
            GetObject: self._get,
            PutPlan: self._put_plan,
            ExpectObject: self._expect,
            MoveObject: self._move,
            StartSum: self._sum,
        }
        node = Peer(there, initiator=False, handlers=Handlers(table), context=None, limits=LIMITS, clock=clock, name="client")
        self._live = node
        client = Peer(
            here,
            initiator=True,
            handlers=Handlers({CommandFailed: on_failed}),
            context=None,
            limits=LIMITS,
            clock=clock,
            name=self._name,
        )
        entering = asyncio.create_task(node.__aenter__())
        try:
            async with client:
                await entering
                yield client
        finally:
            await asyncio.wait([entering])
            if entering.exception() is None:  # else it has left already
                await node.__aexit__(None, None, None)

    def cut(self) -> None:
        """Lose the session."""
        assert self._live is not None
        self._live.close_soon()

    # ------------------------------------------------------------ handlers

    async def _ok(self) -> Ok:
        await self.gate.wait()
        return Ok()

    def _check(self, message: Any) -> None:
        self.seen.append(message)
        if type(message) in self.refuse:
            raise self.refuse[type(message)]

    def _put(self, context: object, message: PutObject) -> Any:
        self._check(message)
        self.objects[message.object] = from_frame(message.tensor)
        return self._ok()

    def _commands(self, context: object, message: Commands) -> Any:
        self._check(message)
        inline = [from_frame(frame) for frame in message.tensors]
        for number, command in enumerate(message.commands, message.first):
            if isinstance(command, OpenDataset):
                self._open_dataset(number, command)
            elif isinstance(command, RunPlan):
                self._run_plan(command, inline)
            else:
                self._run(number, command, inline)
            for one in message.frees[number - message.first] if number - message.first < len(message.frees) else ():
                self._forget(one)
        return self._ok()

    def _run(self, number: int, command: Command, inline: list[torch.Tensor]) -> None:
        try:
            args = [self._value(arg, inline) for arg in command.args]
            kwargs = {name: self._value(arg, inline) for name, arg in command.kwargs.items()}
            results = flatten(bind(lookup(command.op), args, kwargs).run())
            if command.outputs:
                self.objects.update(zip(command.outputs, results, strict=True))
        except Exception as error:
            self._failed(number, command.op, command.outputs, error)

    def _open_dataset(self, number: int, command: OpenDataset) -> None:
        if self.fail_openings is None:
            self.objects[command.object] = torch.zeros(command.shape)
        else:
            self._failed(number, "open", (command.object,), self.fail_openings)

    def _run_plan(self, command: RunPlan, inline: list[torch.Tensor]) -> None:
        plan = self.plans[command.plan]
        results = flatten(plan._compiled([self._value(one, inline) for one in command.inputs]))
        self.objects.update(zip(command.outputs, results, strict=True))

    def _failed(self, number: int, op: str, outputs: tuple[int, ...], error: Exception) -> None:
        if not isinstance(error, GridError):
            error = ExecutionFailed("the operation failed", op=op, command=number)
        assert isinstance(error, GridError)
        error = type(error)(error.message, **{"command": number, **error.details})
        self.objects.update(dict.fromkeys(outputs, error))
        assert self._live is not None
        self._live.notify(CommandFailed(command=number, error=ErrorInfo.of(error)))

    def _value(self, arg: Any, inline: list[torch.Tensor]) -> Any:
        if type(arg) is Ref:
            return self._find(arg)
        if type(arg) is Inline:
            return inline[arg]
        return [self._value(one, inline) for one in arg] if isinstance(arg, list) else arg

    def _find(self, object_id: int) -> torch.Tensor:
        if object_id not in self.objects:
            raise NotFound(f"there is no object {object_id}")
        found = self.objects[object_id]
        if isinstance(found, GridError):
            raise type(found)(found.message, **found.details)
        return found

    def _free(self, context: object, message: FreeObjects) -> None:
        self.seen.append(message)
        for one in message.objects:
            self._forget(one)

    def _forget(self, object_id: int) -> None:
        self.freed.append(object_id)
        self.objects.pop(object_id, None)

    def _get(self, context: object, message: GetObject) -> ObjectValue:
        self._check(message)
        return ObjectValue(tensor=to_frame(self._find(message.object)))

    def _put_plan(self, context: object, message: PutPlan) -> Any:
        self._check(message)
        self.plans[message.plan] = decode(message.encoding)
        return self._ok()

    def _expect(self, context: object, message: ExpectObject) -> Any:
        self._check(message)
        self.expected[message.transfer] = message.object
        return self._ok()

    def _move(self, context: object, message: MoveObject) -> Any:
        self._check(message)
        target = self.neighbours[message.to]
        target.objects[target.expected.pop(message.transfer)] = self._find(message.object).clone()
        return self._ok()

    def _sum(self, context: object, message: StartSum) -> Any:
        self._check(message)
        value = self._find(message.object).double() * 2.0**message.fraction_bits
        return SumPart(tensor=to_frame(value.round().to(torch.int64)))


@contextlib.asynccontextmanager
async def served(*names: str, **options: Any) -> AsyncIterator[list[SmallNode]]:
    """Small nodes of one client, each with its session running."""
    shapes = Shapes()
    nodes = [SmallNode(name, shapes=shapes, **options) for name in names]
    for node in nodes:
        node.neighbours = {other.id: other for other in nodes}
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(node.serve()) for node in nodes]
        try:
            yield nodes
        finally:
            for one in running:
                one.cancel()
