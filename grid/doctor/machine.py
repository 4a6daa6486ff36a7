"""What the machine gives: versions, open files, room on the disk, a port to listen at."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import platform
import resource
import secrets
import shutil
from pathlib import Path

from grid.doctor.findings import Finding, ok, unknown, warning, wrong
from grid.transport.probe import try_listening
from grid.wire.session import NEWEST_VERSION, OLDEST_VERSION

FEW_FILES = 1024
LITTLE_BYTES = 64 << 20
"""Less free room than this is taken for none: SQLite's log alone may grow by some MiB."""

NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
"""Why nothing can be made in a folder, however much room there is; `/proc` says the last."""

SCARCE_BYTES = 1 << 30
PROBE_BYTES = 1 << 20
SUPPORTED_TORCH = (2, 8)

NO_SUCH_NAME = (-2, -3, -5)
"""What the resolver says of a name without an address (EAI_NONAME, EAI_AGAIN, EAI_NODATA)."""


def check_versions() -> list[Finding]:
    """Which versions run here."""
    speaks = f"protocol {OLDEST_VERSION} to {NEWEST_VERSION}" if OLDEST_VERSION < NEWEST_VERSION else f"protocol {NEWEST_VERSION}"
    here = f"grid {_version('grid')} ({speaks}), Python {platform.python_version()}, torch {_version('torch')}"
    found = tuple(int(part) for part in _version("torch").split(".")[:2] if part.isdigit())
    if found < SUPPORTED_TORCH:
        return [
            wrong(
                "version",
                here,
                why=f"plans and pointers need torch {'.'.join(map(str, SUPPORTED_TORCH))} or newer",
                do="install the project again with the versions of constraints.txt",
            )
        ]
    return [ok("version", here)]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def check_files(wanted: int = FEW_FILES) -> list[Finding]:
    """Whether this process may have as many files and connections open as it will want."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = None if hard == resource.RLIM_INFINITY else hard
    here = f"{'any number of' if most is None else most} files and connections may be open at once"
    if most is not None and most < wanted:
        return [
            warning(
                "open files",
                f"{here}; {wanted} may be wanted",
                why="each connection takes one; the next one after the last is refused",
                do=f"raise the limit: `ulimit -n {wanted}`, LimitNOFILE= of a systemd unit, or `ulimits:` of a compose service",
            )
        ]
    return [ok("open files", here)]


def check_disk(folder: Path, *, little: int = LITTLE_BYTES, scarce: int = SCARCE_BYTES) -> list[Finding]:
    """Whether there is room where state is kept, and something can really be written there."""
    place = next((one for one in (folder, *folder.absolute().parents) if one.is_dir()), Path("/"))
    free = shutil.disk_usage(place).free
    here = f"{_bytes(free)} are free at {place}"
    why = "a value leaves only after what it uses up has been written down, so with a full disk nothing leaves any more"
    failed = try_writing(place, PROBE_BYTES)
    full = failed is not None and failed.errno not in NOT_ALLOWED
    if full or free < little:
        said = f"{here}, and writing {_bytes(PROBE_BYTES)} failed: {failed.strerror}" if full and failed else here
        return [wrong("disk", said, why=why, do="make room there, raise the quota, or choose another --state")]
    if free < scarce:
        return [warning("disk", here, why=why, do="make room soon, or choose another --state")]
    return [ok("disk", here)]


def try_writing(folder: Path, size: int = 0) -> OSError | None:
    """Make a folder with a file of `size` bytes in `folder`, and delete them: what went wrong, if anything.

    Rights, quotas and file systems that take no files show in no other way.
    """
    probe = folder / f".grid-doctor-{secrets.token_hex(6)}"
    try:
        probe.mkdir(mode=0o700)
        with (probe / "file").open("xb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    finally:
        with contextlib.suppress(OSError):  # what could not be made is not there
            (probe / "file").unlink()
        with contextlib.suppress(OSError):
            probe.rmdir()
    return None


def _bytes(count: int) -> str:
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count >> 10} KiB"


def check_port(host: str, port: int, flag: str, *, ours: bool = False) -> list[Finding]:
    """Whether one can listen at HOST:PORT. `ours`: the service that is looked at runs, and so may have it."""
    here = f"{host or 'every address'}:{port}"
    if port == 0:
        return [ok("port", f"{flag}: a free port is taken at each start")]
    try:
        try_listening(host, port)
    except OSError as error:
        return [_no_port(error, here, flag, ours=ours)]
    return [ok("port", f"{flag}: {here} can be had")]


def _no_port(error: OSError, here: str, flag: str, *, ours: bool) -> Finding:
    if error.errno == errno.EADDRINUSE and ours:
        return ok("port", f"{flag}: {here} is taken, most likely by the service that runs with this --state")
    if error.errno == errno.EADDRINUSE:
        return wrong(
            "port",
            f"{flag}: {here} is taken by another process",
            why="two processes cannot listen at one port",
            do=f"stop the other one (`ss -ltnp` names it), or choose another port with {flag}",
        )
    if error.errno == errno.EACCES:
        return wrong(
            "port",
            f"{flag}: {here} is not for ordinary users",
            why="ports below 1024 want a right that this user does not have",
            do="choose a port above 1023 and a proxy or port mapping before it",
        )
    if error.errno == errno.EADDRNOTAVAIL or error.errno in NO_SUCH_NAME:
        return wrong(
            "port",
            f"{flag}: {here} is no address of this machine",
            why="one listens at an address that this machine has",
            do="say one of this machine's addresses, or 0.0.0.0 for all of them",
        )
    return unknown("port", f"{flag}: {here} could not be tried: {error.strerror}")
