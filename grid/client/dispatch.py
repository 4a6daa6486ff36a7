"""From an operation that torch was asked for to a command for the node that has the operands.

This is the path that every operation of every remote model takes, some ten microseconds long, so it is flat on purpose:
one pass over the arguments makes both the key of the shape cache and the arguments as they travel.

* Remote operands travel as `Ref`. All must be of one session at one node.
* Local operands travel beside the command, copied at this moment: what the caller writes into them later does not count.
  A local number (0 dimensions) travels as a scalar where that gives the very same result.
* Operations that only exist to give out values or sizes are refused with advice, before anything is sent.
* `detach` and `alias` make no command: the new tensor stands for the same value at the node, under the same handle.
* `t` makes one only once its result is used: of the operations that autograd asks for around a linear layer a third are
  transposes, and more than half of those undo another one, or are made for one that does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

import torch

from grid.client.fused import FUSED
from grid.client.masks import INDEXED, without_masks
from grid.client.origins import Origin, describe, origin
from grid.client.shapes import CPU, Entry, Meta, Result, Shapes, is_known, written_arguments
from grid.errors import GridError, InvalidRequest, OpNotSupported
from grid.ids import ObjectId
from grid.tensors.buffers import short_dtype, to_frame
from grid.wire.messages import Arg, Command, DType, Inline, MemoryFormat, Ref, TensorFrame

aten: Any = torch.ops.aten

MEMORY_FORMATS: Mapping[torch.memory_format, MemoryFormat] = {
    torch.contiguous_format: MemoryFormat("contiguous"),
    torch.preserve_format: MemoryFormat("preserve"),
    torch.channels_last: MemoryFormat("channels_last"),
}

NUMBERS_ALLOWED = frozenset(
    {
        aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor,
        aten.mul.Tensor, aten.mul_.Tensor, aten.div.Tensor, aten.div_.Tensor,
    }
)  # fmt: skip
"""Operations that take a number in place of their second tensor."""

EXACT_AS_NUMBER = frozenset({torch.float32, torch.float64, torch.int64})
"""Dtypes whose values a Python number holds exactly and gets back unchanged."""

USE_GET = "x.get() copies a remote value here if its owner's rules let it: write x.get()"

NEEDS_VALUES: Mapping[Any, str] = {
    aten._local_scalar_dense.default: f"a Python number needs the value. {USE_GET}.item()",
    aten.is_nonzero.default: f"a condition needs the value. {USE_GET}, or torch.where for a choice element by element",
    aten.equal.default: "torch.equal needs the values. Compare where they are, ((a != b).sum()).get(), or get() both",
    aten.allclose.default: "torch.allclose needs the values. Compare where they are, (a - b).abs().sum().get(), or get() both",
    aten.nonzero.default: "nonzero has a size that only the values tell. Use torch.where(mask, x, 0) or multiply by the mask",
    aten.masked_select.default: "a selection by mask has a size that only the values tell. Use torch.where(mask, x, 0)",
    aten._unique2.default: "unique has a size that only the values tell. Count with (x[:, None] == torch.arange(k)).sum(0)",
    aten.unique_dim.default: "unique has a size that only the values tell",
    aten.unique_consecutive.default: "unique has a size that only the values tell",
    aten.bincount.default: "bincount has a size that only the values tell. Count with (x[:, None] == torch.arange(k)).sum(0)",
}
"""Operations that cannot be done without the values, and what to write instead."""

VIEWS_IN_PLACE: Mapping[Any, Any] = {
    aten.t_.default: aten.t.default,
    aten.transpose_.default: aten.transpose.int,
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.unsqueeze_.default: aten.unsqueeze.default,
}
"""Operations that change a tensor's geometry in place, and the views that do the same. Nodes run the view: there, an object
that others may share never changes its shape."""

TRANSPOSE = aten.t.default
DETACH, ALIAS = aten.detach.default, aten.alias.default

ON_THEIR_OWN = frozenset((*VIEWS_IN_PLACE, *INDEXED))

DEVICE_WORDS = frozenset({"device", "layout", "pin_memory", "generator", "non_blocking"})
"""Arguments that say where memory lies. A node decides that for itself, so they do not travel."""


class Place(Protocol):
    """Where remote tensors are, as users see it: `x.location`."""

    @property
    def name(self) -> str: ...
    @property
    def id(self) -> str: ...


class Outbox(Protocol):
    """What remote tensors need from the session that holds their values. `connection.NodeConnection` is one."""

    shapes: Shapes

    @property
    def place(self) -> Place: ...
    def new_id(self) -> ObjectId:
        """A fresh object id; may be called from any thread."""
        ...

    def emit(self, command: Command, tensors: Sequence[TensorFrame], place: Origin, what: str) -> None:
        """Queue a command; its `Inline` arguments count from 0 in `tensors`. May block while too much is under way.

        `place` and `what` are the line that asked for it, and what to call it, if it fails.
        """
        ...

    def free(self, object_id: ObjectId) -> None:
        """The object is not needed any more. Called from finalizers: takes no lock, never raises."""
        ...

    def wait(self, work: Any) -> Any:
        """The result of the coroutine `work`; an awaitable of it where the client is asynchronous."""
        ...

    async def read(self, tensor: Any, timeout_s: float | None) -> torch.Tensor:
        """A copy of a remote value."""
        ...

    async def move(self, tensor: Any, to: Place, timeout_s: float | None) -> Any:
        """A new remote tensor at the node `to`."""
        ...

    def run_plan(self, plan: Any, leaves: Sequence[Any]) -> list[torch.Tensor]:
        """Call a plan on remote tensors; its results are remote, too."""
        ...


class Handle:
    """One object at a node. Several tensors may share it; when the last of them goes, the object is freed there."""

    __slots__ = ("__weakref__", "object_id", "outbox", "ref", "relatives")

    ref: Ref
    """The form in arguments of commands."""

    relatives: WeakSet[Handle] | None
    """The handles that are views of it or of which it is one, and itself, as long as they live. Noted on shares alone."""

    def __init__(self, outbox: Outbox, object_id: ObjectId) -> None:
        self.outbox = outbox
        self.object_id = object_id
        self.ref = Ref(object_id)
        self.relatives = None

    def __del__(self) -> None:
        self.outbox.free(self.object_id)


class Transposed(Handle):
    """The transpose of what `of` stands for, which has the geometry `meta`: a view that the node makes once something uses it.

    A view is of its base's memory whenever it is made, so it does not matter what is written there until then.
    """

    __slots__ = ("_place", "meta", "of")

    def __init__(self, of: Handle, meta: Meta, place: Origin) -> None:
        self.outbox = of.outbox
        self.object_id = ObjectId(0)
        self.of = of
        self.meta = meta
        self.relatives = None
        self._place = place

    @property
    def ref(self) -> Ref:  # type: ignore[override]  # it is written once, here
        if not self.object_id:  # no lock: two threads may both make it, and both views are right
            made = self.outbox.new_id()
            command = Command(op="aten.t.default", args=[self.of.ref], kwargs={}, outputs=(made,))
            self.outbox.emit(command, (), self._place, command.op)
            self.object_id = made
        return Ref(self.object_id)

    def __del__(self) -> None:
        if self.object_id:
            self.outbox.free(self.object_id)


Make: TypeAlias = Callable[[Meta, Handle, int], Any]
"""(geometry, handle, storage offset) -> remote tensor."""


class Dispatcher:
    """`__torch_dispatch__` of one class of remote tensors. Holds no state of its own: that is in the operands' outboxes."""

    def __init__(self, cls: type, make: Make, needs_values: Mapping[Any, str] = NEEDS_VALUES) -> None:
        self._cls = cls
        self._make = make
        self._needs_values = needs_values

    def __call__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is DETACH or func is ALIAS:
            one = args[0]
            return self._make(one._meta, one._handle, one.storage_offset())
        if func is TRANSPOSE:
            return self._transposed(args[0])
        if func in ON_THEIR_OWN:  # one question for both: torch's hash of an operation runs in Python
            if func in VIEWS_IN_PLACE:
                return self._view_in_place(func, args)
            args, done = without_masks(func, args, kwargs, self._is_remote)
            if done is not None:
                return args[0] if INDEXED[func] == "write_" else done
        call = _Call(self._cls, func)
        for arg in args:
            call.add(arg)
        words: dict[str, Arg] = {}
        for name, value in kwargs.items():
            if name in DEVICE_WORDS:
                _check_device_word(name, value)
            else:
                call.key.append(name)
                call.add(value)
                words[name] = call.wire.pop()
        outbox = call.outbox
        if outbox is None:
            raise InvalidRequest(f"{func} was called with no remote tensor among its arguments")
        place = origin(2)
        entry = outbox.shapes.find(key := tuple(call.key))
        if entry is None:
            if func in self._needs_values:
                raise InvalidRequest(f"{self._needs_values[func]} (at {describe(place)})")
            if not is_known(func):
                parts = _in_parts(func, args, kwargs)
                if parts is not NotImplemented:
                    return parts
            entry = self._learn(key, func, args, kwargs, outbox, place)
        return self._emit(entry, call, words, args, kwargs, place)

    def _emit(
        self, entry: Entry, call: _Call, words: dict[str, Arg], args: Sequence[Any], kwargs: Mapping[str, Any], place: Origin
    ) -> Any:
        outbox, results = call.outbox, entry.results
        assert outbox is not None
        if type(results) is Result:
            if results.meta is None:
                outbox.emit(Command(op=entry.op, args=call.wire, kwargs=words, outputs=()), call.frames, place, entry.op)
                return _operand(results, args, kwargs)
            made = outbox.new_id()
            handle = Handle(outbox, made)
            outbox.emit(Command(op=entry.op, args=call.wire, kwargs=words, outputs=(made,)), call.frames, place, entry.op)
            offset = 0 if results.offset is None else results.offset + args[0].storage_offset()
            return self._make(results.meta, handle, offset)
        return self._emit_several(entry, call, words, args, kwargs, place)

    def _emit_several(
        self, entry: Entry, call: _Call, words: dict[str, Arg], args: Sequence[Any], kwargs: Mapping[str, Any], place: Origin
    ) -> Any:
        outbox = call.outbox
        assert outbox is not None and isinstance(entry.results, tuple)
        values: list[Any] = []
        outputs: list[ObjectId] = []
        for result in entry.results:
            if result.meta is None:
                values.append(_operand(result, args, kwargs))
                continue
            outputs.append(outbox.new_id())
            offset = 0 if result.offset is None else result.offset + args[0].storage_offset()
            values.append(self._make(result.meta, Handle(outbox, outputs[-1]), offset))
        outbox.emit(Command(op=entry.op, args=call.wire, kwargs=words, outputs=tuple(outputs)), call.frames, place, entry.op)
        return tuple(values) if values else None

    def _transposed(self, tensor: Any) -> Any:
        handle, offset = tensor._handle, tensor.storage_offset()
        if isinstance(handle, Transposed):
            return self._make(handle.meta, handle.of, offset)
        outbox, place, key = handle.outbox, origin(3), (id(TRANSPOSE), tensor._meta)
        entry = outbox.shapes.find(key) or self._learn(key, TRANSPOSE, (tensor,), {}, outbox, place)
        assert isinstance(entry.results, Result) and entry.results.meta is not None
        return self._make(entry.results.meta, Transposed(handle, tensor._meta, place), offset)

    def _is_remote(self, value: Any) -> bool:
        return isinstance(value, self._cls)

    def _view_in_place(self, func: Any, args: Sequence[Any]) -> Any:
        target, view = args[0], self(VIEWS_IN_PLACE[func], args, {})
        with torch._C._DisableTorchDispatch():  # torch changes the geometry that it knows, and asks nobody
            func(*args)
        target._handle, target._meta = view._handle, view._meta
        return target

    def _learn(
        self, key: tuple[Any, ...], func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outbox: Outbox, place: Origin
    ) -> Entry:
        """The slow path, once for each operation and geometry of operands."""
        self._refuse_local_targets(func, args, kwargs)
        shapes = outbox.shapes
        try:
            metas = [self._meta(shapes, arg) for arg in args]
            return shapes.learn(key, func, metas, {name: self._meta(shapes, value) for name, value in kwargs.items()})
        except GridError as error:
            raise type(error)(f"{error.message} (at {describe(place)})", **error.details) from None

    def _meta(self, shapes: Shapes, value: Any) -> Any:
        """The argument with each tensor replaced by its geometry."""
        if isinstance(value, self._cls):
            return value._meta  # type: ignore[attr-defined]
        if isinstance(value, torch.Tensor):
            return shapes.meta(value.shape, value.dtype, value.stride())
        if isinstance(value, (list, tuple)):
            return [self._meta(shapes, one) for one in value]
        return value

    def _refuse_local_targets(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        for number, name in written_arguments(func):
            target = args[number] if number < len(args) else kwargs.get(name)
            for one in target if isinstance(target, (list, tuple)) else [target]:
                if isinstance(one, torch.Tensor) and not isinstance(one, self._cls):
                    raise InvalidRequest(
                        f"{func} would write a remote value into a local tensor. {USE_GET} (for a module's parameters,"
                        " local.load_state_dict(remote.get().state_dict())), or make the target remote with node.send(...)"
                        f" (at {describe(origin(3))})"
                    )


class _Call:
    """The arguments of one call, as they are gathered: cache key, wire form, tensors that travel along, the session."""

    __slots__ = ("cls", "frames", "func", "key", "outbox", "same_dtype", "wire")

    def __init__(self, cls: type, func: Any) -> None:
        self.cls = cls
        self.func = func
        self.key: list[Any] = [id(func)]  # torch keeps its operations for ever, and their own hash runs in Python
        self.wire: list[Arg] = []
        self.frames: list[TensorFrame] = []
        self.outbox: Outbox | None = None
        self.same_dtype: torch.dtype | None = None

    def add(self, arg: Any) -> None:
        kind = type(arg)
        if kind is self.cls:
            handle = arg._handle
            if handle.outbox is not self.outbox:
                self._join(handle.outbox)
            self.key.append(arg._meta)
            self.wire.append(handle.ref)
        elif kind is float:
            self.key.append(float)
            self.wire.append(arg)
        elif kind is int or arg is None:
            self.key.append(arg)
            self.wire.append(arg)
        else:
            part, sent = self._other(arg)
            self.key.append(part)
            self.wire.append(sent)

    def _other(self, arg: Any) -> tuple[Any, Arg]:
        """Key and wire form of what is rarer. True and 1 are equal and hash alike, so the key tells them apart."""
        if isinstance(arg, bool):
            return ("bool", arg), arg
        if isinstance(arg, (list, tuple)):
            return self._several(arg)
        if isinstance(arg, torch.Tensor):
            return self._tensor(arg)
        if isinstance(arg, torch.dtype):
            return arg, DType(short_dtype(arg))
        if isinstance(arg, torch.memory_format):
            return arg, MEMORY_FORMATS[arg]
        if isinstance(arg, (str, int, float)):
            return arg, arg
        raise OpNotSupported(f"{self.func} has an argument of type {type(arg).__name__}, which cannot be sent to a node")

    def _several(self, args: Sequence[Any]) -> tuple[Any, Arg]:
        key, wire = self.key, self.wire
        self.key, self.wire = [], []
        for arg in args:
            if isinstance(arg, float):  # In a list, a number may decide a shape: scale factors do.
                self.key.append(arg)
                self.wire.append(arg)
            else:
                self.add(arg)
        part, sent = tuple(self.key), self.wire
        self.key, self.wire = key, wire
        return ("list", part), sent

    def _tensor(self, arg: torch.Tensor) -> tuple[Any, Arg]:
        if isinstance(arg, self.cls):  # A subclass of ours; treated as what it is.
            self._join(arg._handle.outbox)  # type: ignore[attr-defined]
            return arg._meta, arg._handle.ref  # type: ignore[attr-defined]
        if arg.device != CPU:
            raise InvalidRequest(f"a tensor on {arg.device} cannot be sent to a node: call .cpu() on it first")
        if not arg.dim() and self.func in NUMBERS_ALLOWED and self._partner_dtype() is arg.dtype in EXACT_AS_NUMBER:
            number = arg.item()
            return (float if isinstance(number, float) else number), number
        self.frames.append(to_frame(arg.detach().clone(memory_format=torch.contiguous_format)))
        return (arg.dtype, arg.shape, arg.stride()), Inline(len(self.frames) - 1)

    def _partner_dtype(self) -> torch.dtype | None:
        """The dtype of the first operand, if that is a remote tensor."""
        first = self.key[1] if len(self.key) == 2 else None
        return first.dtype if isinstance(first, Meta) else None

    def _join(self, outbox: Outbox) -> None:
        if self.outbox is None:
            self.outbox = outbox
        elif outbox is not self.outbox:
            raise _two_places(self.func, self.outbox, outbox)


def _in_parts(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of an operation that nodes do not have, by operations that they have; NotImplemented where there is no way.

    Most composite operations never come here: autograd takes them apart first. It does not in inference mode.
    """
    if func in FUSED:
        return FUSED[func](*args, **kwargs)
    return func.decompose(*args, **kwargs)


def _operand(result: Result, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The operand that the operation returns, or None where it returns nothing there."""
    if result.operand is None:
        return None
    return kwargs[result.operand] if isinstance(result.operand, str) else args[result.operand]


def _two_places(func: Any, a: Outbox, b: Outbox) -> InvalidRequest:
    where = describe(origin(5))
    if a.place.id != b.place.id:
        return InvalidRequest(
            f"{func} has operands at {a.place.name} and at {b.place.name}: bring them together with x.move(node) where the"
            f" owner's rules allow it, or reduce each one and use grid.sum([...]) (at {where})"
        )
    return InvalidRequest(
        f"{func} has operands of two sessions at {a.place.name}: tensors of two clients, or from before a reconnection, do not"
        f" mix; send or open one of them again (at {where})"
    )


def _check_device_word(name: str, value: Any) -> None:
    if name == "device" and value is not None and torch.device(value) != CPU:
        raise InvalidRequest(f"device={value}: a node chooses its own devices; leave the argument out")
    if name == "generator" and value is not None:
        raise InvalidRequest("generator=...: randomness of remote tensors is the node's own; leave the argument out")
    if name == "layout" and value not in (None, torch.strided):
        raise InvalidRequest(f"layout={value}: remote tensors are dense")
