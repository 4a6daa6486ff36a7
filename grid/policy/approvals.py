"""Releases that need their owner's word: `release = "approve"`.

A client that asks for a value of such a dataset is told that it waits, under which request. The owner reads the plan that made
the value and what the rules of "aggregate" say to it, and answers with a signature. Then it may leave once, to that client.

What a request is about is decided by what is public: dataset, client, plan, the plan's arguments, shape. Never by the content: or
whether two values share a request would tell, before any word of the owner, whether they are equal. The content counts once
there is an answer: it must be what it was when the request was made, and an answer is used up by the attempt either way.

Requests are kept in the node's store, bounded for each client and in all, and forgotten after `KEPT_S`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Callable

from grid.clock import Clock
from grid.crypto.envelope import framed, read, seal
from grid.crypto.keys import SigningKey
from grid.errors import AuthenticationFailed, InvalidRequest, NotFound, QuotaExceeded, ReleaseDenied
from grid.ids import PeerId, PlanId
from grid.store.base import ReleaseRequest, Store

KIND = "grid release decision"
ALLOW, DENY = b"allow", b"deny"
PENDING, ALLOWED, DENIED, USED = "waiting", "approved", "denied", "released"

MAX_OF_CLIENT = 20
MAX_IN_ALL = 1000
"""Requests that wait for an answer."""

KEPT_S = 90 * 24 * 3600.0
ID_BYTES = 4
MAX_CODE_LETTERS = 100_000
"""Letters of a plan's text and its arguments. What is longer is refused: nobody can judge what is cut off."""


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """A value on its way out. `made`: the plan call that it is a result of, in public terms (`node.lineage`), "" for all else.

    `value` is its dtype and shape, `digest` a hash of its bytes; `code` gives the text of the plan and of its arguments, None
    where there is too much of it to be kept.
    `client_name`: how the card of the client calls it.
    """

    made: str
    value: str
    digest: bytes
    code: Callable[[], str | None]
    client_name: str = ""


class Approvals:
    """The requests of one node. `owner` is the public key that answers are signed with. Methods are for any thread."""

    def __init__(self, store: Store, owner: bytes, clock: Clock) -> None:
        self._store = store
        self._owner = owner
        self._clock = clock

    def approved(self, dataset: str, client: PeerId, plan: PlanId | None, content: Content, report: str) -> str:
        """The id of an approved request for this value, to be given to `use` when it leaves.

        Without one raises `ReleaseDenied`: the release waits, from now on if it did not yet, or was denied.
        """
        if not content.made or plan is None:
            raise ReleaseDenied(
                f"dataset {dataset!r}: its owner approves each release by hand, and reads the plan that made the value; this one"
                " is no direct result of a plan call on parts of the dataset. Instead: put the computation into a function under"
                " @grid.plan",
                rule="approve",
                dataset=dataset,
                instead="put the computation into a function under @grid.plan, and get() what it returns",
            )
        parts = (dataset, client, content.made, content.value)
        key = hashlib.sha256(framed("grid release", *(part.encode() for part in parts))).hexdigest()
        found = self._store.unused_request(key)
        if found is None:
            wish = ReleaseRequest("", key, dataset, client, plan, content.value, content.digest, "", report, self._clock.wall())
            wish = dataclasses.replace(wish, client_name=content.client_name)
            found = self._ask(wish, content)
        state = self.state(found)
        if state == DENIED:
            raise _refused(found, "its owner denied this release", "another question, or a word with the owner")
        if state != ALLOWED:
            look = f"ask the owner to look at it (`grid requests {found.id}` at the node); after that get() gives the value, once"
            raise _refused(found, f"waiting for approval, request {found.id}", look)
        if found.digest != content.digest:
            self.use(found.id)
            why = f"the value is not the one that was approved as {found.id}, which is used up"
            raise _refused(found, why, "get() again, for a new request; a plan with random numbers gives another value each time")
        return found.id

    def use(self, request_id: str) -> None:
        """Use up an approval. Raises `ReleaseDenied` where somebody was quicker, or the owner has withdrawn it."""
        request = self.find(request_id)
        if self.state(request) != ALLOWED or not self._store.use(request_id, request.decision):
            why = f"the approval {request_id} has been used or withdrawn; ask again"
            raise ReleaseDenied(why, rule="approve", instead="get() it again")

    def requests(self) -> list[ReleaseRequest]:
        """All requests, the oldest first."""
        return self._store.requests()

    def find(self, request_id: str) -> ReleaseRequest:
        """The request of this id. Raises `NotFound`."""
        found = self._store.request(request_id)
        if found is None:
            raise NotFound(f"there is no request {request_id!r} here; `grid requests` lists them")
        return found

    def decide(self, request_id: str, *, allow: bool, key: SigningKey) -> ReleaseRequest:
        """Answer a request with the owner's key; a no also withdraws a yes that has not been used.

        Raises `NotFound`, or `InvalidRequest` where it has been answered.
        """
        request = self.find(request_id)
        answer = seal(KIND, _statement(request, ALLOW if allow else DENY), key)
        withdrawn = request.decision if not allow and self.state(request) == ALLOWED else b""
        if not self._store.decide(request_id, answer, replaces=withdrawn):
            found = self.find(request_id)  # another answer, or the release, may have come in between
            raise InvalidRequest(f"the request {request_id} has been answered already: {self.state(found)}")
        return request

    def state(self, request: ReleaseRequest) -> str:
        """What has become of a request. An answer that the owner's key did not sign counts as none."""
        if not request.decision:
            return PENDING
        try:
            said = read(request.decision, "a decision").verified(KIND, self._owner)
        except AuthenticationFailed:
            return PENDING
        if said == _statement(request, ALLOW):
            return USED if request.used else ALLOWED
        return DENIED if said == _statement(request, DENY) else PENDING

    def _ask(self, request: ReleaseRequest, content: Content) -> ReleaseRequest:
        self._store.forget_requests(self._clock.wall() - KEPT_S)
        waiting = [one for one in self._store.requests(texts=False) if self.state(one) == PENDING]
        if sum(one.client == request.client for one in waiting) >= MAX_OF_CLIENT or len(waiting) >= MAX_IN_ALL:
            raise QuotaExceeded(
                "too many releases of this node wait for its owner's word; ask again when some have been answered"
            )
        code = content.code()
        if code is None or len(code) > MAX_CODE_LETTERS:
            raise ReleaseDenied(
                f"dataset {request.dataset!r}: its owner reads what a plan does before its result leaves, and the text of this"
                f" one and its arguments is too long to be read (at most {MAX_CODE_LETTERS:,} letters)."
                " Instead: a shorter plan, with fewer steps and arguments",
                rule="approve",
                dataset=request.dataset,
                instead="a shorter plan, with fewer steps and arguments",
            )
        made = dataclasses.replace(request, id=secrets.token_hex(ID_BYTES), code=code)
        self._store.ask(made)
        return made


def _statement(request: ReleaseRequest, answer: bytes) -> bytes:
    """What the owner signs: the answer, to this request for this value."""
    return framed(KIND, answer, request.id.encode(), request.key.encode())


def _refused(request: ReleaseRequest, why: str, instead: str) -> ReleaseDenied:
    return ReleaseDenied(
        f"dataset {request.dataset!r}: {why}. Instead: {instead}",
        rule="approve",
        dataset=request.dataset,
        request=request.id,
        instead=instead,
    )
