"""The states of a session and every way from one to another, as data: the session, its tests and its page in docs read it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.Enum):
    """Where a session is."""

    NEW = "not started"
    CONNECTING = "the initiator waits for the accepting side's Hello"
    GREETED = "the initiator has read it and has sent nothing yet"
    OFFERED = "the accepting side has sent its Hello and waits for the initiator's"
    OPEN = "both have said Hello"
    CLOSING = "we have ended it; what is queued still leaves"
    CLOSED = "over"


class Event(enum.Enum):
    """What moves a session."""

    DIAL = "we start as initiator"
    OFFER = "we start as accepting side"
    HELLO = "a Hello came"
    ACCEPT = "we answer the Hello"
    MESSAGE = "any other message came"
    SEND = "we send a message"
    CLOSE = "we end the session"
    GOODBYE = "a Goodbye came"
    END = "the session broke, or the connection is gone"


TRANSITIONS: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        (State.NEW, Event.DIAL): State.CONNECTING,
        (State.NEW, Event.OFFER): State.OFFERED,
        (State.NEW, Event.CLOSE): State.CLOSED,
        (State.NEW, Event.END): State.CLOSED,
        (State.CONNECTING, Event.HELLO): State.GREETED,
        (State.CONNECTING, Event.CLOSE): State.CLOSED,
        (State.CONNECTING, Event.GOODBYE): State.CLOSED,
        (State.CONNECTING, Event.END): State.CLOSED,
        (State.GREETED, Event.ACCEPT): State.OPEN,
        (State.GREETED, Event.CLOSE): State.CLOSED,
        (State.GREETED, Event.GOODBYE): State.CLOSED,
        (State.GREETED, Event.END): State.CLOSED,
        (State.OFFERED, Event.HELLO): State.OPEN,
        (State.OFFERED, Event.CLOSE): State.CLOSING,
        (State.OFFERED, Event.GOODBYE): State.CLOSED,
        (State.OFFERED, Event.END): State.CLOSED,
        (State.OPEN, Event.MESSAGE): State.OPEN,
        (State.OPEN, Event.SEND): State.OPEN,
        (State.OPEN, Event.CLOSE): State.CLOSING,
        (State.OPEN, Event.GOODBYE): State.CLOSED,
        (State.OPEN, Event.END): State.CLOSED,
        (State.CLOSING, Event.GOODBYE): State.CLOSED,
        (State.CLOSING, Event.END): State.CLOSED,
    }
)
"""All that may happen, and where it leads."""

MUTE = frozenset({State.NEW, State.CONNECTING, State.GREETED})
"""States in which we have sent nothing and send nothing, not even a goodbye."""

LIVE = frozenset({State.CONNECTING, State.GREETED, State.OFFERED, State.OPEN})
"""States in which a session can still come to something."""
