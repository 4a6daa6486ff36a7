"""Which gateway a node dials, where it listens and what it announces, and whom it trusts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from grid.cli_places import announced_address, check_dev_node, check_listen, find_gateway
from grid.clock import SystemClock
from grid.crypto.files import only_process, write_private
from grid.crypto.identity import RootKey, Token
from grid.errors import InvalidRequest
from grid.settings import NodeSettings
from grid.transport.websocket import trusted_certificates

NODE = NodeSettings()


def settings(**changes: Any) -> NodeSettings:
    return dataclasses.replace(NODE, **changes)


def token(folder: Path, url: str) -> Token:
    root = RootKey.create(folder / "root.key")
    return Token.parse(root.enroll(name="alice", role="node", gateway_url=url, wall=SystemClock().wall()))


def test_a_tokens_gateway_counts_and_is_kept_for_starts_without_the_token(tmp_path: Path) -> None:
    joined = token(tmp_path, "wss://grid.example")
    state = tmp_path / "state"
    assert find_gateway(settings(), joined) == "wss://grid.example"
    assert find_gateway(settings(state=state), None) == "ws://127.0.0.1:8080"
    assert find_gateway(settings(state=state), joined) == "wss://grid.example"
    assert find_gateway(settings(state=state), None) == "wss://grid.example"
    assert find_gateway(settings(state=state, gateway="ws://there:1"), joined) == "ws://there:1"
    assert find_gateway(settings(), None) == "ws://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("listen", "url"), [("", "wss://grid.example"), ("0.0.0.0:1", "ws://127.0.0.1:1"), ("10.0.0.1:1", "ws://localhost:1")]
)
def test_dev_is_held_to_this_machine(listen: str, url: str) -> None:
    with pytest.raises(InvalidRequest, match="--allow-remote-dev"):
        check_dev_node(settings(dev=True, listen=listen), url)
    check_dev_node(settings(dev=True, listen=listen, allow_remote_dev=True), url)
    check_dev_node(settings(listen=listen), url)
    check_dev_node(settings(dev=True, listen="127.0.0.1:0"), "ws://[::1]:1")


def test_an_address_is_announced_that_others_can_dial() -> None:
    for listen in ("0.0.0.0:0", "[::]:0"):
        with pytest.raises(InvalidRequest, match="--announce"):
            check_listen(settings(listen=listen))
        check_listen(settings(listen=listen, announce="node.example:9"))
    with pytest.raises(InvalidRequest, match="--listen"):
        check_listen(settings(announce="node.example:9"))
    with pytest.raises(InvalidRequest, match="HOST:PORT"):
        check_listen(settings(listen="127.0.0.1:0", announce="http://node.example:9"))
    assert announced_address(settings(listen="[::1]:0"), 7) == "[::1]:7"
    assert announced_address(settings(listen="0.0.0.0:0", announce="node.example:9"), 7) == "node.example:9"


def test_a_file_of_certificates_that_is_none_is_named(tmp_path: Path) -> None:
    assert trusted_certificates(None) is None
    with pytest.raises(InvalidRequest, match=r"none\.pem: cannot be read: No such file"):
        trusted_certificates(tmp_path / "none.pem")
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(InvalidRequest, match=r"text\.pem: holds no certificate"):
        trusted_certificates(tmp_path / "text.pem")


def test_a_state_folder_belongs_to_one_process(tmp_path: Path) -> None:
    with only_process(tmp_path / "state"):
        with pytest.raises(InvalidRequest, match="another process"), only_process(tmp_path / "state"):
            pass
    with only_process(tmp_path / "state"):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/1/x")):
        with pytest.raises(InvalidRequest, match=str(folder)):
            write_private(folder / "key", b"")
        with pytest.raises(InvalidRequest, match=str(folder)), only_process(folder):
            pass
