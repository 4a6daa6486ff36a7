"""The rules of a session: who may say what when, and what is made of silence, haste and malice."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_pair import LIMITS, Pair, Side, limits, tensor

from grid.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    GridError,
    InvalidRequest,
    LocalProtocolError,
    NodeUnavailable,
    QuotaExceeded,
    WireError,
)
from grid.wire import codec, frames
from grid.wire.answers import MAX_ANSWERS
from grid.wire.effects import Closed, Deliver, Expired, Fail, Opened, Reply
from grid.wire.messages import (
    CommandFailed,
    Credit,
    ErrorInfo,
    Failure,
    FreeObjects,
    GetObject,
    Goodbye,
    Greeting,
    Hello,
    Message,
    ObjectValue,
    Ok,
    Ping,
    Pong,
    PutObject,
)
from grid.wire.session import Session
from grid.wire.states import LIVE, TRANSITIONS, Event, State

MB = 1 << 20


def frame(message: Message, request_id: int = 0, remaining_ms: int = 0) -> bytes:
    return b"".join(codec.encode(message, request_id, remaining_ms))


def get(number: int) -> GetObject:
    return GetObject(object=number)


def put(number: int, size: int) -> PutObject:
    return PutObject(object=number, tensor=tensor(size))


def free(number: int) -> FreeObjects:
    return FreeObjects(objects=(number,))


def close_error(side: Side) -> GridError | None:
    (closed,) = side.of(Closed)
    return closed.error


# ---------------------------------------------------------------- hello and version


def test_the_accepting_side_speaks_first_and_the_initiator_only_when_it_accepts() -> None:
    greeting = Greeting(grid="g", dev=True, gateway_key=b"k", nonce=b"n" * 32, wall=1.0)
    pair = Pair(greeting=greeting).start()
    pair.flow()
    (opened,) = pair.left.of(Opened)
    assert opened.hello.greeting == greeting
    assert pair.left.sent == [] and pair.right.of(Opened) == []
    pair.left.session.accept_hello(pair.now)
    pair.flow()
    assert len(pair.right.of(Opened)) == 1
    assert pair.left.session.state is pair.right.session.state is State.OPEN
    assert pair.left.session.version == 1


def test_an_initiator_that_does_not_trust_the_greeting_sends_nothing() -> None:
    pair = Pair().start()
    pair.flow()
    error = AuthenticationFailed("another grid")
    pair.left.did(pair.left.session.close(error, pair.now))
    pair.flow()
    assert pair.left.sent == [] and close_error(pair.left) is error


@pytest.mark.parametrize(("oldest", "newest"), [(2, 3), (0, 0), (3, 2), (-5, 7)])
def test_versions_that_do_not_meet_end_the_session(oldest: int, newest: int) -> None:
    acceptor = Pair().start().right
    acceptor.pull(0)
    acceptor.did(acceptor.session.receive(frame(Hello(oldest=oldest, newest=newest, software="x")), 100.0))
    assert isinstance(close_error(acceptor), WireError)
    goodbye = codec.decode(acceptor.pull(100.0) or b"").message
    assert isinstance(goodbye, Goodbye) and goodbye.error is not None and goodbye.error.code == "wire"
    initiator = Pair().start().left
    initiator.did(initiator.session.receive(frame(Hello(oldest=oldest, newest=newest, software="x")), 100.0))
    assert isinstance(close_error(initiator), WireError) and initiator.pull(100.0) is None


def test_a_newer_peer_that_still_speaks_our_version_is_welcome() -> None:
    acceptor = Pair().start().right
    acceptor.did(acceptor.session.receive(frame(Hello(oldest=1, newest=9, software="x")), 100.0))
    assert acceptor.session.version == 1 and acceptor.session.state is State.OPEN


@pytest.mark.parametrize("message", [Ok(), get(1), Ping(number=1), Credit(amount=1), Pong(number=1), free(1)])
def test_nothing_comes_before_hello(message: Message) -> None:
    for side in (Pair().start().left, Pair().start().right):
        side.did(side.session.receive(frame(message), 100.0))
        assert isinstance(close_error(side), WireError)


def test_hello_comes_once() -> None:
    pair = Pair().open()
    pair.right.did(pair.right.session.receive(frame(Hello(oldest=1, newest=1, software="x")), pair.now))
    assert isinstance(close_error(pair.right), WireError)


def test_a_peer_that_says_no_hello_is_given_up() -> None:
    for side in (Pair().start().left, Pair().start().right):
        assert side.session.next_tick(100.0) == 100.0 + LIMITS.handshake_s
        assert side.session.tick(109.0) == []
        side.did(side.session.tick(110.0))
        assert isinstance(close_error(side), NodeUnavailable)


# ---------------------------------------------------------------- the table


def in_state(state: State) -> Side:
    """A fresh initiator (or accepting side, where the state is its own) brought into a state by public means."""
    pair = Pair()
    if state is State.NEW:
        return pair.left
    if state is State.CONNECTING:
        return pair.start().left
    if state is State.OFFERED:
        return pair.start().right
    if state is State.GREETED:
        pair.start().flow()
        return pair.left
    pair.open()
    if state is State.CLOSING:
        pair.left.session.close(None, pair.now)
    if state is State.CLOSED:
        pair.left.session.lost(NodeUnavailable("gone"))
    return pair.left


@pytest.mark.parametrize("state", State)
def test_states_are_reached_by_public_means(state: State) -> None:
    assert in_state(state).session.state is state


@pytest.mark.parametrize("state", State)
def test_what_the_table_does_not_have_is_a_breach(state: State) -> None:
    side = in_state(state)
    sends = [lambda: side.session.request(get(1), 100.0, 200.0), lambda: side.session.notify(free(1), 100.0)]
    for send in sends:
        if (state, Event.SEND) in TRANSITIONS:
            send()
        else:
            over = state in (State.CLOSING, State.CLOSED)
            with pytest.raises(NodeUnavailable if over else LocalProtocolError):
                send()
    if (state, Event.ACCEPT) not in TRANSITIONS:
        with pytest.raises((NodeUnavailable, LocalProtocolError)):
            side.session.accept_hello(100.0)
    for message, event in ((Hello(oldest=1, newest=1, software="x"), Event.HELLO), (get(1), Event.MESSAGE)):
        side = in_state(state)
        side.effects.clear()
        side.did(side.session.receive(frame(message), 100.0))
        breach = (state, event) not in TRANSITIONS and state in LIVE
        assert (side.of(Closed) != []) is breach, (state, event)


def test_every_transition_leads_somewhere_and_none_leaves_the_end() -> None:
    assert not [key for key in TRANSITIONS if key[0] is State.CLOSED]
    for state in LIVE:
        assert TRANSITIONS[state, Event.END] is State.CLOSED


# ---------------------------------------------------------------- requests and answers


def test_a_request_its_answer_and_its_error() -> None:
    pair = Pair().open()
    first = pair.left.session.request(get(1), pair.now, pair.now + 5)
    second = pair.left.session.request(get(2), pair.now, pair.now + 5)
    theirs = pair.right.session.request(get(3), pair.now, pair.now + 5)
    pair.flow()
    assert [(each.request_id, each.message) for each in pair.right.of(Deliver)] == [(first, get(1)), (second, get(2))]
    assert [each.request_id for each in pair.left.of(Deliver)] == [theirs]
    assert first % 2 == second % 2 == 1 and theirs % 2 == 0
    pair.right.session.fail(second, InvalidRequest("no such thing", rule="r", step=3), pair.now)
    pair.right.session.reply(first, Ok(), pair.now)
    pair.flow()
    (fail,) = pair.left.of(Fail)
    assert fail.request_id == second and type(fail.error) is InvalidRequest
    assert (fail.error.message, fail.error.details) == ("no such thing", {"rule": "r", "step": 3})
    assert pair.left.of(Reply) == [Reply(first, Ok())]


def test_one_way_messages_and_requests_keep_their_order() -> None:
    pair = Pair().open()
    for number in range(1, 50):
        if number % 3:
            pair.left.session.notify(free(number), pair.now)
        else:
            pair.left.session.request(get(number), pair.now, pair.now + 5)
    pair.flow()
    came = [getattr(each.message, "object", None) or each.message.objects[0] for each in pair.right.of(Deliver)]
    assert came == list(range(1, 50))


def test_the_remaining_time_travels_and_late_requests_fail_on_both_sides() -> None:
    pair = Pair().open()
    request_id = pair.left.session.request(get(1), pair.now, pair.now + 0.5)
    pair.flow()
    pair.wait(0.45)
    assert not pair.left.of(Fail)
    pair.wait(0.1)
    (fail,) = pair.left.of(Fail)
    assert fail.request_id == request_id and isinstance(fail.error, DeadlineExceeded)
    assert not pair.right.of(Expired)
    pair.wait(1.1)
    assert pair.right.of(Expired) == [Expired(request_id)]
    assert pair.right.session.reply(request_id, Ok(), pair.now) == []
    pair.flow()
    assert pair.left.of(Reply) == [] and not pair.left.of(Closed)


def test_an_answer_after_the_deadline_is_dropped() -> None:
    pair = Pair().open()
    request_id = pair.left.session.request(get(1), pair.now, pair.now + 0.5)
    pair.flow()
    pair.wait(0.6)
    pair.right.session.reply(request_id, Ok(), pair.now)
    pair.flow()
    assert len(pair.left.of(Fail)) == 1 and not pair.left.of(Reply) and not pair.left.of(Closed)


def test_the_next_tick_is_the_nearest_deadline() -> None:
    pair = Pair().open()
    pair.left.session.request(get(1), pair.now, pair.now + 0.2)
    assert pair.left.session.next_tick(pair.now) == pytest.approx(pair.now + 0.2)
    pair.flow()
    assert pair.right.session.next_tick(pair.now) == pytest.approx(pair.now + 1.2, abs=0.01)


def test_a_repeated_request_gets_the_first_answer_again() -> None:
    pair = Pair().open()
    repeat = frame(get(7), 1, 5000)
    pair.left.session.request(get(7), pair.now, pair.now + 5)
    pair.flow()
    pair.right.did(pair.right.session.receive(repeat, pair.now))
    assert len(pair.right.of(Deliver)) == 1, "a request that is being worked on was started again"
    pair.right.session.fail(pair.right.of(Deliver)[0].request_id, InvalidRequest("first answer"), pair.now)
    answer = pair.right.pull(pair.now)
    pair.right.did(pair.right.session.receive(repeat, pair.now))
    assert pair.right.pull(pair.now) == answer
    assert len(pair.right.of(Deliver)) == 1


def test_an_answer_that_is_not_kept_any_more_is_an_error_and_not_a_second_execution() -> None:
    pair = Pair().open()
    for _ in range(MAX_ANSWERS + 1):
        pair.left.session.request(get(1), pair.now, pair.now + 5)
    pair.flow()
    delivered = pair.right.of(Deliver)
    for each in delivered:
        pair.right.session.reply(each.request_id, Ok(), pair.now)
    pair.flow()
    pair.right.did(pair.right.session.receive(frame(get(1), 1, 5000), pair.now))
    answer = codec.decode(pair.right.pull(pair.now) or b"")
    assert answer.id == -1 and isinstance(answer.message, Failure) and answer.message.error.code == "invalid"
    assert len(pair.right.of(Deliver)) == len(delivered)


def test_large_answers_are_not_kept() -> None:
    pair = Pair().open()
    pair.left.session.request(get(1), pair.now, pair.now + 5)
    pair.flow()
    pair.right.session.reply(pair.right.of(Deliver)[0].request_id, ObjectValue(tensor=tensor(50_000)), pair.now)
    pair.flow()
    pair.right.did(pair.right.session.receive(frame(get(1), 1, 5000), pair.now))
    assert isinstance(codec.decode(pair.right.pull(pair.now) or b"").message, Failure)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("a request with an id of our own", frame(get(1), 2)),
        ("an answer to a request of its own", frame(Ok(), -3)),
        ("an answer to a request that was never sent", frame(Ok(), -2)),
        ("a ping as a request", frame(Ping(number=1), 1)),
        ("a goodbye as an answer", frame(Goodbye(), -2)),
        ("no message", b"\x01\x00\x00\x00\x00\x00\x00\x00"),
        ("a frame that is too long", bytes(frames.MAX_FRAME_BYTES + 1)),
        ("credit of nothing", frame(Credit(amount=0))),
        ("negative credit", frame(Credit(amount=-1))),
        ("endless credit", frame(Credit(amount=1 << 62))),
        ("an empty chunk", frames.CHUNK_PREFIX.pack(2, 0, 0, 10)),
        ("a chunk of another message", frames.CHUNK_PREFIX.pack(2, 5, 0, 10) + b"x"),
        ("a chunk from the middle", frames.CHUNK_PREFIX.pack(2, 0, 5, 10) + b"x"),
        ("a chunk longer than its message", frames.CHUNK_PREFIX.pack(2, 0, 0, 1) + b"xx"),
        ("a message that is too long", frames.CHUNK_PREFIX.pack(2, 0, 0, (1 << 30) + 1) + b"x"),
        ("chunks of a message that is shorter than a prefix", frames.CHUNK_PREFIX.pack(2, 0, 0, 6) + b"x" * 6),
        ("chunks that hold no message", frames.CHUNK_PREFIX.pack(2, 0, 0, 16) + b"x" * 16),
        ("chunks that hold a chunk", frames.CHUNK_PREFIX.pack(2, 0, 0, 25) + frames.CHUNK_PREFIX.pack(2, 0, 0, 1) + b"x"),
    ],
)
def test_a_breach_ends_the_session_with_a_reason(name: str, bad: bytes) -> None:
    pair = Pair().open()
    ours = pair.right.session.request(get(1), pair.now, pair.now + 5) if "never" not in name else None
    pair.flow()
    pair.right.did(pair.right.session.receive(bad, pair.now))
    assert isinstance(close_error(pair.right), WireError), name
    if ours is not None:
        assert [each.request_id for each in pair.right.of(Fail)] == [ours]
    pair.flow()
    error = close_error(pair.left)
    assert isinstance(error, WireError)


def test_too_many_open_requests_are_refused_on_both_sides() -> None:
    pair = Pair(left=limits(max_open_requests=5), right=limits(max_open_requests=3)).open()
    for number in range(1, 6):
        pair.left.session.request(get(number), pair.now, pair.now + 5)
    with pytest.raises(QuotaExceeded, match="wait for answers"):
        pair.left.session.request(get(6), pair.now, pair.now + 5)
    pair.flow()
    assert [each.message for each in pair.right.of(Deliver)] == [get(1), get(2), get(3)]
    assert [each.request_id for each in pair.left.of(Fail)] == [7, 9]
    assert all(isinstance(each.error, QuotaExceeded) for each in pair.left.of(Fail))
    pair.right.session.reply(pair.right.of(Deliver)[0].request_id, Ok(), pair.now)
    pair.flow()
    pair.left.session.request(get(6), pair.now, pair.now + 5)
    pair.flow()
    assert pair.right.of(Deliver)[-1].message == get(6)


def test_an_answer_that_cannot_be_sent_is_our_own_mistake_and_leaves_the_request_open() -> None:
    pair = Pair().open()
    request_id = pair.left.session.request(get(1), pair.now, pair.now + 5)
    pair.flow()
    with pytest.raises(LocalProtocolError):
        pair.right.session.reply(request_id, CommandFailed(command="x", error=ErrorInfo(code="", message="")), pair.now)
    pair.right.session.fail(request_id, GridError("instead"), pair.now)
    pair.flow()
    assert [each.error.message for each in pair.left.of(Fail)] == ["instead"]


# ---------------------------------------------------------------- large messages


def sizes(side: Side) -> list[int]:
    return [len(each) for each in side.sent]


@pytest.mark.parametrize("size", [0, 1, 60_000, 64 << 10, 500_000, frames.WHOLE_BYTES - 40, frames.WHOLE_BYTES, MB, 5 * MB + 3])
def test_large_messages_arrive_whole_in_bounded_frames(size: int) -> None:
    pair = Pair().open()
    message = put(1, size)
    pair.left.session.notify(message, pair.now)
    pair.flow()
    (delivered,) = pair.right.of(Deliver)
    assert isinstance(delivered.message, PutObject)
    assert bytes(delivered.message.tensor.data) == message.tensor.data
    assert max(sizes(pair.left)) <= frames.WHOLE_BYTES < frames.MAX_FRAME_BYTES
    assert (delivered.held > 0) is (size > (64 << 10) - 100)


def test_order_holds_across_large_and_small_messages() -> None:
    pair = Pair().open()
    for number in range(1, 30):
        pair.left.session.notify(put(number, 3 * MB if number % 4 == 0 else 100), pair.now)
    pair.flow()
    assert [each.message.object for each in pair.right.of(Deliver)] == list(range(1, 30))


def test_a_message_larger_than_the_window_passes() -> None:
    pair = Pair(left=limits(window_bytes=4 * MB), right=limits(window_bytes=4 * MB)).open()
    pair.left.session.notify(put(1, 50 * MB), pair.now)
    pair.flow()
    assert len(pair.right.of(Deliver)) == 1


def test_without_credit_large_messages_wait_and_pings_do_not() -> None:
    pair = Pair(right=limits(window_bytes=4 * MB)).open()
    for number in range(1, 21):
        pair.left.session.notify(put(number, MB), pair.now)
    pair.flow()
    (waiting, delivered) = (pair.left.session.queued_bytes, pair.right.of(Deliver))
    assert 4 <= len(delivered) <= 9, "work that nobody finished must hold the peer up after about two windows"
    assert waiting > 10 * MB
    pair.left.did(pair.left.session.receive(frame(Ping(number=5)), pair.now))
    assert codec.decode(pair.left.pull(pair.now) or b"").message == Pong(number=5)
    done = 0
    while done < 20:
        delivered = pair.right.of(Deliver)
        assert len(delivered) > done, "stuck"
        pair.right.session.consumed(delivered[done].held)
        done += 1
        pair.flow()
    assert [each.message.object for each in pair.right.of(Deliver)] == list(range(1, 21))
    assert pair.left.session.queued_bytes == 0


def test_credit_comes_back_for_answers_too() -> None:
    pair = Pair(left=limits(window_bytes=4 * MB)).open()
    for number in range(1, 13):
        request = pair.left.session.request(get(number), pair.now, pair.now + 10)
        pair.flow()
        pair.right.did(pair.right.session.reply(request, ObjectValue(tensor=tensor(MB // 2)), pair.now))
        pair.flow()
        assert len(pair.left.of(Reply)) == number


def test_a_ping_overtakes_the_chunks_of_a_message() -> None:
    pair = Pair().open()
    pair.left.session.notify(put(1, 3 * MB), pair.now)
    assert pair.carry(pair.left, pair.right)
    pair.left.did(pair.left.session.receive(frame(Ping(number=9)), pair.now))
    assert codec.decode(pair.left.pull(pair.now) or b"").message == Pong(number=9)
    pair.flow()
    assert len(pair.right.of(Deliver)) == 1


def test_a_message_between_the_chunks_of_another_is_a_breach() -> None:
    pair = Pair().open()
    pair.left.session.notify(put(1, 3 * MB), pair.now)
    assert pair.carry(pair.left, pair.right)
    pair.right.did(pair.right.session.receive(frame(free(1)), pair.now))
    assert isinstance(close_error(pair.right), WireError)


def test_a_peer_that_sends_more_than_its_credit_breaks_the_rules() -> None:
    pair = Pair(right=limits(window_bytes=4 * MB)).open()
    big = frame(put(1, 500_000))
    for _ in range(7):
        pair.right.did(pair.right.session.receive(big, pair.now))
    assert not pair.right.of(Closed)
    for _ in range(30):
        pair.right.did(pair.right.session.receive(big, pair.now))
    assert isinstance(close_error(pair.right), WireError)


def test_large_frames_before_hello_have_no_credit() -> None:
    acceptor = Pair().start().right
    acceptor.did(acceptor.session.receive(frame(Hello(oldest=1, newest=1, software="x" * 65_536)), 100.0))
    assert isinstance(close_error(acceptor), WireError)


def test_the_owner_may_accept_less_from_a_peer_it_does_not_know() -> None:
    pair = Pair().open()
    pair.right.session.max_message_bytes = 10_000
    pair.left.session.notify(put(1, 5_000), pair.now)
    pair.flow()
    assert len(pair.right.of(Deliver)) == 1 and not pair.right.of(Closed)
    for size in (20_000, 2 * MB):
        pair = Pair().open()
        pair.right.session.max_message_bytes = 10_000
        pair.left.session.notify(put(1, size), pair.now)
        pair.flow()
        assert isinstance(close_error(pair.right), WireError) and not pair.right.of(Deliver)


def test_our_own_queue_is_bounded() -> None:
    pair = Pair(left=limits(max_chunked_bytes=3 * MB), right=limits(window_bytes=4 * MB)).open()
    with pytest.raises(QuotaExceeded, match="drained"):
        for _ in range(100):
            pair.left.session.notify(put(1, MB), pair.now)
    assert pair.left.session.queued_bytes < 5 * MB
    pair.flow()
    pair.left.session.notify(free(1), pair.now)


def test_a_peer_that_asks_and_never_reads_loses_the_session() -> None:
    pair = Pair(right=limits(max_chunked_bytes=MB, max_message_bytes=MB, max_open_requests=10)).open()
    answer = ObjectValue(tensor=tensor(500_000))
    request_id = 1
    while not pair.right.of(Closed):
        pair.right.did(pair.right.session.receive(frame(get(1), request_id), pair.now))
        for each in pair.right.of(Deliver)[-1:]:
            if each.request_id == request_id:
                pair.right.did(pair.right.session.reply(request_id, answer, pair.now))
        assert pair.right.session.queued_bytes < 4 * MB
        request_id += 2
    assert isinstance(close_error(pair.right), QuotaExceeded)


def test_a_flood_of_pings_makes_nothing_grow() -> None:
    pair = Pair().open()
    for number in range(10_000):
        pair.right.did(pair.right.session.receive(frame(Ping(number=number)), pair.now))
    assert codec.decode(pair.right.pull(pair.now) or b"").message == Pong(number=9999)
    assert pair.right.pull(pair.now) is None


# ---------------------------------------------------------------- heartbeats


def kinds(side: Side) -> list[str]:
    return [codec.decode(each).message.tag for each in side.sent]


def test_an_idle_pair_exchanges_one_ping_a_heartbeat_and_stays_open() -> None:
    pair = Pair().open()
    before = len(pair.left.sent), len(pair.right.sent)
    pair.wait(20.0)
    assert not pair.left.of(Closed) and not pair.right.of(Closed)
    pings = [*kinds(pair.left)[before[0] :], *kinds(pair.right)[before[1] :]]
    assert set(pings) == {"ping", "pong"}
    assert 15 <= pings.count("ping") <= 21


def test_a_silent_peer_is_given_up_after_patience() -> None:
    pair = Pair().open()
    request_id = pair.left.session.request(get(1), pair.now, pair.now + 60)
    start = pair.now
    while not pair.left.of(Closed):
        pair.wait(0.05, deliver=False)
    assert LIMITS.patience_s <= pair.now - start <= LIMITS.patience_s + 0.15
    assert isinstance(close_error(pair.left), NodeUnavailable)
    assert [each.request_id for each in pair.left.of(Fail)] == [request_id]
    assert pair.left.session.state is State.CLOSED and pair.left.session.flushed


def test_a_peer_that_only_reads_hears_that_we_live() -> None:
    pair = Pair().open()
    for _ in range(100):
        pair.now += 0.1
        pair.right.session.next_tick(pair.now)
        pair.right.did(pair.right.session.tick(pair.now))
        pair.carry(pair.right, pair.left)
        pair.right.did(pair.right.session.receive(frame(free(1)), pair.now))
    assert kinds(pair.right).count("ping") >= 7


def test_a_process_that_stood_still_does_not_blame_its_peer() -> None:
    pair = Pair().open()
    pair.left.session.next_tick(pair.now)
    pair.now += 600.0
    pair.left.did(pair.left.session.tick(pair.now))
    assert not pair.left.of(Closed)
    while not pair.left.of(Closed):
        pair.wait(0.05, deliver=False)
    assert isinstance(close_error(pair.left), NodeUnavailable)


def test_silence_before_open_is_the_handshakes_business() -> None:
    pair = Pair().start()
    pair.flow()
    pair.wait(5.0)
    assert not pair.left.of(Closed) and pair.left.sent == []


# ---------------------------------------------------------------- the end


def test_a_clean_close_delivers_what_was_queued_first() -> None:
    pair = Pair().open()
    pair.left.session.notify(put(1, 3 * MB), pair.now)
    request_id = pair.left.session.request(get(1), pair.now, pair.now + 5)
    pair.left.did(pair.left.session.close(None, pair.now))
    assert close_error(pair.left) is None
    assert [each.request_id for each in pair.left.of(Fail)] == [request_id]
    assert not pair.left.session.flushed
    pair.flow()
    assert pair.left.session.flushed
    assert [each.message.tag for each in pair.right.of(Deliver)] == ["put-object", "get-object"]
    assert close_error(pair.right) is None and pair.right.session.state is State.CLOSED


def test_a_clean_close_still_takes_credit() -> None:
    pair = Pair(right=limits(window_bytes=4 * MB)).open()
    pair.left.session.notify(put(1, 30 * MB), pair.now)
    pair.left.did(pair.left.session.close(None, pair.now))
    pair.flow()
    assert len(pair.right.of(Deliver)) == 1 and close_error(pair.right) is None


def test_a_close_with_an_error_drops_what_was_queued_and_says_why() -> None:
    pair = Pair().open()
    pair.right.session.request(get(1), pair.now, pair.now + 5)
    pair.left.session.notify(free(1), pair.now)
    pair.left.did(pair.left.session.close(QuotaExceeded("too much"), pair.now))
    pair.flow()
    assert not pair.right.of(Deliver)
    error = close_error(pair.right)
    assert isinstance(error, QuotaExceeded) and error.message == "too much"
    assert [each.error.message for each in pair.right.of(Fail)] == ["too much"]


def test_a_lost_connection_fails_what_is_open_and_sends_nothing() -> None:
    pair = Pair().open()
    request_id = pair.left.session.request(get(1), pair.now, pair.now + 5)
    gone = NodeUnavailable("gone")
    pair.left.did(pair.left.session.lost(gone))
    assert [each.request_id for each in pair.left.of(Fail)] == [request_id]
    assert type(pair.left.of(Fail)[0].error) is NodeUnavailable and pair.left.effects[-1] == Closed(gone)
    assert pair.left.pull(pair.now) is None
    assert pair.left.session.lost(gone) == [] and pair.left.session.close(None, pair.now) == []


def test_frames_after_the_end_mean_nothing() -> None:
    pair = Pair().open()
    pair.left.did(pair.left.session.lost(NodeUnavailable("gone")))
    pair.left.effects.clear()
    for each in (frame(get(1), 2), b"garbage", frame(Goodbye())):
        assert pair.left.session.receive(each, pair.now) == []


def test_a_session_starts_once() -> None:
    session = Session(initiator=True, limits=LIMITS)
    session.start(0.0)
    with pytest.raises(LocalProtocolError):
        session.start(0.0)


def test_a_window_too_small_for_a_frame_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="window_bytes"):
        Session(initiator=True, limits=limits(window_bytes=1000))


# ---------------------------------------------------------------- at random

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["request", "notify", "large", "answer", "fail", "carry", "carry", "carry", "wait", "ping", "work"]),
        st.booleans(),
        st.integers(0, 5),
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_whatever_the_order_each_request_ends_once_and_nothing_is_lost(steps: list[tuple[str, bool, int]]) -> None:
    pair = Pair(left=limits(window_bytes=4 * MB), right=limits(window_bytes=4 * MB)).open()
    sent: dict[int, list[int]] = {0: [], 1: []}
    asked: dict[int, list[int]] = {0: [], 1: []}
    sides = (pair.left, pair.right)
    worked = [0, 0]
    for number, (step, on_right, choice) in enumerate(steps, 1):
        side, other = (sides[1], sides[0]) if on_right else sides
        if step == "request":
            asked[on_right].append(side.session.request(get(number), pair.now, pair.now + 1 + choice))
            sent[on_right].append(number)
        elif step == "notify":
            side.session.notify(free(number), pair.now)
            sent[on_right].append(number)
        elif step == "large":
            side.session.notify(put(number, choice * 300_000), pair.now)
            sent[on_right].append(number)
        elif step in ("answer", "fail"):
            for each in side.of(Deliver)[choice::3]:
                if each.request_id is not None and step == "answer":
                    side.session.reply(each.request_id, Ok(), pair.now)
                elif each.request_id is not None:
                    side.session.fail(each.request_id, InvalidRequest("no"), pair.now)
        elif step == "carry":
            pair.carry(side, other)
        elif step == "wait":
            pair.wait(choice / 10)
        elif step == "ping":
            side.did(side.session.receive(frame(Ping(number=number)), pair.now))
        elif step == "work":
            for each in side.of(Deliver)[worked[on_right] :][:1]:
                worked[on_right] += 1
                side.session.consumed(each.held)
    for _ in range(200):
        pair.flow()
        for index, side in enumerate(sides):
            for each in side.of(Deliver)[worked[index] :]:
                worked[index] += 1
                side.session.consumed(each.held)
    pair.wait(10.0)
    assert not pair.left.of(Closed) and not pair.right.of(Closed)
    for index, side in enumerate(sides):
        other = sides[1 - index]
        numbers = [
            each.message.objects[0] if isinstance(each.message, FreeObjects) else each.message.object
            for each in other.of(Deliver)
        ]
        assert numbers == sent[index]
        ended = sorted([each.request_id for each in side.of(Reply)] + [each.request_id for each in side.of(Fail)])
        assert ended == sorted(asked[index])
        assert side.session.flushed and side.session.queued_bytes == 0


GARBAGE = st.one_of(st.binary(max_size=40), st.binary(max_size=30).map(lambda tail: struct.pack("<I", 2) + tail))


@settings(max_examples=300, deadline=None)
@given(st.lists(GARBAGE, max_size=5))
def test_no_bytes_make_a_session_raise(garbage: list[bytes]) -> None:
    for side in (Pair().start().left, Pair().start().right, Pair().open().left, Pair().open().right):
        for each in garbage:
            side.did(side.session.receive(each, 100.0))
        side.session.tick(100.0)
        side.pull(100.0)
        assert len(side.of(Closed)) <= 1


# ---------------------------------------------------------------- messages that never end


def test_a_message_that_stops_in_the_middle_ends_the_session() -> None:
    pair = Pair(right=limits(patience_s=3.0)).open()
    pair.left.session.notify(put(1, 8 * MB), pair.now)
    for _ in range(2):
        pair.carry(pair.left, pair.right)
    for _ in range(6):  # it goes on living, and sends nothing more of the message
        pair.now += 0.6
        pair.right.session.next_tick(pair.now)
        pair.right.did(pair.right.session.receive(frame(Ping(number=1)), pair.now))
        pair.right.did(pair.right.session.tick(pair.now))
    assert isinstance(close_error(pair.right), DeadlineExceeded)
    assert not pair.right.session._assembler.busy


def test_a_message_that_waits_for_our_credit_or_for_a_process_that_stood_still_is_not_late() -> None:
    pair = Pair(right=limits(patience_s=3.0, window_bytes=4 * MB)).open()
    for number, size in ((1, 3 * MB), (2, 3 * MB), (3, 6 * MB)):
        pair.left.session.notify(put(number, size), pair.now)
    pair.flow()
    assert pair.right.session._assembler.busy  # what came before is still being worked on
    pair.wait(8, step=0.5)
    for delivered in pair.right.of(Deliver):
        pair.right.session.consumed(delivered.held)
    pair.flow()
    assert len(pair.right.of(Deliver)) == 3 and not pair.right.of(Closed)

    pair.left.session.notify(put(4, 4 * MB), pair.now)
    pair.carry(pair.left, pair.right)
    pair.now += 60  # this process stood still
    pair.right.did(pair.right.session.tick(pair.now))
    assert not pair.right.of(Closed)


def test_a_peer_has_no_more_half_received_than_is_allowed() -> None:
    pair = Pair(right=limits(max_chunked_bytes=MB)).open()
    pair.left.session.notify(put(1, 2 * MB), pair.now)
    pair.flow()
    assert isinstance(close_error(pair.right), WireError) and not pair.right.of(Deliver)
