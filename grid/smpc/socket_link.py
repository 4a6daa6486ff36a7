"""A `Link` over one connected stream socket to each of the two peers, for one event loop of asyncio or uvloop.

A frame is a header (label and number of words, 8 bytes each, little-endian), the sealed words, and a tag of 16 bytes: AES-256-GCM
under the key of its direction, with the header as associated data and the direction and a running number as nonce. So a frame
that is changed, left out, repeated, sent back or moved does not open. Frames are sealed into a buffer and sent from it at once
where nothing is queued, and opened straight into the array that the waiting coroutine gets, which goes on within the callback.

Whatever a peer does, `Inbox.fail` ends the computation with an error that names its rank, and both sockets are closed:
 - A frame that does not open, of other than the awaited length, or with more than may come unasked, is a fault. The length is
   judged before any memory is set aside.
 - The socket ends, or breaks, before the peer has said that it is done (`close`).
 - Nothing comes for `patience`: a peer with nothing to say sends pings. Time in which this side was busy does not count; but a
   peer that computes longer than that without a turn of its loop is taken for dead.
 - It does not read. What it has not taken waits here, up to `MAX_QUEUED_BYTES` (one message alone may be larger); more than
   that, or no progress for `patience`, is a fault. A party cannot wait instead, as `send` must not block.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from grid.errors import GridError, LocalProtocolError, QuorumLost, QuotaExceeded, WireError
from grid.smpc.link import Inbox, Mailbox, Words
from grid.smpc.steps import Arrival

KEY_BYTES = 32
MAX_QUEUED_BYTES = 1 << 28
PATIENCE = 30.0

_HEADER = struct.Struct("<QQ")
_NONCE = struct.Struct("<IQ")
_TAG_BYTES = 16
_HEADER_BYTES = _HEADER.size
_BESIDE_WORDS = _HEADER_BYTES + _TAG_BYTES
_BUFFER_BYTES = 1 << 16
_KEPT_BYTES = 1 << 20
"""Larger frames get memory of their own."""
_TICKS = 4
"""Parts of the patience, after each of which something must have come."""

_END = (1 << 64) - 1
_PING = (1 << 64) - 2
"""Labels beyond those of any operation."""

_NO_WORDS = np.empty(0, np.uint64)
_NOTHING = memoryview(bytearray())


class Channel(NamedTuple):
    """A connected socket to one peer, which the link takes over, and a key for each direction, known to these two alone."""

    socket: socket.socket
    sending: bytes
    receiving: bytes


class SocketLink:
    """The link of party `rank` to its peers, by rank. Made and used on one thread, that of the running loop.

    `failed` is told the error that ends the link early. `inbox` takes what comes, in place of a `Mailbox`.
    With `lingers`, only the socket to who is to blame is closed then, and the other by `drop`: so the third party sees no end of
    this one before it can see that of the one that is to blame.
    """

    def __init__(
        self,
        rank: int,
        channels: Mapping[int, Channel],
        *,
        patience: float = PATIENCE,
        failed: Callable[[GridError], None] | None = None,
        inbox: Inbox | None = None,
        lingers: bool = False,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.mailbox = Mailbox() if inbox is None else inbox
        self._failed = failed
        self._lingers = lingers
        self._patience = patience
        self._closed = self.loop.create_future()
        self.is_over = False
        self._peers = {peer: _Peer(self, rank, peer, channel) for peer, channel in channels.items()}
        self._ticking = self.loop.call_later(patience / _TICKS, self._tick)

    @property
    def bytes_sent(self) -> int:
        """On the wire, headers and tags included."""
        return sum(peer.bytes_sent for peer in self._peers.values())

    def send(self, to: int, label: int, words: Words) -> None:
        self._peers[to].send(label, words)

    def receive(self, sender: int, label: int, count: int) -> Arrival[Words]:
        arrival = self.mailbox.receive(sender, label, count)
        if not arrival.done and self._peers[sender].has_ended:
            self.loop.call_soon(self._peers[sender].missed)
        return arrival

    def fail(self, error: GridError) -> None:
        """End at once: all that wait get the error, and the peers see their sockets end."""
        if self.is_over:
            return
        blamed = error.details.get("party") if self._lingers else None
        self._finish()
        for rank, peer in self._peers.items():
            if blamed is None or rank == blamed:
                peer.shut()
        self.mailbox.fail(error)
        if self._failed is not None:
            self._failed(error)

    def drop(self) -> None:
        """Close what is still open after the end."""
        for peer in self._peers.values():
            peer.shut()

    async def close(self) -> None:
        """Say that this side is done, and wait until the peers have taken everything and are done, too."""
        if not self.is_over:
            for peer in self._peers.values():
                peer.end()
            self.peer_is_done()
        await asyncio.shield(self._closed)

    # ------------------------------------------------------------ for the peers' halves

    def peer_is_done(self) -> None:
        """One direction of one peer has ended as it should; all four of them end the link."""
        if not self.is_over and all(peer.is_done for peer in self._peers.values()):
            self._finish()
            self.drop()
            self.mailbox.fail(QuorumLost("the link to the other parties is closed"))

    def _tick(self) -> None:
        for peer in self._peers.values():
            peer.tick(self._patience)
            if self.is_over:
                return
        self._ticking = self.loop.call_later(self._patience / _TICKS, self._tick)

    def _finish(self) -> None:
        self.is_over = True
        self._closed.set_result(None)
        self._ticking.cancel()
        for peer in self._peers.values():
            peer.rest()


class _Peer:
    """Both directions of one socket."""

    def __init__(self, link: SocketLink, rank: int, peer: int, channel: Channel) -> None:
        self._link = link
        self._rank = peer
        self._socket = channel.socket
        self._socket.setblocking(False)
        if self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(channel.sending) != KEY_BYTES or len(channel.receiving) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self._encrypt, self._decrypt = AESGCM(channel.sending).encrypt_into, AESGCM(channel.receiving).decrypt_into
        self._direction_out, self._direction_in = 4 * rank + peer, 4 * peer + rank
        self._sent = self._received = 0
        # Sending
        self.bytes_sent = 0
        self._sealed = memoryview(bytearray(_BUFFER_BYTES))
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._said_end = False
        # Receiving: small frames in `_buffer`, the rest of a larger one in `_large`
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._filled = 0
        self._kept = memoryview(b"")
        self._large: memoryview | None = None
        self._large_filled = 0
        self.has_ended = False
        # Signs of life: bytes that went through the socket, as they were at the last tick too, and ticks without any
        self._bytes_in = self._bytes_out = 0
        self._seen_in = self._seen_out = self._seen_sent = 0
        self._silent = self._stuck = 0
        link.loop.add_reader(self._socket, self._readable)

    # ------------------------------------------------------------ sending

    def send(self, label: int, words: Words) -> None:
        if self._link.is_over:
            return
        size = words.nbytes + _BESIDE_WORDS
        if self._queue or size > _KEPT_BYTES:
            frame = _fresh_bytes(size)
        else:
            if size > len(self._sealed):
                self._sealed = memoryview(bytearray(_KEPT_BYTES))
            frame = self._sealed[:size]
        header = _HEADER.pack(label, words.size)
        frame[:_HEADER_BYTES] = header
        nonce = _NONCE.pack(self._direction_out, self._sent)
        self._sent += 1
        plain = words.data.cast("B") if words.size else _NOTHING
        self._encrypt(nonce, plain, header, frame[_HEADER_BYTES:])
        self.bytes_sent += size
        if self._queue:
            self._enqueue(frame)
            return
        try:
            taken = self._socket.send(frame)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self._fail_later(self._lost(f"its connection broke ({error.strerror})"))
            return
        self._bytes_out += taken
        if taken < size:
            rest = frame[taken:]
            self._enqueue(rest if size > _KEPT_BYTES else memoryview(bytes(rest)))
            self._link.loop.add_writer(self._socket, self._writable)

    def _enqueue(self, rest: memoryview) -> None:
        if self._queue and self._queued + len(rest) > MAX_QUEUED_BYTES:
            what = f"{self._queued + len(rest)} bytes wait for it, {MAX_QUEUED_BYTES} are allowed"
            self._fail_later(QuotaExceeded(f"party {self._rank} does not read: {what}", party=self._rank))
            return
        self._queue.append(rest)
        self._queued += len(rest)

    def _writable(self) -> None:
        try:
            while self._queue:
                rest = self._queue[0]
                taken = self._socket.send(rest)
                self._bytes_out += taken
                self._queued -= taken
                if taken < len(rest):
                    self._queue[0] = rest[taken:]
                    return
                self._queue.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._link.fail(self._lost(f"its connection broke ({error.strerror})"))
            return
        self._link.loop.remove_writer(self._socket)
        if self.is_done:
            self._link.peer_is_done()

    def _fail_later(self, error: GridError) -> None:
        """Not within `send`: the coroutine that called it runs, and cannot be told yet."""
        self._link.loop.call_soon(self._link.fail, error)

    def end(self) -> None:
        if not self._said_end:
            self.send(_END, _NO_WORDS)
            self._said_end = True

    # ------------------------------------------------------------ receiving

    def _readable(self) -> None:
        try:
            if self._large is None:
                self._read_small()
            else:
                self._read_large(self._large)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._link.fail(self._lost(f"its connection broke ({error.strerror})"))
        except GridError as error:
            self._link.fail(error)
        except Exception:
            self._link.fail(LocalProtocolError(f"a message of party {self._rank} could not be handled"))
            raise

    def _read_small(self) -> None:
        buffer, start = self._buffer, 0
        filled = self._filled + self._came(self._socket.recv_into(buffer[self._filled :]))
        while filled - start >= _HEADER_BYTES and not self._link.is_over:
            label, count = _HEADER.unpack_from(buffer, start)
            stop = start + 8 * count + _BESIDE_WORDS
            if stop > filled:
                self._admit(label, count)
                if stop - start > len(buffer):
                    self._begin_large(buffer[start:filled], stop - start)
                    start = filled
                break
            self._open(label, count, buffer[start:stop])
            start = stop
        self._filled = filled - start
        if 0 < start < filled:
            buffer[: filled - start] = bytes(buffer[start:filled])

    def _begin_large(self, first: memoryview, size: int) -> None:
        """Go on reading into memory as long as the frame."""
        if size > len(self._kept):
            large = _fresh_bytes(size)
            if size <= _KEPT_BYTES:
                self._kept = large
        else:
            large = self._kept[:size]
        large[: len(first)] = first
        self._large, self._large_filled = large[:size], len(first)

    def _read_large(self, large: memoryview) -> None:
        self._large_filled += self._came(self._socket.recv_into(large[self._large_filled :]))
        if self._large_filled == len(large):
            self._large = None
            label, count = _HEADER.unpack_from(large)
            self._open(label, count, large)

    def _came(self, count: int) -> int:
        if count == 0:
            raise self._lost("its connection ended before the computation did")
        self._bytes_in += count
        return count

    def _admit(self, label: int, count: int) -> None:
        """Judge a frame by its header, before the rest of it is there and memory is set aside."""
        if label >= _PING:
            if count:
                raise WireError(f"party {self._rank} sent a sign of life with {count} words", party=self._rank)
        else:
            self._link.mailbox.admit(self._rank, label, count)

    def _open(self, label: int, count: int, frame: memoryview) -> None:
        words = np.empty(count, np.uint64)
        plain = words.data.cast("B") if count else _NOTHING
        nonce = _NONCE.pack(self._direction_in, self._received)
        self._received += 1
        try:
            self._decrypt(nonce, frame[_HEADER_BYTES:], frame[:_HEADER_BYTES], plain)
        except InvalidTag:
            raise WireError(
                f"message {self._received - 1} of party {self._rank} does not open: it was changed, repeated or left out on its "
                "way, or sealed with another key",
                party=self._rank,
            ) from None
        if label < _PING and not self.has_ended:
            self._link.mailbox.deliver(self._rank, label, words)
        else:
            self._sign(label, count)

    def _sign(self, label: int, count: int) -> None:
        """Not a message of an operation."""
        if self.has_ended:
            raise WireError(f"party {self._rank} sent something after it was done", party=self._rank)
        self._admit(label, count)
        if label == _END:
            if self._rank in self._link.mailbox.waits:
                self.missed()
                return
            self.has_ended = True
            self._link.loop.remove_reader(self._socket)
            self._link.peer_is_done()

    def missed(self) -> None:
        """It has said that it is done, and a message that it did not send is waited for."""
        self._link.fail(self._lost("it was done before the computation was"))

    # ------------------------------------------------------------ life

    @property
    def is_done(self) -> bool:
        """Whether both sides have said that they are done, and this one's last word has gone out."""
        return self._said_end and self.has_ended and not self._queue

    def tick(self, patience: float) -> None:
        """A part of the patience has passed."""
        self._silent = 0 if self._bytes_in != self._seen_in or self.has_ended else self._silent + 1
        self._stuck = 0 if self._bytes_out != self._seen_out or not self._queue else self._stuck + 1
        if self._silent >= _TICKS:
            self._link.fail(self._lost(f"nothing has come from it for {patience:g} s", ended=False))
        elif self._stuck >= _TICKS:
            self._link.fail(self._lost(f"it has read nothing for {patience:g} s", ended=False))
        elif self._sent == self._seen_sent and not self._queue and not self._said_end:
            self.send(_PING, _NO_WORDS)
        self._seen_in, self._seen_out, self._seen_sent = self._bytes_in, self._bytes_out, self._sent

    def rest(self) -> None:
        """Neither send nor read any more."""
        self._link.loop.remove_reader(self._socket)
        self._link.loop.remove_writer(self._socket)
        self._queue.clear()
        self._large = None

    def shut(self) -> None:
        """Close the socket, after `rest`. Safe to call again."""
        self._socket.close()

    def _lost(self, how: str, *, ended: bool = True) -> QuorumLost:
        """`ended`: it may have lost the third party before, and ended its connection for that."""
        return QuorumLost(f"party {self._rank} is lost: {how}", party=self._rank, ended=ended)


def _fresh_bytes(size: int) -> memoryview:
    """Not filled: pages that nothing comes for are never touched."""
    return np.empty(size, np.uint8).data
