"""Blocking calls: one loop thread in a process, inside a running loop, in a forked child, and on Ctrl-C."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from grid.client.blocking import Client, LoopThread, background
from grid.errors import InvalidRequest, NodeUnavailable, NotFound
from grid.plans.trace import trace
from grid.testing import LocalGrid


@pytest.fixture(scope="module")
def local() -> Iterator[LocalGrid]:
    with LocalGrid(nodes={"alice": {"patients": {"features": torch.ones(40, 3), "tags": ["#train"]}}, "bob": {}}) as running:
        yield running


@pytest.fixture
def g(local: LocalGrid) -> Iterator[Client]:
    with local.client() as client:
        yield client


def test_there_is_one_thread_for_all_clients(local: LocalGrid) -> None:
    names = [thread.name for thread in threading.enumerate()]
    with local.client() as one, local.client() as two:
        assert one.nodes["alice"].send(torch.ones(2)).get().tolist() == two.nodes["alice"].send(torch.ones(2)).get().tolist()
        assert [thread.name for thread in threading.enumerate()].count("grid client loop") == 1
    assert names.count("grid client loop") == 1


async def test_it_works_inside_a_running_loop(g: Client) -> None:
    """As in a notebook: the loop that runs here is not the client's."""
    assert g.nodes["alice"].send(torch.ones(2)).add(1).get().tolist() == [2, 2]
    assert [ds.name for ds in g.search("#train")] == ["patients"]


def test_a_blocking_call_on_the_loop_thread_raises_instead_of_waiting_for_itself(g: Client) -> None:
    x = g.nodes["alice"].send(torch.ones(2))

    async def wrong() -> Any:
        return x.get()

    with pytest.raises(InvalidRequest, match=r"grid\.aio"):
        background().run(wrong())


def test_calls_may_come_from_many_threads(g: Client) -> None:
    alice, results = g.nodes["alice"], {}

    def work(number: int) -> None:
        x = alice.send(torch.full((3,), float(number)))
        for _ in range(50):
            x = x + 1
        results[number] = x.get().tolist()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [number + 50.0] * 3 for number in range(8)}


DOUBLED = trace(lambda x: x * 2, torch.ones(2))


def _in_child(x: Any, g: Any, alice: Any, answers: Any) -> None:
    found: list[Any] = []
    sending = lambda: alice.send(torch.ones(1))  # noqa: E731
    x._handle.outbox.flow._awake = True  # as where the fork came while the loop's thread was about to empty the queue
    calling = lambda: DOUBLED(x)  # noqa: E731
    for call in (x.get, lambda: x + 1, calling, lambda: g.search("#train"), lambda: g.nodes["alice"], sending, g.close):
        try:
            call()
        except InvalidRequest as error:
            found.append("forked" in error.message)
        except BaseException as error:
            found.append(repr(error))
    answers.put(found)
    answers.close()
    answers.join_thread()
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_an_error_instead_of_hanging(g: Client) -> None:
    alice = g.nodes["alice"]
    x = alice.send(torch.ones(2))
    x.get()
    forking = multiprocessing.get_context("fork")
    answers = forking.Queue()
    child = forking.Process(target=_in_child, args=(x, g, alice, answers))
    child.start()
    try:
        assert answers.get(timeout=30) == [True] * 7
    finally:
        child.join(10)
        child.kill()
        child.join()
        answers.close()
        answers.join_thread()
    assert (x + 1).get().tolist() == [2, 2]


def test_ctrl_c_leaves_a_wait_ends_its_work_and_the_client_stays_usable(g: Client) -> None:
    x, cancelled, program = g.nodes["alice"].send(torch.ones(2)), threading.Event(), threading.get_ident()

    async def work() -> None:
        signal.pthread_kill(program, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts without it
    try:
        with pytest.raises(KeyboardInterrupt):
            background().run(work())
    finally:
        signal.signal(signal.SIGINT, before)
    assert cancelled.wait(10)
    assert x.get().tolist() == [1, 1]


def test_a_closed_client_says_so(local: LocalGrid) -> None:
    g = local.client()
    alice = g.nodes["alice"]
    x = alice.send(torch.ones(2))
    x.get()
    g.close()
    g.close()
    for call in (x.get, lambda: x + 1, lambda: alice.send(torch.ones(1)), lambda: g.search(), lambda: g.nodes["alice"]):
        with pytest.raises(NodeUnavailable, match="closed"):
            call()


def test_nodes_are_a_live_mapping(g: Client, local: LocalGrid) -> None:
    assert sorted(g.nodes) == ["alice", "bob"] and len(g.nodes) == 2 and "alice" in g.nodes and "zoe" not in g.nodes
    assert g.nodes["alice"] is g.nodes["alice"] and g.node("bob").name == "bob" and str(g.nodes["bob"]) == "bob"
    assert "alice" in repr(g.nodes) and g.nodes["alice"].state == "online"
    assert g.nodes["alice"].datasets["patients"].rows == 40
    with pytest.raises(NotFound, match="known nodes: alice, bob"):
        g.nodes["zoe"]
    with pytest.raises(NotFound, match="'patients'"):
        g.nodes["alice"].datasets["nothing"]
    local.stop_node("bob")
    assert g.nodes["bob"].state == "offline"
    with pytest.raises(NodeUnavailable, match="bob"):
        g.nodes["bob"].send(torch.ones(1)).get()
    local.start_node("bob")
    assert g.nodes["bob"].state == "online" and g.nodes["bob"].send(torch.ones(1)).get().tolist() == [1]


def test_a_node_that_comes_back_has_a_new_session(g: Client, local: LocalGrid) -> None:
    bob = g.nodes["bob"]
    old = bob.send(torch.ones(1))
    old.get()
    local.stop_node("bob")
    with pytest.raises(NodeUnavailable, match="bob"):
        old.get()
    local.start_node("bob")
    new = g.nodes["bob"].send(torch.ones(1))
    assert new.get().tolist() == [1]
    with pytest.raises(NodeUnavailable):
        old + 1
    with pytest.raises(InvalidRequest, match="session"):
        new + old


def test_search_needs_every_tag(g: Client) -> None:
    assert len(g.search()) == 1 and g.search("#train", "#other") == []
    assert len(g.search(text="ALICE pat")) == 1 and g.search("#train", text="nothing such") == []
    with pytest.raises(InvalidRequest, match="tags"):
        g.search(["#train"])  # type: ignore[arg-type]


def test_the_end_of_the_process_closes_clients_that_were_left_open() -> None:
    class Forgotten:
        closed = False

        async def close(self) -> None:
            self.closed = True

    async def nothing() -> None:
        return

    thread, client = LoopThread(), Forgotten()
    thread.clients.add(client)  # type: ignore[arg-type]
    thread.stop()
    thread.stop()
    assert client.closed and thread.loop.is_closed()
    with pytest.raises(NodeUnavailable, match="shutting down"):
        thread.run(nothing())
