"""Nodes in one loop, without a gateway, and a client that speaks raw messages to them: for tests of what a node does."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grid.clock import SystemClock
from grid.crypto.identity import Expected, LocalIdentity, Trust
from grid.errors import GridError, NodeUnavailable
from grid.ids import GridId, ObjectId, PeerId, PlanId, SumId, random_id
from grid.node.app import Node
from grid.node.datasets import Dataset
from grid.node.party_links import PARTY_PATH
from grid.plans.ir import Plan
from grid.rpc.channel import open_channel
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.settings import NodeSettings, SessionLimits
from grid.smpc import ring
from grid.store.base import Store
from grid.store.memory import MemoryStore
from grid.tensors import fixed
from grid.tensors.buffers import from_frame, short_dtype, to_frame, torch_dtype
from grid.tensors.ops import portable, shapes
from grid.transport.base import Transport
from grid.transport.memory import memory_pair
from grid.transport.websocket import dial_websocket, serve_websocket
from grid.wire.messages import (
    Command,
    CommandFailed,
    Commands,
    DescribeObject,
    FreeObjects,
    GetObject,
    Inline,
    Message,
    ObjectDescription,
    ObjectValue,
    OpenDataset,
    PutObject,
    PutPlan,
    Ref,
    RunPlan,
    StartSum,
    SumPart,
)

CLOCK = SystemClock()
LIMITS = SessionLimits(handshake_s=20.0, request_s=60.0)

aten = torch.ops.aten


@dataclasses.dataclass(eq=False)
class Mesh:
    """Nodes by name. `cut` makes one unreachable and drops its connections."""

    grid: GridId
    nodes: dict[str, Node] = dataclasses.field(default_factory=dict)
    links: list[tuple[str, str, Transport]] = dataclasses.field(default_factory=list)
    gone: set[str] = dataclasses.field(default_factory=set)

    def dialler(self, caller: str) -> Callable[[PeerId], Any]:
        async def dial(node: PeerId) -> Transport:
            name = next((name for name, other in self.nodes.items() if other.id == node), "")
            if not name or name in self.gone or caller in self.gone:
                raise NodeUnavailable(f"node {name or node} is offline")
            near, far = memory_pair()
            self.links.append((caller, name, near))
            self.nodes[name].accept(far)
            return near

        return dial

    async def cut(self, name: str) -> None:
        self.gone.add(name)
        for caller, called, transport in self.links:
            if name in (caller, called):
                await transport.close("cut by the test")


@contextlib.asynccontextmanager
async def mesh(
    datasets: Mapping[str, Sequence[Dataset]],
    *,
    settings: Mapping[str, Any] | None = None,
    own: Mapping[str, Mapping[str, Any]] | None = None,
    stores: Mapping[str, Store] | None = None,
    trust: Callable[[], Trust] = Trust.dev,
    listen: bool = False,
) -> AsyncIterator[Mesh]:
    """Nodes with these datasets, in dev mode, with memory transports between them. `own` are settings of one by name. With
    `listen`, their parties connect over loopback."""
    made = Mesh(GridId(LocalIdentity.create(name="gateway", role="gateway", clock=CLOCK).id))
    async with contextlib.AsyncExitStack() as stack:
        for name, owned in datasets.items():
            changed = {**(settings or {}), **(own or {}).get(name, {})}
            node = Node(
                NodeSettings(**{"name": name, "dev": True, "processes": False, "session": LIMITS, **changed}),
                me=LocalIdentity.create(name=name, role="node", clock=CLOCK),
                trust=trust(),
                datasets=owned,
                store=(stores or {}).get(name) or MemoryStore(),
                clock=CLOCK,
                dial_node=made.dialler(name),
                grid=made.grid,
                dial_party=dial_party if listen else None,
            )
            made.nodes[name] = await stack.enter_async_context(node)
            if listen:
                at = {PARTY_PATH: node.serve_party}
                server = await stack.enter_async_context(serve_websocket("127.0.0.1", 0, node.serve, at=at))
                await node.announce_at(f"127.0.0.1:{server.port}")
        yield made


async def dial_party(address: str) -> Transport:
    return await dial_websocket(f"ws://{address}{PARTY_PATH}")


class RawClient:
    """A client's session with one node, in messages. `failures` collects `CommandFailed` by command number."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.failures: dict[int, GridError] = {}
        self.ids = itertools.count(1)
        self.numbers = itertools.count(1)
        self.peer: Peer

    def _failed(self, context: object, message: CommandFailed) -> None:
        self.failures[message.command] = message.error.to_error()

    async def request(self, message: Message) -> Message:
        return await self.peer.request(message)

    async def put(self, value: Tensor) -> Ref:
        object_id = ObjectId(next(self.ids))
        await self.request(PutObject(object=object_id, tensor=to_frame(value)))
        return Ref(object_id)

    async def open(
        self,
        dataset: str = "d",
        part: str = "features",
        *,
        column: str = "",
        blocks: tuple[int, ...] = (),
        rows: int | None = None,
    ) -> Ref:
        source = self.node.datasets[dataset].part(part, column)
        object_id = ObjectId(next(self.ids))
        shape = (source.shape[0] if rows is None else rows, *source.shape[1:])
        dtype = short_dtype(source.dtype)
        await self.ask(
            OpenDataset(dataset=dataset, part=part, object=object_id, shape=shape, dtype=dtype, column=column, blocks=blocks)
        )
        return Ref(object_id)

    async def ask(self, command: Command | OpenDataset | RunPlan, *tensors: Tensor) -> None:
        """Have one command done, which takes the next number."""
        frames = tuple(to_frame(tensor) for tensor in tensors)
        await self.request(Commands(first=next(self.numbers), commands=(command,), tensors=frames))

    async def run(self, call: Any, *args: Any, outputs: int = 1, **kwargs: Any) -> Any:
        """Run one torch operation on Refs, local tensors and plain values; the Ref of its result, or a list of them."""
        tensors: list[Tensor] = []

        def replace(value: Any) -> Any:
            if isinstance(value, Tensor):
                tensors.append(value)
                return Inline(len(tensors) - 1)
            if isinstance(value, list | tuple):
                return [replace(item) for item in value]
            return value

        op, plain, named = portable(call, list(args), kwargs)
        made = tuple(ObjectId(next(self.ids)) for _ in range(outputs))
        kept = {key: replace(value) for key, value in named.items()}
        command = Command(op=op.name, args=replace(plain), kwargs=kept, outputs=made)
        await self.ask(command, *tensors)
        refs = [Ref(object_id) for object_id in made]
        return refs[0] if outputs == 1 else refs

    async def remote(self, function: Callable[..., Any], *refs: Ref) -> list[Ref]:
        """Run a torch function on pointers, every operation a command; its results, which must be tensors."""
        described = [await self.describe(ref) for ref in refs]
        recorder = Recorder(self)
        metas = [torch.empty(one.shape, dtype=torch_dtype(one.dtype), device="meta") for one in described]
        results = function(*(Pointer.make(recorder, ref, meta) for ref, meta in zip(refs, metas, strict=True)))
        frames = tuple(to_frame(tensor) for tensor in recorder.tensors)
        first = next(self.numbers)
        self.numbers = itertools.count(first + len(recorder.commands))
        await self.request(Commands(first=first, commands=tuple(recorder.commands), tensors=frames))
        return [result.ref for result in (results if isinstance(results, tuple | list) else (results,))]

    async def plan(self, plan: Plan, *inputs: Ref | Tensor) -> list[Ref]:
        await self.request(PutPlan(plan=plan.id, encoding=plan.encoding))
        return await self.call(plan.id, len(plan.outputs), *inputs)

    async def call(self, plan: PlanId, outputs: int, *inputs: Ref | Tensor) -> list[Ref]:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        positions = itertools.count()
        args = [Inline(next(positions)) if isinstance(value, Tensor) else value for value in inputs]
        made = tuple(ObjectId(next(self.ids)) for _ in range(outputs))
        await self.ask(RunPlan(plan=plan, inputs=args, outputs=made), *tensors)
        return [Ref(object_id) for object_id in made]

    async def get(self, ref: Ref) -> Tensor:
        reply = await self.request(GetObject(object=ObjectId(int(ref))))
        assert isinstance(reply, ObjectValue)
        return from_frame(reply.tensor)

    async def describe(self, ref: Ref) -> ObjectDescription:
        reply = await self.request(DescribeObject(object=ObjectId(int(ref))))
        assert isinstance(reply, ObjectDescription)
        return reply

    def free(self, *refs: Ref) -> None:
        self.peer.notify(FreeObjects(objects=tuple(ObjectId(int(ref)) for ref in refs)))

    async def start_sum(
        self, sum_id: SumId, roster: Sequence[PeerId], ref: Ref, *, bits: int = 24, deadline_s: float = 20.0
    ) -> Tensor:
        reply = await self.request(
            StartSum(sum=sum_id, roster=tuple(roster), object=ObjectId(int(ref)), fraction_bits=bits, deadline_s=deadline_s)
        )
        assert isinstance(reply, SumPart)
        return from_frame(reply.tensor)


class Recorder:
    """The commands that a function on pointers turns into."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw
        self.commands: list[Command] = []
        self.tensors: list[Tensor] = []

    def replace(self, value: Any) -> Any:
        if isinstance(value, Pointer):
            return value.ref
        if isinstance(value, Tensor):
            self.tensors.append(value)
            return Inline(len(self.tensors) - 1)
        return [self.replace(item) for item in value] if isinstance(value, list | tuple) else value


class Pointer(torch.Tensor):
    """A remote value: every operation on it becomes a command."""

    ref: Ref
    recorder: Recorder

    @classmethod
    def make(cls, recorder: Recorder, ref: Ref, meta: Tensor) -> Pointer:
        made = torch.Tensor._make_wrapper_subclass(cls, meta.shape, strides=meta.stride(), dtype=meta.dtype)
        made.ref, made.recorder = ref, recorder
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.squeeze_.dim:  # torch itself calls this on a fresh product; as a view it is the same
            func = aten.squeeze.dim
        op, plain, named = portable(func, args, kwargs or {})
        recorder = next(value for value in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(value, Pointer)).recorder
        in_place = func._schema.is_mutable
        metas = [] if in_place else shapes(op, plain, named)
        made = [Ref(next(recorder.raw.ids)) for _ in metas]
        recorder.commands.append(
            Command(
                op=op.name,
                args=recorder.replace(plain),
                kwargs={key: recorder.replace(value) for key, value in named.items()},
                outputs=tuple(ObjectId(int(ref)) for ref in made),
            )
        )
        if in_place or not func._schema.returns:
            return args[0] if in_place else None
        results = [cls.make(recorder, ref, meta) for ref, meta in zip(made, metas, strict=True)]
        return results[0] if len(func._schema.returns) == 1 and str(func._schema.returns[0].type) == "Tensor" else tuple(results)


@contextlib.asynccontextmanager
async def client(
    made: Mesh, node: str, me: LocalIdentity | None = None, *, wrap: Callable[[Transport], Transport] = lambda inner: inner
) -> AsyncIterator[RawClient]:
    """A session with one node, as a client of this identity (a new one by default). `wrap` goes around its transport."""
    me = me or LocalIdentity.create(name="scientist", role="client", clock=CLOCK)
    raw = RawClient(made.nodes[node])
    near, far = memory_pair()
    raw.node.accept(far)
    expect = Expected(id=raw.node.id, name=node, role="node")
    channel = await open_channel(wrap(near), me=me, trust=Trust.dev(), expect=expect, grid=made.grid, limits=LIMITS, clock=CLOCK)
    handlers = Handlers({CommandFailed: raw._failed})
    async with Peer(channel, initiator=True, handlers=handlers, context=None, limits=LIMITS, clock=CLOCK, name=node) as raw.peer:
        yield raw


@contextlib.asynccontextmanager
async def clients(made: Mesh) -> AsyncIterator[dict[str, RawClient]]:
    """One client's sessions with all nodes."""
    me = LocalIdentity.create(name="scientist", role="client", clock=CLOCK)
    async with contextlib.AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(client(made, name, me)) for name in made.nodes}


async def secure_sum(
    raw: Mapping[str, RawClient],
    operands: Mapping[str, Ref],
    *,
    bits: int = 24,
    deadline_s: float = 20.0,
    sum_id: SumId | None = None,
) -> tuple[Tensor | None, dict[str, GridError]]:
    """Ask all nodes for their part; the sum, or the error of each node that refused."""
    name = sum_id or SumId(random_id())
    roster = [raw[node].node.id for node in operands]
    asked = [raw[node].start_sum(name, roster, ref, bits=bits, deadline_s=deadline_s) for node, ref in operands.items()]
    answers = dict(zip(operands, await asyncio.gather(*asked, return_exceptions=True), strict=True))
    errors = {node: answer for node, answer in answers.items() if isinstance(answer, GridError)}
    if errors:
        return None, errors
    parts = [ring.from_tensor(answer) for answer in answers.values() if isinstance(answer, Tensor)]
    return fixed.decode(ring.to_tensor(ring.total(parts, parts[0].shape)), bits), {}


def dataset(rows: int = 40, columns: int = 3, seed: int = 0, **policy: Any) -> Dataset:
    """The dataset "d": standard normal features, targets of two classes; policy as LocalGrid gives it, with changes."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, Any] = {
        "features": torch.randn(rows, columns, generator=generator),
        "targets": (torch.rand(rows, generator=generator) > 0.5).long(),
        "classes": 2,
    }
    if policy:
        parts["policy"] = {"release": "aggregate", "plans": "any", "min_rows": 10, "max_elements": 10_000, **policy}
    return Dataset.from_tensors("d", parts)
