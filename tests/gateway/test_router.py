"""The relay as a plain state machine: events in, effects out."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.errors import InvalidRequest, NodeUnavailable, QuotaExceeded, WireError
from grid.gateway.registry import ConnectionId
from grid.gateway.router import TURN_BYTES, Effect, Router, Tell, Wake
from grid.ids import LinkId, PeerId
from grid.wire.messages import LINK_FRAME_COST, LINK_START, LINK_WINDOW, CloseLink, LinkCredit, LinkData, LinkOffer, Message

A, B, C, D = (ConnectionId(number) for number in range(1, 5))


def new_router(*, buffer_bytes: int = 8 << 20, max_links: int = 8) -> Router:
    router = Router(max_links_per_peer=max_links, buffer_bytes=buffer_bytes)
    for connection in (A, B, C, D):
        router.join(connection, PeerId(f"peer-{connection}"))
    return router


def opened(router: Router, source: ConnectionId, target: ConnectionId, link: int = 1) -> LinkId:
    """Open a link and return the number under which the target knows it."""
    (offer,) = router.open(source, LinkId(link), target, 0.0)
    assert isinstance(offer, Tell) and offer.connection == target
    assert isinstance(offer.message, LinkOffer)
    return offer.message.link


def drain(router: Router, connection: ConnectionId) -> tuple[list[Message], list[Effect]]:
    """All that a receiver can be sent now."""
    messages: list[Message] = []
    effects: list[Effect] = []
    while True:
        message, more = router.take(connection)
        effects += more
        if message is None:
            return messages, effects
        messages.append(message)


def frames(messages: list[Message]) -> list[bytes]:
    return [bytes(message.frame) for message in messages if isinstance(message, LinkData)]


def test_frames_arrive_in_order_under_the_receivers_number() -> None:
    router = new_router()
    offer = opened(router, A, B)
    assert offer % 2 == 0
    assert router.data(A, LinkId(1), b"one") == [Wake(B)]
    assert router.data(A, LinkId(1), b"two") == []
    messages, _ = drain(router, B)
    assert messages == [LinkData(link=offer, frame=b"one"), LinkData(link=offer, frame=b"two")]
    router.data(B, offer, b"back")
    assert drain(router, A)[0] == [LinkData(link=LinkId(1), frame=b"back")]
    assert (router.moved_bytes, router.moved_frames, router.held()) == (10, 3, 0)


def test_bad_link_numbers_and_too_many_links_are_refused() -> None:
    router = new_router(max_links=2)
    opened(router, A, B, 1)
    for link in (1, 2, 0, -1):
        with pytest.raises(InvalidRequest):
            router.open(A, LinkId(link), B, 0.0)
    with pytest.raises(InvalidRequest, match="itself"):
        router.open(A, LinkId(3), A, 0.0)
    opened(router, A, C, 3)
    with pytest.raises(QuotaExceeded, match="2 links"):
        router.open(A, LinkId(5), D, 0.0)
    opened(router, B, A, 1)  # What others open does not count.
    router.close(A, LinkId(3), None)
    drain(router, C)
    opened(router, A, D, 5)


def test_a_source_without_credit_loses_the_link() -> None:
    router = new_router()
    offer = opened(router, A, B)
    router.data(A, LinkId(1), bytes(LINK_START))
    effects = router.data(A, LinkId(1), b"too much")
    assert [type(effect.message) for effect in effects if isinstance(effect, Tell)] == [CloseLink]
    messages, _ = drain(router, B)
    assert len(messages) == 1 and isinstance(messages[0], CloseLink) and messages[0].link == offer
    assert messages[0].error is not None and isinstance(messages[0].error.to_error(), WireError)
    assert (len(router), router.held(), router.violated) == (0, 0, 1)


def test_a_frame_over_the_limit_loses_the_link() -> None:
    router = new_router()
    opened(router, A, B)
    router.data(A, LinkId(1), bytes((1 << 20) + 1))
    assert router.violated == 1 and router.held() == 0


def test_tiny_frames_cost_credit_too() -> None:
    router = new_router()
    opened(router, A, B)
    for _ in range(LINK_START // LINK_FRAME_COST):
        router.data(A, LinkId(1), b"")
    assert router.violated == 0
    router.data(A, LinkId(1), b"")
    assert router.violated == 1


def test_credit_comes_back_as_frames_move_on() -> None:
    router = new_router()
    offer = opened(router, A, B)
    router.credit(B, offer, LINK_WINDOW - LINK_START)
    router.data(A, LinkId(1), bytes(LINK_START))
    _, effects = drain(router, B)
    (tell,) = [effect for effect in effects if isinstance(effect, Tell)]
    assert tell.connection == A and isinstance(tell.message, LinkCredit)
    assert tell.message.amount == LINK_WINDOW + LINK_FRAME_COST  # A whole window: the receiver has one sender.


def test_a_receivers_buffer_is_shared_by_peer_and_then_by_link() -> None:
    router = new_router(buffer_bytes=4 << 20)
    for link in (1, 3, 5, 7):
        opened(router, A, D, link)
    opened(router, B, D)
    grants: dict[ConnectionId, int] = {}
    for source, links in ((A, (1, 3, 5, 7)), (B, (1,))):
        for link in links:
            router.data(source, LinkId(link), bytes(LINK_START))
    _, effects = drain(router, D)
    for effect in effects:
        assert isinstance(effect, Tell) and isinstance(effect.message, LinkCredit)
        grants[effect.connection] = effect.message.amount - LINK_FRAME_COST
    assert grants == {A: (4 << 20) // 2 // 4, B: (4 << 20) // 2}


def test_credit_that_cannot_be_right_loses_the_link() -> None:
    for amount in (0, -5, LINK_WINDOW, 1 << 62):
        router = new_router()
        offer = opened(router, A, B)
        router.credit(B, offer, amount)
        assert router.violated == 1, amount
        assert any(isinstance(message, CloseLink) for message in drain(router, A)[0])


def test_a_link_that_is_not_read_holds_up_itself_alone() -> None:
    router = new_router()
    stuck, free = opened(router, A, B, 1), opened(router, A, B, 3)
    router.data(A, LinkId(1), bytes(LINK_START))
    drain(router, B)  # The receiver's credit for the first link is spent, and it gives none.
    router.data(A, LinkId(1), b"waits")
    for number in range(20):
        assert router.data(A, LinkId(3), bytes(1000)) == [Wake(B)]
        messages, _ = drain(router, B)
        assert [message.link for message in messages if isinstance(message, LinkData)] == [free], number
    assert router.credit(B, stuck, LINK_START) == [Wake(B)]
    assert frames(drain(router, B)[0]) == [b"waits"]


def test_a_slow_receiver_holds_up_nobody_else() -> None:
    router = new_router()
    opened(router, A, B, 1)
    other = opened(router, A, C, 3)
    router.data(A, LinkId(1), bytes(LINK_START))
    assert router.data(A, LinkId(3), b"fast") == [Wake(C)]
    assert frames(drain(router, C)[0]) == [b"fast"]
    assert other == 2 and router.held() == LINK_START + LINK_FRAME_COST


def test_peers_take_turns_whatever_the_number_of_their_links() -> None:
    router = new_router(buffer_bytes=64 << 20)
    size = 16 << 10
    offers = {}
    for link in (1, 3, 5, 7, 9, 11, 13, 15):
        offers[opened(router, A, D, link)] = A
    offers[opened(router, B, D)] = B
    for link in (1, 3, 5, 7, 9, 11, 13, 15):
        for _ in range(15):
            router.data(A, LinkId(link), bytes(size))
    for _ in range(15):
        router.data(B, LinkId(1), bytes(size))
    moved: Counter[ConnectionId] = Counter()
    while moved[B] < 15:
        message, _ = router.take(D)
        assert isinstance(message, LinkData)
        moved[offers[message.link]] += 1
    assert moved[A] * size <= moved[B] * size + 2 * TURN_BYTES


def test_links_of_one_peer_take_turns_by_frame() -> None:
    router = new_router()
    first, second = opened(router, A, B, 1), opened(router, A, B, 3)
    for link in (1, 3):
        for _ in range(3):
            router.data(A, LinkId(link), b"x")
    order = [message.link for message in drain(router, B)[0] if isinstance(message, LinkData)]
    assert order == [first, second] * 3


def test_closing_follows_the_frames_before_it() -> None:
    router = new_router()
    offer = opened(router, A, B)
    router.data(A, LinkId(1), b"last words")
    router.close(A, LinkId(1), None)
    assert router.data(B, offer, b"too late") == []
    messages, _ = drain(router, B)
    assert messages == [LinkData(link=offer, frame=b"last words"), CloseLink(link=offer)]
    assert len(router) == 0 and router.held() == 0
    assert router.close(B, offer, None) == [] and router.data(A, LinkId(1), b"gone") == []


def test_both_ends_closing_at_once_leaves_nothing() -> None:
    router = new_router()
    offer = opened(router, A, B)
    router.data(A, LinkId(1), b"unread")
    router.close(A, LinkId(1), None)
    router.close(B, offer, None)
    assert len(router) == 0 and router.held() == 0
    assert drain(router, A)[0] == [] and drain(router, B)[0] == []


def test_a_dead_connection_ends_its_links_with_the_reason() -> None:
    router = new_router()
    offer = opened(router, A, B)
    back = opened(router, C, A)
    router.data(A, LinkId(1), b"last")
    router.data(C, LinkId(1), b"never read")
    router.leave(A, "node alice is gone")
    messages, _ = drain(router, B)
    assert messages[0] == LinkData(link=offer, frame=b"last")
    assert isinstance(messages[1], CloseLink) and messages[1].error is not None
    error = messages[1].error.to_error()
    assert isinstance(error, NodeUnavailable) and "alice" in error.message
    assert [type(message) for message in drain(router, C)[0]] == [CloseLink]
    assert (len(router), router.held()) == (0, 0) and back == 2
    assert router.leave(A, "again") == [] and router.take(A) == (None, [])


def test_what_a_dead_source_left_is_dropped_where_the_receiver_is_behind() -> None:
    router = new_router(buffer_bytes=LINK_START + LINK_FRAME_COST)
    for link in (1, 3):
        opened(router, A, B, link)
        router.data(A, LinkId(link), bytes(LINK_START))
    router.leave(A, "gone")
    assert router.held() <= LINK_START + LINK_FRAME_COST
    messages, _ = drain(router, B)
    assert len(frames(messages)) == 1 and sum(isinstance(message, CloseLink) for message in messages) == 2


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(10, 150))
def test_random_orders_keep_the_invariants(seed: int, steps: int) -> None:
    """Whatever peers do, in whatever order: what goes in comes out in order or is dropped with its link, and bytes add up."""
    chooser = random.Random(seed)
    router = Router(max_links_per_peer=3, buffer_bytes=1 << 20)
    alive = {A, B, C}
    for connection in alive:
        router.join(connection, PeerId(f"peer-{connection}"))
    ends: dict[tuple[ConnectionId, LinkId], list[int]] = {}
    pairs: dict[tuple[ConnectionId, LinkId], tuple[ConnectionId, LinkId]] = {}
    counter = 0
    for _ in range(steps):
        connection = chooser.choice(sorted(alive))
        mine = [end for end in ends if end[0] == connection]
        action = chooser.choice(["open", "data", "data", "data", "take", "take", "credit", "close", "leave"])
        if action == "open":
            target = chooser.choice(sorted(alive))
            link = LinkId(chooser.randrange(1, 40, 2))
            try:
                (offer,) = router.open(connection, link, target, 0.0)
            except (InvalidRequest, QuotaExceeded):
                continue
            assert isinstance(offer, Tell) and isinstance(offer.message, LinkOffer)
            near, far = (connection, link), (target, offer.message.link)
            ends[near], ends[far] = [], []
            pairs[near], pairs[far] = far, near
        elif action == "data" and mine:
            end = chooser.choice(mine)
            counter += 1
            router.data(*end, counter.to_bytes(4, "big") * chooser.choice([1, 1000, 60_000]))
        elif action == "take":
            message, _ = router.take(connection)
            if isinstance(message, LinkData):
                number = int.from_bytes(message.frame[:4], "big")
                seen = ends[(connection, message.link)]
                assert not seen or seen[-1] < number
                seen.append(number)
        elif action == "credit" and mine:
            router.credit(*chooser.choice(mine), chooser.choice([1, 100_000, LINK_WINDOW]))
        elif action == "close" and mine:
            router.close(*chooser.choice(mine), None)
        elif action == "leave" and len(alive) > 2 and chooser.random() < 0.2:
            alive.discard(connection)
            router.leave(connection, "left")
        assert router.held() >= 0 and len(list(router.views())) == len(router)
    for connection in sorted(alive):
        router.leave(connection, "the end")
    assert router.held() == 0 and len(router) == 0


def test_what_waits_for_a_receiver_is_bounded_however_many_links_there_are() -> None:
    size = 256 << 10
    router = new_router(buffer_bytes=size, max_links=64)
    for number in range(60):
        opened(router, (A, C, D)[number % 3], B, 2 * number + 1)
    shed = 0
    for number in range(60):
        effects = router.data((A, C, D)[number % 3], LinkId(2 * number + 1), bytes(200 << 10))
        shed += sum(isinstance(effect, Tell) and isinstance(effect.message, CloseLink) for effect in effects)
        assert router.held() <= 4 * size
    assert shed > 50
    messages, _ = drain(router, B)
    assert 0 < len(frames(messages)) <= 5


def test_what_those_who_have_closed_left_for_a_receiver_counts_too() -> None:
    router = new_router(buffer_bytes=256 << 10, max_links=64)
    for number in range(20):
        link = LinkId(2 * number + 1)
        opened(router, A, B, link)
        router.data(A, link, bytes(200 << 10))
        router.close(A, link, None)
        assert router.held() <= 1 << 20
    messages, _ = drain(router, B)
    assert sum(isinstance(message, CloseLink) for message in messages) == 20 and len(router) == 0


def test_links_between_two_peers_are_bounded() -> None:
    router = new_router(max_links=100)
    for number in range(64):
        opened(router, A, B, 2 * number + 1)
    with pytest.raises(QuotaExceeded, match="between these two"):
        router.open(A, LinkId(999), B, 0.0)
    opened(router, A, C, 999)
