"""What waits to go to one node, in the order in which the program asked for it. Plain code: no loop, no locks, no I/O.

Any thread may add; one thread takes. Commands that follow each other travel in one `Commands` message; everything else is a
message of its own, in its place in the order. Object ids to free go in between when they are drained: a command that uses an
object was added while something still held it, so it stands before the message that frees it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from grid.client.origins import Origin, describe
from grid.ids import ObjectId
from grid.wire.messages import Arg, Command, Commands, FreeObjects, Inline, Message, TensorFrame

BATCH_COMMANDS = 512
BATCH_BYTES = 1 << 20
"""A batch ends after this many commands, or this many bytes of tensors that travel with them."""

FREE_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Single:
    """A message of its own. `make` gets the command number, which is used up where `numbered`.

    `answer` is set where somebody waits for the reply; without it, only a failure is of interest. `one_way` has no reply.
    """

    make: Callable[[int], Message]
    what: str
    numbered: bool = False
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
    commands: list[Command] = field(default_factory=list)
    tensors: list[TensorFrame] = field(default_factory=list)
    origins: list[tuple[str, Origin]] = field(default_factory=list)
    nbytes: int = 0


class Outgoing:
    """The queue. `add*` and `free` from any thread; `take` and `drain_freed` from the one that sends."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Command | Single, Sequence[TensorFrame], Origin]] = deque()
        self._freed: deque[ObjectId] = deque()
        self._next = 1
        # Bound once: these run for every operation of every model.
        self.add = self._waiting.append
        self.free = self._freed.append

    def __len__(self) -> int:
        return len(self._waiting)

    def drain_freed(self) -> None:
        """Queue what was freed until now. Whatever uses those objects is in the queue already."""
        while self._freed:
            ids = tuple(self._freed.popleft() for _ in range(min(len(self._freed), FREE_AT_ONCE)))
            message = FreeObjects(objects=ids)
            self.add((Single(lambda _number, message=message: message, "free", one_way=True), (), None))  # type: ignore[misc]

    def take(self) -> Sending | None:
        """The next message, or None where nothing waits."""
        if not self._waiting:
            return None
        if isinstance(self._waiting[0][0], Single):
            single, _, place = self._waiting.popleft()
            assert isinstance(single, Single)
            return self._single(single, place)
        batch = _Batch()
        while self._waiting and len(batch.commands) < BATCH_COMMANDS and batch.nbytes < BATCH_BYTES:
            command, tensors, place = self._waiting[0]
            if isinstance(command, Single):
                break
            self._waiting.popleft()
            if tensors:
                command = _shifted(command, len(batch.tensors))
                batch.tensors.extend(tensors)
                batch.nbytes += sum(len(tensor.data) for tensor in tensors)
            batch.commands.append(command)
            batch.origins.append((command.op, place))
        first = self._next
        self._next += len(batch.commands)
        message = Commands(first=first, commands=tuple(batch.commands), tensors=tuple(batch.tensors))
        return Sending(message, first, batch.origins, nbytes=batch.nbytes)

    def drop(self) -> list[Single]:
        """Forget all that waits; gives back the messages whose answers somebody waits for."""
        dropped = [one for one, _, _ in self._waiting if isinstance(one, Single) and one.answer is not None]
        self._waiting.clear()
        self._freed.clear()
        return dropped

    def _single(self, single: Single, place: Origin) -> Sending:
        number = 0
        if single.numbered:
            number, self._next = self._next, self._next + 1
        return Sending(single.make(number), number, () if single.one_way else ((single.what, place),), single, single.nbytes)


def _shifted(command: Command, by: int) -> Command:
    """The command with its `Inline` arguments counted from `by`: its tensors come after those of others in the message."""
    if not by:
        return command
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
