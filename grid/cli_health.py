"""`grid health`: whether the service at an address works, for the probes of containers; needs no curl."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from grid.cli_look import CA_OPTION
from grid.cli_support import JSON_OPTION, say
from grid.errors import InvalidRequest, NodeUnavailable
from grid.transport.websocket import is_loopback, trusted_certificates

MAX_ANSWER_BYTES = 64 << 10
DEFAULT_ADDRESS = "http://127.0.0.1:8080"


@click.command("health")
@click.argument("address", default=DEFAULT_ADDRESS, envvar="GRID_HEALTH")
@click.option("--timeout-s", default=5.0, show_default=True, type=click.FloatRange(0.1, 300), help="time for the answer")
@CA_OPTION
@JSON_OPTION
def health(address: str, timeout_s: float, tls_ca: Path | None, as_json: bool) -> None:
    """Say whether the gateway or node at ADDRESS works: exit code 0, or 3 with the reason.

    A gateway answers at its port, a node at the address of its --health. ADDRESS is HOST:PORT or a URL; without it
    GRID_HEALTH counts, else the gateway's usual port on this machine.
    """
    answer = ask_health(address, timeout_s, tls_ca)
    say(answer, str(answer.get("status", "ok")), as_json=as_json)


def ask_health(address: str, timeout_s: float, tls_ca: Path | None = None) -> dict[str, Any]:
    """The answer of `/healthz`. Raises `NodeUnavailable` where there is none or it says that something is missing."""
    place = urlsplit(address if "://" in address else f"http://{address}")
    if place.scheme not in ("http", "https") or not place.hostname:
        raise InvalidRequest(f"{address[:100]!r} is neither HOST:PORT nor a URL such as http://127.0.0.1:8080")
    url = f"{place.scheme}://{place.netloc.rpartition('@')[2]}/healthz"
    context = trusted_certificates(tls_ca)
    if context is None and is_loopback(place.hostname):
        # A certificate is for the name that others use. On this machine's own address nobody else can be met.
        context = ssl._create_unverified_context()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=timeout_s) as response:
            text = response.read(MAX_ANSWER_BYTES)
    except urllib.error.HTTPError as error:
        raise NodeUnavailable(f"{url} says {_status(error.read(MAX_ANSWER_BYTES)) or error.code}") from None
    except (OSError, ValueError) as error:  # `URLError` is an OSError; ValueError: what answers there is not HTTP
        reason = getattr(error, "reason", error)
        raise NodeUnavailable(f"nothing answers at {url}: {reason}") from None
    return _object(text)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NodeUnavailable("what answers there is neither a gateway nor a node")
    return found


def _status(text: bytes) -> str:
    try:
        return str(_object(text).get("status", ""))[:100]
    except NodeUnavailable:
        return ""


COMMANDS: tuple[click.Command, ...] = (health,)
