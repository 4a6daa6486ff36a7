"""What waits to go to one node, in the order in which the program asked for it. Plain code: no loop, no locks, no I/O.

Any thread may add; one thread takes. Commands that follow each other travel in one `Commands` message, together with the objects
that are freed between them; everything else is a message of its own, in its place in the order. A command that uses an object
was added while something still held it, so it stands before the place where the object is freed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from grid.client.origins import Origin, describe
from grid.ids import ObjectId
from grid.wire.messages import Arg, Command, Commands, FreeObjects, Inline, Message, OpenDataset, RunPlan, TensorFrame

BATCH_COMMANDS = 512
BATCH_BYTES = 1 << 20
BATCH_OBJECTS = 1 << 16
"""A batch ends after this many commands, bytes of tensors that travel with them, or objects that its plans take and give."""

FREE_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Single:
    """A message of its own.

    `answer` is set where somebody waits for the reply; without it, only a failure is of interest. `one_way` has no reply.
    """

    message: Message
    what: str
    one_way: bool = False
    answer: asyncio.Future[Message] | None = None
    timeout_s: float | None = None
    nbytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Sending:
    """A message that is ready to go, and what to say of each of its commands: name and place in the user's program.

    `first` is the number of its first command; 0 for a message that uses up no number.
    """

    message: Message
    first: int
    origins: Sequence[tuple[str, Origin]]
    single: Single | None = None
    nbytes: int = 0

    @property
    def count(self) -> int:
        """How many things that the program asked for are in it."""
        return len(self.origins)

    def describe(self, number: int) -> str | None:
        """`aten.mm.default, written at file.py:12`, if `number` is one of this message's commands."""
        index = number - self.first
        if not 0 <= index < len(self.origins):
            return None
        what, place = self.origins[index]
        return f"{what}, written at {describe(place)}"

    def describe_all(self) -> str:
        """The same of a message that failed as a whole."""
        return self.describe(self.first) or "a message"


@dataclass(slots=True)
class _Batch:
    commands: list[Work] = field(default_factory=list)
    tensors: list[TensorFrame] = field(default_factory=list)
    origins: list[tuple[str, Origin]] = field(default_factory=list)
    nbytes: int = 0
    objects: int = 0
    frees: list[tuple[ObjectId, ...]] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.commands) >= BATCH_COMMANDS or self.nbytes >= BATCH_BYTES or self.objects >= BATCH_OBJECTS


Work = Command | OpenDataset | RunPlan

Entry = tuple[Work | Single, Sequence[TensorFrame], Origin, str]
"""What to send, the tensors that travel with it, the line that asked for it, and what to call it in errors."""


class Outgoing:
    """The queue: commands, messages, ids of objects to free. `add` and `free` from any thread, `take` from the one that sends."""

    def __init__(self) -> None:
        self._waiting: deque[Entry | ObjectId] = deque()
        self._next = 1
        # Bound once: these run for every operation of every model.
        self.add: Callable[[Entry], None] = self._waiting.append
        self.free: Callable[[ObjectId], None] = self._waiting.append

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> Sending | None:
        """The next message, or None where nothing waits."""
        if not self._waiting:
            return None
        head = self._waiting[0]
        if not isinstance(head, tuple):
            freed = FreeObjects(objects=self._freed())
            return Sending(freed, 0, (), Single(freed, "free", one_way=True))
        if isinstance(head[0], Single):
            self._waiting.popleft()
            return self._single(head[0], head[2])
        batch = _Batch()
        while self._waiting and not batch.is_full:
            entry = self._waiting[0]
            if isinstance(entry, tuple):
                command, tensors, place, what = entry
                if isinstance(command, Single):
                    break
                self._waiting.popleft()
                if tensors:
                    command = _shifted(command, len(batch.tensors))
                    batch.tensors.extend(tensors)
                    batch.nbytes += sum(len(tensor.data) for tensor in tensors)
                if isinstance(command, RunPlan):
                    batch.objects += len(command.inputs) + len(command.outputs)
                batch.commands.append(command)
                batch.origins.append((what, place))
            elif len(batch.frees) == len(batch.commands):
                break  # more than one list of frees has room for
            else:
                batch.frees.extend([()] * (len(batch.commands) - 1 - len(batch.frees)))
                batch.frees.append(self._freed())
        first = self._next
        self._next += len(batch.commands)
        message = Commands(
            first=first, commands=tuple(batch.commands), tensors=tuple(batch.tensors), frees=tuple(batch.frees)
        )
        return Sending(message, first, batch.origins, nbytes=batch.nbytes)

    def _freed(self) -> tuple[ObjectId, ...]:
        """The ids at the head of the queue."""
        found: list[ObjectId] = []
        while self._waiting and len(found) < FREE_AT_ONCE:
            one = self._waiting[0]
            if isinstance(one, tuple):
                break
            self._waiting.popleft()
            found.append(one)
        return tuple(found)

    def drop(self) -> list[Single]:
        """Forget all that waits; gives back the messages whose answers somebody waits for."""
        entries = [entry[0] for entry in self._waiting if isinstance(entry, tuple)]
        self._waiting.clear()
        return [one for one in entries if isinstance(one, Single) and one.answer is not None]

    def _single(self, single: Single, place: Origin) -> Sending:
        return Sending(single.message, 0, () if single.one_way else ((single.what, place),), single, single.nbytes)


def _shifted(command: Work, by: int) -> Work:
    """The command with its `Inline` arguments counted from `by`: its tensors come after those of others in the message."""
    if not by or isinstance(command, OpenDataset):
        return command
    if isinstance(command, RunPlan):
        return RunPlan(plan=command.plan, inputs=[_shift(arg, by) for arg in command.inputs], outputs=command.outputs)
    return Command(
        op=command.op,
        args=[_shift(arg, by) for arg in command.args],
        kwargs={name: _shift(arg, by) for name, arg in command.kwargs.items()},
        outputs=command.outputs,
    )


def _shift(arg: Arg, by: int) -> Any:
    if type(arg) is Inline:
        return Inline(arg + by)
    if isinstance(arg, list):
        return [_shift(one, by) for one in arg]
    return arg
