"""`release = "approve"`: requests, the owner's signed answers, and what they let go."""

from __future__ import annotations

import dataclasses

import pytest

from grid.crypto.keys import SigningKey
from grid.errors import InvalidRequest, NotFound, QuotaExceeded, ReleaseDenied
from grid.ids import PeerId, PlanId
from grid.policy.approvals import KEPT_S, MAX_CODE_LETTERS, MAX_IN_ALL, MAX_OF_CLIENT, Approvals, Content
from grid.store.base import ReleaseRequest
from grid.store.memory import MemoryStore
from grid.testing.clocks import FakeClock

OWNER = SigningKey(b"o" * 32)
ANN, BEN = PeerId("a" * 26), PeerId("b" * 26)
PLAN = PlanId("1" * 64)
MEAN = Content("plan:1:args:0", "f4[2]", b"the mean", lambda: "def mean(x): ...")


class Desk:
    """Approvals over a store, and what a client is told."""

    def __init__(self) -> None:
        self.store, self.clock = MemoryStore(), FakeClock()
        self.approvals = Approvals(self.store, OWNER.public, self.clock)

    def release(self, content: Content = MEAN, client: PeerId = ANN) -> None:
        self.approvals.use(self.approvals.approved("d", client, PLAN, content, "would leave"))

    def refused(self, content: Content = MEAN, client: PeerId = ANN) -> ReleaseDenied:
        with pytest.raises(ReleaseDenied) as caught:
            self.release(content, client)
        assert caught.value.details["rule"] == "approve" and caught.value.details["instead"]
        return caught.value

    def request(self, content: Content = MEAN, client: PeerId = ANN) -> str:
        return str(self.refused(content, client).details["request"])


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_release_waits_and_leaves_once_after_the_owners_word(desk: Desk) -> None:
    first = desk.request()
    assert desk.request() == first, "asking again is the same request"
    assert f"waiting for approval, request {first}" in str(desk.refused())
    (kept,) = desk.approvals.requests()
    assert (kept.code, kept.report, kept.value, kept.client) == ("def mean(x): ...", "would leave", "f4[2]", ANN)
    desk.approvals.decide(first, allow=True, key=OWNER)
    desk.release()
    second = desk.request()
    assert second != first and desk.approvals.state(desk.approvals.find(first)) == "released"


def test_a_denied_release_stays_denied(desk: Desk) -> None:
    request = desk.request()
    desk.approvals.decide(request, allow=False, key=OWNER)
    assert "denied this release" in str(desk.refused()) and desk.request() == request
    with pytest.raises(InvalidRequest, match="answered already: denied"):
        desk.approvals.decide(request, allow=True, key=OWNER)
    with pytest.raises(NotFound):
        desk.approvals.decide("00000000", allow=True, key=OWNER)


def test_an_approval_can_be_withdrawn_until_it_is_used(desk: Desk) -> None:
    request = desk.request()
    desk.approvals.decide(request, allow=True, key=OWNER)
    found = desk.approvals.approved("d", ANN, PLAN, MEAN, "would leave")
    desk.approvals.decide(request, allow=False, key=OWNER)
    with pytest.raises(ReleaseDenied, match="used or withdrawn"):
        desk.approvals.use(found)  # a release that was under way
    assert "denied this release" in str(desk.refused())
    with pytest.raises(InvalidRequest, match="answered already: denied"):
        desk.approvals.decide(request, allow=True, key=OWNER)

    other = desk.request(client=BEN)
    desk.approvals.decide(other, allow=True, key=OWNER)
    desk.release(client=BEN)
    with pytest.raises(InvalidRequest, match="answered already: released"):
        desk.approvals.decide(other, allow=False, key=OWNER)


def test_what_is_too_long_to_be_read_is_not_asked_for(desk: Desk) -> None:
    """The end of a text that was cut off would be approved unread."""
    long = dataclasses.replace(MEAN, code=lambda: "x" * (MAX_CODE_LETTERS + 1))
    assert "too long to be read" in str(desk.refused(long)) and desk.approvals.requests() == []
    desk.request(dataclasses.replace(MEAN, code=lambda: "x" * MAX_CODE_LETTERS))
    assert len(desk.approvals.requests()[0].code) == MAX_CODE_LETTERS


def test_an_answer_is_for_one_client_and_one_plan_call(desk: Desk) -> None:
    desk.approvals.decide(desk.request(), allow=True, key=OWNER)
    others = [dataclasses.replace(MEAN, made="plan:1:args:1"), dataclasses.replace(MEAN, value="f4[3]")]
    assert all("waiting" in str(desk.refused(other)) for other in others) and "waiting" in str(desk.refused(client=BEN))
    desk.release()


def test_what_a_client_hears_before_an_answer_does_not_depend_on_the_content(desk: Desk) -> None:
    """Else asking for two values would tell whether they are equal, without any word of the owner."""
    told = {str(desk.refused(dataclasses.replace(MEAN, digest=digest))) for digest in (b"the mean", b"another", b"")}
    assert len(told) == 1 and len(desk.approvals.requests()) == 1


def test_a_value_that_is_another_one_by_now_does_not_leave_and_uses_the_answer_up(desk: Desk) -> None:
    request = desk.request()
    desk.approvals.decide(request, allow=True, key=OWNER)
    assert "not the one that was approved" in str(desk.refused(dataclasses.replace(MEAN, digest=b"another")))
    assert desk.request() != request


def test_only_the_owners_key_answers(desk: Desk) -> None:
    request = desk.request()
    desk.approvals.decide(request, allow=True, key=SigningKey(b"x" * 32))
    assert desk.request() == request and "waiting" in str(desk.refused())


def test_an_answer_to_another_request_is_none(desk: Desk) -> None:
    first, second = desk.request(), desk.request(client=BEN)
    desk.approvals.decide(first, allow=True, key=OWNER)
    stolen = desk.approvals.find(first).decision
    assert desk.store.decide(second, stolen) and "waiting" in str(desk.refused(client=BEN))


def test_a_release_reads_no_texts_of_other_requests(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may have 100,000 letters, and there may be a thousand of them."""
    read: list[bool] = []
    requests = desk.store.requests

    def noted(*, texts: bool = True) -> list[ReleaseRequest]:
        read.append(texts)
        return requests(texts=texts)

    desk.request(client=BEN)
    monkeypatch.setattr(desk.store, "requests", noted)
    request = desk.request()
    desk.approvals.decide(request, allow=True, key=OWNER)
    desk.release()
    assert read == [False]


def test_pointer_results_have_no_plan_to_read(desk: Desk) -> None:
    assert "no direct result of a plan call" in str(desk.refused(dataclasses.replace(MEAN, made="")))
    assert desk.approvals.requests() == []


def test_requests_are_bounded_and_forgotten(desk: Desk) -> None:
    for number in range(MAX_OF_CLIENT):
        desk.request(dataclasses.replace(MEAN, made=f"plan:{number}"))
    with pytest.raises(QuotaExceeded):
        desk.release()
    desk.request(client=BEN)
    desk.clock.jump(KEPT_S + 1)
    desk.request(client=PeerId("c" * 26))
    assert len(desk.approvals.requests()) == 1 and MAX_IN_ALL > MAX_OF_CLIENT
