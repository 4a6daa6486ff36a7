"""What a client shared lately, for checks of plans: copies of small values, and others as long as the client has them."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor

KEPT_EACH = 1 << 20
"""Bytes of a value of which a copy is kept."""

KEPT_BYTES = 64 << 20
"""Of all copies."""

OVERHEAD = 1024
"""What a copy takes beside its elements, roughly."""

Example = Callable[[], Tensor | None]
"""A value like the one on shares: the client's own, or made up by its owner's card. None where there is none any more."""


class Examples:
    """By the id of the object on shares. `drop` comes from finalizers, at any moment, so no loop here goes through a dict."""

    def __init__(self) -> None:
        self._known: dict[int, Example] = {}
        self._copies: dict[int, Tensor] = {}
        self._bytes = 0
        """Of copies, at most: what was dropped counts until the next clearing."""

    def keep(self, object_id: int, value: Tensor) -> None:
        """A value of the client's own: a copy, or the value itself as long as it is there and unchanged."""
        if value.nbytes > KEPT_EACH:
            self._known[object_id] = _itself(value)
            return
        self._copies[object_id] = value.detach().clone()
        self._bytes += value.nbytes + OVERHEAD
        if self._bytes > KEPT_BYTES:
            self._clear()

    def describe(self, object_id: int, made: Example) -> None:
        """A value like it can be made."""
        self._known[object_id] = made

    def get(self, object_id: int) -> Example | None:
        copy = self._copies.get(object_id)
        return self._known.get(object_id) if copy is None else lambda: copy

    def drop(self, object_id: int) -> None:
        """Takes no lock, never raises."""
        self._known.pop(object_id, None)
        self._copies.pop(object_id, None)

    def _clear(self) -> None:
        """The oldest copies go, and a little more, so that this is seldom."""
        kept = list(self._copies.items())
        self._bytes = sum(value.nbytes + OVERHEAD for _, value in kept)
        for object_id, value in kept:
            if self._bytes <= KEPT_BYTES - KEPT_EACH:
                break
            self._copies.pop(object_id, None)
            self._bytes -= value.nbytes + OVERHEAD


def _itself(value: Tensor) -> Example:
    reference, version = weakref.ref(value), _version(value)

    def found() -> Tensor | None:
        value = reference()
        return value if value is not None and _version(value) == version else None

    return found


def _version(value: Tensor) -> int | None:
    """Of the value: a write makes it another. PyTorch does not count those of inference tensors."""
    return None if value.is_inference() else value._version
