"""Where a node can be dialled directly: `HOST:PORT`, and nothing else.

Addresses are announced by strangers and dialled by others, so whatever could steer a request elsewhere (a path, a query, a
user's name, a second port) is refused here, for everybody.
"""

from __future__ import annotations

import ipaddress
import re

from grid.errors import InvalidRequest

MAX_HOST_LETTERS = 253
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z", re.ASCII)


def parse_address(text: str, *, listening: bool = False) -> tuple[str, int]:
    """The host, an IPv6 one without its brackets, and the port of `HOST:PORT`. Raises `InvalidRequest`.

    `listening` allows port 0 (a free one) and hosts such as 0.0.0.0 (all of this machine), which nobody can dial.
    """
    host, colon, port = text.rpartition(":")
    number = int(port) if colon and _PORT.match(port) else -1
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not 0 <= number <= 65535 or not (_is_ip(bare, 6) if bracketed else _is_ip(bare, 4) or _is_name(bare)):
        raise InvalidRequest(f"{text[:100]!r} is not HOST:PORT; write for example 127.0.0.1:8080")
    if not listening and (number == 0 or is_unspecified(bare)):
        raise InvalidRequest(f"nobody can dial {text[:100]!r}: an address names one machine and a port from 1 to 65535")
    return bare, number


def format_address(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_unspecified(host: str) -> bool:
    """Whether a host stands for every address of the machine (0.0.0.0, ::)."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_ip(host: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version and "%" not in host
    except ValueError:
        return False


def _is_name(host: str) -> bool:
    """Whether this is a DNS name. One whose last part is a number is none: resolvers read such things as IPv4 in disguise."""
    labels = host.removesuffix(".").split(".")
    return len(host) <= MAX_HOST_LETTERS and all(_LABEL.match(label) for label in labels) and not labels[-1][0].isdigit()
