"""Jobs over real job channels, with nodes that follow a script and real secure aggregation."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grid.crypto.identity import LocalIdentity
from grid.errors import GridError, InvalidRequest, NotFound, QuotaExceeded
from grid.federated.custom import CustomStrategy
from grid.gateway.coordinator import ANSWER_ROOM
from grid.rpc.dispatch import Handlers
from grid.rpc.peer import Peer
from grid.store.memory import MemoryStore
from grid.store.sqlite import SqliteStore
from grid.wire.jobs import CancelJob, FetchWeights, JobList, JobStatus, JobWeights, ListJobs, StartJob, WatchJob
from grid.wire.messages import Message
from tests.federated.scripted_nodes import CLOCK, ScriptedNode, frame_of, mean_step, some_nodes, start_message
from tests.gateway.job_site import WATCHER_HANDLERS, JobSite, Watcher

NO_HANDLERS = Handlers({})
ZEROS = np.zeros(10, "f4")


async def fetched(peer: Peer, job: Any, which: str = "last") -> tuple[int, Any]:
    model = await peer.request(FetchWeights(job=job, which=which))
    assert isinstance(model, JobWeights)
    return model.round, np.frombuffer(model.weights.data, f"<{model.weights.dtype}")


@pytest.mark.parametrize("secure", [True, False])
async def test_a_job_goes_from_start_to_model(secure: bool) -> None:
    nodes = some_nodes(4)
    async with JobSite(nodes) as site:
        spec = site.spec(rounds=3, secure=secure)
        watcher, card = await site.run(spec, ZEROS)
        assert (card.state, card.round, card.error) == ("done", 3, None)
        step = mean_step(nodes)
        assert [report.round for report in watcher.reports] == [1, 2, 3, 3]
        losses = [report.metrics[0] for report in watcher.reports]
        assert np.allclose(losses, [(step * number) ** 2 for number in range(4)], rtol=1e-6, atol=1e-6)
        assert all(report.nodes == 4 and report.examples == 10 and report.bytes > 0 for report in watcher.reports)
        async with site.channel(site.client, NO_HANDLERS, None) as peer:
            round, weights = await fetched(peer, spec.job)
            assert round == 3 and np.allclose(weights, 3 * step, rtol=1e-6)
            round, weights = await fetched(peer, spec.job, "best")
            assert round == 0 and not weights.any()
        assert all(node.ended == ["the job is done"] for node in nodes)


async def test_a_job_outlives_its_client_and_another_channel_attaches() -> None:
    async with JobSite(some_nodes(3)) as site:
        spec = site.spec(rounds=5)
        async with site.channel(site.client, NO_HANDLERS, None) as peer:
            await peer.request(start_message(site.client, spec, ZEROS))
        watcher = Watcher()
        async with site.channel(site.client, WATCHER_HANDLERS, watcher) as peer:
            watcher.reports += [None, None]  # type: ignore[list-item]
            await peer.request(WatchJob(job=spec.job, after=2))
            card = await watcher.until(lambda card: card.ended > 0)
        assert card.state == "done" and [report.round for report in watcher.reports[2:]] == [3, 4, 5, 5]


async def test_a_gateway_started_again_goes_on_from_its_file(tmp_path: Path) -> None:
    """In the middle of each leg of another round: nodes keep what they have, the gateway has its store alone."""
    nodes = some_nodes(4)
    store = SqliteStore(tmp_path / "gateway.sqlite")
    legs = iter(["begin-round", "round-roster", "round-shares", "round-survivors", "round-unmask"])
    waits_for = [next(legs)]
    reached = asyncio.Event()

    def before(node: ScriptedNode, message: Message) -> None:
        if waits_for and message.tag == waits_for[0]:
            waits_for.clear()
            reached.set()

    nodes[2].before = before
    async with JobSite(nodes, store) as site:
        spec = site.spec(rounds=6)
        async with site.channel(site.client, NO_HANDLERS, None) as peer:
            await peer.request(start_message(site.client, spec, ZEROS))
        for leg in [*legs, None]:
            await reached.wait()
            await site.stop()
            reached.clear()
            waits_for[:] = [] if leg is None else [leg]
            await site.start()
        watcher = Watcher()
        async with site.channel(site.client, WATCHER_HANDLERS, watcher) as peer:
            await peer.request(WatchJob(job=spec.job))
            card = await watcher.until(lambda card: card.ended > 0)
            _, weights = await fetched(peer, spec.job)
        assert card.state == "done" and [report.nodes for report in watcher.reports] == [4] * 7
        assert np.allclose(weights, 6 * mean_step(nodes), rtol=1e-5)
        await site.stop()
        await site.start()
        assert [found.state for found in site.coordinator.cards()] == ["done"]
        assert await site.coordinator.reports(spec.job) == watcher.reports
    store.close()


async def test_jobs_do_not_block_each_other() -> None:
    nodes = some_nodes(4)
    async with JobSite(nodes) as site:
        stuck = site.spec(rounds=1, datasets=((nodes[0].id, "rows"), (nodes[1].id, "rows"), (nodes[3].id, "rows")))
        nodes[3].here = False
        others = [site.spec(rounds=3, datasets=tuple((node.id, "rows") for node in nodes[:3])) for _ in range(3)]
        async with site.channel(site.client, NO_HANDLERS, None) as peer:
            await peer.request(start_message(site.client, stuck, ZEROS))
            ends = await asyncio.gather(*(site.run(spec, ZEROS) for spec in others))
            assert [card.state for _, card in ends] == ["done"] * 3
            listed = await peer.request(ListJobs())
            assert isinstance(listed, JobList) and {card.state for card in listed.jobs} == {"waiting", "done"}
            cancelled = await peer.request(CancelJob(job=stuck.job))
            assert isinstance(cancelled, JobStatus)


# ---------------------------------------------------------------- hostile and mistaken clients


def changed(message: StartJob, **fields: Any) -> StartJob:
    return dataclasses.replace(message, **fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"train": b"another plan"}, "'train' is not the one"),
        ({"evaluate": b""}, "'evaluate' is not the one"),
        ({"strategy": b"a plan that nobody signed"}, "'strategy' is not the one"),
        ({"envelope": b"nonsense"}, "job"),
        ({"card": b"nonsense"}, "card"),
        ({"weights": frame_of(np.array([1.0, np.nan], "f4"))}, "finite"),
        ({"weights": frame_of(np.zeros((2, 2), "f4"))}, "a vector"),
        ({"weights": frame_of(np.zeros(0, "f4"))}, "finite"),
        ({"weights": frame_of(np.zeros(3, "i4"))}, "float"),
        ({"weights": frame_of(np.zeros(5000, "f8"))}, "max_job_bytes"),
    ],
)
async def test_what_does_not_fit_the_signed_job_is_refused(fields: dict[str, Any], says: str) -> None:
    async with JobSite(some_nodes(3), max_job_bytes=20_000) as site, site.channel(site.client, NO_HANDLERS, None) as peer:
        message = start_message(site.client, site.spec(), ZEROS)
        with pytest.raises(GridError, match=says):
            await peer.request(changed(message, **fields))
        assert site.coordinator.cards() == [] and site.store.jobs() == []
        await peer.request(message)  # and the session goes on


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strategy": {"kind": "median"}}, "secure=False"),
        ({"strategy": {"kind": "fedavg", "lr": float("1e9")}}, "lr"),
        ({"strategy": {"kind": "unheard of"}}, "strategy"),
        ({"datasets": tuple((node, "no such") for node in ["a" * 26, "b" * 26, "c" * 26])}, "not known here"),
    ],
)
async def test_a_job_that_cannot_be_done_is_refused(changes: dict[str, Any], says: str) -> None:
    async with JobSite(some_nodes(3)) as site, site.channel(site.client, NO_HANDLERS, None) as peer:
        with pytest.raises((InvalidRequest, NotFound), match=says):
            await peer.request(start_message(site.client, site.spec(**changes), ZEROS))


async def test_a_job_signed_by_another_client_is_refused_and_an_id_is_used_once() -> None:
    async with JobSite(some_nodes(3)) as site:
        spec = site.spec()
        message = start_message(site.client, spec, ZEROS)
        thief = LocalIdentity.create(name="eve", role="client", clock=CLOCK)
        async with site.channel(thief, NO_HANDLERS, None) as peer:
            with pytest.raises(InvalidRequest, match="signed it"):
                await peer.request(message)
        async with site.channel(site.client, NO_HANDLERS, None) as peer:
            await peer.request(message)
            with pytest.raises(InvalidRequest, match="of this id"):
                await peer.request(message)


async def test_there_is_room_for_so_many_jobs_and_cancelling_makes_more() -> None:
    nodes = some_nodes(3)
    for node in nodes:
        node.here = False
    watcher = Watcher()
    async with JobSite(nodes, max_jobs_per_client=2) as site, site.channel(site.client, WATCHER_HANDLERS, watcher) as peer:
        specs = [site.spec() for _ in range(3)]
        for spec in specs[:2]:
            await peer.request(start_message(site.client, spec, ZEROS))
        with pytest.raises(QuotaExceeded, match="2 of one client"):
            await peer.request(start_message(site.client, specs[2], ZEROS))
        await peer.request(WatchJob(job=specs[0].job))
        await peer.request(CancelJob(job=specs[0].job))
        await watcher.until(lambda card: card.state == "cancelled")
        await peer.request(start_message(site.client, specs[2], ZEROS))


async def test_unknown_jobs_and_models_are_not_found() -> None:
    async with JobSite(some_nodes(3)) as site, site.channel(site.client, NO_HANDLERS, None) as peer:
        for message in (WatchJob(job="0" * 32), CancelJob(job="0" * 32), FetchWeights(job="0" * 32)):  # type: ignore[arg-type]
            with pytest.raises(NotFound):
                await peer.request(message)


async def test_nodes_ask_for_nothing() -> None:
    nodes = some_nodes(3)
    async with JobSite(nodes) as site, site.channel(nodes[0].me, NO_HANDLERS, None) as peer:
        with pytest.raises(InvalidRequest, match="makes no sense"):
            await peer.request(ListJobs())


async def test_who_is_revoked_has_no_session_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = some_nodes(4)
    async with JobSite(nodes) as site, site.channel(site.client, NO_HANDLERS, None) as peer:
        spec = site.spec(rounds=10_000)
        await peer.request(start_message(site.client, spec, ZEROS))
        while nodes[0].peer is None:
            await site.coordinator.change_of(spec.job).wait()
        monkeypatch.setattr(site.trust, "revoked", lambda card: card.id == nodes[0].id)
        site.door.end_revoked()
        error = await nodes[0].peer.wait_closed()
        assert error is not None and "revoked" in error.message
        with pytest.raises(GridError):
            async with site.channel(nodes[0].me, NO_HANDLERS, None):
                pass
        assert isinstance(await peer.request(CancelJob(job=spec.job)), JobStatus)


async def test_jobs_that_are_over_for_long_are_forgotten() -> None:
    async with JobSite(some_nodes(3), max_kept_jobs=1) as site:
        for _ in range(3):
            await site.run(site.spec(rounds=1), ZEROS)
        await site.coordinator._sweep()
        assert len(site.coordinator.cards()) == len(site.store.jobs()) == 1


async def test_of_the_client_that_has_most_the_oldest_jobs_are_forgotten_first() -> None:
    async with JobSite(some_nodes(3), max_kept_jobs=3) as site:
        clients = [LocalIdentity.create(name=name, role="client", clock=CLOCK) for name in ("ben", "ann", "ann")]
        clients[2] = clients[1]
        specs = []
        for site.client in (*clients, clients[1]):
            specs.append(site.spec(rounds=1))
            await site.run(specs[-1], ZEROS)
        await site.coordinator._sweep()
        assert {card.id for card in site.coordinator.cards()} == {specs[0].job, specs[2].job, specs[3].job}


# ---------------------------------------------------------------- hostile nodes


def rows_become(site: JobSite, number: int, rows: int) -> None:
    """From the round of this number on, the last node announces so many."""
    *_, node = site.nodes.values()
    announced = site.coordinator._rows
    begun: list[int] = []

    def before(who: ScriptedNode, message: Message) -> None:
        if message.tag == "begin-round" and getattr(message, "round", 0) == number:
            begun.append(number)

    node.before = before
    site.coordinator._rows = lambda peer, name: rows if begun and peer == node.id else announced(peer, name)


async def test_a_node_that_announces_more_and_more_rows_spoils_no_sum() -> None:
    nodes = some_nodes(4)
    async with JobSite(nodes) as site:
        rows_become(site, 1, 1 << 50)
        watcher, card = await site.run(site.spec(rounds=3), ZEROS)
        assert card.state == "done", card.text
        assert [report.nodes for report in watcher.reports] == [4] * 4
        assert watcher.reports[-1].metrics[0] == pytest.approx((3 * mean_step(nodes)) ** 2, rel=1e-6)


async def test_a_node_whose_dataset_has_grown_takes_part_with_all_its_rows() -> None:
    nodes = some_nodes(4)

    def before(node: ScriptedNode, message: Message) -> None:
        if message.tag == "begin-round" and getattr(message, "round", 0) == 2:
            node.examples = 7

    nodes[3].before = before
    async with JobSite(nodes) as site:
        watcher, card = await site.run(site.spec(rounds=4, deadline_s=5.0), ZEROS)
        assert card.state == "done" and watcher.reports[-1].examples == 13, card.text


async def test_a_node_whose_answer_is_longer_than_its_largest_job_needs_is_cut_off() -> None:
    nodes = some_nodes(4)

    def before(node: ScriptedNode, message: Message) -> None:
        if message.tag == "round-shares":
            (party,) = node.parties.values()
            party.masked = lambda shares, vector: np.zeros(ANSWER_ROOM // 8 + 100, "u8")  # type: ignore[method-assign]

    nodes[3].before = before
    async with JobSite(nodes) as site:
        spec = site.spec(rounds=1, deadline_s=60.0)
        async with site.channel(site.client, NO_HANDLERS, None) as peer:
            await peer.request(start_message(site.client, spec, ZEROS))
            while nodes[3].peer is None:
                await site.coordinator.change_of(spec.job).wait()
            error = await nodes[3].peer.wait_closed()
            assert error is not None and "message" in error.message
            await peer.request(CancelJob(job=spec.job))


async def test_the_longest_answer_is_that_of_the_largest_job_as_long_as_the_session_lasts() -> None:
    nodes = some_nodes(3)

    def longest() -> set[int]:
        return {peer._session.max_message_bytes for peer in site.coordinator._nodes.values()}

    async with JobSite(nodes) as site:
        for size, largest in ((10, 10), (5000, 5000), (10, 5000)):  # the larger one's last answer may still be under way
            await site.run(site.spec(rounds=1), np.zeros(size, "f4"))
            assert longest() == {8 * largest + ANSWER_ROOM}
        for node in nodes:
            assert node.peer is not None
            node.lose()
            await node.peer.wait_closed()
        await site.run(site.spec(rounds=1), ZEROS)
        assert longest() == {8 * 10 + ANSWER_ROOM}


async def test_a_store_that_cannot_be_written_ends_the_job_and_nothing_else() -> None:
    loop, tried = asyncio.get_running_loop(), asyncio.Event()

    class Full(MemoryStore):
        full = False

        def job_parts(self, job: str, prefix: str = "") -> dict[str, bytes]:
            if self.full:
                raise OSError("the disk is gone")
            return super().job_parts(job, prefix)

        def forget_job(self, job: str) -> None:
            loop.call_soon_threadsafe(tried.set)
            raise OSError("the disk is gone")

        def keep_job(self, job: str, parts: Any) -> None:
            if self.full:
                raise OSError("no space left")
            super().keep_job(job, parts)

    store = Full()
    async with JobSite(some_nodes(3), store) as site:
        store.full = True
        async with site.channel(site.client, NO_HANDLERS, None) as peer:
            with pytest.raises(GridError, match="its log says what"):
                await peer.request(start_message(site.client, site.spec(), ZEROS))
            store.full = False
        spec = site.spec(rounds=1)
        _, card = await site.run(spec, ZEROS)
        assert card.state == "done"
        store.full = True
        async with site.channel(site.client, WATCHER_HANDLERS, Watcher()) as peer:
            await peer.request(WatchJob(job=spec.job))
            error = await peer.wait_closed()
            assert error is not None and "cannot read this job" in error.message
        store.full = False
        site.coordinator.settings = dataclasses.replace(site.settings, max_kept_jobs=0)
        site.coordinator._swept = -1e9
        async with site.channel(site.client, NO_HANDLERS, None) as peer:
            await tried.wait()  # in a tick, and in vain
            listed = await peer.request(ListJobs())
            assert isinstance(listed, JobList) and listed.jobs


def test_a_gateway_starts_without_torch() -> None:
    program = "import sys, grid.gateway.app, grid.gateway.http; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ---------------------------------------------------------------- strategies


async def test_a_robust_strategy_sees_single_updates() -> None:
    nodes = some_nodes(5)
    nodes[4].update = lambda weights, number: np.full_like(weights, 1e6)
    async with JobSite(nodes) as site:
        spec = site.spec(rounds=1, secure=False, strategy={"kind": "median", "clip_norm": 1e6, "lr": 1.0})
        watcher, card = await site.run(spec, ZEROS)
        assert card.state == "done" and watcher.reports[-1].metrics[0] == pytest.approx(4.0), "the median of 0, 1, 2, 3, 1e6 is 2"


async def test_a_strategy_of_the_users_own_runs_in_a_process_that_ends_with_the_job() -> None:
    def halves(weights: Any, mean_update: Any, state: dict[str, Any]) -> Any:
        calls = state["calls"] + 1
        return weights + mean_update / 2 * calls, {"calls": calls}

    strategy = CustomStrategy(halves, state=["calls"])
    nodes = some_nodes(3)
    async with JobSite(nodes) as site:
        plan = strategy.plan
        spec = site.spec(rounds=2, strategy=strategy.to_plain(), strategy_plan=hashlib.sha256(plan).hexdigest())
        watcher = Watcher()
        async with site.channel(site.client, WATCHER_HANDLERS, watcher) as peer:
            await peer.request(changed(start_message(site.client, spec, ZEROS), strategy=plan))
            await peer.request(WatchJob(job=spec.job))
            (job,) = site.coordinator._jobs.values()
            process = job.machine._strategy._process  # type: ignore[attr-defined]
            assert process is not None
            card = await watcher.until(lambda card: card.ended > 0)
            assert card.state == "done", card.text
            _, weights = await fetched(peer, spec.job)
        assert np.allclose(weights, mean_step(nodes) * (1 + 2) / 2, rtol=1e-6)
    assert process.is_over
