"""What a session asks its owner to do. The owner performs the effects of one input in order.

They are named tuples, not dataclasses: one is made for every message, and a tuple is made in a third of the time.
"""

from __future__ import annotations

from typing import NamedTuple

from grid.errors import GridError
from grid.ids import RequestId
from grid.wire.messages import Hello, Message


class Opened(NamedTuple):
    """The peer's `Hello` is here. The initiator decides whether to go on, with `accept_hello` or `close`."""

    hello: Hello


class Deliver(NamedTuple):
    """A message for the handlers; one with a `request_id` wants `reply` or `fail`.

    Where `held` is not 0, `consumed(held)` is due once the work on the message is done.
    """

    request_id: RequestId | None
    message: Message
    held: int


class Reply(NamedTuple):
    """The answer to a request of ours."""

    request_id: RequestId
    message: Message


class Fail(NamedTuple):
    """A request of ours failed: at the peer, by its deadline, or with the session."""

    request_id: RequestId
    error: GridError


class Expired(NamedTuple):
    """Nobody waits any more for the answer to this request of the peer's: the work on it can stop."""

    request_id: RequestId


class Closed(NamedTuple):
    """The session is over; `error` is None where both wanted it. Frames may be left to send: a goodbye."""

    error: GridError | None


Effect = Opened | Deliver | Reply | Fail | Expired | Closed
