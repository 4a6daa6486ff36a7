"""One client's labelled memory at one node: runs operations and types what they make (docs/labels.md).

`Labels` knows the type of every tensor that it has seen, by object, and every other tensor that shares its memory. An
operation is bound, measured against limits, typed by its row rule, checked for values that its kernel would trust, and
only then run.
What it writes is followed through all tensors that share memory with the target:

1. the target takes the new type, joined with its old cells; mixed stays mixed;
2. another view of the memory becomes mixed if it or the new value has an Order, else its cells refine and CONST is FREE;
3. a view that was never entered is the join of all that share its memory, mixed if any of those has a label;
4. from before an in-place operation runs until its types are settled, all that shares memory with its targets is mixed, so
   that one which fails anywhere in between, having perhaps written a part, leaves it so.

Verdicts are kept by operation, forms, dtypes and constants; only an index whose values decide is judged each time.
A `Labels` belongs to one thread at a time. Tensors may be dropped by any thread: what is dead is noted and cleared up later.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grid.errors import ExecutionFailed, InvalidRequest, LocalProtocolError
from grid.policy.memory import Handle, LabelledMemory, geometry
from grid.tensors import bounds
from grid.tensors.bounds_shapes import MAX_ELEMENTS
from grid.tensors.calls import Call, Forms
from grid.tensors.exhausted import exhausted, is_exhausted
from grid.tensors.ops import Bound, Op, bind, flatten
from grid.tensors.rows import NOTHING, Choice, Form, Mix, Reason, Space, Story, Type, plain_dims
from grid.tensors.rules import ROW_RULES, Rule, judge
from grid.tensors.rules_layers import running_statistics
from grid.wire.messages import Arg

MAX_VERDICTS = 8192
DROPOUT_CHUNK = 1 << 20

MANY_BYTES = 1 << 20
"""Results of fewer are made before anybody asks whether there is room for them."""

FROM_ELSEWHERE = Reason("the value was moved here from another owner's node")
OPENED = Reason("a committee opened the value to this node, and rows cannot be followed through shares")
OTHER_SHAPE = Reason("an operation returned another shape than it announced")
PRIVATE_FAILURE = "the operation failed; what it works on is private, so nothing more can be said"


class _Measure(NamedTuple):
    """What memory a result takes."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Verdict(NamedTuple):
    """What a call makes: the types of fresh results, and the forms of what it writes, by argument name and position in a list.

    The types are without a story: one whose form has something to tell gets it from the operands of each call. `size` is the
    bytes of new memory that the results take.
    """

    results: tuple[Type, ...]
    writes: tuple[tuple[str, int, Form], ...]
    size: int


class Labels:
    """See the module. `random_bytes` draws dropout masks. `strict` raises where a rule breaks instead of calling it mixed.

    `surprises` counts what generated code may not stand for: verdicts that hold for one call alone, and operations that may
    fail by the values of rows, whether or not they do. It rises, and never falls, and never because of a value of rows.
    """

    def __init__(
        self,
        *,
        max_elements: int = MAX_ELEMENTS,
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
        self._memory = LabelledMemory(self.space)
        self._verdicts: dict[tuple[Any, ...], _Verdict] = {}
        self._measures: dict[tuple[Any, ...], tuple[_Measure, ...]] = {}
        self.surprises = 0
        self.space.on_pressure.append(self._verdicts.clear)

    # ------------------------------------------------------------ types

    def dataset_type(self, name: str, rows: int, shape: Sequence[int], index: npt.NDArray[Any] | None = None) -> Type:
        """The type of a tensor whose dimension 0 holds rows of a dataset of `rows` rows: all in turn, or blocks (`index`)."""
        self.space.dataset(name, rows)
        try:
            choice = Choice.WHOLE if index is None else Choice.BLOCKS
            order = self.space.order(name, np.arange(rows) if index is None else index, choice)
        except Mix as mix:
            raise InvalidRequest(f"rows of {name!r}: {mix.reason.text}") from None
        if len(order) != shape[0]:
            raise LocalProtocolError(f"{len(order)} rows of {name!r} were entered as a tensor of shape {tuple(shape)}")
        first = ((len(order), order),) if len(order) > 1 else ()
        blame = frozenset() if len(order) > 1 else frozenset([name])
        return Type(self.space.form([first, *plain_dims(shape[1:])], {name: self.space.cells_of(order)}, blame))

    def foreign(self, origins: Sequence[str], shape: Sequence[int], *, opened: bool = False) -> Type:
        """The type of a value that another node sent: mixed for ever, and the names of its datasets stay on it. `opened`: it came
        in shares."""
        if not origins:
            return Type(self.space.plain(shape))
        reason, step = (OPENED, "opened from shares") if opened else (FROM_ELSEWHERE, "move")
        return Type(self.space.unknown(shape, origins, reason), Story(step))

    def enter(self, tensor: Tensor, own: Type | None = None, *, fixed: bool = False) -> Tensor:
        """Register a tensor that no operation made: by default the client's own. `fixed`: its memory is never to be written."""
        if type(tensor) is not Tensor or (own is not None and own.shape != tuple(tensor.shape)):
            raise LocalProtocolError("only plain tensors of their type's shape can be labelled")
        self._memory.clear_dead()
        handle = self._memory.register(tensor, own or Type(self.space.plain(tensor.shape)))
        if fixed:
            handle.storage.fixed = True
        return tensor

    def type_of(self, tensor: Tensor) -> Type:
        """The type of a tensor that was entered or made here. Raises `LocalProtocolError` for any other."""
        return self._memory.handle(tensor).type

    def forget(self, tensor: Tensor) -> None:
        """Drop a tensor's label before the tensor itself is dropped; happens by itself when the tensor dies."""
        self._memory.clear_dead()
        self._memory.forget(tensor)

    def forget_verdicts(self) -> None:
        """Judge every call anew from here on; for measurements, and when memory is short."""
        self._verdicts.clear()

    def __len__(self) -> int:
        """How many live tensors have a label here."""
        self._memory.clear_dead()
        return len(self._memory)

    # ------------------------------------------------------------ running

    def run(
        self,
        op: Op,
        args: Sequence[Arg],
        kwargs: Mapping[str, Arg],
        where: str = "",
        reserve: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Run one operation and return its fresh results, typed. An in-place operation has none.

        `where` names the command or step in messages. `reserve` hears how many bytes the results will take before anything is
        done, if they are many, and may raise. Raises `InvalidRequest` (arguments, limits), `QuotaExceeded`, and
        `ExecutionFailed` where the failure depends on the client's own values alone. One that may depend on rows is not told
        here: see `spoilt`.
        """
        bound = bind(op, args, kwargs)
        self._memory.clear_dead()
        handles: list[Handle] = []
        key = self._look(bound, handles)
        verdict = self._verdicts.get(key) or self._judge(bound, key)
        if reserve is not None and verdict.size >= MANY_BYTES:
            reserve(verdict.size)
        types = [handle.type for handle in handles]
        targets = [bound[name][at] if at >= 0 else bound[name] for name, at, _ in verdict.writes] if verdict.writes else []
        for target in targets:
            if self._memory.storage(target).fixed:
                raise InvalidRequest(f"{op.name}: a dataset's own memory cannot be written; clone() it first", op=op.name)
        failure = _inherited(handles)
        results: list[Tensor] | None = None
        decisive = [self._memory.handle(tensor).type for tensor in bounds.read(bound)] if op.private_error else []
        if any(found.labelled for found in decisive):
            self.surprises += 1
        try:
            bounds.examine(bound)
        except bounds.OutOfBoundsError as error:
            failed = self._failure(bound, decisive, where, error)
            results, failure = self._in_place_of(bound), failure or failed
        touched = [target for name in op.mutates for target in _listed(bound[name])] if op.mutates else []
        if touched:
            step = _step(where, op)
            self._memory.begin(touched, [found.form for found in types], step)
        settled = True
        if results is None:
            try:
                results = self._execute(bound, targets)
            except Exception as error:  # a kernel may raise anything, and what it wrote until then is not known
                failed, settled = self._failure(bound, types, where, error), False
                results, failure = self._in_place_of(bound), failure or failed
        if touched and settled:
            forms = [form for _, _, form in verdict.writes]
            written = [(target, Type(form, _story(form, types, where, op))) for target, form in zip(targets, forms, strict=True)]
            self._memory.finish(touched, written, step)
        if results:
            self._settle(op, results, verdict, types, where)
        if failure is not None:
            # A check has no results. What it fails for is its operand, and what was made with that.
            self._memory.spoil([*results, *(targets if settled else touched)] or list(bound.tensors()), failure)
        return results

    def look(self, tensors: Sequence[Tensor]) -> tuple[Any, ...] | None:
        """All of these tensors that the verdicts on a program's steps depend on, and the stories that they bring along.

        None where one is not dense: then there is more to it than this tells. Whether one comes of a failure makes no
        difference. Equal answers mean the same for as long as they are kept.
        """
        found: list[Any] = []
        for tensor in tensors:
            handle = self._memory.handle(tensor)
            if not tensor.is_contiguous():
                return None
            found += (handle.type.form, _Same(handle.type.story), tensor.dtype, tensor.stride())
        return tuple(found)

    def adopt(self, tensors: Sequence[Tensor], types: Sequence[Type]) -> bool:
        """Register results of a program whose types are known; False, with nothing done, where one has another shape."""
        if any(found.shape != tensor.shape for tensor, found in zip(tensors, types, strict=True)):
            return False
        self._memory.clear_dead()
        for tensor, found in zip(tensors, types, strict=True):
            self._memory.register(tensor, found)
        return True

    def inherit(self, tensors: Sequence[Tensor], inputs: Sequence[Tensor], heirs: Sequence[Sequence[int]]) -> None:
        """Spoil results of a program where its inputs come of a failure: `heirs` has, for each result, the positions of those
        inputs whose failure it takes over, the one that goes first in front."""
        failures = [self._memory.handle(tensor).storage.spoilt for tensor in inputs]
        if not any(failures):
            return
        for tensor, positions in zip(tensors, heirs, strict=True):
            failure = next((found for at in positions if (found := failures[at]) is not None), None)
            if failure is not None:
                self._memory.spoil([tensor], failure)

    def spoilt(self, tensor: Tensor) -> ExecutionFailed | None:
        """The failure behind a tensor: an operation on private values failed, and this is made of what stands in for its result.

        The stand-in has the announced shape, is filled with zeros and typed as if all had gone well; so has everything that
        is made of it. Whoever lets a value go asks this after the rules have let it go, because the answer depends on rows.
        """
        handle = self._memory.handle(tensor)
        # Without a label it is a constant, whatever it was shaped after.
        return handle.storage.spoilt if handle.type.labelled else None

    def _in_place_of(self, bound: Bound) -> list[Tensor]:
        """Zeros in the place of a failed operation's fresh results."""
        if bound.op.returns_target or bound.op.rule == "lists":
            return []
        return [torch.empty_strided(m.shape, m.stride, dtype=m.dtype).zero_() for m in self._measured(bound)]

    def _look(self, bound: Bound, handles: list[Handle]) -> tuple[Any, ...]:
        """Collect the operands' entries, and all that a verdict depends on."""
        parts: list[Any] = [bound.op]
        strided = bound.op.strided
        handle = self._memory.handle
        for value in bound.values:
            if value.__class__ is Tensor:
                found = handle(value)
                handles.append(found)
                parts += (found.type[0], value.dtype)
                if strided:
                    parts.append(value.stride())
            elif value.__class__ is list:
                parts.append(tuple([self._look_item(item, handles, strided) for item in value]))
            else:
                parts += (value.__class__, value)
        return tuple(parts)

    def _look_item(self, item: Any, handles: list[Handle], strided: bool) -> Any:
        if item.__class__ is not Tensor:
            return (item.__class__, item)
        found = self._memory.handle(item)
        handles.append(found)
        return (found.type[0], item.dtype, item.stride() if strided else None)

    def _judge(self, bound: Bound, key: tuple[Any, ...]) -> _Verdict:
        """Measure and type a call that was not seen before."""
        measures, op = self._measured(bound), bound.op
        shapes = tuple([found.shape for found in measures])
        forms: dict[str, Forms] = {}
        for parameter, value in zip(op.parameters, bound.values, strict=True):
            if isinstance(value, Tensor):
                forms[parameter.name] = self._memory.handle(value).type.form
            elif type(value) is list and "Tensor" in parameter.kind:
                forms[parameter.name] = [None if item is None else self._memory.handle(item).type.form for item in value]
        call = Call(self.space, bound, forms, shapes)
        if op.rule == "lists":
            call.shapes = [tuple(target.shape) for target in bound["self"]]
        made = judge(call, self._rules, strict=self._strict)
        fresh = () if op.returns_target or op.rule == "lists" else made
        size = 0 if op.views or not fresh else sum(math.prod(found.shape) * found.dtype.itemsize for found in measures)
        verdict = _Verdict(tuple([Type(form) for form in fresh]), self._writes(call, made), size)
        if call.volatile:
            self.surprises += 1
        else:
            if len(self._verdicts) >= MAX_VERDICTS:
                self._verdicts.clear()
            self._verdicts[key] = verdict
        return verdict

    def _measured(self, bound: Bound) -> tuple[_Measure, ...]:
        """What a call's results take. Running on meta tensors is the slow part of judging, and the same for any rows.

        It is kept, so that a call that fails is not told by the time that this takes.
        """
        key = (bound.op, *[_outline(value) for value in bound.values])
        measures = self._measures.get(key)
        if measures is None:
            results = bounds.measure(bound, self._max_elements)
            measures = tuple([_Measure(tuple(result.shape), result.stride(), result.dtype) for result in results])
            if len(self._measures) >= MAX_VERDICTS:
                self._measures.clear()
            self._measures[key] = measures
        return measures

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
            bound = self._apart(bound, target, targets)
        results = flatten(bound.run())
        if op.unfilled:
            for result in results:
                result.zero_()  # fresh memory holds what a freed tensor held
        return [] if op.returns_target or op.rule == "lists" else results

    def _apart(self, bound: Bound, target: Tensor, targets: Sequence[Tensor]) -> Bound:
        """The call with operands copied that share memory with the target without being the same view of it."""
        storage = self._memory.storage(target)
        if len(storage.views) == 1:
            return bound
        own = geometry(target)

        def apart(value: Any) -> Any:
            if value.__class__ is list:
                return [apart(item) for item in value]
            if value.__class__ is not Tensor or any(value is written for written in targets):
                return value
            shared = self._memory.storage(value) is storage
            return value.clone() if shared and geometry(value) != own else value

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

    def _settle(self, op: Op, results: list[Tensor], verdict: _Verdict, types: list[Type], where: str) -> None:
        """Register fresh results."""
        self._memory.clear_dead()  # memory and ids of what died meanwhile may be those of the results
        if len(results) != len(verdict.results):
            raise LocalProtocolError(f"{op.name} returned {len(results)} tensors instead of {len(verdict.results)}")
        for result, found in zip(results, verdict.results, strict=True):
            form = found[0]
            if form.shape != result.shape:
                self.surprises += 1
                form = self.space.taint([t.form for t in types], result.shape, OTHER_SHAPE)
            if form.mixed is not None or form.blame:
                found = Type(form, _story(form, types, where, op))
            self._memory.register(result, found)
        if op.rule == "row_free" and len(results) > 1:
            group = [self._memory.storage(result) for result in results]
            for storage in group:
                storage.siblings = group

    def _failure(self, bound: Bound, types: Sequence[Type], where: str, error: Exception) -> ExecutionFailed:
        """What will be said of an operation that failed: always the same. Raises at once if all it depends on is the client's,
        or shapes."""
        name = bound.op.name
        if is_exhausted(error):
            raise exhausted(name) from None
        if any(found.labelled for found in types):
            return ExecutionFailed(f"{name}: {PRIVATE_FAILURE}", op=name, step=where, private=True)
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ExecutionFailed(f"{name}: {text}", op=name, step=where, private=False) from error


class _Same:
    """Equal for one and the same object."""

    __slots__ = ("_thing",)

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def __eq__(self, other: object) -> bool:
        return type(other) is _Same and self._thing is other._thing

    def __hash__(self) -> int:
        return id(self._thing)


def _inherited(handles: Sequence[Handle]) -> ExecutionFailed | None:
    """The failure behind the first operand that has one; an operand without a label brings none, as it brings no rows."""
    for handle in handles:
        if handle.storage.spoilt is not None and handle.type.labelled:
            return handle.storage.spoilt
    return None


def _outline(value: Any) -> Any:
    """All of an argument that the shape of a result depends on."""
    if value.__class__ is Tensor:
        return (value.shape, value.stride(), value.dtype)
    if value.__class__ is list:
        return tuple([_outline(item) for item in value])
    return (value.__class__, value)


def _listed(value: Any) -> list[Tensor]:
    """The tensors in an argument that is a tensor, a list of some, or missing."""
    return [item for item in (value if value.__class__ is list else [value]) if isinstance(item, Tensor)]


def _step(where: str, op: Op) -> str:
    return f"{where}, {op.name}" if where else op.name


def _story(form: Form, types: Sequence[Type], where: str, op: Op) -> Story:
    """How a result came to be what it is: the first operand's story that covers it, or this step."""
    if form.mixed is None and not form.blame:
        return NOTHING
    for found in types:
        if form.blame <= found.form.blame and (form.mixed is None or found.form.mixed is not None):
            return found.story
    step = _step(where, op)
    mixed = next((found.story.mixed for found in types if found.form.mixed is not None), step) if form.mixed is not None else ""
    blame = {name: next((found.story.blame[name] for found in types if name in found.story.blame), step) for name in form.blame}
    return Story(mixed, blame)
