"""Settings come from defaults, a file, the environment and flags, in that order, and a wrong one says where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from grid.errors import InvalidRequest
from grid.settings import ClientSettings, GatewaySettings, NodeSettings, describe, load, read_table


def test_each_source_wins_over_the_one_before() -> None:
    toml = {"port": 1, "max_connections": 1, "session": {"heartbeat_s": 1.5}}
    assert load(GatewaySettings).port == 8080
    assert load(GatewaySettings, toml=toml).port == 1
    env = {"GRID_PORT": "2", "GRID_SESSION_HEARTBEAT_S": "0.5", "GRID_UNRELATED": "x"}
    assert load(GatewaySettings, toml=toml, env=env).port == 2
    made = load(GatewaySettings, toml=toml, env=env, flags={"port": 3, "max_connections": None})
    assert (made.port, made.max_connections, made.session.heartbeat_s) == (3, 1, 0.5)


def test_an_empty_variable_is_as_good_as_none() -> None:
    made = load(GatewaySettings, toml={"port": 1}, env={"GRID_PORT": "", "GRID_TLS_CERT": "", "GRID_DEV": ""})
    assert (made.port, made.tls_cert, made.dev) == (1, None, False)


def test_every_kind_of_value_is_read_from_text(tmp_path: Path) -> None:
    env = {"GRID_DEV": "yes", "GRID_STATE": str(tmp_path), "GRID_ALLOWED_HOSTS": "a.example, b.example,"}
    made = load(GatewaySettings, env=env | {"GRID_SESSION_PATIENCE_S": "7"})
    assert made.dev is True and made.state == tmp_path
    assert made.allowed_hosts == ("a.example", "b.example")
    assert made.session.patience_s == 7.0


@pytest.mark.parametrize(
    ("toml", "env", "flags", "words"),
    [
        ({"prt": 1}, {}, {}, ["'prt'", "did you mean 'port'"]),
        ({"session": {"heartbeats": 1}}, {}, {}, ["'session.heartbeats'", "did you mean 'session.heartbeat_s'"]),
        ({"port": "80"}, {}, {}, ["port in the settings file", "a whole number", "'80'"]),
        ({"port": True}, {}, {}, ["a whole number"]),
        ({"session": {"heartbeat_s": float("inf")}}, {}, {}, ["session.heartbeat_s", "finite"]),
        ({}, {"GRID_PORT": "http"}, {}, ["GRID_PORT", "a whole number", "'http'"]),
        ({}, {"GRID_DEV": "maybe"}, {}, ["GRID_DEV", "true or false"]),
        ({}, {}, {"port": -1}, ["--port", "not negative"]),
        ({"allowed_hosts": "a"}, {}, {}, ["a list of texts"]),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(toml: dict, env: dict, flags: dict, words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        load(GatewaySettings, toml=toml, env=env, flags=flags)
    assert all(word in refused.value.message for word in words), refused.value.message


def test_a_settings_file_has_one_table_for_each_kind_of_process(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text('[node]\nname = "alice"\n[node.session]\npatience_s = 5\n[gateway]\nport = 0\n')
    node = load(NodeSettings, toml=read_table(path, "node"))
    assert (node.name, node.session.patience_s) == ("alice", 5.0)
    assert load(GatewaySettings, toml=read_table(path, "gateway")).port == 0
    assert read_table(path, "client") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [("[nodes]\n", ["[nodes]", "gateway, node, client"]), ("[node\n", ["not TOML", "line 1"]), ("node = 1\n", ["write [node]"])],
)
def test_a_damaged_settings_file_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest) as refused:
        read_table(path, "node")
    assert str(path) in refused.value.message
    assert all(word in refused.value.message for word in words), refused.value.message


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere\.toml cannot be read: No such file"):
        read_table(tmp_path / "nowhere.toml", "node")


@pytest.mark.parametrize("cls", [GatewaySettings, NodeSettings, ClientSettings])
def test_every_setting_has_a_help_text_and_its_own_variable(cls: type) -> None:
    found = list(describe(cls))
    assert found and all(one.help for one in found)
    assert len({one.variable for one in found}) == len({one.flag for one in found}) == len(found)


@pytest.mark.parametrize(
    ("cls", "flags"),
    [
        (NodeSettings, {"compute_threads": 0}),
        (GatewaySettings, {"max_connections": 0}),
        (GatewaySettings, {"session.window_bytes": 1}),
        (GatewaySettings, {"session.heartbeat_s": 0.0}),
    ],
)
def test_a_count_of_nothing_is_refused(cls: type, flags: dict) -> None:
    with pytest.raises(InvalidRequest, match="must be at least"):
        load(cls, flags=flags)
