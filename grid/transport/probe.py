"""Looks at addresses without speaking the protocol: does a name have one, does somebody answer, could one listen there."""

from __future__ import annotations

import asyncio
import socket
from ssl import SSLContext

OPEN_S = 10.0


async def addresses_of(host: str, port: int) -> list[str]:
    """The addresses of a name. Raises `OSError`, with `TimeoutError` among them, where it has none."""
    loop = asyncio.get_running_loop()
    found = await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), OPEN_S)
    return sorted({str(one[4][0]) for one in found})


async def touch(host: str, port: int, ssl: SSLContext | None = None) -> bytes:
    """Connect and hang up again: the far end's certificate (DER), b"" without `ssl`. Raises `OSError`, `SSLError`."""
    name = host if ssl is not None else None
    _, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=ssl, server_hostname=name), OPEN_S)
    shown = writer.get_extra_info("ssl_object")
    writer.close()
    return b"" if shown is None else bytes(shown.getpeercert(binary_form=True) or b"")


def try_listening(host: str, port: int) -> None:
    """Listen at HOST:PORT for a moment. Raises the `OSError` with which that fails."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, _, _, address = found[0]
    with socket.socket(family, kind) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(1)
