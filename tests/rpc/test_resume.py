"""The rules by which a link is resumed, as a state machine: every frame once and in order, and nobody in between believed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.errors import AuthenticationFailed, NodeUnavailable, WireError
from grid.rpc.resume import ACK_BYTES, ACK_FRAMES, ASK_BYTES, Resumption, is_ack, is_ask, session_of

SECRET = bytes(32)


def pair() -> tuple[Resumption, Resumption]:
    return Resumption(SECRET), Resumption(SECRET)


def resume(initiator: Resumption, responder: Resumption) -> None:
    responder.check_ask(initiator.ask())
    initiator.check_reply(responder.reply())


def test_an_ask_names_its_session_and_is_no_other_frame() -> None:
    initiator, responder = pair()
    ask = initiator.ask()
    assert is_ask(ask) and session_of(ask) == responder.session == initiator.session and not is_ack(ask)
    assert not is_ask(b"\x01" + ask[1:]) and not is_ask(ask + b"x") and not is_ask(b"")
    assert Resumption(b"x" * 32).session != initiator.session


def test_what_is_acknowledged_is_forgotten_and_the_rest_is_kept() -> None:
    initiator, responder = pair()
    for number in range(ACK_FRAMES + 5):
        initiator.keep(b"%d" % number)
        due = responder.arrived(1)
        assert due == (number >= ACK_FRAMES - 1)
    ack = responder.ack()
    assert is_ack(ack) and not responder.owes
    initiator.acked(ack, initiator.sent)
    assert (initiator.resend_from, initiator.sent, initiator.kept_bytes) == (ACK_FRAMES + 5, ACK_FRAMES + 5, 0)
    assert responder.arrived(ACK_BYTES)


@pytest.mark.parametrize("ack", [b"", b"1234567", b"\x06" + bytes(7), b"\x03" + bytes(7), b"\xff" * 8])
def test_an_acknowledgement_that_cannot_be_right_is_a_breach(ack: bytes) -> None:
    initiator, _ = pair()
    for _ in range(8):
        initiator.keep(b"frame")
    initiator.acked((4).to_bytes(8, "little"), before=5)
    with pytest.raises(WireError):
        initiator.acked(ack, before=5)  # 6 was kept and has not left yet; 3 was said already to be there
    assert initiator.resend_from == 4


def test_each_side_sends_again_what_the_other_lacks() -> None:
    initiator, responder = pair()
    for number in range(5):
        initiator.keep(b"i%d" % number)
        responder.keep(b"r%d" % number)
    responder.arrived(2)
    for _ in range(3):
        initiator.arrived(2)
    resume(initiator, responder)
    assert [initiator.frame(number) for number in range(initiator.resend_from, initiator.sent)] == [b"i1", b"i2", b"i3", b"i4"]
    assert [responder.frame(number) for number in range(responder.resend_from, responder.sent)] == [b"r3", b"r4"]


@pytest.mark.parametrize("at", range(ASK_BYTES))
def test_a_changed_ask_is_refused_and_changes_nothing(at: int) -> None:
    initiator, responder = pair()
    responder.keep(b"kept")
    ask = bytearray(initiator.ask())
    ask[at] ^= 1
    with pytest.raises(AuthenticationFailed):
        responder.check_ask(bytes(ask))
    assert (responder.attempt, responder.kept_bytes) == (0, 4)
    resume(initiator, responder)


def test_a_changed_reply_is_refused() -> None:
    initiator, responder = pair()
    responder.check_ask(initiator.ask())
    reply = responder.reply()
    for at in range(len(reply)):
        changed = bytearray(reply)
        changed[at] ^= 1
        with pytest.raises(AuthenticationFailed):
            initiator.check_reply(bytes(changed))
    for short in (b"", reply[:-1], reply + b"x"):
        with pytest.raises(AuthenticationFailed):
            initiator.check_reply(short)
    initiator.check_reply(reply)


def test_an_ask_that_is_repeated_or_was_held_back_is_refused() -> None:
    initiator, responder = pair()
    first, second, third = initiator.ask(), initiator.ask(), initiator.ask()
    responder.check_ask(second)
    for stale in (first, second):
        with pytest.raises(AuthenticationFailed, match="older"):
            responder.check_ask(stale)
    responder.check_ask(third)


def test_a_reply_belongs_to_one_attempt() -> None:
    initiator, responder = pair()
    responder.check_ask(initiator.ask())
    held_back = responder.reply()
    responder.check_ask(initiator.ask())
    with pytest.raises(AuthenticationFailed, match="earlier attempt"):
        initiator.check_reply(held_back)


@pytest.mark.parametrize("what", ["ask as reply", "reply as ask", "another session's key"])
def test_nothing_stands_for_something_else(what: str) -> None:
    initiator, responder = pair()
    ask = initiator.ask()
    responder.check_ask(ask)
    reply = responder.reply()
    with pytest.raises(AuthenticationFailed):
        if what == "ask as reply":
            initiator.check_reply(b"\x03" + ask[17:])
        elif what == "reply as ask":
            responder.check_ask(b"\x02" + responder.session + reply[1:])
        else:
            responder.check_ask(b"\x02" + responder.session + Resumption(b"y" * 32).ask()[17:])


def test_frames_that_are_gone_cannot_be_asked_for() -> None:
    """A relay forged an acknowledgement: the frame is not kept any more, and the far end never had it."""
    initiator, responder = pair()
    initiator.keep(b"one")
    initiator.acked((1).to_bytes(8, "little"), before=1)
    responder.check_ask(initiator.ask())
    with pytest.raises(NodeUnavailable, match="not kept any more"):
        initiator.check_reply(responder.reply())


def test_more_frames_than_were_sent_cannot_have_come() -> None:
    initiator, responder = pair()
    initiator.arrived(1)  # the responder never sent any
    with pytest.raises(NodeUnavailable):
        responder.check_ask(initiator.ask())


STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "deliver", "ack", "cut"]), st.booleans(), st.integers(1, 40)), min_size=1, max_size=60
)


class Way:
    """One direction of a link in a model: what was put on it, and what came out at its end."""

    def __init__(self, sender: Resumption, receiver: Resumption) -> None:
        self.sender = sender
        self.receiver = receiver
        self.next = 0
        self.on_link: list[bytes] = []
        self.came: list[bytes] = []
        self.first_time: dict[int, bytes] = {}
        self.made = 0

    def send(self, count: int) -> None:
        for _ in range(count):
            self.sender.keep(b"frame %d" % self.made)
            self.made += 1
        self.put()

    def put(self) -> None:
        while self.next < self.sender.sent:
            frame = bytes(self.sender.frame(self.next))
            assert self.first_time.setdefault(self.next, frame) == frame  # a number is never used for another text
            self.on_link.append(frame)
            self.next += 1

    def deliver(self, count: int) -> None:
        for frame in self.on_link[:count]:
            self.receiver.arrived(len(frame))
            self.came.append(frame)
        del self.on_link[:count]

    def ack(self) -> None:
        self.sender.acked(self.receiver.ack(), self.next)

    def resumed(self) -> None:
        self.on_link.clear()
        self.next = self.sender.resend_from
        self.put()


@settings(deadline=None)
@given(STEPS)
def test_whatever_happens_every_frame_comes_once_and_in_order(steps: list[tuple[str, bool, int]]) -> None:
    initiator, responder = pair()
    ways = Way(initiator, responder), Way(responder, initiator)
    for what, forth, count in steps:
        way = ways[0 if forth else 1]
        actions: dict[str, Callable[[], None]] = {
            "send": lambda way=way, count=count: way.send(count),  # type: ignore[misc]
            "deliver": lambda way=way, count=count: way.deliver(count),  # type: ignore[misc]
            "ack": way.ack,
        }
        if what != "cut":
            actions[what]()
            continue
        resume(initiator, responder)
        for each in ways:
            each.resumed()
    resume(initiator, responder)
    for each in ways:
        each.resumed()
        each.deliver(len(each.on_link))
        assert each.came == [b"frame %d" % number for number in range(each.made)]
