"""One client's objects at a node: values by id, what failed instead of a value, and what they take of the quota.

Ids mean something within one client's session only: another client's guess finds nothing. Memory is counted by storage, so
views cost nothing and a small view of a large storage costs all of it. A store is used by one job at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from grid.errors import GridError, NotFound, QuotaExceeded
from grid.ids import ObjectId
from grid.node.lineage import DERIVED, Lineage, digest


class Stored(NamedTuple):
    """A value, where it came from, and which memory it lies in. A named tuple: one is made for every operation.

    The memory's number is unique while the tensor lives, and the store keeps it alive.
    """

    value: Tensor
    lineage: Lineage
    memory: int


class ObjectStore:
    """Objects of one client, within limits. `lost`: why objects that are not known here may be gone."""

    def __init__(self, *, max_objects: int, max_bytes: int, lost: GridError | None = None) -> None:
        self._lost = lost
        self._max_objects = max_objects
        self._max_bytes = max_bytes
        self._objects: dict[ObjectId, Stored | GridError] = {}
        self._by_storage: dict[int, set[ObjectId]] = {}
        self._storage_bytes: dict[int, int] = {}
        self._digests: dict[ObjectId, bytes] = {}
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, object_id: ObjectId, value: Tensor, lineage: Lineage, *, counted: bool = True) -> None:
        """Keep a value; what had this id before is freed. Raises `QuotaExceeded` and keeps nothing then.

        `counted`: whether the memory is the client's to account for; a dataset's is not.
        """
        if object_id in self._objects:
            self.free((object_id,))
        if len(self._objects) >= self._max_objects:
            raise QuotaExceeded(f"more than {self._max_objects} objects of one client; free some, or keep fewer")
        storage = value.untyped_storage()
        memory = storage._cdata
        users = self._by_storage.get(memory)
        if users is None:
            nbytes = storage.nbytes() if counted else 0
            self.reserve(nbytes)
            users = self._by_storage[memory] = set()
            self._storage_bytes[memory] = nbytes
            self.used_bytes += nbytes
        users.add(object_id)
        self._objects[object_id] = Stored(value, lineage, memory)

    def reserve(self, nbytes: int) -> None:
        """Raise `QuotaExceeded` where there is no room for a value of so many bytes; may be asked before it is made."""
        if self.used_bytes + nbytes > self._max_bytes:
            what = f"this value has {nbytes} bytes, and the objects of one client may take {self._max_bytes}"
            raise QuotaExceeded(f"{what}: free some, reduce over the rows first, or go through them with ds.batches")

    def get(self, object_id: ObjectId) -> Stored:
        """The object. Raises what made it fail, or `NotFound`."""
        found = self._objects.get(object_id)
        if found is None:
            if self._lost is not None:
                raise type(self._lost)(self._lost.message, **self._lost.details)
            raise NotFound(f"object {object_id} is not known in this session; it was freed or never made")
        if isinstance(found, GridError):
            raise type(found)(found.message, **found.details)  # a fresh one: tracebacks would pile up on a shared error
        return found

    def digest(self, object_id: ObjectId) -> bytes:
        """The digest of the object's present value; worked out once, until something writes into its memory. Raises as `get`."""
        found = self._digests.get(object_id)
        if found is None:
            found = self._digests[object_id] = digest(self.get(object_id).value)
        return found

    def failure(self, object_id: ObjectId) -> GridError | None:
        """What made the object fail, if it did; also why it may be gone, if it is not known."""
        found = self._objects.get(object_id, self._lost)
        return found if isinstance(found, GridError) else None

    def fail(self, object_id: ObjectId, error: GridError) -> None:
        """From now on, using this object raises `error`. A failure is an object, too, and counts as one."""
        self.free((object_id,))
        if len(self._objects) < self._max_objects:
            self._objects[object_id] = error

    def free(self, object_ids: Iterable[ObjectId]) -> None:
        """Forget objects; unknown ids are ignored."""
        for object_id in object_ids:
            found = self._objects.pop(object_id, None)
            self._digests.pop(object_id, None)
            if not isinstance(found, Stored):
                continue
            users = self._by_storage[found.memory]
            users.discard(object_id)
            if not users:
                del self._by_storage[found.memory]
                self.used_bytes -= self._storage_bytes.pop(found.memory)

    def written(self, value: Tensor) -> None:
        """Something wrote into the memory of `value`: no object that shares it is a direct result any more."""
        for object_id in self._by_storage.get(_storage(value), ()):
            found = self._objects[object_id]
            assert isinstance(found, Stored)
            self._objects[object_id] = found._replace(lineage=DERIVED)
            self._digests.pop(object_id, None)

    def sharing(self, value: Tensor) -> list[ObjectId]:
        """Ids of the objects that share memory with `value`."""
        return sorted(self._by_storage.get(_storage(value), ()))

    def clear(self) -> None:
        """Forget everything."""
        self._objects.clear()
        self._by_storage.clear()
        self._storage_bytes.clear()
        self._digests.clear()
        self.used_bytes = 0


def _storage(value: Tensor) -> int:
    """Which memory a tensor lies in (`Stored.memory`)."""
    place: int = value.untyped_storage()._cdata
    return place
