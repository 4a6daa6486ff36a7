"""Which function answers which message: a literal table given by the service, nothing looked up by name.

A handler is a plain function `(context, message)`; the read loop calls it and must not be held up. For a request it returns
the reply, or an awaitable of it; for a one-way message, None or an awaitable. Coroutines run as tasks of the `Peer`; for a
future it needs none, and cancels it where nobody waits any more.
Handlers are called in the order in which messages arrive.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from grid.errors import GridError, InvalidRequest
from grid.wire.messages import Message

log = logging.getLogger(__name__)

Result = Message | Awaitable[Message | None] | None
Handler = Callable[[Any, Any], Result]
"""`(context, message) -> Result`; the message has the class under which the handler stands in the table."""

INTERNAL = "something went wrong inside the peer; its log says what"
"""All that a peer learns of an error that we did not raise on purpose."""

MAX_ERROR_TEXT = 16_384
"""Characters of an error's message that travel."""


class Handlers:
    """The table of one kind of session."""

    def __init__(self, table: Mapping[type[Any], Handler]) -> None:
        self._table = MappingProxyType(dict(table))

    def call(self, context: object, message: Message) -> Result:
        """What the handler returns. Raises `InvalidRequest` for a message without one, and whatever the handler raises."""
        handler = self._table.get(type(message))
        if handler is None:
            raise InvalidRequest(f"a {message.tag!r} message makes no sense on this connection")
        return handler(context, message)


def public_error(error: Exception, message: Message) -> GridError:
    """The error as the peer may see it. One that was not raised on purpose is logged here and replaced by a fixed text."""
    if isinstance(error, GridError):
        if len(error.message) <= MAX_ERROR_TEXT:
            return error
        shortened = type(error)(error.message[:MAX_ERROR_TEXT] + " ...")
        shortened.details = error.details
        return shortened
    log.error("the handler of %r failed", message.tag, exc_info=error)
    return GridError(INTERNAL)
