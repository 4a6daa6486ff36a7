"""One client's memory at a node: objects, their labels, its plans. It answers one request at a time, on one thread.

It knows datasets, and no rules for what may leave: an `Offer` says what a value is, and the node's `Desk` decides.

What fails leaves a failed object behind, so that whoever uses it later hears the first cause. Only that first cause is
reported to the client; what merely depends on it is not. Whether an operation on rows fails may depend on their values, so
that is kept back (`Labels.spoilt`) until the gate has let the value go, and then it is counted.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from grid.errors import ExecutionFailed, GridError, InvalidRequest, NotFound, PlanRejected, QuotaExceeded
from grid.ids import ObjectId, PlanId
from grid.node.calls import Calls
from grid.node.dataset_views import DatasetView
from grid.node.lineage import DERIVED, OWN, Lineage, dataset_part, digest, plan_results
from grid.node.objects import ObjectStore, Stored
from grid.node.pace import Pace
from grid.node.work import OPENED_FROM_SHARES, Account, Done, KeepDelivery, MarkFailed, Offer, SumOffer, TakeValue
from grid.plans.ir import Plan, decode
from grid.plans.shapes import check_limits
from grid.policy import blocks
from grid.policy.claims import claim_of
from grid.policy.labelled_plans import LabelledPlan
from grid.policy.labels import Labels
from grid.settings import NodeSettings
from grid.tensors import fixed
from grid.tensors.buffers import from_frame, short_dtype, to_frame
from grid.tensors.exhausted import exhausted, is_exhausted
from grid.tensors.ops import Op, lookup
from grid.wire.messages import (
    Command,
    Commands,
    DescribeObject,
    ErrorInfo,
    FreeObjects,
    Inline,
    Message,
    ObjectDescription,
    OpenDataset,
    PutObject,
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

LEAST_LABEL_BYTES = 64 << 20
"""Memory for the row sets of one client's labels, however small its quota for values is."""

DONE = Done(count=1)
"""The answer to what has no other."""


class _Depends(Exception):
    """An operand has failed before; `error` is why."""

    def __init__(self, error: GridError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _LoadedPlan:
    plan: Plan
    labelled: LabelledPlan


class Workspace:
    """See the module. `on_failed` is told the number of each command that fails, and why.

    `lost`: why this is not the session's first workspace; an object that is not known may have been in one before.
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, DatasetView],
        settings: NodeSettings,
        pace: Pace,
        on_failed: Callable[[int, GridError], None],
        lost: GridError | None = None,
    ) -> None:
        self._sources = sources
        self._settings = settings
        self._pace = pace
        self._on_failed = on_failed
        self._labels = Labels(
            max_elements=settings.max_op_elements, max_bytes=max(LEAST_LABEL_BYTES, settings.max_bytes_per_client // 4)
        )
        self._objects = ObjectStore(
            max_objects=settings.max_objects_per_client, max_bytes=settings.max_bytes_per_client, lost=lost
        )
        self._plans: dict[PlanId, _LoadedPlan | GridError] = {}
        self._plan_bytes = 0
        self._calls = Calls() if any(source.by_hand for source in sources.values()) else None

    def handle(self, message: Message) -> Message:
        """The answer to a request (`grid.node.work.REQUESTS`). Raises `GridError`, also where there is no memory for it."""
        self._pace.begin(0)
        try:
            return HANDLERS[type(message)](self, message)
        except Exception as error:
            if is_exhausted(error):
                raise exhausted(message.tag) from None
            raise
        finally:
            self._pace.end()

    # ------------------------------------------------------------ values

    def put(self, message: PutObject) -> Message:
        """Keep a value of the client's own."""
        self._keep(message.object, self._labels.enter(from_frame(message.tensor)), OWN)
        return DONE

    def free(self, message: FreeObjects) -> Message:
        """Forget objects."""
        self._objects.free(message.objects)
        return DONE

    def mark_failed(self, message: MarkFailed) -> Message:
        """Mark an object as failed."""
        self._objects.fail(message.object, message.error.to_error())
        return DONE

    def clear(self) -> None:
        """Forget everything. The one method for after the session's end."""
        self._objects.clear()
        self._plans.clear()

    def offer(self, message: TakeValue) -> Offer:
        """An object's present value, over its own memory, with what the rules must know of it. Raises what made it fail."""
        stored = self._objects.get(message.object)
        value, kind = stored.value, self._labels.type_of(stored.value)
        self._checked_size(value, value.element_size())
        if not kind.labelled:
            return Offer(tensor=to_frame(value, copy=False))
        return Offer(
            tensor=to_frame(value, copy=False),
            claim=claim_of(kind),
            account=Account.of(stored.lineage.origin, part=stored.lineage.part, calls=stored.lineage.calls),
            failure=_told(self._labels.spoilt(value)),
        )

    def _checked_size(self, value: Tensor, element_bytes: int) -> int:
        """The bytes of a value in a message. Raises `InvalidRequest` where no message holds as many."""
        nbytes = value.numel() * element_bytes
        if nbytes + MESSAGE_ROOM > self._settings.session.max_message_bytes:
            raise InvalidRequest(f"the value has {nbytes} bytes, more than one message carries; send or sum parts of it")
        return nbytes

    def describe(self, message: DescribeObject) -> ObjectDescription:
        """What is known of an object without its value. Raises what made it fail."""
        value = self._objects.get(message.object).value
        kind = self._labels.type_of(value)
        return ObjectDescription(
            shape=tuple(value.shape),
            dtype=short_dtype(value.dtype),
            datasets=kind.datasets,
            axis=kind.public_axis(),
            reason=kind.mixed.text if kind.mixed is not None else "",
        )

    def _open(self, message: OpenDataset) -> None:
        """Give a part of a dataset, or some of its blocks, an id."""
        dataset = self._sources.get(message.dataset)
        if dataset is None:
            raise NotFound(f"this node has no dataset {message.dataset[:100]!r}")
        source = dataset.part(message.part, message.column)
        if message.blocks:
            rows = dataset.block_rows.of(message.blocks)
            value = source.index_select(0, torch.from_numpy(rows))
            every = blocks.count(dataset.rows, dataset.min_rows) == 1  # one block is the whole dataset, as everybody knows
            kind = self._labels.dataset_type(dataset.name, dataset.rows, value.shape, None if every else rows)
        else:
            # An object of its own over the dataset's memory, which `fixed` protects from being written; a column that lies
            # between others is a copy, and the client's to account for.
            value = source.detach() if source.is_contiguous() else source.contiguous()
            kind = self._labels.dataset_type(dataset.name, dataset.rows, value.shape)
        if tuple(value.shape) != message.shape or short_dtype(value.dtype) != message.dtype:
            found = f"shape {tuple(value.shape)} and dtype {short_dtype(value.dtype)}"
            raise InvalidRequest(
                f"{message.part} of dataset {dataset.name!r} has {found}, not {message.shape} and {message.dtype};"
                " look the dataset up again"
            )
        self._labels.enter(value, kind, fixed=not message.blocks)
        copied = value.data_ptr() != source.data_ptr()
        named = f"column {message.column!r}" if message.part == "column" else message.part
        shown = f"{named} of the dataset {dataset.name!r}"
        if message.blocks:
            shown = f"{len(message.blocks)} blocks of the rows of {shown}"
        self._keep(message.object, value, dataset_part(message.part, message.column, shown), counted=copied)

    def _keep(self, object_id: ObjectId, value: Tensor, lineage: Lineage, *, counted: bool = True) -> None:
        if object_id < 0:
            raise InvalidRequest("the id of an object is a positive number")
        if object_id:  # 0: the client does not want it
            self._objects.put(object_id, value, lineage, counted=counted)

    # ------------------------------------------------------------ commands

    def run_commands(self, message: Commands) -> Message:
        """Do what was asked in order; what fails is reported, and the rest goes on."""
        inline, frees = _Inline(self, message.tensors), message.frees
        for at, command in enumerate(message.commands):
            if self._pace.is_over:
                break
            number = message.first + at
            if isinstance(command, Command):
                self._pace.begin(number)
                self._attempt(command, number, partial(self._run, command, inline, f"command {number}"))
            elif isinstance(command, RunPlan):
                self._pace.begin_plan(number)
                self._attempt(command, number, partial(self._run_plan, command, inline))
            else:
                self._pace.begin(number)
                self._attempt(command, number, partial(self._open, command))
            if at < len(frees) and frees[at]:
                self._objects.free(frees[at])
        return DONE

    def _run(self, command: Command, inline: _Inline, where: str) -> None:
        op = lookup(command.op)
        args = [self._resolve(arg, inline) for arg in command.args]
        kwargs = {name: self._resolve(arg, inline) for name, arg in command.kwargs.items()}
        targets = [self._objects.get(target).value for target in _written_refs(op, command)] if op.mutates else []
        try:
            results = self._apply(op, args, kwargs, where, self._objects.reserve if all(command.outputs) else None)
        finally:  # it may have written, however it ended
            for target in targets:
                self._objects.written(target)
        if len(results) != len(command.outputs):
            raise InvalidRequest(f"{op.name} gives {len(results)} tensors, and {len(command.outputs)} were named", op=op.name)
        for object_id, result in zip(command.outputs, results, strict=True):
            self._keep(object_id, result, DERIVED)

    def _apply(
        self, op: Op, args: Sequence[Any], kwargs: dict[str, Any], where: str, reserve: Callable[[int], None] | None = None
    ) -> list[Tensor]:
        """Run one operation under labels. This is the meaning of an operation in plans, too, whose bytes are counted before."""
        self._pace.step()
        return self._labels.run(op, args, kwargs, where, reserve)

    def _resolve(self, arg: Any, inline: _Inline) -> Any:
        """An argument with tensors in place of references."""
        if type(arg) is Ref:
            return self._operand(ObjectId(arg)).value
        if type(arg) is Inline:
            return inline[int(arg)]
        if type(arg) is list:
            return [self._resolve(item, inline) for item in arg]
        return arg

    def _operand(self, object_id: ObjectId) -> Stored:
        """The object. Raises `_Depends` where it has failed before."""
        failure = self._objects.failure(object_id)
        if failure is not None:
            raise _Depends(failure)
        return self._objects.get(object_id)

    def _attempt(self, command: Command | OpenDataset | RunPlan, number: int, work: Callable[[], None]) -> None:
        """Do the work of a command; if it fails, what it was to make or to change has failed."""
        try:
            work()
            return
        except _Depends as dependent:
            error = dependent.error
        except GridError as failed:
            # What uses the result later fails with this number, too: so the client finds the line to blame, and tells it once.
            error = type(failed)(failed.message, **{**failed.details, "command": number})
            self._on_failed(number, error)
        except Exception as unexpected:
            if is_exhausted(unexpected):
                error = exhausted(f"command {number}")
                error.details["command"] = number
            else:
                log.exception("command %d failed", number)
                error = GridError("something went wrong inside the node; its log says what", command=number)
            self._on_failed(number, error)
        for object_id in _spoilt(command):
            if object_id > 0:
                self._objects.fail(object_id, error)

    # ------------------------------------------------------------ plans

    def put_plan(self, message: PutPlan) -> Message:
        """Take a plan. One that is refused makes its calls fail."""
        if message.plan in self._plans:
            return DONE
        size = memoryview(message.encoding).nbytes
        if len(self._plans) >= MAX_PLANS or self._plan_bytes + size > 4 * self._settings.max_plan_bytes:
            raise QuotaExceeded("too many plans of one client; open a new session")
        self._plan_bytes += size  # of one that is refused, too: whoever sends such plans sends many
        try:
            plan = decode(message.encoding, self._settings.max_plan_bytes)
            if plan.id != message.plan:
                raise PlanRejected("the plan that came is not the one that was named")
            labelled = LabelledPlan(self._labels, plan, self._apply, self._pace.step)
        except GridError as error:
            self._plans[message.plan] = error
        else:
            self._plans[message.plan] = _LoadedPlan(plan, labelled)
        return DONE

    def _run_plan(self, message: RunPlan, inline: _Inline) -> None:
        """Run a plan; its results get their ids, or all of them fail."""
        loaded = self._plans.get(message.plan)
        if loaded is None:
            raise NotFound("this plan was not sent in this session")
        if isinstance(loaded, GridError):
            raise type(loaded)(loaded.message, **loaded.details)
        plan = loaded.plan
        if len(message.outputs) != len(plan.outputs):
            raise InvalidRequest(f"the plan {plan.name} gives {len(plan.outputs)} tensors, and {len(message.outputs)} were named")
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

        def content(number: int) -> bytes:
            arg = message.inputs[number]
            return self._objects.digest(ObjectId(int(arg))) if type(arg) is Ref else digest(tensors[number])

        lineages = plan_results(plan.id, inputs, len(plan.outputs), content)
        if self._calls is not None and lineages and lineages[0].part:
            lineages = self._calls.told(lineages, plan, inputs)
        results = loaded.labelled.run(tensors)
        for object_id, result, lineage in zip(message.outputs, results, lineages, strict=True):
            self._keep(object_id, result, lineage)

    def _input(self, arg: Any, inline: _Inline) -> tuple[Tensor, Lineage | None]:
        """A plan's argument, and its lineage if it has a label."""
        if type(arg) is Ref:
            value, lineage, _ = self._operand(ObjectId(arg))
        elif type(arg) is Inline:
            value, lineage = inline[arg], DERIVED
        else:
            raise InvalidRequest("a plan takes tensors")
        return value, lineage if self._labels.type_of(value).labelled else None

    # ------------------------------------------------------------ moves and sums

    def keep_delivery(self, message: KeepDelivery) -> Message:
        """Keep what another node sent; with its label, if it has one."""
        try:
            value = from_frame(message.tensor)
            origins = [f"{message.sender}/{dataset[:100]}" for dataset in message.datasets]
            self._labels.enter(value, self._labels.foreign(origins, value.shape, opened=message.sender == OPENED_FROM_SHARES))
            self._keep(message.object, value, DERIVED if origins else OWN)
        except GridError as error:
            self._objects.fail(message.object, error)
        return DONE

    def offer_sum(self, message: StartSum) -> SumOffer:
        """The operand of a secure sum in ring elements, with what the rules must know of it."""
        stored = self._objects.get(message.object)
        value, kind, lineage = stored.value, self._labels.type_of(stored.value), stored.lineage
        self._checked_size(value, RING_BYTES)
        account = Account.of(lineage.origin, lineage.arguments)
        if not kind.labelled:
            return SumOffer(tensor=self._encode(value, message), claim=None, account=account)
        tensor, failure = None, _told(self._labels.spoilt(value))
        if failure is None:
            try:
                tensor = self._encode(value, message)
            except ExecutionFailed as error:  # whether a value fits depends on the rows behind it
                failure = ErrorInfo.of(error)
        return SumOffer(tensor=tensor, claim=claim_of(kind), account=account, failure=failure)

    def _encode(self, value: Tensor, message: StartSum) -> TensorFrame:
        return to_frame(fixed.encode(value, message.fraction_bits, len(message.roster)), copy=False)


HANDLERS: Mapping[type[Message], Callable[[Workspace, Any], Message]] = MappingProxyType(
    {
        PutObject: Workspace.put,
        Commands: Workspace.run_commands,
        FreeObjects: Workspace.free,
        PutPlan: Workspace.put_plan,
        DescribeObject: Workspace.describe,
        StartSum: Workspace.offer_sum,
        TakeValue: Workspace.offer,
        KeepDelivery: Workspace.keep_delivery,
        MarkFailed: Workspace.mark_failed,
    }
)
"""Request -> what answers it."""


def _told(failure: ExecutionFailed | None) -> ErrorInfo | None:
    """A failure that depends on rows, as it is told once they may be known: with the command's number, if one is to blame."""
    if failure is None:
        return None
    kind, _, number = str(failure.details.get("step", "")).partition(" ")
    command = {"command": int(number)} if kind == "command" else {}
    return ErrorInfo.of(ExecutionFailed(failure.message, **{**failure.details, **command}))


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


def _spoilt(command: Command | OpenDataset | RunPlan) -> Sequence[ObjectId]:
    """The objects that a command was to make or to write into."""
    if isinstance(command, OpenDataset):
        return (command.object,)
    if isinstance(command, RunPlan):
        return command.outputs
    try:
        return (*command.outputs, *_written_refs(lookup(command.op), command))
    except GridError:  # it is not in the table
        return command.outputs


def _written_refs(op: Op, command: Command) -> list[ObjectId]:
    """The objects that a command writes into."""
    found: list[ObjectId] = []
    for name in op.mutates:
        position = op.index[name]
        arg = command.args[position] if position < len(command.args) else command.kwargs.get(name)
        found.extend(ObjectId(int(item)) for item in (arg if isinstance(arg, list) else [arg]) if type(item) is Ref)
    return found
