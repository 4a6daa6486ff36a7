"""What has come and what is waited for: each message once, of the right size, and not too much unasked."""

from __future__ import annotations

import numpy as np
import pytest

from grid.errors import NodeUnavailable, QuotaExceeded, WireError
from grid.smpc import link
from grid.smpc.link import Mailbox, Words


def words(count: int) -> Words:
    return np.arange(count, dtype=np.uint64)


def test_a_message_is_found_by_sender_and_label_before_and_after_it_comes() -> None:
    mailbox = Mailbox()
    early, other = words(3), words(2)
    mailbox.deliver(1, 7, early)
    mailbox.deliver(2, 7, other)
    assert mailbox.receive(1, 7, 3).result() is early
    assert mailbox.receive(2, 7, 2).result() is other
    late = mailbox.receive(1, 8, 4)
    assert not late.done
    assert mailbox.waits == [1]
    mailbox.deliver(1, 8, words(4))
    assert late.result().tolist() == [0, 1, 2, 3]
    assert mailbox.waits == []


def test_messages_without_words_are_messages() -> None:
    mailbox = Mailbox()
    mailbox.deliver(0, 1, words(0))
    assert mailbox.receive(0, 1, 0).result().size == 0


@pytest.mark.parametrize("size", [0, 2, 4])
def test_a_message_of_a_wrong_size_is_refused(size: int) -> None:
    mailbox = Mailbox()
    mailbox.deliver(1, 7, words(size))
    with pytest.raises(WireError, match=f"party 1 sent {size} words where 3 were due"):
        mailbox.receive(1, 7, 3)
    waited = mailbox.receive(1, 8, 3)
    with pytest.raises(WireError, match=f"{size} words where 3"):
        mailbox.deliver(1, 8, words(size))
    mailbox.fail(NodeUnavailable("the session ends"))
    assert isinstance(waited.error, NodeUnavailable)  # whoever waited for it is told


def test_one_message_twice_is_refused() -> None:
    mailbox = Mailbox()
    mailbox.deliver(1, 7, words(3))
    with pytest.raises(WireError, match="party 1 sent one message twice"):
        mailbox.deliver(1, 7, words(3))


def test_what_comes_unasked_is_bounded_for_each_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = Mailbox()
    monkeypatch.setattr(link, "MAX_EARLY_BYTES", 10_000)
    mailbox.deliver(1, 0, words(1000))
    with pytest.raises(QuotaExceeded, match="nobody has asked for"):
        mailbox.deliver(1, 1, words(1000))
    mailbox.deliver(2, 1, words(1000))  # the other one has a share of its own
    mailbox.receive(1, 0, 1000)
    mailbox.deliver(1, 1, words(1000))  # what was taken counts no more
    waited = mailbox.receive(1, 2, 5000)
    mailbox.deliver(1, 2, words(5000))  # nor does what is waited for
    assert waited.done


def test_many_empty_messages_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MAX_EARLY_BYTES", 10_000)
    mailbox = Mailbox()
    with pytest.raises(QuotaExceeded):
        for label in range(100):
            mailbox.deliver(1, label, words(0))


def test_after_a_failure_all_that_wait_and_all_that_ask_get_the_first_error() -> None:
    mailbox = Mailbox()
    mailbox.deliver(2, 9, words(1))
    waiting = [mailbox.receive(1, label, 1) for label in range(3)]
    error = NodeUnavailable("gone")
    mailbox.fail(error)
    mailbox.fail(WireError("later"))
    assert all(arrival.error is error for arrival in waiting)
    assert mailbox.receive(2, 9, 1).error is error
    assert mailbox.waits == []
