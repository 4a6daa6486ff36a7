"""Two sessions that talk to each other in a test, with the time and the delivery of every frame in the test's hands."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from grid.settings import SessionLimits
from grid.wire.effects import Closed, Deliver, Effect, Fail, Opened, Reply
from grid.wire.messages import Greeting, TensorFrame
from grid.wire.session import Session

LIMITS = SessionLimits()

T = TypeVar("T")


def limits(**changes: float) -> SessionLimits:
    return dataclasses.replace(LIMITS, **changes)


def tensor(size: int) -> TensorFrame:
    return TensorFrame(dtype="u1", shape=(size,), data=bytes(range(256)) * (size // 256) + bytes(size % 256))


class Side:
    """A session, what it was told to do, and what it sent."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.effects: list[Effect] = []
        self.sent: list[bytes] = []

    def did(self, effects: list[Effect]) -> None:
        self.effects += effects

    def pull(self, now: float) -> bytes | None:
        parts = self.session.next_frame(now)
        if parts is None:
            return None
        frame = b"".join(parts)
        self.sent.append(frame)
        return frame

    def of(self, kind: type[T]) -> list[T]:
        return [effect for effect in self.effects if type(effect) is kind]


class Pair:
    """`left` is the initiator. `flow` carries frames both ways until none is left."""

    def __init__(self, left: SessionLimits = LIMITS, right: SessionLimits = LIMITS, greeting: Greeting | None = None) -> None:
        self.now = 100.0
        self.left = Side(Session(initiator=True, limits=left))
        self.right = Side(Session(initiator=False, limits=right, greeting=greeting))

    def start(self) -> Pair:
        self.left.session.start(self.now)
        self.right.session.start(self.now)
        return self

    def open(self) -> Pair:
        self.start().flow()
        self.left.session.accept_hello(self.now)
        self.flow()
        return self

    def carry(self, sender: Side, receiver: Side) -> bool:
        frame = sender.pull(self.now)
        if frame is None:
            return False
        receiver.did(receiver.session.receive(frame, self.now))
        return True

    def flow(self) -> None:
        while self.carry(self.left, self.right) | self.carry(self.right, self.left):
            pass

    def wait(self, seconds: float, step: float = 0.05, deliver: bool = True) -> None:
        """Let time pass, with ticks when they are due."""
        end = self.now + seconds
        while self.now < end:
            for side in (self.left, self.right):
                side.session.next_tick(self.now)
            self.now += step
            for side in (self.left, self.right):
                side.did(side.session.tick(self.now))
            if deliver:
                self.flow()


__all__ = ["LIMITS", "Closed", "Deliver", "Fail", "Opened", "Pair", "Reply", "Side", "limits", "tensor"]
