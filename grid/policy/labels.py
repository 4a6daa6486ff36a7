"""One client's labelled memory at one node: runs operations and types what they make (docs/labels.md).

`Labels` knows the type of every tensor that it has seen, by object, and every other tensor that shares its memory. An
operation is bound, measured against limits, typed by its row rule, checked for values that its kernel would trust, and
only then run.
What it writes is followed through all tensors that share memory with the target:

1. the target takes the new type, joined with its old cells; mixed stays mixed;
2. another view of the memory becomes mixed if it or the new value has an Order, else its cells refine and CONST is FREE;
3. a view that was never entered is the join of all that share its memory, mixed if any of those has a label;
4. an in-place operation that raises leaves its target mixed, since it may have written a part.

Verdicts are kept by operation, forms, dtypes and constants; only an index whose values decide is judged each time.
A `Labels` belongs to one thread at a time. Tensors may be dropped by any thread: what is dead is noted and cleared up later.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grid.errors import ExecutionFailed, InvalidRequest, LocalProtocolError, QuotaExceeded
from grid.tensors import bounds
from grid.tensors.calls import Call, Forms
from grid.tensors.ops import Bound, Op, bind, flatten
from grid.tensors.rows import NOTHING, Form, Mix, Reason, Space, Story, Type, plain_dims
from grid.tensors.rules import ROW_RULES, Rule, judge
from grid.tensors.rules_layers import running_statistics
from grid.wire.messages import Arg

MAX_VERDICTS = 8192
DROPOUT_CHUNK = 1 << 20

THROUGH_ANOTHER_VIEW = Reason("rows were written through another view of the same memory", "torch.stack or torch.cat")
HALF_WRITTEN = Reason("an in-place operation failed and may have written a part", "write again from a fresh tensor")
UNKNOWN_VIEW = Reason("a view of labelled memory that nobody registered")
FROM_ELSEWHERE = Reason("the value was moved here from another owner's node")
OTHER_SHAPE = Reason("an operation returned another shape than it announced")
TOO_MUCH = Reason("the selections of rows behind it take too much memory", "ds.batches")
PRIVATE_FAILURE = "the operation failed; what it works on is private, so nothing more can be said"


class _Memory:
    """One storage: the tensors that share it. `fixed` memory belongs to a dataset and is never written."""

    __slots__ = ("fixed", "key", "views")

    def __init__(self, key: int) -> None:
        self.key = key
        self.fixed = False
        self.views: dict[int, _Handle] = {}


class _Handle(weakref.ref[Tensor]):
    """A tensor that was entered, as long as it lives, and its type."""

    __slots__ = ("key", "memory", "type")

    key: int
    memory: _Memory
    type: Type


class _Verdict(NamedTuple):
    """What a call makes: the forms of fresh results, and of what it writes, by argument name and position in a list."""

    results: tuple[Form, ...]
    writes: tuple[tuple[str, int, Form], ...]


class Labels:
    """See the module. `random_bytes` draws dropout masks. `strict` raises where a rule breaks instead of calling it mixed."""

    def __init__(
        self,
        *,
        max_elements: int = bounds.MAX_ELEMENTS,
        max_bytes: int = 1 << 30,
        random_bytes: Callable[[int], bytes] = os.urandom,
        rules: Mapping[str, Rule] = ROW_RULES,
        strict: bool = False,
    ) -> None:
        self.space = Space(max_bytes)
        self._max_elements = max_elements
        self._random_bytes = random_bytes
        self._rules = rules
        self._strict = strict
        self._handles: dict[int, _Handle] = {}
        self._memories: dict[int, _Memory] = {}
        self._dead: deque[weakref.ref[Tensor]] = deque()
        self._verdicts: dict[tuple[Any, ...], _Verdict] = {}
        self._shapes: dict[tuple[Any, ...], tuple[tuple[int, ...], ...]] = {}
        self.space.on_pressure.append(self._verdicts.clear)

    # ------------------------------------------------------------ types

    def dataset_type(self, name: str, rows: int, shape: Sequence[int], index: npt.NDArray[Any] | None = None) -> Type:
        """The type of a tensor whose dimension 0 holds rows of a dataset of `rows` rows: all in turn, or those of `index`."""
        self.space.dataset(name, rows)
        try:
            order = self.space.order(name, np.arange(rows) if index is None else index)
        except Mix as mix:
            raise InvalidRequest(f"rows of {name!r}: {mix.reason.text}") from None
        if len(order) != shape[0]:
            raise LocalProtocolError(f"{len(order)} rows of {name!r} were entered as a tensor of shape {tuple(shape)}")
        first = ((len(order), order),) if len(order) > 1 else ()
        blame = frozenset() if len(order) > 1 else frozenset([name])
        return Type(self.space.form([first, *plain_dims(shape[1:])], {name: self.space.cells_of(order)}, blame))

    def foreign(self, origins: Sequence[str], shape: Sequence[int]) -> Type:
        """The type of a value that another node sent: mixed for ever, and the names of its datasets stay on it."""
        if not origins:
            return Type(self.space.plain(shape))
        return Type(self.space.unknown(shape, origins, FROM_ELSEWHERE), Story("move"))

    def enter(self, tensor: Tensor, own: Type | None = None, *, fixed: bool = False) -> Tensor:
        """Register a tensor that no operation made: by default the client's own. `fixed`: its memory is never to be written."""
        if type(tensor) is not Tensor or (own is not None and own.shape != tuple(tensor.shape)):
            raise LocalProtocolError("only plain tensors of their type's shape can be labelled")
        self._clear_dead()
        self._register(tensor, own or Type(self.space.plain(tensor.shape)))
        if fixed:
            self._handles[id(tensor)].memory.fixed = True
        return tensor

    def type_of(self, tensor: Tensor) -> Type:
        """The type of a tensor that was entered or made here. Raises `LocalProtocolError` for any other."""
        return self._handle(tensor).type

    def forget(self, tensor: Tensor) -> None:
        """Drop a tensor's label before the tensor itself is dropped; happens by itself when the tensor dies."""
        self._clear_dead()
        self._remove(self._handles.get(id(tensor)))

    def forget_verdicts(self) -> None:
        """Judge every call anew from here on; for measurements, and when memory is short."""
        self._verdicts.clear()

    def __len__(self) -> int:
        """How many live tensors have a label here."""
        self._clear_dead()
        return len(self._handles)

    # ------------------------------------------------------------ running

    def run(self, op: Op, args: Sequence[Arg], kwargs: Mapping[str, Arg], where: str = "") -> list[Tensor]:
        """Run one operation and return its fresh results, typed. An in-place operation has none.

        `where` names the command or step in messages. Raises `InvalidRequest` (arguments, limits), `ExecutionFailed` (details
        `private` set where its occurrence may tell something about rows), `QuotaExceeded`.
        """
        bound = bind(op, args, kwargs)
        self._clear_dead()
        types: list[Type] = []
        key = self._look(bound, types)
        verdict = self._verdicts.get(key) or self._judge(bound, key)
        try:
            bounds.examine(bound)
        except bounds.OutOfBoundsError as error:
            raise self._failure(bound, types, where, error) from error
        targets = [bound[name][at] if at >= 0 else bound[name] for name, at, _ in verdict.writes] if verdict.writes else []
        for target in targets:
            if self._handle(target).memory.fixed:
                raise InvalidRequest(f"{op.name}: a dataset's own memory cannot be written; clone() it first", op=op.name)
        try:
            results = self._execute(bound, targets)
        except Exception as error:  # a kernel may raise anything, and what it wrote until then is not known
            self._spoil(bound, types, where)
            raise self._failure(bound, types, where, error) from error
        if targets:
            for target, (_, _, form) in zip(targets, verdict.writes, strict=True):
                self._write(target, Type(form, _story(form, types, where, op)), types)
        return self._settle(op, results, verdict, types, where)

    def _look(self, bound: Bound, types: list[Type]) -> tuple[Any, ...]:
        """Collect the operands' types, and all that a verdict depends on."""
        parts: list[Any] = [bound.op]
        strided = bound.op.strided
        for value in bound.values:
            if value.__class__ is Tensor:
                found = self._handle(value).type
                types.append(found)
                parts += (found[0], value.dtype)
                if strided:
                    parts.append(value.stride())
            elif value.__class__ is list:
                parts.append(tuple([self._look_item(item, types) for item in value]))
            else:
                parts += (value.__class__, value)
        return tuple(parts)

    def _look_item(self, item: Any, types: list[Type]) -> Any:
        if item.__class__ is not Tensor:
            return (item.__class__, item)
        found = self._handle(item).type
        types.append(found)
        return (found[0], item.dtype)

    def _judge(self, bound: Bound, key: tuple[Any, ...]) -> _Verdict:
        """Measure and type a call that was not seen before."""
        shapes = self._measured(bound)
        op = bound.op
        forms: dict[str, Forms] = {}
        for parameter, value in zip(op.parameters, bound.values, strict=True):
            if isinstance(value, Tensor):
                forms[parameter.name] = self._handle(value).type.form
            elif type(value) is list and "Tensor" in parameter.kind:
                forms[parameter.name] = [None if item is None else self._handle(item).type.form for item in value]
        call = Call(self.space, bound, forms, shapes)
        if op.rule == "lists":
            call.shapes = [tuple(target.shape) for target in bound["self"]]
        made = judge(call, self._rules, strict=self._strict)
        verdict = _Verdict(() if op.returns_target or op.rule == "lists" else tuple(made), self._writes(call, made))
        if not call.volatile:
            if len(self._verdicts) >= MAX_VERDICTS:
                self._verdicts.clear()
            self._verdicts[key] = verdict
        return verdict

    def _measured(self, bound: Bound) -> tuple[tuple[int, ...], ...]:
        """The shapes of a call's results. Running on meta tensors is the slow part of judging, and the same for any rows."""
        key = (bound.op, *[_outline(value) for value in bound.values])
        shapes = self._shapes.get(key)
        if shapes is None:
            shapes = tuple([tuple(result.shape) for result in bounds.measure(bound, self._max_elements)])
            if len(self._shapes) >= MAX_VERDICTS:
                self._shapes.clear()
            self._shapes[key] = shapes
        return shapes

    def _writes(self, call: Call, made: Sequence[Form]) -> tuple[tuple[str, int, Form], ...]:
        """The forms of the values that the call writes into its arguments."""
        op = call.bound.op
        if op.rule == "lists":
            return tuple([("self", at, form) for at, form in enumerate(made)])
        if op.returns_target:
            return ((op.mutates[0], -1, made[0]),)
        if not op.mutates or not call.arg("training", True):
            return ()
        names = [name for name in op.mutates if call.has(name)]
        mixed = next((form.mixed for form in made if form.mixed), None)
        if mixed is not None:
            return tuple([(name, -1, self.space.taint(call.inputs, call.of(name).shape, mixed)) for name in names])
        return tuple([(name, -1, running_statistics(call)) for name in names])

    def _execute(self, bound: Bound, targets: Sequence[Tensor]) -> list[Tensor]:
        """The fresh results of a call."""
        op = bound.op
        if op.rule == "dropout":
            return self._dropout(bound["input"], bound["p"], bound["train"] is not False)
        for target in targets:
            bound = self._apart(bound, target)
        results = flatten(bound.run())
        if op.unfilled:
            for result in results:
                result.zero_()  # fresh memory holds what a freed tensor held
        return [] if op.returns_target or op.rule == "lists" else results

    def _apart(self, bound: Bound, target: Tensor) -> Bound:
        """The call with operands copied that share memory with the target without being the same view of it."""
        memory = self._handle(target).memory
        if len(memory.views) == 1:
            return bound
        own = _geometry(target)

        def apart(value: Any) -> Any:
            if value.__class__ is list:
                return [apart(item) for item in value]
            if value.__class__ is not Tensor or value is target or self._handle(value).memory is not memory:
                return value
            return value if _geometry(value) == own else value.clone()

        return bound if bound.op.rule == "lists" else Bound(bound.op, tuple([apart(value) for value in bound.values]))

    def _dropout(self, value: Tensor, p: float, train: bool) -> list[Tensor]:
        """Inverted dropout whose mask comes from the cryptographic generator, 32 bits for each element."""
        if not train or p == 0:
            return [value.clone(), torch.ones_like(value, dtype=torch.bool)]
        count, threshold = value.numel(), round(p * 2**32)
        kept = np.empty(count, np.bool_)
        for start in range(0, count, DROPOUT_CHUNK):
            length = min(DROPOUT_CHUNK, count - start)
            words = np.frombuffer(self._random_bytes(4 * length), np.uint32)
            kept[start : start + length] = words >= threshold if threshold < 2**32 else False
        mask = torch.from_numpy(kept).reshape(value.shape)
        return [value * mask * (1 / (1 - p) if p < 1 else 0.0), mask]

    # ------------------------------------------------------------ keeping track

    def _settle(self, op: Op, results: list[Tensor], verdict: _Verdict, types: list[Type], where: str) -> list[Tensor]:
        """Register fresh results."""
        if not results:
            return results
        self._clear_dead()  # memory and ids of what died meanwhile may be those of the results
        if len(results) != len(verdict.results):
            raise LocalProtocolError(f"{op.name} returned {len(results)} tensors instead of {len(verdict.results)}")
        for result, form in zip(results, verdict.results, strict=True):
            if form.shape != result.shape:
                form = self.space.taint([t.form for t in types], result.shape, OTHER_SHAPE)
            self._register(result, Type(form, _story(form, types, where, op)))
        return results

    def _register(self, tensor: Tensor, own: Type) -> None:
        key = id(tensor)
        known = self._handles.get(key)
        if known is not None and known() is tensor:
            known.type = own
            return
        handle = _Handle(tensor, self._dead.append)
        place = tensor.untyped_storage()._cdata
        memory = self._memories.get(place)
        if memory is None:
            memory = self._memories[place] = _Memory(place)
        handle.key, handle.memory, handle.type = key, memory, own
        memory.views[key] = self._handles[key] = handle

    def _handle(self, tensor: Tensor) -> _Handle:
        handle = self._handles.get(id(tensor))
        if handle is not None and handle() is tensor:
            return handle
        memory = self._memories.get(tensor.untyped_storage()._cdata)
        if memory is None:
            raise LocalProtocolError("a tensor without a label was used; every tensor must be entered first")
        around = [view.type.form for view in memory.views.values()]
        self._register(tensor, Type(self.space.taint(around, tensor.shape, UNKNOWN_VIEW)))
        return self._handles[id(tensor)]

    def _clear_dead(self) -> None:
        dead = self._dead
        while dead:
            self._remove(dead.popleft())  # type: ignore[arg-type]  # only handles have this callback

    def _remove(self, handle: _Handle | None) -> None:
        if handle is None or self._handles.get(handle.key) is not handle:
            return
        del self._handles[handle.key]
        memory = handle.memory
        memory.views.pop(handle.key, None)
        if not memory.views and self._memories.get(memory.key) is memory:
            del self._memories[memory.key]

    # ------------------------------------------------------------ writes

    def _write(self, target: Tensor, new: Type, types: Sequence[Type]) -> None:
        """Rules 1 and 2: the target takes the new type, and every other view of its memory is weakened."""
        if not target.numel():
            return
        handle = self._handle(target)
        try:
            handle.type = written = self._joined(handle.type, new)
            if len(handle.memory.views) == 1:
                return
            own = _geometry(target)
            for view in list(handle.memory.views.values()):
                other = view()
                if view is handle or other is None:
                    continue
                view.type = written if _geometry(other) == own else self._weakened(view.type, written)
        except QuotaExceeded:
            origins = sorted({name for found in types for name in found.datasets}) or ["unknown rows"]
            for view in list(handle.memory.views.values()):
                view.type = Type(self.space.unknown(view.type.shape, origins, TOO_MUCH), Story("write"))
            raise

    def _joined(self, old: Type, new: Type) -> Type:
        """A new value in old memory: nothing that was known to be in it is forgotten."""
        if not old.labelled or old.form is new.form:
            return new
        mixed = old.mixed or new.mixed
        if mixed is not None:
            return Type(self.space.taint([old.form, new.form], new.shape, mixed), _merged(old, new))
        cells = self.space.join_cells([new.form, old.form])
        seen = {name for name in cells if new.axis(name) is not None}
        blame = new.form.blame | old.form.blame | frozenset(name for name in cells if name not in seen)
        return Type(self.space.form(new.dims, cells, blame), _merged(old, new))

    def _weakened(self, other: Type, written: Type) -> Type:
        """Another view of memory of which a part, or all in another arrangement, was written."""
        forms = [other.form, written.form]
        mixed = other.mixed or written.mixed
        if mixed is None and any(form.rows for form in forms):
            mixed = THROUGH_ANOTHER_VIEW
        if mixed is not None:
            return Type(self.space.taint(forms, other.shape, mixed), _merged(other, written))
        cells = self.space.join_cells(forms)
        return Type(self.space.form(plain_dims(other.shape), cells, frozenset(cells)), _merged(other, written))

    def _spoil(self, bound: Bound, types: Sequence[Type], where: str) -> None:
        """Rule 4: what an operation was about to write is mixed after it failed."""
        forms = [found.form for found in types]
        for name in bound.op.mutates:
            value = bound[name]
            for target in value if type(value) is list else [value]:
                if isinstance(target, Tensor):
                    form = self.space.taint(forms, target.shape, HALF_WRITTEN)
                    self._write(target, Type(form, _story(form, types, where, bound.op)), types)

    def _failure(self, bound: Bound, types: Sequence[Type], where: str, error: Exception) -> ExecutionFailed:
        """What the client hears of an operation that failed. With private operands it is always the same."""
        name = bound.op.name
        private = any(found.labelled for found in types)
        text = PRIVATE_FAILURE if private else (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        return ExecutionFailed(f"{name}: {text}", op=name, step=where, private=private)


def _outline(value: Any) -> Any:
    """All of an argument that the shape of a result depends on."""
    if value.__class__ is Tensor:
        return (value.shape, value.stride(), value.dtype)
    if value.__class__ is list:
        return tuple([_outline(item) for item in value])
    return (value.__class__, value)


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same view of one memory."""
    return (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)


def _story(form: Form, types: Sequence[Type], where: str, op: Op) -> Story:
    """How a result came to be what it is: the first operand's story that covers it, or this step."""
    if form.mixed is None and not form.blame:
        return NOTHING
    for found in types:
        if form.blame <= found.form.blame and (form.mixed is None or found.form.mixed is not None):
            return found.story
    step = f"{where}, {op.name}" if where else op.name
    mixed = next((found.story.mixed for found in types if found.form.mixed is not None), step) if form.mixed is not None else ""
    blame = {name: next((found.story.blame[name] for found in types if name in found.story.blame), step) for name in form.blame}
    return Story(mixed, blame)


def _merged(old: Type, new: Type) -> Story:
    """The stories of what was in memory and of what was written there."""
    return Story(old.story.mixed or new.story.mixed, {**new.story.blame, **old.story.blame})
