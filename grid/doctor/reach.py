"""The way to a gateway, step by step: name, connection, certificate, protocol, clock, grid, joining. Stops where it breaks."""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509

from grid.client.home import gateway_url
from grid.clock import Clock
from grid.crypto.cards import TOLERANCE_S, describe_s
from grid.crypto.identity import LocalIdentity, Trust
from grid.doctor.findings import Finding, ok, warning, wrong
from grid.doctor.keeping import SOON_S
from grid.errors import AuthenticationFailed, ClockSkew, GridError, WireError
from grid.rpc.hop import Hop, dial_gateway, greeting_of, join_gateway
from grid.settings import SessionLimits
from grid.transport.probe import addresses_of, touch
from grid.transport.websocket import trusted_certificates
from grid.wire.messages import Greeting

NOTICEABLE_S = 60.0
"""A difference between clocks that is allowed, and says that one of them is set by nobody."""

LIMITS = SessionLimits()

Choose = Callable[[Greeting], tuple[LocalIdentity, Trust] | None]
"""Who joins, once the gateway's greeting is known; None to look from outside. Raises `GridError`."""


class Way:
    """The way to one gateway. `walk` fills `findings`; entered with `joined`, it also gives the connection."""

    def __init__(self, url: str, tls_ca: Path | None, clock: Clock) -> None:
        self.given = url
        self.findings: list[Finding] = []
        self._tls_ca = tls_ca
        self._clock = clock
        self.url = ""
        self.greeting: Greeting | None = None

    async def walk(self) -> Greeting | None:
        """As far as the greeting, where nothing has been said of ourselves: that, or None where the way ends before."""
        try:
            self.url = gateway_url(self.given)
            place = urlsplit(self.url)
            host, port = place.hostname or "", place.port or (443 if place.scheme == "wss" else 80)
        except (GridError, ValueError):
            self._add(wrong("url", f"{self.given!r} is no URL", why="nothing can be dialled", do="write wss://HOST:PORT"))
            return None
        if not await self._connects(host, port):
            return None
        if place.scheme == "wss" and not await self._is_trusted(host, port):
            return None
        return await self._greets()

    @asynccontextmanager
    async def joined(self, choose: Choose) -> AsyncIterator[Hop | None]:
        """Join for as long as the context lasts, under the identity that `choose` gives; None where that does not succeed."""
        greeting = self.greeting
        try:
            chosen = choose(greeting) if greeting is not None else None
        except GridError as error:
            do = "join with the token that you were given (--token)"
            self._add(wrong("identity", error.message, why="a grid talks to members alone", do=do))
            chosen = None
        if chosen is None:
            yield None
            return
        me, trust = chosen
        dial = dial_gateway(self.url, trusted_certificates(self._tls_ca))
        inside = False
        try:
            async with join_gateway(dial, me=me, trust=trust, clock=self._clock, limits=LIMITS) as hop:
                inside = True
                self._add(ok("joining", f"the gateway knows us as {me.role} {me.name} ({me.id})"))
                yield hop
        except GridError as error:
            if not inside:
                self._add(_not_joined(error))
                yield None
                return
            why, do = "what was to be looked at after that was not", "try again; the gateway's log says more"
            self._add(wrong("connection", f"it was lost after joining: {error.message}", why=why, do=do))

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)

    async def _connects(self, host: str, port: int) -> bool:
        try:
            addresses = await addresses_of(host, port)
        except OSError:
            do = "check the spelling, and whether this machine can ask its name server"
            self._add(wrong("gateway", f"the name {host!r} has no address", why="nothing can be dialled without", do=do))
            return False
        started = self._clock.monotonic()
        try:
            await touch(host, port)
        except OSError as error:
            reason = _reason(error)
            what = f"no connection to {host}:{port} ({', '.join(addresses[:4])}): {reason}"
            do = "check that the gateway runs there, its --listen, the port in the URL, and firewalls between"
            self._add(wrong("gateway", what, why="everything passes through it", do=do))
            return False
        self._add(ok("gateway", f"{host}:{port} takes connections, in {1000 * (self._clock.monotonic() - started):.0f} ms"))
        return True

    async def _is_trusted(self, host: str, port: int) -> bool:
        """Whether a TLS connection is one that clients would trust, and for how long its certificate is good."""
        why = "without that anybody between us could be the gateway"
        try:
            context = trusted_certificates(self._tls_ca) or ssl.create_default_context()
            shown = await touch(host, port, context)
        except GridError as error:
            self._add(wrong("tls", error.message, why=why, do="name a file with the certificate of the gateway's authority"))
            return False
        except ssl.SSLCertVerificationError as error:
            self._add(wrong("tls", f"the certificate is not trusted: {error.verify_message}", why=why, do=_advice(error)))
            return False
        except OSError as error:
            do = "if the gateway has no certificate, its URL starts with ws://; a proxy before it must speak TLS at this port"
            self._add(wrong("tls", f"no TLS at {host}:{port}: {getattr(error, 'reason', None) or error}", why=why, do=do))
            return False
        left = seconds_left(x509.load_der_x509_certificate(shown), self._clock.wall())
        if left < SOON_S:
            do = "have it renewed, and restart the gateway with the new one"
            self._add(warning("tls", f"the certificate expires in {describe_s(left)}", why="nobody connects after that", do=do))
        else:
            self._add(ok("tls", f"the certificate is trusted, for {describe_s(left)} more"))
        return True

    async def _greets(self) -> Greeting | None:
        dial = dial_gateway(self.url, trusted_certificates(self._tls_ca))
        before = self._clock.wall()
        try:
            greeting = await greeting_of(dial, self._clock, LIMITS)
        except WireError as error:
            do = "install the same version of grid on both machines; `grid --version` says which one it is"
            self._add(wrong("version", error.message, why="the two speak different versions of the protocol", do=do))
            return None
        except GridError as error:
            why = "what answers there is no gateway, or something between us does not pass WebSockets on"
            do = "check the URL; a proxy must pass `Upgrade` on for /grid (docs/how-to/deploy-with-compose.md)"
            self._add(wrong("protocol", error.message, why=why, do=do))
            return None
        self._add(ok("protocol", f"a gateway of grid {greeting.grid}{' with --dev' if greeting.dev else ''}"))
        self._add(check_clock(greeting.wall - (before + self._clock.wall()) / 2))
        self.greeting = greeting
        return greeting


def check_clock(skew: float) -> Finding:
    """What to say of a clock that is `skew` seconds ahead of ours."""
    if not abs(skew) < 1e12:
        skew = 1e12
    what = f"the gateway's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} ours"
    if abs(skew) >= NOTICEABLE_S:
        what = f"the gateway's clock is {describe_s(abs(skew))} {'ahead of' if skew > 0 else 'behind'} ours"
    why = f"cards and sums carry times; beyond {TOLERANCE_S // 60} minutes they are refused"
    do = "set the clock that is wrong, and let the system keep it (`timedatectl set-ntp true`)"
    if abs(skew) > TOLERANCE_S:
        return wrong("clock", what, why=why, do=do)
    return warning("clock", what, why=why, do=do) if abs(skew) >= NOTICEABLE_S else ok("clock", what)


def seconds_left(certificate: x509.Certificate, wall: float) -> float:
    """How long a certificate is good for; negative once it has expired."""
    return certificate.not_valid_after_utc.replace(tzinfo=datetime.UTC).timestamp() - wall


def _advice(error: ssl.SSLCertVerificationError) -> str:
    if "expired" in error.verify_message or "not yet valid" in error.verify_message:
        return "have the certificate renewed; if it is new, set this machine's clock"
    if "ostname" in error.verify_message or "IP address" in error.verify_message:
        return "use a name that the certificate is for, or have one made for this name"
    return "if its issuer is your own, name that certificate: --tls-ca FILE (in Python ca=FILE)"


def _not_joined(error: GridError) -> Finding:
    if isinstance(error, ClockSkew):
        return wrong("joining", error.message, why="cards carry times", do="set the clock that is wrong")
    if isinstance(error, AuthenticationFailed):
        why = "the gateway, or this side, does not accept the other as a member of the same grid"
        do = "use the URL of your grid's gateway, and a token of its root: `grid enroll` prints one"
        return wrong("joining", error.message, why=why, do=do)
    return wrong("joining", error.message, why="nothing works without having joined", do="try again; the gateway's log says more")


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or type(error).__name__
