"""Who may ask the gateway's port for what: host names, origins, the token.

Rules, all checked before a request reaches a handler:
* `Host` is a name or address at which this gateway is meant to be reached. Otherwise a page whose name was pointed at this
  address (DNS rebinding) could read the dashboard with the reader's cookie.
* `Origin`, which browsers send with WebSockets and forms, is the same host.
* The token comes as `Authorization: Bearer`, as the cookie, or once as `?token=`, which sets the cookie. The cookie holds a
  value made from the token, not the token. All comparisons take the same time whether or not they match.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

from grid.settings import GatewaySettings

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": browsers would then send `Origin: null` with our own form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}


class Guard:
    """The rules for one gateway. `names` are further host names, such as those in its certificate."""

    def __init__(self, settings: GatewaySettings, token: str, names: Iterable[str] = ()) -> None:
        self._token = token.encode()
        self.cookie_value = hmac.new(self._token, b"grid dashboard cookie", hashlib.sha256).hexdigest()
        self._any_address = _is_unspecified(settings.host)
        self._names = {name.lower().strip("[]") for name in (settings.host, *settings.allowed_hosts, *names)} | LOOPBACK_NAMES

    def host_allowed(self, host: str) -> bool:
        """Whether the `Host` header is one of ours; its port does not matter, as a tunnel may change it.

        A gateway that listens on every address is reached at any of them; an address cannot be pointed elsewhere.
        """
        name = host_name(host)
        if name is None:
            return False
        wildcard = "*." + name.partition(".")[2]
        return name in self._names or wildcard in self._names or (self._any_address and _is_address(name))

    def origin_allowed(self, origin: str | None, host: str) -> bool:
        """Whether a request with this `Origin` header (None: without one) comes from our own pages."""
        if origin is None:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # Brackets without an address in them, for example.
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()

    def token_matches(self, offered: str) -> bool:
        return hmac.compare_digest(offered.encode("utf-8", "surrogateescape"), self._token)

    def bearer_matches(self, header: str) -> bool:
        """Whether an `Authorization` header holds the token."""
        scheme, _, offered = header.partition(" ")
        return scheme.lower() == "bearer" and self.token_matches(offered.strip())

    def cookie_matches(self, offered: str) -> bool:
        return hmac.compare_digest(offered.encode("utf-8", "surrogateescape"), self.cookie_value.encode())


def secure(response: web.StreamResponse) -> None:
    """Put the security headers on a response that has not set them itself."""
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)


def host_name(host: str) -> str | None:
    """The name in a `Host` header, lower case, without port and brackets; None where it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_unspecified(name: str) -> bool:
    try:
        return ipaddress.ip_address(name.strip("[]")).is_unspecified
    except ValueError:
        return name == ""
