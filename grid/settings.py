"""Settings: frozen dataclasses, built once at the edge and handed to constructors. Units live in the names.

Each field's default and help text stand here and nowhere else; the command line and the documentation read them.
Precedence: defaults < TOML file < environment (`GRID_<NAME>`) < flags; `load` does that for any of the classes.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from grid.errors import InvalidRequest

S = TypeVar("S")


def setting(default: Any, text: str, least: float = 0, choices: tuple[str, ...] = ()) -> Any:
    """A field with its default, the help text that the command line and the documentation show, and what bounds its values."""
    return dataclasses.field(default=default, metadata={"help": text, "least": least, "choices": choices})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """What one side of a session accepts and how long it waits."""

    max_message_bytes: int = setting(1 << 30, "largest message, all its chunks together", 1 << 20)
    max_chunked_bytes: int = setting(1 << 30, "bytes of a half-received message, or of waiting ones, per session", 1 << 20)
    max_open_requests: int = setting(4096, "requests of one peer that may be unanswered at once", 1)
    window_bytes: int = setting(16 << 20, "bytes of large values that a peer may send before we give credit", 4 << 20)
    heartbeat_s: float = setting(1.0, "silence after which we ask whether the peer is there", 0.01)
    patience_s: float = setting(10.0, "silence after which we give a peer up; one whose process ended is noticed at once", 0.1)
    lease_s: float = setting(15.0, "time that a client's session waits for a lost connection to be made anew; 0: none")
    handshake_s: float = setting(10.0, "time for a new peer to prove who it is", 0.1)
    request_s: float = setting(60.0, "default deadline of a request", 0.1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What a service says on standard error."""

    level: str = setting(
        "warning", "least level of log lines: debug, info, warning or error", choices=("debug", "info", "warning", "error")
    )
    format: str = setting("text", "text, or json: one object a line", choices=("text", "json"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """A gateway."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8080, "port to listen on; 0 takes a free one")
    state: Path | None = setting(None, "folder for keys and state; without it everything is forgotten at the end")
    dev: bool = setting(False, "trust on first use; refuses addresses other than loopback unless --allow-remote-dev")
    allow_remote_dev: bool = setting(False, "let --dev listen on addresses that other machines reach")
    tls_cert: Path | None = setting(None, "certificate chain (PEM) for https and wss")
    tls_key: Path | None = setting(None, "private key (PEM) for https and wss")
    root: str = setting("", "the root's public key (from `grid root init`), or a file with it; required without --dev")
    allowed_hosts: tuple[str, ...] = setting((), "further host names under which the dashboard may be asked for")
    max_connections: int = setting(10_000, "connections at once", 1)
    max_unauthenticated: int = setting(256, "connections at once that have not proved who they are", 1)
    max_links_per_peer: int = setting(256, "relayed links that one peer may have open", 1)
    link_buffer_bytes: int = setting(
        8 << 20, "bytes that may wait for one receiver, shared by all senders; at 4 times as many the fullest link ends", 1 << 20
    )
    max_datasets_per_node: int = setting(1000, "datasets that one node may announce")
    max_jobs: int = setting(64, "federated jobs under way at once")
    max_jobs_per_client: int = setting(8, "federated jobs of one client under way at once")
    max_job_bytes: int = setting(256 << 20, "bytes of the model of a federated job, and as many again of its plans", 1)
    max_kept_jobs: int = setting(200, "federated jobs that are over and can still be looked at, with their models")
    keep_jobs_s: float = setting(30 * 86400.0, "time for which a federated job that is over is kept")
    log: LogSettings = dataclasses.field(default_factory=LogSettings)
    session: SessionLimits = dataclasses.field(default_factory=SessionLimits)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """A node."""

    name: str = setting("node", "name of this node, unique in its grid")
    gateway: str = setting("", "URL of the gateway; without it the one in the token, else ws://127.0.0.1:8080")
    data: Path | None = setting(None, "folder of datasets: NAME.toml beside its file")
    state: Path | None = setting(None, "folder for keys and state; without it everything is forgotten at the end")
    dataset_memory_bytes: int = setting(
        256 << 20, "largest dataset that is kept in memory; a larger one becomes files in the state folder, or a temporary one"
    )
    listen: str = setting("", "HOST:PORT for direct links; without it all links are relayed")
    announce: str = setting("", "HOST:PORT at which others reach --listen; needed where that is 0.0.0.0 or behind a proxy")
    health: str = setting("", "HOST:PORT at which `grid health` and other probes ask whether this node works; none without it")
    tls_ca: Path | None = setting(None, "certificates (PEM) to trust for wss, in place of the system's")
    dev: bool = setting(False, "trust on first use, for trying things out on one machine")
    allow_remote_dev: bool = setting(False, "let --dev listen on addresses and use gateways that other machines reach")
    max_objects_per_client: int = setting(100_000, "objects that one client may keep here", 1)
    max_bytes_per_client: int = setting(
        2 << 30, "bytes of objects that one client may keep here, and as many again of its moves and sums", 1
    )
    max_queued_per_client: int = setting(100_000, "commands of one client that may wait here", 1)
    max_plan_bytes: int = setting(64 << 20, "largest plan accepted", 1)
    max_plan_steps: int = setting(20_000, "steps that one plan may have", 1)
    max_plan_flops: int = setting(10**13, "operations that one run of a plan may need, as counted before it runs", 1)
    max_op_elements: int = setting(1 << 28, "elements that one operation may produce", 1)
    max_committees: int = setting(16, "committees at once that this node is a party of; one client may be in half, rounded up", 0)
    max_secure_elements: int = setting(
        1 << 22,
        "elements of an operand, a result, or anything on the way, of an operation on shares; a product may take 256 times as"
        " many multiplications",
        1,
    )
    max_released_bytes_per_minute: int = setting(256 << 20, "bytes of released values per client and minute")
    max_releases_per_minute: int = setting(6000, "released values of datasets per client and minute")
    max_private_errors: int = setting(5, "errors that depend on private values before a client's session ends")
    processes: bool = setting(True, "run each client's session in a process of its own, which the limits below can end")
    max_processes: int = setting(
        64, "processes of clients' sessions at once; one client may have half of them, rounded up, and 16 at most", 1
    )
    max_process_bytes: int = setting(
        4 << 30,
        "memory of one process of a session or a committee, beside datasets; should be more than max_bytes_per_client",
        64 << 20,
    )
    max_trainings: int = setting(8, "federated jobs at once that train here", 0)
    max_training_s: float = setting(600.0, "time that local training of one round of a federated job may take", 0.01)
    training_device: str = setting(
        "auto", "where federated jobs train: a GPU where torch has one, or always one of them", choices=("auto", "cpu", "cuda")
    )
    max_plan_s: float = setting(300.0, "time that one run of a plan may take", 0.01)
    max_command_s: float = setting(60.0, "time that one operation outside a plan may take", 0.01)
    kill_grace_s: float = setting(5.0, "time over a limit after which a process that has not stopped by itself is ended", 0.01)
    process_threads: int = setting(1, "threads with which one process computes", 1)
    niceness: int = setting(5, "by how much the processes of sessions stand back for the node itself, from 0 to 19")
    compute_threads: int = setting(2, "threads that decide releases, and without processes run commands and plans", 1)
    log: LogSettings = dataclasses.field(default_factory=LogSettings)
    session: SessionLimits = dataclasses.field(default_factory=SessionLimits)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """A client."""

    timeout_s: float = setting(60.0, "default deadline of a blocking call")
    direct: bool = setting(True, "dial nodes directly where they listen")
    reconnect_s: float = setting(10.0, "time for which a call waits for a lost gateway, and for its nodes to come back")
    job_patience_s: float = setting(
        600.0, "time for which a federated job is waited for while the gateway cannot be reached"
    )
    session: SessionLimits = dataclasses.field(default_factory=SessionLimits)


TABLES: Mapping[str, type] = {"gateway": GatewaySettings, "node": NodeSettings, "client": ClientSettings}
"""Table of a TOML file -> the class that it fills. Fields of `log` and `session` stand in tables of their own, `[node.log]`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting as the command line and the documentation show it. `path` is "name" or "session.name"."""

    path: str
    kind: Any
    default: Any
    help: str
    least: float = 0
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "GRID_" + self.path.replace(".", "_").upper()

    @property
    def flag(self) -> str:
        """The flag of the command line."""
        return "--" + self.path.replace(".", "-").replace("_", "-")


def describe(cls: type, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a class, those of nested classes included, in the order of their definition."""
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = kinds[field.name]
        if dataclasses.is_dataclass(kind):
            yield from describe(typing.cast(type, kind), f"{prefix}{field.name}.")
        else:
            told = field.metadata
            yield Setting(path=prefix + field.name, kind=kind, default=field.default, **told)


def load(
    cls: type[S],
    *,
    toml: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> S:
    """Settings of the class `cls`: defaults < `toml` (its table) < `env` < `flags` (by path; None means not given).

    Raises `InvalidRequest` naming the key, variable or flag that is unknown or has a value of the wrong kind.
    """
    known = {one.path: one for one in describe(cls)}
    values: dict[str, Any] = {}
    for path, value in _flatten(toml or {}):
        values[path] = _checked(_known(known, path, "the settings file"), value, f"{path} in the settings file")
    for one in known.values():
        if env and env.get(one.variable):  # an empty one is as good as none, as in shells and compose files
            values[one.path] = _from_text(one, env[one.variable], one.variable)
    for path, value in (flags or {}).items():
        if value is not None:
            one = _known(known, path, "the flags")
            values[path] = _checked(one, value, one.flag)
    return _build(cls, values)


def read_table(path: Path, table: str) -> dict[str, Any]:
    """The table `[table]` of a TOML file, {} where it has none. Raises `InvalidRequest` naming the file and the line."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"the settings file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the settings file {path} is not TOML: {error}") from None
    unknown = sorted(set(content) - set(TABLES))
    if unknown:
        raise InvalidRequest(f"the settings file {path} has a table [{unknown[0]}]; there are {', '.join(TABLES)}")
    found = content.get(table, {})
    if not isinstance(found, dict):
        raise InvalidRequest(f"{table} in the settings file {path} must be a table: write [{table}]")
    return found


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _known(known: Mapping[str, Setting], path: str, place: str) -> Setting:
    if path in known:
        return known[path]
    close = difflib.get_close_matches(path, known, n=1)
    raise InvalidRequest(f"there is no setting {path!r} ({place})" + (f"; did you mean {close[0]!r}?" if close else ""))


def _build(cls: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    kinds = typing.get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(typing.cast(Any, cls)):
        path = prefix + field.name
        if dataclasses.is_dataclass(kinds[field.name]):
            arguments[field.name] = _build(kinds[field.name], values, f"{path}.")
        elif path in values:
            arguments[field.name] = values[path]
    return cls(**arguments)


def _from_text(one: Setting, text: str, place: str) -> Any:
    if one.kind is bool:
        if text.lower() not in {"1", "true", "yes", "on", "0", "false", "no", "off"}:
            raise InvalidRequest(f"{place} must be true or false, not {text!r}")
        return text.lower() in {"1", "true", "yes", "on"}
    if one.kind in (int, float):
        try:
            return _checked(one, one.kind(text), place)
        except ValueError:
            raise InvalidRequest(f"{place} must be {KIND_NAMES[one.kind]}, not {text!r}") from None
    if one.kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return _checked(one, text, place)


KIND_NAMES: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path | None: "a path",
    tuple[str, ...]: "a list of texts",
}
"""How messages and the documentation call the kinds of values that settings have."""


def _checked(one: Setting, value: Any, place: str) -> Any:
    """The value in the setting's own type, or `InvalidRequest`. Numbers are finite and not below the setting's least."""
    kind = one.kind
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == Path | None and isinstance(value, str | Path):
        return Path(value).expanduser()
    if kind == tuple[str, ...] and isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    if kind is float and number:
        value = float(value)
    if kind not in (bool, int, float, str) or type(value) is not kind:
        raise InvalidRequest(f"{place} must be {KIND_NAMES[kind]}, not {value!r}")
    if number and not (value >= 0 and math.isfinite(value)):
        raise InvalidRequest(f"{place} must be finite and not negative, not {value}")
    if number and value < one.least:
        raise InvalidRequest(f"{place} must be at least {one.least:g}, not {value}")
    if one.choices and value not in one.choices:
        raise InvalidRequest(f"{place} must be one of {', '.join(one.choices)}, not {value!r}")
    return value
