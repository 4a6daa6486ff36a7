"""The command line without processes: help, options and where settings come from, errors and exit codes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from grid import cli_serve
from grid.cli import grid as command
from grid.cli_support import EXIT_CODES, exit_code, show_table, working
from grid.errors import BY_CODE, GridError, NodeUnavailable, WireError
from grid.ids import JobId, PeerId
from grid.settings import GatewaySettings, NodeSettings
from grid.wire.jobs import CancelJob, JobCard, JobList, JobProgress, JobStatus, ListJobs, RoundReport, WatchJob
from grid.wire.messages import Message

Seen = dict[str, Any]


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(command, list(arguments), env=environment)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What `grid gateway` and `grid node` would have started."""
    found: Seen = {}

    def note(settings: object, *rest: Any) -> None:
        found["settings"], found["rest"] = settings, rest[:-1]

    monkeypatch.setattr(cli_serve, "run_gateway", note)
    monkeypatch.setattr(cli_serve, "run_node", note)
    monkeypatch.setattr(cli_serve, "serve", lambda service, log, as_json: service(None))
    return found


def test_help_names_every_command_and_exit_code() -> None:
    shown = invoke("--help").output
    for name in ("gateway", "node", "demo", "ls", "datasets", "jobs", "status", "root", "enroll", "revoke"):
        assert name in command.commands and f"  {name} " in shown
    assert all(f"{code}  {text}" in shown for code, text in EXIT_CODES.items())
    assert "grid demo" in shown


def all_commands(group: click.Group) -> list[click.Command]:
    found: list[click.Command] = []
    for one in group.commands.values():
        found += all_commands(one) if isinstance(one, click.Group) else [one]
    return found


@pytest.mark.parametrize("one", all_commands(command), ids=lambda one: one.name)
def test_every_command_and_option_is_explained_and_speaks_json(one: click.Command) -> None:
    assert one.help and len(one.help) > 40
    options = [parameter for parameter in one.params if isinstance(parameter, click.Option)]
    assert all(option.help for option in options)
    assert "--json" in {flag for option in options for flag in option.opts}


def test_a_gateway_takes_settings_from_file_environment_and_flags(seen: Seen, tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text("[gateway]\nport = 1\nmax_connections = 1\nmax_links_per_peer = 1\n[gateway.session]\nheartbeat_s = 3\n")
    done = invoke(
        "gateway", "--dev", "--config", str(file), "--listen", "[::1]:9000", "--session-patience-s", "4", GRID_MAX_CONNECTIONS="2"
    )
    assert done.exit_code == 0, done.output
    settings = seen["settings"]
    assert isinstance(settings, GatewaySettings) and settings.dev
    assert (settings.host, settings.port) == ("::1", 9000)
    assert (settings.max_connections, settings.max_links_per_peer) == (2, 1)
    assert (settings.session.heartbeat_s, settings.session.patience_s) == (3.0, 4.0)


def test_a_node_takes_its_name_from_the_command_line(seen: Seen, tmp_path: Path) -> None:
    done = invoke("node", "alice", "--gateway", "ws://there:1", "--data", str(tmp_path), "--join", "grid1-x", GRID_NAME="other")
    assert done.exit_code == 0, done.output
    settings = seen["settings"]
    assert isinstance(settings, NodeSettings)
    assert (settings.name, settings.gateway, settings.data, settings.dev) == ("alice", "ws://there:1", tmp_path, False)
    assert seen["rest"] == ("grid1-x",)


@pytest.mark.parametrize("place", ["8080", ":8080", "host:", "host:port", "host:70000", "host:-1"])
def test_a_place_to_listen_is_host_and_port(seen: Seen, place: str) -> None:
    done = invoke("gateway", "--dev", "--listen", place)
    assert done.exit_code == 2 and "HOST:PORT" in done.output and not seen


@pytest.mark.parametrize("kind", sorted(BY_CODE.values(), key=lambda kind: kind.code), ids=lambda kind: kind.code)
def test_every_error_has_a_documented_exit_code(kind: type[GridError]) -> None:
    assert exit_code(kind("no")) in set(EXIT_CODES) - {0, 130}


def test_errors_are_json_on_stderr_where_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: GridError) -> Callable[..., None]:
        def raising(*arguments: Any, **options: Any) -> None:
            raise error

        return raising

    monkeypatch.setattr("grid.cli_look.with_hop", fail(NodeUnavailable("gone", node="alice")))
    done = invoke("ls", "--json")
    assert (done.exit_code, done.stdout) == (3, "")
    assert json.loads(done.stderr) == {"error": {"code": "unavailable", "message": "gone", "details": {"node": "alice"}}}
    monkeypatch.setattr("grid.cli_look.with_hop", fail(WireError("not a gateway")))
    done = invoke("ls")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "error: not a gateway\n")


def test_what_peers_wrote_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("Nodes", ("name",), [("[red]evil[/]\x1b[2J\nname",)], "none")
    shown = capsys.readouterr().out
    assert "[red]evil[/]" in shown and "\x1b[2J" not in shown and "\\x1b[2J\\nname" in shown


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make standard output and error those of a terminal with 80 columns."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


def test_tables_fit_into_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    name, key = "practice-in-the-high-street", "abcdefghijklmnopqrstuvwxyz"
    show_table("Nodes", ("name", "state", "organisation", "id"), [(name, "online", "", key), ("bob", "offline", "", key)], "none")
    described = [("alice", "patients", "1200", "#breast-cancer #train", ">= 10 rows", "a long description " * 8)]
    show_table("Datasets", ("node", "dataset", "rows", "tags", "may leave", "description"), described, "none")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(name in line and key in line for line in lines), "names and ids stay whole"
    assert not any("organisation" in line for line in lines), "a column with nothing in it is left out"
    (row,) = [line for line in lines if "patients" in line]
    assert "1200" in row and ">= 10 rows" in row and "a long d" in row and "… " in row


def test_what_takes_long_shows_on_a_terminal_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    with working("reading [red]the datasets[/]"):
        pass
    assert "reading [red]the datasets[/]" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with working("reading the datasets"):
        pass
    assert capsys.readouterr().err == ""


CARD = JobCard(
    id=JobId("ab" * 16),
    name="digits\x1b[31m",
    client=PeerId("c"),
    state="running",
    round=2,
    rounds=5,
    nodes=(PeerId("a"), PeerId("b"), PeerId("c")),
    secure=True,
    strategy="fedavg",
    started=1e9,
    metrics=("loss",),
)


class Coordinator:
    """Answers as the gateway's would."""

    def __init__(self, *cards: JobCard) -> None:
        self.cards = cards
        self.news: asyncio.Queue[JobProgress] = asyncio.Queue()

    async def request(self, message: Message) -> Message:
        if isinstance(message, ListJobs):
            return JobList(jobs=self.cards)
        assert isinstance(message, WatchJob | CancelJob) and message.job == CARD.id
        report = RoundReport(round=3, metrics=(0.25,), nodes=3, examples=90, seconds=0.5, bytes=10, text="late: bob")
        self.news.put_nowait(JobProgress(card=CARD, first=0, reports=(report,)))
        over = dataclasses.replace(CARD, state="cancelled", round=3, text="enough")
        self.news.put_nowait(JobProgress(card=over, first=1, reports=()))
        return JobStatus(card=over if isinstance(message, CancelJob) else CARD)

    async def wait_closed(self) -> None:
        await asyncio.Event().wait()


def test_jobs_are_listed_followed_and_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*cards: JobCard) -> None:
        async def work(ask: Callable[..., Any]) -> Any:
            host = Coordinator(*cards)
            return await ask(host, host.news)

        monkeypatch.setattr("grid.cli_jobs.with_job_channel", lambda access, ask: asyncio.run(work(ask)))

    answer()
    assert json.loads(invoke("jobs", "--json").stdout) == []
    assert "g.train" in invoke("jobs").stdout
    assert invoke("jobs", "--cancel").exit_code == 2
    answer(CARD)
    assert json.loads(invoke("jobs", "--json").stdout)[0]["round"] == 2
    shown = invoke("jobs").stdout
    assert CARD.id in shown and "2 of 5" in shown and "\x1b" not in shown
    followed = invoke("jobs", "ab").stdout
    assert "round    3  loss 0.2500  3 nodes  0.50 s  late: bob" in followed
    assert "cancelled after round 3 of 5: enough" in followed
    assert json.loads(invoke("jobs", "ab", "--json").stdout)["metrics"] == {"loss": 0.25}
    assert "cancelled" in invoke("jobs", "ab", "--cancel").stdout
    unknown = invoke("jobs", "cd")
    assert unknown.exit_code == 1 and "`grid jobs` lists them" in unknown.stderr


def test_a_root_key_is_made_once_and_enrols(tmp_path: Path) -> None:
    key = str(tmp_path / "root.key")
    made = json.loads(invoke("root", "init", "--root", key, "--json").stdout)
    assert made["root"].startswith("root1-") and made["file"] == key
    again = invoke("root", "init", "--root", key)
    assert again.exit_code == 2 and "never overwritten" in again.stderr
    token = invoke("enroll", "alice", "--role", "node", "--root", key, "--gateway", "ws://there:1").stdout.strip()
    assert token.startswith("grid1-")
    revoked = json.loads(invoke("revoke", "alice", "--root", key, "--json").stdout)
    assert revoked["told"] is None and revoked["revocations"]
    nobody = invoke("revoke", "nobody", "--root", key)
    assert nobody.exit_code == 1 and "nobody" in nobody.stderr
