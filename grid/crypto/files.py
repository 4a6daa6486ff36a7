"""Small private files: mode 0600, replaced as a whole, so a crash leaves the old content or the new one, never half."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grid.errors import AuthenticationFailed, InvalidRequest

MAX_FILE_BYTES = 16 << 20
LOCK_FILE = "lock"


def write_private(path: Path, data: bytes, *, only_new: bool = False) -> bool:
    """Put `data` at `path`, mode 0600, folders made with 0700. With `only_new`: False, and no change, if it exists.

    Raises `InvalidRequest`, naming the path, where nothing can be written there.
    """
    try:
        return _write_private(path, data, only_new=only_new)
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be written: {error.strerror}") from error


def _write_private(path: Path, data: bytes, *, only_new: bool) -> bool:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if only_new:
            # A hard link fails where the name is taken: of two processes that start at once, one makes the file.
            os.link(temporary, path)
        else:
            os.replace(temporary, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):  # it was renamed, or never made
            temporary.unlink()
    _sync_folder(path.parent)
    return True


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Have a folder, made with 0700 where there is none, to this process alone while the block lasts.

    Two services that share keys and state would throw each other out of the grid. The system frees the lock of a process that
    ended, however it did. Raises `InvalidRequest` where another process has the folder, or nothing can be written there.
    """
    path = folder / LOCK_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InvalidRequest(f"{folder}: cannot be used as a state folder: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InvalidRequest(f"another process uses {folder}: stop that one, or give this one a folder of its own") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict[str, Any], *, only_new: bool = False) -> bool:
    """`write_private` of a JSON object."""
    return write_private(path, json.dumps(content, indent=1).encode("utf-8") + b"\n", only_new=only_new)


def read_json(path: Path, what: str) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is no file; AuthenticationFailed, naming it, where it is damaged."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise AuthenticationFailed(f"{path}: too large to be {what}")
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuthenticationFailed(f"{path}: cannot read {what}: {error.strerror}") from error
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise AuthenticationFailed(f"{path}: damaged, not {what}; restore it from a copy, or delete it and start anew")
    return content


def text_field(content: dict[str, Any], name: str, path: Path) -> str:
    """One string of a file that `read_json` gave."""
    value = content.get(name)
    if not isinstance(value, str):
        raise AuthenticationFailed(f"{path}: damaged, {name!r} is missing; restore it from a copy, or delete it and start anew")
    return value


def hex_field(content: dict[str, Any], name: str, path: Path, *, length: int | None = None) -> bytes:
    """Bytes that the file holds as hexadecimal text."""
    text = text_field(content, name, path)
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if (length is not None and len(value) != length) or (length is None and text and not value):
        raise AuthenticationFailed(f"{path}: damaged, {name!r} is not what it must be; restore the file from a copy")
    return value
