"""A store in one SQLite file, in write-ahead mode.

A commit is on disk before a method returns (`synchronous = FULL`): a value leaves a node only after what it used up is
remembered, whatever happens to the machine in between. The schema is the numbered SQL files of `migrations`, applied in
order, each in one transaction with the number that records it.
"""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path

from grid.errors import InvalidRequest
from grid.store.base import DatasetState, KnownNode, ReleaseRequest, Store

REQUEST_COLUMNS = "id, key, dataset, client, plan, value, digest, code, report, asked, decision, used, client_name"


class SqliteStore(Store):
    """Opens the file, making it (mode 0600) where there is none, and brings its schema up to date."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        with ExitStack() as undo:
            undo.callback(self._connection.close)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            _migrate(self._connection, path)
            undo.pop_all()

    def load(self, dataset: str) -> DatasetState | None:
        with self._lock:
            row = self._connection.execute(
                "SELECT rows, min_rows, blocks, partition, elements, drawn FROM dataset WHERE name = ?", (dataset,)
            ).fetchone()
        return None if row is None else DatasetState(*row)

    def save(self, dataset: str, state: DatasetState) -> None:
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO dataset (name, rows, min_rows, blocks, partition, elements, drawn)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (dataset, state.rows, state.min_rows, state.blocks, state.partition, state.elements, state.drawn),
            )

    def claim_all(self, names: Sequence[str], expiry: float, wall: float) -> bool:
        with self._transaction() as connection:
            connection.execute("DELETE FROM claim WHERE expiry < ?", (wall,))
            places = ", ".join("?" * len(names))
            if connection.execute(f"SELECT 1 FROM claim WHERE name IN ({places})", tuple(names)).fetchone() is not None:
                return False
            connection.executemany("INSERT INTO claim (name, expiry) VALUES (?, ?)", [(name, expiry) for name in names])
            return True

    def claimed(self, name: str) -> bool:
        with self._lock:
            return self._connection.execute("SELECT 1 FROM claim WHERE name = ?", (name,)).fetchone() is not None

    def nodes(self) -> dict[str, KnownNode]:
        with self._lock:
            rows = self._connection.execute(
                "SELECT id, name, organisation, card, announcement, since, online FROM node"
            ).fetchall()
        return {
            peer: KnownNode(name, organisation, card, announcement, since, bool(online))
            for peer, name, organisation, card, announcement, since, online in rows
        }

    def keep_nodes(self, changes: Mapping[str, KnownNode | None]) -> None:
        with self._transaction() as connection:
            for peer, node in changes.items():
                if node is None:
                    connection.execute("DELETE FROM node WHERE id = ?", (peer,))
                    continue
                connection.execute(
                    "INSERT OR REPLACE INTO node (id, name, organisation, card, announcement, since, online)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (peer, node.name, node.organisation, node.card, node.announcement, node.since, node.online),
                )

    def ask(self, request: ReleaseRequest) -> None:
        with self._transaction() as connection:
            connection.execute(
                f"INSERT OR IGNORE INTO request ({REQUEST_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                dataclasses.astuple(request),
            )

    def requests(self, *, texts: bool = True) -> list[ReleaseRequest]:
        columns = REQUEST_COLUMNS if texts else REQUEST_COLUMNS.replace("code, report", "'', ''")
        return self._find_requests(f"SELECT {columns} FROM request ORDER BY asked, id")

    def request(self, request_id: str) -> ReleaseRequest | None:
        found = self._find_requests(f"SELECT {REQUEST_COLUMNS} FROM request WHERE id = ?", request_id)
        return found[0] if found else None

    def unused_request(self, key: str) -> ReleaseRequest | None:
        where = "WHERE key = ? AND used = 0 ORDER BY asked, id LIMIT 1"
        found = self._find_requests(f"SELECT {REQUEST_COLUMNS} FROM request {where}", key)
        return found[0] if found else None

    def _find_requests(self, query: str, *values: str) -> list[ReleaseRequest]:
        with self._lock:
            rows = self._connection.execute(query, values).fetchall()
        return [ReleaseRequest(*(*row[:-2], bool(row[-2]), row[-1])) for row in rows]

    def decide(self, request_id: str, decision: bytes, replaces: bytes = b"") -> bool:
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE request SET decision = ? WHERE id = ? AND decision = ? AND used = 0", (decision, request_id, replaces)
            )
            return done.rowcount == 1

    def use(self, request_id: str, decision: bytes) -> bool:
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE request SET used = 1 WHERE id = ? AND decision = ? AND used = 0", (request_id, decision)
            )
            return done.rowcount == 1

    def forget_requests(self, asked_before: float) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM request WHERE asked < ?", (asked_before,))

    def jobs(self) -> list[str]:
        with self._lock:
            return [job for (job,) in self._connection.execute("SELECT DISTINCT job FROM job_part ORDER BY job")]

    def job_parts(self, job: str, prefix: str = "") -> dict[str, bytes]:
        with self._lock:
            query = "SELECT part, data FROM job_part WHERE job = ? AND substr(part, 1, ?) = ? ORDER BY part"
            return dict(self._connection.execute(query, (job, len(prefix), prefix)).fetchall())

    def keep_job(self, job: str, parts: Mapping[str, bytes | None]) -> None:
        with self._transaction() as connection:
            for part, data in parts.items():
                connection.execute("DELETE FROM job_part WHERE job = ? AND part = ?", (job, part))
                if data is not None:
                    connection.execute("INSERT INTO job_part (job, part, data) VALUES (?, ?, ?)", (job, part, data))

    def forget_job(self, job: str) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM job_part WHERE job = ?", (job,))

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _transaction(self._connection):
            yield self._connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    with connection:  # commits at the end, rolls back when an error leaves the block
        connection.execute("BEGIN IMMEDIATE")
        yield


def _migrations() -> list[tuple[int, str]]:
    """Number and SQL of each migration, in order."""
    folder = resources.files("grid.store") / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name.split("_")[0]), (folder / name).read_text(encoding="utf-8")) for name in names]


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    migrations = _migrations()
    newest = migrations[-1][0]
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > newest:
        raise InvalidRequest(f"{path} was written by a newer version of this software (schema {version}, known is {newest})")
    for number, script in migrations:
        if number <= version:
            continue
        with _transaction(connection):
            for statement in script.split(";"):  # no statement of ours holds a semicolon
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number:d}")
