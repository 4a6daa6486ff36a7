"""Addresses are HOST:PORT, and nothing that could steer a dial elsewhere."""

from __future__ import annotations

import pytest

from grid.errors import InvalidRequest
from grid.wire.address import format_address, is_unspecified, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:8080", "127.0.0.1", 8080), ("[::1]:1", "::1", 1), ("node-1.example.org:443", "node-1.example.org", 443)],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert format_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8080",
        ":8080",
        "host:",
        "host:port",
        "host:70000",
        "host:-1",
        "host:+1",
        "host:１２",
        "ws://host:1",
        "user:pw@host:1",
        "host:1/admin",
        "127.0.0.1:28493/admin/delete?all=1",
        "host/x:1",
        "host?x:1",
        "host#x:1",
        "a b:1",
        "host\n:1",
        "::1:80",
        "[host]:1",
        "[::1%lo]:1",
        "[::1]x:1",
        "2130706433:1",
        "0x7f.1:1",
        "127.1:1",
        "a..b:1",
        "a" * 300 + ":1",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    for listening in (False, True):
        with pytest.raises(InvalidRequest, match="HOST:PORT"):
            parse_address(text, listening=listening)


@pytest.mark.parametrize("text", ["0.0.0.0:80", "[::]:80", "host:0"])
def test_what_nobody_can_dial_may_only_be_listened_at(text: str) -> None:
    with pytest.raises(InvalidRequest, match="nobody can dial"):
        parse_address(text)
    host, _ = parse_address(text, listening=True)
    assert is_unspecified(host) is not text.startswith("host")
