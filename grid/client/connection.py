"""One session with one node: the outbox of all remote tensors there, and what users ask of the node through them.

A session that is lost takes its values with it: everything that uses them raises `NodeUnavailable` from then on.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from grid.client.dispatch import Place
from grid.client.fixed_precision import plain
from grid.client.flow import Flow, Home, OpenPeer
from grid.client.origins import Origin, origin
from grid.client.outgoing import Single
from grid.client.shapes import Shapes
from grid.client.tensors import RemoteTensor, adopt, reference
from grid.errors import GridError, InvalidRequest, WireError
from grid.ids import ObjectId, PeerId, PlanId, SumId, TransferId, random_id
from grid.plans.ir import Plan
from grid.plans.shapes import output_metas
from grid.tensors.buffers import from_frame, short_dtype, to_frame, torch_dtype
from grid.wire.messages import (
    Arg,
    ExpectObject,
    GetObject,
    Inline,
    Message,
    MoveObject,
    ObjectValue,
    Ok,
    OpenDataset,
    PutObject,
    PutPlan,
    RunPlan,
    StartSum,
    SumPart,
    TensorFrame,
)

MAX_VALUE_BYTES = (1 << 30) - (1 << 16)
"""Of one tensor that is sent: the session's limit for a message, less room for its header."""


SUM_GRACE_S = 5.0
"""Nodes keep the deadline of a sum themselves, and say who was missing; this much later we stop waiting for that."""


class Site(abc.ABC):
    """A node as the target of `send` and `move`. `nodes.Node` is one."""

    @property
    @abc.abstractmethod
    def name(self) -> str: ...

    @property
    @abc.abstractmethod
    def id(self) -> str: ...

    @abc.abstractmethod
    def connection(self) -> NodeConnection:
        """The live session with it; a new one where there is none."""


class NodeConnection:
    """The session. Its `run` is a task on the loop of `home`; it is used as outbox from any thread."""

    def __init__(self, place: Site, *, home: Home, shapes: Shapes, wait: Callable[[Any], Any], timeout_s: float) -> None:
        self.shapes = shapes
        self.wait = wait
        self.flow = Flow(place.name, timeout_s, home)
        self._place = place
        self._ids = itertools.count(1)
        self._plans: set[PlanId] = set()
        # Bound once: these run for every operation of every model.
        self.emit = self.flow.emit
        self.free = self.flow.free
        self.new_id: Callable[[], ObjectId] = self._ids.__next__  # type: ignore[assignment]

    @property
    def place(self) -> Place:
        return self._place

    async def run(self, open_peer: OpenPeer) -> None:
        """The session's life; see `Flow.run`."""
        await self.flow.run(open_peer)

    async def read(self, tensor: RemoteTensor, timeout_s: float | None) -> torch.Tensor:
        """A copy of a remote value; before that, the error of any operation that failed here meanwhile."""
        reply = await self._ask_about(GetObject(object=self._object(tensor)), "get", timeout_s)
        if not isinstance(reply, ObjectValue):
            raise WireError(f"{self._place.name} answered a get with {type(reply).__name__}")
        value = from_frame(reply.tensor)
        if value.dtype != tensor.dtype or value.shape != tensor.shape:
            raise WireError(
                f"{self._place.name} sent a {value.dtype} value of shape {tuple(value.shape)}; {tensor.dtype} of shape"
                f" {tuple(tensor.shape)} was asked for"
            )
        return value

    async def move(self, tensor: RemoteTensor, to: Place, timeout_s: float | None) -> RemoteTensor:
        """A copy of the value at another node, sent from node to node."""
        if not isinstance(to, Site):
            raise InvalidRequest("move takes a node of this client, such as g.nodes['bob']")
        target = to.connection()
        if target is self:
            raise InvalidRequest(f"the tensor is at {to.name} already; clone() makes a copy there")
        if target.shapes is not self.shapes:
            raise InvalidRequest(f"{to.name} belongs to another client; a value moves between nodes of one client")
        transfer = TransferId(random_id())
        made = adopt(target, target.new_id(), tensor.shape, tensor.dtype)
        expect = ExpectObject(
            transfer=transfer,
            sender=PeerId(self._place.id),
            object=target._object(made),
            shape=tuple(tensor.shape),
            dtype=short_dtype(tensor.dtype),
        )
        sent = MoveObject(object=self._object(tensor), to=PeerId(to.id), transfer=transfer)
        try:
            await target._ask_about(expect, f"move from {self._place.name}", timeout_s)
            await self._ask_about(sent, f"move to {to.name}", timeout_s)
        except BaseException:
            del made  # An error keeps this frame; the receiver waits for the object until it is freed.
            raise
        return made

    async def expect_opening(
        self, tensor: torch.Tensor, roster: tuple[PeerId, ...], timeout_s: float | None
    ) -> tuple[RemoteTensor, TransferId]:
        """Have the node expect a value like this one, in shares from these nodes: what stands for it, and the transfer."""
        transfer = TransferId(random_id())
        made = adopt(self, self.new_id(), tensor.shape, tensor.dtype)
        expect = ExpectObject(
            transfer=transfer,
            sender=roster[0],
            object=self._object(made),
            shape=tuple(tensor.shape),
            dtype=short_dtype(tensor.dtype),
            roster=roster,
        )
        await self._ask_about(expect, "a value that a committee opens", timeout_s)
        return made, transfer

    def put(self, value: torch.Tensor, place: Origin) -> RemoteTensor:
        """Send a local value; what the caller writes into it later does not count."""
        if value.layout != torch.strided or value.is_quantized:
            raise InvalidRequest("only dense tensors can be sent; call to_dense() on it first")
        if value.is_meta:
            raise InvalidRequest("a tensor on the meta device has no values to send; make it on the processor")
        nbytes = value.numel() * value.element_size()
        if nbytes > MAX_VALUE_BYTES:
            raise InvalidRequest(f"{nbytes} bytes are more than one message carries; send parts and torch.cat them there")
        made = adopt(self, self.new_id(), value.shape, value.dtype)
        message = PutObject(object=self._object(made), tensor=to_frame(value.detach().cpu()))
        self.flow.queue(Single(message, "send", nbytes=nbytes), place)
        return made

    def open_dataset(
        self, dataset: str, part: str, shape: Sequence[int], dtype: str, *, column: str = "", blocks: tuple[int, ...] = ()
    ) -> RemoteTensor:
        """A remote tensor that stands for a part of a dataset."""
        made = adopt(self, self.new_id(), shape, torch_dtype(dtype))
        made._source = f"{dataset}.{column or part}"
        command = OpenDataset(
            dataset=dataset,
            part=part,
            object=self._object(made),
            shape=tuple(shape),
            dtype=dtype,
            column=column,
            blocks=blocks,
        )
        self.flow.emit(command, (), origin(2), f"opening {column or part} of the dataset {dataset!r}")
        return made

    def run_plan(self, plan: Plan, leaves: Sequence[Any]) -> list[torch.Tensor]:
        """Call a plan on leaves, some of which may be local. Sends it before its first call; nothing is waited for.

        With a leaf on shares, it runs in that committee, and those at nodes are shared first."""
        leaves = [plain(leaf) for leaf in leaves]
        for leaf in leaves:
            if isinstance(leaf, RemoteTensor) and not isinstance(leaf._handle.outbox, NodeConnection):
                return leaf._handle.outbox.run_plan(plan, leaves)
        place = origin(2)
        metas = output_metas(plan, leaves)
        inputs, frames = self._inputs(leaves)
        made = [adopt(self, self.new_id(), meta.shape, meta.dtype, meta.stride) for meta in metas]
        outputs = tuple(self._object(tensor) for tensor in made)
        if plan.id not in self._plans:
            self._plans.add(plan.id)
            put = PutPlan(plan=plan.id, encoding=plan.encoding)
            self.flow.queue(Single(put, f"sending the plan {plan.name}", nbytes=len(plan.encoding)), place)
        self.flow.emit(RunPlan(plan=plan.id, inputs=inputs, outputs=outputs), frames, place, f"the plan {plan.name}")
        return list(made)

    def _inputs(self, leaves: Sequence[Any]) -> tuple[list[Arg], tuple[TensorFrame, ...]]:
        inputs: list[Arg] = []
        frames: list[TensorFrame] = []
        for leaf in leaves:
            ref = reference(leaf, self)
            if ref is None:
                inputs.append(Inline(len(frames)))
                frames.append(to_frame(leaf))
            else:
                inputs.append(ref)
        return inputs, tuple(frames)

    async def start_sum(
        self, tensor: RemoteTensor, sum_id: SumId, roster: tuple[PeerId, ...], fraction_bits: int, deadline_s: float
    ) -> torch.Tensor:
        """This node's part of a secure sum: int64 ring elements."""
        message = StartSum(
            sum=sum_id, roster=roster, object=self._object(tensor), fraction_bits=fraction_bits, deadline_s=deadline_s
        )
        reply = await self._ask_about(message, "a secure sum", deadline_s + SUM_GRACE_S)
        if not isinstance(reply, SumPart):
            raise WireError(f"{self._place.name} answered a secure sum with {type(reply).__name__}")
        part = from_frame(reply.tensor)
        if part.dtype is not torch.int64 or part.shape != tensor.shape:
            raise WireError(f"{self._place.name} sent a part of a secure sum that has another shape or dtype")
        return part

    async def _ask_about(self, message: Message, what: str, timeout_s: float | None) -> Message:
        """Ask for something that depends on earlier commands: their failure explains this one's."""
        try:
            reply = await self.flow.ask(message, what, timeout_s)
        except GridError as error:
            raise self.flow.explained(error) from None
        self.flow.raise_failure()
        if not isinstance(reply, (Ok, ObjectValue, SumPart)):
            raise WireError(f"{self._place.name} answered {what} with {type(reply).__name__}")
        return reply

    def _object(self, tensor: RemoteTensor) -> ObjectId:
        ref = reference(tensor, self)
        assert ref is not None
        return ObjectId(int(ref))
