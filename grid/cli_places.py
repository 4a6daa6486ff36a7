"""Where a service listens and whom it dials: checks of addresses and URLs, and which certificates to trust."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from grid.client.home import gateway_url
from grid.crypto.files import read_json, text_field, write_json
from grid.crypto.identity import Token
from grid.errors import InvalidRequest
from grid.rpc.hop import dial_gateway
from grid.rpc.job_channel import dial_jobs
from grid.settings import NodeSettings
from grid.transport.base import Dial
from grid.transport.websocket import is_loopback, trusted_certificates
from grid.wire.address import format_address, is_unspecified, parse_address

DEFAULT_GATEWAY = "ws://127.0.0.1:8080"
GATEWAY_FILE = "gateway.json"


def find_gateway(settings: NodeSettings, token: Token | None) -> str:
    """The gateway's URL: as set, or as in the token, or as the token said that came before, or on this machine.

    A token is given once, so what it says is kept in the state folder.
    """
    if settings.gateway:
        return gateway_url(settings.gateway)
    kept = None if settings.state is None else settings.state / GATEWAY_FILE
    if token is not None and token.gateway_url:
        url = gateway_url(token.gateway_url)
        if kept is not None:
            write_json(kept, {"url": url})
        return url
    content = None if kept is None else read_json(kept, "a gateway's address")
    return DEFAULT_GATEWAY if content is None or kept is None else gateway_url(text_field(content, "url", kept))


def check_dev_node(settings: NodeSettings, url: str) -> None:
    """Hold a node with --dev to this machine, as a gateway is."""
    if not settings.dev or settings.allow_remote_dev:
        return
    places = [urlsplit(url).hostname or ""]
    if settings.listen:
        places.append(parse_address(settings.listen, listening=True)[0])
    for host in places:
        if not is_loopback(host):
            raise InvalidRequest(
                f"--dev trusts whoever comes first, and {host} is not this machine alone:"
                " join a grid with a root key (--join TOKEN), or say --allow-remote-dev, too"
            )


def announced_address(settings: NodeSettings, port: int) -> str:
    """The address to announce for a node that listens at `settings.listen`, where the port turned out to be `port`."""
    if settings.announce:
        return format_address(*parse_address(settings.announce))
    host, _ = parse_address(settings.listen, listening=True)
    return format_address(host, port)


def check_listen(settings: NodeSettings) -> None:
    """Refuse places that cannot be listened at, or announced. Raises `InvalidRequest`."""
    if settings.announce:
        parse_address(settings.announce)
        if not settings.listen:
            raise InvalidRequest("--announce is the address of what --listen says; say that, too")
    elif settings.listen and is_unspecified(parse_address(settings.listen, listening=True)[0]):
        raise InvalidRequest(f"nobody can dial {settings.listen}: say --announce HOST:PORT, as others reach this node")


def dial_with(url: str, tls_ca: Path | None) -> Dial:
    """`dial_gateway` with the certificates of a file; None for the system's. Raises `InvalidRequest`."""
    return dial_gateway(url, trusted_certificates(tls_ca))


def dial_jobs_with(url: str, tls_ca: Path | None) -> Dial:
    """`dial_jobs`, as `dial_with`."""
    return dial_jobs(url, trusted_certificates(tls_ca))
