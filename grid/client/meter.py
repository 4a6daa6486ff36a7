"""Transports that count."""

from __future__ import annotations

import dataclasses

from grid.transport.base import Buffer, Transport, size_of


@dataclasses.dataclass(slots=True)
class Meter:
    """Bytes of frames in each direction, since the client was made."""

    sent: int = 0
    received: int = 0


class Metered(Transport):
    """Passes everything on and counts it."""

    def __init__(self, inner: Transport, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter

    async def send(self, *parts: Buffer) -> None:
        await self._inner.send(*parts)
        self._meter.sent += size_of(parts)

    def can_send_now(self) -> bool:
        return self._inner.can_send_now()

    def send_now(self, *parts: Buffer) -> None:
        self._inner.send_now(*parts)
        self._meter.sent += size_of(parts)

    async def receive(self) -> Buffer:
        frame = await self._inner.receive()
        self._meter.received += len(frame)
        return frame

    async def close(self, reason: str = "") -> None:
        await self._inner.close(reason)
