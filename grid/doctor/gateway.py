"""`grid doctor gateway`: what a gateway's keeper can get wrong, before it starts or while it runs."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from grid.clock import Clock
from grid.crypto.cards import describe_s
from grid.doctor.findings import Finding, ok, warning, wrong
from grid.doctor.keeping import READABLE, SOON_S, check_card, check_state, in_use, read_identity, unreadable
from grid.doctor.machine import check_disk, check_files, check_port, check_versions
from grid.doctor.reach import seconds_left
from grid.errors import GridError
from grid.gateway.tls import certificate_names, tls_context
from grid.settings import GatewaySettings

SPARE_FILES = 320


def check_gateway(settings: GatewaySettings, store: str, refuse: Callable[[], None], clock: Clock) -> list[Finding]:
    """All that a gateway needs. `refuse` raises a `GridError` for settings with which it would not start."""
    found = [*check_versions(), *check_files(settings.max_connections + SPARE_FILES), *check_disk(settings.state or Path.cwd())]
    try:
        refuse()
    except GridError as error:
        found.append(wrong("settings", error.message, why="the gateway does not start like this", do="change the setting named"))
    else:
        found.append(ok("settings", "a gateway would start with them"))
    found += check_state(settings.state, store)
    me, said = read_identity(settings.state, None, "gateway")
    found += [*said, *(check_card(me, clock.wall()) if me is not None else [])]
    found += check_port(settings.host, settings.port, "--listen", ours=in_use(settings.state))
    return [*found, *_check_tls(settings, clock)]


def _check_tls(settings: GatewaySettings, clock: Clock) -> list[Finding]:
    if settings.tls_cert is None and settings.tls_key is None:
        if settings.dev:
            return []
        why = "who is connected and what datasets are called can be read on the way, though not what nodes and clients say"
        return [warning("tls", "no certificate", why=why, do="say --tls-cert and --tls-key, or put a proxy with TLS before it")]
    for path in (settings.tls_cert, settings.tls_key):
        missing = None if path is None else unreadable(path, "tls", "without it the gateway does not start")
        if missing is not None:
            return [missing]
    try:
        tls_context(settings)
        names = certificate_names(settings)
        certificates = x509.load_pem_x509_certificates(settings.tls_cert.read_bytes()) if settings.tls_cert else []
    except (GridError, OSError, ValueError) as error:
        do = "name a certificate (chain first) and the key that it was made for, both in PEM"
        return [wrong("tls", str(error), why="nobody can connect without them", do=do)]
    return [*_check_dates(certificates, names, clock), *_check_key_mode(settings.tls_key)]


def _check_dates(certificates: list[x509.Certificate], names: tuple[str, ...], clock: Clock) -> list[Finding]:
    left = min(seconds_left(one, clock.wall()) for one in certificates)
    said = f"for {', '.join(names) or 'no name at all'}"
    do = "have it renewed, and restart the gateway with the new one"
    if left <= 0:
        return [wrong("tls", f"the certificate {said} expired {describe_s(-left)} ago", why="nobody connects any more", do=do)]
    if not names:
        why = "programs look for the name that they dial among the certificate's alternative names, and find none"
        return [wrong("tls", "the certificate is for no name", why=why, do="have one made with subjectAltName")]
    if left < SOON_S:
        return [warning("tls", f"the certificate {said} expires in {describe_s(left)}", why="nobody connects after that", do=do)]
    return [ok("tls", f"a certificate {said}, good for {describe_s(left)} more")]


def _check_key_mode(key: Path | None) -> list[Finding]:
    if key is None or not key.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        return []
    closed = any(not folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) for folder in key.absolute().parents)
    if closed:
        return []
    what = f"other users of this machine can read or change {key}"
    return [warning("tls key", what, why=READABLE, do=f"`chmod 0600 {key}`; a container's secret file is no concern")]
