"""One suite for every store; the SQLite one also survives being killed."""

from __future__ import annotations

import dataclasses
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from grid.errors import InvalidRequest
from grid.store.base import DatasetState, KnownNode, ReleaseRequest, Store
from grid.store.memory import MemoryStore
from grid.store.sqlite import SqliteStore

STATE = DatasetState(rows=3, min_rows=1, blocks=bytes(12), partition=bytes(range(12)), elements=7, drawn="blocks")
ALICE = KnownNode(name="alice", organisation="A", card=b"card", announcement=b"\x00\xff", since=12.5, online=True)
BOB = KnownNode(name="bob", organisation="", card=b"", announcement=b"", since=0.0, online=False)


REQUEST = ReleaseRequest(
    "a", "key", "d", "client", "plan", "f4[2]", b"digest", "def f():", "would leave", asked=10.0, client_name="ann"
)


class StoreConformance:
    """What every store must do."""

    @pytest.fixture
    def store(self, make: Callable[[], Store]) -> Iterator[Store]:
        store = make()
        yield store
        store.close()

    def test_a_new_dataset_has_no_state(self, store: Store) -> None:
        assert store.load("patients") is None

    def test_what_was_saved_last_is_loaded(self, store: Store) -> None:
        store.save("patients", DatasetState(rows=3, min_rows=1, blocks=b"x"))
        store.save("patients", STATE)
        store.save("others", DatasetState(rows=1, min_rows=2, blocks=b""))
        assert store.load("patients") == STATE
        assert store.load("others") == DatasetState(rows=1, min_rows=2, blocks=b"", partition=b"", elements=0)

    def test_names_are_kept_apart_exactly(self, store: Store) -> None:
        store.save("a", STATE)
        assert store.load("A") is None and store.load("a ") is None and store.load("a' OR '1'='1") is None

    def test_a_name_is_claimed_once_until_it_expires(self, store: Store) -> None:
        assert not store.claimed("sum 1")
        assert store.claim("sum 1", expiry=100.0, wall=10.0)
        assert store.claimed("sum 1") and not store.claimed("sum 2")
        assert not store.claim("sum 1", expiry=200.0, wall=50.0)
        assert store.claim("sum 2", expiry=100.0, wall=50.0)
        assert not store.claim("sum 1", expiry=200.0, wall=100.0)
        assert store.claim("sum 1", expiry=200.0, wall=100.5)

    def test_names_are_claimed_together_or_not_at_all(self, store: Store) -> None:
        assert store.claim_all(["a", "b"], expiry=100.0, wall=10.0)
        assert not store.claim_all(["c", "b"], expiry=100.0, wall=10.0)
        assert store.claimed("a") and store.claimed("b") and not store.claimed("c")
        assert store.claim_all(["c", "d"], expiry=100.0, wall=10.0)

    def test_only_one_of_many_threads_gets_a_claim(self, store: Store) -> None:
        won: list[bool] = []
        together = threading.Barrier(8)

        def ask() -> None:
            together.wait()
            won.append(store.claim("sum", 100.0, 0.0))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == [False] * 7 + [True]

    def test_nodes_are_kept_replaced_and_forgotten(self, store: Store) -> None:
        assert store.nodes() == {}
        store.keep_nodes({"a": ALICE, "b": BOB})
        assert store.nodes() == {"a": ALICE, "b": BOB}
        gone = dataclasses.replace(ALICE, online=False, since=13.0)
        store.keep_nodes({"a": gone, "b": None, "c": None})
        assert store.nodes() == {"a": gone}

    def test_a_request_is_asked_decided_and_used_once(self, store: Store) -> None:
        store.ask(REQUEST)
        store.ask(dataclasses.replace(REQUEST, code="another under the same id"))
        later = dataclasses.replace(REQUEST, id="b", asked=11.0)
        store.ask(later)
        assert store.requests() == [REQUEST, later]
        assert store.decide("a", b"yes") and not store.decide("a", b"no") and not store.decide("c", b"yes")
        assert not store.use("a", b"no") and store.use("a", b"yes") and not store.use("a", b"yes") and not store.use("c", b"")
        assert not store.decide("a", b"no", replaces=b"yes"), "it has been used"
        assert store.requests()[0] == dataclasses.replace(REQUEST, decision=b"yes", used=True)
        store.forget_requests(10.5)
        assert store.requests() == [later]

    def test_a_request_is_found_by_id_and_by_key_until_it_is_used(self, store: Store) -> None:
        later = dataclasses.replace(REQUEST, id="b", asked=11.0)
        other = dataclasses.replace(REQUEST, id="c", key="another", asked=9.0)
        for request in (later, REQUEST, other):
            store.ask(request)
        assert store.request("b") == later and store.request("d") is None
        assert store.unused_request("key") == REQUEST and store.unused_request("none") is None
        assert store.decide("a", b"yes") and store.use("a", b"yes")
        assert store.unused_request("key") == later
        assert store.requests(texts=False)[0] == dataclasses.replace(other, code="", report="")

    def test_an_answer_gives_way_to_another_until_it_is_used(self, store: Store) -> None:
        store.ask(REQUEST)
        assert store.decide("a", b"yes") and not store.decide("a", b"no", replaces=b"other")
        assert store.decide("a", b"no", replaces=b"yes") and not store.use("a", b"yes")
        assert store.requests() == [dataclasses.replace(REQUEST, decision=b"no")]

    def test_the_parts_of_a_job_are_kept_replaced_and_forgotten(self, store: Store) -> None:
        assert store.jobs() == [] and store.job_parts("a") == {}
        store.keep_job("b", {"start": b"1"})
        store.keep_job("a", {"weights 2": b"w" * 100_000, "weights 1": b"", "progress": b"p"})
        store.keep_job("a", {"weights 1": None, "progress": b"q", "nothing": None})
        assert store.jobs() == ["a", "b"]
        assert store.job_parts("a", "weights") == {"weights 2": b"w" * 100_000}
        assert next(iter(store.job_parts("a").items())) == ("progress", b"q") and store.job_parts("a", "weights_") == {}
        store.keep_job("b", {"start": None})
        store.forget_job("a")
        assert store.jobs() == [] and store.job_parts("a") == {}

    def test_closing_twice_is_allowed(self, store: Store) -> None:
        store.close()
        store.close()


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Store]:
        return MemoryStore


class TestSqliteStore(StoreConformance):
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "node.sqlite"

    @pytest.fixture
    def make(self, path: Path) -> Callable[[], Store]:
        return lambda: SqliteStore(path)

    def test_it_is_there_after_closing_and_opening(self, make: Callable[[], Store]) -> None:
        first = make()
        first.save("patients", STATE)
        assert first.claim("sum", 100.0, 0.0)
        first.keep_nodes({"a": ALICE})
        first.close()
        second = make()
        assert second.nodes() == {"a": ALICE}
        assert second.load("patients") == STATE
        assert not second.claim("sum", 100.0, 0.0)
        second.close()

    def test_nobody_else_may_read_the_file(self, store: Store, path: Path) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_saved_state_survives_a_killed_process(self, path: Path) -> None:
        program = (
            "import os, signal, sys; from pathlib import Path\n"
            "from grid.store.base import DatasetState; from grid.store.sqlite import SqliteStore\n"
            "store = SqliteStore(Path(sys.argv[1])); store.save('d', DatasetState(rows=1, min_rows=1, blocks=b'x', elements=9))\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60, check=False)
        assert done.returncode == -9
        store = SqliteStore(path)
        assert store.load("d") == DatasetState(rows=1, min_rows=1, blocks=b"x", elements=9)
        store.close()

    def test_a_failed_write_leaves_what_was_there(self, store: Store, path: Path) -> None:
        store.save("d", STATE)
        with pytest.raises(sqlite3.Error):
            store.save("d", DatasetState(rows="many", min_rows=1, blocks=b""))  # type: ignore[arg-type]
        assert store.load("d") == STATE
        store.save("d", DatasetState(rows=4, min_rows=1, blocks=b""))  # and the store still works

    def test_a_batch_of_nodes_is_kept_whole_or_not_at_all(self, store: Store) -> None:
        store.keep_nodes({"a": ALICE})
        with pytest.raises(sqlite3.Error):
            store.keep_nodes({"a": BOB, "b": dataclasses.replace(BOB, name=b"no text")})  # type: ignore[arg-type]
        assert store.nodes() == {"a": ALICE}

    def test_the_parts_of_a_job_are_kept_together_or_not_at_all(self, store: Store) -> None:
        store.keep_job("a", {"weights": b"old", "progress": b"0"})
        with pytest.raises(sqlite3.Error):
            store.keep_job("a", {"weights": b"new", "progress": object()})  # type: ignore[dict-item]
        assert store.job_parts("a") == {"weights": b"old", "progress": b"0"}

    def test_a_file_from_before_choices_were_noted_counts_as_drawn_by_both(self, make: Callable[[], Store], path: Path) -> None:
        script = (resources.files("grid.store") / "migrations" / "0001_datasets_and_claims.sql").read_text(encoding="utf-8")
        connection = sqlite3.connect(path)
        connection.executescript(script + "PRAGMA user_version = 1;")
        one_cell, two_cells = np.ones(3, "<i4").tobytes(), np.array([1, 2, 1], "<i4").tobytes()
        for name, partition in (("new", b""), ("whole", one_cell), ("parts", two_cells)):
            connection.execute("INSERT INTO dataset VALUES (?, 3, 1, x'', ?, 5)", (name, partition))
        connection.commit()
        connection.close()
        store = make()
        found = {name: store.load(name) for name in ("new", "whole", "parts")}
        assert {name: state.drawn for name, state in found.items() if state} == {"new": "", "whole": "", "parts": "both"}
        assert found["parts"] == DatasetState(rows=3, min_rows=1, blocks=b"", partition=two_cells, elements=5, drawn="both")
        store.close()

    def test_a_file_of_a_newer_version_is_left_alone(self, make: Callable[[], Store], path: Path) -> None:
        make().close()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 999")
        connection.close()
        with pytest.raises(InvalidRequest, match="newer version"):
            make()
