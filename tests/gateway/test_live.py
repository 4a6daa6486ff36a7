"""What pages live on: the log of events, the feed, and its stream over HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from gateway_site import BEARER, TOKEN, Site, site
from hypothesis import given
from hypothesis import strategies as st

from grid.gateway.events import KINDS, MAX_OF_KIND, TOGETHER_S, Event, EventLog
from grid.gateway.feed import KEPT, MAX_BEHIND, Feed
from grid.ids import PeerId
from grid.testing.crowd import make_dataset

# ---------------------------------------------------------------- events


class Wall:
    """A clock on the wall that stands still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_flood_of_one_kind_leaves_the_others() -> None:
    log = EventLog(Wall())
    log.add("joined", "", peer="a", name="alice", role="node")
    for number in range(3 * MAX_OF_KIND):
        log.add("refused", f"reason {number}")
    assert len(log) == MAX_OF_KIND + 1
    newest, *_, oldest = log.find()
    assert newest.text == f"reason {3 * MAX_OF_KIND - 1}" and oldest.kind == "joined"


def test_the_same_again_is_one_event_that_happened_twice() -> None:
    wall, told = Wall(), list[Event]()
    log = EventLog(wall, told.append)
    for _ in range(3):
        log.add("error", "quota: slow down", peer="a")
    log.add("error", "quota: slow down", peer="b")
    log.add("error", "quota: slow down", peer="a")
    assert [(event.peer, event.times) for event in log.find()] == [("a", 1), ("b", 1), ("a", 3)]
    assert [event.number for event in told] == [1, 2, 3, 4, 5] and log.since("error", 999.0) == 5
    wall.now += TOGETHER_S + 1
    log.add("error", "quota: slow down", peer="a")
    assert log.find()[0].times == 1 and log.since("error", 1000.0) == 1


def test_events_are_found_by_kind_peer_and_words_and_are_one_line() -> None:
    log = EventLog(Wall())
    log.add("joined", "", peer="id-a", name="Alice", role="node")
    log.add("left", "its connection\nended" + "x" * 1000, peer="id-a", name="Alice", role="node")
    log.add("refused", "a stranger")
    assert [event.kind for event in log.find(kinds=["left", "refused"])] == ["refused", "left"]
    assert [event.kind for event in log.find(peer=PeerId("id-a"), words=["alice", "connection"])] == ["left"]
    (left,) = log.find(kinds=["left"])
    assert "\n" not in left.text and len(left.text) == 200


# ---------------------------------------------------------------- feed


def test_a_reader_gets_what_came_after_what_it_saw() -> None:
    feed = Feed()
    for number in range(5):
        feed.publish("traffic", {"bytes_per_s": number})
    assert [notice.number for notice in feed.after(feed.cursor(f"{feed.epoch}-3"))] == [4, 5]
    assert feed.after(feed.cursor(f"{feed.epoch}-5")) == []
    assert feed.write(feed.after(4)[0]) == f'id: {feed.epoch}-5\nevent: traffic\ndata: {{"bytes_per_s": 4}}\n\n'.encode()


@pytest.mark.parametrize("last_id", ["", "5", "x-5", "0123456789abcdef-5", "@-6", "@-", "@-1\n", "@--1", "@-²"])
def test_who_saw_something_else_looks_at_everything(last_id: str) -> None:
    feed = Feed()
    for _ in range(5):
        feed.publish("log", {})
    cursor = feed.cursor(last_id.replace("@", feed.epoch))
    assert cursor is None
    assert [(notice.topic, notice.number) for notice in feed.after(cursor)] == [("reset", 5)]


@given(st.integers(0, 3 * KEPT), st.integers(0, 3 * KEPT))
def test_nothing_is_missed_without_being_told(before: int, published: int) -> None:
    feed = Feed()
    for _ in range(before):
        feed.publish("log", {})
    cursor = feed.last
    for _ in range(published):
        feed.publish("log", {})
    notices = feed.after(cursor)
    assert len(notices) <= MAX_BEHIND
    told = [notice.topic for notice in notices] == ["reset"] if published > MAX_BEHIND else len(notices) == published
    assert told and (not notices or notices[-1].number == feed.last)


# ---------------------------------------------------------------- stream


async def told(stream: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str, dict[str, object]]]:
    """Id, topic and data of each notice."""
    found: dict[str, str] = {}
    async for raw in stream.content:
        name, _, value = raw.decode().rstrip("\n").partition(": ")
        found[name] = value
        if not name and "data" in found:
            yield found["id"], found["event"], json.loads(found["data"])
            found = {}


def cursor_of(made: Site) -> str:
    feed = made.grid.gateway.feed
    return f"{feed.epoch}-{feed.last}"


async def test_the_stream_tells_who_came_what_they_have_and_who_left() -> None:
    async with site() as made:
        path = f"{made.root}/events/stream?after={cursor_of(made)}"
        async with made.session.get(path, headers=BEARER) as stream, asyncio.timeout(10):
            assert stream.content_type == "text/event-stream" and "script-src 'self'" in stream.headers["Content-Security-Policy"]
            notices = told(stream)
            alice = await made.grid.peer("alice")
            await alice.announce(make_dataset())
            seen = [await anext(notices) for _ in range(4)]
            assert [topic for _, topic, _ in seen] == ["log", "nodes", "log", "datasets"]
            assert seen[1][2] == {"id": alice.id, "name": "alice", "state": "online"}
            assert seen[3][2] == {"id": alice.id, "name": "alice", "datasets": 1}
            await alice.transport.close()
            while (notice := await anext(notices))[1] != "nodes":
                pass
            assert notice[2]["state"] == "offline"


async def test_a_reader_that_comes_back_resumes_and_one_of_another_run_looks_again() -> None:
    async with site() as made:
        before = cursor_of(made)
        await made.grid.peer("alice")
        for headers, query, topics in (
            ({"Last-Event-ID": before}, "?after=nonsense", ["log", "nodes"]),
            ({}, f"?after={before}", ["log", "nodes"]),
            ({"Last-Event-ID": "0123456789abcdef-1"}, "", ["reset"]),
            ({}, "", ["reset"]),
        ):
            async with made.session.get(f"{made.root}/events/stream{query}", headers={**BEARER, **headers}) as stream:
                notices = told(stream)
                async with asyncio.timeout(10):
                    assert [(await anext(notices))[1] for _ in topics] == topics


async def test_streams_are_few_and_end_with_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grid.gateway.live.MAX_STREAMS", 1)
    async with site() as made:
        async with made.session.get(f"{made.root}/events/stream", headers=BEARER) as stream:
            status, body, _ = await made.get("/events/stream")
            assert status == 429 and body["error"]["code"] == "quota"
            await made.grid.gateway.stop()
            async with asyncio.timeout(5):
                await stream.content.read()
            assert (await made.get("/healthz"))[:2] == (503, {"status": "stopping"})


async def test_a_silent_stream_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grid.gateway.live.SILENCE_S", 0.01)
    async with site() as made:
        path = f"{made.root}/events/stream?after={cursor_of(made)}"
        async with made.session.get(path, headers=BEARER) as stream, asyncio.timeout(5):
            while b": still here" not in await stream.content.readline():
                pass


async def test_a_browser_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grid.gateway.live.WRITE_S", 0.2)
    monkeypatch.setattr("grid.gateway.live.PAUSE_S", 0.0)
    async with site() as made:
        assert made.http._listener is not None
        # What is accepted inherits it; systems keep megabytes for a reader otherwise.
        made.http._listener.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
        loop = asyncio.get_running_loop()
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 10)
            reader.setblocking(False)
            await loop.sock_connect(reader, ("127.0.0.1", made.http.port))
            request = f"GET /events/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
            await loop.sock_sendall(reader, request.encode())
            live, gateway = made.http._live, made.grid.gateway
            async with asyncio.timeout(20):
                await loop.sock_recv(reader, 16)
                while live.streams:
                    for _ in range(MAX_BEHIND):
                        gateway.feed.publish("nodes", {"id": "x" * 26, "name": "y" * 64, "state": "online"})
                    gateway.changes.mark()
                    await asyncio.sleep(0.001)
        assert (await made.get("/api/v1/status"))[0] == 200


async def test_a_browser_that_has_gone_before_its_stream_begins_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepare = web.StreamResponse.prepare

    async def late(response: web.StreamResponse, request: web.BaseRequest) -> Any:
        if request.path == "/events/stream":
            assert request.transport is not None
            request.transport.abort()
        return await prepare(response, request)

    monkeypatch.setattr(web.StreamResponse, "prepare", late)
    async with site() as made:
        with pytest.raises(aiohttp.ClientError):
            await made.session.get(f"{made.root}/events/stream", headers=BEARER)
        assert (await made.get("/api/v1/status"))[0] == 200 and not made.http._live.streams
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


def test_every_kind_has_a_meaning() -> None:
    assert all(meaning.endswith(".") for meaning in KINDS.values())
