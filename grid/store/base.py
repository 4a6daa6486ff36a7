"""What survives a restart. At a node: what each dataset has released, and which secure sums it took part in. At a gateway:
the nodes that it has known, and the jobs that it drives.

Every method is for any thread, and what changes something is on disk (where the store has one) when it returns: a value
leaves a node only after that, and a gateway acknowledges an announcement only after that.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetState:
    """What is remembered of one dataset, `rows` long.

    `blocks` gives each row the number of its block, `partition` the number of the cell that all releases so far have put it
    in: both little-endian int32, one for each row, `partition` b"" before the first release. `min_rows` is the size that
    the blocks were cut with. `elements` counts released elements. `drawn` says how the rows of releases were chosen: "" (all
    rows, always), "positions", "blocks", or "both" where an older version did not note it.
    """

    rows: int
    min_rows: int
    blocks: bytes
    partition: bytes = b""
    elements: int = 0
    drawn: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class KnownNode:
    """What a gateway remembers of a node. `announcement` is the last one, encoded; b"" where there was none.

    `since` is the wall time of its last coming or going, `online` which of the two that was.
    """

    name: str
    organisation: str
    card: bytes
    announcement: bytes
    since: float
    online: bool


@dataclasses.dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """A release that waits for its owner's word, or has it.

    `key` says what is to leave, without its content (`policy.approvals`); `id` is how people name the request. `value` is its
    dtype and shape, `digest` a hash of its bytes. `code` and `report` are for the owner: what made the value, and what the rules
    of "aggregate" say to it. `asked` is wall time. `decision` is the owner's signed answer, b"" before there is one; `used`: the
    one release that it allowed has been made. `client_name` is how the client's card calls it.
    """

    id: str
    key: str
    dataset: str
    client: str
    plan: str
    value: str
    digest: bytes
    code: str
    report: str
    asked: float
    decision: bytes = b""
    used: bool = False
    client_name: str = ""


class Store(abc.ABC):
    """A service's memory. One node or gateway uses it at a time."""

    @abc.abstractmethod
    def load(self, dataset: str) -> DatasetState | None:
        """What is remembered of a dataset, or None for a new one."""

    @abc.abstractmethod
    def save(self, dataset: str, state: DatasetState) -> None:
        """Remember a dataset's state in place of what was there, all of it or nothing."""

    def claim(self, name: str, expiry: float, wall: float) -> bool:
        """Take a name that may be taken once: True for the first who asks, until `expiry`. Times as for `claim_all`."""
        return self.claim_all([name], expiry, wall)

    @abc.abstractmethod
    def claim_all(self, names: Sequence[str], expiry: float, wall: float) -> bool:
        """Take names that may be taken once, all of them or none: True where none had been taken. Times are wall seconds.

        Names whose expiry lies before `wall` are forgotten.
        """

    @abc.abstractmethod
    def claimed(self, name: str) -> bool:
        """Whether a name has been taken, and not been forgotten since."""

    @abc.abstractmethod
    def nodes(self) -> dict[str, KnownNode]:
        """The nodes that are remembered, by id."""

    @abc.abstractmethod
    def keep_nodes(self, changes: Mapping[str, KnownNode | None]) -> None:
        """Remember these in place of what was known of the same ids, and forget those with None: all of it or nothing."""

    @abc.abstractmethod
    def ask(self, request: ReleaseRequest) -> None:
        """Remember a request; one of the same id stays as it is."""

    @abc.abstractmethod
    def requests(self, *, texts: bool = True) -> list[ReleaseRequest]:
        """All requests that are remembered, the oldest first. Without `texts` their code and report are "", whatever they are."""

    @abc.abstractmethod
    def request(self, request_id: str) -> ReleaseRequest | None:
        """The request of this id."""

    @abc.abstractmethod
    def unused_request(self, key: str) -> ReleaseRequest | None:
        """The oldest request of this key that has not been used."""

    @abc.abstractmethod
    def decide(self, request_id: str, decision: bytes, replaces: bytes = b"") -> bool:
        """Remember the owner's answer in place of `replaces`, b"" for none yet.

        False where there is no such request, where another answer stands, or where it has been used.
        """

    @abc.abstractmethod
    def use(self, request_id: str, decision: bytes) -> bool:
        """Mark a request as used under this answer: True for the first who asks, while the answer stands."""

    @abc.abstractmethod
    def forget_requests(self, asked_before: float) -> None:
        """Forget requests that are older than this wall time."""

    @abc.abstractmethod
    def jobs(self) -> list[str]:
        """The ids of the jobs that are remembered, in order."""

    @abc.abstractmethod
    def job_parts(self, job: str, prefix: str = "") -> dict[str, bytes]:
        """The parts of a job whose names begin with `prefix`, in the order of their names."""

    @abc.abstractmethod
    def keep_job(self, job: str, parts: Mapping[str, bytes | None]) -> None:
        """Remember these parts in place of what was there under their names, forget those with None: all of it or nothing."""

    @abc.abstractmethod
    def forget_job(self, job: str) -> None:
        """Forget all parts of a job."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release files. May be called twice; nothing else works afterwards."""
