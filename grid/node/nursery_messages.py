"""What a node and one of its nurseries say to each other, over a pipe of their own, each message with open files beside it."""

from __future__ import annotations

from grid.node.sharing import SharedSource
from grid.wire.codec import Table
from grid.wire.messages import ErrorInfo, Message, message

MAX_BYTES = 1 << 20
"""Of one message on the pipe."""

MAX_FILES = 200

OUT_OF_MEMORY = 3
"""Exit code of a worker that could not even take in a request."""

CANNOT_FORK = 4
"""In place of an exit code: the system gave no process."""

SESSIONS, PARTIES = "sessions", "parties"
"""What the processes of a nursery are for."""

TELL: dict[str, type[Message]] = {}


@message("share", TELL)
class Share(Message):
    """Node -> nursery: the lengths of further files that datasets lie in. The files come along, at most `MAX_FILES`."""

    sizes: tuple[int, ...]


@message("prepare", TELL)
class Prepare(Message):
    """Node -> nursery, once, after the files: begin. A file of `size` bytes comes along that holds `Household`.

    It would fill the pipe, and a nursery that has just been started takes seconds before it reads.
    """

    size: int


@message("household", TELL)
class Household(Message):
    """What its processes are for, the datasets, and the node's settings as JSON."""

    kind: str
    sources: tuple[SharedSource, ...]
    settings: str


@message("ready", TELL)
class Ready(Message):
    """Nursery -> node: everything is imported and mapped."""


@message("fork", TELL)
class Fork(Message):
    """Node -> nursery: make a worker. Its end of a pipe, the page of its `Pulse`, and a party's sockets come along.

    `lost`: what ended the worker before, if there was one in this session. `trains`: it is for a federated job.
    """

    number: int
    lost: ErrorInfo | None = None
    trains: bool = False


@message("forked", TELL)
class Forked(Message):
    """Nursery -> node: the worker runs. A descriptor of its process comes along."""

    number: int
    pid: int


@message("ended", TELL)
class Ended(Message):
    """Nursery -> node: the worker is gone; `status` is its exit code, or minus the signal that ended it."""

    number: int
    status: int


TABLE = Table(TELL)
