"""One client's memory at a node: objects, their labels, its plans. Every method runs as a job of the client's lane.

What fails leaves a failed object behind, so that whoever uses it later hears the first cause. Only that first cause is
reported to the client; what merely depends on it is not. Whether an operation on rows fails may depend on their values, so
that is kept back (`Labels.spoilt`) until the gate has let the value go, and then it is counted.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from grid.errors import (
    ExecutionFailed,
    GridError,
    InvalidRequest,
    NodeUnavailable,
    NotFound,
    PlanRejected,
    QuotaExceeded,
    ReleaseDenied,
)
from grid.ids import ObjectId, PeerId, PlanId
from grid.node.custody import Custody
from grid.node.lineage import DERIVED, OWN, Lineage, dataset_part, plan_results
from grid.node.objects import ObjectStore
from grid.node.one_sum import Operand
from grid.node.transfers import Delivery
from grid.plans import interpret
from grid.plans.ir import Plan, decode
from grid.plans.shapes import check_limits
from grid.policy import blocks
from grid.settings import NodeSettings
from grid.smpc import ring
from grid.tensors import fixed
from grid.tensors.buffers import from_frame, short_dtype, to_frame
from grid.tensors.ops import Op, lookup
from grid.tensors.rows import Type
from grid.wire.messages import (
    Command,
    Commands,
    Inline,
    ObjectDescription,
    OpenDataset,
    PutPlan,
    Ref,
    RunPlan,
    StartSum,
    TensorFrame,
)

log = logging.getLogger(__name__)

MAX_PLANS = 1024
MESSAGE_ROOM = 4096
"""Bytes of a message beside the value in it."""

RING_BYTES = 8

Report = Callable[[int, GridError], None]
"""Tells the client that the command of this number failed."""


class _Depends(Exception):
    """An operand has failed before; `error` is why."""

    def __init__(self, error: GridError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _LoadedPlan:
    plan: Plan
    constants: Sequence[Tensor]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """A value on its way to another node: its frame, its type, and the datasets that it carries along.

    `spoilt`: the failure behind it; for nobody to know before the move is allowed.
    """

    tensor: TensorFrame
    kind: Type
    datasets: tuple[str, ...]
    spoilt: ExecutionFailed | None


class Workspace:
    """See the module. `closed` says whether the client is gone; `on_ended` is called when it went too far."""

    def __init__(self, *, custody: Custody, client: PeerId, settings: NodeSettings, closed: Callable[[], bool]) -> None:
        self.on_ended: Callable[[GridError], None] = lambda error: None
        self._custody = custody
        self._client = client
        self._settings = settings
        self._closed = closed
        self._labels = custody.labels()
        self._objects = ObjectStore(max_objects=settings.max_objects_per_client, max_bytes=settings.max_bytes_per_client)
        self._plans: dict[PlanId, _LoadedPlan | GridError] = {}
        self._plan_bytes = 0

    # ------------------------------------------------------------ values

    def put(self, object_id: ObjectId, frame: TensorFrame) -> None:
        """Keep a value of the client's own."""
        self._keep(object_id, self._labels.enter(from_frame(frame)), OWN)

    def free(self, objects: Sequence[ObjectId]) -> None:
        """Forget objects."""
        self._objects.free(objects)

    def fail(self, object_id: ObjectId, error: GridError) -> None:
        """Mark an object as failed."""
        self._objects.fail(object_id, error)

    def clear(self) -> None:
        """Forget everything. The one method for after the lane's end."""
        self._objects.clear()
        self._plans.clear()

    def release(self, object_id: ObjectId) -> TensorFrame:
        """A copy of an object's value, if the gate lets it leave. Only then is told of a failure that depends on rows."""
        stored = self._objects.get(object_id)
        value, kind = stored.value, self._labels.type_of(stored.value)
        nbytes = self._checked_size(value, value.element_size())
        if kind.labelled:
            self._custody.gate.check_errors(self._client)
            self._custody.gate.release(
                kind, stored.lineage.origin, elements=value.numel(), nbytes=nbytes, client=self._client
            )
            self._tell_failure(self._labels.spoilt(value))
        return to_frame(value)

    def _checked_size(self, value: Tensor, element_bytes: int) -> int:
        """The bytes of a value in a message. Raises `InvalidRequest` where no message holds as many."""
        nbytes = value.numel() * element_bytes
        if nbytes + MESSAGE_ROOM > self._settings.session.max_message_bytes:
            raise InvalidRequest(f"the value has {nbytes} bytes, more than one message carries; send or sum parts of it")
        return nbytes

    def describe(self, object_id: ObjectId) -> ObjectDescription:
        """What is known of an object without its value. Raises what made it fail."""
        value = self._objects.get(object_id).value
        kind = self._labels.type_of(value)
        return ObjectDescription(
            shape=tuple(value.shape),
            dtype=short_dtype(value.dtype),
            datasets=kind.datasets,
            axis=kind.public_axis(),
            reason=kind.mixed.text if kind.mixed is not None else "",
        )

    def open_dataset(self, message: OpenDataset, report: Report) -> None:
        """Give a part of a dataset, or some of its blocks, an id."""
        self._attempt((message.object,), message.command, report, lambda: self._open(message))

    def _open(self, message: OpenDataset) -> None:
        dataset = self._custody.datasets.get(message.dataset)
        if dataset is None:
            raise NotFound(f"this node has no dataset {message.dataset[:100]!r}")
        source = dataset.part(message.part, message.column)
        if message.blocks:
            rows = blocks.rows_of(self._custody.blocks[dataset.name], message.blocks)
            value = source[rows]
            every = blocks.count(dataset.rows, dataset.policy.min_rows) == 1  # one block is the whole dataset, as everybody knows
            kind = self._labels.dataset_type(dataset.name, dataset.rows, value.shape, None if every else rows)
        else:
            # An object of its own over the dataset's memory, which `fixed` protects from being written.
            value = source.detach() if source.is_contiguous() else source.contiguous()
            kind = self._labels.dataset_type(dataset.name, dataset.rows, value.shape)
        if tuple(value.shape) != message.shape or short_dtype(value.dtype) != message.dtype:
            found = f"shape {tuple(value.shape)} and dtype {short_dtype(value.dtype)}"
            raise InvalidRequest(
                f"{message.part} of dataset {dataset.name!r} has {found}, not {message.shape} and {message.dtype};"
                " look the dataset up again"
            )
        self._labels.enter(value, kind, fixed=not message.blocks)
        self._keep(message.object, value, dataset_part(message.part, message.column), counted=bool(message.blocks))

    def _keep(self, object_id: ObjectId, value: Tensor, lineage: Lineage, *, counted: bool = True) -> None:
        if object_id < 0:
            raise InvalidRequest("the id of an object is a positive number")
        if object_id:  # 0: the client does not want it
            self._objects.put(object_id, value, lineage, counted=counted)

    # ------------------------------------------------------------ commands

    def run_commands(self, message: Commands, report: Report) -> None:
        """Run operations in order; what fails is reported, and the rest goes on."""
        inline = _Inline(self, message.tensors)
        for number, command in enumerate(message.commands, message.first):
            if self._closed():
                return
            spoilt = (*command.outputs, *_written_refs(command))
            self._attempt(spoilt, number, report, partial(self._run, command, inline, f"command {number}"))

    def _run(self, command: Command, inline: _Inline, where: str) -> None:
        op = lookup(command.op)
        args = [self._resolve(arg, inline) for arg in command.args]
        kwargs = {name: self._resolve(arg, inline) for name, arg in command.kwargs.items()}
        targets = [self._objects.get(target).value for target in _written_refs(command)]
        try:
            results = self._apply(op, args, kwargs, where)
        finally:  # it may have written, however it ended
            for target in targets:
                self._objects.written(target)
        if len(results) != len(command.outputs):
            raise InvalidRequest(f"{op.name} gives {len(results)} tensors, and {len(command.outputs)} were named", op=op.name)
        for object_id, result in zip(command.outputs, results, strict=True):
            self._keep(object_id, result, DERIVED)

    def _apply(self, op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[Tensor]:
        """Run one operation under labels. This is the meaning of an operation in plans, too."""
        if self._closed():
            raise NodeUnavailable("the client's session is over")
        return self._labels.run(op, args, kwargs, where)

    def _tell_failure(self, failure: ExecutionFailed | None) -> None:
        """Raise the failure behind a value that was let go, if there is one, and count it."""
        if failure is None:
            return
        self._count_private_error()
        kind, _, number = str(failure.details.get("step", "")).partition(" ")
        command = {"command": int(number)} if kind == "command" else {}
        raise ExecutionFailed(failure.message, **{**failure.details, **command})

    def _count_private_error(self) -> None:
        """An error that private values decide on tells a little about them; a few of these and the session is over."""
        count = self._custody.gate.count_error(self._client)
        if count >= self._settings.max_private_errors:
            self.on_ended(
                ReleaseDenied(
                    f"{count} operations on private values failed within an hour, and each such failure tells a little about"
                    " them; the session is over",
                    rule="private_errors",
                )
            )

    def _resolve(self, arg: Any, inline: _Inline) -> Any:
        """An argument with tensors in place of references."""
        if type(arg) is Ref:
            return self._operand(ObjectId(int(arg)))
        if type(arg) is Inline:
            return inline[int(arg)]
        if type(arg) is list:
            return [self._resolve(item, inline) for item in arg]
        return arg

    def _operand(self, object_id: ObjectId) -> Tensor:
        failure = self._objects.failure(object_id)
        if failure is not None:
            raise _Depends(failure)
        return self._objects.get(object_id).value

    def _attempt(self, spoilt: Sequence[ObjectId], number: int, report: Report, work: Callable[[], None]) -> None:
        """Do the work of a command; if it fails, what it was to make or to change has failed."""
        try:
            work()
            return
        except _Depends as dependent:
            error = dependent.error
        except GridError as failed:
            # What uses the result later fails with this number, too: so the client finds the line to blame, and tells it once.
            error = type(failed)(failed.message, **{**failed.details, "command": number})
            report(number, error)
        except Exception:
            log.exception("command %d failed", number)
            error = GridError("something went wrong inside the node; its log says what", command=number)
            report(number, error)
        for object_id in spoilt:
            if object_id > 0:
                self._objects.fail(object_id, error)

    # ------------------------------------------------------------ plans

    def put_plan(self, message: PutPlan) -> None:
        """Take a plan. One that is refused makes its calls fail."""
        if message.plan in self._plans:
            return
        size = memoryview(message.encoding).nbytes
        if len(self._plans) >= MAX_PLANS or self._plan_bytes + size > 4 * self._settings.max_plan_bytes:
            raise QuotaExceeded("too many plans of one client; open a new session")
        try:
            plan = decode(message.encoding, self._settings.max_plan_bytes)
            if plan.id != message.plan:
                raise PlanRejected("the plan that came is not the one that was named")
            constants = [self._labels.enter(constant) for constant in interpret.constants_of(plan)]
        except GridError as error:
            self._plans[message.plan] = error
        else:
            self._plans[message.plan] = _LoadedPlan(plan, constants)
            self._plan_bytes += size

    def run_plan(self, message: RunPlan, report: Report) -> None:
        """Run a plan; its results get their ids, or all of them fail."""
        self._attempt(message.outputs, message.command, report, lambda: self._run_plan(message))

    def _run_plan(self, message: RunPlan) -> None:
        loaded = self._plans.get(message.plan)
        if loaded is None:
            raise NotFound("this plan was not sent in this session")
        if isinstance(loaded, GridError):
            raise type(loaded)(loaded.message, **loaded.details)
        plan = loaded.plan
        if len(message.outputs) != len(plan.outputs):
            raise InvalidRequest(f"the plan {plan.name} gives {len(plan.outputs)} tensors, and {len(message.outputs)} were named")
        inline = _Inline(self, message.tensors)
        inputs = [self._input(arg, inline) for arg in message.inputs]
        tensors = [tensor for tensor, _ in inputs]
        room = self._settings.max_bytes_per_client - self._objects.used_bytes
        check_limits(
            plan,
            tensors,
            max_elements=self._settings.max_op_elements,
            max_bytes=room,
            max_flops=self._settings.max_plan_flops,
            max_steps=self._settings.max_plan_steps,
        )
        lineages = plan_results(plan.id, inputs, len(plan.outputs))
        results = interpret.run(plan, tensors, self._apply, loaded.constants)
        for object_id, result, lineage in zip(message.outputs, results, lineages, strict=True):
            self._keep(object_id, result, lineage)

    def _input(self, arg: Any, inline: _Inline) -> tuple[Tensor, Lineage | None]:
        """A plan's argument, and its lineage if it has a label."""
        value = self._resolve(arg, inline)
        if not isinstance(value, Tensor):
            raise InvalidRequest("a plan takes tensors")
        if not self._labels.type_of(value).labelled:
            return value, None
        return value, self._objects.get(ObjectId(int(arg))).lineage if type(arg) is Ref else DERIVED

    # ------------------------------------------------------------ moves

    def take_for_move(self, object_id: ObjectId) -> Parcel:
        """A copy of an object's present value for another node, which has yet to be allowed."""
        value = self._objects.get(object_id).value
        kind = self._labels.type_of(value)
        self._checked_size(value, value.element_size())
        return Parcel(to_frame(value), kind, kind.datasets, self._labels.spoilt(value))

    def allow_move(self, parcel: Parcel, to: str) -> None:
        """Raise `ReleaseDenied` unless the owners of the rows in a parcel let it go to the node of this name."""
        if parcel.kind.labelled:
            self._custody.gate.check_errors(self._client)
            self._custody.gate.check_move(parcel.kind, to)
            self._tell_failure(parcel.spoilt)

    def take_delivery(self, object_id: ObjectId, delivery: Delivery) -> None:
        """Keep what another node sent; with its label, if it has one."""
        try:
            value = from_frame(delivery.tensor)
            origins = [f"{delivery.sender}/{dataset[:100]}" for dataset in delivery.datasets]
            self._labels.enter(value, self._labels.foreign(origins, value.shape))
            self._keep(object_id, value, DERIVED if origins else OWN)
        except GridError as error:
            self._objects.fail(object_id, error)

    # ------------------------------------------------------------ sums

    def take_operand(self, message: StartSum, claim: Callable[[], None]) -> Operand:
        """The operand of a secure sum in ring elements. Raises what the gate has against it."""
        stored = self._objects.get(message.object)
        kind, lineage, gate = self._labels.type_of(stored.value), stored.lineage, self._custody.gate
        self._checked_size(stored.value, RING_BYTES)
        if not kind.labelled:
            elements = self._encode(stored.value, message)
            claim()
            return Operand(elements, None, "", 0, labelled=False, own=False, open=False, commit=lambda: None)
        gate.check_errors(self._client)
        rows = gate.check_sum(kind, lineage.origin)
        self._tell_failure(self._labels.spoilt(stored.value))
        try:
            elements = self._encode(stored.value, message)
        except ExecutionFailed:
            self._count_private_error()
            raise
        claim()
        commit = partial(
            gate.release_sum,
            kind,
            lineage.origin,
            elements=stored.value.numel(),
            nbytes=elements.nbytes,
            client=self._client,
        )
        return Operand(
            elements,
            lineage.origin.plan,
            lineage.arguments,
            rows,
            labelled=True,
            own=True,
            open=gate.is_open(kind),
            commit=commit,
        )

    def _encode(self, value: Tensor, message: StartSum) -> ring.Elements:
        return ring.from_tensor(fixed.encode(value, message.fraction_bits, len(message.roster)))


class _Inline:
    """The tensors of one message, made and entered when a command first uses one."""

    def __init__(self, workspace: Workspace, frames: Sequence[TensorFrame]) -> None:
        self._workspace = workspace
        self._frames = frames
        self._made: dict[int, Tensor] = {}

    def __getitem__(self, index: int) -> Tensor:
        made = self._made.get(index)
        if made is None:
            if not 0 <= index < len(self._frames):
                raise InvalidRequest(f"the message brings {len(self._frames)} tensors, and number {index} was named")
            made = self._made[index] = self._workspace._labels.enter(from_frame(self._frames[index]))
        return made


def _written_refs(command: Command) -> list[ObjectId]:
    """The objects that a command writes into, by its operation's table entry; none for one that is not in the table."""
    try:
        op = lookup(command.op)
    except GridError:
        return []
    found: list[ObjectId] = []
    for name in op.mutates:
        position = op.index[name]
        arg = command.args[position] if position < len(command.args) else command.kwargs.get(name)
        found.extend(ObjectId(int(item)) for item in (arg if isinstance(arg, list) else [arg]) if type(item) is Ref)
    return found
