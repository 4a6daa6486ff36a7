"""The requests of a peer: which are open, and the answers to those that were answered, so that a repeat gets the same."""

from __future__ import annotations

from grid.ids import RequestId
from grid.wire.messages import Buffer

MAX_ANSWERS = 128
MAX_ANSWER_BYTES = 16 << 10


class Answers:
    """Open requests with their deadlines, and the newest `MAX_ANSWERS` answers of at most `MAX_ANSWER_BYTES` each.

    A peer's request ids rise. One that does not is a repeat: of an open request (its answer will come), of a kept answer, or
    of one that was too large or too old to be kept.
    """

    __slots__ = ("_kept", "_newest", "open")

    def __init__(self) -> None:
        self.open: dict[RequestId, float] = {}
        self._kept: dict[RequestId, bytes] = {}
        self._newest = 0

    def is_repeat(self, request_id: RequestId) -> bool:
        """Whether this id, or a higher one, was used before."""
        return request_id <= self._newest

    def begin(self, request_id: RequestId, deadline: float) -> None:
        """A new request, open from now on."""
        self._newest = request_id
        self.open[request_id] = deadline

    def refuse(self, request_id: RequestId) -> None:
        """A new request that is answered before it is open."""
        self._newest = request_id

    def end(self, request_id: RequestId, frame: list[Buffer]) -> None:
        """The request was answered with this frame."""
        self.open.pop(request_id, None)
        if len(frame) == 1 and len(frame[0]) <= MAX_ANSWER_BYTES:
            self._kept[request_id] = bytes(frame[0])
            if len(self._kept) > MAX_ANSWERS:
                del self._kept[next(iter(self._kept))]

    def kept(self, request_id: RequestId) -> bytes | None:
        """The frame of an answer given before."""
        return self._kept.get(request_id)
