"""What a service keeps: its state folder, keys, store, card and token; and the files of a certificate."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
from pathlib import Path

from grid.crypto.cards import DAY_S, describe_date, describe_s
from grid.crypto.files import LOCK_FILE
from grid.crypto.identity import FILE_NAME, LocalIdentity
from grid.doctor.findings import Finding, ok, unknown, warning, wrong
from grid.doctor.machine import try_writing
from grid.errors import GridError

SOON_S = 14 * DAY_S
OTHERS = stat.S_IRWXG | stat.S_IRWXO

READABLE = "whoever reads a key can pass for its owner"


def in_use(state: Path | None) -> bool:
    """Whether a service runs with this state folder now."""
    if state is None or not (state / LOCK_FILE).exists():
        return False
    try:
        with (state / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check_state(state: Path | None, store: str) -> list[Finding]:
    """The folder itself, who may read what is in it, and the store."""
    if state is None:
        return [
            warning(
                "state",
                "no state folder",
                why="after a restart the service is somebody else, and a node has forgotten what its datasets have released",
                do="say --state DIR",
            )
        ]
    if not state.exists():
        parent = next(one for one in state.absolute().parents if one.exists())
        failed = try_writing(parent)
        if failed is None:
            return [ok("state", f"{state} will be made at the first start")]
        return [_not_ours(state, f"cannot be made in {parent}: {failed.strerror}")]
    if not state.is_dir():
        return [wrong("state", f"{state} is no folder", why="keys and state are files in it", do="say another --state")]
    if not os.access(state, os.R_OK | os.W_OK | os.X_OK):
        return [_not_ours(state, "can be read or written by other users alone")]
    failed = try_writing(state)
    if failed is not None:
        return [_not_ours(state, f"cannot be written: {failed.strerror}")]
    found = [ok("state", f"{state} can be written{'; a service uses it now' if in_use(state) else ''}")]
    return [*found, *_check_modes(state), *_check_store(state / store)]


def _not_ours(state: Path, what: str) -> Finding:
    return wrong(
        "state",
        f"{state} {what}",
        why="keys and what was released are kept there; without them the service does not start",
        do=f"say another --state, or give the folder to the user that the service runs as: `chown -R USER {state}`",
    )


def _check_modes(state: Path) -> list[Finding]:
    open_files = [path for path in sorted(state.iterdir()) if path.is_file() and path.stat().st_mode & OTHERS]
    if state.stat().st_mode & OTHERS == 0 or not open_files:
        return [ok("key files", "only their owner can read them")] if not open_files else [_open_in_closed(state, open_files)]
    names = ", ".join(path.name for path in open_files[:5])
    return [
        wrong(
            "key files",
            f"other users of this machine can read {names} in {state}",
            why=READABLE,
            do=f"`chmod 0700 {state} && chmod 0600 {state}/*`; if somebody may have read it, revoke and enrol anew",
        )
    ]


def _open_in_closed(state: Path, files: list[Path]) -> Finding:
    return warning(
        "key files",
        f"{', '.join(path.name for path in files[:5])} would be readable to others but for the folder's mode",
        why=READABLE,
        do=f"`chmod 0600 {state}/*`",
    )


def _check_store(path: Path) -> list[Finding]:
    if not path.exists():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)) as store:
            (said,) = store.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said == "ok":
        return [ok("store", f"{path.name} is whole")]
    return [
        wrong(
            "store",
            f"{path} is damaged: {said}",
            why="it holds what the datasets have released; without it limits could be exceeded, so the node does not start",
            do="restore it from a copy. Deleting it forgets what was released: only for data that you would share from the start",
        )
    ]


def read_identity(state: Path | None, name: str | None, role: str) -> tuple[LocalIdentity | None, list[Finding]]:
    """The identity kept in a folder, unchanged, and what is to be said of it."""
    if state is None or not (state / FILE_NAME).exists():
        return None, []
    try:
        me = LocalIdentity.read(state)
    except GridError as error:
        return None, [
            wrong(
                "key",
                error.message,
                why="without its keys the service cannot show who it is",
                do="restore the file from a copy; or delete it and join with a new token, as somebody else to the grid",
            )
        ]
    if me is None:
        return None, []
    if me.role != role or (name is not None and me.name != name):
        return me, [
            wrong(
                "key",
                f"{state} holds the keys of the {me.role} {me.name!r}",
                why=f"each identity has a folder of its own; this one is not for the {role} {name or ''}".rstrip(),
                do="say the --state folder that belongs to it",
            )
        ]
    return me, [ok("key", f"{me.role} {me.name}, {me.id}")]


def check_card(me: LocalIdentity, wall: float) -> list[Finding]:
    """Whether the card counts now, and for how long the enrolment does."""
    card, enrolment = me.parsed_card, me.enrolment
    if card.not_before > wall + 1:
        return [
            warning(
                "card",
                f"the card was signed {describe_s(card.not_before - wall)} in the future of this machine's clock",
                why="the clock was ahead then or is behind now; others refuse a card of their future",
                do="set the clock (`timedatectl`), and start the service again",
            )
        ]
    if enrolment is None:
        return [ok("card", "signs itself, as a gateway's or with --dev")]
    left = enrolment.expires - wall
    if left <= 0:
        return [
            wrong(
                "card",
                f"the enrolment of {me.name} expired on {describe_date(enrolment.expires)}",
                why="nobody in the grid accepts the card any more",
                do="ask whoever holds the root for a new token (`grid enroll`) and start once with --join TOKEN",
            )
        ]
    if left < SOON_S:
        return [
            warning(
                "card",
                f"the enrolment of {me.name} expires in {describe_s(left)}",
                why="after that nobody in the grid accepts the card",
                do="ask for a new token now (`grid enroll`), and start once with --join TOKEN",
            )
        ]
    return [ok("card", f"enrolled until {describe_date(enrolment.expires)}")]


def unreadable(path: Path, check: str, why: str) -> Finding | None:
    """A finding where a file cannot be read, None where it can."""
    if os.access(path, os.R_OK) and path.is_file():
        return None
    what = f"{path} cannot be read by this user" if path.exists() else f"there is no {path}"
    return wrong(check, what, why=why, do="check the path, and who owns the file")


def nothing_kept(role: str) -> Finding:
    """For a service that has no identity yet and was given nothing to make one of."""
    return unknown("key", f"no identity is kept for this {role} yet: the first start makes one")
