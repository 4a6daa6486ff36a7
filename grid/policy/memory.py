"""Which tensors share memory, what type each has, and what a write through one of them does to the types of the others.

The module text of `grid.policy.labels` gives the rules. Tensors are known by object, as long as they live: when one dies,
on whichever thread, that is noted, and `clear_dead` forgets it before its address can mean anything else.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from grid.errors import ExecutionFailed, LocalProtocolError, QuotaExceeded
from grid.tensors.rows import BLOCKS_AND_POSITIONS, Choice, Form, Reason, Space, Story, Type, plain_dims

THROUGH_ANOTHER_VIEW = Reason("rows were written through another view of the same memory", "torch.stack or torch.cat")
UNKNOWN_VIEW = Reason("a view of labelled memory that nobody registered")
TOO_MUCH = Reason("the selections of rows behind it take too much memory", "ds.batches")
HALF_WRITTEN = Reason("an in-place operation failed and may have written a part", "write again from a fresh tensor")


class Pending(NamedTuple):
    """A write that has begun: the forms of all that it may bring, and the step that does it."""

    brought: Sequence[Form]
    step: str


class Storage:
    """One piece of memory: the tensors that share it. `fixed` memory belongs to a dataset and is never written.

    `pending`: a write that has begun and whose types are not known; while it stands, so does nothing else that is said of
    the views. `spoilt`: an operation on private values failed, and this holds what came of it. `siblings`: results of one
    operation that says in one of them, for a later check, whether it failed.
    """

    __slots__ = ("fixed", "key", "pending", "siblings", "spoilt", "views")

    def __init__(self, key: int) -> None:
        self.key = key
        self.fixed = False
        self.pending: Pending | None = None
        self.spoilt: ExecutionFailed | None = None
        self.siblings: Sequence[Storage] = ()
        self.views: dict[int, Handle] = {}


class Handle(weakref.ref[Tensor]):
    """A tensor that was entered, as long as it lives, and its type."""

    __slots__ = ("key", "storage", "type")

    key: int
    storage: Storage
    type: Type


class LabelledMemory:
    """Types of tensors, by object."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._handles: dict[int, Handle] = {}
        self._storages: dict[int, Storage] = {}
        self._dead: deque[weakref.ref[Tensor]] = deque()

    def __len__(self) -> int:
        return len(self._handles)

    def register(self, tensor: Tensor, own: Type) -> Handle:
        """Give a tensor a type; in place of the one it had, if it had one."""
        key = id(tensor)
        known = self._handles.get(key)
        if known is not None and known() is tensor:
            known.type = own
            return known
        handle = Handle(tensor, self._dead.append)
        place = tensor.untyped_storage()._cdata
        storage = self._storages.get(place)
        if storage is None:
            storage = self._storages[place] = Storage(place)
        handle.key, handle.storage, handle.type = key, storage, own
        storage.views[key] = self._handles[key] = handle
        return handle

    def handle(self, tensor: Tensor) -> Handle:
        """The entry of a tensor. One that was never entered, over known memory, is what all that share it are together."""
        handle = self._handles.get(id(tensor))
        if handle is not None and handle() is tensor:
            if handle.storage.pending is not None:
                self._give_up(handle.storage, handle.storage.pending)
            return handle
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        if storage is None:
            raise LocalProtocolError("a tensor without a label was used; every tensor must be entered first")
        if storage.pending is not None:
            self._give_up(storage, storage.pending)
        around = [view.type.form for view in storage.views.values()]
        return self.register(tensor, Type(self._space.taint(around, tensor.shape, UNKNOWN_VIEW)))

    def storage(self, tensor: Tensor) -> Storage:
        """The memory of a tensor that has an entry."""
        return self._handles[id(tensor)].storage

    def clear_dead(self) -> None:
        """Forget the tensors that have died."""
        dead = self._dead
        while dead:
            self._remove(dead.popleft())  # type: ignore[arg-type]  # only handles have this callback

    def forget(self, tensor: Tensor) -> None:
        """Forget a tensor that still lives."""
        self._remove(self._handles.get(id(tensor)))

    def _remove(self, handle: Handle | None) -> None:
        if handle is None or self._handles.get(handle.key) is not handle:
            return
        del self._handles[handle.key]
        storage = handle.storage
        storage.views.pop(handle.key, None)
        if not storage.views and self._storages.get(storage.key) is storage:
            del self._storages[storage.key]

    # ------------------------------------------------------------ writes

    def begin(self, targets: Sequence[Tensor], brought: Sequence[Form], step: str) -> None:
        """Something is about to write these. Until `finish` has come to its end, all that shares their memory is mixed."""
        pending = Pending(brought, step)
        storages = [self.handle(target).storage for target in targets]
        for storage in storages:
            storage.pending = pending

    def finish(self, targets: Sequence[Tensor], written: Sequence[tuple[Tensor, Type]], step: str) -> None:
        """What was begun has happened: the types of what was written. An error on the way leaves everything mixed.

        Rules 1 and 2: a target takes its new type, and every other view of its memory is weakened.
        """
        for target, new in written:
            if target.numel():
                self._write(self._handles[id(target)], target, new, step)
        for target in targets:
            self._handles[id(target)].storage.pending = None

    def spoil(self, tensors: Sequence[Tensor], failure: ExecutionFailed) -> None:
        """Note that the values in the memory of these came of a failure; the first one stays.

        A failure is told by the rules for the rows behind it, so it stays with labels that hold them: memory without a label
        takes nothing over, or it would carry one dataset's failure into another's release.
        """
        for tensor in tensors:
            handle = self._handles[id(tensor)]
            own = handle.storage
            if not handle.type.labelled and own.pending is None:
                continue
            for storage in (own, *own.siblings):
                storage.spoilt = storage.spoilt or failure

    def _give_up(self, storage: Storage, pending: Pending) -> None:
        """Rule 4: a write began and did not come to its end, so everything over the memory is mixed.

        Raises `QuotaExceeded` while there is no memory even for that; nothing can be done with the views until then.
        """
        views = list(storage.views.values())
        forms = [*pending.brought, *[view.type.form for view in views]]
        types = []
        for view in views:
            try:
                form = self._space.taint(forms, view.type.shape, HALF_WRITTEN)
            except QuotaExceeded:
                origins = sorted({name for form in forms for name in form.cells} | {"unknown rows"})
                form = self._space.unknown(view.type.shape, origins, TOO_MUCH)
            types.append(Type(form, Story(pending.step, dict.fromkeys(form.blame, pending.step))))
        for view, own in zip(views, types, strict=True):
            view.type = own
        storage.pending = None

    def _write(self, handle: Handle, target: Tensor, new: Type, step: str) -> None:
        handle.type = written = self._joined(handle.type, new, step)
        if len(handle.storage.views) == 1:
            return
        own = geometry(target)
        for view in list(handle.storage.views.values()):
            other = view()
            if view is not handle and other is not None:
                view.type = written if geometry(other) == own else self._weakened(view.type, written, step)

    def _joined(self, old: Type, new: Type, step: str) -> Type:
        """A new value in old memory: nothing that was known to be in it is forgotten."""
        if not old.labelled or old.form is new.form:
            return new
        mixed = old.mixed or new.mixed
        if mixed is not None:
            return _told(self._space.taint([old.form, new.form], new.shape, mixed), old, new, step)
        cells = self._space.join_cells([new.form, old.form])
        if any(own.choice is Choice.BOTH for own in cells.values()):
            return _told(self._space.taint([old.form, new.form], new.shape, BLOCKS_AND_POSITIONS), old, new, step)
        seen = {name for name in cells if new.axis(name) is not None}
        blame = new.form.blame | old.form.blame | frozenset(name for name in cells if name not in seen)
        return _told(self._space.form(new.dims, cells, blame, None, new.form.thinned), old, new, step)

    def _weakened(self, other: Type, written: Type, step: str) -> Type:
        """Another view of memory of which a part, or all in another arrangement, was written."""
        forms = [other.form, written.form]
        cells = self._space.join_cells(forms)
        mixed = other.mixed or written.mixed
        if mixed is None and any(own.choice is Choice.BOTH for own in cells.values()):
            mixed = BLOCKS_AND_POSITIONS
        elif mixed is None and any(form.rows for form in forms):
            mixed = THROUGH_ANOTHER_VIEW
        if mixed is not None:
            return _told(self._space.taint(forms, other.shape, mixed), other, written, step)
        return _told(self._space.form(plain_dims(other.shape), cells, frozenset(cells)), other, written, step)


def geometry(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same view of one memory."""
    return (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)


def _told(form: Form, old: Type, new: Type, step: str) -> Type:
    """A form with the stories of what was in memory and of what was written there; what neither tells, this step did."""
    mixed = (old.story.mixed or new.story.mixed or step) if form.mixed is not None else ""
    return Type(form, Story(mixed, {**dict.fromkeys(form.blame, step), **new.story.blame, **old.story.blame}))
